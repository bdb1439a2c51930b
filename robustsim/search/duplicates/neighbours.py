"""Which pictures are near which, on the disk: pairs may be many more than pictures.

Pairs of rows come in any order, of several views and by several lines. They are written as they come, in both
directions, sorted by their pictures by counting, and brought together: the least distance of each line for each pair of
pictures. Memory is linear in pictures.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.errors import OutputError, RobustSimError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RECORD = np.dtype([("picture", "<i4"), ("other", "<i4"), ("line", "u1"), ("distance", "<f8")])
_CHUNK = 1 << 20  # records at a time


@dataclass(eq=False)
class Neighbours:
    """For each of P pictures, those that a line finds near it, by their numbers.

    Attributes:
        starts: (P + 1,) int64: those of picture p are from `starts[p]` to `starts[p + 1]`.
        others: (E,) int32, ascending for each picture.
        distances: (E, L) float64, of each line; infinite where it did not find the pair.
    """

    starts: "NDArray[np.int64]"
    others: "NDArray[np.int32]"
    distances: "NDArray[np.float64]"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, picture: int) -> "tuple[NDArray[np.int32], NDArray[np.float64]]":
        """Those near a picture, and their distances, (M,) and (M, L)."""
        some = slice(self.starts[picture], self.starts[picture + 1])
        return self.others[some], self.distances[some]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Pictures, from one number to another, as many as have few neighbours together."""
        return _chunks(self.starts)


def bring_together(
    parts: "Iterable[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]", count: int, lines: int
) -> Neighbours:
    """Sort pairs by their pictures.

    Args:
        parts: of pairs: the number of a line, (M,) pictures, (M,) others, (M,) distances. A pair may come again.
        count: P.
        lines: L.

    Raises:
        OutputError: the folder for temporary files is full.
    """
    folder = Path(tempfile.mkdtemp(prefix="robustsim-pairs-"))
    try:
        with _told(folder):
            degrees = _write(folder / "pairs", parts, count)
            starts = np.concatenate(([0], np.cumsum(degrees)))
            _sort(folder / "pairs", folder / "sorted", starts)
            (folder / "pairs").unlink()
            found = _reduce(folder, starts, lines)
            (folder / "sorted").unlink(missing_ok=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, RobustSimError):
            raise
        raise OutputError(
            f"cannot keep the pairs in {os.fspath(folder)!r}: {error.strerror or error}. The variable TMPDIR names "
            "another place; at a smaller distance there are fewer of them"
        ) from error


def _write(path: Path, parts: Iterable[Any], count: int) -> "NDArray[np.int64]":
    """All pairs in both directions, and how many each picture has, (P,)."""
    degrees = np.zeros(count, np.int64)
    with path.open("wb") as file:
        for line, pictures, others, distances in parts:
            records = np.empty(2 * len(pictures), _RECORD)
            records["picture"] = np.concatenate((pictures, others))
            records["other"] = np.concatenate((others, pictures))
            records["line"], records["distance"] = line, np.concatenate((distances, distances))
            degrees += np.bincount(records["picture"], minlength=count)
            file.write(records.tobytes())
    return degrees


def _mapped(path: Path, kind: Any, shape: tuple[int, ...], mode: Any = "r") -> "NDArray[Any]":
    if 0 in shape:
        return np.empty(shape, kind)
    if mode == "r+":
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would be a signal later
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    return np.memmap(path, kind, mode, shape=shape)


def _sort(source: Path, target: Path, starts: "NDArray[np.int64]") -> None:
    """By counting: each record goes to the next free place of its picture."""
    free, size = starts[:-1].copy(), int(starts[-1])
    out = _mapped(target, _RECORD, (size,), "r+")
    with source.open("rb") as file:
        while block := file.read(_CHUNK * _RECORD.itemsize):
            records = np.frombuffer(block, _RECORD)
            records = records[np.argsort(records["picture"], kind="stable")]
            pictures, first, counts = np.unique(records["picture"], return_index=True, return_counts=True)
            out[np.repeat(free[pictures] - first, counts) + np.arange(len(records))] = records
            free[pictures] += counts


def _chunks(starts: "NDArray[np.int64]") -> Iterator[tuple[int, int]]:
    start, count = 0, len(starts) - 1
    while start < count:
        stop = int(np.searchsorted(starts, starts[start] + _CHUNK, "right")) - 1
        stop = min(count, max(start + 1, stop))
        yield start, stop
        start = stop


def _reduce(folder: Path, starts: "NDArray[np.int64]", lines: int) -> Neighbours:
    """One entry for each picture and each other one."""
    records = _mapped(folder / "sorted", _RECORD, (int(starts[-1]),))
    degrees = np.zeros(len(starts) - 1, np.int64)
    with (folder / "others").open("wb") as others, (folder / "distances").open("wb") as distances:
        for start, stop in _chunks(starts):
            some = np.array(records[starts[start] : starts[stop]])
            some = some[np.lexsort((some["other"], some["picture"]))]
            is_new = np.ones(len(some), bool)
            is_new[1:] = (np.diff(some["picture"]) != 0) | (np.diff(some["other"]) != 0)
            least = np.full((int(is_new.sum()), lines), np.inf)
            np.minimum.at(least, (np.cumsum(is_new) - 1, some["line"]), some["distance"])
            degrees[start:stop] = np.bincount(some["picture"][is_new] - start, minlength=stop - start)
            others.write(some["other"][is_new].astype("<i4").tobytes())
            distances.write(least.astype("<f8").tobytes())
    ends = np.concatenate(([0], np.cumsum(degrees)))
    size = int(ends[-1])
    return Neighbours(
        ends, _mapped(folder / "others", "<i4", (size,)), _mapped(folder / "distances", "<f8", (size, lines))
    )
