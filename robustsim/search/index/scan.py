"""The exact scan: every row that may belong to the answer is measured, the others are shown not to.

`upper` is a row's score over codes plus its bound (`robustsim.search.index.codes`): no exact score is above it. So for
a threshold, all rows whose `upper` reaches it are measured. For the k nearest, first the most promising ones are; their
k-th exact score is a threshold that the true k-th cannot lie below, and all rows that reach it are measured then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from robustsim.search.index.codes import ROUNDING, Codes, distances, encode, unit
from robustsim.search.index.kernels import make_kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Positions: TypeAlias = NDArray[np.int64]

# Bytes of codes multiplied at a time, and of scores held at a time.
_BLOCK, _SCORES = 1 << 20, 1 << 26
_MEASURED = 512  # rows read and measured at a time
_FEWEST = 64  # measured first, for the k nearest


@dataclass(frozen=True)
class Rows:
    """What is scanned.

    Attributes:
        codes: all rows.
        read: (positions, ascending) -> these rows in float16, (M, D).
        order: (N,): of rows at the same distance, the one with the smaller number comes first.
    """

    codes: Codes
    read: "Callable[[Positions], NDArray[np.float16]]"
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
    return [scan.nearest(k) for scan in _scans(rows, queries, allowed, kernel)]


def within(
    rows: Rows, queries: "NDArray[Any]", distance: float, *, allowed: "Positions | None" = None, **kernel: Any
) -> list[Found]:
    """All rows at most at that distance from each query; arguments as for `nearest`."""
    return [scan.within(distance) for scan in _scans(rows, queries, allowed, kernel)]


def _scans(
    rows: Rows, queries: "NDArray[Any]", allowed: "Positions | None", kernel: dict[str, Any]
) -> "Iterator[_Scan]":
    count = len(rows.codes) if allowed is None else len(allowed)
    together = max(1, _SCORES // (4 * max(1, count)))
    for start in range(0, len(queries), together):
        batch = np.asarray(queries[start : start + together])
        coded, exact = encode(batch), unit(batch)
        uppers = _uppers(rows.codes, coded, allowed, kernel)
        widest = float(rows.codes.residuals.max(initial=0) if allowed is None else
                       rows.codes.residuals[allowed].max(initial=0))  # fmt: skip
        for query, upper, residual in zip(exact, uppers, coded.residuals, strict=True):
            yield _Scan(rows, query, upper, allowed, widest + float(residual) + ROUNDING)


def _uppers(codes: Codes, queries: Codes, allowed: "Positions | None", kernel: dict[str, Any]) -> "NDArray[np.float32]":
    """Above each exact score, (Q, N) float32."""
    product = make_kernel(queries.values, **kernel)
    count = len(codes) if allowed is None else len(allowed)
    out = np.empty((len(queries), count), np.float32)
    step = max(1, _BLOCK // max(1, codes.values.shape[1]))
    for start in range(0, count, step):
        block: Any = slice(start, start + step) if allowed is None else allowed[start : start + step]
        if not len(values := codes.values[block]):
            break
        scores = product(values).T * queries.scales.astype(np.float64)[:, None]
        scores *= codes.scales[block].astype(np.float64)
        scores += codes.residuals[block].astype(np.float64)
        scores += queries.residuals.astype(np.float64)[:, None] + ROUNDING
        out[:, start : start + step] = scores
    return out


class _Scan:
    """One query against all rows that count."""

    def __init__(
        self,
        rows: Rows,
        query: "NDArray[np.float64]",
        upper: "NDArray[np.float32]",
        allowed: "Positions | None",
        bound: float,
    ) -> None:
        self._rows, self._query, self._upper, self._allowed, self._bound = rows, query, upper, allowed, bound

    def within(self, distance: float) -> Found:
        if distance < 0:
            return self._found(np.empty(0, np.int64), np.empty(0))
        places = np.flatnonzero(self._upper >= 1 - distance * distance - ROUNDING)
        positions, away = self._measure(places)
        near = away <= distance
        return self._found(positions[near], away[near], len(places))

    def nearest(self, k: int) -> Found:
        first = min(len(self._upper), max(_FEWEST, 2 * k))
        places = np.arange(len(self._upper))
        if first < len(places):
            places = np.sort(np.argpartition(-self._upper, first)[:first])
        positions, away = self._measure(places)
        if first < len(self._upper):
            # The true k-th is no farther than this one, so what cannot be as near as this one is not among them.
            worst = np.partition(away, k - 1)[k - 1]
            may_be = self._upper >= 1 - worst * worst - ROUNDING
            may_be[places] = False
            more = np.flatnonzero(may_be)
            measured = self._measure(more)
            positions, away = np.concatenate((positions, measured[0])), np.concatenate((away, measured[1]))
        return self._found(positions, away, len(positions), k)

    def _measure(self, places: "Positions") -> "tuple[Positions, NDArray[np.float64]]":
        positions = places if self._allowed is None else self._allowed[places]
        away = [
            distances(self._query, self._rows.read(positions[start : start + _MEASURED]))
            for start in range(0, len(positions), _MEASURED)
        ]
        return positions, np.concatenate(away) if away else np.empty(0)

    def _found(
        self, positions: "Positions", away: "NDArray[np.float64]", measured: int = 0, k: int | None = None
    ) -> Found:
        ranked = np.lexsort((self._rows.order[positions], away))[:k]
        return Found(positions[ranked], away[ranked], self._bound, measured)
