"""What an attacker wants: functions ``images -> (N,) loss`` that attacks maximise, image by image.

Any callable of that form can be attacked. It may offer more, as all classes here do:

- ``success(images) -> (N,) bool``: where the attacker has what he wants;
- ``evaluate(images) -> (loss, success)``: both for one forward pass. Without it, success costs passes of its own: at
  each step with ``stop_on_success=True``, else one at the end, of the points with the largest loss only;
- ``select(indices)``: the same objective for some of its images, so that images that are done can leave the batch;
- ``margin()``: an objective of the same success, whose loss is above 0 exactly there, for attacks on the boundary;
- ``targeted(images, count, boundary=False)``: objectives that each lead to another class.

The functions that they are given work on tensors: ``embed(images) -> (N, D)`` (``RobustSim.embed_pixels``, for
example), ``distance(a, b) -> (N,)`` (any metric), ``model(images) -> (N, K)`` logits. Whatever does not depend on the
attacked images is computed once, when the objective is made.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.attacks import losses
from robustsim.errors import InputError

Loss = Literal["ce", "margin", "dlr", "targeted-ce", "targeted-margin", "targeted-dlr"]
Perturbed = Literal["reference", "left", "right", "all"]
Embed = Callable[[Tensor], Tensor]
AnyObjective = TypeVar("AnyObjective", bound="Objective")
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


class Objective(ABC):
    """A loss and a notion of success on the same scores, which cost one forward pass."""

    #: Names of the attributes with a row for each image.
    per_image: tuple[str, ...] = ()

    @abstractmethod
    def scores(self, images: Tensor) -> Tensor:
        """The forward pass: N images -> (N, ...) float32."""

    @abstractmethod
    def loss(self, scores: Tensor) -> Tensor:
        """(N,), greater is better for the attacker."""

    @abstractmethod
    def gap(self, scores: Tensor) -> Tensor | None:
        """(N,), above 0 exactly where the attacker has won; None where success is not defined."""

    def __call__(self, images: Tensor) -> Tensor:
        """The loss of images, (N,) float32."""
        return self.loss(self.scores(images))

    def evaluate(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss and success for one forward pass."""
        scores = self.scores(images)
        gap = self.gap(scores.detach())
        return self.loss(scores), None if gap is None else gap > 0

    def success(self, images: Tensor) -> Tensor:
        """Where the attacker has won, (N,) bool.

        Raises:
            InputError: success is not defined.
        """
        return self._known(self.gap(self.scores(images))) > 0

    def select(self: AnyObjective, indices: Tensor) -> AnyObjective:
        """The same objective for the images at these places, (M,) int64."""
        part = copy.copy(self)
        for name in self.per_image:
            value = getattr(self, name)
            if value is not None:
                setattr(part, name, value[indices])
        return part

    def margin(self) -> "Objective":
        """An objective of the same success whose loss is above 0 exactly there."""
        return _Margin(self)

    def _known(self, gap: Tensor | None) -> Tensor:
        if gap is None:
            raise InputError(f"{type(self).__name__} has no notion of success here: pass threshold= (or others=)")
        return gap


class _Margin(Objective):
    """Another objective with its gap for the loss."""

    def __init__(self, inner: Objective) -> None:
        self.inner = inner

    def scores(self, images: Tensor) -> Tensor:
        return self.inner.scores(images)

    def loss(self, scores: Tensor) -> Tensor:
        return self._known(self.inner.gap(scores))

    def gap(self, scores: Tensor) -> Tensor | None:
        return self.inner.gap(scores)

    def select(self, indices: Tensor) -> "_Margin":
        return _Margin(self.inner.select(indices))

    def _known(self, gap: Tensor | None) -> Tensor:
        return self.inner._known(gap)


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
        self.labels, self.loss_name = _detached(labels).long(), loss
        self.targets = None if targets is None else _detached(targets).long()

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

    The two similarities to the reference are the logits of a classifier with two classes. With ``embed`` they are
    cosine similarities, with ``distance`` negative distances. A tie is no success of the attacker::

        objective = TwoAFC(embed=metric.embed_pixels, reference=r, left=a, right=b, labels=nearer)
        result = APGD(norm="linf", eps=4 / 255, steps=100)(objective, objective.images)

    Args:
        reference: (N, C, H, W); with ``embed``, embeddings (N, D) may stand in for pictures that are not attacked.
        left: likewise.
        right: likewise.
        labels: (N,), 0 where people find left nearer, 1 where right.
        embed: N images -> (N, D). Either this,
        distance: or this, (N images, N images) -> (N,).
        perturb: which of them is attacked. With ``all``, :attr:`images` is (N, 3, C, H, W), the three stacked in the
            order of the arguments, each with the radius for itself.
        loss: ``ce`` or ``margin``; DLR needs three classes, and a choice has two.

    Attributes:
        images: what to attack.

    Raises:
        InputError: counts that differ, labels other than 0 and 1, not exactly one of embed and distance.
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
        if (embed is None) == (distance is None):
            raise InputError("TwoAFC takes either embed= or distance=")
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
            None if name in attacked else _detached(picture) if embed is None else _anchor(embed, picture)
            for name, picture in given.items()
        )

    def scores(self, images: Tensor) -> Tensor:
        """The two similarities, or negative distances, (N, 2)."""
        seen = images if self.embed is None else _seen(self.embed, images)
        if self.perturb == "all":
            reference, left, right = seen.unbind(1)
        else:
            reference, left, right = (
                seen if fixed is None else fixed for fixed in (self.reference, self.left, self.right)
            )
        return torch.stack((self._similarity(reference, left), self._similarity(reference, right)), 1)

    def _similarity(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1) if self.distance is None else -self.distance(a, b).float()


class Untargeted(Objective):
    """Move the embedding away from where it was (R-CLIP paper, Eq. 6): ``|u(x + d) - u(x)|^2`` of unit embeddings.

    At the clean image the gradient is zero: start at random, as PGD and APGD do.

    Args:
        embed: N images -> (N, D).
        images: the clean images, or their embeddings (N, D).
        threshold: the distance ``sqrt(1 - similarity)`` beyond which the attacker has won; without it, success is not
            defined.
    """

    per_image = ("anchors",)

    def __init__(self, embed: Embed, images: Tensor, *, threshold: float | None = None) -> None:
        self.embed, self.threshold = embed, threshold
        self.anchors = _anchor(embed, images)

    def scores(self, images: Tensor) -> Tensor:
        """Squared distances of unit embeddings, (N,)."""
        return (_seen(self.embed, images) - self.anchors).square().sum(1)

    def loss(self, scores: Tensor) -> Tensor:
        """The squared distances themselves."""
        return scores

    def gap(self, scores: Tensor) -> Tensor | None:
        """By how much the squared distance exceeds that of the threshold."""
        return None if self.threshold is None else scores - 2 * self.threshold**2


class Targeted(Objective):
    """Move the embedding towards a set of images (R-CLIP paper, Eq. 5): ``-sum_y |u(x + d) - u(y)|^2``.

    Args:
        embed: N images -> (N, D).
        targets: M images or embeddings (M, D), the same for all that are attacked; or embeddings (N, M, D), a set for
            each.
        threshold: the attacker has won where the root of the mean of ``1 - similarity`` over the targets, for a single
            one the distance, is below this; without it, success is not defined.
    """

    def __init__(self, embed: Embed, targets: Tensor, *, threshold: float | None = None) -> None:
        self.embed, self.threshold = embed, threshold
        self.targets = _anchor(embed, targets)
        self.per_image = ("targets",) if self.targets.ndim == 3 else ()

    def scores(self, images: Tensor) -> Tensor:
        """Squared distances to the targets, (N, M)."""
        return 2 - 2 * (self.targets @ _seen(self.embed, images)[..., None]).squeeze(-1)

    def loss(self, scores: Tensor) -> Tensor:
        """Minus their sum."""
        return -scores.sum(1)

    def gap(self, scores: Tensor) -> Tensor | None:
        """By how much their mean falls short of that of the threshold."""
        return None if self.threshold is None else 2 * self.threshold**2 - scores.mean(1)


class TextTargeted(Objective):
    """Move the embedding towards a text: the loss is the cosine similarity to it.

    Args:
        embed: N images -> (N, D).
        text: (D,) or (1, D), the embedded text to be reached (``RobustSim.embed_text``).
        others: (M, D), embedded texts: the attacker has won where ``text`` is more similar than each of them; without
            them, success is not defined.
    """

    def __init__(self, embed: Embed, text: Tensor, *, others: Tensor | None = None) -> None:
        self.embed = embed
        texts = text.reshape(1, -1) if others is None else torch.cat((text.reshape(1, -1), others))
        self.texts = _anchor(embed, texts)

    def scores(self, images: Tensor) -> Tensor:
        """Similarities to the texts, the wanted one first, (N, 1 + M)."""
        return _seen(self.embed, images) @ self.texts.T

    def loss(self, scores: Tensor) -> Tensor:
        """The first of them."""
        return scores[:, 0]

    def gap(self, scores: Tensor) -> Tensor | None:
        """By how much it exceeds the others."""
        return scores[:, 0] - scores[:, 1:].amax(1) if scores.shape[1] > 1 else None


def _detached(tensor: Tensor) -> Tensor:
    """A tensor that stays as it is; one of inference mode could not be part of a graph."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()


def _seen(embed: Embed, images: Tensor) -> Tensor:
    """Unit embeddings of what is attacked, (N, D), or (N, 3, D) of the pictures of triplets."""
    rows = images.flatten(0, 1) if images.ndim == 5 else images
    unit = F.normalize(embed(rows).float(), dim=-1)
    return unit.view(*images.shape[:2], -1) if images.ndim == 5 else unit


def _anchor(embed: Embed, images: Tensor) -> Tensor:
    """Unit embeddings that stay as they are: of images (N, C, H, W), or given as such."""
    with torch.inference_mode(False), torch.no_grad():
        features = embed(_detached(images)) if images.ndim == 4 else _detached(images)
        return F.normalize(features.float(), dim=-1)
