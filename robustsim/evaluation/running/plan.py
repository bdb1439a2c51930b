"""What is attacked, with what, and how hard."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from robustsim.attacks import APGD, FAB, PGD, Attack, AutoAttack, EnsembleAttack, RandomNoise, SquareAttack, parse_eps
from robustsim.attacks.engine.region import Norm
from robustsim.attacks.engine.threat import check_norm
from robustsim.attacks.methods.ensemble import Version
from robustsim.errors import InputError
from robustsim.evaluation.tasks.choices import Loss


def _autoattack(version: Version, plan: "AttackPlan", common: dict[str, Any]) -> AutoAttack:
    return AutoAttack(**common, version=version, steps=plan.steps, queries=plan.queries)


_MAKERS: dict[str, Callable[["AttackPlan", dict[str, Any]], "Attack | EnsembleAttack"]] = {
    "noise": lambda plan, common: RandomNoise(**common, stop_on_success=True),
    "pgd": lambda plan, common: PGD(**common, steps=plan.steps, stop_on_success=True),
    "apgd": lambda plan, common: APGD(**common, steps=plan.steps, stop_on_success=True),
    "square": lambda plan, common: SquareAttack(**common, queries=plan.queries, stop_on_success=True),
    "fab": lambda plan, common: FAB(**common, steps=plan.steps, stop_on_success=True),
    "autoattack": partial(_autoattack, "standard"),
    "autoattack-plus": partial(_autoattack, "plus"),
    "autoattack-rand": partial(_autoattack, "rand"),
}
#: Names of attacks.
ATTACKS = tuple(_MAKERS)
USUAL_EPS = {"linf": "4/255", "l2": "3"}


def _as_text(eps: str | float) -> str:
    """Equal radii as equal text: fractions as they are, 1 for `1`, `"1.0"` and `1.0`."""
    if isinstance(eps, str) and "/" in eps:
        return eps.replace(" ", "")
    try:
        value = float(eps)
    except ValueError:
        return str(eps)  # parse_eps says what is wrong with it
    return str(int(value)) if value.is_integer() else repr(value)


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """How decisions are attacked; one is lost when any attack of the list turns it.

    Attributes:
        attacks: names of `ATTACKS`, one after the other on what the ones before have left standing.
        norm: `linf`, `l2` or `l1`.
        eps: radii, as numbers or as text such as `4/255`; the whole list of attacks for each.
        steps: of gradient attacks.
        queries: of Square.
        perturb: which picture is attacked; what there is depends on the task, whose first is taken if not given.
        loss: `ce` or `margin`.
        attacked: attack so many items, drawn at random; all if not given.

    Raises:
        InputError: an unknown attack or norm, a radius that is none, no attack or no radius.
    """

    attacks: str | Sequence[str] = ("apgd",)
    norm: Norm = "linf"
    eps: str | float | Sequence[str | float] = ("4/255",)
    steps: int = 100
    queries: int = 5000
    perturb: str | None = None
    loss: Loss = "ce"
    attacked: int | None = None

    def __post_init__(self) -> None:
        check_norm(self.norm)
        names = (self.attacks,) if isinstance(self.attacks, str) else tuple(self.attacks)
        radii = (self.eps,) if isinstance(self.eps, (str, int, float)) else tuple(self.eps)
        object.__setattr__(self, "attacks", names)
        object.__setattr__(self, "eps", tuple(map(_as_text, radii)))
        for name in names:
            if name not in _MAKERS:
                raise InputError(f"{name!r} is none of the attacks {', '.join(ATTACKS)}")
        if not names or not radii:
            raise InputError("an attack plan needs at least one attack and one radius")
        values = [parse_eps(text, self.norm) for text in self.radii]
        if len(set(values)) < len(values):
            raise InputError(f"a radius is named twice in {', '.join(self.radii)}")
        if self.loss not in ("ce", "margin"):
            raise InputError(f"loss={self.loss!r} is neither ce nor margin")
        if self.attacked is not None and self.attacked < 1:
            raise InputError(f"attacked must be at least 1, not {self.attacked}")
        for name in names:
            self.make(name, self.radii[0], seed=0)  # refuses what does not fit

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks."""
        return tuple(self.attacks)

    @property
    def follows_gradients(self) -> bool:
        """Whether any of the attacks does."""
        return bool(set(self.names) - {"noise", "square"})

    @property
    def radii(self) -> tuple[str, ...]:
        """The radii as text."""
        return tuple(map(str, self.eps))  # type: ignore[arg-type]

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
            "attacks": list(self.names),
            "norm": self.norm,
            "eps": list(self.radii),
            "steps": self.steps,
            "queries": self.queries,
            "perturb": self.perturb,
            "loss": self.loss,
            "attacked": self.attacked,
        }
