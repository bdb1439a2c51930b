"""Does an attack fail because the model is robust, or because its gradients lead nowhere?

A model whose gradients are masked looks robust to gradient attacks and is not (Athalye et al. 2018). The checks are
those of the R-CLIP paper (section IV-C, appendix B-A) and of Carlini et al. 2019, "On Evaluating Adversarial
Robustness".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from robustsim.attacks.batches import attack_in_batches, check_count
from robustsim.attacks.engine.base import Attack, alone
from robustsim.attacks.engine.options import number, whole
from robustsim.attacks.engine.region import Norm
from robustsim.attacks.engine.run import Run
from robustsim.attacks.engine.threat import ThreatModel
from robustsim.attacks.methods.apgd import APGD
from robustsim.attacks.methods.noise import RandomNoise
from robustsim.attacks.methods.pgd import PGD
from robustsim.attacks.methods.square import SquareAttack
from robustsim.errors import InputError


@dataclass(frozen=True)
class MaskingCheck:
    """One check.

    Attributes:
        name: what should be the case.
        passed: whether it is.
        seen: the figures it was judged by.
        meaning: what a failure would mean, and what to do then.
    """

    name: str
    passed: bool
    seen: str
    meaning: str


@dataclass(frozen=True)
class MaskingReport:
    """The checks, and the accuracies they rest on; printing it gives a page to read.

    Attributes:
        checks: in order.
        accuracy: share of all images that are right, in [0, 1], by attack.
        by_eps: the same of APGD, by radius.
        by_steps: likewise, by number of steps.
        images: how many there were.
    """

    checks: tuple[MaskingCheck, ...]
    accuracy: dict[str, float]
    by_eps: dict[float, float]
    by_steps: dict[int, float]
    images: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What failed, and what that means; empty if the robust accuracy can be believed as far as this goes."""
        return tuple(f"{check.name}: {check.seen}. {check.meaning}" for check in self.checks if not check.passed)

    def __str__(self) -> str:
        lines = [f"Gradient masking, {self.images} images: " + ("SUSPECTED" if self.warnings else "no sign of it"), ""]
        for check in self.checks:
            lines.append(f"  [{'ok' if check.passed else '!!'}] {check.name}: {check.seen}")
            if not check.passed:
                lines.append(f"       {check.meaning}")
        return "\n".join(lines)


def check_gradient_masking(
    objective: Any,
    images: Tensor,
    *,
    norm: Norm = "linf",
    eps: float | str,
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 100,
    queries: int = 1000,
    tolerance: float = 0.01,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> MaskingReport:
    """Run the sanity checks of a robustness evaluation.

    - Gradients are there: no image has a gradient of zero.
    - Random noise is weaker than APGD, and so is a single gradient step.
    - Accuracy falls as the radius grows, and ends at zero.
    - Ten times fewer and twice as many steps: the last doubling hardly lowers accuracy.
    - Square Attack, which needs no gradient, breaks nothing that APGD has left.

    Args:
        objective: with `success` and `select`, such as TwoAFC, Classification, or Untargeted with a threshold.
        images: (N, C, H, W), what it is about.
        norm: of the threat model.
        eps: its radius, a number or text such as `4/255`.
        bounds: least and greatest value of a pixel.
        steps: of APGD.
        queries: of Square.
        tolerance: differences of accuracy up to this, and up to one image, are no sign of anything.
        batch_size: images attacked at a time.
        generator: of all random numbers.
        progress: show a bar for each attack.

    Raises:
        InputError: an objective without success or select, a radius of 0 or infinity; else as for the attacks.
    """
    if not (hasattr(objective, "success") and hasattr(objective, "select")):
        raise InputError("check_gradient_masking needs an objective that offers success(images) and select(indices)")
    radius = ThreatModel(norm, eps, bounds).eps
    if not isinstance(radius, float) or not 0 < radius < math.inf:
        raise InputError(f"eps must be one radius above 0 and finite, not {eps!r}")
    eps = radius
    check_count(objective, images)
    steps, queries = whole("steps", steps, 10), whole("queries", queries)
    batch_size = whole("batch_size", batch_size)
    tolerance = number("tolerance", tolerance, "at least 0", lambda value: value >= 0)
    common: dict[str, Any] = {"norm": norm, "bounds": bounds, "generator": generator, "progress": progress}
    count = len(images)
    slack = max(tolerance, 1 / count) + 1e-9

    def standing(attack: Attack, rows: Tensor) -> Tensor:
        """Which of these images the attack does not break."""
        if not len(rows):
            return rows
        result = attack_in_batches(attack, objective.select(rows), images[rows], batch_size=batch_size)
        if result.success is None:
            raise InputError(f"{type(objective).__name__} has no notion of success here: pass threshold=")
        return rows[~result.success]

    with alone(objective):
        everything = torch.arange(count, device=images.device)
        clean = standing(RandomNoise(**common, eps=0.0, draws=1), everything)
        noise = standing(RandomNoise(**common, eps=eps, draws=10, stop_on_success=True), clean)
        single = standing(PGD(**common, eps=eps, steps=1, step_size=eps, random_start=False), clean)
        by_steps = {
            number: standing(APGD(**common, eps=eps, steps=number, stop_on_success=True), clean)
            for number in (steps // 10, steps, 2 * steps)
        }
        left = by_steps[steps]
        by_eps = {eps: left}
        for radius in _radii(norm, eps, bounds, images):
            by_eps[radius] = standing(APGD(**common, eps=radius, steps=steps, stop_on_success=True), clean)
            if not len(by_eps[radius]):
                break
        square = standing(SquareAttack(**common, eps=eps, queries=queries, stop_on_success=True), left)
        dead = _without_gradient(objective, images, ThreatModel(norm, eps, bounds), batch_size, generator)

    def share(rows: Tensor) -> float:
        return len(rows) / count

    curve = [share(rows) for rows in by_eps.values()]
    fewer, _, more = (share(rows) for rows in by_steps.values())
    apgd = share(left)
    checks = [
        MaskingCheck(
            "gradients are there",
            dead == 0,
            f"{dead} of {count} images have a gradient of zero everywhere",
            "Something on the way rounds, saturates or underflows: attack in float32, and look for detach and round.",
        ),
        MaskingCheck(
            "random noise is weaker than APGD",
            share(noise) >= apgd - slack,
            f"accuracy {share(noise):.1%} under noise, {apgd:.1%} under APGD",
            "Gradients that lead nowhere better than chance are masked: the robust accuracy is not to be believed.",
        ),
        MaskingCheck(
            "one gradient step is weaker than many",
            share(single) >= apgd - slack,
            f"accuracy {share(single):.1%} after one step, {apgd:.1%} after {steps}",
            "The loss is too rough for small steps: try more restarts, larger_eps=True, or a smoothed gradient (eot=).",
        ),
        MaskingCheck(
            "accuracy falls to zero as eps grows",
            curve[-1] == 0 and all(b <= a + slack for a, b in pairwise(curve)),
            ", ".join(f"{value:.1%} at {_readable(radius, norm)}" for radius, value in zip(by_eps, curve, strict=True)),
            "An attack that may change everything and still fails is broken, or kept from working by the model.",
        ),
        MaskingCheck(
            "more steps hardly help",
            apgd - more <= slack,
            f"accuracy {fewer:.1%} after {steps // 10} steps, {apgd:.1%} after {steps}, {more:.1%} after {2 * steps}",
            "The attack has not converged: report a longer one.",
        ),
        MaskingCheck(
            "black box finds nothing new",
            apgd - share(square) <= slack,
            f"Square ({queries} queries) lowers accuracy from {apgd:.1%} to {share(square):.1%}",
            "What needs no gradient should not beat what has one: report AutoAttack and look for masked gradients.",
        ),
    ]
    accuracy = {
        "clean": share(clean), "noise": share(noise), "one step": share(single), "apgd": apgd, "square": share(square),
    }  # fmt: skip
    return MaskingReport(
        tuple(checks),
        accuracy,
        {radius: share(rows) for radius, rows in by_eps.items()},
        {number: share(rows) for number, rows in by_steps.items()},
        count,
    )


def _radii(norm: Norm, eps: float, bounds: tuple[float, float], images: Tensor) -> Sequence[float]:
    """Radii that double up to one that reaches every image within the bounds."""
    span, size = bounds[1] - bounds[0], images[0].numel()
    most = {"linf": span, "l2": span * math.sqrt(size), "l1": span * size}[norm]
    found = []
    while (eps := 2 * eps) < most:
        found.append(eps)
    return [*found, most] if eps / 2 < most else []


def _readable(radius: float, norm: Norm) -> str:
    return f"{radius * 255:.3g}/255" if norm == "linf" else f"{radius:.3g}"


def _without_gradient(
    objective: Any, images: Tensor, threat: ThreatModel, batch_size: int, generator: torch.Generator | None
) -> int:
    """How many images have no gradient at a random point of their ball."""
    dead = 0
    for rows in torch.split(torch.arange(len(images), device=images.device), batch_size):
        region = threat.around(images[rows].detach())
        run = Run(objective.select(rows), region, name="check_gradient_masking", places=rows)
        slope = run.evaluate(region.random_start(generator), gradient=True, offer=False).slope
        run.check()
        dead += int((slope.flatten(1).abs().amax(1) == 0).sum())
    return dead
