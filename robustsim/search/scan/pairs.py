"""All pairs of rows within a distance, none of them missed: the exact scan of an index against itself.

Every row is a query here, and has been coded already: the bound of `robustsim.search.scan.codes` holds with the row's
own residual in the place of the query's. A pair whose score over codes lies more than both residuals and `ROUNDING`
below the threshold is farther apart; all others are measured.

The products of half of the matrix are computed, tile by tile, and each is compared with a whole number: with the
smallest product that some pair of that row and those columns would need. The columns of a tile are alike in their
scales, as rows are taken in the order of these, so few products pass in vain; those are compared one by one then.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robustsim.errors import InputError
from robustsim.images.files import prefetch, worker_count
from robustsim.search.scan.codes import ROUNDING, Codes, distances, unit
from robustsim.search.scan.exact import Rows
from robustsim.search.scan.kernels import Kernel, make_kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows of a tile, its columns, and how many of these are multiplied at a time: they and the rows stay in the cache.
_DOWN, _ACROSS, _PACKED = 256, 1024, 96
_TOGETHER = 1 << 15  # pairs that are measured together, if there are so many
_BYTES = 1 << 26  # of rows held in float64 at a time
_MEASURED = 1 << 19  # values of such rows subtracted at a time


class Pairs(NamedTuple):
    """Some of the pairs, each of which comes once.

    Attributes:
        first: (M,) int64, position of a row.
        second: (M,) int64, position of the other, always the larger one.
        distances: (M,) float64, as `robustsim.search.scan.codes.distances` has them.
    """

    first: "NDArray[np.int64]"
    second: "NDArray[np.int64]"
    distances: "NDArray[np.float64]"


def pairs_within(
    rows: Rows,
    distance: float,
    *,
    pictures: "NDArray[np.int64] | None" = None,
    allowed: "NDArray[np.int64] | None" = None,
    split: int | None = None,
    threads: int | None = None,
    progress: Callable[[int], object] = lambda compared: None,
    **kernel: Any,
) -> Iterator[Pairs]:
    """All pairs of rows at most at that distance from each other. Memory is some hundred megabytes, however many.

    Args:
        rows: what is scanned.
        distance: from 0 to sqrt(2).
        pictures: (N,), which picture each row belongs to: pairs of rows of one picture do not count. None: each row
            is one.
        allowed: positions, ascending, of the rows that count; None for all.
        split: only pairs of a row before this place with one from it on count; None for all pairs.
        threads: that multiply; None for as many as there are cores.
        progress: called with the number of pairs compared since the last call; N (N - 1) / 2 in the end, if all count.
        kernel: for `make_kernel`.

    Raises:
        InputError: no such distance.
    """
    if not 0 <= distance <= 2**0.5:
        raise InputError(f"distance must be from 0 to 1.414, not {distance}")
    positions = np.arange(len(rows.codes)) if allowed is None else np.asarray(allowed, np.int64)
    # As the scan has it: `upper` is at least the exact score, which rounding may move by ROUNDING once more.
    needed = 1 - distance * distance - ROUNDING
    tiles = _Tiles(rows.codes, positions, pictures, needed, kernel, split)
    held: list[NDArray[np.int64]] = []
    waiting = 0
    workers = worker_count() if threads is None else threads
    for candidates, compared in prefetch(tiles.compare, tiles, workers=workers, ahead=2 * workers):
        if len(candidates):
            held.append(candidates)
            waiting += len(candidates)
        if waiting >= _TOGETHER:
            yield from _measure(rows, np.concatenate(held), distance)
            held, waiting = [], 0
        progress(compared)
    if held:
        yield from _measure(rows, np.concatenate(held), distance)


class _Columns(NamedTuple):
    start: int
    stop: int
    kernels: list[tuple[int, int, Kernel]]  # of the columns from one place to another


class _Tiles:
    """The upper half of the matrix: rows by their scales, each with those at its own place and later.

    Where the rows are split, those of the one half with those of the other, which come one after the other here.
    """

    def __init__(
        self,
        codes: Codes,
        positions: "NDArray[np.int64]",
        pictures: "NDArray[np.int64] | None",
        needed: float,
        kernel: dict[str, Any],
        split: int | None,
    ) -> None:
        self._codes, self._pictures, self._needed, self._kernel = codes, pictures, needed, kernel
        halves = [positions] if split is None else [positions[positions < split], positions[positions >= split]]
        self._order = np.concatenate([half[np.argsort(codes.scales[half], kind="stable")] for half in halves])
        self._split = None if split is None else len(halves[0])
        self._scales = codes.scales[self._order].astype(np.float64)
        self._residuals = codes.residuals[self._order].astype(np.float64)

    def __iter__(self) -> Iterator[tuple[_Columns, int]]:
        count = len(self._order)
        across = count if self._split is None else self._split
        for start in range(0, across, _ACROSS):
            stop = min(start + _ACROSS, across)
            block = self._codes.values[self._order[start:stop]]
            kernels = [
                (start + at, min(start + at + _PACKED, stop), make_kernel(block[at : at + _PACKED], **self._kernel))
                for at in range(0, stop - start, _PACKED)
            ]
            for row in range(start if self._split is None else self._split, count, _DOWN):
                yield _Columns(start, stop, kernels), row

    def compare(self, tile: "tuple[_Columns, int]") -> "tuple[NDArray[np.int64], int]":
        """The pairs of a tile that may be near, (M, 2) positions, and how many were compared."""
        columns, row = tile
        rows = slice(row, min(row + _DOWN, len(self._order)))
        block = self._codes.values[self._order[rows]]
        found = [self._candidates(kernel(block), rows, start, stop) for start, stop, kernel in columns.kernels]
        # Of the columns' own rows, those at later places count.
        later = np.arange(rows.start, rows.stop)[:, None] > np.arange(columns.start, columns.stop)
        return np.concatenate(found), int(later.sum())

    def _candidates(self, products: "NDArray[Any]", rows: slice, start: int, stop: int) -> "NDArray[np.int64]":
        scales, residuals = self._scales[start:stop], self._residuals[start:stop]
        missing = self._needed - ROUNDING - self._residuals[rows] - residuals.max()
        # The least that a product must be: of positive scores where scales are largest, of others where they are least.
        least = np.floor(missing / (self._scales[rows] * np.where(missing > 0, scales.max(), scales.min()))) - 1
        least = np.clip(least, np.iinfo(np.int32).min, np.iinfo(np.int32).max).astype(np.int32)
        place = np.flatnonzero(products >= least[:, None])
        down, across = np.divmod(place, stop - start)
        scores = products.reshape(-1)[place] * (self._scales[rows][down] * scales[across])
        upper = scores + self._residuals[rows][down] + residuals[across] + ROUNDING
        counts = (upper >= self._needed) & (down + rows.start > across + start)
        first, second = self._order[rows][down[counts]], self._order[start:stop][across[counts]]
        if self._pictures is not None:
            others = self._pictures[first] != self._pictures[second]
            first, second = first[others], second[others]
        return np.stack((np.minimum(first, second), np.maximum(first, second)), axis=1)


def _measure(rows: Rows, pairs: "NDArray[np.int64]", distance: float) -> Iterator[Pairs]:
    """Those of the pairs that are near, measured; in parts, where they have more rows than are held."""
    if not len(pairs):
        return
    every, places = np.unique(pairs, return_inverse=True)
    most = max(2 * _DOWN, _BYTES // (8 * rows.codes.values.shape[1]))
    if len(every) > most and len(pairs) > most // 2:
        # Halves that share few rows, as tiles of the matrix do.
        side = int(np.ptp(pairs[:, 1]) > np.ptp(pairs[:, 0]))
        middle = len(pairs) // 2
        ordered = pairs[np.argsort(pairs[:, side], kind="stable")]
        yield from _measure(rows, ordered[:middle], distance)
        yield from _measure(rows, ordered[middle:], distance)
        return
    wide = unit(rows.read(every))
    first, second = places.reshape(pairs.shape).T
    away = np.empty(len(pairs))
    step = max(1, _MEASURED // wide.shape[1])
    for at in range(0, len(pairs), step):
        some = slice(at, at + step)
        away[some] = distances(wide[first[some]], wide[second[some]])
    near = away <= distance
    yield Pairs(pairs[near, 0], pairs[near, 1], away[near])
