"""Several attacks, each on the images that the ones before have left standing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustsim.attacks.apgd import APGD
from robustsim.attacks.base import Attack, Goal, IterativeAttack, eagerly
from robustsim.attacks.fab import FAB
from robustsim.attacks.result import AttackResult, AttackStep
from robustsim.attacks.run import Callback, ask
from robustsim.attacks.square import SquareAttack
from robustsim.attacks.threat import Region
from robustsim.errors import InputError


class EnsembleAttack:
    """Attacks one after the other; an image is lost when any of them breaks it.

    With an objective that tells success, images that are wrong without any attack come back as they are, each attack
    stops at success, and runs on what still stands if the objective offers ``select``. A plain callable is attacked by
    all of them, and the point with the largest loss is returned. When the callback of one stops it, the later ones do
    not begin.

    Args:
        attacks: any attacks, of one norm or of several.

    Raises:
        InputError: no attacks.
    """

    def __init__(self, attacks: Sequence[Attack]) -> None:
        if not attacks:
            raise InputError("an ensemble needs at least one attack")
        self.attacks = tuple(
            replace(attack, stop_on_success=True) if isinstance(attack, IterativeAttack) else attack
            for attack in attacks
        )

    def __call__(self, objective: Goal, images: Tensor) -> AttackResult:
        """As for any attack; ``distance`` is in the norm of the attack that found the image."""
        return eagerly(self.on, objective, images)

    def on(self, objective: Any, images: Tensor, places: Tensor | None = None) -> AttackResult:
        """See :meth:`Attack.on`."""
        for attack in self.attacks:
            attack.threat.around(images)  # what cannot be attacked is refused before anything is evaluated
        places = torch.arange(len(images), device=images.device) if places is None else places
        best = _clean(objective, images)
        for attack in self.attacks:
            rows = torch.arange(len(images), device=images.device)
            if best.success is not None and hasattr(objective, "select"):
                rows = torch.nonzero(~best.success).squeeze(1)
                if not len(rows):
                    break
            part = objective if len(rows) == len(images) else objective.select(rows)
            watch = _Watch(attack.callback)
            if attack.callback is not None:
                attack = replace(attack, callback=watch)
            result = attack.for_images(rows).on(part, images[rows], places[rows])
            _enter(best, result, rows)
            if watch.stopped:
                break
        return best


class _Watch:
    """A callback that remembers that it was told to stop."""

    def __init__(self, callback: Callback | None) -> None:
        self.callback, self.stopped = callback, False

    def __call__(self, step: AttackStep) -> bool:
        self.stopped = bool(self.callback and self.callback(step))
        return self.stopped


def _clean(objective: Any, images: Tensor) -> AttackResult:
    """Nothing done yet."""
    loss, success, passes = ask(objective, images)
    queries = torch.full((len(images),), passes, device=images.device)
    if success is None:
        loss = torch.full_like(loss, -torch.inf)  # any attack's point is better
    distance = torch.zeros(len(images), dtype=images.dtype, device=images.device)
    return AttackResult(images.clone(), success, loss, distance, queries, torch.zeros_like(queries))


def _enter(best: AttackResult, result: AttackResult, rows: Tensor) -> None:
    best.queries[rows] += result.queries
    best.gradients[rows] += result.gradients
    better = result.loss > best.loss[rows]
    if best.success is not None and result.success is not None:
        better = ~best.success[rows] & (result.success | better)
        best.success[rows] |= result.success
    taken = rows[better]
    for name in ("images", "loss", "distance"):
        getattr(best, name)[taken] = getattr(result, name)[better]


@dataclass(frozen=True, kw_only=True, eq=False)
class AutoAttack(Attack):
    """The standard ensemble of Croce and Hein (2020): APGD on cross-entropy, APGD-T on targeted DLR, FAB-T, Square.

    For decisions, :class:`Classification` and :class:`TwoAFC`. DLR needs three classes and targeted DLR four: with two
    or three, APGD-T takes the margin to each target instead. In l1, Square, which knows linf and l2, is left out, and
    five targets are tried instead of nine.

    Attributes:
        steps: iterations of APGD and FAB.
        queries: of Square.
        targets: how many of the likeliest wrong classes APGD-T and FAB-T try; None for nine, in l1 five.
    """

    steps: int = 100
    queries: int = 5000
    targets: int | None = None

    def attacks(self) -> list[Attack]:
        """The parts, in order."""
        common: dict[str, Any] = {
            name: getattr(self, name) for name in ("norm", "eps", "bounds", "generator", "progress", "callback")
        }
        targets = self.targets or (5 if self.norm == "l1" else 9)
        parts: list[Attack] = [
            APGD(**common, steps=self.steps),
            APGD(**common, steps=self.steps, targets=targets),
            FAB(**common, steps=self.steps, targets=targets),
        ]
        return parts if self.norm == "l1" else [*parts, SquareAttack(**common, queries=self.queries)]

    def attack(self, objective: Goal, region: Region, places: Tensor | None) -> AttackResult:
        if not (hasattr(objective, "targeted") and hasattr(objective, "success")):
            raise InputError(
                "AutoAttack needs an objective with classes, Classification or TwoAFC; for any other use "
                "EnsembleAttack([APGD(...), SquareAttack(...)])"
            )
        return EnsembleAttack(self.attacks()).on(objective, region.originals, places)
