"""Objectives on a decision between classes: a classifier's, or a metric's choice between two images."""

import copy
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, TypeVar, Union

import torch
from torch import Tensor

from robustsim.attacks.objectives import losses
from robustsim.attacks.objectives.embeddings import Embed, Objective, anchor, same_width, seen_by
from robustsim.attacks.objectives.inputs import (
    as_many,
    detached,
    function,
    integers,
    numbers,
    pictures,
    returned,
    within,
)
from robustsim.errors import InputError

Loss = Literal["ce", "margin", "dlr", "targeted-ce", "targeted-margin", "targeted-dlr"]
Labels: TypeAlias = Union[Tensor, Sequence[int]]  # or an array of integers
Perturbed = Literal["reference", "left", "right", "all"]
AnyDecision = TypeVar("AnyDecision", bound="Decision")

_PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": losses.cross_entropy,
    "margin": losses.margin,
    "dlr": losses.dlr,
}
_TARGETED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "targeted-ce": losses.targeted_cross_entropy,
    "targeted-margin": losses.margin_to,
    "targeted-dlr": losses.targeted_dlr,
}
_SIDES = ("reference", "left", "right")


class Decision(Objective):
    """Keep a decision between K classes from being the right one; what it is made on is the subclass's.

    Attributes:
        labels: (N,) int64, the right decisions.
        loss_name: see `Classification`.
        targets: (N,) int64 for targeted losses, else None.
    """

    per_image: tuple[str, ...] = ("labels", "targets")

    def __init__(self, labels: Labels, loss: str, targets: Labels | None) -> None:
        if loss not in _PLAIN and loss not in _TARGETED:
            raise InputError(f"{loss!r} is none of the losses {', '.join((*_PLAIN, *_TARGETED))}")
        if (loss in _TARGETED) != (targets is not None):
            raise InputError(f"loss {loss!r} needs targets=" if targets is None else f"loss {loss!r} takes no targets")
        self.labels, self.loss_name = integers("labels", labels), loss
        self.targets = None if targets is None else integers("targets", targets)
        if self.targets is not None:
            as_many(labels=self.labels, targets=self.targets)
        # Compared with the number of classes at each step, without asking a device again.
        self._largest = max(
            (within(name, value), name)
            for name, value in (("labels", self.labels), ("targets", self.targets))
            if value is not None
        )

    def with_loss(self: AnyDecision, loss: Loss, targets: Labels | None = None) -> AnyDecision:
        """The same decision, attacked by another loss."""
        other = copy.copy(self)
        Decision.__init__(other, self.labels, loss, targets)
        return other

    def loss(self, scores: Tensor) -> Tensor:
        """The loss that was chosen, (N,)."""
        self._check_classes(scores)
        if self.targets is None:
            return _PLAIN[self.loss_name](scores, self.labels)
        return _TARGETED[self.loss_name](scores, self.labels, self.targets)

    def gap(self, scores: Tensor) -> Tensor:
        """`max_{j != y} z_j - z_y`, (N,): any wrong decision is a success, whatever the loss aims at."""
        self._check_classes(scores)
        return losses.margin(scores, self.labels)

    def margin(self: AnyDecision) -> AnyDecision:
        """The same decision with the margin for the loss."""
        return self.with_loss("margin")

    def targeted(self: AnyDecision, images: Tensor, count: int, *, boundary: bool = False) -> list[AnyDecision]:
        """Objectives that lead to the `count` likeliest wrong classes, judged on these images by one forward pass.

        By targeted DLR, where there are four classes, else by the margin to the target. `boundary` asks for that
        margin in any case: it is above 0 only where the attacker has won.
        """
        self.check_count(images)
        logits = self.scores(images)
        self._check_classes(logits)
        ranked = logits.scatter(1, self.labels[:, None], -torch.inf).argsort(1, descending=True)
        name: Loss = "targeted-margin" if boundary or logits.shape[1] < 4 else "targeted-dlr"
        return [self.with_loss(name, ranked[:, place]) for place in range(min(count, logits.shape[1] - 1))]

    def _check_classes(self, scores: Tensor) -> None:
        """Refuse labels or targets beyond the classes there are, and bring the others to the scores."""
        (largest, name), classes = self._largest, scores.shape[-1]
        if largest >= classes:
            raise InputError(f"{name} up to {largest} for {classes} classes: they are 0 to {classes - 1}")
        if self.labels.device != scores.device:  # once: lists and arrays begin on the CPU
            self.labels = self.labels.to(scores.device)
            self.targets = None if self.targets is None else self.targets.to(scores.device)


class Classification(Decision):
    """Keep a classifier from the right class.

    Args:
        model: N images -> (N, K) logits.
        labels: (N,) integers from 0, the right classes; a tensor, list or array.
        loss: `ce`, cross-entropy; `margin`, that of Carlini and Wagner; `dlr`, the difference of logits ratio, of
            three classes or more; `targeted-dlr` (four or more), `targeted-margin` and `targeted-ce` lead to
            `targets`.
        targets: likewise, for the targeted losses. Any wrong decision counts as success all the same.

    Raises:
        InputError: an unknown loss, labels that are no integers (N,), a targeted loss without targets; when the loss is
            computed, labels that are not as many as the images or beyond the classes, a model that returns no (N, K),
            too few classes for the loss.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], labels: Labels, *, loss: Loss = "ce", targets: Labels | None = None
    ) -> None:
        super().__init__(labels, loss, targets)
        self.model = function("model", model)

    def scores(self, images: Tensor) -> Tensor:
        """The logits, (N, K)."""
        return returned("model", self.model(images), len(images), "(N, K)").float()


class TwoAFC(Decision):
    """Turn a metric's choice between two images around (R-CLIP paper, Eq. 4 and the problem after it).

    The two similarities to the reference are the logits of a classifier with two classes. With `embed` alone they are
    inner products, cosine similarities where embeddings have length 1; with `distance`, negative distances. A tie is
    no success of the attacker:

    ```python
    objective = TwoAFC(embed=metric.embed_pixels, reference=r, left=a, right=b, labels=nearer)
    result = APGD(norm="linf", eps=4 / 255, steps=100)(objective, objective.images)
    ```

    Args:
        reference: (N, C, H, W); with `embed`, embeddings (N, D) may stand in for pictures that are not attacked.
        left: likewise.
        right: likewise.
        labels: (N,), 0 where people find left nearer, 1 where right; a tensor, list or array.
        embed: N images -> (N, D). Pictures that are not attacked are embedded once.
        distance: (N images, N images) -> (N,); with `embed` it is given embeddings instead, (N, D) and (N, D). Where
            distances differ by more than 100, cross-entropy has no gradient any more: scale them, or use `margin`.
        perturb: which of them is attacked. With `all`, [`images`][robustsim.images] is (N, 3, C, H, W), the three
            stacked in the order of the arguments, each with the radius for itself.
        loss: `ce` or `margin`; DLR needs three classes, and a choice has two.

    Attributes:
        images: what to attack.

    Raises:
        InputError: counts that differ, labels other than 0 and 1, neither embed nor distance; when it is used, images
            that are not as many, functions that return something else.
    """

    per_image = ("labels", "targets", "reference", "left", "right", "images")

    def __init__(
        self,
        *,
        reference: Tensor,
        left: Tensor,
        right: Tensor,
        labels: Labels,
        embed: Embed | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        perturb: Perturbed = "reference",
        loss: Loss = "ce",
    ) -> None:
        if embed is None and distance is None:
            raise InputError("TwoAFC takes embed= or distance=, or both")
        _functions(embed=embed, distance=distance)
        if loss not in _PLAIN:
            raise InputError(f"loss={loss!r}: a choice between two is attacked by ce or margin")
        if perturb not in (*_SIDES, "all"):
            raise InputError(f"perturb={perturb!r} is none of {', '.join(_SIDES)}, all")
        attacked = _SIDES if perturb == "all" else (perturb,)
        given = {
            name: pictures(name, value, embedded=embed is not None and name not in attacked)
            for name, value in (("reference", reference), ("left", left), ("right", right))
        }
        nearer = _sides(labels)
        as_many(**given, labels=nearer)
        super().__init__(nearer, loss, None)
        if perturb == "all":
            _alike(**given)
        self.embed, self.distance, self.perturb = embed, distance, perturb
        self.images = torch.stack([given[name] for name in _SIDES], 1) if perturb == "all" else given[perturb]
        # What is compared of the pictures that stay as they are.
        self.reference, self.left, self.right = (
            None
            if name in attacked
            else detached(picture)
            if embed is None
            else anchor(embed, picture, unit=distance is None)
            for name, picture in given.items()
        )

    def scores(self, images: Tensor) -> Tensor:
        """The two similarities, or negative distances, (N, 2)."""
        self.check_count(images)
        seen = images if self.embed is None else seen_by(self.embed, images, unit=self.distance is None)
        if self.perturb == "all":
            reference, left, right = seen.unbind(1)
        else:
            reference, left, right = (
                seen if fixed is None else fixed for fixed in (self.reference, self.left, self.right)
            )
        return torch.stack([_similarity(reference, side, self.distance) for side in (left, right)], 1)


class OddOneOut(Decision):
    """Keep a metric from finding the odd one of three images: the one that is not in the most similar pair.

    The class of an image is scored by the similarity of the two others. Labels are 0 all along, as the odd one is named
    first; a tie is no success of the attacker.

    Args:
        odd: (N, C, H, W); with `embed`, embeddings (N, D) may stand in for pictures that are not attacked.
        others: the two that belong together, each likewise.
        embed: as for [`TwoAFC`][robustsim.attacks.TwoAFC].
        distance: likewise.
        perturb: `odd`, or `all` with [`images`][robustsim.images] (N, 3, C, H, W), each with the radius for itself.
        loss: `ce`, `margin` or `dlr`.

    Attributes:
        images: what to attack.

    Raises:
        InputError: counts that differ, neither embed nor distance; when it is used, as for `TwoAFC`.
    """

    per_image = ("labels", "targets", "first", "second", "images")

    def __init__(
        self,
        *,
        odd: Tensor,
        others: tuple[Tensor, Tensor],
        embed: Embed | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        perturb: Literal["odd", "all"] = "odd",
        loss: Loss = "ce",
    ) -> None:
        if embed is None and distance is None:
            raise InputError("OddOneOut takes embed= or distance=, or both")
        _functions(embed=embed, distance=distance)
        if perturb not in ("odd", "all"):
            raise InputError(f"perturb={perturb!r} is neither odd nor all")
        if not isinstance(others, (tuple, list)) or len(others) != 2:
            raise InputError("others are the two images that belong together: pass a pair")
        stays = perturb == "odd" and embed is not None
        odd = pictures("odd", odd)
        first, second = (pictures(f"others[{place}]", other, embedded=stays) for place, other in enumerate(others))
        as_many(odd=odd, first=first, second=second)
        if perturb == "all":
            _alike(odd=odd, first=first, second=second)
        super().__init__(torch.zeros(len(odd), dtype=torch.int64, device=odd.device), loss, None)
        self.embed, self.distance, self.perturb = embed, distance, perturb
        self.images = torch.stack((odd, first, second), 1) if perturb == "all" else odd
        self.first, self.second = (
            None
            if perturb == "all"
            else detached(picture)
            if embed is None
            else anchor(embed, picture, unit=distance is None)
            for picture in (first, second)
        )

    def scores(self, images: Tensor) -> Tensor:
        """For each image the similarity, or negative distance, of the two others, (N, 3)."""
        self.check_count(images)
        seen = images if self.embed is None else seen_by(self.embed, images, unit=self.distance is None)
        if self.first is None or self.second is None:
            odd, first, second = seen.unbind(1)
        else:
            odd, first, second = seen, self.first, self.second
        pairs = ((first, second), (odd, second), (odd, first))
        return torch.stack([_similarity(a, b, self.distance) for a, b in pairs], 1)


def _similarity(a: Tensor, b: Tensor, distance: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
    if distance is None:
        same_width("some images", a, b)
        return (a * b).sum(1)
    return -returned("distance", distance(a, b), len(a), "(N,)").float()


def _functions(**given: Callable[..., Tensor] | None) -> None:
    for name, value in given.items():
        if value is not None:
            function(name, value)


def _sides(labels: Labels) -> Tensor:
    """The choices between two, (N,) int64; numbers other than integers may say them, as `two_afc` does."""
    choices = numbers("labels", labels)
    if choices.ndim != 1 or choices.is_complex():
        raise InputError(f"labels must be numbers (N,), not {choices.dtype} {tuple(choices.shape)}")
    if not bool(((choices == 0) | (choices == 1)).all()):
        raise InputError("labels are 0 where left is nearer and 1 where right is; leave out triplets that tie")
    return choices.long()


def _alike(**given: Tensor) -> None:
    """Refuse images of different sizes, where they are attacked together."""
    if len({value.shape for value in given.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
        raise InputError(f"{shapes}: to be attacked together, they must be of one size")
