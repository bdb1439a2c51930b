"""The methods of fine-tuning: for each what its attack maximises and what its training minimises.

A method is a `Method` in `METHODS`: two functions of `Views` and the options that it reads. A new
one is such an entry, and a recipe that names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustsim.encoders.attention import complementary_attention, text_guided_attention
from robustsim.encoders.encoder import Encoder, Features
from robustsim.errors import InputError
from robustsim.training.methods import losses

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Classes:
    """The classes as points among the embeddings.

    Attributes:
        prototypes: (K, D) of length 1.
        negatives: (K, D) of length 1, "This is not a photo of a {class}"; for Comp-TGA.
    """

    prototypes: Tensor
    negatives: Tensor | None = None

    def to(self, device: torch.device) -> "Classes":
        """The same on a device."""
        return Classes(self.prototypes.to(device), None if self.negatives is None else self.negatives.to(device))


class Views:
    """A batch as the trained encoder and the original see it; every view is computed once, and only if asked for.

    Args:
        student: the encoder that is trained, `pixels -> Features` or `pixels -> (N, D)`.
        original: the frozen encoder that it began as.
        clean: (N, 3, S, S) pixels.
        adversarial: (N, 3, S, S), or None while an attack is still looking for them.
        labels: (N,) int64, or None.
        classes: what the labels stand for, or None.
        options: the method's, by name.
        tokens: whether places are needed beside embeddings.
        seen: the original's features of the clean pixels where they are known already.
        graded: a weaker and a stronger distortion of the clean pixels, where the option `rank` is set.
    """

    def __init__(
        self,
        student: nn.Module,
        original: Encoder,
        clean: Tensor,
        adversarial: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        classes: Classes | None = None,
        options: Mapping[str, Any] | None = None,
        tokens: bool = False,
        seen: "Seen | None" = None,
        graded: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.student, self.original, self.clean, self._adversarial = student, original, clean, adversarial
        self._labels, self._classes, self.options, self.tokens = labels, classes, dict(options or {}), tokens
        self._seen, self._graded = seen, graded

    @property
    def adversarial(self) -> Tensor:
        """The adversarial pixels."""
        return given(self._adversarial, "adversarial images")

    @property
    def labels(self) -> Tensor:
        """The labels."""
        return given(self._labels, "labels")

    @property
    def classes(self) -> Classes:
        """The classes."""
        return given(self._classes, "classes")

    def student_at(self, pixels: Tensor) -> "Seen":
        """What the trained encoder makes of other pixels: those that an attack tries."""
        return see(self.student, pixels, False)

    @cached_property
    def student_adversarial(self) -> "Seen":
        """What the trained encoder makes of the adversarial pixels."""
        return see(self.student, self.adversarial, self.tokens)

    @cached_property
    def student_clean(self) -> "Seen":
        """What the trained encoder makes of the clean pixels."""
        return see(self.student, self.clean, self.tokens)

    @cached_property
    def student_graded(self) -> tuple[Tensor, Tensor]:
        """What the trained encoder makes of a weaker and of a stronger distortion, each (N, D)."""
        weaker, stronger = given(self._graded, "distorted images")
        both = see(self.student, torch.cat([weaker, stronger]), False).z
        return both[: len(weaker)], both[len(weaker) :]

    @cached_property
    def original_clean(self) -> "Seen":
        """What the original makes of the clean pixels."""
        if self._seen is not None:
            return self._seen
        with torch.no_grad():
            return see(self.original, self.clean, self.tokens)

    @cached_property
    def original_adversarial(self) -> "Seen":
        """What the original makes of the adversarial pixels."""
        with torch.no_grad():
            return see(self.original, self.adversarial, self.tokens)

    def logits(self, seen: "Seen") -> Tensor:
        """(N, K) similarities to the classes, scaled."""
        return losses.class_logits(seen.z, self.classes.prototypes, self.options.get("scale", 100.0))

    def attention(self, seen: "Seen") -> Tensor:
        """(N, S, S) attention to the text of each picture's own class."""
        return self._attention(seen, self.classes.prototypes)

    def complementary(self, seen: "Seen") -> Tensor:
        """(N, S, S) attention to what looks like the class and not like the rest."""
        negatives = given(self.classes.negatives, "texts of what a picture is not of")
        return complementary_attention(self.attention(seen), self._attention(seen, negatives))

    def _attention(self, seen: "Seen", texts: Tensor) -> Tensor:
        places, form = given(seen.features, "places"), self.options.get("attention", "paper")
        # In a CLIP transformer the embedding is the class token.
        first = None if form == "paper" else seen.z
        text, side = texts[self.labels], self.clean.shape[-1]
        return text_guided_attention(places.tokens, text, places.grid, side, form=form, class_token=first)


@dataclass(frozen=True)
class Seen:
    """Embeddings (N, D), and the places behind them where they were asked for."""

    z: Tensor
    features: Features | None = None


def see(encoder: Any, pixels: Tensor, tokens: bool) -> Seen:
    """One forward pass of an encoder, or of whatever wraps one."""
    if not tokens:
        return Seen(encoder(pixels))
    features = encoder.features(pixels, project=True)
    return Seen(features.embedding, features)


def given(value: "Thing | None", what: str) -> "Thing":
    """A value that must be there.

    Raises:
        InputError: it is not.
    """
    if value is None:
        raise InputError(f"this method needs {what}, and got none")
    return value


@dataclass(frozen=True)
class Method:
    """How an encoder is fine-tuned.

    Attributes:
        title: as papers call it.
        attack: what the inner attack maximises at some pixels, (N,); None for a method that trains on clean images.
        terms: what training minimises: named means over the batch, of which the sum is the loss.
        labels: whether it needs labels and classes.
        tokens: whether it needs places beside embeddings.
        options: what a recipe may set under `method`, with the papers' values.
    """

    title: str
    attack: Callable[[Views, Tensor], Tensor] | None
    terms: Callable[[Views], dict[str, Tensor]]
    labels: bool = False
    tokens: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


# -- what attacks maximise


def _fare_attack(views: Views, pixels: Tensor) -> Tensor:
    anchor = views.student_clean if views.options["trades"] else views.original_clean
    z = views.student_at(pixels).z
    loss = losses.embedding_distance(z, anchor.z)
    return loss + views.options["rank"] * losses.order(z, *views.student_graded) if views.options["rank"] else loss


def _tecoa_attack(views: Views, pixels: Tensor) -> Tensor:
    if views.options["trades"]:
        return losses.divergence(views.logits(views.student_clean), views.logits(views.student_at(pixels)))
    return _away_from_class(views, pixels)


def _away_from_class(views: Views, pixels: Tensor) -> Tensor:
    return losses.cross_entropy(views.logits(views.student_at(pixels)), views.labels)


# -- what training minimises


def _fare(views: Views) -> dict[str, Tensor]:
    terms = _near_original(views)
    if rank := views.options["rank"]:
        # Distances of the adversarial image still grow with the strength of a distortion.
        terms["rank"] = rank * losses.order(views.student_adversarial.z, *views.student_graded).mean()
    if relations := views.options["relations"]:
        # What is like what stays as the original sees it, under attack too.
        distance = losses.relation_distance(views.student_adversarial.z, views.original_clean.z)
        terms["relations"] = relations * distance.mean()
    return terms


def _near_original(views: Views) -> dict[str, Tensor]:
    w, original = views.options["clean_weight"], views.original_clean.z
    if views.options["trades"]:
        # As TRADES splits an error: near the original on clean images, and steady around them.
        clean = views.student_clean.z
        return {
            "clean": losses.embedding_distance(clean, original).mean(),
            "steady": views.options["trades"] * losses.embedding_distance(views.student_adversarial.z, clean).mean(),
        }
    terms = {"adversarial": (1 - w) * losses.embedding_distance(views.student_adversarial.z, original).mean()}
    if w:
        terms["clean"] = w * losses.embedding_distance(views.student_clean.z, original).mean()
    return terms


def _tecoa(views: Views) -> dict[str, Tensor]:
    w = views.options["clean_weight"]
    if views.options["trades"]:
        clean = views.logits(views.student_clean)
        return {
            "clean": losses.cross_entropy(clean, views.labels).mean(),
            "steady": views.options["trades"]
            * losses.divergence(clean, views.logits(views.student_adversarial)).mean(),
        }
    terms = {"adversarial": (1 - w) * _adversarial_entropy(views)}
    if w:
        terms["clean"] = w * _clean_entropy(views)
    return terms


def _adversarial_entropy(views: Views) -> Tensor:
    return losses.cross_entropy(views.logits(views.student_adversarial), views.labels).mean()


def _clean_entropy(views: Views) -> Tensor:
    return losses.cross_entropy(views.logits(views.student_clean), views.labels).mean()


def _pmg_aft(views: Views) -> dict[str, Tensor]:
    adversarial = views.logits(views.student_adversarial)
    return {
        "adversarial": losses.cross_entropy(adversarial, views.labels).mean(),
        "original": views.options["alpha"]
        * losses.divergence(adversarial, views.logits(views.original_adversarial)).mean(),
        "clean": views.options["beta"] * losses.divergence(adversarial, views.logits(views.student_clean)).mean(),
    }


def _guided(views: Views, attention: Callable[[Seen], Tensor]) -> dict[str, Tensor]:
    wanted = attention(views.original_clean)
    return {
        "adversarial": _adversarial_entropy(views),
        "refinement": views.options["alpha"]
        * losses.attention_distance(attention(views.student_adversarial), wanted).mean(),
        "constraint": views.options["beta"] * losses.attention_distance(attention(views.student_clean), wanted).mean(),
    }


def _caw(views: Views) -> dict[str, Tensor]:
    adversarial = views.logits(views.student_adversarial)
    clean = views.logits(views.original_clean)
    distance = losses.feature_distance(views.student_adversarial.z, views.original_adversarial.z)
    return {
        "adversarial": losses.cross_entropy(adversarial, views.labels).mean(),
        "confidence": views.options["alpha"] * losses.confidence_weighted(adversarial, clean, views.labels).mean(),
        "features": views.options["beta"] * distance.mean(),
    }


_PROMPT = {"prompt": "This is a photo of a {}", "scale": 100.0}
# The published tables were made with attention="published".
_ATTENTION = {"attention": "paper"}
_VARIANTS = {"clean_weight": 0.0, "trades": 0.0}

#: All methods by the name that a recipe gives them.
METHODS: dict[str, Method] = {
    "fare": Method("FARE", _fare_attack, _fare, options={**_VARIANTS, "rank": 0.0, "relations": 0.0}),
    "tecoa": Method("TeCoA", _tecoa_attack, _tecoa, labels=True, options={**_PROMPT, **_VARIANTS}),
    "ft-clean": Method("FT-Clean", None, lambda v: {"clean": _clean_entropy(v)}, labels=True, options=_PROMPT),
    "ft-adv": Method(
        "FT-Adv", _away_from_class, lambda v: {"adversarial": _adversarial_entropy(v)}, labels=True, options=_PROMPT
    ),
    "pmg-aft": Method(
        "PMG-AFT", _away_from_class, _pmg_aft, labels=True, options={**_PROMPT, "alpha": 1.0, "beta": 1.0}
    ),
    "tga-zsr": Method(
        "TGA-ZSR",
        _away_from_class,
        lambda v: _guided(v, v.attention),
        labels=True,
        tokens=True,
        options={**_PROMPT, **_ATTENTION, "alpha": 0.08, "beta": 0.05},
    ),
    "comp-tga": Method(
        "Comp-TGA",
        _away_from_class,
        lambda v: _guided(v, v.complementary),
        labels=True,
        tokens=True,
        options={
            **_PROMPT,
            **_ATTENTION,
            "negative_prompt": "This is not a photo of a {}",
            "alpha": 0.10,
            "beta": 0.10,
        },
    ),
    "caw": Method("CAW", _away_from_class, _caw, labels=True, options={**_PROMPT, "alpha": 1.0, "beta": 1.0}),
}
