"""What lies beside the rows, caches and fragments that do not count yet, and how it goes before rows are erased."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from robustsim.errors import OutputError

FOLDER, LOCK = "approximate", "approximate.lock"
#: Of `robustsim.search.storage.fragments`.
FRAGMENTS = "fragments"

_PATIENCE = 300  # seconds that who erases waits for one that is being made


@contextmanager
def cleared(folder: Path) -> Iterator[None]:
    """Remove what was made from rows, or for them; until the block ends, in which rows are erased, none makes caches.

    Args:
        folder: of the index.

    Raises:
        OutputError: one is being made and does not come to an end, or cannot be removed.
    """
    with making(folder, _PATIENCE):
        remove(folder / FOLDER)
        remove(folder / FRAGMENTS)
        yield


@contextmanager
def making(folder: Path, patience: float = -1) -> Iterator[None]:
    """Nobody else makes one until the block ends.

    Args:
        folder: of the index.
        patience: seconds to wait for another process that does; -1 for as long as it takes.

    Raises:
        OutputError: it did not come to an end, or the folder may not be written.
    """
    lock = FileLock(folder / LOCK, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"another process has been making an approximate index in {os.fspath(folder)!r} for {patience} seconds: "
            "nothing was changed"
        ) from None
    except OSError as error:
        raise OutputError(
            f"cannot write {os.fspath(folder)!r}, where an approximate search keeps what it makes: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {os.fspath(path)!r}: {error.strerror or error}") from error
