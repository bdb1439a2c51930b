"""Rows of numbers on disk: what a run has made of its pictures, each at its place, in whatever order they are done."""

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsim.errors import OutputError


class Rows:
    """A file of so many rows, beside the journal that says which of them are there.

    What is written is given to the system before it returns, so that it outlives this process. Several processes may
    write rows of their own. Memory is that of the rows that are asked for.

    Args:
        path: the file, made if it is not there.
        count: how many rows.
        shape: of one.
        dtype: of its numbers.
    """

    def __init__(self, path: Path, count: int, shape: Sequence[int], dtype: "type[Any]" = np.float32) -> None:
        self._path, self._count, self._shape, self._dtype = path, count, tuple(shape), np.dtype(dtype)
        self._row = prod(self._shape) * self._dtype.itemsize
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            if os.fstat(self._file.fileno()).st_size != count * self._row:
                os.truncate(self._file.fileno(), count * self._row)
        except OSError as error:
            raise self._fault(error) from error

    def __enter__(self) -> "Rows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, first: int, rows: "NDArray[Any]") -> None:
        """Rows (n, ...) from this place on.

        Raises:
            OutputError: they cannot be written.
        """
        data = memoryview(np.ascontiguousarray(rows, self._dtype).tobytes())
        try:
            self._file.seek(first * self._row)
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._fault(error) from error

    def read(self, first: int, last: int) -> "NDArray[Any]":
        """The rows from one place to before another, (n, ...)."""
        self._file.seek(first * self._row)
        wanted = (last - first) * self._row
        data = bytearray(wanted)
        view, got = memoryview(data), 0
        while got < wanted and (more := self._file.readinto(view[got:])):
            got += more
        if got < wanted:
            raise OutputError(f"'{self._path}' is shorter than it was: pass restart (--restart)")
        return np.frombuffer(data, self._dtype).reshape(last - first, *self._shape)

    def take(self, places: "NDArray[np.int64]") -> "NDArray[Any]":
        """The rows at some places, (n, ...)."""
        mapped = np.memmap(self._path, self._dtype, "r", shape=(self._count, *self._shape))
        return np.array(mapped[places])

    def _fault(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write '{self._path}': {error.strerror or error}; the same command continues")
