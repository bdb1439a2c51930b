"""Walk folders of pictures, and read ahead of whoever uses them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from robustsim.errors import ImageError

T = TypeVar("T")
R = TypeVar("R")

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


def find_images(folder: "str | os.PathLike[str]") -> Iterator[Path]:
    """The image files below a folder, relative to it, in a fixed order; nothing but one folder's names is held.

    Files count by their suffix (JPEG, PNG, WebP, GIF, BMP, TIFF); names that begin with a dot are left out, and
    links to folders are not followed. What cannot be read (a broken link, a folder that may not be listed) is among
    them, so that its reader reports it.

    Raises:
        ImageError: there is no such folder, or it may not be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(f"{os.fspath(folder)!r} is not a folder")
    return _walk(root, Path())


def _walk(root: Path, below: Path) -> Iterator[Path]:
    try:
        with os.scandir(root / below) as entries:
            named = sorted((entry.name, _is_folder(entry)) for entry in entries)
    except OSError as error:
        if below == Path():
            raise ImageError(f"cannot list {os.fspath(root)!r}: {error.strerror or error}") from error
        yield below  # whoever reads it learns why it cannot be read
        return
    for name, is_folder in named:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(root, below / name)
        elif os.path.splitext(name)[1].lower() in SUFFIXES:
            yield below / name


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def printable(path: Path) -> str:
    r"""A path's name with forward slashes; bytes that are no UTF-8 as ``\xNN``, which every format can hold."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def worker_count() -> int:
    """Threads that decode: one for each core this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def prefetch(
    function: Callable[[T], R], items: Iterable[T], *, workers: int | None = None, ahead: int = 64
) -> Iterator[R]:
    """``map(function, items)``, in order, computed by threads up to ``ahead`` items before they are asked for.

    Pillow lets go of the interpreter lock while it decodes and resizes, so threads are enough. An exception of
    ``function`` is raised at its item's turn.
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
