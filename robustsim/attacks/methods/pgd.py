"""Projected gradient ascent (Madry et al. 2018), with momentum and step rules."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustsim.attacks.engine.base import IterativeAttack
from robustsim.attacks.engine.options import check_start, length, number
from robustsim.attacks.engine.region import Region, per_image, steepest
from robustsim.attacks.engine.run import Run
from robustsim.errors import InputError

StepRule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PGD(IterativeAttack):
    """Steps of fixed length along the steepest direction, projected back.

    With momentum m the direction is that of the velocity `v <- m v + s(gradient)`, s the steepest step of the norm.

    Attributes:
        steps: gradients.
        step_size: length of a step in the attack's norm, a number or text such as `2/255`; `2.5 * eps / steps` if not
            given. It becomes a float.
        step_rule: `constant`, or the length falls to 0 along a line or half a cosine.
        momentum: in [0, 1). In linf, one of 0.5 or less does nothing: what is left of earlier signs never outweighs the
            new one. Nor does the 0.9 of FARE's code, which keeps of its velocity the signs alone: that is 0 here.
        random_start: begin at a random point of the ball instead of the image.
        start: points to begin at instead, finite and like the images; what lies outside the ball is brought into it.
        restarts: goes, each from a new random point.
        keep: `best` returns the best point of all, for one more forward pass (steps + 1). `last` returns the last
            one without evaluating it: loss is that of no point then, NaN, and success None. Training wants that.
        share: in l1, the share of coordinates that a step moves (Tramer and Boneh 2019): along a single one, most of
            the radius would never be used.
        eot: draws of a randomised objective to average each gradient over.
    """

    steps: int = 40
    step_size: float | str | None = None
    step_rule: StepRule = "constant"
    momentum: float = 0.0
    random_start: bool = True
    start: Tensor | None = None
    restarts: int = 1
    keep: Literal["best", "last"] = "best"
    share: float = 0.01
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._read_counts("steps", "restarts", "eot")
        if self.step_rule not in get_args(StepRule):
            raise InputError(f"step_rule={self.step_rule!r} is none of {', '.join(get_args(StepRule))}")
        if self.keep not in ("best", "last"):
            raise InputError(f"keep={self.keep!r} is none of best, last")
        self._read("step_size", length, zero=True)
        self._read("share", number, "in (0, 1]", lambda value: 0 < value <= 1)
        self._read("momentum", number, "in [0, 1)", lambda value: 0 <= value < 1)
        check_start(self.start)
        if self.keep == "last" and (self.restarts > 1 or self.stop_on_success):
            raise InputError("keep='last' does not judge its points: it goes with one restart and no stop_on_success")
        if self.start is not None and self.restarts > 1:
            raise InputError("start= is one beginning: it goes with one restart")

    @property
    def samples(self) -> int:
        return self.eot

    @property
    def judges(self) -> bool:
        return self.keep == "best"

    def search(self, run: Run) -> None:
        judged = self.judges
        total = self.restarts * (self.steps + judged)
        for _ in range(self.restarts):
            run.begin()
            x = self._beginning(run)
            velocity: Tensor | None = None
            if not judged:
                run.take(x)
            for step in range(self.steps):
                slope = run.evaluate(x, gradient=True, offer=judged).slope
                keep = run.tick(total)
                if keep is not None:
                    x, slope, velocity = x[keep], slope[keep], None if velocity is None else velocity[keep]
                direction = self._direction(run.region, x, slope)
                if self.momentum:
                    velocity = direction if velocity is None else direction.add_(velocity, alpha=self.momentum)
                    direction = self._direction(run.region, x, velocity)
                x = run.region.project(x + per_image(self._length(run.region.eps, step), x) * direction)
                if not judged:
                    run.take(x)
            if judged:
                run.evaluate(x)
                run.tick(total)

    def _beginning(self, run: Run) -> Tensor:
        region = run.region
        if self.start is None:
            return region.random_start(run.generator) if self.random_start else region.originals
        return region.beginning(self.start)

    def _direction(self, region: Region, x: Tensor, slope: Tensor) -> Tensor:
        if self.norm != "l1":
            return steepest(slope, self.norm)
        # Few coordinates move: none of them should be one that cannot.
        return steepest(region.blocked(x, slope), self.norm, slope.new_full((len(slope),), self.share))

    def _length(self, eps: Tensor, step: int) -> Tensor:
        full = 2.5 * eps / self.steps if self.step_size is None else torch.full_like(eps, float(self.step_size))
        done = step / self.steps
        return (
            full * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.step_rule]
        )
