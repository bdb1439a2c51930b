"""Measure candidates alone: what is measured is exact, and a row that is no candidate is missed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from robustsim.search.scan.codes import unit
from robustsim.search.scan.exact import Found, Read, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robustsim.search.scan.exact import Positions

#: (queries (Q, D), how many) -> about so many candidates for each, the most promising ones: positions of rows.
Candidates: TypeAlias = "Callable[[NDArray[Any], int], list[Positions]]"

#: Candidates for each query, at least.
FEWEST = 64

# Candidates for each row that is looked for, and how many times as many are asked for where those were not enough.
_SPARE, _MORE = 4, 4


def nearest(
    queries: "NDArray[Any]", k: int, *, candidates: Candidates, read: Read, order: "NDArray[np.int64]"
) -> list[Found]:
    """The k nearest candidates to each query; nearer rows may be missing.

    Args:
        queries: (Q, D) embeddings.
        k: how many.
        candidates: what proposes rows.
        read: as of `robustsim.search.scan.exact.Rows`.
        order: likewise.
    """
    places = candidates(queries, max(FEWEST, _SPARE * k))
    return [one for one, _ in _measured(queries, places, read, order, k, None)]


def within(
    queries: "NDArray[Any]", distance: float, *, candidates: Candidates, read: Read, order: "NDArray[np.int64]"
) -> list[Found]:
    """Candidates at most at that distance from each query; others may be missing. Arguments as for `nearest`."""
    out: dict[int, Found] = {}
    open_, count = np.arange(len(queries)), FEWEST
    while len(open_):
        places = candidates(queries[open_], count)
        found = _measured(queries[open_], places, read, order, None, distance)
        out |= {query: one for query, (one, _) in zip(open_.tolist(), found, strict=True)}
        # Where half of them are so near, there may be more; unless there were no more candidates.
        open_ = open_[[2 * len(one.positions) > count and asked >= count for one, asked in found]]
        count *= _MORE
    return [out[query] for query in range(len(queries))]


def near_duplicates(rows: "NDArray[Any]", similarity: float, seed: int = 0) -> "NDArray[np.float32]":
    """A row as similar as that to each of these (N, D), in a direction of its own: to see what a search misses."""
    noise = np.random.default_rng(seed).standard_normal(rows.shape)
    whole = unit(rows)
    noise -= (noise * whole).sum(1, keepdims=True) * whole
    planted: NDArray[np.float32] = (similarity * whole + (1 - similarity**2) ** 0.5 * unit(noise)).astype(np.float32)
    return planted


def _measured(
    queries: "NDArray[Any]",
    places: "list[Positions]",
    read: Read,
    order: "NDArray[np.int64]",
    k: int | None,
    distance: float | None,
) -> list[tuple[Found, int]]:
    """What is found of the candidates of each query, and how many they were."""
    if not len(queries):
        return []
    places = [np.sort(one) for one in places]
    found = []
    for at, away in zip(places, measure(read, unit(queries), places), strict=True):
        ranked = np.lexsort((order[at], away))[:k]
        if distance is not None:
            ranked = ranked[away[ranked] <= distance]
        found.append((Found(at[ranked], away[ranked], 0.0, len(at)), len(at)))
    return found
