"""Intervals by the bootstrap, rank correlations, average precision, and tests of two metrics on the same questions.

Questions that share something (the distortions of one photograph) are drawn together, as a cluster: the interval would
be too narrow otherwise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustsim.errors import InputError, MissingDependencyError

Array: TypeAlias = NDArray[Any]
Statistic: TypeAlias = Callable[..., float]

DRAWS = 2000
#: Of a statistic that is computed anew for each draw.
STATISTIC_DRAWS = 1000
#: From fewer clusters nothing can be resampled: there is no interval.
LEAST_UNITS = 5
_FLIPS = 10_000
# Weights of draws that are held at once: 128 MB.
_MOST_NUMBERS = 2**24
_ALPHA = 0.05
# The logistic curve has four parameters.
_LEAST_FOR_A_CURVE = 10


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        n: questions behind it.
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not a number becomes None there."""
        ends = {name: getattr(self, name) for name in ("value", "low", "high")}
        return {**{name: None if math.isnan(end) else end for name, end in ends.items()}, "n": self.n}


def mean_interval(scores: Array, *, clusters: Array | None = None, seed: int = 0) -> Interval:
    """The mean of scores, with the percentile bootstrap's interval (Efron 1979).

    Where all scores are 0, or all 1, no resampling could show any doubt: there the far end is that of Clopper and
    Pearson for as many questions as there are clusters.

    Args:
        scores: (n,) in [0, 1], at least one.
        clusters: (n,) what questions are drawn together by; each its own if not given.
        seed: of the resampling.
    """
    value, n = float(scores.mean()), len(scores)
    rows = _units(clusters, n)
    low, high = _certain(value, int(rows.max()) + 1) or _ends(_means(scores, rows, seed))
    return Interval(value, low, high, n)


def share_of_draws(value: float, draws: Array, n: int, *, units: int) -> Interval:
    """A share in [0, 1] with the middle 95 % of its draws; where it is 0 or 1, as `mean_interval`.

    Args:
        value: the share.
        draws: (B,) the same of resampled units; NaN where it is not defined.
        n: questions behind it.
        units: how many were there to be drawn.
    """
    known = _certain(value, units)
    return interval_of(value, draws, n, units=units) if known is None else Interval(value, *known, n)


def mean_of_numbers(values: Array, *, clusters: Array | None = None, seed: int = 0) -> Interval:
    """The mean of numbers of any size, such as distances and cosines, with the percentile bootstrap's interval.

    Args:
        values: (n,), at least one.
        clusters: (n,) what numbers are drawn together by; each its own if not given.
        seed: of the resampling.
    """
    rows = _units(clusters, len(values))
    return interval_of(float(values.mean()), _means(values, rows, seed), len(values), units=int(rows.max()) + 1)


def _units(clusters: Array | None, n: int) -> Array:
    """The number of each question's cluster, (n,)."""
    return np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]


def _certain(value: float, units: int) -> tuple[float, float] | None:
    """The interval where resampling shows nothing: that of Clopper and Pearson where every score was the same."""
    doubt = 1 - (_ALPHA / 2) ** (1 / units)
    known = {0.0: (0.0, doubt), 1.0: (1 - doubt, 1.0)}.get(value)
    return (math.nan, math.nan) if known is None and units < LEAST_UNITS else known


def mean_of_groups(scores: Array, groups: Array, *, clusters: Array | None = None, seed: int = 0) -> Interval:
    """The mean of the groups' means, however many questions each has; a cluster may be in several groups."""
    rows, names = _units(clusters, len(scores)), np.unique(groups)
    parts = [groups == name for name in names]
    value = float(np.mean([scores[part].mean() for part in parts]))
    units = int(rows.max()) + 1
    sums = np.stack([np.bincount(rows[part], weights=scores[part], minlength=units) for part in parts], 1)
    counts = np.stack([np.bincount(rows[part], minlength=units) for part in parts], 1).astype(float)
    least = min(len(np.unique(rows[part])) for part in parts)
    known = _certain(value, least)
    if known is not None:
        return Interval(value, *known, len(scores))
    return interval_of(value, _ratios(sums, counts, seed).mean(1), len(scores), units=least)


def cluster_sums(scores: Array, clusters: Array | None = None) -> Array:
    """The sum of scores (n, k) in each cluster, (clusters, k)."""
    rows = _units(clusters, len(scores))
    return np.stack([np.bincount(rows, weights=column) for column in scores.T], 1)


def mean_draws(scores: Array, *, clusters: Array | None = None, seed: int = 0) -> Array:
    """Means of the columns of scores (n, k) whose rows are drawn by clusters, the same for all: (DRAWS, k)."""
    return _ratios(cluster_sums(scores, clusters), cluster_sums(np.ones_like(scores), clusters), seed)


def p_of_draws(draws: Array) -> float:
    """Of no difference, two-sided, from the bootstrap's draws of a difference (B,), those that are NaN left out.

    Twice the share of the draws on the other side of 0, the observation itself counted.
    """
    known = draws[~np.isnan(draws)]
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2 * (float(tail) + 1) / (len(known) + 1))


def _means(scores: Array, rows: Array, seed: int) -> Array:
    """Bootstrap means: clusters drawn with replacement, (DRAWS,)."""
    sums, counts = np.bincount(rows, weights=scores), np.bincount(rows).astype(float)
    return _ratios(sums[:, None], counts[:, None], seed)[:, 0]


def _ratios(sums: Array, counts: Array, seed: int) -> Array:
    """Bootstrap means of groups from their sums and counts in each cluster, (units, groups) -> (DRAWS, groups).

    NaN where none of a group's clusters was drawn.
    """
    units, generator, draws = len(sums), np.random.default_rng(seed), []
    chances = np.full(units, 1 / units)
    block = _block(units)
    for start in range(0, DRAWS, block):
        times = generator.multinomial(units, chances, size=min(block, DRAWS - start))
        drawn = times @ counts
        draws.append(np.divide(times @ sums, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0))
    return np.concatenate(draws)


def _block(units: int) -> int:
    """How many draws of so many units fit into memory at once."""
    return max(1, _MOST_NUMBERS // units)


def _ends(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, (_ALPHA / 2, 1 - _ALPHA / 2))
    return float(low), float(high)


def bootstrap_draws(
    statistic: Statistic,
    columns: "tuple[Array, ...]",
    *,
    clusters: Array | None = None,
    parts: "tuple[Array, ...]" = (),
    seed: int = 0,
) -> Array:
    """The statistic of columns (n,) whose rows are drawn with replacement, the same for all columns.

    Args:
        statistic: columns -> number.
        columns: (n,) each.
        clusters: (n,) what rows are drawn together by.
        parts: masks (n,) of rows of which the statistic is wanted by itself.
        seed: of the drawing.

    Returns:
        (draws, 1 + parts): of everything, and of each part; NaN where nothing of it was drawn.
    """
    rows = _units(clusters, len(columns[0]))
    order, generator = np.argsort(rows, kind="stable"), np.random.default_rng(seed)
    members = np.split(order, np.flatnonzero(np.diff(rows[order])) + 1)
    found = []
    for _ in range(STATISTIC_DRAWS):
        drawn = np.concatenate([members[unit] for unit in generator.integers(0, len(members), len(members))])
        chosen = (drawn, *(drawn[part[drawn]] for part in parts))
        found.append([statistic(*(column[one] for column in columns)) if len(one) else math.nan for one in chosen])
    return np.array(found)


def interval_of(value: float, draws: Array, n: int, *, units: int) -> Interval:
    """An estimate with the middle 95 % of its draws.

    Draws for which it is not defined (a correlation with a constant) are left out; there is no interval where most of
    them are, or where fewer than `LEAST_UNITS` clusters were there to be drawn.
    """
    defined = draws[~np.isnan(draws)]
    sure = units >= LEAST_UNITS and 2 * len(defined) > len(draws) and not math.isnan(value)
    low, high = _ends(defined) if sure else (math.nan, math.nan)
    return Interval(value, low, high, n)


def by_group(
    statistic: Statistic, columns: "tuple[Array, ...]", groups: Array, clusters: Array, *, seed: int = 0
) -> dict[str, Any]:
    """A statistic of columns (n,) overall, by group, and the mean of the groups, each with its interval; for JSON."""
    names = list(dict.fromkeys(groups.tolist()))
    masks = tuple(groups == name for name in names) if len(names) > 1 else ()
    draws = bootstrap_draws(statistic, columns, clusters=clusters, parts=masks, seed=seed)
    units = len(np.unique(clusters))
    found: dict[str, Any] = interval_of(statistic(*columns), draws[:, 0], len(groups), units=units).to_dict()
    if masks:
        values = [statistic(*(column[mask] for column in columns)) for mask in masks]
        own = [len(np.unique(clusters[mask])) for mask in masks]
        mean = interval_of(float(np.mean(values)), draws[:, 1:].mean(1), len(groups), units=min(own))
        found["mean_of_groups"] = mean.to_dict()
        found["groups"] = {
            name: interval_of(value, draws[:, 1 + place], int(masks[place].sum()), units=own[place]).to_dict()
            for place, (name, value) in enumerate(zip(names, values, strict=True))
        }
    return found


def average_precision(distances: Array, same: Array) -> float:
    """How well small distances find the pairs in which people saw no difference (LPIPS paper, section 4).

    The area below precision over recall, pairs taken by growing distance and precision made monotone, as PASCAL VOC
    does. Shares count as fractions of a pair. Pairs at one distance are taken together, so the order in a tie is of no
    use.

    Args:
        distances: (n,).
        same: (n,) share of people who saw no difference, in [0, 1].
    """
    total = float(same.sum())
    if total == 0:
        return math.nan
    order = np.argsort(distances, kind="stable")
    d, hits, seen = distances[order], np.cumsum(same[order]), np.arange(1, len(order) + 1)
    last = np.append(d[1:] != d[:-1], True)
    precision, recall = hits[last] / seen[last], hits[last] / total
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def scipy(name: str) -> Any:
    """A part of scipy.

    Raises:
        MissingDependencyError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"scipy.{name}")
    except ImportError as error:
        raise MissingDependencyError('statistics need scipy: pip install "robustsim[evaluation]"') from error


def spearman(distances: Array, quality: Array) -> float:
    """Spearman's rank correlation of closeness (minus the distance) with quality; NaN where either is constant."""
    if np.ptp(distances) == 0 or np.ptp(quality) == 0:
        return math.nan
    ranks = scipy("stats").rankdata
    return float(np.corrcoef(ranks(-distances), ranks(quality))[0, 1])


def kendall(distances: Array, quality: Array) -> float:
    """Kendall's tau-b of closeness with quality; NaN where either is constant."""
    if np.ptp(distances) == 0 or np.ptp(quality) == 0:
        return math.nan
    return float(scipy("stats").kendalltau(-distances, quality).statistic)


def pearson_after_logistic(distances: Array, quality: Array) -> float:
    """Pearson's correlation of quality with distances that a falling logistic curve brought to its scale.

    The curve of VQEG (2000) has four parameters, fitted by least squares:
    `b2 + (b1 - b2) / (1 + exp((b3 - d) / |b4|))` with `b1 <= b2`. Where quality grows with the distance there is
    none, and the (negative) correlation of closeness and quality is returned as it is; below ten points, where four
    parameters could fit anything, NaN.
    """
    if np.ptp(distances) == 0 or np.ptp(quality) == 0 or len(distances) < _LEAST_FOR_A_CURVE:
        return math.nan
    x = (distances - distances.mean()) / distances.std()  # so that the fit begins near its end, whatever the scale
    line = float(np.corrcoef(-x, quality)[0, 1])
    if line <= 0:
        return line
    expit, optimise = scipy("special").expit, scipy("optimize")

    def curve(b: Array) -> Any:
        return b[0] + abs(b[1]) * expit((b[2] - x) / (abs(b[3]) + 1e-9))

    start = (quality.min(), np.ptp(quality), 0.0, 1.0)
    fit = curve(optimise.least_squares(lambda b: curve(b) - quality, start, method="lm", max_nfev=200).x)
    # A line is a curve, too, where the search came to nothing.
    return line if np.ptp(fit) == 0 else max(line, float(np.corrcoef(fit, quality)[0, 1]))


@dataclass(frozen=True)
class Difference:
    """Two metrics on the same questions: mean of the first minus mean of the second.

    Attributes:
        interval: by the paired bootstrap.
        p: of no difference, two-sided, by exchanging the two metrics at random in each cluster.
    """

    interval: Interval
    p: float


def paired_difference(a: Array, b: Array, *, clusters: Array | None = None, seed: int = 0) -> Difference:
    """Compare scores (n,) of two metrics on the same questions.

    Raises:
        InputError: they are not as many.
    """
    if len(a) != len(b):
        raise InputError(f"{len(a)} scores against {len(b)}: a paired test needs the same questions")
    gap = a.astype(float) - b.astype(float)
    rows = _units(clusters, len(gap))
    sums = np.bincount(rows, weights=gap)
    interval = interval_of(float(gap.mean()), _means(gap, rows, seed), len(gap), units=len(sums))
    return Difference(interval, exchange_p(sums, seed=seed))


def exchange_p(gaps: Array, *, seed: int = 0) -> float:
    """Of no difference, two-sided: how often the sum of gaps (clusters,) is as large when signs are drawn at random.

    A gap's sign turns when the two metrics are exchanged in that cluster.
    """
    # Sums of shares that are equal may differ in their last digits.
    least = max(1e-12, 1e-9 * float(np.abs(gaps).max(initial=0)))
    moved = gaps[np.abs(gaps) > least]
    observed, generator, as_large = abs(moved.sum()), np.random.default_rng(seed), 0
    block = _block(max(1, len(moved)))
    for start in range(0, _FLIPS, block):
        signs = generator.integers(0, 2, (min(block, _FLIPS - start), len(moved)), dtype=np.int8) * 2 - 1
        as_large += int((np.abs(signs @ moved) >= observed - least).sum())
    return (as_large + 1) / (_FLIPS + 1)
