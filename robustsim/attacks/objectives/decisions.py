"""Objectives on a decision between classes: a classifier's, or a metric's choice between two images."""

import copy
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor

from robustsim.attacks.objectives import losses
from robustsim.attacks.objectives.embeddings import Embed, Objective, anchor, detached, seen_by
from robustsim.errors import InputError

Loss = Literal["ce", "margin", "dlr", "targeted-ce", "targeted-margin", "targeted-dlr"]
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
        loss_name: see :class:`Classification`.
        targets: (N,) int64 for targeted losses, else None.
    """

    per_image: tuple[str, ...] = ("labels", "targets")

    def __init__(self, labels: Tensor, loss: str, targets: Tensor | None) -> None:
        if loss not in _PLAIN and loss not in _TARGETED:
            raise InputError(f"{loss!r} is none of the losses {', '.join((*_PLAIN, *_TARGETED))}")
        if (loss in _TARGETED) != (targets is not None):
            raise InputError(f"loss {loss!r} needs targets=" if targets is None else f"loss {loss!r} takes no targets")
        for name, value in (("labels", labels), ("targets", targets)):
            if value is not None and (value.ndim != 1 or value.is_floating_point() or len(value) != len(labels)):
                raise InputError(f"{name} must be integers (N,), not {value.dtype} {tuple(value.shape)}")
        self.labels, self.loss_name = detached(labels).long(), loss
        self.targets = None if targets is None else detached(targets).long()

    def with_loss(self: AnyDecision, loss: Loss, targets: Tensor | None = None) -> AnyDecision:
        """The same decision, attacked by another loss."""
        other = copy.copy(self)
        Decision.__init__(other, self.labels, loss, targets)
        return other

    def loss(self, scores: Tensor) -> Tensor:
        """The loss that was chosen, (N,)."""
        if self.targets is None:
            return _PLAIN[self.loss_name](scores, self.labels)
        return _TARGETED[self.loss_name](scores, self.labels, self.targets)

    def gap(self, scores: Tensor) -> Tensor:
        """``max_{j != y} z_j - z_y``, (N,): any wrong decision is a success, whatever the loss aims at."""
        return losses.margin(scores, self.labels)

    def margin(self: AnyDecision) -> AnyDecision:
        """The same decision with the margin for the loss."""
        return self.with_loss("margin")

    def targeted(self: AnyDecision, images: Tensor, count: int, *, boundary: bool = False) -> list[AnyDecision]:
        """Objectives that lead to the ``count`` likeliest wrong classes, judged on these images by one forward pass.

        By targeted DLR, where there are four classes, else by the margin to the target. ``boundary`` asks for that
        margin in any case: it is above 0 only where the attacker has won.
        """
        logits = self.scores(images)
        ranked = logits.scatter(1, self.labels[:, None], -torch.inf).argsort(1, descending=True)
        name: Loss = "targeted-margin" if boundary or logits.shape[1] < 4 else "targeted-dlr"
        return [self.with_loss(name, ranked[:, place]) for place in range(min(count, logits.shape[1] - 1))]


class Classification(Decision):
    """Keep a classifier from the right class.

    Args:
        model: N images -> (N, K) logits.
        labels: (N,) integers, the right classes.
        loss: ``ce``, cross-entropy; ``margin``, that of Carlini and Wagner; ``dlr``, the difference of logits ratio, of
            three classes or more; ``targeted-dlr`` (four or more), ``targeted-margin`` and ``targeted-ce`` lead to
            ``targets``.
        targets: (N,) integers, for the targeted losses. Any wrong decision counts as success all the same.

    Raises:
        InputError: an unknown loss, labels that are no integers (N,), a targeted loss without targets; when the loss is
            computed, too few classes for it.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], labels: Tensor, *, loss: Loss = "ce", targets: Tensor | None = None
    ) -> None:
        super().__init__(labels, loss, targets)
        self.model = model

    def scores(self, images: Tensor) -> Tensor:
        """The logits, (N, K)."""
        return self.model(images).float()


class TwoAFC(Decision):
    """Turn a metric's choice between two images around (R-CLIP paper, Eq. 4 and the problem after it).

    The two similarities to the reference are the logits of a classifier with two classes. With ``embed`` alone they are
    inner products, cosine similarities where embeddings have length 1; with ``distance``, negative distances. A tie is
    no success of the attacker::

        objective = TwoAFC(embed=metric.embed_pixels, reference=r, left=a, right=b, labels=nearer)
        result = APGD(norm="linf", eps=4 / 255, steps=100)(objective, objective.images)

    Args:
        reference: (N, C, H, W); with ``embed``, embeddings (N, D) may stand in for pictures that are not attacked.
        left: likewise.
        right: likewise.
        labels: (N,), 0 where people find left nearer, 1 where right.
        embed: N images -> (N, D). Pictures that are not attacked are embedded once.
        distance: (N images, N images) -> (N,); with ``embed`` it is given embeddings instead, (N, D) and (N, D). Where
            distances differ by more than 100, cross-entropy has no gradient any more: scale them, or use ``margin``.
        perturb: which of them is attacked. With ``all``, :attr:`images` is (N, 3, C, H, W), the three stacked in the
            order of the arguments, each with the radius for itself.
        loss: ``ce`` or ``margin``; DLR needs three classes, and a choice has two.

    Attributes:
        images: what to attack.

    Raises:
        InputError: counts that differ, labels other than 0 and 1, neither embed nor distance.
    """

    per_image = ("labels", "targets", "reference", "left", "right", "images")

    def __init__(
        self,
        *,
        reference: Tensor,
        left: Tensor,
        right: Tensor,
        labels: Tensor,
        embed: Embed | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        perturb: Perturbed = "reference",
        loss: Loss = "ce",
    ) -> None:
        if embed is None and distance is None:
            raise InputError("TwoAFC takes embed= or distance=, or both")
        if loss not in _PLAIN:
            raise InputError(f"loss={loss!r}: a choice between two is attacked by ce or margin")
        if perturb not in (*_SIDES, "all"):
            raise InputError(f"perturb={perturb!r} is none of {', '.join(_SIDES)}, all")
        given = {"reference": reference, "left": left, "right": right}
        if len({len(labels), *map(len, given.values())}) > 1:
            counts = ", ".join(f"{len(value)} {name}" for name, value in {**given, "labels": labels}.items())
            raise InputError(f"{counts}: they must be as many")
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise InputError("labels are 0 where left is nearer and 1 where right is; leave out triplets that tie")
        attacked = _SIDES if perturb == "all" else (perturb,)
        for name in attacked:
            if given[name].ndim != 4:
                raise InputError(f"{name} is attacked: it must be (N, C, H, W), not {tuple(given[name].shape)}")
        super().__init__(labels.long(), loss, None)
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
        odd: (N, C, H, W); with ``embed``, embeddings (N, D) may stand in for pictures that are not attacked.
        others: the two that belong together, each likewise.
        embed: as for :class:`TwoAFC`.
        distance: likewise.
        perturb: ``odd``, or ``all`` with :attr:`images` (N, 3, C, H, W), each with the radius for itself.
        loss: ``ce``, ``margin`` or ``dlr``.

    Attributes:
        images: what to attack.

    Raises:
        InputError: counts that differ, neither embed nor distance.
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
        if perturb not in ("odd", "all"):
            raise InputError(f"perturb={perturb!r} is neither odd nor all")
        if len({len(odd), *map(len, others)}) > 1:
            counts = ", ".join(str(len(images)) for images in (odd, *others))
            raise InputError(f"{counts} images: they must be as many")
        for picture in (odd, *others) if perturb == "all" else (odd,):
            if picture.ndim != 4:
                raise InputError(f"what is attacked must be (N, C, H, W), not {tuple(picture.shape)}")
        super().__init__(torch.zeros(len(odd), dtype=torch.int64, device=odd.device), loss, None)
        self.embed, self.distance, self.perturb = embed, distance, perturb
        self.images = torch.stack((odd, *others), 1) if perturb == "all" else odd
        self.first, self.second = (
            None
            if perturb == "all"
            else detached(picture)
            if embed is None
            else anchor(embed, picture, unit=distance is None)
            for picture in others
        )

    def scores(self, images: Tensor) -> Tensor:
        """For each image the similarity, or negative distance, of the two others, (N, 3)."""
        seen = images if self.embed is None else seen_by(self.embed, images, unit=self.distance is None)
        if self.first is None or self.second is None:
            odd, first, second = seen.unbind(1)
        else:
            odd, first, second = seen, self.first, self.second
        pairs = ((first, second), (odd, second), (odd, first))
        return torch.stack([_similarity(a, b, self.distance) for a, b in pairs], 1)


def _similarity(a: Tensor, b: Tensor, distance: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
    return (a * b).sum(1) if distance is None else -distance(a, b).float()
