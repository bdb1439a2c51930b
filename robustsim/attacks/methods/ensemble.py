"""Several attacks, each on the images that the ones before have left standing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from robustsim.attacks.engine.base import Attack, Goal, IterativeAttack, eagerly
from robustsim.attacks.engine.judging import ask, refuse_nan
from robustsim.attacks.engine.region import Region
from robustsim.attacks.engine.result import AttackResult, AttackStep
from robustsim.attacks.engine.run import Callback
from robustsim.attacks.methods.apgd import APGD
from robustsim.attacks.methods.fab import FAB
from robustsim.attacks.methods.square import SquareAttack
from robustsim.errors import InputError

Version = Literal["standard", "plus", "rand"]
# Of the paper: goes of the parts that begin anew, and draws of a randomised model.
_RESTARTS, _DRAWS = 5, 20


class EnsembleAttack:
    """Attacks one after the other; an image is lost when any of them breaks it.

    With an objective that tells success, images that are wrong without any attack come back as they are, each attack
    stops at success, and runs on what still stands if the objective offers `select`. A plain callable is attacked by
    all of them, and the point with the largest loss is returned. When the callback of one stops it, the later ones do
    not begin.

    Args:
        attacks: any attacks, of one norm or of several.

    Raises:
        InputError: no attacks.
    """

    def __init__(self, attacks: Sequence[Attack]) -> None:
        if not attacks or not all(isinstance(attack, Attack) for attack in attacks):
            raise InputError("an ensemble needs a list of at least one attack, and no ensembles in it")
        self.attacks = tuple(
            replace(attack, stop_on_success=True) if isinstance(attack, IterativeAttack) else attack
            for attack in attacks
        )

    def __call__(self, objective: Goal, images: Tensor) -> AttackResult:
        """As for any attack; `distance` is in the norm of the attack that found the image."""
        return eagerly(self.on, objective, images)

    def on(self, objective: Any, images: Tensor, places: Tensor | None = None) -> AttackResult:
        """See [`Attack.on`][robustsim.attacks.Attack.on]."""
        for attack in self.attacks:
            attack.around(images)  # what cannot be attacked is refused before anything is evaluated
        places = torch.arange(len(images), device=images.device) if places is None else places
        best = clean(objective, images, places)
        # Without a notion of success, any attack's point is better than none.
        rank = best.loss if best.success is not None else torch.full_like(best.loss, -torch.inf)
        stop = Stop()
        for attack in self.attacks:
            rows = torch.arange(len(images), device=images.device)
            if best.success is not None and hasattr(objective, "select"):
                rows = torch.nonzero(~best.success).squeeze(1)
                if not len(rows):
                    break
            part = objective if len(rows) == len(images) else objective.select(rows)
            result = watched(attack, stop).for_images(rows).on(part, images[rows], places[rows])
            _enter(best, rank, result, rows)
            if stop.asked:
                break
        return best

    def for_images(self, indices: Tensor) -> "EnsembleAttack":
        """See [`Attack.for_images`][robustsim.attacks.Attack.for_images]."""
        return EnsembleAttack([attack.for_images(indices) for attack in self.attacks])


class Stop:
    """Whether a callback has asked to stop, for what would come after the attack that it stopped."""

    asked = False

    def listen(self, callback: Callback) -> Callback:
        """The callback, overheard."""

        def overheard(step: AttackStep) -> bool:
            wish = bool(callback(step))
            self.asked = self.asked or wish
            return wish

        return overheard


def watched(attack: Any, stop: Stop) -> Any:
    """An attack or ensemble, with its callbacks overheard."""
    if isinstance(attack, EnsembleAttack):
        return EnsembleAttack([watched(part, stop) for part in attack.attacks])
    return attack if attack.callback is None else replace(attack, callback=stop.listen(attack.callback))


def clean(objective: Any, images: Tensor, places: Tensor) -> AttackResult:
    """Nothing done yet."""
    copy = images.clone()
    loss, success, passes = ask(objective, copy)
    refuse_nan("before any attack", loss, places)
    queries = torch.full((len(images),), passes, device=images.device)
    distance = torch.zeros(len(images), dtype=images.dtype, device=images.device)
    return AttackResult(copy, success, loss, distance, queries, torch.zeros_like(queries))


def _enter(best: AttackResult, rank: Tensor, result: AttackResult, rows: Tensor) -> None:
    best.queries[rows] += result.queries
    best.gradients[rows] += result.gradients
    better = result.loss > rank[rows]
    if best.success is not None and result.success is not None:
        better = ~best.success[rows] & (result.success | better)
        best.success[rows] |= result.success
    taken = rows[better]
    rank[taken] = result.loss[better]
    for name in ("images", "loss", "distance"):
        getattr(best, name)[taken] = getattr(result, name)[better]


@dataclass(frozen=True, kw_only=True, eq=False)
class AutoAttack(Attack):
    """The ensemble of Croce and Hein (2020), for decisions: `Classification`, `TwoAFC`, OddOneOut.

    - `standard`: APGD on cross-entropy, APGD-T on targeted DLR, FAB-T, Square. In l1, as with its authors, APGD has
      five restarts and APGD-T five targets.
    - `plus`: APGD on cross-entropy and on DLR and FAB, with five restarts each; Square, APGD-T and FAB-T.
    - `rand`, for randomised models: APGD on cross-entropy and on DLR, each gradient the mean of 20 draws.

    DLR needs three classes and targeted DLR four: where there are fewer, the margin takes their place.

    Attributes:
        version: `standard`, `plus` or `rand`.
        steps: iterations of APGD and FAB.
        queries: of Square.
        targets: how many of the likeliest wrong classes APGD-T and FAB-T try; None for nine, in l1 five for the APGD-T
            of `standard`.
    """

    version: Version = "standard"
    steps: int = 100
    queries: int = 5000
    targets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in get_args(Version):
            raise InputError(f"version={self.version!r} is none of {', '.join(get_args(Version))}")
        # Whether the version has a use for them or not.
        self._read_counts("steps", "queries", *([] if self.targets is None else ["targets"]))
        self.attacks()  # refuses what does not fit

    def attacks(self) -> list[Attack]:
        """The parts, in order."""
        common: dict[str, Any] = {
            name: getattr(self, name) for name in ("norm", "eps", "bounds", "generator", "progress", "callback")
        }
        steps: dict[str, Any] = {**common, "steps": self.steps}
        several = 9 if self.targets is None else self.targets
        square = SquareAttack(**common, queries=self.queries)
        if self.version == "rand":
            return [APGD(**steps, eot=_DRAWS), APGD(**steps, eot=_DRAWS, loss="dlr")]
        if self.version == "plus":
            apgd = [APGD(**steps, restarts=_RESTARTS), APGD(**steps, restarts=_RESTARTS, loss="dlr")]
            fab = FAB(**steps, restarts=_RESTARTS, targets=None)
            return [*apgd, fab, square, APGD(**steps, targets=several), FAB(**steps, targets=several)]
        sparse = self.norm == "l1"
        return [
            APGD(**steps, restarts=_RESTARTS if sparse else 1),
            APGD(**steps, targets=5 if sparse and self.targets is None else several),
            FAB(**steps, targets=several),
            square,
        ]

    def attack(self, objective: Goal, region: Region, places: Tensor | None) -> AttackResult:
        needed = ["targeted", "success", "margin"] + (["with_loss"] if self.version != "standard" else [])
        if not all(hasattr(objective, name) for name in needed):
            raise InputError(
                f"AutoAttack needs an objective with classes, Classification or TwoAFC, with {', '.join(needed)}; for "
                "any other use EnsembleAttack([APGD(...), SquareAttack(...)])"
            )
        # Its first part is on cross-entropy, whatever the caller looks at.
        other = getattr(objective, "loss_name", None) != "ce" and hasattr(objective, "with_loss")
        standard = objective.with_loss("ce") if other else objective  # type: ignore[attr-defined]
        result = EnsembleAttack(self.attacks()).on(standard, region.originals, places)
        if standard is objective:
            return result
        loss, _, passes = ask(objective, result.images, success=False)
        refuse_nan(type(self).__name__, loss, places)
        return replace(result, loss=loss, queries=result.queries + passes)
