"""What every attack has in common: its options, its call form, and the promises around its loop."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from robustsim.attacks.engine.judging import ask, judge, refuse_nan
from robustsim.attacks.engine.modules import undisturbed
from robustsim.attacks.engine.options import whole
from robustsim.attacks.engine.region import Norm, Region
from robustsim.attacks.engine.result import AttackResult
from robustsim.attacks.engine.run import Callback, Over, Run, Seen
from robustsim.attacks.engine.threat import Eps, ThreatModel
from robustsim.errors import InputError

Goal = Callable[[Tensor], Tensor]
AnyAttack = TypeVar("AnyAttack", bound="Attack")


@dataclass(frozen=True, kw_only=True, eq=False)
class Attack(ABC):
    """An attack with its options; call it with an objective and images.

    Subclasses write [`attack`][robustsim.attacks.Attack.attack]; everything promised here is kept around it. Inputs
    stay untouched, the modules that the objective visibly holds are in eval mode and frozen meanwhile and as before
    afterwards, no gradient of a weight is computed, and what is returned is inside the budget to 1e-6 whatever happened
    before.

    Attributes:
        norm: `linf`, `l2` or `l1`.
        eps: the radius in units of pixels, a number or text such as `8/255`; (N,) for one for each image, a tensor,
            list or array. It becomes a float or a tensor.
        bounds: least and greatest value of a pixel.
        generator: of all random numbers, on any device; torch's default generator if not given.
        progress: show a progress bar on standard error.
        callback: called with an [`AttackStep`][robustsim.attacks.AttackStep] after each step; a true value stops the
            attack, which returns what it has.
    """

    norm: Norm = "linf"
    eps: Eps
    bounds: tuple[float, float] = (0.0, 1.0)
    generator: torch.Generator | None = None
    progress: bool = False
    callback: Callback | None = None

    #: Whether the search needs a ball that ends somewhere.
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", self.threat.eps)  # read, and refused if it does not fit
        if self.bounded and bool(torch.isinf(torch.as_tensor(self.eps)).any()):
            raise InputError(f"{type(self).__name__} needs a finite radius: FAB and CarliniWagner do without")

    @property
    def threat(self) -> ThreatModel:
        """Norm, radius and bounds."""
        return ThreatModel(self.norm, self.eps, self.bounds)

    def around(self, images: Tensor) -> Region:
        """What may be reached from these images.

        Raises:
            InputError: the images cannot be attacked, or what the attack holds for each image is not like them.
        """
        region, start = self.threat.around(images), getattr(self, "start", None)
        if start is not None and start.shape != images.shape:
            raise InputError(f"start is {tuple(start.shape)}, the images are {tuple(images.shape)}")
        return region

    @property
    def judges(self) -> bool:
        """Whether the points that are returned have been evaluated."""
        return True

    def __call__(self, objective: Goal, images: Tensor) -> AttackResult:
        """Attack a batch.

        Args:
            objective: images -> (N,) loss, which is maximised; see `robustsim.attacks.objectives.embeddings`.
            images: (N, C, H, W) float32 or float64 within the bounds.

        Raises:
            InputError: images, radii or options that do not fit.
            ObjectiveError: a loss that is NaN, a gradient that is not finite or does not exist, an objective that
                changes its input; where it can, it names the step and the images.
        """
        return eagerly(self.on, objective, images)

    def on(self, objective: Goal, images: Tensor, places: Tensor | None = None) -> AttackResult:
        """The attack, where the modules are taken care of already.

        Args:
            objective: as for the call.
            images: likewise.
            places: (N,) what messages and callbacks call the images, if not 0 to N - 1.
        """
        region = self.around(images)
        result = self.attack(objective, region, places)
        # The last projection, which trusts nobody.
        kept = region.tightened(result.images)
        loss, success, queries = result.loss, result.success, result.queries
        if bool(((kept - result.images).abs() > 1e-5 * (self.bounds[1] - self.bounds[0])).any()):
            loss, success, passes = ask(objective, kept)
            queries = queries + passes
            refuse_nan(type(self).__name__, loss, places)
        elif self.judges and success is None and hasattr(objective, "success") and not hasattr(objective, "evaluate"):
            success, queries = judge(objective, kept), queries + 1
        return AttackResult(kept, success, loss, region.distance(kept), queries, result.gradients)

    @abstractmethod
    def attack(self, objective: Goal, region: Region, places: Tensor | None) -> AttackResult:
        """The attack without the promises around it."""

    def _read(self, name: str, reader: Callable[..., Any], *given: Any, **named: Any) -> None:
        """Read an option, which then is what the reader makes of it."""
        object.__setattr__(self, name, reader(name, getattr(self, name), *given, **named))

    def _read_counts(self, *names: str) -> None:
        """Read options that are whole numbers of at least 1."""
        for name in names:
            self._read(name, whole)

    def for_images(self: AnyAttack, indices: Tensor) -> AnyAttack:
        """The same attack for some of a batch: with their radii and beginnings, where each image has its own."""
        changes: dict[str, Any] = {}
        if isinstance(self.eps, Tensor) and self.eps.ndim and len(self.eps) > 1:
            changes["eps"] = self.eps[indices.to(self.eps.device)]
        start = getattr(self, "start", None)
        if start is not None:
            changes["start"] = start[indices.to(start.device)]
        return replace(self, **changes) if changes else self


@dataclass(frozen=True, kw_only=True, eq=False)
class IterativeAttack(Attack):
    """An attack that looks at one point of each image after the other.

    Subclasses write `search`.

    Attributes:
        stop_on_success: an image is done when it is broken; with an objective that offers `select` it leaves the
            batch, so that attacking a model that is not robust costs little. Without this, the search goes on to the
            end for a better point. A plain callable always sees the whole batch.
    """

    stop_on_success: bool = False

    @property
    def samples(self) -> int:
        """Draws of a randomised objective that each evaluation averages."""
        return 1

    def attack(self, objective: Goal, region: Region, places: Tensor | None) -> AttackResult:
        run = Run(
            objective,
            region,
            name=type(self).__name__,
            places=places,
            stop_on_success=self.stop_on_success,
            samples=self.samples,
            generator=self.generator,
            callback=self.callback,
            progress=self.progress,
        )
        try:
            with suppress(Over):
                self.search(run)
            result = run.finish()
        finally:
            run.close()
        if not run.foreign:
            return result
        # The points were found by other losses than the caller's; of a randomised one the mean counts, as before.
        draws = [ask(objective, result.images) for _ in range(self.samples)]
        loss = torch.stack([draw[0] for draw in draws]).mean(0)
        refuse_nan(type(self).__name__, loss, places)
        votes = [draw[1].float() for draw in draws if draw[1] is not None]
        known = torch.stack(votes).mean(0) > 0.5 if votes else result.success
        return replace(result, loss=loss, success=known, queries=result.queries + sum(draw[2] for draw in draws))

    @abstractmethod
    def search(self, run: Run) -> None:
        """Look for good points, by `run.evaluate` and `run.tick`, to the end or until the latter raises Over."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MinimumNormAttack(IterativeAttack):
    """An attack that looks for the nearest successful point, and needs to know where success begins.

    Attributes:
        eps: what is farther away does not count as success, and the image comes back as it was; infinity, the default,
            for the nearest point at whatever distance.
        stop_on_success: an image is done with the first success within the radius, which need not be the nearest.
    """

    eps: Eps = math.inf

    bounded = False

    def boundary(self, run: Run) -> Any:
        """The objective whose loss is above 0 exactly where the attacker has won.

        Raises:
            InputError: the objective has none.
        """
        if not hasattr(run.objective, "margin"):
            raise InputError(
                f"{type(self).__name__} needs an objective with a boundary: Classification, TwoAFC, or another one of "
                "robustsim.attacks with threshold="
            )
        return run.objective.margin()

    @staticmethod
    def won(seen: Seen) -> Tensor:
        """Success, (n,) bool; beyond the boundary, where the objective does not tell it at once."""
        return seen.loss > 0 if seen.won is None else seen.won

    def offer(self, run: Run, points: Tensor, seen: Seen) -> None:
        """Enter the points that succeed within the radius, the nearest first.

        The first points to be offered are the originals, which stay where nothing else is found.
        """
        distance = run.region.distance(points)
        won = self.won(seen) & (distance <= run.region.eps)
        run.offer(points, replace(seen, won=won), torch.where(won, -distance, -torch.inf))


def eagerly(on: Callable[[Goal, Tensor], AttackResult], objective: Goal, images: Tensor) -> AttackResult:
    """Run an attack alone, and outside whatever torch.compile is compiling: its loops are not to be unrolled."""
    if "torch._dynamo" in sys.modules:  # importing it takes a second, and without it nothing is compiled
        return torch.compiler.disable(_alone)(on, objective, images)  # type: ignore[no-untyped-call,no-any-return]
    return _alone(on, objective, images)


def _alone(on: Callable[[Goal, Tensor], AttackResult], objective: Goal, images: Tensor) -> AttackResult:
    if not isinstance(images, Tensor):
        raise InputError(f"attacks need a tensor of images (N, C, H, W), not {type(images).__name__}")
    with alone(objective):
        return on(objective, images.detach().clone())  # a copy, whatever the objective may do to it


@contextmanager
def alone(objective: object) -> Iterator[None]:
    """The modules of the objective undisturbed, and no part in whatever the caller is differentiating."""
    with undisturbed(objective), torch.inference_mode(False), torch.no_grad():
        yield
