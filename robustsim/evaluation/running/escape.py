"""Attacks that move a picture away from what it was to a metric (R-CLIP paper, Eq. 6), as evaluations make them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustsim.attacks import APGD, Objective, Untargeted, parse_eps
from robustsim.attacks.engine.options import whole
from robustsim.attacks.engine.region import Norm
from robustsim.attacks.engine.threat import check_norm
from robustsim.attacks.objectives.inputs import returned
from robustsim.errors import InputError
from robustsim.evaluation.subjects import Subject


class Away(Objective):
    """The distance of a metric to pictures that stay as they are; success is not defined.

    Args:
        metric: whose distance it is.
        fixed: for each image its embedding, or for a metric of pairs the pixels, (N, ...).
    """

    per_image = ("fixed",)

    def __init__(self, metric: Subject, fixed: Tensor) -> None:
        self.embed, self.distance, self.fixed = metric.embed, metric.distance, fixed

    def scores(self, images: Tensor) -> Tensor:
        """The distances, (N,)."""
        seen = images if self.embed is None else self.embed(images)
        return returned("distance", self.distance(seen, self.fixed), len(images), "(N,)").float()

    def loss(self, scores: Tensor) -> Tensor:
        """The same."""
        return scores

    def gap(self, scores: Tensor) -> None:
        """None."""


@dataclass(frozen=True, kw_only=True)
class EscapePlan:
    """How far pictures are moved away.

    Attributes:
        eps: radii as text such as `4/255`, unlike each other.
        norm: `linf`, `l2` or `l1`.
        steps: of APGD.

    Raises:
        InputError: what is no radius, no norm or no number of steps; a radius that comes twice.
    """

    eps: Sequence[str] = ()
    norm: Norm = "linf"
    steps: int = 100

    def __post_init__(self) -> None:
        check_norm(self.norm)
        object.__setattr__(self, "eps", tuple(str(text).replace(" ", "") for text in self.eps))
        object.__setattr__(self, "steps", whole("steps", self.steps))
        values = [parse_eps(text, self.norm) for text in self.eps]
        if len(set(values)) < len(values):
            raise InputError(f"a radius is named twice in {', '.join(self.eps)}")

    def to_dict(self) -> dict[str, Any] | None:
        """For reports; None for no attack."""
        if not self.eps:
            return None
        return {"attack": "apgd", "norm": self.norm, "eps": list(self.eps), "steps": self.steps}

    def move(self, metric: Subject, fixed: Tensor, images: Tensor, eps: str, *, seed: int) -> Tensor:
        """Images (N, 3, S, S) within the radius that are as far as can be from what is fixed.

        Where distances are ordered by the inner products of unit embeddings, the loss is `|u(x + d) - u(x)|^2`, else
        the metric's own distance. Random numbers depend on the arguments alone.

        Args:
            metric: what is deceived.
            fixed: for each image what it is moved away from: an embedding, or for a metric of pairs pixels.
            images: where the attack begins.
            eps: one of the radii.
            seed: of the start.
        """
        embed = metric.embed
        objective: Objective = Away(metric, fixed)
        if embed is not None and metric.cosine:
            objective = Untargeted(embed, fixed)
        return self.climb(objective, images, eps, seed=seed)

    def climb(self, objective: Objective, images: Tensor, eps: str, *, seed: int) -> Tensor:
        """Images (N, 3, S, S) within the radius where an objective is as large as can be.

        Args:
            objective: what is maximised.
            images: where the attack begins.
            eps: one of the radii.
            seed: of the start.
        """
        own = zlib.crc32(f"{seed} escape {self.norm} {eps}".encode())
        attack = APGD(
            norm=self.norm,
            eps=parse_eps(eps, self.norm),
            steps=self.steps,
            generator=torch.Generator().manual_seed(own),
        )
        return attack(objective, images).images
