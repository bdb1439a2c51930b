"""The nearest of all pairs of different pictures, found by blocks, and the tail that they make."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.tail import Tail
from robustsim.errors import EncodingError, InputError, RobustSimError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rows of one block: two of them, in float64, and their products are all that is held besides the nearest pairs.
BLOCK = 1024
#: How many of the nearest pairs are kept: a tail ends there.
KEPT = 200_000

_STEP = 1e-4  # of the distances of a tail
_GROWTH = 1.15  # of its counts, from one distance to the next
_DIGIT = 2.0**-52


@dataclass(frozen=True)
class NearPairs:
    """The nearest pairs of different pictures, the nearest first.

    Attributes:
        left: (M,) int64, a row.
        right: (M,) int64, the other, with a larger number.
        distances: (M,) float64, ascending, and none larger than it is: what rounding may add is taken off.
        below: all pairs nearer than this are among them.
        pairs: of rows of different pictures, all of which were compared; of `nearest_rows`, of pictures.
        pictures: (N,) int64: which picture each row is of, from 0 on.
    """

    left: "NDArray[np.int64]"
    right: "NDArray[np.int64]"
    distances: "NDArray[np.float64]"
    below: float
    pairs: int
    pictures: "NDArray[np.int64]"


def near_pairs(
    read: "Callable[[NDArray[np.int64]], NDArray[Any]]",
    pictures: "Sequence[Any] | NDArray[Any]",
    *,
    squared: "Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]] | None" = None,
    kept: int = KEPT,
    block: int = BLOCK,
    progress: Callable[[int], object] = lambda pairs: None,
) -> NearPairs:
    """Compare all pairs of rows of different pictures, and keep the nearest.

    Distances are computed in float64. What is held is two blocks of rows and some times `kept` pairs; rows are read
    once for each block that precedes them.

    Args:
        read: (positions, ascending) -> these rows, (M, D), of any floating type; of length 1, or divided by it.
        pictures: (N,) which picture each row is of: rows of one, such as its views, are no pair.
        squared: (rows (n, ...), rows (m, ...)), as they were read -> (n, m) float64, squares of distances, for other
            ones than those of unit rows; `distances` are their roots.
        kept: how many pairs at least, if there are so many; fewer where many are equally far apart.
        block: rows that are read and compared at a time.
        progress: called with the number of pairs compared since the last call, those of one picture included.

    Raises:
        InputError: all rows are of one picture.
        EncodingError: a row is not finite, or nothing but zeros.
    """
    own = np.unique(np.asarray(pictures), return_inverse=True)[1].reshape(-1).astype(np.int64)
    kept_pairs, pairs = _Nearest(kept), 0
    starts = range(0, len(own), block)
    for above in starts:
        left = np.arange(above, min(above + block, len(own)))
        first = read(left) if squared else unit_rows(read(left))
        for beside in starts[above // block :]:
            right = np.arange(beside, min(beside + block, len(own)))
            second = first if beside == above else read(right) if squared else unit_rows(read(right))
            different = own[left][:, None] != own[right]
            if beside == above:
                different &= left[:, None] < right
            if squared:
                squares = squared(first, second)
            else:
                # A product of unit rows of D values is off by less than D + 10 roundings.
                squares = np.maximum(1 - first @ second.T - (first.shape[1] + 10) * _DIGIT, 0)
            pairs += int(different.sum())
            kept_pairs.take(squares, different, left[0], right[0])
            progress(len(left) * (len(left) - 1) // 2 if beside == above else different.size)
    if not pairs:
        raise InputError(f"{len(own)} rows, and all are of one picture: there is no pair of different ones")
    return kept_pairs.result(pairs, own)


class _Nearest:
    """The nearest pairs so far, by the squares of their distances."""

    def __init__(self, kept: int) -> None:
        self._kept, self._below = kept, np.inf
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
        self._held = 0

    def take(self, squares: "NDArray[np.float64]", counts: "NDArray[np.bool_]", row: int, column: int) -> None:
        left, right = np.nonzero(counts & (squares < self._below))
        self._parts.append((left + row, right + column, squares[left, right]))
        self._held += len(left)
        if self._held > 2 * self._kept:
            left, right, near = self._joined()
            # The rest is as far as this one or farther; what is as far as it cannot all be kept, so none of it is.
            self._below = float(np.partition(near, self._kept)[self._kept])
            stay = near < self._below
            self._parts = [(left[stay], right[stay], near[stay])]
            self._held = int(stay.sum())

    def result(self, pairs: int, pictures: "NDArray[np.int64]") -> NearPairs:
        left, right, near = self._joined()
        order = np.lexsort((right, left, near))
        return NearPairs(left[order], right[order], np.sqrt(near[order]), sqrt(self._below), pairs, pictures)

    def _joined(self) -> "tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]":
        left, right, near = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        return left, right, near


def nearest_rows(found: NearPairs) -> NearPairs:
    """Pairs of pictures instead of pairs of rows: each is as far apart as its nearest rows are."""
    one, other = found.pictures[found.left], found.pictures[found.right]
    pictures = int(found.pictures.max()) + 1
    first = np.sort(np.unique(np.minimum(one, other) * pictures + np.maximum(one, other), return_index=True)[1])
    return replace(
        found,
        left=found.left[first],
        right=found.right[first],
        distances=found.distances[first],
        pairs=pictures * (pictures - 1) // 2,
    )


def make_tail(found: NearPairs, data: str) -> Tail:
    """Count the nearest pairs by distance; a count is that of at least all pairs within its distance.

    Args:
        found: the nearest pairs.
        data: which pictures they are of, in words.

    Raises:
        InputError: so many pairs are equal that no distance can be told.
    """
    levels = list(_levels(found))
    if not levels:
        raise InputError("so many pairs of different pictures are equal that no distance tells how rare a near one is")
    counts = [count for _, count in levels]
    return Tail(
        data=data,
        pictures=int(found.pictures.max()) + 1,
        pairs=found.pairs,
        distances=tuple(level for level, _ in levels),
        counts=tuple(counts),
        effects=tuple(accumulate((effect(found, count) for count in counts), max)),
    )


def _levels(found: NearPairs) -> Iterator[tuple[float, int]]:
    """(distance, pairs within it): just short of the next pair, for counts that grow by some per cent."""
    near, last, wanted = found.distances.tolist(), -1.0, 0
    while wanted <= len(near):
        end = near[wanted] if wanted < len(near) else min(found.below, sqrt(2))
        level = round((ceil(end / _STEP) - 1) * _STEP, 4)  # whole steps, which text keeps
        if level > max(last, -_STEP / 2):
            yield level, bisect_right(near, level)
            last = level
        more = max(wanted + 1, floor(wanted * _GROWTH))
        wanted = min(more, len(near)) if wanted < len(near) else more


def effect(found: NearPairs, count: int) -> float:
    """The variance of a count of pairs over that of as many independent ones, rounded up; at least 1.

    Of pictures drawn independently, two pairs depend on each other if they share one. With `w` pairs of rows of two
    pictures, and `d` pairs that a picture is in, the variance of their number K among G pictures is estimated as
    `sum d**2 - sum w**2 - 4 K**2 / G`: the pairs, and twice those of them that share a picture, less what these would
    be if all pictures had as many.
    """
    if count == 0:
        return 1.0
    pictures = int(found.pictures.max()) + 1
    one, other = found.pictures[found.left[:count]], found.pictures[found.right[:count]]
    several = np.unique(np.minimum(one, other) * pictures + np.maximum(one, other), return_counts=True)[1]
    each = np.bincount(np.concatenate((one, other)))
    variance = float(np.square(each).sum() - np.square(several).sum()) - 4 * count**2 / pictures
    return max(1.0, ceil(100 * variance / count) / 100)


def unit_rows(rows: "NDArray[Any]", error: type[RobustSimError] = EncodingError) -> "NDArray[np.float64]":
    """Rows (N, D) of any floating type in float64, divided by their lengths.

    Args:
        rows: embeddings.
        error: what is raised where a row is not finite, or nothing but zeros.
    """
    wide = np.asarray(rows, dtype=np.float64)
    lengths = np.sqrt(np.square(wide).sum(1, keepdims=True))
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise error("an embedding is not finite, or nothing but zeros: no distance to it means anything")
    divided: NDArray[np.float64] = wide / lengths
    return divided
