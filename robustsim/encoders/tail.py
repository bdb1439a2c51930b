"""How often two different pictures come near each other: the lower end of a model's distances, counted."""

import json
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import ROUND_UP, Context
from functools import lru_cache
from itertools import accumulate, islice, pairwise, takewhile
from math import ceil, floor, isfinite, sqrt
from typing import Any

from robustsim.encoders.binomial import upper_bound
from robustsim.errors import CardError, InputError

#: How sure a bound is, unless something else is asked for.
CONFIDENCE = 0.95

_MOST = 10**18  # pairs: more are a damaged file
_ROUNDING = 1e-6  # of a distance


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The pairs of different pictures that are nearest to each other, counted by distance.

    It turns a rate of false positives into a distance, and back. A rate is that of pairs: of a query and one picture
    that shows something else. Pairs are not independent of each other, as each picture is in many. So `effects` says
    how much more a count varies than one of independent pairs would, and a bound counts so many fewer pairs: the
    design effect of sample surveys (Korn and Graubard 1998, "Confidence intervals for proportions with small expected
    number of positive counts").

    Attributes:
        data: the pictures it was measured on.
        pictures: how many.
        pairs: of different ones among them, all of which were compared.
        distances: ascending, in [0, sqrt(2)].
        counts: how many pairs are at most that far from each other.
        effects: the variance of each count over that of as many independent pairs; at least 1.
        comparisons: how many a pair took, of which the nearest counts: 1, or views of one picture times those of the
            other.
    """

    data: str
    pictures: int
    pairs: int
    distances: tuple[float, ...]
    counts: tuple[int, ...]
    effects: tuple[float, ...]
    comparisons: int = 1

    def __post_init__(self) -> None:
        if len({len(self.distances), len(self.counts), len(self.effects)}) != 1 or not self.distances:
            raise CardError("a tail has as many counts and effects as distances, one at least")
        whole = (*self.counts, self.pairs, self.pictures, self.comparisons)
        if not all(isinstance(value, int) and value <= _MOST for value in whole):
            raise CardError("the counts of a tail, its pairs, pictures and comparisons are whole numbers")
        if any(low >= high for low, high in pairwise(self.distances)) or not self.distances[0] >= 0:
            raise CardError("the distances of a tail ascend from 0 or more")
        if not self.distances[-1] <= sqrt(2) + _ROUNDING:
            raise CardError(f"the distances of a tail lie in [0, 1.414], and one is {self.distances[-1]}")
        if any(low > high for low, high in pairwise(self.counts)):
            raise CardError("the counts of a tail do not descend")
        if not (self.counts[0] >= 0 and self.counts[-1] <= self.pairs and self.pairs >= 1 and self.pictures >= 2):
            raise CardError("the counts of a tail are those of its pairs: none is negative or above their number")
        if not all(isfinite(value) for value in (*self.distances, *self.effects)) or min(self.effects) < 1:
            raise CardError("the distances and effects of a tail are finite, and no effect is below 1")
        if self.comparisons < 1:
            raise CardError("a pair of a tail takes one comparison at least")

    def threshold(self, rate: float, confidence: float = CONFIDENCE) -> float:
        """The largest measured distance that at most such a share of pairs of different pictures keep within.

        Args:
            rate: above 0 and below 1: the Clopper-Pearson upper bound of the share is at most this.
            confidence: of that bound, one-sided.

        Raises:
            InputError: so few pairs cannot say so small a rate; the message names the smallest that they can.
        """
        if not 0 < rate < 1:
            raise InputError(f"a rate of false positives lies between 0 and 1, and {rate:g} does not")
        held = list(takewhile(lambda bound: bound <= rate, self._bounds(confidence)))
        if not held:
            raise InputError(
                f"{self.pairs:,} pairs of different pictures ({self.data}) cannot say a rate of {rate:g}: the smallest "
                f"that they can is {self.smallest_rate(confidence):g}"
            )
        return self.distances[len(held) - 1]

    def rate_bound(self, distance: float, confidence: float = CONFIDENCE) -> float:
        """No larger share of pairs of different pictures than this is at most that far apart, with that confidence.

        Beyond the largest distance that was measured nothing is known, and it is 1.

        Raises:
            InputError: it is no distance.
        """
        if not distance >= 0:
            raise InputError(f"a distance is 0 or more, not {distance}")
        place = bisect_left(self.distances, distance)
        return next(islice(self._bounds(confidence), place, None), 1.0)

    def smallest_rate(self, confidence: float = CONFIDENCE) -> float:
        """The smallest rate, in two digits, for which there is a `threshold`; 1 if there is none."""
        return rounded_up(next(self._bounds(confidence)))

    def to_json(self) -> str:
        """JSON, which [`from_json`][robustsim.encoders.Tail.from_json] reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Tail":
        """What `to_json` wrote.

        Raises:
            CardError: it is not that.
        """
        try:
            data: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()
            }
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CardError):
                raise
            raise CardError(f"this is no tail as JSON: {error}") from None

    def _bounds(self, confidence: float) -> Iterator[float]:
        """The bound at each distance, ascending: a smaller distance has no larger one."""
        bounds = (
            _bound(count, self.pairs, effect, confidence)
            for count, effect in zip(self.counts, self.effects, strict=True)
        )
        return accumulate(bounds, max)


def rounded_up(rate: float) -> float:
    """A rate in two digits, no smaller: who asks for it gets an answer."""
    return float(Context(prec=2, rounding=ROUND_UP).create_decimal(rate))


@lru_cache(maxsize=4096)
def _bound(count: int, pairs: int, effect: float, confidence: float) -> float:
    """As if there were `effect` times fewer pairs: whole ones, rounded to the safe side."""
    trials = max(1, floor(pairs / effect))
    return upper_bound(min(ceil(count / effect), trials), trials, confidence)
