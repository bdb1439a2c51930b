"""Is one metric better than another? Tests on the items that both have answered."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from robustsim.errors import InputError
from robustsim.evaluation import statistics
from robustsim.evaluation.reports import Report
from robustsim.evaluation.statistics import Array, Interval

_STATISTICS = {
    "jnd": {"average precision": statistics.average_precision},
    "quality": {
        "Spearman": statistics.spearman,
        "Pearson after logistic fit": statistics.pearson_after_logistic,
        "Kendall": statistics.kendall,
    },
}


@dataclass(frozen=True)
class Comparison:
    """Two reports in one measure.

    Attributes:
        measure: ``clean``, ``linf 4/255``, ``Spearman``, ...
        a: the first metric.
        b: the second.
        value_a: the first one's figure on the items that both have.
        value_b: the second one's.
        difference: ``value_a - value_b`` with its 95 % interval, by the paired bootstrap.
        p: of no difference, two-sided: for scores of items by exchanging the metrics at random (permutation test), for
            correlations and average precision from the paired bootstrap.
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


def compare_reports(reports: Sequence[Report], *, seed: int = 0) -> list[Comparison]:
    """Every pair of reports, in every measure that both have.

    Args:
        reports: two or more of one task on the same items.
        seed: of resampling and permutation.

    Raises:
        InputError: fewer than two; reports of different tasks or items.
    """
    if len(reports) < 2:
        raise InputError("a comparison needs at least two reports")
    first = reports[0]
    for other in reports[1:]:
        if other.task != first.task:
            raise InputError(f"{first.path.name} is on {first.task}, {other.path.name} on {other.task}")
        if other.content["data"]["items_sha256"] != first.content["data"]["items_sha256"]:
            raise InputError(f"{first.path.name} and {other.path.name} are not on the same items")
    names = _names(reports)
    found = [
        one
        for (name_a, a), (name_b, b) in combinations(zip(names, reports, strict=True), 2)
        for one in _pair(name_a, a, name_b, b, seed)
    ]
    return _holm(found)


def _names(reports: Sequence[Report]) -> list[str]:
    """The metrics' names, or those of the files where two are alike."""
    names = [report.metric for report in reports]
    return [name if names.count(name) == 1 else report.path.stem for name, report in zip(names, reports, strict=True)]


def _pair(name_a: str, a: Report, name_b: str, b: Report, seed: int) -> list[Comparison]:
    both = np.array([x is None and y is None for x, y in zip(a.items["error"], b.items["error"], strict=True)])
    found = []
    for measure, statistic in _STATISTICS.get(a.task, {}).items():
        columns = [report.items["distance"][both].astype(float) for report in (a, b)]
        found.append(
            _by_bootstrap(measure, name_a, name_b, statistic, columns, a.items["answer"][both].astype(float), seed)
        )
    if a.task not in _STATISTICS:
        found.append(_by_exchange("clean", name_a, name_b, *(one.items["score"] for one in (a, b)), a, both, seed))
    threats = [{(one["norm"], one["eps"]) for one in report.threats} for report in (a, b)]
    for norm, eps in sorted(threats[0] & threats[1], key=[(t["norm"], t["eps"]) for t in a.threats].index):
        held = [_held(report, eps) for report in (a, b)]
        attacked = both & _attacked(a) & _attacked(b)
        if _setting(a) == _setting(b) and attacked.any():
            found.append(_by_exchange(f"{norm} {eps}", name_a, name_b, *held, a, attacked, seed))
    return found


def _setting(report: Report) -> dict[str, Any]:
    """What an attack must share for its outcome to be compared."""
    return {name: value for name, value in report.content["attack"].items() if name not in ("eps", "items")}


def _attacked(report: Report) -> Array:
    return np.array([bool(one) for one in report.items["attacked"]])


def _held(report: Report, eps: str) -> Array:
    return np.array([float(one is True) for one in report.items[f"holds {eps}"]])


def _by_exchange(
    measure: str, name_a: str, name_b: str, a: Array, b: Array, report: Report, rows: Array, seed: int
) -> Comparison:
    x, y = a[rows].astype(float), b[rows].astype(float)
    found = statistics.paired_difference(x, y, clusters=report.items["cluster"][rows].astype(str), seed=seed)
    return Comparison(measure, name_a, name_b, float(x.mean()), float(y.mean()), found.interval, found.p)


def _by_bootstrap(
    measure: str,
    name_a: str,
    name_b: str,
    statistic: statistics.Statistic,
    distances: "list[Array]",
    answers: Array,
    seed: int,
) -> Comparison:
    def gap(a: Array, b: Array, answer: Array) -> float:
        return statistic(a, answer) - statistic(b, answer)

    draws = statistics.bootstrap_draws(gap, (*distances, answers), seed=seed)
    interval = statistics.interval_of(gap(*distances, answers), draws, len(answers))
    # Twice the share of the draws on the other side of 0, the observation itself counted.
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    p = min(1.0, 2 * (float(tail) + 1) / (len(draws) + 1))
    values = [statistic(one, answers) for one in distances]
    return Comparison(measure, name_a, name_b, values[0], values[1], interval, p)


def _holm(found: list[Comparison]) -> list[Comparison]:
    order, least = sorted(range(len(found)), key=lambda index: found[index].p), 0.0
    adjusted = list(found)
    for rank, index in enumerate(order):
        least = max(least, min(1.0, found[index].p * (len(found) - rank)))
        adjusted[index] = replace(found[index], p_adjusted=least)
    return adjusted
