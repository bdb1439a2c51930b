"""Square Attack (Andriushchenko et al. 2020; in l1 Croce and Hein 2021, "Mind the box"): random search, no gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustsim.attacks.engine.base import IterativeAttack
from robustsim.attacks.engine.options import number
from robustsim.attacks.engine.region import ORDERS, Generators, Region, dims, uniform
from robustsim.attacks.engine.run import Run
from robustsim.errors import InputError

_PLANES = (-2, -1)
_TINY = 1e-12
_UNUSED = 1e-3  # which share of the radius a query may leave unused
# How often a colour is drawn that would change nothing: with one channel, half of the draws do.
_DRAWS = 16
# Shares of 10,000 queries after which the share of changed pixels is halved (section 4.1 of the paper).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, kw_only=True, eq=False)
class SquareAttack(IterativeAttack):
    """Change a square at a random place, keep the change if the loss rises.

    In linf a square, at a place of its own in each image, takes a value of plus or minus the radius in each channel; as
    with its authors, no query is spent on a square that changes nothing. In l2 and l1 it takes over the perturbation's
    energy or mass from another place, in l1 as in the authors' AutoAttack. The best objective is a margin: of a
    decision (`Classification`, `TwoAFC`) that is taken by itself, whatever its loss.

    Attributes:
        queries: forward passes; the schedule of sizes, made for 10,000, is scaled to them.
        p: share of pixels that a square changes at the beginning.
    """

    queries: int = 5000
    p: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._read_counts("queries")
        self._read("p", number, "in (0, 1]", lambda value: 0 < value <= 1)

    def search(self, run: Run) -> None:
        if run.region.originals.ndim < 4:
            raise InputError(f"SquareAttack needs images (N, C, H, W), not {tuple(run.region.originals.shape)}")
        if hasattr(run.objective, "with_loss") and hasattr(run.objective, "margin"):
            run.switch(run.objective.margin())
        start, change = self._ways(run)
        run.begin()
        points = start(run)
        for step in range(self.queries):
            run.evaluate(points)
            run.tick(self.queries)
            if step == self.queries - 1:
                return
            points = change(run, step)

    def _ways(self, run: Run) -> "tuple[Callable[[Run], Tensor], Callable[[Run, int], Tensor]]":
        """How to begin, and how to change what was best."""
        if self.norm == "linf":
            return self._stripes, self._recolour
        # Places and shapes for all steps at once: a GPU need not be asked for them one by one.
        draws = uniform((self.queries, 5), torch.empty(0), run.generator).tolist()
        return self._tiles, partial(self._move_energy if self.norm == "l2" else self._move_mass, draws)

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

    def _recolour(self, run: Run, step: int) -> Tensor:
        region, best = run.region, run.trial.images
        planes = (len(best), -1, *best.shape[-2:])  # the channels of all pictures of a row
        place = _places(best, self._side(step, region), run.generator)
        low, high = (limit.reshape(planes)[place] for limit in region.box)
        now = best.reshape(planes)[place]
        # Colours until one changes something: (draws, N, channels), and of each channel whether it would.
        upwards = uniform((_DRAWS, *now.shape[:2]), best, run.generator) < 0.5
        changes = torch.where(upwards, (now != high).flatten(2).any(2), (now != low).flatten(2).any(2)).any(2)
        first = changes.to(torch.uint8).argmax(0)
        chosen = upwards[first, torch.arange(len(best), device=best.device)][:, :, None, None]
        points = best.clone(memory_format=torch.contiguous_format)
        points.view(planes)[place] = torch.where(chosen, high, low)
        return points

    # -- l2 and l1

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
        return _within(run.region, delta)

    def _move_energy(self, draws: list[list[float]], run: Run, step: int) -> Tensor:
        draw = draws[step]
        region, delta, to, source = self._windows(run, step, draw)
        # What the two windows hold, and what the whole falls short of the radius, goes into the new window.
        both = torch.zeros_like(delta[:1, ..., :1, :, :])
        both[to], both[source] = 1, 1
        held = (delta * both).square().sum(_PLANES, keepdim=True)
        spare = region.radius.square() - delta.square().sum(dims(delta), keepdim=True)
        fresh = self._blended(run, delta[to], draw)
        delta[source] = 0
        delta[to] = fresh * (held + spare.clamp_min(0) / delta.shape[-3]).sqrt()
        return _within(region, delta)

    def _move_mass(self, draws: list[list[float]], run: Run, step: int) -> Tensor:
        draw = draws[step]
        region, delta, to, source = self._windows(run, step, draw)
        both = torch.zeros_like(delta[:1, ..., :1, :, :])
        both[to], both[source] = 1, 1
        held = (delta * both).abs().sum(dims(delta), keepdim=True)
        spare = (region.radius - delta.abs().sum(dims(delta), keepdim=True)).clamp_min(0)
        fresh = self._blended(run, delta[to], draw)
        delta[source] = 0
        # More than there is: the projection thins it out, mostly where little was.
        delta[to] = fresh * (spare + delta.shape[-3] * held)
        return _within(region, delta)

    def _windows(self, run: Run, step: int, draw: list[float]) -> "tuple[Region, Tensor, Any, Any]":
        """The region, the best perturbation, the window that changes, and the one that gives."""
        x = run.region.originals
        side = max(self._side(step, run.region), 3)
        side = min(side + 1 - side % 2, *x.shape[-2:])
        return run.region, run.trial.images - x, _window(x, side, draw[:2]), _window(x, side, draw[2:4])

    def _blended(self, run: Run, old: Tensor, draw: list[float]) -> Tensor:
        """What a window holds and a pattern of random signs, in equal shares, of size 1 in each channel."""
        order = ORDERS[self.norm]
        pattern = _pattern(old.shape[-1], old, draw[4] < 0.5)
        pattern = pattern / torch.linalg.vector_norm(pattern, order, dim=_PLANES).clamp_min(_TINY)
        old = old / torch.linalg.vector_norm(old, order, dim=_PLANES, keepdim=True).clamp_min(_TINY)
        fresh: Tensor = old + pattern * self._signs(run)
        return fresh.div_(torch.linalg.vector_norm(fresh, order, dim=_PLANES, keepdim=True).clamp_min(_TINY))


def _places(x: Tensor, side: int, generator: Generators) -> Any:
    """The index of a square of this side at a random place of each image, in (N, channels, H, W)."""
    along, draws = torch.arange(side, device=x.device), uniform((2, len(x), 1), x, generator)
    rows, columns = (
        (draw * (size - side + 1)).long().clamp_max(size - side) + along
        for draw, size in zip(draws, x.shape[-2:], strict=True)
    )
    channels = torch.arange(math.prod(x.shape[1:-2]), device=x.device)
    images = torch.arange(len(x), device=x.device)
    return (
        images[:, None, None, None], channels[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :],
    )  # fmt: skip


def _window(x: Tensor, side: int, draw: list[float]) -> Any:
    """The index of a square of this side at a random place."""
    height, width = x.shape[-2:]
    top, left = int(draw[0] * (height - side + 1)), int(draw[1] * (width - side + 1))
    return (..., slice(top, top + side), slice(left, left + side))


def _within(region: Region, delta: Tensor) -> Tensor:
    """The points of a perturbation: scaled to the radius, in l1 where it is shorter, and brought into the set."""
    length: Tensor = torch.linalg.vector_norm(delta, ORDERS[region.norm], dim=dims(delta), keepdim=True)
    factor = region.radius / length.clamp_min(_TINY)
    factor = factor if region.norm == "l2" else factor.clamp_min(1)
    return region.project(region.originals + delta * factor, tolerance=_UNUSED)


def _pattern(side: int, like: Tensor, turned: bool) -> Tensor:
    """Two hills of opposite sign, (side, side) of length 1 (section 4.2 of the paper)."""
    half = side // 2
    hills: Tensor = torch.cat((_hill(half, side, like), -_hill(side - half, side, like)))
    hills = hills / torch.linalg.vector_norm(hills).clamp_min(_TINY)
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
    length: Tensor = torch.linalg.vector_norm(hill).clamp_min(_TINY)
    return hill / length
