"""What an unfinished run has done, a line for each part of it; survives being killed at any moment."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from robustsim.encoders.weights import whole_file
from robustsim.errors import OutputError
from robustsim.jsonl import parse_line

_LOCK, _IDENTITY = "lock", "run.json"
Part = tuple[int, str]


class Journal:
    """A folder with a file of lines for each process that takes part.

    Args:
        root: the folder, made if it is not there.
        identity: what the run is; what is there must be of the same one.
        worker: the number of this process.

    Attributes:
        done: the parts that any process has done, by chunk and name, and what they found.
    """

    def __init__(self, root: Path, identity: dict[str, Any], *, worker: int = 0) -> None:
        self._root = root
        self._identity = json.loads(json.dumps(identity))  # as it is read back
        self._path = root / f"journal-{worker}.jsonl"
        self._lock = FileLock(root / f"{_LOCK}-{worker}", timeout=0)
        self._file: Any = None
        self.done: dict[Part, dict[str, Any]] = {}

    @property
    def root(self) -> Path:
        """The folder: what a run keeps there in files `*.f32`, `*.u8` and `rebuilt-*.png` goes with the journal."""
        return self._root

    def __enter__(self) -> "Journal":
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            kept = self._root / _IDENTITY
            with suppress(FileNotFoundError, ValueError):
                if json.loads(kept.read_text(encoding="utf-8")) != self._identity:
                    raise OutputError(
                        f"{os.fspath(self._root)!r} was begun as another run: pass restart (--restart), or choose "
                        "another output"
                    )
            if not kept.exists():
                with whole_file(kept) as temporary:
                    temporary.write_text(json.dumps(self._identity), encoding="utf-8")
            self._read_own()
            self.read_all()
            self._file = self._path.open("ab")
        except Timeout:
            raise OutputError(f"another process is at work in {os.fspath(self._root)!r} at this moment") from None
        except OSError as error:
            self._lock.release()
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write {os.fspath(self._root)!r}: {error.strerror or error}") from error
        return self

    def __exit__(self, *details: object) -> None:
        try:
            if self._file is not None:
                with suppress(OSError):  # what could not be written has been told
                    self._file.close()
        finally:
            self._lock.release()

    def add(self, chunk: int, part: str, found: dict[str, Any]) -> None:
        """Keep what a part has found."""
        line = json.dumps({"chunk": chunk, "part": part, "found": found}) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()  # from here on it outlives this process
        except OSError as error:
            raise OutputError(
                f"cannot write {os.fspath(self._path)!r}: {error.strerror or error}; the same command continues from "
                "what is there"
            ) from error
        self.done[chunk, part] = found

    def read_all(self) -> None:
        """Take in what the other processes have done."""
        for path in self._root.glob("journal-*.jsonl"):
            for line in path.read_bytes().splitlines(keepends=True):
                entry = parse_line(line)
                if entry is None:
                    break
                key = entry["chunk"], entry["part"]
                if "error" in self.done.get(key, {"error": ""}):  # what was read after all counts
                    self.done[key] = entry["found"]

    def is_settled(self, chunk: int, part: str) -> bool:
        """Whether a part is done and was read whole: what could not be read is tried again."""
        found = self.done.get((chunk, part))
        return found is not None and "error" not in found

    def check(self, keys: Iterable[Part]) -> None:
        """Refuse to go on where parts are missing that any process should have done.

        Raises:
            OutputError: there are some.
        """
        if missing := sum(key not in self.done for key in keys):
            raise OutputError(
                f"{missing} parts of the run are missing: did its processes work on devices of several kinds? The same "
                "command continues"
            )

    def remove(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()
        _remove(self._root)

    def _read_own(self) -> None:
        """Cut off a line that was half-written."""
        if not self._path.exists():
            return
        end = 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            if parse_line(line) is None:
                break
            end += len(line)
        os.truncate(self._path, end)


def discard(root: Path) -> None:
    """Remove what an interrupted run has left.

    Raises:
        OutputError: it is not interrupted, but at work.
    """
    if root.is_dir():
        try:
            with FileLock(root / f"{_LOCK}-0", timeout=0):
                pass
        except Timeout:
            raise OutputError(f"another process is at work in {os.fspath(root)!r} at this moment") from None
        _remove(root)


def _remove(root: Path) -> None:
    for kind in ("journal-*.jsonl", "*.f32", "*.u8", "rebuilt-*.png", f"{_LOCK}-*", _IDENTITY):
        for path in root.glob(kind):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody put something of his own there
        root.rmdir()
