"""Is one metric better than another? Tests on the items that both have answered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from robustsim.errors import InputError
from robustsim.evaluation import statistics
from robustsim.evaluation.reports.report import Report, metric_names
from robustsim.evaluation.statistics import Array, Interval

#: The figures of each task whose items have no score of their own, the one that it goes by first.
STATISTICS: dict[str, dict[str, statistics.Statistic]] = {
    "jnd": {"average precision": statistics.average_precision},
    "quality": {
        "Spearman": statistics.spearman,
        "Pearson after logistic fit": statistics.pearson_after_logistic,
        "Kendall": statistics.kendall,
    },
}
#: The columns that are compared of tasks whose items have a score each, and no decision: how they begin.
_COLUMNS = {
    "attention": ("tga", "comp_tga"),
    "retrieval": ("ap ",),
    "copies": ("found ",),
    "detection": ("right ", "detector ", "either "),
}

#: Heads of the cells that `compared` gives.
COMPARED = ("measure", "A", "A, %", "B", "B, %", "A - B, 95 %", "p", "p (Holm)")


@dataclass(frozen=True)
class Comparison:
    """Two reports in one measure.

    Attributes:
        measure: `clean`, `linf 4/255`, `Spearman`, ...
        a: the first metric.
        b: the second.
        value_a: the first one's figure on the items that both have.
        value_b: the second one's.
        difference: `value_a - value_b` with its 95 % interval, by the paired bootstrap.
        p: of no difference, two-sided: for scores of items by exchanging the metrics at random (permutation test), for
            correlations and average precision from the paired bootstrap; 1 where a figure is not defined.
        p_adjusted: the same after Holm's correction for all comparisons that were made together.
    """

    measure: str
    a: str
    b: str
    value_a: float
    value_b: float
    difference: Interval
    p: float
    p_adjusted: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not defined is None there."""
        found = {**vars(self), "difference": self.difference.to_dict()}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()
        }


def compare_reports(reports: Sequence[Report], *, seed: int = 0) -> list[Comparison]:
    """Every pair of reports, in every measure that both have.

    Args:
        reports: two or more of one task on the same items.
        seed: of resampling and permutation.

    Raises:
        InputError: fewer than two; reports of different tasks or items, or of inversion.
    """
    if len(reports) < 2:
        raise InputError("a comparison needs at least two reports")
    first = reports[0]
    for other in reports[1:]:
        if other.task != first.task:
            raise InputError(f"{first.path.name} is on {first.task}, {other.path.name} on {other.task}")
        if not first.same_data(other):
            raise InputError(f"{first.path.name} and {other.path.name} are not on the same items")
    if first.task == "inversion":
        raise InputError(
            f"{first.path.name} is on inversion, a matrix of models by models that holds all there is to compare: "
            "`robustsim evaluate table` shows it"
        )
    named = list(zip(_names(reports), reports, strict=True))
    return holm([one for a, b in combinations(named, 2) for one in _pair(a, b, seed)])


def _names(reports: Sequence[Report]) -> list[str]:
    """The metrics' names, or those of the files where two are alike."""
    names = metric_names(reports)
    return [name if names.count(name) == 1 else report.path.stem for name, report in zip(names, reports, strict=True)]


_Named: TypeAlias = tuple[str, Report]


def _pair(first: _Named, second: _Named, seed: int) -> list[Comparison]:
    names, (a, b) = (first[0], second[0]), (first[1], second[1])
    both = np.array([x is None and y is None for x, y in zip(a.items["error"], b.items["error"], strict=True)])
    if not both.any():
        raise InputError(f"{a.path.name} and {b.path.name} have no readable item in common")
    if a.task in _COLUMNS:
        return _of_columns(names, (a, b), both, seed)
    found = [
        _by_bootstrap(measure, names, statistic, [one.items["distance"][both] for one in (a, b)], a, both, seed)
        for measure, statistic in STATISTICS.get(a.task, {}).items()
    ]
    if a.task not in STATISTICS:
        found.append(_by_exchange("clean", names, [one.items["score"][both] for one in (a, b)], a, both, seed))
    if not (a.threats and b.threats and _setting(a) == _setting(b)):
        return found
    attacked = both & attacked_items(a) & attacked_items(b)
    theirs = {one["eps"] for one in b.threats}  # plans write equal radii alike
    for threat in a.threats:
        if threat["eps"] in theirs and attacked.any():
            held = [held_items(one, threat["eps"])[attacked] for one in (a, b)]
            measure = f"{threat['norm']} {threat['eps']}"
            found.append(_by_exchange(measure, names, held, a, attacked, seed))
    return found


def _of_columns(names: tuple[str, str], reports: tuple[Report, Report], rows: Array, seed: int) -> list[Comparison]:
    """Scores that each item has without attack, and those under attacks that both have met in the same way."""
    a, b = reports
    alike = _plan(a) is not None and _plan(a) == _plan(b)
    radii = tuple(f" {eps}" for report in reports for eps in (report.content["adversarial"] or {}).get("eps", ()))
    shared = [name for name in a.items if name.startswith(_COLUMNS[a.task]) and name in b.items]
    found = []
    for name in shared:
        # Not of every item: a query may have nothing to be found.
        known = rows & np.array(
            [x is not None and y is not None for x, y in zip(a.items[name], b.items[name], strict=True)]
        )
        if known.any() and (alike or not name.endswith(radii or ("\0",))):
            found.append(
                _by_exchange(name, names, [one.items[name][known].astype(float) for one in reports], a, known, seed)
            )
    return found


def _plan(report: Report) -> Any:
    """How pictures were attacked, but for the radii."""
    plan = report.content["adversarial"]
    return plan and {**{key: value for key, value in plan.items() if key != "eps"}, "seed": report.content["seed"]}


def _setting(report: Report) -> dict[str, Any]:
    """What an attack must share for its outcome to be compared."""
    return {name: value for name, value in report.content["attack"].items() if name not in ("eps", "items")}


def attacked_items(report: Report) -> Array:
    """Which items were attacked, (n,) bool."""
    return np.array([bool(one) for one in report.items["attacked"]])


def held_items(report: Report, eps: str) -> Array:
    """1 for each item that is right and stays so under attack, else 0, (n,)."""
    return np.array([float(one is True) for one in report.items[f"holds {eps}"]])


def _by_exchange(
    measure: str, names: tuple[str, str], scores: "list[Array]", report: Report, rows: Array, seed: int
) -> Comparison:
    clusters = report.items["cluster"][rows].astype(str)
    found = statistics.paired_difference(*scores, clusters=clusters, seed=seed)
    values = [float(side.mean()) for side in scores]
    return Comparison(measure, *names, values[0], values[1], found.interval, found.p)


def _by_bootstrap(
    measure: str,
    names: tuple[str, str],
    statistic: statistics.Statistic,
    distances: "list[Array]",
    report: Report,
    rows: Array,
    seed: int,
) -> Comparison:
    answers = report.items["answer"][rows]

    def gap(a: Array, b: Array, answer: Array) -> float:
        return statistic(a, answer) - statistic(b, answer)

    values = [statistic(side, answers) for side in distances]
    clusters = report.items["cluster"][rows].astype(str)
    draws = statistics.bootstrap_draws(gap, (*distances, answers), clusters=clusters, seed=seed)[:, 0]
    interval = statistics.interval_of(values[0] - values[1], draws, len(answers), units=len(set(clusters)))
    if math.isnan(interval.low):
        return Comparison(measure, *names, values[0], values[1], interval, 1.0)  # nothing that chance could not do
    return Comparison(measure, *names, values[0], values[1], interval, statistics.p_of_draws(draws))


def compared(one: Comparison) -> tuple[str, ...]:
    """A comparison as cells of a table."""
    a, b, gap = 100 * one.value_a, 100 * one.value_b, one.difference
    between = f"{100 * gap.value:+.1f}"
    if not math.isnan(gap.low):
        between += f" [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    return one.measure, one.a, f"{a:.1f}", one.b, f"{b:.1f}", between, f"{one.p:.4f}", f"{one.p_adjusted:.4f}"


def holm(found: list[Comparison]) -> list[Comparison]:
    """Comparisons with p corrected for their number by Holm's method."""
    order, least = sorted(range(len(found)), key=lambda index: found[index].p), 0.0
    adjusted = list(found)
    for rank, index in enumerate(order):
        least = max(least, min(1.0, found[index].p * (len(found) - rank)))
        adjusted[index] = replace(found[index], p_adjusted=least)
    return adjusted
