"""Square Attack (Andriushchenko et al. 2020): random search with local changes, no gradient."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustsim.attacks.engine.base import IterativeAttack, at_least
from robustsim.attacks.engine.region import Region, dims, uniform
from robustsim.attacks.engine.run import Run
from robustsim.errors import InputError

# Shares of 10,000 queries after which the share of changed pixels is halved (section 4.1 of the paper).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, kw_only=True, eq=False)
class SquareAttack(IterativeAttack):
    """Change a square at a random place, keep the change if the loss rises.

    In linf a square takes a value of plus or minus the radius in each channel; in l2 it takes over the perturbation's
    energy from another place. The best objective is a margin: of a decision (:class:`Classification`,
    :class:`TwoAFC`) that is taken by itself, whatever its loss.

    Attributes:
        queries: forward passes.
        p: share of pixels that a square changes at the beginning.
    """

    queries: int = 5000
    p: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("queries", self.queries, 1)
        if self.norm == "l1":
            raise InputError("SquareAttack knows linf and l2, not l1")
        if not 0 < self.p <= 1:
            raise InputError(f"p must be in (0, 1], not {self.p!r}")

    def search(self, run: Run) -> None:
        if run.region.originals.ndim < 4:
            raise InputError(f"SquareAttack needs images (N, C, H, W), not {tuple(run.region.originals.shape)}")
        if hasattr(run.objective, "with_loss") and hasattr(run.objective, "margin"):
            run.switch(run.objective.margin())
        # Places and shapes for all steps at once: a GPU need not be asked for them one by one.
        draws = uniform((self.queries, 5), torch.empty(0), run.generator).tolist()
        run.begin()
        start, change = (self._stripes, self._recolour) if self.norm == "linf" else (self._tiles, self._move_energy)
        points = start(run)
        for step in range(self.queries):
            run.evaluate(points)
            run.tick(self.queries)
            if step == self.queries - 1:
                return
            points = change(run, step, draws[step])

    def _side(self, step: int, region: Region) -> int:
        """The square's side in pixels at this change, counted from 0."""
        done = step * 10_000 // self.queries
        halvings = sum(done > limit for limit in _HALVINGS)
        height, width = region.originals.shape[-2:]
        return max(1, min(round(math.sqrt(self.p / 2**halvings * height * width)), height, width))

    def _signs(self, run: Run, last: "tuple[int, int]" = (1, 1)) -> Tensor:
        """Plus or minus one for each channel, or for more of it."""
        x = run.region.originals
        return torch.where(uniform((*x.shape[:-2], *last), x, run.generator) < 0.5, -1.0, 1.0).to(x.dtype)

    # -- linf

    def _stripes(self, run: Run) -> Tensor:
        """Vertical stripes of plus or minus the radius."""
        region = run.region
        x = region.originals
        return region.project(x + region.radius * self._signs(run, (1, x.shape[-1])))

    def _recolour(self, run: Run, step: int, draw: list[float]) -> Tensor:
        region = run.region
        window = _window(region.originals, self._side(step, region), draw[:2])
        points = run.trial.images.clone()
        points[window] = region.originals[window] + region.radius * self._signs(run)
        return region.project(points)

    # -- l2

    def _tiles(self, run: Run) -> Tensor:
        """A pattern in each tile of a grid, with random signs."""
        x = run.region.originals
        height, width = x.shape[-2:]
        side = max(min(height, width) // 5, 1)
        delta = torch.zeros_like(x)
        pattern = _pattern(side, x, False)
        for top in range(height % side // 2, height - side + 1, side):
            for left in range(width % side // 2, width - side + 1, side):
                delta[..., top : top + side, left : left + side] = pattern * self._signs(run)
        return _on_sphere(run.region, delta)

    def _move_energy(self, run: Run, step: int, draw: list[float]) -> Tensor:
        region = run.region
        x = region.originals
        delta = run.trial.images - x
        side = max(self._side(step, region), 3)
        side = min(side + 1 - side % 2, *x.shape[-2:])
        to, source = _window(x, side, draw[:2]), _window(x, side, draw[2:4])
        # What the two windows hold, and what the whole falls short of the radius, goes into the new window.
        both = torch.zeros_like(delta[:1, ..., :1, :, :])
        both[to], both[source] = 1, 1
        planes = (-2, -1)
        held = (delta * both).square().sum(planes, keepdim=True)
        spare = (region.radius.square() - delta.square().sum(dims(x), keepdim=True)).clamp_min(0) / x.shape[-3]
        old = delta[to]
        old = old / torch.linalg.vector_norm(old, dim=planes, keepdim=True).clamp_min(1e-12)
        fresh = old + _pattern(side, x, draw[4] < 0.5) * self._signs(run)
        fresh = fresh / torch.linalg.vector_norm(fresh, dim=planes, keepdim=True).clamp_min(1e-12)
        delta[source] = 0
        delta[to] = fresh * (held + spare).sqrt()
        return _on_sphere(region, delta)


def _window(x: Tensor, side: int, draw: list[float]) -> Any:
    """The index of a square of this side at a random place."""
    height, width = x.shape[-2:]
    top, left = int(draw[0] * (height - side + 1)), int(draw[1] * (width - side + 1))
    return (..., slice(top, top + side), slice(left, left + side))


def _on_sphere(region: Region, delta: Tensor) -> Tensor:
    """The perturbation scaled to the radius, within the box."""
    length: Tensor = torch.linalg.vector_norm(delta, dim=dims(delta), keepdim=True).clamp_min(1e-12)
    return region.project(region.originals + delta * (region.radius / length))


def _pattern(side: int, like: Tensor, turned: bool) -> Tensor:
    """Two hills of opposite sign, (side, side) of length 1 (section 4.2 of the paper)."""
    half = side // 2
    hills: Tensor = torch.cat((_hill(half, side, like), -_hill(side - half, side, like)))
    hills = hills / torch.linalg.vector_norm(hills).clamp_min(1e-12)
    return hills.t() if turned else hills


def _hill(height: int, width: int, like: Tensor) -> Tensor:
    """Values that fall from the centre in rectangular rings: at ring r the sum of 1 / k^2 over k > r; length 1."""
    rows = (torch.arange(height, device=like.device) - height // 2).abs()
    columns = (torch.arange(width, device=like.device) - width // 2).abs()
    rings = torch.maximum(rows[:, None], columns[None, :])
    most = max(height, width) // 2 + 1
    terms = 1 / torch.arange(1, most + 1, device=like.device, dtype=like.dtype).square()
    tails = terms.flip(0).cumsum(0).flip(0)
    hill: Tensor = tails[rings.clamp_max(most - 1)] if height else rings.to(like.dtype)
    length: Tensor = torch.linalg.vector_norm(hill).clamp_min(1e-12)
    return hill / length
