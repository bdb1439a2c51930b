"""Every attack keeps the contract; attacks that break it on purpose are caught."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from robustsim.attacks import (
    APGD,
    FAB,
    PGD,
    AutoAttack,
    CarliniWagner,
    EnsembleAttack,
    RandomNoise,
    SquareAttack,
)
from tests import attack_contract as contract

pytestmark = pytest.mark.usefixtures("one_thread")


def ensemble(**options):
    return EnsembleAttack([PGD(steps=3, **options), SquareAttack(queries=5, **options)])


class Started:
    """APGD from grey, whichever images it is called with."""

    def __init__(self, **options):
        self.options = options

    def __call__(self, objective, images):
        start = torch.full_like(images.detach(), 0.5)
        return APGD(steps=12, start=start, **self.options)(objective, images)


ATTACKS = {
    "PGD": (partial(PGD, steps=6), ("linf", "l2", "l1")),
    "PGD-momentum": (partial(PGD, steps=6, momentum=0.9, step_rule="cosine", restarts=2), ("linf",)),
    "APGD": (partial(APGD, steps=12), ("linf", "l2", "l1")),
    "APGD-stop": (partial(APGD, steps=12, restarts=2, stop_on_success=True), ("linf",)),
    "APGD-first-step": (partial(APGD, steps=12, step_size=0.05), ("linf",)),
    "APGD-start": (Started, ("linf", "l2", "l1")),
    "APGD-T": (partial(APGD, steps=6, targets=3), ("linf",)),
    "Square": (partial(SquareAttack, queries=40), ("linf", "l2", "l1")),
    "FAB": (partial(FAB, steps=8, targets=3), ("linf", "l2", "l1")),
    "CarliniWagner": (partial(CarliniWagner, steps=20, searches=5, learning_rate=0.1), ("l2",)),
    "RandomNoise": (partial(RandomNoise, draws=4), ("linf", "l2", "l1")),
    "AutoAttack": (partial(AutoAttack, steps=6, queries=10, targets=2), ("linf", "l2", "l1")),
    "AutoAttack-plus": (partial(AutoAttack, version="plus", steps=2, queries=5, targets=1), ("linf", "l1")),
    "AutoAttack-rand": (partial(AutoAttack, version="rand", steps=3), ("linf",)),
    "Ensemble": (ensemble, ("linf",)),
}
# Noise is no attacker, and an ensemble is called with its parts.
EXCEPT = {("RandomNoise", "strength"), ("Ensemble", "keywords_only"), ("APGD-start", "keywords_only")}
ROWS = [(name, norm) for name, (_, norms) in ATTACKS.items() for norm in norms]


@pytest.mark.parametrize("check", contract.CHECKS)
@pytest.mark.parametrize(("name", "norm"), ROWS, ids=[f"{name}-{norm}" for name, norm in ROWS])
def test_contract(name, norm, check):
    if (name, check) in EXCEPT:
        pytest.skip("does not apply")
    contract.CHECKS[check](ATTACKS[name][0], norm)


class LeavesTheBudget(PGD):
    def on(self, objective, images, places=None):
        result = super().on(objective, images, places)
        return replace(result, images=(result.images + 1e-4).clamp(0, 1))


class WritesIntoItsInput(PGD):
    def __call__(self, objective, images):
        return super().__call__(objective, images.mul_(1) if not images.requires_grad else images)


class DrawsByItself(PGD):
    def on(self, objective, images, places=None):
        return replace(self, generator=None).attack(objective, self.threat.around(images), places)


class ComputesWeightGradients(PGD):
    def __call__(self, objective, images):
        objective(images.clone().requires_grad_()).sum().backward()
        return super().__call__(objective, images)


class LeavesEvalMode(PGD):
    def __call__(self, objective, images):
        objective.model.eval()
        return super().__call__(objective, images)


class RunsInTrainingMode(PGD):
    def __call__(self, objective, images):
        with torch.no_grad():
            return self.on(objective, images)

    def on(self, objective, images, places=None):
        objective.model.layers[1].train()
        objective(images)
        objective.model.layers[1].eval()
        return super().on(objective, images, places)


class ClaimsSuccess(PGD):
    def on(self, objective, images, places=None):
        result = super().on(objective, images, places)
        return replace(result, success=torch.ones_like(result.success))


class DoesNothing(PGD):
    def on(self, objective, images, places=None):
        result = replace(self, steps=1, step_size=0.0, random_start=False)
        return super(DoesNothing, result).on(objective, images, places)


class IgnoresTheCallback(PGD):
    def __post_init__(self):
        if self.callback:
            callback = self.callback
            object.__setattr__(self, "callback", lambda step: callback(step) and False)
        super().__post_init__()


class DropsTheCallback(PGD):
    def __post_init__(self):
        object.__setattr__(self, "callback", None)
        super().__post_init__()


class SwallowsNan(PGD):
    def on(self, objective, images, places=None):
        return super().on(Cleaned(objective), images, places)


class Cleaned:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, images):
        return self.inner(images).nan_to_num()

    def evaluate(self, images):
        loss, won = self.inner.evaluate(images)
        return loss.nan_to_num(), won


class CountsHalf(PGD):
    def on(self, objective, images, places=None):
        result = super().on(objective, images, places)
        return replace(result, queries=result.queries // 2)


class OneRadiusForAll(PGD):
    def on(self, objective, images, places=None):
        if isinstance(self.eps, torch.Tensor):
            return super(OneRadiusForAll, replace(self, eps=float(self.eps.max()))).on(objective, images, places)
        return super().on(objective, images, places)


BROKEN = {
    LeavesTheBudget: "budget",
    WritesIntoItsInput: "inputs_untouched",
    DrawsByItself: "determinism",
    ComputesWeightGradients: "model_untouched",
    LeavesEvalMode: "model_untouched",
    RunsInTrainingMode: "model_untouched",
    ClaimsSuccess: "truth",
    DoesNothing: "strength",
    IgnoresTheCallback: "callback",
    DropsTheCallback: "callback",
    SwallowsNan: "nan",
    CountsHalf: "cost_is_counted",
    OneRadiusForAll: "radius_of_each",
}


@pytest.mark.parametrize("attack", BROKEN, ids=lambda attack: attack.__name__)
def test_broken_attacks_are_caught(attack):
    make = partial(attack, steps=6)
    check = contract.CHECKS[BROKEN[attack]]
    check(partial(PGD, steps=6), "linf")  # the sound one passes
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(make, "linf")
