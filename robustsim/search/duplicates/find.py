"""From rows of several lines to groups of pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from robustsim.search.duplicates.groups import make_groups, medoid, nearness
from robustsim.search.duplicates.neighbours import Neighbours, bring_together
from robustsim.search.duplicates.report import (
    IDENTICAL,
    DuplicatesReport,
    Group,
    Like,
    Member,
    Pair,
    check_keep,
    choose,
)
from robustsim.search.scan.exact import Rows
from robustsim.search.scan.pairs import Pairs, pairs_within

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Line:
    """One way to compare.

    Attributes:
        name: of it.
        rows: -> N of them, of one or more views of each picture; asked where they are compared in this process.
        pictures: (N,) int64, which picture each row is of: a place among those that are compared; -1 for none.
        distance: up to which two pictures are alike.
    """

    name: str
    rows: Callable[[], Rows]
    pictures: "NDArray[np.int64]"
    distance: float


#: (line, (N,) numbers of the pictures whose rows are compared, -1 for others; progress) -> all pairs of rows.
Compare: TypeAlias = "Callable[[Line, NDArray[np.int64], Callable[[int], object]], Iterator[Pairs]]"


def find_duplicates(
    lines: Sequence[Line],
    pictures: Sequence[Member],
    *,
    keep: str = "largest",
    version: int = 0,
    false_positives: float | None = None,
    progress: Callable[[int], object] = lambda compared: None,
    compare: "Compare | None" = None,
    **options: Any,
) -> DuplicatesReport:
    """Pictures that any line finds alike, in groups each two members of which are.

    Files of the same content are one picture here: whichever there are of them, one is compared. The report depends on
    what the pictures are and on their paths, and on the order of neither.

    Args:
        lines: what is compared.
        pictures: all of them, without distances; no two have both the same id and the same path.
        keep: which of a group is kept; see `robustsim.search.duplicates.report.choose`.
        version: of the index, for the report.
        false_positives: what the distances are made of, for the report.
        progress: called with the number of pairs of rows compared since the last call.
        compare: what finds the pairs of a line, in place of `pairs_within` in this process.
        options: for `pairs_within`.

    Raises:
        InputError: no such rule or distance.
        OutputError: there is no room for the pairs on the disk.
    """
    check_keep(keep)
    ids, number = _numbered(pictures)
    copies: list[list[Member]] = [[] for _ in range(ids)]
    first = np.full(ids, -1, np.int64)
    for place in sorted(range(len(pictures)), key=lambda place: pictures[place].path):
        copies[number[place]].append(pictures[place])
        if len(copies[number[place]]) == 1:
            first[number[place]] = place
    stands = np.zeros(len(pictures) + 1, bool)  # the last place is that of rows that are compared with none
    stands[first] = True
    numbered = np.append(number, -1)

    def pairs() -> "Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]":
        for place, line in enumerate(lines):
            allowed = np.flatnonzero(stands[line.pictures])
            theirs = numbered[line.pictures]
            if compare is not None:
                found = compare(line, np.where(stands[line.pictures], theirs, -1), progress)
            else:
                found = pairs_within(
                    line.rows(), line.distance, pictures=theirs, allowed=allowed, progress=progress, **options
                )
            for part in found:
                yield place, theirs[part.first], theirs[part.second], part.distances

    neighbours = bring_together(pairs(), ids, len(lines))
    names = tuple(line.name for line in lines)
    thresholds = np.array([line.distance for line in lines], np.float64)
    found = Found(neighbours, names, thresholds, copies)
    groups = found.groups(keep)
    given = dict(zip(names, thresholds.tolist(), strict=True))
    return DuplicatesReport(groups, given, keep, len(pictures), version, false_positives, found)


def _numbered(pictures: Sequence[Member]) -> "tuple[int, NDArray[np.int64]]":
    """How many different ids there are, and the rank of each picture's among them."""
    rank = {one: place for place, one in enumerate(sorted({picture.id for picture in pictures}))}
    return len(rank), np.fromiter((rank[picture.id] for picture in pictures), np.int64, len(pictures))


class Found:
    """The pairs, and the pictures that they are of.

    Args:
        neighbours: of P pictures of different content.
        names: of L lines.
        thresholds: (L,).
        copies: the files of each picture, by path.
    """

    def __init__(
        self,
        neighbours: Neighbours,
        names: Sequence[str],
        thresholds: "NDArray[np.float64]",
        copies: Sequence[Sequence[Member]],
    ) -> None:
        self._neighbours, self._names, self._thresholds, self._copies = neighbours, names, thresholds, copies
        self._group_of = np.full(len(copies), -1, np.int64)
        self._number = {files[0].id: number for number, files in enumerate(copies)}

    def groups(self, keep: str) -> tuple[Group, ...]:
        """All groups of at least two files."""
        weights = np.array([len(files) for files in self._copies], np.int64)
        made = make_groups(self._neighbours, self._thresholds)
        for group, members in enumerate(made):
            self._group_of[members] = group
        alone = np.flatnonzero((self._group_of < 0) & (weights > 1))
        made += [alone[place : place + 1] for place in range(len(alone))]  # a picture and its copies
        groups = [self._group(members, weights, keep) for members in made if weights[members].sum() > 1]
        return tuple(sorted(groups, key=lambda group: (group.keep.path, group.keep.id)))

    def _group(self, members: "NDArray[np.int64]", weights: "NDArray[np.int64]", keep: str) -> Group:
        middle = medoid(members, self._neighbours, self._thresholds, weights)
        files = [one for member in members.tolist() for one in self._copies[member]]
        kept = choose(files, keep, self._copies[middle][0])
        from_middle, from_kept = self._from(middle), self._from(self._number[kept.id])

        def told(one: Member) -> Member:
            number = self._number[one.id]
            distance = next(iter(from_middle.get(number, {"": 0.0}).values()))
            if one is kept:
                return replace(one, distance=distance)
            if one.id == kept.id:
                return replace(one, distance=distance, found_by=(IDENTICAL,))
            distances = from_kept[number]
            return replace(one, distance=distance, found_by=tuple(distances), distances=distances)

        others = sorted((told(one) for one in files if one is not kept), key=lambda one: (one.path, one.id))
        return Group(told(kept), tuple(others), told(self._copies[middle][0]))

    def _from(self, number: int) -> dict[int, dict[str, float]]:
        """The distances from a picture to its neighbours, by the lines that found them."""
        others, distances = self._neighbours.of(number)
        return {other: self._named(row) for other, row in zip(others.tolist(), distances, strict=True)}

    def _named(self, row: "NDArray[np.float64]") -> dict[str, float]:
        return {name: away for name, away in zip(self._names, row.tolist(), strict=True) if np.isfinite(away)}

    def pairs(self) -> Iterator[Pair]:
        """All pairs; see `DuplicatesReport.pairs`."""
        for number, files in enumerate(self._copies):
            others, distances = self._neighbours.of(number)
            for other, row in zip(others.tolist(), distances, strict=True):
                if other > number:
                    one, two = files[0], self._copies[other][0]
                    together = self._group_of[number] == self._group_of[other]
                    yield Pair((one.path, two.path), (one.id, two.id), self._named(row), bool(together))

    def also_like(self, group: Group) -> list[Like]:
        """Pictures near a member that are in another group; see `DuplicatesReport.also_like`."""
        nearest: dict[int, tuple[float, Member, dict[str, float]]] = {}
        mine = {self._number[one.id]: one for one in reversed(group.members)}
        for number in sorted(mine):
            others, distances = self._neighbours.of(number)
            for other, near, row in zip(others.tolist(), nearness(distances, self._thresholds), distances, strict=True):
                if other not in mine and (other not in nearest or near < nearest[other][0]):
                    nearest[other] = near, mine[number], self._named(row)
        likes = [
            Like(self._copies[other][0].path, self._copies[other][0].id, one.path or one.id, named)
            for other, (_, one, named) in nearest.items()
        ]
        return sorted(likes, key=lambda like: (like.path, like.id))
