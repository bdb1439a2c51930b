"""Does the mean of a metric over several sets differ from that of another by more than chance?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from zlib import crc32

import numpy as np

from robustsim.errors import InputError
from robustsim.evaluation import statistics
from robustsim.evaluation.reports.comparison import STATISTICS, Comparison, attacked_items, held_items
from robustsim.evaluation.reports.report import Report
from robustsim.evaluation.statistics import Array


@dataclass(frozen=True)
class _Part:
    """What some metrics have of one set, on the items that all of them have.

    Attributes:
        values: their scores, (metrics,).
        draws: the same of resampled clusters, (draws, metrics).
        shares: what each cluster adds to the scores, (clusters, metrics), where these are means; else None.
        n: how many items.
        units: how many clusters.
    """

    values: Array
    draws: Array
    shares: Array | None
    n: int
    units: int


def compare_means(
    measure: str, metrics: Sequence[str], sets: Sequence[Sequence[Report]], eps: str | None, *, seed: int = 0
) -> list[Comparison]:
    """Every two metrics, by the means of their scores over sets; see [`over_sets`][robustsim.evaluation.over_sets].

    Args:
        measure: what the scores are called.
        metrics: names, at least two.
        sets: of each set the report of each metric, in their order.
        eps: the radius under which they are compared; None for no attack.
        seed: of resampling and exchange.

    Raises:
        InputError: the metrics have no readable item of a set in common.
    """
    # Sets are drawn independently of each other, also those that have as many clusters; one alone as two reports are.
    seeds = [_own_seed(reports[0], seed) for reports in sets] if len(sets) > 1 else [seed]
    parts = [_part(reports, eps, own) for reports, own in zip(sets, seeds, strict=True)]
    least = min(len(part.draws) for part in parts)
    values = np.mean([part.values for part in parts], 0)
    draws = np.mean([part.draws[:least] for part in parts], 0)
    n, units = sum(part.n for part in parts), min(part.units for part in parts)
    shares = [part.shares / len(parts) for part in parts if part.shares is not None]
    found = []
    for (one, a), (two, b) in combinations(enumerate(metrics), 2):
        value, drawn = float(values[one] - values[two]), draws[:, one] - draws[:, two]
        interval = statistics.interval_of(value, drawn, n, units=units)
        if len(shares) == len(parts):
            p = statistics.exchange_p(np.concatenate([part[:, one] - part[:, two] for part in shares]), seed=seed)
        else:
            p = 1.0 if math.isnan(interval.low) else statistics.p_of_draws(drawn)
        found.append(Comparison(measure, a, b, float(values[one]), float(values[two]), interval, p))
    return found


def _own_seed(report: Report, seed: int) -> int:
    return crc32(f"{seed} {report.task} {report.content['data']['items_sha256']}".encode())


def _part(reports: Sequence[Report], eps: str | None, seed: int) -> _Part:
    first = reports[0]
    both = np.all([[error is None for error in report.items["error"]] for report in reports], 0)
    if eps is not None:
        both &= np.all([attacked_items(report) for report in reports], 0)
    if not both.any():
        raise InputError(f"{', '.join(report.path.name for report in reports)} have no readable item in common")
    clusters = first.items["cluster"][both].astype(str)
    n, units = int(both.sum()), len(np.unique(clusters))
    if eps is None and first.task in STATISTICS:
        statistic = next(iter(STATISTICS[first.task].values()))
        pairs = [(report.items["distance"][both], report.items["answer"][both]) for report in reports]
        drawn = [statistics.bootstrap_draws(statistic, pair, clusters=clusters, seed=seed)[:, 0] for pair in pairs]
        return _Part(np.array([statistic(*pair) for pair in pairs]), np.stack(drawn, 1), None, n, units)
    scores = np.stack([report.items["score"] if eps is None else held_items(report, eps) for report in reports], 1)
    sums = statistics.cluster_sums(scores[both], clusters)
    return _Part(
        scores[both].mean(0),
        statistics.mean_draws(scores[both], clusters=clusters, seed=seed),
        sums / n,
        n,
        units,
    )
