"""Walk folders of pictures, and read ahead of whoever uses them."""

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from robustsim.errors import ImageError

T = TypeVar("T")
R = TypeVar("R")

# What Pillow recognises and cannot decode by itself: EPS takes Ghostscript, which runs programs that are in the file,
# WMF takes Windows, and for the others there is no decoder.
_NO_PICTURES = frozenset({"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"})
# Opened by the plugin of JPEG, under a name of its own.
_ALSO_OPENED = frozenset({"MPO"})

_FILE, _FOLDER, _LINKED, _AGAIN = "file", "folder", "linked folder", "folder walked already"
_BARE, _OTHERS = "file without a suffix", "file of other suffixes"
_SPECIAL = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
# Kinds that are told apart: names that end in numbers must not fill the memory.
_MOST_KINDS, _MOST_TOLD = 200, 8
# What tells that a name was written with escapes.
_ESCAPE = r"\x"


def picture_suffixes() -> frozenset[str]:
    """Suffixes of what counts as a picture: ".png" and all others of formats that Pillow, as it is now, can decode.

    A plugin counts from when it is registered, such as that of pillow-heif. EPS, WMF, MPEG, BUFR, GRIB and HDF5 are
    left out: Pillow knows them, and needs programs for them that it does not bring.
    """
    from PIL import Image

    formats = Image.registered_extensions().items()  # which loads all of Pillow's own plugins
    opened = (Image.OPEN.keys() | _ALSO_OPENED) - _NO_PICTURES
    return frozenset(suffix for suffix, kind in formats if kind in opened)


def suffix_of(name: str) -> str:
    """The suffix of a file's name in small letters, with its dot; "" if it has none."""
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix == "." else suffix


class FoundImages(Iterator[Path]):
    """The image files below a folder, and what is passed over on the way; see `find_images`.

    Attributes:
        passed_over: how many there are of each kind that is left out, so far: by suffix (".txt"), and "file without a
            suffix", "linked folder", "folder walked already", "hidden picture", "hidden folder", "pipe", "socket",
            "device".
    """

    def __init__(self, folder: "str | os.PathLike[str]", *, follow_links: bool = False) -> None:
        self._root, self._follow_links = Path(folder), follow_links
        if not os.path.isdir(self._root):  # Path.is_dir raises where the folder above may not be entered
            raise ImageError(f"{os.fspath(folder)!r} is not a folder")
        self.passed_over: Counter[str] = Counter()
        self._suffixes = picture_suffixes()
        self._seen: set[tuple[int, int]] = set()  # folders, where links are followed
        self._walk = self._below(Path())

    def __next__(self) -> Path:
        return next(self._walk)

    def _below(self, below: Path) -> Iterator[Path]:
        try:
            with os.scandir(self._root / below) as entries:
                named = sorted((entry.name, _kind(entry)) for entry in entries)
        except OSError as error:
            if below == Path():
                raise ImageError(f"cannot list {os.fspath(self._root)!r}: {error.strerror or error}") from error
            yield below  # whoever reads it learns why it cannot be read
            return
        if below == Path() and self._follow_links:
            self._enters(below, linked=False)
        for name, kind in named:
            hidden, is_picture = name.startswith("."), suffix_of(name) in self._suffixes
            if kind in (_FOLDER, _LINKED):
                if hidden:
                    self._pass("hidden folder")
                elif self._enters(below / name, linked=kind == _LINKED):
                    yield from self._below(below / name)
            elif hidden:
                if is_picture:
                    self._pass("hidden picture")
            elif kind != _FILE:
                self._pass(kind)
            elif is_picture:
                yield below / name
            else:
                self._pass(suffix_of(name) or _BARE)

    def _pass(self, kind: str) -> None:
        is_known = kind in self.passed_over or len(self.passed_over) < _MOST_KINDS
        self.passed_over[kind if is_known else _OTHERS] += 1

    def _enters(self, below: Path, *, linked: bool) -> bool:
        """Whether a folder is to be walked: each one once, whatever links lead to it, so that none leads in circles."""
        if not self._follow_links:
            if linked:
                self._pass(_LINKED)
            return not linked
        try:
            place = os.stat(self._root / below)
        except OSError:  # listing it will tell why
            return True
        identity = place.st_dev, place.st_ino
        if identity in self._seen or (linked and self._is_walked_anyway(below)):
            self._pass(_AGAIN)
            return False
        self._seen.add(identity)
        return True

    def _is_walked_anyway(self, below: Path) -> bool:
        """Whether a link leads to what lies below the root, and is not hidden: it has its place in the order there."""
        try:
            inside = (self._root / below).resolve().relative_to(self._root.resolve())
        except (OSError, RuntimeError, ValueError):
            return False
        return not any(part.startswith(".") for part in inside.parts)


def find_images(folder: "str | os.PathLike[str]", *, follow_links: bool = False) -> FoundImages:
    """The image files below a folder, relative to it, in a fixed order; nothing but one folder's names is held.

    Files count by their suffix; see `picture_suffixes`. Left out, and counted in the result's `passed_over`, are
    files of other suffixes, what is no regular file (pipes, sockets, devices), and pictures and folders whose names
    begin with a dot. What cannot be read (a broken link, a folder that may not be listed) is among the files, so that
    its reader reports it.

    Args:
        folder: where to look.
        follow_links: walk folders that are linked, too. Each folder is walked once, whatever leads to it; its own
            place comes before a link's. Without it they are counted.

    Raises:
        ImageError: there is no such folder, or it may not be read.
    """
    return FoundImages(folder, follow_links=follow_links)


def list_images(
    folder: "str | os.PathLike[str]",
    *,
    follow_links: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[list[Path], Mapping[str, int]]:
    """All of `find_images`, for whoever draws from them, and how many files of each kind were passed over.

    Args:
        folder: where to look.
        follow_links: walk folders that are linked, too.
        tell: called with a line for people if files are passed over.

    Raises:
        ImageError: there is no such folder, or no image in it.
    """
    walk = find_images(folder, follow_links=follow_links)
    files = list(walk)
    if not files:
        raise ImageError(f"the folder {os.fspath(folder)!r} holds no images: {what_is_there(walk.passed_over)}")
    if walk.passed_over:
        tell(tell_passed_over(walk.passed_over))
    return files, walk.passed_over


def tell_passed_over(kinds: Mapping[str, int]) -> str:
    """What was passed over, in words for people, the most frequent first; "" if nothing was."""
    if not kinds:
        return ""
    ordered = sorted(kinds.items(), key=lambda one: (-one[1], one[0]))
    shown = [_counted(kind, count) for kind, count in ordered[:_MOST_TOLD]]
    if rest := ordered[_MOST_TOLD:]:
        shown.append(f"{sum(count for _, count in rest):,} of {len(rest)} more kinds")
    return f"passed over: {', '.join(shown)}"


def _counted(kind: str, count: int) -> str:
    advice = " (follow_links, --follow-links, walks them)" if kind == _LINKED else ""
    if not kind.startswith(".") and count != 1:
        head, _, tail = kind.partition(" " if kind.startswith(("file ", "folder ")) else "\0")
        kind = f"{head}s {tail}".rstrip()
    return f"{count:,} {kind}{advice}"


def what_is_there(kinds: Mapping[str, int], unreadable: int = 0) -> str:
    """What a folder without a readable image holds, for the message that says so."""
    found = [f"{unreadable:,} could not be read"] if unreadable else []
    return "; ".join([*found, tell_passed_over(kinds)] if kinds else found) or "it holds no files (hidden ones aside)"


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        if entry.is_file(follow_symlinks=False):  # nearly always
            return _FILE
        if entry.is_symlink() or getattr(entry, "is_junction", bool)():
            mode = entry.stat().st_mode
            return _LINKED if stat.S_ISDIR(mode) else _SPECIAL.get(stat.S_IFMT(mode), _FILE)
        if entry.is_dir():
            return _FOLDER
        return _FILE if entry.is_file() else _SPECIAL.get(stat.S_IFMT(entry.stat().st_mode), _FILE)
    except OSError:  # whoever reads it learns why
        return _FILE


def printable(path: "str | os.PathLike[str]") -> str:
    r"""A path's name with forward slashes; bytes that are no UTF-8 as `\xNN`, which every format can hold.

    No two names give one: where there are such bytes, or a `\x` stands in the name itself, each backslash of it is
    written twice.
    """
    name = os.fspath(path).replace(os.sep, "/")
    with suppress(UnicodeDecodeError):
        if _ESCAPE not in (text := os.fsencode(name).decode()):
            return text
    return os.fsencode(name.replace("\\", r"\\")).decode("utf-8", "backslashreplace")


def from_printable(text: str) -> str:
    """The name that `printable` was given, with forward slashes."""
    name = text.encode()
    if _ESCAPE in text:
        name = re.sub(rb"\\(?:\\|x([0-9a-f]{2}))", lambda found: bytes.fromhex((found[1] or b"5c").decode()), name)
    return os.fsdecode(name)


def worker_count() -> int:
    """Threads that decode: one for each core this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def prefetch(
    function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None, ahead: int = 64
) -> Iterator[R]:
    """`map(function, items)`, in order, computed by threads up to `ahead` items before they are asked for.

    Pillow lets go of the interpreter lock while it decodes and resizes, so threads are enough. An exception of
    `function` is raised at its item's turn.
    """
    pool = ThreadPoolExecutor(workers or worker_count(), thread_name_prefix="robustsim-decode")
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Not by the pool's own means: it needs modules that an interpreter which ends may have put away already.
        for future in pending:
            future.cancel()
        pool.shutdown(wait=False)
