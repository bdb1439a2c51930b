"""Groups of pictures each two of which are a pair.

Joining whatever hangs together would put pictures into one group that are not alike at all, by way of others between
them. So a picture joins a group if it is a partner of every one in it: no two members are farther apart than a line's
threshold. Pairs that come to lie in different groups are told as such, and not lost.

What decides is how near pictures are and, where that is equal, their numbers: the order of files or rows does not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from robustsim.search.duplicates.neighbours import Neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray


def nearness(distances: "NDArray[np.float64]", thresholds: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """How near pairs are: the least distance over its line's threshold, from 0 to 1.

    Args:
        distances: (..., L), infinite where a line did not find the pair.
        thresholds: (L,); at one of 0 all distances are 0.

    Returns:
        (...,) float64.
    """
    nearest: NDArray[np.float64] = (distances / np.where(thresholds > 0, thresholds, 1)).min(-1)
    return nearest


def make_groups(neighbours: Neighbours, thresholds: "NDArray[np.float64]") -> "list[NDArray[np.int64]]":
    """Put pictures that have partners into groups, each into one.

    Pictures come in the order of how near their nearest partner is. Each joins the group of which all members are its
    partners, that with the least greatest distance where there are several, and else begins its own.

    Args:
        neighbours: of P pictures, which are numbered by what they are (`id`), and not by where they came.
        thresholds: (L,).

    Returns:
        The members of each group, ascending; a picture whose partners are all in groups that it cannot join is alone in
        its own.
    """
    group_of = np.full(len(neighbours), -1, np.int64)
    sizes = np.zeros(len(neighbours), np.int64)
    groups = 0
    for picture in _in_order(neighbours, thresholds):
        others, distances = neighbours.of(picture)
        theirs = group_of[others]
        placed = theirs >= 0
        numbers, inverse, counts = np.unique(theirs[placed], return_inverse=True, return_counts=True)
        joins = np.flatnonzero(counts == sizes[numbers])
        if len(joins):
            greatest = np.zeros(len(numbers))
            np.maximum.at(greatest, inverse, nearness(distances[placed], thresholds))
            mine = int(numbers[joins[np.argmin(greatest[joins])]])
        else:
            mine, groups = groups, groups + 1
        group_of[picture] = mine
        sizes[mine] += 1
    members = np.flatnonzero(group_of >= 0)
    members = members[np.argsort(group_of[members], kind="stable")]
    return np.split(members, np.cumsum(sizes[:groups])[:-1]) if groups else []


def _in_order(neighbours: Neighbours, thresholds: "NDArray[np.float64]") -> Sequence[int]:
    nearest = np.full(len(neighbours), np.inf)
    for start, stop in neighbours.chunks():
        some = slice(neighbours.starts[start], neighbours.starts[stop])
        whose = np.repeat(np.arange(start, stop), np.diff(neighbours.starts[start : stop + 1]))
        np.minimum.at(nearest, whose, nearness(neighbours.distances[some], thresholds))
    ordered: list[int] = np.argsort(nearest, kind="stable")[: int(np.isfinite(nearest).sum())].tolist()
    return ordered


def medoid(
    members: "NDArray[np.int64]",
    neighbours: Neighbours,
    thresholds: "NDArray[np.float64]",
    weights: "NDArray[np.int64]",
) -> int:
    """The member with the least sum of distances, over their thresholds, to the others; of equal ones, the first.

    Args:
        members: of a group, ascending.
        neighbours: of all pictures.
        thresholds: (L,).
        weights: (P,), how many copies of each picture there are.
    """
    best, least = int(members[0]), np.inf
    for picture in members.tolist():
        others, distances = neighbours.of(picture)
        inside = np.isin(others, members, assume_unique=True)
        total = float((nearness(distances[inside], thresholds) * weights[others[inside]]).sum())
        if total < least:
            best, least = picture, total
    return best
