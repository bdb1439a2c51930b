"""What an unfinished run has done, in a folder beside the file that it will write, for the run that continues it."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from robustsim.encoders.weights import whole_file
from robustsim.errors import OutputError, RobustSimError

LOCK = "lock"
#: Says what the run was begun with; the first of the files of any journal.
IDENTITY = "run.json"


@contextmanager
def working(out: Path, files: Sequence[str], inputs: Iterable[Path], folder: Path | None = None) -> Iterator[Path]:
    """The folder that keeps what is done of `out`, its name ending in `.partial`; it is this run's alone meanwhile.

    Args:
        out: what will be written.
        files: the names of what the run keeps there.
        inputs: folders that it must not be, nor be above.
        folder: where, if not by the name of `out` without its suffix.

    Raises:
        OutputError: it is somebody else's, another run is in it, or something cannot be written.
    """
    folder = out.with_suffix(".partial") if folder is None else folder
    _check(folder, files, inputs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            yield folder
    except Timeout:
        raise OutputError(f"another run is writing {os.fspath(out)!r} at this moment") from None
    except OSError as error:
        if isinstance(error, RobustSimError):
            raise
        raise OutputError(
            f"cannot write {os.fspath(out)!r}: {error.strerror or error}; what is done is kept in "
            f"{os.fspath(folder)!r}, and the same command continues from there"
        ) from error


def _check(folder: Path, files: Sequence[str], inputs: Iterable[Path]) -> None:
    """Refuse to work in, and later remove, a folder that is somebody else's."""
    if not folder.exists():
        return
    ours = {LOCK, *files}
    foreign = not folder.is_dir() or any(
        entry.name not in ours and not _is_leftover(entry, IDENTITY) for entry in folder.iterdir()
    )
    if foreign or any(folder.resolve() in (one.resolve(), *one.resolve().parents) for one in inputs):
        raise OutputError(
            f"{os.fspath(folder)!r}, where this run would keep what is done, is in use for something else: "
            "choose another output"
        )


def _is_leftover(path: Path, name: str) -> bool:
    """Whether a killed run left this when it wrote `name` through `whole_file`."""
    return path.name.startswith(f".{name}.") and path.suffix == ".part"


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove what killed runs have left of `name`."""
    for path in folder.iterdir():
        if _is_leftover(path, name):
            path.unlink(missing_ok=True)


class Journal:
    """The files in such a folder, the first of which says what the run was begun with.

    Args:
        root: the folder.
        files: names of all of them, `IDENTITY` first.
    """

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._root, self._paths = root, [root / name for name in files]

    def identity(self) -> Any:
        """What the run was begun with; None if there is none."""
        try:
            return json.loads(self._paths[0].read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def begin(self, identity: Any) -> None:
        """Say what this run is begun with."""
        if self.identity() != identity:
            with whole_file(self._paths[0]) as temporary:
                temporary.write_text(json.dumps(identity), encoding="utf-8")

    def clear(self) -> None:
        """Forget what is done."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        remove_leftovers(self._root, IDENTITY)

    def remove(self) -> None:
        """Leave nothing behind, the lock that is held included: whoever comes next makes a new one."""
        self.clear()
        with suppress(OSError):  # some systems do not remove what is open
            (self._root / LOCK).unlink()
            self._root.rmdir()
