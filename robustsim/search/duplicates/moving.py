"""Move a file, so that one of its two places has it at every moment, and list what was moved from where."""

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from robustsim.encoders.weights import sha256
from robustsim.errors import OutputError
from robustsim.images.files import printable
from robustsim.jsonl import parse_line

#: What is written into the folder that files are moved to: a line of JSON for each, before it is moved.
JOURNAL = "moved.jsonl"

_PATIENCE = 60  # seconds to wait for another run that moves or deletes
_COPY = re.compile(r"\.moved-[0-9a-f]{16}\.part")  # a copy that is not finished
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # no link, and bytes as they are


class LeftAloneError(Exception):
    """Why a file is not touched."""


def cache_folder() -> Path:
    """Where the indexes of folders are kept, and the lock of whoever moves or deletes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "robustsim" / "dedup"


@contextmanager
def alone() -> Iterator[None]:
    """No other run of this user, with this cache, moves or deletes meanwhile: two could take each other's kept ones.

    Raises:
        OutputError: another one does, or the lock cannot be made.
    """
    from filelock import FileLock, Timeout

    place = cache_folder() / "acting.lock"
    lock = FileLock(place, timeout=_PATIENCE)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"another run moves or deletes files (it holds {os.fspath(place)!r}): wait until it is done"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot lock {os.fspath(place)!r}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def look_at(path: Path, what: str, look: Callable[[Path], os.stat_result]) -> os.stat_result:
    """What the file system knows of a file.

    Args:
        path: of the file.
        what: it is, for messages.
        look: `os.stat` or `os.lstat`.

    Raises:
        LeftAloneError: nothing.
    """
    try:
        return look(path)
    except (OSError, ValueError) as error:
        raise LeftAloneError(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def look_at_regular(path: Path, size: int | None, mtime: int | None, since: str) -> os.stat_result:
    """A file that may go: a regular one, no link, as it was.

    Args:
        path: of the file.
        size: its size then.
        mtime: its time of change then.
        since: "it was indexed", or whatever was done then.

    Raises:
        LeftAloneError: it is not.
    """
    found = look_at(path, "it", os.lstat)
    if not stat.S_ISREG(found.st_mode):
        raise LeftAloneError("it is no regular file, but a link or the like")
    if (found.st_size, found.st_mtime_ns) != (size, mtime):
        raise LeftAloneError(f"it has changed since {since}")
    return found


def content_of(path: Path, what: str) -> str:
    """The SHA-256 of a file.

    Raises:
        LeftAloneError: it cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise LeftAloneError(f"{what} cannot be read: {error.strerror or error}") from None


def check_unchanged(path: Path, then: os.stat_result, has_another_name: bool) -> None:
    """Refuse a file that has changed while it was read.

    Args:
        path: of the file.
        then: what it was before.
        has_another_name: whether it was given one since, which is a change by itself.

    Raises:
        LeftAloneError: it has, or is not there.
    """
    until = -1 if has_another_name else None  # of `state`: the time at which its names changed, too
    if state(look_at(path, "it", os.lstat))[:until] != state(then)[:until]:
        raise LeftAloneError("it has changed while it was read")


def state(found: os.stat_result) -> tuple[int, ...]:
    """What changes whenever a file does."""
    return *identity(found), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def identity(found: os.stat_result) -> tuple[int, int]:
    """What two names of one file have in common."""
    return found.st_dev, found.st_ino


class Target:
    """A folder that files are moved to, and the list in it; for a `with` block.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = folder / JOURNAL
        self._cleared: set[Path] = set()

    def __enter__(self) -> "Target":
        try:
            _make(self._journal.parent)
            handle = os.open(self._journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | _PLAIN, 0o666)
            self._file = os.fdopen(handle, "ab+")
            _flush(self._journal.parent)
            if self._file.seek(0, os.SEEK_END):
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":  # of a run that was interrupted
                    self._file.write(b"\n")
        except OSError as error:
            raise OutputError(f"cannot write {os.fspath(self._journal)!r}: {error.strerror or error}") from error
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def take(self, path: Path, goes: Path, content: str, look: Callable[[bool], object]) -> None:
        """Move a file to where none is.

        One that is there already was moved by a run that was interrupted, if the list says so and it is a file of its
        own with that content.

        Args:
            path: of the file.
            goes: where it is to be.
            content: its SHA-256.
            look: called right before the file is removed, with whether the new place is a second name of it: raises
                if anything has changed.

        Raises:
            LeftAloneError: it is where it was.
            OSError: likewise.
        """
        entry = {"from": printable(path), "to": printable(goes), "id": content}
        self.clear(goes.parent)
        if os.path.lexists(goes):
            there = os.lstat(goes)
            if not self._was_begun(entry) or not _is_moved(path, goes, there, content):
                raise LeftAloneError(f"another file is there already: {printable(goes)!r}")
            _remove(path, goes, identity(there), look)
            return
        self._write(entry)
        try:
            _make(goes.parent)
            made = self._put(path, goes)
            try:
                there = os.lstat(goes)
                if not _is_moved(path, goes, there, content):
                    raise LeftAloneError("what came there is not what it was: it has changed, or the disk is damaged")
                _remove(path, goes, identity(there), look)
            except (OSError, LeftAloneError):
                if identity(os.lstat(goes)) != made:
                    raise
                if os.path.lexists(path):
                    goes.unlink()  # there would be two of it
                    raise
                # Else somebody else has removed it, and what is in the new place is all there is.
        except (OSError, LeftAloneError) as error:
            self._write({**entry, "left": str(error)})
            raise

    def _put(self, path: Path, goes: Path) -> tuple[int, int]:
        """Give a file a second name, or copy it, and never overwrite; what tells the one that was put there."""
        try:
            os.link(path, goes, follow_symlinks=False)
            return identity(os.lstat(path))
        except FileExistsError:
            raise LeftAloneError(f"another file is there already: {printable(goes)!r}") from None
        except OSError:  # another file system, or one without links
            return _copied(path, goes)

    def clear(self, folder: Path) -> None:
        """Remove copies that runs have left which were killed: names, which may be links, and nothing is opened."""
        if folder in self._cleared:
            return
        self._cleared.add(folder)
        for name in os.listdir(folder) if folder.is_dir() else ():
            if _COPY.fullmatch(name):
                with suppress(OSError):
                    os.unlink(folder / name)

    def _was_begun(self, entry: dict[str, str]) -> bool:
        """Whether the list says last that a file was to be moved so; looked up, as such files are few."""
        self._file.flush()
        self._file.seek(0)
        begun, name = False, json.dumps(entry["to"]).encode()
        for line in self._file:
            found = parse_line(line) if name in line else None
            if isinstance(found, dict) and {**found, **entry} == found:
                begun = "left" not in found
        return begun

    def _write(self, entry: dict[str, str]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def copy(path: Path, goes: Path, content: str) -> bool:
    """Copy a file to where none is; whether it was not there already, with that content.

    Args:
        path: of the file.
        goes: where the copy is to be.
        content: the SHA-256 of both.

    Raises:
        LeftAloneError: another file is there, or the file has changed.
        OSError: it cannot be read, or written.
    """
    if os.path.lexists(goes):
        if not stat.S_ISREG(os.lstat(goes).st_mode) or sha256(goes) != content:
            raise LeftAloneError(f"another file is there already: {printable(goes)!r}")
        return False
    _make(goes.parent)
    made = _copied(path, goes)
    if sha256(goes) != content:
        if identity(os.lstat(goes)) == made:
            goes.unlink()
        raise LeftAloneError("what came there is not what it was: it has changed, or the disk is damaged")
    _flush(goes.parent)
    return True


def _copied(path: Path, goes: Path) -> tuple[int, int]:
    """Copy a file to where none is; what tells the copy."""
    part = goes.with_name(f".moved-{secrets.token_hex(8)}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o600)
    try:
        with os.fdopen(handle, "wb") as copy, path.open("rb") as file:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
            with suppress(OSError):  # its time, which not every file system keeps
                shutil.copystat(path, part)
            os.fsync(copy.fileno())
            made = identity(os.fstat(copy.fileno()))
        try:
            os.link(part, goes)  # which never overwrites
        except FileExistsError:
            raise LeftAloneError(f"another file is there already: {printable(goes)!r}") from None
        except OSError:
            if os.path.lexists(goes):
                raise LeftAloneError(f"another file is there already: {printable(goes)!r}") from None
            os.rename(part, goes)
        return made
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _is_moved(path: Path, goes: Path, there: os.stat_result, content: str) -> bool:
    """Whether what is there is a file of its own, by which the content stays when the other name goes."""
    if not stat.S_ISREG(there.st_mode) or os.path.samefile(goes.parent, path.parent):
        return False
    if os.path.samestat(there, os.lstat(path)) and there.st_nlink < 2:
        return False
    return sha256(goes) == content


def _remove(path: Path, goes: Path, there: tuple[int, int], look: Callable[[bool], object]) -> None:
    """Remove a file that is in its new place, after a last look at all there is."""
    _flush(goes.parent)
    if identity(os.lstat(goes)) != there:
        raise LeftAloneError(f"another file is there by now: {printable(goes)!r}")
    look(there == identity(os.lstat(path)))
    os.unlink(path)


def _make(folder: Path) -> None:
    """Make a folder and those above it; their names are on the disk then."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(folder: Path) -> None:
    """The folder's names are on the disk: a file that is gone from one place is in the other, whatever happens."""
    with suppress(OSError):  # not everywhere can folders be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
