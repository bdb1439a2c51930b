"""Intervals by the bootstrap, rank correlations, average precision, and tests of two metrics on the same questions.

Questions that share something (the distortions of one photograph) are drawn together, as a cluster: the interval would
be too narrow otherwise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustsim.errors import InputError, MissingDependencyError

Array: TypeAlias = NDArray[Any]
Statistic: TypeAlias = Callable[..., float]

DRAWS = 2000
# Of a statistic that is computed anew for each draw.
_DRAWS_OF_A_STATISTIC = 1000
_FLIPS = 10_000
# Of draws that are held at once: 80 MB of weights for ten thousand questions.
_BLOCK = 1000
_ALPHA = 0.05
# The logistic curve has four parameters.
_LEAST_FOR_A_CURVE = 5


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
    _, rows = np.unique(np.arange(n) if clusters is None else clusters, return_inverse=True)
    low, high = _certain(value, int(rows.max()) + 1) or _ends(_means(scores, rows, seed))
    return Interval(value, low, high, n)


def _certain(value: float, units: int) -> tuple[float, float] | None:
    """The interval of Clopper and Pearson where every score was the same."""
    doubt = 1 - (_ALPHA / 2) ** (1 / units)
    return {0.0: (0.0, doubt), 1.0: (1 - doubt, 1.0)}.get(value)


def mean_of_groups(scores: Array, groups: Array, *, clusters: Array | None = None, seed: int = 0) -> Interval:
    """The mean of the groups' means, however many questions each has; each group is resampled by itself."""
    names, values, draws = np.unique(groups), [], []
    for index, name in enumerate(names):
        part = scores[groups == name]
        _, rows = np.unique(np.arange(len(part)) if clusters is None else clusters[groups == name], return_inverse=True)
        values.append(float(part.mean()))
        draws.append(_means(part, rows, seed + index))
    value = float(np.mean(values))
    units = len(scores) if clusters is None else len(np.unique(clusters))
    low, high = _certain(value, units) or _ends(np.mean(draws, axis=0))
    return Interval(value, low, high, len(scores))


def _means(scores: Array, rows: Array, seed: int) -> Array:
    """Bootstrap means: clusters drawn with replacement, (DRAWS,)."""
    sums, counts = np.bincount(rows, weights=scores), np.bincount(rows).astype(float)
    units, generator, draws = len(sums), np.random.default_rng(seed), []
    chances = np.full(units, 1 / units)
    for start in range(0, DRAWS, _BLOCK):
        times = generator.multinomial(units, chances, size=min(_BLOCK, DRAWS - start))
        draws.append((times @ sums) / (times @ counts))
    return np.concatenate(draws)


def _ends(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, (_ALPHA / 2, 1 - _ALPHA / 2))
    return float(low), float(high)


def statistic_interval(statistic: Statistic, parts: "Sequence[tuple[Array, ...]]", *, seed: int = 0) -> Interval:
    """Any statistic of columns (n,), resampled row by row; of several parts, the mean of theirs.

    Draws for which it is not defined (a correlation with a constant) are left out.
    """
    values = [statistic(*columns) for columns in parts]
    draws = [bootstrap_draws(statistic, columns, seed=seed + index) for index, columns in enumerate(parts)]
    return interval_of(float(np.mean(values)), np.mean(draws, axis=0), sum(len(columns[0]) for columns in parts))


def bootstrap_draws(statistic: Statistic, columns: "tuple[Array, ...]", *, seed: int = 0) -> Array:
    """The statistic of columns (n,) whose rows are drawn with replacement, the same for all columns."""
    n = len(columns[0])
    samples = np.random.default_rng(seed).integers(0, n, (_DRAWS_OF_A_STATISTIC, n))
    return np.array([statistic(*(column[rows] for column in columns)) for rows in samples])


def interval_of(value: float, draws: Array, n: int) -> Interval:
    """An estimate with the middle 95 % of its draws; those that are NaN are left out."""
    draws = draws[~np.isnan(draws)]
    low, high = _ends(draws) if len(draws) else (math.nan, math.nan)
    return Interval(value, low, high, n)


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


def _scipy(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"scipy.{name}")
    except ImportError as error:
        raise MissingDependencyError('statistics need scipy: pip install "robustsim[evaluation]"') from error


def spearman(distances: Array, quality: Array) -> float:
    """Spearman's rank correlation of closeness (minus the distance) with quality; NaN where either is constant."""
    if np.ptp(distances) == 0 or np.ptp(quality) == 0:
        return math.nan
    ranks = _scipy("stats").rankdata
    return float(np.corrcoef(ranks(-distances), ranks(quality))[0, 1])


def kendall(distances: Array, quality: Array) -> float:
    """Kendall's tau-b of closeness with quality; NaN where either is constant."""
    if np.ptp(distances) == 0 or np.ptp(quality) == 0:
        return math.nan
    return float(_scipy("stats").kendalltau(-distances, quality).statistic)


def pearson_after_logistic(distances: Array, quality: Array) -> float:
    """Pearson's correlation of quality with distances that a logistic curve of four parameters brought to its scale.

    The curve of VQEG (2000), fitted by least squares: ``b2 + (b1 - b2) / (1 + exp(-(d - b3) / |b4|))``.
    """
    if np.ptp(distances) == 0 or np.ptp(quality) == 0:
        return math.nan
    x = (distances - distances.mean()) / distances.std()  # so that the fit begins near its end, whatever the scale
    line = np.corrcoef(x, quality)[0, 1]
    if len(x) < _LEAST_FOR_A_CURVE:
        return float(abs(line))
    expit, optimise = _scipy("special").expit, _scipy("optimize")

    def curve(b: Array) -> Any:
        return b[1] + (b[0] - b[1]) * expit((x - b[2]) / (abs(b[3]) + 1e-9))

    ends = (quality.min(), quality.max()) if line < 0 else (quality.max(), quality.min())
    found = optimise.least_squares(lambda b: curve(b) - quality, (*ends, 0.0, 1.0), method="lm", max_nfev=200)
    fit = curve(found.x)
    # A line is a curve, too, where the search came to nothing.
    return float(abs(line) if np.ptp(fit) == 0 else max(abs(line), np.corrcoef(fit, quality)[0, 1]))


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
    _, rows = np.unique(np.arange(len(gap)) if clusters is None else clusters, return_inverse=True)
    sums = np.bincount(rows, weights=gap)
    moved = sums[sums != 0]
    low, high = _ends(_means(gap, rows, seed))
    observed, generator, as_large = abs(moved.sum()), np.random.default_rng(seed), 0
    for start in range(0, _FLIPS, _BLOCK):
        signs = generator.integers(0, 2, (min(_BLOCK, _FLIPS - start), len(moved))) * 2 - 1
        as_large += int((np.abs(signs @ moved) >= observed - 1e-9).sum())
    return Difference(Interval(float(gap.mean()), low, high, len(gap)), (as_large + 1) / (_FLIPS + 1))
