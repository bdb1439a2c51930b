"""Attacks on the lines of scripts/copies.py: what is differentiable is differentiated, the rest approximated.

A query is a picture of the size that the models look at, in 8 bits. An attacked picture is rounded to 8 bits before
anything is asked of it; gradients pass through the rounding as if it were not there (straight-through).

The perceptual hash is 256 comparisons of DCT coefficients with their median, which are differentiable
(`robustsim.baselines.hashes`). The comparison is not: the attack works on how far the bits that are the easiest to turn
are from turning, as many of them as it takes; what it has reached is told by ImageHash, at every step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustsim import RobustSim
from robustsim.attacks import APGD, Objective
from robustsim.attacks.rounding import to_8_bits
from robustsim.baselines.hashes import SoftHash, hash_vectors, in_8_bits, pictures
from robustsim.images import LoadedView, Preprocessing, load_views, perceptual_hash
from robustsim.images.hashes import HASH_BITS

HASH = "phash"
# In median distances of the coefficients from their median: how far beyond it a bit counts as turned for good.
_BEYOND = 0.05
# What the mean of that is multiplied by, to be about as large as d / threshold - 1 of as many turned bits. With 1 the
# hash is what keeps pictures found, with 6 it is `lite`.
_AS_MARGIN = 2.0
# How many bits more than needed are worked on.
_SPARE = 5
# Of margins, d / threshold - 1: how much nearer to its threshold a line is that counts e times less.
_BETWEEN_LINES = 0.03


def mirrored_and_trimmed(source: Any, preprocessing: Preprocessing, *, taken: bool = True) -> list[LoadedView]:
    """The whole picture with its hash, and its mirrored and trimmed views where they are taken."""
    return load_views(source, [preprocessing], ("mirror", "trim") if taken else (), hashed=True)


class _Share(torch.autograd.Function):
    """The identity; each image's gradient is brought to length 1 in l1, times a weight that is told before it comes."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weights: dict[str, Tensor], line: str) -> Tensor:
        ctx.weights, ctx.line = weights, line
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        length = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return ctx.weights[ctx.line].view(-1, 1, 1, 1) * gradient / length, None, None


class Escape(Objective):
    """Bring pictures beyond the thresholds of all lines that are aimed at.

    The loss is a smooth minimum of `d / threshold - 1` over the lines. Its gradient is made of the lines' own, each
    brought to one length and then weighed by how far the line is behind: else the line with the longest would be the
    only one that a step sees. Success is told by the 8-bit picture, by ImageHash itself for the hash.

    Args:
        metrics: models by the names of their lines.
        own: unit vectors (N, D) of the pictures to escape from, by line.
        thresholds: distances by line.
        aims: the lines.
        side: of the pictures.
    """

    def __init__(
        self,
        metrics: Mapping[str, RobustSim],
        own: Mapping[str, Tensor],
        thresholds: Mapping[str, float],
        aims: Sequence[str],
        side: int,
    ) -> None:
        self.metrics, self.thresholds, self.aims, self.soft = metrics, thresholds, tuple(aims), SoftHash(side, side)
        self.per_image = tuple(f"own_{line}" for line in aims)
        self._weights: dict[str, Tensor] = {}
        for line in aims:
            setattr(self, f"own_{line}", own[line])

    def scores(self, images: Tensor) -> Tensor:
        """Margins, (N, lines, 2): what can be differentiated, and what decides."""
        seen = in_8_bits(images)
        return torch.stack([self._margins(line, _Share.apply(seen, self._weights, line)) for line in self.aims], 1)

    def loss(self, scores: Tensor) -> Tensor:
        margins = scores[..., 0]
        weights = torch.softmax(-margins.detach() / _BETWEEN_LINES, 1)
        self._weights.update(zip(self.aims, weights.unbind(1), strict=True))
        return -_BETWEEN_LINES * torch.logsumexp(-margins / _BETWEEN_LINES, 1)

    def gap(self, scores: Tensor) -> Tensor:
        return scores[..., 1].amin(1)

    def _margins(self, line: str, seen: Tensor) -> Tensor:
        own, threshold = getattr(self, f"own_{line}"), self.thresholds[line]
        if line == HASH:
            there = hash_vectors([perceptual_hash(one) for one in pictures(seen)])
            hard = (1 - (there * own).sum(1)).clamp_min(0).sqrt() / threshold - 1
            return torch.stack((self._easiest(seen, own, threshold), hard), 1)
        similarity = (self.metrics[line].embed_pixels(seen) * own).sum(1)
        margin = (1 - similarity).clamp_min(1e-12).sqrt() / threshold - 1
        return torch.stack((margin, margin.detach()), 1)

    def _easiest(self, seen: Tensor, own: Tensor, threshold: float) -> Tensor:
        """How far the bits that are the easiest to turn are from it, (N,), as a margin; 0 where enough are turned."""
        heights = self.soft(seen)
        scale = heights.detach().abs().median(1, keepdim=True).values
        needed = min(int(threshold**2 * HASH_BITS / 2) + 1 + _SPARE, HASH_BITS)
        easiest = (own.sign() * heights / scale).sort(1).values[:, :needed]
        return -_AS_MARGIN * (easiest + _BEYOND).relu().mean(1)


def attack(objective: Escape, images: Tensor, *, eps: int, steps: int, seed: int) -> Tensor:
    """APGD in linf from a random start: 8-bit pictures within so many grey levels, uint8 (N, H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    found = APGD(norm="linf", eps=eps / 255, steps=steps, generator=generator)(objective, images).images
    levels = images.mul(255).round().byte().numpy()
    kept = to_8_bits(levels, found.double().numpy(), "linf", eps / 255)
    return torch.from_numpy(kept).permute(0, 2, 3, 1).contiguous()
