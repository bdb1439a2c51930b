"""FAB, the fast adaptive boundary attack (Croce and Hein 2020, "Minimally distorted adversarial examples")."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustsim.attacks.engine.base import MinimumNormAttack
from robustsim.attacks.engine.region import Norm, fill_level, measure, per_image, uniform
from robustsim.attacks.engine.run import Run
from robustsim.errors import InputError

# Of the paper: how much the step towards the original may weigh, the overshoot, and the step back from a success.
_MOST_BIAS, _OVERSHOOT, _BACK = 0.1, 1.05, 0.9


@dataclass(frozen=True, kw_only=True, eq=False)
class FAB(MinimumNormAttack):
    """Steps onto the linearised decision boundary that stay near the original, in l2, linf or l1.

    Each step projects the point and the original onto the boundary's tangent plane within the box, and goes to a point
    between; from a success it steps back towards the original. Of several pictures in one row (`perturb="all"`) the
    change is the smallest of all together.

    Attributes:
        steps: iterations; each takes two forward passes and a gradient.
        restarts: goes for each class, the later ones from random points.
        targets: how many of the likeliest wrong classes are tried one after the other (FAB-T), for objectives with
            classes; None for the boundary to whichever other class is likeliest at each point. (The authors' untargeted
            form looks at all classes there, for a gradient each.)
    """

    steps: int = 100
    restarts: int = 1
    targets: int | None = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._read_counts("steps", "restarts", *([] if self.targets is None else ["targets"]))
        if self.restarts > 1 and bool(torch.isinf(torch.as_tensor(self.eps)).any()):
            raise InputError("restarts= needs eps=, within which the later goes begin")

    def search(self, run: Run) -> None:
        aims: list[Any] = [self.boundary(run)]
        if self.targets is not None and hasattr(run.objective, "targeted"):
            aims = run.objective.targeted(run.region.originals, self.targets, boundary=True)
            run.count(1)
        total = len(aims) * self.restarts * (2 * self.steps + 1)
        for aim in aims:
            run.switch(aim)
            for restart in range(self.restarts):
                self._go(run, restart, total)

    def _go(self, run: Run, restart: int, total: int) -> None:
        run.begin()
        self.offer(run, run.region.originals, run.evaluate(run.region.originals, offer=False))
        run.tick(total)
        x = run.region.originals
        if restart:
            x = x + per_image(run.region.eps / 2, x) * (2 * uniform(x.shape, x, run.generator) - 1)
            x = run.region.project(x)
        for _ in range(self.steps):
            seen = run.evaluate(x, gradient=True, offer=False)
            keep = run.tick(total)
            loss, slope = seen.loss, seen.slope
            if keep is not None:
                x, loss, slope = x[keep], loss[keep], slope[keep]
            x = self._step(x, run.region.originals, loss.to(x.dtype), slope)
            seen = run.evaluate(x, offer=False)
            self.offer(run, x, seen)
            won = self.won(seen)
            keep = run.tick(total)
            if keep is not None:
                x, won = x[keep], won[keep]
            originals = run.region.originals
            x = torch.where(per_image(won, x), originals + (x - originals) * _BACK, x)

    def _step(self, x: Tensor, originals: Tensor, loss: Tensor, slope: Tensor) -> Tensor:
        here = -loss
        there = here - (slope * (originals - x)).flatten(1).sum(1)
        step = to_plane(x, slope, here, self.norm, self.bounds)
        pull = to_plane(originals, slope, there, self.norm, self.bounds)
        a, b = (measure(delta, self.norm).clamp_min(1e-8) for delta in (step, pull))
        weight = per_image((a / (a + b)).clamp_max(_MOST_BIAS), x)
        mixed = (x + _OVERSHOOT * step) * (1 - weight) + (originals + _OVERSHOOT * pull) * weight
        return mixed.clamp(*self.bounds)


def to_plane(points: Tensor, normal: Tensor, rise: Tensor, norm: Norm, bounds: tuple[float, float]) -> Tensor:
    """The smallest change within the bounds that moves `<normal, x>` by `rise`, or as far as they allow.

    Args:
        points: (N, ...).
        normal: likewise.
        rise: (N,), of either sign.
        norm: in which the change is smallest.
        bounds: least and greatest value of a pixel.

    Returns:
        The change, (N, ...).
    """
    over = tuple(range(1, points.ndim))
    # Squares of tiny gradients would vanish; only their proportions matter.
    scale = normal.abs().amax(over).clamp_min(torch.finfo(normal.dtype).tiny)
    normal, rise = normal / per_image(scale, normal), rise / scale
    upwards = normal * per_image(rise.sign(), points) > 0
    slope = normal.abs()
    room = torch.where(upwards, bounds[1] - points, points - bounds[0]).clamp_min(0)
    direction = torch.where(upwards, 1.0, -1.0).to(points.dtype) * (slope > 0)
    need, most = per_image(rise.abs(), points), slope * room
    if norm == "l1":
        return direction * room * _steepest_first(slope, most, need)
    rate = slope if norm == "linf" else slope.square()
    level = fill_level(rate, most, need, over)
    return direction * torch.minimum(level if norm == "linf" else level * slope, room)


def _steepest_first(slope: Tensor, most: Tensor, need: Tensor) -> Tensor:
    """Which share of its room each coordinate uses, when the steepest are used up first."""
    order = slope.flatten(1).argsort(1, descending=True)
    gains = most.flatten(1).gather(1, order)
    missing = need.flatten(1) - (gains.cumsum(1) - gains)
    shares = (missing / gains.clamp_min(torch.finfo(gains.dtype).tiny)).clamp(0, 1)
    return torch.empty_like(shares).scatter_(1, order, shares).view_as(slope)
