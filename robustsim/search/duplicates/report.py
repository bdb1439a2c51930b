"""What is told about duplicates: groups, their members, the pairs, and which of a group is kept."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from robustsim.encoders.weights import whole_file
from robustsim.errors import InputError

#: What finds a pair whose files have the same content; no line needs to.
IDENTICAL = "identical"
KEEPS = ("largest", "smallest", "oldest", "newest", "medoid")


@dataclass(frozen=True)
class Member:
    """A picture of a group.

    Attributes:
        path: absolute name of its file; "" if it was added without one.
        id: SHA-256 of the file's content, or of the pixels where there is no file.
        label: what it was added with.
        tenants: whose it is.
        size: bytes of the file.
        mtime: when it was changed, nanoseconds since 1970.
        width: of the picture, upright.
        height: likewise.
        distance: from the group's medoid, by the first line that finds the two alike; 0 for the medoid and its copies.
        found_by: the lines that find it and the kept one alike, "identical" if the files have the same content; nothing
            for the kept one.
        distances: from the kept one, by each of these lines.
    """

    path: str
    id: str
    label: str | None = None
    tenants: tuple[str | None, ...] = (None,)
    size: int | None = None
    mtime: int | None = None
    width: int | None = None
    height: int | None = None
    distance: float = 0.0
    found_by: tuple[str, ...] = ()
    distances: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Like:
    """A picture near one of a group, and not near all of them: it is in another group, or in none.

    Attributes:
        path: of its file.
        id: as for members.
        near: path of the member that it is nearest to; its id where there is no path.
        distances: from that one, by the lines that found it.
    """

    path: str
    id: str
    near: str
    distances: Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """Two pictures that a line found alike.

    Attributes:
        paths: of both; "" where there is no file.
        ids: of both, the smaller first.
        distances: by each line that found them.
        together: whether they are in one group.
    """

    paths: tuple[str, str]
    ids: tuple[str, str]
    distances: Mapping[str, float]
    together: bool


@dataclass(frozen=True)
class Group:
    """Pictures each two of which are alike.

    Attributes:
        keep: the one that is kept.
        others: all others, by their paths.
        medoid: the one with the least sum of distances to the others.
    """

    keep: Member
    others: tuple[Member, ...]
    medoid: Member

    def __len__(self) -> int:
        return 1 + len(self.others)

    @property
    def members(self) -> tuple[Member, ...]:
        """The kept one, and the others."""
        return self.keep, *self.others

    @property
    def freed(self) -> int:
        """Bytes of the others."""
        return sum(member.size or 0 for member in self.others)


class Kept(Protocol):
    """What keeps the pairs that were found."""

    def pairs(self) -> Iterator[Pair]:
        """All of them; see `DuplicatesReport.pairs`."""
        ...

    def also_like(self, group: Group) -> list[Like]:
        """Pictures near a member that are in another group; see `DuplicatesReport.also_like`."""
        ...


@dataclass(frozen=True, eq=False)
class DuplicatesReport:
    """The duplicates of an index.

    Attributes:
        groups: of at least two pictures each, by the paths of the kept ones.
        thresholds: of each line, the distance up to which two pictures are alike.
        keep: the rule by which one of each group is kept.
        compared: how many pictures there were; files of the same content count each.
        false_positives: no larger share of pairs of different pictures is taken for alike, as far as the data can say;
            None where distances were given.
        version: of the index that was looked at.
    """

    groups: tuple[Group, ...]
    thresholds: Mapping[str, float]
    keep: str
    compared: int
    version: int
    false_positives: float | None
    _found: "Kept" = field(repr=False)

    @property
    def freed(self) -> int:
        """Bytes of all but the kept ones."""
        return sum(group.freed for group in self.groups)

    def pairs(self) -> Iterator[Pair]:
        """All pairs, those in different groups too, by their ids; of files with the same content the first stands for
        all. They are on the disk as long as this report is there.
        """
        return self._found.pairs()

    def also_like(self, group: Group) -> list[Like]:
        """Pictures near a member of the group that are not in it, by their paths."""
        return self._found.also_like(group)

    def described(self, group: Group) -> dict[str, Any]:
        """A group as JSON holds it."""
        return {
            "keep": asdict(group.keep),
            "others": [asdict(member) for member in group.others],
            "medoid": group.medoid.path or group.medoid.id,
            "freed": group.freed,
            "also_like": [asdict(like) for like in self.also_like(group)],
        }

    def save(self, path: "str | Path") -> None:
        """Write a JSON line for each group; the file is there as a whole, or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with whole_file(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
            for group in self.groups:
                file.write(json.dumps(self.described(group), allow_nan=False) + "\n")


def choose(members: Sequence[Member], keep: str, medoid: Member) -> Member:
    """The member that is kept. One with a file comes before those without; of equal ones, the first by path.

    Args:
        members: of a group.
        keep: a name of `KEEPS`. The largest has the most pixels, of these the most bytes; what is not known is kept
            last.
        medoid: of the group.

    Raises:
        InputError: no such rule.
    """
    rules: dict[str, Any] = {
        "largest": lambda one: (*_last(_pixels(one), -1), *_last(one.size, -1)),
        "smallest": lambda one: (*_last(_pixels(one)), *_last(one.size)),
        "oldest": lambda one: _last(one.mtime),
        "newest": lambda one: _last(one.mtime, -1),
        "medoid": lambda one: (one.id != medoid.id,),
    }
    check_keep(keep)
    return min(members, key=lambda one: (not one.path, *rules[keep](one), one.path, one.id))


def check_keep(keep: str) -> None:
    """Refuse an unknown rule.

    Raises:
        InputError: there is no such rule.
    """
    if keep not in KEEPS:
        raise InputError(f"keep={keep!r} is none of {', '.join(KEEPS)}")


def _pixels(member: Member) -> int | None:
    return None if member.width is None or member.height is None else member.width * member.height


def _last(value: int | None, sign: int = 1) -> tuple[bool, int]:
    return value is None, sign * (value or 0)
