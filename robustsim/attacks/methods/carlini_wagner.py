"""The l2 attack of Carlini and Wagner (2017)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustsim.attacks.engine.base import MinimumNormAttack
from robustsim.attacks.engine.options import number
from robustsim.attacks.engine.region import Norm, per_image
from robustsim.attacks.engine.run import Run, select
from robustsim.errors import InputError

_INSIDE = 1 - 1e-6  # tanh reaches the bounds at infinity only
_BETAS, _TINY = (0.9, 0.999), 1e-8  # of Adam
_HUGE = 1e10


@dataclass
class _State:
    """(n, ...) or (n,)."""

    w: Tensor
    mean: Tensor
    square: Tensor
    weight: Tensor
    lower: Tensor
    upper: Tensor
    found: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class CarliniWagner(MinimumNormAttack):
    """Minimise `|d|^2 + c * max(confidence - margin, 0)` by Adam in the space of `atanh`, and search for the c.

    In that space pixels at the bounds are far away: a picture of nothing but black and white needs all of the steps.

    Attributes:
        steps: of Adam for each c.
        searches: values of c, by bisection from `first_weight`.
        learning_rate: of Adam.
        first_weight: the first c.
        confidence: by how much the boundary is to be passed.
    """

    norm: Norm = "l2"
    steps: int = 1000
    searches: int = 9
    learning_rate: float = 0.01
    first_weight: float = 1e-3
    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "l2":
            raise InputError(f"CarliniWagner knows l2, not {self.norm}")
        self._read_counts("steps", "searches")
        self._read("confidence", number, "at least 0", lambda value: value >= 0)
        for name in ("learning_rate", "first_weight"):
            self._read(name, number, "above 0", lambda value: 0 < value < _HUGE)

    def search(self, run: Run) -> None:
        run.switch(self.boundary(run))
        run.begin()
        total = self.searches * self.steps + 1
        self.offer(run, run.region.originals, run.evaluate(run.region.originals, offer=False))
        run.tick(total)
        x = run.region.originals
        zero, first = torch.zeros_like(x), torch.full((len(x),), self.first_weight, device=x.device, dtype=x.dtype)
        state = _State(x, zero, zero, first, torch.zeros_like(first), torch.full_like(first, _HUGE), first > _HUGE)
        for _ in range(self.searches):
            state.w, state.found = self._unbounded(run.region.originals), torch.zeros_like(state.found)
            state.mean, state.square = torch.zeros_like(state.w), torch.zeros_like(state.w)
            for step in range(1, self.steps + 1):
                state = self._step(run, state, step)
                keep = run.tick(total)
                if keep is not None:
                    state = select(state, keep)
            self._bisect(state)

    def _step(self, run: Run, state: _State, step: int) -> _State:
        x = self._bounded(state.w)
        seen = run.evaluate(x, gradient=True, offer=False)
        far = ~self.won(seen) | (seen.loss < self.confidence)
        self.offer(run, x, replace(seen, won=~far))
        state.found = state.found | ~far
        pull = 2 * (x - run.region.originals)
        push = per_image(torch.where(far, state.weight, 0), x) * seen.slope
        low, high = self.bounds
        slope = (pull - push) * (x - low) * (high - x) * (2 / (high - low))  # the last three: dx / dw
        state.mean = torch.lerp(slope, state.mean, _BETAS[0])
        state.square = torch.lerp(slope.square(), state.square, _BETAS[1])
        mean, square = state.mean / (1 - _BETAS[0] ** step), state.square / (1 - _BETAS[1] ** step)
        state.w = state.w - self.learning_rate * mean / (square.sqrt() + _TINY)
        return state

    def _bisect(self, state: _State) -> None:
        state.upper = torch.where(state.found, torch.minimum(state.upper, state.weight), state.upper)
        state.lower = torch.where(state.found, state.lower, torch.maximum(state.lower, state.weight))
        known = state.upper < _HUGE
        state.weight = torch.where(known, (state.lower + state.upper) / 2, state.weight * 10)

    def _bounded(self, w: Tensor) -> Tensor:
        low, high = self.bounds
        return low + (high - low) * (torch.tanh(w) + 1) / 2

    def _unbounded(self, x: Tensor) -> Tensor:
        low, high = self.bounds
        return torch.atanh((2 * (x - low) / (high - low) - 1).clamp(-1, 1) * _INSIDE)
