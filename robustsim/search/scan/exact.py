"""The exact scan: every row that may belong to the answer is measured, the others are shown not to.

`upper` is a row's score over codes plus its bound (`robustsim.search.scan.codes`): no exact score is above it. So for
a threshold, all rows whose `upper` reaches it are measured. For the k nearest, first the most promising ones are; their
k-th exact score is a threshold that the true k-th cannot lie below, and all rows that reach it are measured then.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from robustsim.search.scan.codes import ROUNDING, Codes, distances, encode, unit
from robustsim.search.scan.kernels import make_kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Positions: TypeAlias = NDArray[np.int64]

#: (positions, ascending) -> these rows in float16, (M, D).
Read: TypeAlias = "Callable[[Positions], NDArray[np.float16]]"

# Bytes of codes multiplied at a time, and of scores held at a time.
_BLOCK, _SCORES = 1 << 23, 1 << 26
_MEASURED = 512  # rows read and measured at a time
_FEWEST = 16  # measured first, for the k nearest
# Values of which the largest is taken first, and how many times as many pieces of them there are as are looked for.
_PIECE, _SPARE = 512, 16


@dataclass(frozen=True)
class Rows:
    """What is scanned.

    Attributes:
        codes: all rows.
        read: (positions, ascending) -> these rows in float16, (M, D).
        order: (N,): of rows at the same distance, the one with the smaller number comes first.
    """

    codes: Codes
    read: Read
    order: "NDArray[np.int64]"


@dataclass(frozen=True)
class Found:
    """What was found for one query, the nearest first.

    Attributes:
        positions: (M,) int64, of the rows.
        distances: (M,) float64.
        bound: no row's exact score differs from its score over codes by more.
        measured: how many rows were measured exactly.
    """

    positions: "Positions"
    distances: "NDArray[np.float64]"
    bound: float
    measured: int


def nearest(
    rows: Rows, queries: "NDArray[Any]", k: int, *, allowed: "Positions | None" = None, **kernel: Any
) -> list[Found]:
    """The k nearest rows to each query, all of them if there are fewer.

    Args:
        rows: what is scanned.
        queries: (Q, D) embeddings.
        k: how many.
        allowed: positions, ascending, of the rows that count; None for all.
        kernel: for `make_kernel`.
    """
    return [found for scan in _scans(rows, queries, allowed, kernel) for found in scan.nearest(k)]


def within(
    rows: Rows, queries: "NDArray[Any]", distance: float, *, allowed: "Positions | None" = None, **kernel: Any
) -> list[Found]:
    """All rows at most at that distance from each query; arguments as for `nearest`."""
    return [found for scan in _scans(rows, queries, allowed, kernel) for found in scan.within(distance)]


def _scans(
    rows: Rows, queries: "NDArray[Any]", allowed: "Positions | None", kernel: dict[str, Any]
) -> "Iterator[_Scan]":
    count = len(rows.codes) if allowed is None else len(allowed)
    together = max(1, _SCORES // (4 * max(1, count)))
    for start in range(0, len(queries), together):
        yield _Scan(rows, np.asarray(queries[start : start + together]), allowed, kernel)


def _uppers(codes: Codes, queries: Codes, allowed: "Positions | None", kernel: dict[str, Any]) -> "NDArray[np.float32]":
    """Above each exact score, (Q, N) float32."""
    product = make_kernel(queries.values, **kernel)
    count = len(codes) if allowed is None else len(allowed)
    out = np.empty((len(queries), count), np.float32)
    step = max(1, _BLOCK // max(1, codes.values.shape[1]))
    for start in range(0, count, step):
        block: Any = slice(start, start + step) if allowed is None else allowed[start : start + step]
        scores = product(codes.values[block]).T * queries.scales.astype(np.float64)[:, None]
        scores *= codes.scales[block].astype(np.float64)
        scores += codes.residuals[block].astype(np.float64)
        scores += queries.residuals.astype(np.float64)[:, None] + ROUNDING
        out[:, start : start + step] = scores
    return out


def _largest(values: "NDArray[np.float32]", count: int) -> "Positions":
    """Where the largest values are, so many of them, ascending."""
    if count >= len(values):
        return np.arange(len(values))
    # As many pieces as are looked for have a value that reaches this bound, and few values of others do: these are
    # sorted out, in a twentieth of the time that all of them would take.
    piece = min(_PIECE, max(1, len(values) // (_SPARE * count)))
    tops = values[: len(values) // piece * piece].reshape(-1, piece).max(1)
    some = np.flatnonzero(values >= np.partition(tops, len(tops) - count)[len(tops) - count])
    return np.sort(some[np.argpartition(values[some], len(some) - count)[len(some) - count :]])


def measure(read: "Read", queries: "NDArray[np.float64]", places: "Sequence[Positions]") -> "list[NDArray[np.float64]]":
    """Distances of each query to rows of its own; a row that several ask for is read once.

    Args:
        read: as of `Rows`.
        queries: (Q, D), of `unit`.
        places: for each query, positions of rows, ascending.

    Returns:
        For each query, (M,).
    """
    out = [np.empty(len(one)) for one in places]
    every = np.unique(np.concatenate(places))
    for start in range(0, len(every), _MEASURED):
        block = every[start : start + _MEASURED]
        rows = unit(read(block))
        for query, wanted, away in zip(queries, places, out, strict=True):
            begin, end = np.searchsorted(wanted, block[0]), np.searchsorted(wanted, block[-1], "right")
            if begin < end:
                away[begin:end] = distances(query, rows[np.searchsorted(block, wanted[begin:end])])
    return out


class _Scan:
    """Some queries against all rows that count."""

    def __init__(
        self, rows: Rows, queries: "NDArray[Any]", allowed: "Positions | None", kernel: dict[str, Any]
    ) -> None:
        coded = encode(queries)
        self._rows, self._allowed, self._queries = rows, allowed, unit(queries)
        self._upper = _uppers(rows.codes, coded, allowed, kernel)
        residuals = rows.codes.residuals if allowed is None else rows.codes.residuals[allowed]
        self._bounds = coded.residuals.astype(np.float64) + residuals.max(initial=0) + ROUNDING

    def within(self, distance: float) -> list[Found]:
        places = [np.flatnonzero(upper >= 1 - distance * distance - ROUNDING) for upper in self._upper]
        return [
            self._found(number, places[number][away <= distance], away[away <= distance], len(away))
            for number, away in enumerate(self._measure(places))
        ]

    def nearest(self, k: int) -> list[Found]:
        count = self._upper.shape[1]
        first = min(count, max(_FEWEST, 2 * k))
        places = [_largest(upper, first) for upper in self._upper]
        aways = self._measure(places)
        if first < count:
            # The true k-th is no farther than this one, so what cannot be as near as this one is not among them.
            worst = [np.partition(away, k - 1)[k - 1] for away in aways]
            more = []
            for upper, known, limit in zip(self._upper, places, worst, strict=True):
                may_be = upper >= 1 - limit * limit - ROUNDING
                may_be[known] = False
                more.append(np.flatnonzero(may_be))
            places = [np.concatenate(pair) for pair in zip(places, more, strict=True)]
            aways = [np.concatenate(pair) for pair in zip(aways, self._measure(more), strict=True)]
        return [
            self._found(number, *pair, len(pair[0]), k) for number, pair in enumerate(zip(places, aways, strict=True))
        ]

    def _measure(self, places: "Sequence[Positions]") -> "list[NDArray[np.float64]]":
        allowed = self._allowed
        return measure(self._rows.read, self._queries, [one if allowed is None else allowed[one] for one in places])

    def _found(
        self,
        number: int,
        places: "Positions",
        away: "NDArray[np.float64]",
        measured: int,
        k: int | None = None,
    ) -> Found:
        positions = places if self._allowed is None else self._allowed[places]
        ranked = np.lexsort((self._rows.order[positions], away))[:k]
        return Found(positions[ranked], away[ranked], float(self._bounds[number]), measured)
