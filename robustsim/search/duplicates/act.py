"""Move or delete all but the kept ones, and never the last copy.

Before each removal the kept file is read and compared with the index, and so is the file that is to go: if either is
not what was looked at, nothing happens to the latter, and it is told. Whatever is interrupted can be done again.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from robustsim.encoders.weights import sha256
from robustsim.errors import InputError, OutputError
from robustsim.images.files import from_printable, printable
from robustsim.search.duplicates.report import Group, Member

#: What `move` writes into its folder: a line of JSON for each file, before it is moved.
JOURNAL = "moved.jsonl"


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


class _LeftAloneError(Exception):
    """Why a file is not touched."""


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
    """
    return _act(groups, lambda path, member: path.unlink(), _absolute(root), tell)


def move(
    groups: Sequence[Group],
    folder: "str | os.PathLike[str]",
    *,
    root: "str | os.PathLike[str] | None" = None,
    tell: Callable[[Done], object] = lambda done: None,
) -> int:
    """Move all files of groups but the kept ones into a folder. Nothing there is overwritten.

    A file keeps its place relative to the root. Each is named in `moved.jsonl` before it is moved.

    Args:
        groups: of a report.
        folder: where they go; made if it is not there.
        root: what names are relative to, and only files below it are moved; None for the folder that all have in
            common.
        tell: called for each file.

    Returns:
        How many were left alone.

    Raises:
        InputError: the folder is among the pictures.
        OutputError: it cannot be written.
    """
    target = Path(os.path.abspath(os.path.expanduser(folder)))
    files = [_path(one) for group in groups for one in group.members if one.path]
    below = _absolute(root)
    base = _common(files) if below is None else below
    real = Path(os.path.realpath(target))
    if any(path.is_relative_to(target) for path in files) or (below and real.is_relative_to(os.path.realpath(below))):
        raise InputError(
            f"{os.fspath(target)!r} is among the pictures that are compared, and what is moved there would be found "
            "again: choose a folder outside"
        )
    if not files:
        return 0
    with _Journal(target) as journal:

        def away(path: Path, member: Member) -> str:
            goes = target / path.relative_to(base)
            journal.add({"from": printable(path), "to": printable(goes), "id": member.id})
            _move(path, goes, member.id)
            return printable(goes)

        return _act(groups, away, below, tell)


def _act(
    groups: Sequence[Group],
    away: Callable[[Path, Member], str | None],
    below: Path | None,
    tell: Callable[[Done], object],
) -> int:
    kept = set(_identities(group.keep for group in groups))
    left = 0
    for group in groups:
        for member in group.others:
            goes, why = None, None
            try:
                path = _checked(member, group.keep, kept)
                if below is not None and not path.is_relative_to(below):
                    raise _LeftAloneError(f"it lies outside of {printable(below)!r}")
                goes = away(path, member)
            except _LeftAloneError as error:
                why = str(error)
            except (OSError, ValueError) as error:
                why = f"it could not be removed: {getattr(error, 'strerror', None) or error}"
            left += why is not None
            tell(Done(member.path, goes, why, member.size or 0))
    return left


def _checked(member: Member, keep: Member, kept: "set[tuple[int, int]]") -> Path:
    """The file of a member that may go: it is what was indexed, and so is another one that stays."""
    if not member.path:
        raise _LeftAloneError("it was added without a file")
    if not keep.path:
        raise _LeftAloneError("the one that is kept has no file")
    if not set(member.tenants) <= set(keep.tenants):
        raise _LeftAloneError("it belongs to a tenant who does not have the one that is kept")
    stays, goes = _path(keep), _path(member)
    found = _look(stays, "the one that is kept", os.stat)
    is_there = _look(goes, "it", os.lstat)
    if not stat.S_ISREG(is_there.st_mode):
        raise _LeftAloneError("it is no regular file, but a link or the like")
    if _identity(is_there) in kept or _identity(is_there) == _identity(found):
        raise _LeftAloneError("it is the same file as one that is kept, by a link")
    if (is_there.st_size, is_there.st_mtime_ns) != (member.size, member.mtime):
        raise _LeftAloneError("it has changed since it was indexed")
    if not stat.S_ISREG(found.st_mode) or _content(stays, "the one that is kept") != keep.id:
        raise _LeftAloneError(f"the one that is kept, {keep.path!r}, has changed since it was indexed")
    if _content(goes, "it") != member.id:
        raise _LeftAloneError("it has changed since it was indexed")
    after = _look(goes, "it", os.lstat)
    if (*_identity(after), after.st_mtime_ns) != (*_identity(is_there), is_there.st_mtime_ns):
        raise _LeftAloneError("it has changed while it was read")
    return goes


def _path(member: Member) -> Path:
    return Path(from_printable(member.path))


def _look(path: Path, what: str, look: Callable[[Path], os.stat_result]) -> os.stat_result:
    try:
        return look(path)
    except (OSError, ValueError) as error:
        raise _LeftAloneError(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _content(path: Path, what: str) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise _LeftAloneError(f"{what} cannot be read: {error.strerror or error}") from None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _identities(members: Iterable[Member]) -> "Iterable[tuple[int, int]]":
    for member in members:
        if member.path:
            with suppress(OSError, ValueError):  # told when it is looked at
                yield _identity(os.stat(_path(member)))


def _absolute(folder: "str | os.PathLike[str] | None") -> Path | None:
    return None if folder is None else Path(os.path.abspath(folder))


def _common(files: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath([path.parent for path in files]))
    except ValueError:
        if files:
            raise InputError("the files are on several drives: name the folder that they are to be moved of") from None
        return Path()  # no files


def _move(path: Path, goes: Path, content: str) -> None:
    """Move a file to where none is; one that is there with its content was moved by a run that was interrupted."""
    goes.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, goes, follow_symlinks=False)
    except FileExistsError:
        if not stat.S_ISREG(os.lstat(goes).st_mode) or sha256(goes) != content:
            raise _LeftAloneError(f"another file is there already: {printable(goes)!r}") from None
    except OSError:  # another file system, or one without links
        _copy(path, goes, content)
    _flush(goes.parent)
    path.unlink()


def _copy(path: Path, goes: Path, content: str) -> None:
    if os.path.lexists(goes):
        if not stat.S_ISREG(os.lstat(goes).st_mode) or sha256(goes) != content:
            raise _LeftAloneError(f"another file is there already: {printable(goes)!r}")
        return
    part = goes.with_name(".moved.part")  # one name: what an interrupted run has left is written over
    try:
        shutil.copyfile(path, part)
        with suppress(OSError):  # its time, which not every file system keeps
            shutil.copystat(path, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if sha256(part) != content:
            raise _LeftAloneError("its copy is not what it is: the disk is damaged")
        try:
            os.link(part, goes)  # which never overwrites
        except FileExistsError:
            raise _LeftAloneError(f"another file is there already: {printable(goes)!r}") from None
        except OSError:
            os.rename(part, goes)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """The folder's names are on the disk: a file that is gone from one place is in the other, whatever happens."""
    with suppress(OSError):  # not everywhere can folders be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class _Journal:
    """The list of what was moved from where."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL

    def __enter__(self) -> "_Journal":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab+")
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read() != b"\n":  # of a run that was interrupted
                    self._file.write(b"\n")
        except OSError as error:
            raise OutputError(f"cannot write {os.fspath(self._path)!r}: {error.strerror or error}") from error
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def add(self, entry: dict[str, str]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
