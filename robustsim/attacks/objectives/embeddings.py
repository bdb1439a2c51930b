"""What an attacker wants: functions `images -> (N,) loss` that attacks maximise, image by image.

Any callable of that form can be attacked. It may offer more, as all classes here do:

- `success(images) -> (N,) bool`: where the attacker has what he wants;
- `evaluate(images) -> (loss, success)`: both for one forward pass. Without it, success costs passes of its own: at
  each step with `stop_on_success=True`, else one at the end, of the points with the largest loss only;
- `select(indices)`: the same objective for some of its images, so that images that are done can leave the batch;
- `margin()`: an objective of the same success, whose loss is above 0 exactly there, for attacks on the boundary;
- `targeted(images, count, boundary=False)`: objectives that each lead to another class;
- `with_loss(name)`: the same success, attacked by another loss; AutoAttack begins with `with_loss("ce")`.

The functions that they are given work on tensors: `embed(images) -> (N, D)` (`RobustSim.embed_pixels`, for
example), `distance(a, b) -> (N,)` (any metric), `model(images) -> (N, K)` logits. Whatever does not depend on the
attacked images is computed once, when the objective is made. What is given for each image must be as many as the
images, and what the functions return must have a row for each: all else is refused with an `InputError`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.attacks.engine.modules import undisturbed
from robustsim.attacks.objectives.inputs import detached, function, pictures, returned
from robustsim.errors import InputError

Embed = Callable[[Tensor], Tensor]
AnyObjective = TypeVar("AnyObjective", bound="Objective")


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
        self.check_count(images)
        return self.loss(self.scores(images))

    def check_count(self, images: Tensor) -> None:
        """Refuse images that are not as many as what the objective holds for each.

        Raises:
            InputError: the counts differ; the message names both.
        """
        for name in self.per_image:
            value = getattr(self, name)
            if value is not None and len(value) != len(images):
                raise InputError(f"{len(value)} {name} for {len(images)} images: the objective needs one for each")

    def evaluate(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss and success for one forward pass."""
        self.check_count(images)
        scores = self.scores(images)
        gap = self.gap(scores.detach())
        return self.loss(scores), None if gap is None else gap > 0

    def success(self, images: Tensor) -> Tensor:
        """Where the attacker has won, (N,) bool.

        Raises:
            InputError: success is not defined.
        """
        self.check_count(images)
        return self._known(self.gap(self.scores(images))) > 0

    def select(self: AnyObjective, indices: Tensor) -> AnyObjective:
        """The same objective for the images at these places, (M,) int64."""
        part = copy.copy(self)
        for name in self.per_image:
            value = getattr(self, name)
            if value is not None:
                setattr(part, name, value[indices.to(value.device)])
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

    def check_count(self, images: Tensor) -> None:
        self.inner.check_count(images)

    def select(self, indices: Tensor) -> "_Margin":
        return _Margin(self.inner.select(indices))

    def _known(self, gap: Tensor | None) -> Tensor:
        return self.inner._known(gap)


class Untargeted(Objective):
    """Move the embedding away from where it was (R-CLIP paper, Eq. 6): `|u(x + d) - u(x)|^2` of unit embeddings.

    At the clean image the gradient is zero: start at random, as PGD and APGD do.

    Args:
        embed: N images -> (N, D).
        images: the clean images, or their embeddings (N, D).
        threshold: the distance `sqrt(1 - similarity)` beyond which the attacker has won; without it, success is not
            defined.

    Raises:
        InputError: what is no image or embedding; when it is used, counts that differ, or an embedding of another form.
    """

    per_image = ("anchors",)

    def __init__(self, embed: Embed, images: Tensor, *, threshold: float | None = None) -> None:
        self.embed, self.threshold = embed, checked_threshold(threshold)
        self.anchors = anchor(embed, pictures("images", images, embedded=True))

    def scores(self, images: Tensor) -> Tensor:
        """Squared distances of unit embeddings, (N,)."""
        self.check_count(images)
        seen = seen_by(self.embed, images)
        same_width("the clean images", self.anchors, seen)
        return (seen - self.anchors).square().sum(1)

    def loss(self, scores: Tensor) -> Tensor:
        """The squared distances themselves."""
        return scores

    def gap(self, scores: Tensor) -> Tensor | None:
        """By how much the squared distance exceeds that of the threshold."""
        return None if self.threshold is None else scores - 2 * self.threshold**2


class Targeted(Objective):
    """Move the embedding towards a set of images (R-CLIP paper, Eq. 5): `-sum_y |u(x + d) - u(y)|^2`.

    Args:
        embed: N images -> (N, D).
        targets: M images or embeddings (M, D), the same for all that are attacked; or embeddings (N, M, D), a set for
            each.
        threshold: the attacker has won where the root of the mean of `1 - similarity` over the targets, for a single
            one the distance, is below this; without it, success is not defined.

    Raises:
        InputError: no targets, or what is no image or embedding; when it is used, as for `Untargeted`.
    """

    def __init__(self, embed: Embed, targets: Tensor, *, threshold: float | None = None) -> None:
        self.embed, self.threshold = embed, checked_threshold(threshold)
        self.targets = anchor(embed, pictures("targets", targets, embedded=True, sets=True))
        if 0 in self.targets.shape:
            raise InputError(f"targets of shape {tuple(self.targets.shape)}: there must be at least one")
        self.per_image = ("targets",) if self.targets.ndim == 3 else ()

    def scores(self, images: Tensor) -> Tensor:
        """Squared distances to the targets, (N, M)."""
        self.check_count(images)
        seen = seen_by(self.embed, images)
        same_width("the targets", self.targets, seen)
        return 2 - 2 * (self.targets @ seen[..., None]).squeeze(-1)

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
        text: (D,) or (1, D), the embedded text to be reached (`RobustSim.embed_text`).
        others: (M, D), embedded texts: the attacker has won where `text` is more similar than each of them; without
            them, success is not defined.

    Raises:
        InputError: several texts for the one, no others where there should be some, embeddings that do not fit.
    """

    def __init__(self, embed: Embed, text: Tensor, *, others: Tensor | None = None) -> None:
        self.embed = embed
        texts = _embedded("text", text[None] if isinstance(text, Tensor) and text.ndim == 1 else text)
        if len(texts) != 1:
            raise InputError(f"text must be one embedding, (D,) or (1, D), not {tuple(texts.shape)}")
        if others is not None:
            others = _embedded("others", others)
            same_width("the text", texts, others)
            texts = torch.cat((texts, others.to(texts)))
        self.texts = anchor(embed, texts)

    def scores(self, images: Tensor) -> Tensor:
        """Similarities to the texts, the wanted one first, (N, 1 + M)."""
        seen = seen_by(self.embed, images)
        same_width("the texts", self.texts, seen)
        return seen @ self.texts.T

    def loss(self, scores: Tensor) -> Tensor:
        """The first of them."""
        return scores[:, 0]

    def gap(self, scores: Tensor) -> Tensor | None:
        """By how much it exceeds the others."""
        return scores[:, 0] - scores[:, 1:].amax(1) if scores.shape[1] > 1 else None


def checked_threshold(threshold: float | None) -> float | None:
    """A distance, or none."""
    if threshold is None:
        return None
    try:
        fits = 0 <= threshold <= 2**0.5
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise InputError(f"threshold is a distance sqrt(1 - similarity), from 0 to 1.414, not {threshold!r}")
    return threshold


def same_width(name: str, fixed: Tensor, seen: Tensor) -> None:
    """Refuse embeddings of different lengths: a single number would be spread over the other's."""
    if fixed.shape[-1] != seen.shape[-1]:
        raise InputError(f"{name} have embeddings of {fixed.shape[-1]} numbers, and others {seen.shape[-1]}")


def seen_by(embed: Embed, images: Tensor, *, unit: bool = True) -> Tensor:
    """Embeddings of what is attacked, (N, D), or (N, 3, D) of the pictures of triplets; of length 1 with `unit`."""
    rows = images.flatten(0, 1) if images.ndim == 5 else images
    features = returned("embed", embed(rows), len(rows), "(N, D)").float()
    features = F.normalize(features, dim=-1) if unit else features
    return features.view(*images.shape[:2], -1) if images.ndim == 5 else features


def anchor(embed: Embed, images: Tensor, *, unit: bool = True) -> Tensor:
    """Embeddings that stay as they are: of images (N, C, H, W), or given as such; of length 1 with `unit`."""
    function("embed", embed)
    with undisturbed(embed), torch.inference_mode(False), torch.no_grad():
        still = detached(images)
        features = returned("embed", embed(still), len(still), "(N, D)") if images.ndim == 4 else still
        return F.normalize(features.float(), dim=-1) if unit else features.float()


def _embedded(name: str, value: Tensor) -> Tensor:
    """Embeddings of texts, (M, D), at least one."""
    if not isinstance(value, Tensor) or value.ndim != 2 or 0 in value.shape or not value.is_floating_point():
        seen = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} must be embedded texts, floating point (M, D), at least one, not {seen}")
    return value
