"""How near different photographs come to each other: thresholds of a rate of false positives, and how sure they are."""

from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.binomial import upper_bound
from robustsim.encoders.pairs import NearPairs, effect
from robustsim.encoders.tail import CONFIDENCE
from robustsim.evaluation.statistics import STATISTIC_DRAWS, Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Numbers of the draws that are held at once: 64 MB.
_MOST_NUMBERS = 2**23


@dataclass(frozen=True)
class Limit:
    """The distance below which two pictures count as one, for a rate of false positives.

    Attributes:
        rate: that was asked for.
        distance: pairs of different photographs that are nearer are no larger share than that.
        within: how many are.
        pairs: how many were compared.
        rate_bound: no larger share of such pairs in general is that near, with 95 % confidence, as far as one can tell
            from photographs of this kind; pairs that share a photograph count as the dependent ones they are.
        supported: whether so many pairs can say so small a rate: at least one of them would have to be within it.
    """

    rate: float
    distance: float
    within: int
    pairs: int
    rate_bound: float
    supported: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def limit_of(near: NearPairs, rate: float) -> Limit:
    """The exact quantile of the distances of different photographs; that of the nearest pair where there are too few.

    Args:
        near: the nearest pairs, so many at least as the rate allows, and one.
        rate: above 0 and below 1.
    """
    allowed = min(_allowed(near.pairs, rate), len(near.distances) - 1)
    distance = float(near.distances[allowed])
    within = int(np.searchsorted(near.distances, distance, side="left"))
    dependence = effect(near, within)
    trials = max(1, floor(near.pairs / dependence))
    bound = upper_bound(min(ceil(within / dependence), trials), trials, CONFIDENCE)
    return Limit(rate, distance, within, near.pairs, bound, allowed >= 1)


def _allowed(pairs: float, rate: float) -> int:
    return int(rate * pairs * (1 + 1e-9))


def draw_photographs(count: int, seed: int) -> "NDArray[np.int64]":
    """How often each of so many photographs is in each resampling, (draws, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=STATISTIC_DRAWS)


def limits_of_draws(near: NearPairs, rate: float, times: Array, *, drawn: bool) -> Array:
    """The same quantile among the photographs of each resampling, (draws,): how sure a threshold is.

    A pair counts as often as both of its photographs are there, times each other; those of one picture are none.

    Args:
        near: as for `limit_of`.
        rate: likewise.
        times: of `draw_photographs`.
        drawn: whether the pairs were a sample, all of which `near` has, and not all there are.
    """
    most = min(len(near.distances), 4 * _allowed(near.pairs, rate) + 400)
    left, right, distances = near.left[:most], near.right[:most], near.distances[:most]
    found, block = [], max(1, _MOST_NUMBERS // max(most, len(near.left) if drawn else 1, times.shape[1]))
    for start in range(0, len(times), block):
        part = times[start : start + block]
        if drawn:
            pairs = (part[:, near.left] * part[:, near.right]).sum(1)
        else:
            own = np.stack([np.bincount(near.pictures, weights=one) for one in part])
            pairs = (part.sum(1) ** 2 - np.square(own).sum(1)) / 2
        within = np.cumsum(part[:, left] * part[:, right], axis=1)
        beyond = within > (rate * pairs * (1 + 1e-9))[:, None]
        found.append(distances[np.where(beyond.any(1), beyond.argmax(1), most - 1)])
    return np.concatenate(found)


def shares_of_draws(distances: Array, limits: Array, times: Array) -> Array:
    """The share of photographs whose copy is within each resampling's threshold, (draws,); NaN where there is none.

    Args:
        distances: (count,) of the copies; NaN where there is none.
        limits: of `limits_of_draws`.
        times: of `draw_photographs`.
    """
    known = ~np.isnan(distances)
    weights = times[:, known]
    counted = weights.sum(1).astype(float)
    found = (weights * (distances[known][None] < limits[:, None])).sum(1)
    shares: Array = np.divide(found, counted, out=np.full(len(times), np.nan), where=counted > 0)
    return shares
