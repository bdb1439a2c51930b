"""The bookkeeping of a run, written once for all attacks.

Forward passes and gradients, the best point of each image, which images are still attacked, NaN, progress, and the
caller's wish to stop.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustsim.attacks.engine.judging import ask
from robustsim.attacks.engine.region import Region, on_device
from robustsim.attacks.engine.result import AttackResult, AttackStep
from robustsim.errors import ObjectiveError

Callback = Callable[[AttackStep], object]
State = TypeVar("State")
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Seen:
    """What one evaluation told: loss (n,), success (n,) or None, gradient like the images or None."""

    loss: Tensor
    won: Tensor | None
    gradient: Tensor | None

    @property
    def slope(self) -> Tensor:
        """`gradient`, where it was asked for."""
        return _there(self.gradient)


class Over(Exception):  # noqa: N818 - no error
    """Nothing is left to do, or the caller wants to stop; what was found stands."""


@dataclass
class Trial:
    """The best of the points that one go of an attack has tried, for the images that are still attacked.

    `rank` orders points of equal success; the loss, unless the attack says otherwise.
    """

    images: Tensor
    loss: Tensor
    rank: Tensor
    won: Tensor
    gradient: Tensor | None = None

    @property
    def slope(self) -> Tensor:
        """`gradient`, in a go that keeps it."""
        return _there(self.gradient)


def select(state: State, indices: Tensor) -> State:
    """A dataclass with its tensors reduced to these rows."""
    values = ((field.name, getattr(state, field.name)) for field in fields(state))  # type: ignore[arg-type]
    rows = {name: value[indices] for name, value in values if isinstance(value, Tensor)}
    return replace(state, **rows)  # type: ignore[type-var]


class Run:
    """One call of an attack.

    Attributes:
        objective: what is maximised, for the images that are still attacked.
        region: what may be reached from them.
        indices: which of the images that the run began with they are, (n,).
        generator: of the attack's random numbers, where the images are.
        foreign: the run went on with other objectives than the one it began with.
    """

    def __init__(
        self,
        objective: Callable[[Tensor], Tensor],
        region: Region,
        *,
        name: str,
        places: Tensor | None = None,
        stop_on_success: bool = False,
        samples: int = 1,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> None:
        self.objective: Any = objective
        self.region = self._everything = region
        self.foreign = False
        self._name, self._stop, self._samples = name, stop_on_success, samples
        self._callback, self._progress = callback, progress
        self._bar: Any = None
        count, device = len(region.originals), region.originals.device
        self.generator = on_device(generator, device)
        self.indices = torch.arange(count, device=device)
        self._places = self.indices if places is None else places  # what the caller calls them
        self._step, self._forwards, self._backwards = 0, 0, 0
        self._judged = False  # whether evaluations tell success
        self._blind = False  # whether it does not matter, as the points to be returned are others
        self._in_budget, self._keep_gradient = True, False
        # The step of the first loss, or gradient, of each image that was not finite; -1 for none.
        self._bad = {kind: torch.full((count,), -1, device=device) for kind in ("loss", "gradient")}
        self._counts = torch.zeros(2, count, dtype=torch.int64, device=device)
        lowest = torch.full((count,), -torch.inf, device=device)
        self._whole = Trial(
            region.originals.clone(), lowest, lowest.clone(), torch.zeros_like(lowest, dtype=torch.bool)
        )
        self._trial: Trial | None = None

    # -- what an attack calls

    def begin(self, *, keep_gradient: bool = False, in_budget: bool = True) -> None:
        """Start a go; what an earlier one found is kept.

        Args:
            keep_gradient: remember the gradient at the best point too.
            in_budget: False for a go in a larger ball, whose points are no results.
        """
        self._merge()
        self._trial = None
        self._in_budget, self._keep_gradient = in_budget, keep_gradient

    @property
    def trial(self) -> Trial:
        """The best points of the current go; there are some once one has been offered."""
        return _there(self._trial)

    def evaluate(self, points: Tensor, *, gradient: bool = False, offer: bool = True) -> Seen:
        """A forward pass, and with `gradient` a backward pass to the images.

        Args:
            points: (n, ...), one for each image that is still attacked.
            gradient: whether the gradient is wanted.
            offer: enter the points among the results. An attack that also looks outside its region says False, and
                calls `offer` for what counts.

        Raises:
            ObjectiveError: the loss cannot be differentiated.
            InputError: the objective does not return one number for each image.
        """
        seen = self._draw(points, gradient)
        if self._samples > 1:
            seen = self._expected(points, gradient, seen)
        self._note("loss", torch.isnan(seen.loss))
        if seen.gradient is not None:
            self._note("gradient", ~torch.isfinite(seen.gradient.flatten(1).sum(1)))
        if offer:
            self.offer(points, seen)
        return seen

    def offer(self, points: Tensor, seen: Seen, rank: Tensor | None = None) -> None:
        """Keep the points that are better than what this go has found so far: successful ones first, then by rank.

        Args:
            points: (n, ...) inside the region.
            seen: what their evaluation told.
            rank: (n,), the loss if not given.
        """
        self._judged = seen.won is not None
        won = torch.zeros_like(seen.loss, dtype=torch.bool) if seen.won is None else seen.won
        rank = seen.loss if rank is None else rank.float()
        best = self._trial
        if best is None:
            slope = seen.gradient.clone() if self._keep_gradient and seen.gradient is not None else None
            self._trial = Trial(points.clone(), seen.loss, rank, won, slope)
            return
        better = (won & ~best.won) | ((won == best.won) & (rank > best.rank))
        _put(best.images, better, points)
        if best.gradient is not None and seen.gradient is not None:
            _put(best.gradient, better, seen.gradient)
        best.loss, best.rank = torch.where(better, seen.loss, best.loss), torch.where(better, rank, best.rank)
        best.won = best.won | won

    def take(self, points: Tensor) -> None:
        """Return these points, of which nothing is known, from now on."""
        unknown = torch.full((len(points),), torch.nan, device=points.device)
        self._trial = Trial(points, unknown, torch.full_like(unknown, torch.inf), torch.zeros_like(unknown).bool())
        self._blind = True

    def tick(self, steps: int) -> Tensor | None:
        """The end of a step: progress, the caller's callback, NaN, and images that are done.

        Args:
            steps: how many there will be.

        Returns:
            None; or the places, among the images that were attacked, of those that still are, by which the attack
            reduces its own tensors (`select`).

        Raises:
            Over: the attack should return.
            ObjectiveError: a loss or gradient is not finite.
        """
        self._step += 1
        if self._progress:
            self._show(steps)
        if self._callback is not None:
            self._merge()
            best, places = select(self._whole, self.indices), self._places[self.indices]
            won = best.won if self._judged and not self._blind else None
            if self._callback(AttackStep(self._name, self._step, steps, places, best.loss, won, best.images)):
                raise Over
        # To ask a GPU for a number is to wait for it: rarely, and early on, when most images break, oftener.
        if self.indices.device.type != "cpu" and self._step % 8 and self._step not in (1, 2, 4):
            return None
        self.check()
        return self._narrow()

    def switch(self, objective: Any) -> None:
        """Go on with another objective, made for all images."""
        self.foreign = True
        whole = len(self.indices) == len(self._everything.originals)
        self.objective = objective if whole else objective.select(self.indices)

    def count(self, forwards: int) -> None:
        """Forward passes that the attack made by itself."""
        self._forwards += forwards

    def finish(self) -> AttackResult:
        """Everything that was found."""
        if self._trial is not None and not self._in_budget:
            # Stopped in a larger ball: what it has found, brought into the right one.
            points, self._trial, self._in_budget = self.region.project(self._trial.images), None, True
            self.evaluate(points)
        self.check()
        self._merge()
        self._settle()
        best = self._whole
        return AttackResult(
            images=best.images,
            success=best.won if self._judged and not self._blind else None,
            loss=best.loss,
            distance=self._everything.distance(best.images),
            queries=self._counts[0],
            gradients=self._counts[1],
        )

    def close(self) -> None:
        """Put the progress bar away."""
        if self._bar is not None:
            self._bar.close()

    # -- inside

    def _draw(self, points: Tensor, gradient: bool) -> Seen:
        if not gradient:
            return Seen(*self._ask(points), None)
        self._backwards += 1
        with torch.enable_grad():
            x = points.detach().requires_grad_()
            loss, won = self._ask(x)
            slope = torch.autograd.grad(loss.sum(), x, allow_unused=True)[0] if loss.requires_grad else None
        if slope is None:
            raise ObjectiveError(
                f"{self._name}: the objective's loss has no gradient to the images; look for detach(), no_grad() or a "
                "detour through 8 bits or NumPy, or use SquareAttack, which needs no gradient"
            )
        return Seen(loss.detach(), won, slope)

    def _expected(self, points: Tensor, gradient: bool, first: Seen) -> Seen:
        """The mean over the objective's own randomness (Athalye et al. 2018); success where most draws succeed."""
        loss, slope = first.loss, first.gradient
        votes = None if first.won is None else first.won.float()
        for _ in range(self._samples - 1):
            draw = self._draw(points, gradient)
            loss = loss + draw.loss
            votes = None if votes is None or draw.won is None else votes + draw.won
            slope = None if slope is None or draw.gradient is None else slope + draw.gradient
        count = self._samples
        won = None if votes is None else votes > count / 2
        return Seen(loss / count, won, None if slope is None else slope / count)

    def _ask(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        loss, won, passes = ask(self.objective, points, success=self._stop and self._in_budget)
        self._forwards += passes
        return loss, won

    def _note(self, kind: str, bad: Tensor) -> None:
        first = self._bad[kind]
        self._bad[kind] = torch.where(bad & (first < 0), self._step, first)

    def check(self) -> None:
        """Raise if a loss was NaN or a gradient not finite, at this step or an earlier one."""
        for kind, steps in self._bad.items():
            rows = torch.nonzero(steps >= 0).squeeze(1)
            if len(rows):
                images = ", ".join(str(index) for index in self._places[self.indices[rows[:10]]].tolist())
                raise ObjectiveError(
                    f"{self._name}: the objective's {kind} is {'NaN' if kind == 'loss' else 'not finite'} at step "
                    f"{int(steps[rows].min())} for the images {images}{', ...' if len(rows) > 10 else ''}: look for a "
                    "root or logarithm at 0, a division by 0, or half precision that overflows"
                )

    def _narrow(self) -> Tensor | None:
        if not (self._stop and self._judged and self._in_budget):
            return None
        standing = ~(self.trial.won | self._whole.won[self.indices])
        left = int(standing.sum())
        if left == 0:
            raise Over
        if left == len(standing) or not hasattr(self.objective, "select"):
            return None
        keep = torch.nonzero(standing).squeeze(1)
        self._merge()
        self._settle()
        self._trial = select(self.trial, keep)
        self.region, self.indices = self.region.select(keep), self.indices[keep]
        self._bad = {kind: steps[keep] for kind, steps in self._bad.items()}
        self.objective = self.objective.select(keep)
        return keep

    def _merge(self) -> None:
        """Enter what the go has found into the results."""
        best, whole, rows = self._trial, self._whole, self.indices
        if best is None or not self._in_budget:
            return
        won, rank = whole.won[rows], whole.rank[rows]
        better = (best.won & ~won) | ((best.won == won) & (best.rank > rank))
        if self._blind:  # of points that are not judged, the last one counts
            better = torch.ones_like(better)
        taken = rows[better]
        for name in ("images", "loss", "rank", "won"):
            getattr(whole, name)[taken] = getattr(best, name)[better]

    def _settle(self) -> None:
        """Enter what the images that are still attacked have cost so far."""
        self._counts[0, self.indices] = self._forwards
        self._counts[1, self.indices] = self._backwards

    def _show(self, steps: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=steps, desc=self._name, leave=False)
        self._bar.update()


def _there(value: "Thing | None") -> "Thing":
    if value is None:
        raise RuntimeError("an attack relies on something that was not evaluated")
    return value


def _put(target: Tensor, rows: Tensor, source: Tensor) -> None:
    """`target[rows] = source[rows]` for a mask of rows."""
    if target.device.type == "cpu":
        for row in torch.nonzero(rows).squeeze(1).tolist():  # straight copies; a mask costs ten times as much
            target[row].copy_(source[row])
    else:  # a mask as an index would have to be counted on the host
        torch.where(rows.view(-1, *(1,) * (target.ndim - 1)), source, target, out=target)
