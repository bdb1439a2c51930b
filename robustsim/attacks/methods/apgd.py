"""Auto-PGD (Croce and Hein 2020, "Reliable evaluation of adversarial robustness"; in l1 their "Mind the box", 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsim.attacks.engine.base import IterativeAttack
from robustsim.attacks.engine.options import check_start, length
from robustsim.attacks.engine.region import Region, per_image
from robustsim.attacks.engine.run import Run, Trial, select
from robustsim.errors import InputError

# Of the paper: the share of the new step in the momentum, and the share of steps that must have risen.
_ALPHA = 0.75
_RHO = 0.75
# Of the l1 variant: where the sparsity of the step begins, how it follows that of the best point, and the steps' range.
_SHARE, _SPARSER, _SHRINK, _LEAST = 0.2, 1.5, 1.5, 10.0
# Which share of the radius a step may leave unused, where many pixels are at the bounds.
_UNUSED = 1e-2
# Stages of the larger-eps start: factor of the radius, share of the steps.
_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


@dataclass
class _State:
    """One go, for the images that are still attacked; (n, ...) or (n,)."""

    x: Tensor
    old: Tensor
    gradient: Tensor
    step_size: Tensor
    last_loss: Tensor
    rises: Tensor  # how often the loss has risen since the last checkpoint
    checked_loss: Tensor  # the best loss at the last checkpoint
    halved: Tensor  # whether the step was halved there
    share: Tensor  # l1: the share of coordinates that take part in a step
    changed: Tensor  # l1: how many pixels of the best point were changed at the last checkpoint


@dataclass(frozen=True, kw_only=True, eq=False)
class APGD(IterativeAttack):
    """PGD with momentum that finds its step size by itself: the attack to measure with.

    The step begins at `2 * eps`, or at `step_size`. At checkpoints (after 22 % of the steps, then at intervals that
    shrink by 3 % down to 6 %) it is halved, and the search goes on from the best point, where the loss rose in no more
    than 75 % of the steps since, or where neither the best loss nor the step has changed. In l1 it begins at `eps`
    and moves a few coordinates, the fewer the sparser the best point is, and the step size follows that. `steps`
    iterations take steps + 1 forward passes and as many gradients as steps, at most.

    Attributes:
        steps: iterations of one go.
        step_size: length of the first step in the attack's norm, a number or text such as `2/255`; `2 * eps` if not
            given, in l1 `eps`. Where the ball is larger for a while, so is the step. It becomes a float.
        start: points to begin at instead of random ones, finite and like the images; what lies outside the ball is
            brought into it. Goes with one restart.
        restarts: goes, each from a new random point.
        loss: a loss of the objective's to work by instead of its own, such as `dlr`, which gives way to `margin`
            where there are two classes; success stays the same. It needs an objective that offers `with_loss`, and
            goes without `targets`.
        targets: None maximises the objective itself. A number attacks that many of the likeliest wrong classes one
            after the other (APGD-T, by targeted DLR; by the margin where there are less than four classes); it needs
            an objective that offers `targeted`.
        larger_eps: spend the first 60 % of the steps in balls of three and of two times the radius; None for l1 only.
            Of less than 12 steps none can be spared.
        eot: draws of a randomised objective to average each evaluation over.
    """

    steps: int = 100
    step_size: float | str | None = None
    start: Tensor | None = None
    restarts: int = 1
    loss: str | None = None
    targets: int | None = None
    larger_eps: bool | None = None
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._read_counts("steps", "restarts", "eot", *([] if self.targets is None else ["targets"]))
        self._read("step_size", length)
        check_start(self.start)
        if self.start is not None and self.restarts > 1:
            raise InputError("start= is one beginning: it goes with one restart")
        if self.loss is not None and self.targets is not None:
            raise InputError("loss= and targets= are two aims: take one")

    @property
    def samples(self) -> int:
        return self.eot

    def search(self, run: Run) -> None:
        stages = self._stages()
        beginning = None if self.start is None else run.region.scaled(stages[0][0]).beginning(self.start)
        aims: list[object] = [None]
        if self.loss is not None:
            if not hasattr(run.objective, "with_loss"):
                raise InputError("loss= needs an objective that offers with_loss, such as Classification, or loss=None")
            aims = [run.objective.with_loss(self._loss_for(run, self.loss))]
        if self.targets is not None:
            if not hasattr(run.objective, "targeted"):
                raise InputError("targets= needs an objective with classes, such as Classification, or targets=None")
            aims = run.objective.targeted(run.region.originals, self.targets)
            run.count(1)
        total = len(aims) * self.restarts * sum(steps + 1 for _, steps in stages)
        for aim in aims:
            if aim is not None:
                run.switch(aim)
            for _ in range(self.restarts):
                if beginning is None:
                    start = run.region.scaled(stages[0][0]).random_start(run.generator)
                else:  # of those that an earlier aim has left
                    start = beginning[run.indices]
                for index, (factor, steps) in enumerate(stages):
                    self._climb(run, start, factor, steps, total, fresh=index == 0)
                    start = run.trial.images

    def _loss_for(self, run: Run, loss: str) -> str:
        """The loss that was asked for, or the margin in its place: DLR is none of two classes."""
        if loss != "dlr" or not hasattr(run.objective, "targeted"):
            return loss
        run.count(1)
        return loss if len(run.objective.targeted(run.region.originals, 2)) > 1 else "margin"

    def _stages(self) -> list[tuple[float, int]]:
        larger = self.norm == "l1" if self.larger_eps is None else self.larger_eps
        # Each stage evaluates its start: these passes are part of the steps.
        shared = self.steps - (len(_STAGES) - 1)
        if not larger or shared < 10:
            return [(1.0, self.steps)]
        early = [(factor, int(share * shared)) for factor, share in _STAGES[:-1]]
        return [*early, (1.0, shared - sum(steps for _, steps in early))]

    def _climb(self, run: Run, start: Tensor, factor: float, steps: int, total: int, *, fresh: bool) -> None:
        region = run.region.scaled(factor)
        run.begin(keep_gradient=True, in_budget=factor == 1)
        x = region.project(start)
        seen = run.evaluate(x, gradient=True)
        first = self._first(region, factor)
        state = self._state(region, x, seen.slope, seen.loss, first, fresh)
        interval, shorter, least = self._intervals(steps)
        since = 0
        for step in range(steps):
            keep = run.tick(total)
            if keep is not None:
                state, region, first = select(state, keep), run.region, first[keep]
            if since == interval:
                self._adapt(state, run.trial, region, interval, first)
                interval, since = max(interval - shorter, least), 0
            x = self._move(state, region, first=step == 0)
            last = step == steps - 1
            seen = run.evaluate(x, gradient=not last)
            state.old, state.x = state.x, x
            if not last:
                state.gradient = seen.slope
            state.rises = state.rises + (seen.loss > state.last_loss)
            state.last_loss = seen.loss
            since += 1
        run.tick(total)

    def _state(self, region: Region, x: Tensor, gradient: Tensor, loss: Tensor, first: Tensor, fresh: bool) -> _State:
        size = x[0].numel()
        changed = torch.full_like(loss, size) if fresh else _changed(x, region.originals)
        return _State(
            x=x,
            old=x,
            gradient=gradient,
            step_size=first,
            last_loss=loss,
            rises=torch.zeros_like(loss),
            checked_loss=loss,
            halved=torch.ones_like(loss, dtype=torch.bool),
            share=torch.full_like(loss, _SHARE) if fresh else changed / size / _SPARSER,
            changed=changed,
        )

    def _first(self, region: Region, factor: float) -> Tensor:
        """The first step of a stage, (n,)."""
        if self.step_size is None:
            return region.eps * (1.0 if self.norm == "l1" else 2.0)
        return torch.full_like(region.eps, float(self.step_size) * factor)

    def _intervals(self, steps: int) -> tuple[int, int, int]:
        """Steps to the first checkpoint, by how much the next intervals are shorter, and the shortest."""
        if self.norm == "l1":
            return max(int(0.04 * steps), 1), 0, 1
        return max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)

    def _move(self, state: _State, region: Region, *, first: bool) -> Tensor:
        share = state.share if self.norm == "l1" else None
        z = region.project(region.step(state.x, state.gradient, state.step_size, share), tolerance=_UNUSED)
        if first or self.norm == "l1":
            return z
        # x + alpha (z - x) + (1 - alpha) (x - old)
        z = z.mul_(_ALPHA).add_(state.x, alpha=2 - 2 * _ALPHA).sub_(state.old, alpha=1 - _ALPHA)
        return region.project(z, tolerance=_UNUSED)

    def _adapt(self, state: _State, best: Trial, region: Region, interval: int, first: Tensor) -> None:
        """A checkpoint: shorter steps from the best point, where the search needs them."""
        if self.norm == "l1":
            changed = _changed(best.images, region.originals)
            back = changed < 0.95 * state.changed
            state.share = changed / state.x[0].numel() / _SPARSER
            state.step_size = torch.where(back, first, state.step_size / _SHRINK).clamp(first / _LEAST, first)
            state.changed = changed
        else:
            back = (state.rises <= _RHO * interval) | (~state.halved & (best.loss <= state.checked_loss))
            state.step_size = torch.where(back, state.step_size / 2, state.step_size)
            state.halved, state.checked_loss = back, best.loss
        state.rises = torch.zeros_like(state.rises)
        rows = per_image(back, state.x)
        state.x = torch.where(rows, best.images, state.x)
        state.gradient = torch.where(rows, best.slope, state.gradient)


def _changed(images: Tensor, originals: Tensor) -> Tensor:
    """How many values of each image are changed, (n,)."""
    return (images != originals).flatten(1).sum(1).to(torch.float32)
