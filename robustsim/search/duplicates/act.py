"""Move or delete all but the kept ones, and never the last copy.

Before each removal the kept file is read and compared with the index, and so is the file that is to go; right before
it, both are looked at once more. If either is not what it was, nothing happens to the latter, and it is told. Whatever
is interrupted can be done again.
"""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from robustsim.errors import InputError
from robustsim.images.files import from_printable, printable
from robustsim.search.duplicates.moving import (
    LeftAloneError,
    Target,
    alone,
    check_unchanged,
    content_of,
    identity,
    look_at,
    look_at_regular,
    state,
)
from robustsim.search.duplicates.report import Group, Member

#: Raises if the kept file, or the one that is to go, is not what it was; told whether the latter has another name.
_Look: TypeAlias = Callable[[bool], None]


@dataclass(frozen=True)
class Done:
    """What became of a file.

    Attributes:
        path: of the file.
        to: where it is now; None if it was deleted, or is where it was.
        left: why it was left where it was; None if it was not.
        size: bytes of it.
    """

    path: str
    to: str | None
    left: str | None
    size: int


def delete(
    groups: Sequence[Group],
    *,
    root: "str | os.PathLike[str] | None" = None,
    tell: Callable[[Done], object] = lambda done: None,
) -> int:
    """Delete all files of groups but the kept ones.

    Args:
        groups: of a report.
        root: only files below it are deleted; None for all.
        tell: called for each file.

    Returns:
        How many were left alone.

    Raises:
        OutputError: another run moves or deletes.
    """

    def away(path: Path, member: Member, look: _Look) -> None:
        look(False)
        os.unlink(path)

    with alone():
        return _act(groups, away, _absolute(root), tell)


def move(
    groups: Sequence[Group],
    folder: "str | os.PathLike[str]",
    *,
    root: "str | os.PathLike[str] | None" = None,
    tell: Callable[[Done], object] = lambda done: None,
) -> int:
    """Move all files of groups but the kept ones into a folder. Nothing there is overwritten.

    A file keeps its place relative to the root. Each is named in `moved.jsonl` before it is moved, and once more, with
    why, if it was not.

    Args:
        groups: of a report.
        folder: where they go; made if it is not there.
        root: what names are relative to, and only files below it are moved; None for the folder that all have in
            common.
        tell: called for each file.

    Returns:
        How many were left alone.

    Raises:
        InputError: the folder is inside one that is compared.
        OutputError: it cannot be written, or another run moves or deletes.
    """
    target = Path(os.path.abspath(os.path.expanduser(folder)))
    files = [_path(one) for group in groups for one in group.members if one.path]
    if not files:
        return 0
    below = _absolute(root)
    base = _common(files) if below is None else below
    _check_outside(target, files, base, below)
    with alone(), Target(target) as taken:

        def away(path: Path, member: Member, look: _Look) -> str:
            goes = target / path.relative_to(base)
            taken.take(path, goes, member.id, look)
            return printable(goes)

        return _act(groups, away, below, tell)


def _act(
    groups: Sequence[Group],
    away: Callable[[Path, Member, _Look], str | None],
    below: Path | None,
    tell: Callable[[Done], object],
) -> int:
    left = 0
    stay = set(_identities(_staying(groups, below)))
    for group in groups:
        for member in group.others:
            goes, why = None, None
            try:
                goes = away(_path(member), member, _checked(member, group.keep, below, stay))
            except LeftAloneError as error:
                why = str(error)
            except (OSError, ValueError) as error:
                why = f"it could not be removed: {getattr(error, 'strerror', None) or error}"
            left += why is not None
            tell(Done(member.path, goes, why, member.size or 0))
    return left


def _staying(groups: Sequence[Group], below: Path | None) -> Iterable[Member]:
    """The kept ones, and those that will be left alone: what they lead to, by whatever link, stays."""
    for group in groups:
        yield group.keep
        for member in group.others:
            try:
                _seen(member, group.keep, below)
            except LeftAloneError:
                yield member


def _seen(member: Member, keep: Member, below: Path | None) -> tuple[os.stat_result, os.stat_result]:
    """The kept file and one that may go, as far as can be told without reading them."""
    if not member.path:
        raise LeftAloneError("it was added without a file")
    if not keep.path:
        raise LeftAloneError("the one that is kept has no file")
    if not set(member.tenants) <= set(keep.tenants):
        raise LeftAloneError("it belongs to a tenant who does not have the one that is kept")
    if below is not None and not _path(member).is_relative_to(below):
        raise LeftAloneError(f"it lies outside of {printable(below)!r}")
    kept = look_at(_path(keep), "the one that is kept", os.stat)
    if not stat.S_ISREG(kept.st_mode):
        raise LeftAloneError(f"the one that is kept, {keep.path!r}, is no regular file")
    goes = look_at_regular(_path(member), member.size, member.mtime, "it was indexed")
    return kept, goes


def _checked(member: Member, keep: Member, below: Path | None, stay: "set[tuple[int, int]]") -> _Look:
    """Refuse a file unless it is what was indexed, and so is another one that stays; what looks at both once more."""
    kept, goes = _seen(member, keep, below)
    if identity(goes) in stay or identity(goes) == identity(kept):
        raise LeftAloneError("it is the same file as one that stays, by a link")
    if content_of(_path(keep), "the one that is kept") != keep.id:
        raise LeftAloneError(f"the one that is kept, {keep.path!r}, has changed since it was indexed")
    if content_of(_path(member), "it") != member.id:
        raise LeftAloneError("it has changed since it was indexed")

    def look(has_another_name: bool) -> None:
        if state(look_at(_path(keep), "the one that is kept", os.stat)) != state(kept):
            raise LeftAloneError(f"the one that is kept, {keep.path!r}, has changed while they were compared")
        check_unchanged(_path(member), goes, has_another_name)

    return look


def _path(member: Member) -> Path:
    return Path(from_printable(member.path))


def _identities(members: Iterable[Member]) -> "Iterable[tuple[int, int]]":
    for member in members:
        if member.path:
            with suppress(OSError, ValueError):  # told when it is looked at
                yield identity(os.stat(_path(member)))


def _absolute(folder: "str | os.PathLike[str] | None") -> Path | None:
    return None if folder is None else Path(os.path.abspath(folder))


def _common(files: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath([path.parent for path in files]))
    except ValueError:
        raise InputError("the files are on several drives: name the folder that they are to be moved of") from None


def _check_outside(target: Path, files: Sequence[Path], base: Path, root: Path | None) -> None:
    """Refuse a folder in which what is moved would be found again: below the root, or a folder that holds files.

    Where there is no root, these are the folders of files, and those which they have right below what all of them have
    in common.
    """
    parents = {path.parent for path in files}
    tops = {base.joinpath(*path.relative_to(base).parts[:1]) for path in parents if path.is_relative_to(base)}
    real = Path(os.path.realpath(target))
    for folder in {*parents, *tops, *([root] if root else [])}:
        if real.is_relative_to(os.path.realpath(folder)):
            raise InputError(
                f"{os.fspath(target)!r} is inside {os.fspath(folder)!r}, whose pictures are compared, and what is "
                "moved there would be found again: choose a folder outside"
            )
    if real == Path(os.path.realpath(base)):
        raise InputError(f"{os.fspath(target)!r} is where the pictures are: choose a folder outside")
