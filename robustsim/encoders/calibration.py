"""What a model's distances mean, measured: those of unrelated photographs, and of photographs that were changed."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import exp, floor, inf, isfinite, log, log10, sqrt
from typing import Any, NamedTuple

from robustsim.encoders.tail import Tail
from robustsim.errors import CardError, InputError

_TWO_SIDED = 1.96  # standard errors on each side of a 95 % interval
# How far beyond the farthest change, or short of the nearest, a distance may be that is still "about as far".
_BEYOND, _SHORT = 1.1, 0.5
# Of an interval's width over its share: from there on, one digit of the share is all that is known.
_VAGUE = 0.3
_NOTHING = 1e-9  # a logarithm of less tells nothing
_YARDSTICK = "jpeg"  # the change that people know best

# The amount's place, and what it is multiplied with there.
_WORDS: Mapping[str, tuple[str, float]] = {
    "jpeg": ("JPEG at quality {:g}", 1),
    "blur": ("a blur of {:g} px", 1),
    "resize": ("a resize to {:g} % and back", 100),
    "crop": ("a crop to {:g} % of each side", 100),
    "mirror": ("mirroring", 1),
    "brightness": ("brightness at {:g} %", 100),
    "noise": ("noise of {:g} %", 100),
}


class Change(NamedTuple):
    """How far a known change takes photographs.

    Attributes:
        kind: `jpeg` (amount: quality), `blur` (standard deviation, pixels), `resize` (factor, and back), `crop` (the
            share of each side that stays, resized back), `mirror`, `brightness` (factor), `noise` (standard
            deviation, of pixels in [0, 1]).
        amount: see `kind`.
        median: the median distance of photographs.
        error: its standard error.
        low: below it is a tenth of the photographs.
        high: above it is a tenth.
    """

    kind: str
    amount: float
    median: float
    error: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """`JPEG at quality 15`."""
        words, factor = _WORDS.get(self.kind, (f"{self.kind} {{:g}}", 1))
        return words.format(round(factor * self.amount, 6))


class Share(NamedTuple):
    """A share of pairs, with its 95 % interval.

    Attributes:
        value: in [0, 1].
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


class Yardstick(NamedTuple):
    """A change that a distance is like.

    Attributes:
        relation: `nearer than`, `about as far as` or `farther than`.
        change: which.
    """

    relation: str
    change: Change

    @property
    def words(self) -> str:
        """`about as far as JPEG at quality 15`."""
        return f"{self.relation} {self.change.words}"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The measure of a model's distances, part of its card.

    `robustsim calibrate` makes one. It holds for pictures that nobody tampered with. The changes were made to pictures
    of the size that the model looks at: the same JPEG of a picture four times as large is a smaller change.

    Attributes:
        data: the photographs it was measured on.
        photographs: how many.
        pairs: pairs of unrelated ones among them.
        shares: of these pairs, ascending from 0 to 1.
        distances: below it is that share of the pairs; that of 0 is the smallest, that of 1 the largest.
        errors: standard errors of `distances`, from this collection alone.
        between: what distances of unrelated photographs differ by from one collection to another, as a standard
            deviation.
        between_changes: what the medians of changes differ by from one collection to another, as a share of them; a
            standard deviation.
        changes: rows of [`Change`][robustsim.encoders.Change].
        weights: SHA-256 of the encoder's state and preprocessing that it was measured with: it holds for no other.
        tail: how often different pictures are near each other, which turns a rate of false positives into a distance;
            None if it was not measured. It may be of other photographs than the rest.
    """

    data: str
    photographs: int
    pairs: int
    shares: tuple[float, ...]
    distances: tuple[float, ...]
    errors: tuple[float, ...]
    between: float
    between_changes: float
    changes: tuple[tuple[str, float, float, float, float, float], ...]
    weights: str
    tail: Tail | None = None

    def __post_init__(self) -> None:
        sizes = {len(self.shares), len(self.distances), len(self.errors)}
        numbers = [*self.shares, *self.distances, *self.errors, self.between, self.between_changes]
        for _, *values in self.changes:
            numbers += values
        if len(sizes) != 1 or len(self.shares) < 2 or not all(map(isfinite, numbers)):
            raise CardError("a calibration has as many shares as distances and errors, two at least, all finite")
        if (self.shares[0], self.shares[-1]) != (0, 1) or not (_ascends(self.shares) and _ascends(self.distances)):
            raise CardError("the shares of a calibration ascend from 0 to 1, and its distances with them")
        if not self.changes or any(not 0 <= low <= middle <= high for *_, middle, _, low, high in self.changes):
            raise CardError("a calibration holds at least one change, whose median lies between its low and high")
        if min(numbers) < 0 or self.pairs < 1:
            raise CardError("no number of a calibration is negative, and it is of at least one pair")

    @cached_property
    def known_changes(self) -> tuple[Change, ...]:
        """`changes`, with names."""
        return tuple(Change(*row) for row in self.changes)

    def find_change(self, kind: str, amount: float) -> Change:
        """One of `changes`.

        Raises:
            InputError: it was not measured.
        """
        for change in self.known_changes:
            if change.kind == kind and change.amount == amount:
                return change
        known = ", ".join(f"{change.kind} {change.amount:g}" for change in self.known_changes)
        raise InputError(f"{kind} {amount:g} was not measured; there are {known}")

    def error_of(self, change: Change) -> float:
        """The standard error of a change's median, that of other collections of photographs included."""
        return sqrt(change.error**2 + (self.between_changes * change.median) ** 2)

    def share_nearer(self, distance: float, *, squared: bool = False) -> Share:
        """Which share of pairs of unrelated photographs is nearer than this distance.

        The interval takes in what the measurement leaves open and what other collections of photographs differ by.

        Args:
            distance: of a pair, as the metric gives it.
            squared: whether it is `1 - similarity`.

        Raises:
            InputError: it is no distance.
        """
        d = _root(distance, squared)
        place = self._position(d)
        error = _between(self.errors, place)
        reach = _TWO_SIDED * sqrt(error**2 + self.between**2)
        return Share(self._share(d), self._share(d - reach), self._share(d + reach))

    def yardstick(self, distance: float, *, squared: bool = False) -> Yardstick:
        """The change that takes photographs about as far: JPEG where it can, and any other beyond it.

        Args:
            distance: as for [`share_nearer`][robustsim.encoders.Calibration.share_nearer].
            squared: likewise.

        Raises:
            InputError: it is no distance.
        """
        d = _root(distance, squared)
        usual = [change for change in self.known_changes if change.kind == _YARDSTICK] or list(self.known_changes)
        for known in (usual, self.known_changes):
            farthest = max(known, key=_median)
            if d <= _BEYOND * farthest.median:
                nearest = min(known, key=_median)
                if d < _SHORT * nearest.median:
                    return Yardstick("nearer than", nearest)
                return Yardstick("about as far as", min(known, key=lambda change: _ratio(change.median, d)))
        return Yardstick("farther than", farthest)

    def describe(self, distance: float, *, squared: bool = False) -> str:
        """A distance in words: `nearer than every one of 493,773 pairs of unrelated photographs; about as far as JPEG
        at quality 15`, or `nearer than 98 % of pairs of unrelated photographs; ...`.

        The share has as many digits as are known; where it is known by its size alone, the words say `about`.

        Args:
            distance: of a pair, as the metric gives it: a number, or a tensor of one.
            squared: whether it is `1 - similarity`.

        Raises:
            InputError: it is no distance.
        """
        d = _root(distance, squared)
        if d == 0:
            return "identical"
        return f"{self._among_unrelated(d)}; {self.yardstick(d).words}"

    def to_meaning(self, distance: float, *, squared: bool = False) -> dict[str, Any]:
        """The same for JSON: `text`, the share of unrelated pairs that are farther with its interval, the yardstick."""
        share, like = self.share_nearer(distance, squared=squared), self.yardstick(distance, squared=squared)
        return {
            "text": self.describe(distance, squared=squared),
            "nearer_than": 1 - share.value,
            "nearer_than_interval": [1 - share.high, 1 - share.low],
            "yardstick": {"relation": like.relation, "change": like.change.kind, "amount": like.change.amount},
        }

    def _among_unrelated(self, d: float) -> str:
        share = self.share_nearer(d)
        of = "pairs of unrelated photographs"
        if share.value in (0, 1):
            return f"{'farther' if share.value else 'nearer'} than every one of {self.pairs:,} {of}"
        # Beyond the outermost shares that were measured, there are a few pairs, and no more is known.
        if share.value < self.shares[1]:
            return f"nearer than over {_percent(1 - self.shares[1], self.shares[1], 1)} of {of}"
        if share.value > self.shares[-2]:
            return f"farther than over {_percent(self.shares[-2], 1 - self.shares[-2], 1)} of {of}"
        tail = min(share.value, 1 - share.value)
        width = share.high - share.low
        digits = 1 if width > _VAGUE * tail else 2
        return f"nearer than {'about ' * (width > tail)}{_percent(1 - share.value, tail, digits)} of {of}"

    def _position(self, d: float) -> float:
        """Where a distance lies among `distances`: 2.5 is in the middle between the third and the fourth."""
        if d <= self.distances[0]:
            return 0.0
        right = bisect_left(self.distances, d)
        if right == len(self.distances):
            return right - 1.0
        low, high = self.distances[right - 1], self.distances[right]
        return right - 1 + (d - low) / (high - low)

    def _share(self, d: float) -> float:
        place = self._position(d)
        left = min(int(place), len(self.shares) - 2)
        low, high = self.shares[left], self.shares[left + 1]
        part = place - left
        if low == 0 or high == 1:  # the logarithm ends there
            share = low + part * (high - low)
            return share if share in (0, 1) else min(max(share, 1 / self.pairs), 1 - 1 / self.pairs)
        logit = _logit(low) + part * (_logit(high) - _logit(low))
        return 1 / (1 + exp(-logit))


def _root(distance: Any, squared: bool) -> float:
    try:
        d = float(distance)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"a distance is one number, not {distance!r}: describe them one by one") from None
    if not 0 <= d < inf:
        raise InputError(f"a distance is 0 or more, not {d}")
    return sqrt(d) if squared else d


def _ascends(values: Sequence[float]) -> bool:
    return all(left <= right for left, right in pairwise(values))


def _between(values: Sequence[float], place: float) -> float:
    left = min(int(place), len(values) - 2)
    return values[left] + (place - left) * (values[left + 1] - values[left])


def _median(change: Change) -> float:
    return change.median


def _ratio(a: float, b: float) -> float:
    return abs(log(max(a, _NOTHING)) - log(max(b, _NOTHING)))


def _percent(share: float, tail: float, digits: int) -> str:
    """A share with so many digits of the smaller side, `tail`: 99.97 %, and neither 99.9713 nor 100."""
    decimals = digits - 1 - floor(log10(round(100 * tail, 9)))
    return f"{round(100 * share, decimals):.{max(0, decimals)}f} %"


def _logit(share: float) -> float:
    return log(share / (1 - share))
