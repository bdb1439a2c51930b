"""What is attacked, with what, and how hard."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from robustsim.attacks import APGD, FAB, PGD, Attack, AutoAttack, EnsembleAttack, RandomNoise, SquareAttack, parse_eps
from robustsim.attacks.region import Norm
from robustsim.attacks.threat import check_norm
from robustsim.errors import InputError
from robustsim.evaluation.tasks import Loss

_MAKERS: dict[str, Callable[["AttackPlan", dict[str, Any]], "Attack | EnsembleAttack"]] = {
    "noise": lambda plan, common: RandomNoise(**common, stop_on_success=True),
    "pgd": lambda plan, common: PGD(**common, steps=plan.steps, stop_on_success=True),
    "apgd": lambda plan, common: APGD(**common, steps=plan.steps, stop_on_success=True),
    "square": lambda plan, common: SquareAttack(**common, queries=plan.queries, stop_on_success=True),
    "fab": lambda plan, common: FAB(**common, steps=plan.steps, stop_on_success=True),
    "autoattack": lambda plan, common: AutoAttack(**common, steps=plan.steps, queries=plan.queries),
}
#: Names of attacks.
ATTACKS = tuple(_MAKERS)
USUAL_EPS = {"linf": "4/255", "l2": "3"}


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """How decisions are attacked; one is lost when any attack of the list turns it.

    Attributes:
        attacks: names of :data:`ATTACKS`, one after the other on what the ones before have left standing.
        norm: ``linf``, ``l2`` or ``l1``.
        eps: radii as text, ``4/255`` or ``3``; the whole list of attacks for each.
        steps: of gradient attacks.
        queries: of Square.
        perturb: which picture is attacked; what there is depends on the task, whose first is taken if not given.
        loss: ``ce`` or ``margin``.
        items: attack so many, drawn at random; all if not given.

    Raises:
        InputError: an unknown attack or norm, a radius that is none, no attack or no radius.
    """

    attacks: tuple[str, ...] = ("apgd",)
    norm: Norm = "linf"
    eps: tuple[str, ...] = ("4/255",)
    steps: int = 100
    queries: int = 5000
    perturb: str | None = None
    loss: Loss = "ce"
    items: int | None = None

    def __post_init__(self) -> None:
        check_norm(self.norm)
        for name in self.attacks:
            if name not in _MAKERS:
                raise InputError(f"{name!r} is none of the attacks {', '.join(ATTACKS)}")
        if not self.attacks or not self.eps:
            raise InputError("an attack plan needs at least one attack and one radius")
        for text in self.eps:
            if self.eps.count(text) > 1:
                raise InputError(f"the radius {text} is named twice")
            parse_eps(text, self.norm)
        if self.loss not in ("ce", "margin"):
            raise InputError(f"loss={self.loss!r} is neither ce nor margin")
        if self.items is not None and self.items < 1:
            raise InputError(f"items must be at least 1, not {self.items}")
        for name in self.attacks:
            self.make(name, self.eps[0], seed=0)  # refuses what does not fit

    def make(self, name: str, eps: str, *, seed: int) -> "Attack | EnsembleAttack":
        """One of the attacks, at one of the radii.

        The random numbers depend on the arguments alone, so that it does not matter what ran before.
        """
        own = zlib.crc32(f"{seed} {name} {self.norm} {eps}".encode())
        common = {
            "norm": self.norm,
            "eps": parse_eps(eps, self.norm),
            "generator": torch.Generator().manual_seed(own),
        }
        return _MAKERS[name](self, common)

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return {
            "attacks": list(self.attacks),
            "norm": self.norm,
            "eps": list(self.eps),
            "steps": self.steps,
            "queries": self.queries,
            "perturb": self.perturb,
            "loss": self.loss,
            "items": self.items,
        }
