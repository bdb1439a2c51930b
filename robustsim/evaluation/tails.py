"""How often different photographs come near each other: more of them than are changed, embedded and compared."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustsim.data.tables import read_header, read_rows, require
from robustsim.distances import finite, identities
from robustsim.encoders.pairs import make_tail, near_pairs
from robustsim.encoders.tail import Tail
from robustsim.errors import DataError, ImageError, OutputError
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.tasks.pictures import pictures_of
from robustsim.images.files import from_printable, prefetch, printable
from robustsim.images.inputs import load_square, stack_squares
from robustsim.metric import RobustSim

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 64
_NEAREST = 20  # pairs that are named, for people to look at


@dataclass(frozen=True)
class Photographs:
    """Embedded photographs.

    Attributes:
        names: of their files.
        pixels: a digest of what the model saw of each.
        rows: embeddings, (N, D) float32.
    """

    names: list[str] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)
    rows: "NDArray[np.float32] | None" = None


@dataclass(frozen=True)
class MeasuredTail:
    """What `measure_tail` found.

    Attributes:
        tail: for the card.
        failed: photographs that could not be read.
        resumed: photographs that an interrupted run had embedded.
        nearest: the nearest pairs that counted as different, with their distances: copies of one photograph among them
            make rates of false positives look larger than they are.
    """

    tail: Tail
    failed: int
    resumed: int
    nearest: tuple[tuple[str, str, float], ...]


def measure_tail(
    metric: RobustSim,
    root: Path,
    files: Sequence[Path],
    journal: Journal,
    *,
    before: Photographs | None = None,
    same: "Path | None" = None,
    about: str | None = None,
    progress: Callable[[int], object] = lambda count: None,
    on_error: Callable[[ImageError], object] = lambda error: None,
) -> MeasuredTail:
    """Compare all pairs of photographs. Embeddings are kept beside the journal, and memory is that of some blocks.

    Photographs are the same picture if the model sees the same pixels, or if a table says so.

    Args:
        metric: what is measured.
        root: their folder.
        files: photographs below it.
        journal: of this run, open; what is in it is not done again.
        before: more photographs, which have been embedded.
        same: a table (CSV) of copies, with the columns `file` and `same_as`, paths below `root`.
        about: the photographs in words, with their licence; the folder's name if not given.
        progress: called with the number of photographs done since the last call.
        on_error: called for each photograph that cannot be read; it is left out.

    Raises:
        InputError: there is no pair of different pictures.
        DataError: the table is none, or names what is not there.
        OutputError: the embeddings cannot be written.
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    links = copies_named(same, root)
    known = before or Photographs()
    names, pixels, first = list(known.names), list(known.pixels), len(known.names)
    resumed = failed = 0
    with _Kept(journal.root / "rows.f32", metric.card.embedding_dim) as kept:
        for start in range(0, len(files), _CHUNK):
            part, key = files[start : start + _CHUNK], (start, "embedded")
            if key in journal.done:
                resumed += len(journal.done[key]["names"])
            else:
                squares = read_squares(root, part, metric, on_error)
                found: dict[str, Any] = {"names": list(squares), "pixels": []}
                kept.cut(len(names) - first)  # what was written, and not noted
                if squares:
                    stacked = stack_squares(list(squares.values()), metric.device)
                    kept.add(embed(metric, stacked))
                    found["pixels"] = [row.tobytes().hex() for row in identities(stacked).numpy()]
                journal.add(*key, found)
            names += journal.done[key]["names"]
            pixels += journal.done[key]["pixels"]
            failed += len(part) - len(journal.done[key]["names"])
            progress(len(part))

        def read(places: "NDArray[np.int64]") -> "NDArray[np.float32]":
            old, new = places[places < first], places[places >= first] - first
            parts = [] if known.rows is None else [known.rows[old]]
            return np.concatenate([*parts, kept.read(new, len(names) - first)])

        near = near_pairs(read, pictures_of(names, pixels, links))
    data = about or f"{len(names):,} photographs of {root.resolve().name}"
    some = zip(near.left[:_NEAREST], near.right[:_NEAREST], near.distances[:_NEAREST], strict=True)
    nearest = tuple((names[i], names[j], float(distance)) for i, j, distance in some)
    return MeasuredTail(make_tail(near, data), failed, resumed, nearest)


def read_squares(
    root: Path, files: Sequence[Path], metric: RobustSim, on_error: Callable[[ImageError], object]
) -> dict[str, Tensor]:
    """Squares (S, S, 3) uint8 by name, of what can be read."""

    def square(file: Path) -> "Tensor | ImageError":
        try:
            return load_square(root / file, metric.card.preprocessing)
        except ImageError as error:
            return ImageError(str(error))

    squares = {}
    for file, found in zip(files, prefetch(square, files), strict=True):
        if isinstance(found, ImageError):
            on_error(found)
        else:
            squares[printable(file)] = found
    return squares


def embed(metric: RobustSim, pixels: Tensor) -> Tensor:
    """Embeddings, which are finite."""
    with torch.no_grad():
        z = metric.embed_pixels(pixels)
    return finite(z, z)


class _Kept:
    """Rows of float32 in a file, the first of which a journal has noted."""

    def __init__(self, path: Path, dim: int) -> None:
        self._path, self._dim = path, dim

    def __enter__(self) -> "_Kept":
        try:
            self._file = self._path.open("ab")
        except OSError as error:
            raise self._fault(error) from error
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def cut(self, rows: int) -> None:
        self._check(rows)
        self._file.truncate(4 * self._dim * rows)

    def add(self, rows: Tensor) -> None:
        try:
            self._file.write(rows.to(torch.float32).cpu().numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise self._fault(error) from error

    def read(self, places: "NDArray[np.int64]", count: int) -> "NDArray[np.float32]":
        if not count:
            return np.empty((0, self._dim), np.float32)
        self._check(count)
        return np.asarray(np.memmap(self._path, np.float32, "r", shape=(count, self._dim))[places])

    def _check(self, rows: int) -> None:
        if self._path.stat().st_size < 4 * self._dim * rows:
            raise OutputError(f"'{self._path}' is shorter than it was: pass restart (--restart)")

    def _fault(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write '{self._path}': {error.strerror or error}; the same command continues")


def copies_named(table: "Path | None", root: Path) -> list[tuple[str, str]]:
    """Pairs of files that a table (CSV) with the columns `file` and `same_as` says to show one picture.

    Raises:
        DataError: the table is none, or names what is not below the folder.
    """
    if table is None:
        return []
    columns = read_header(table)
    require(table, columns, ("file", "same_as"))
    found = [(str(row.get("file")), str(row.get("same_as"))) for row in read_rows(table, columns, None)]
    if missing := [name for pair in found for name in pair if not (root / from_printable(name)).is_file()]:
        raise DataError(
            f"{table} names {missing[0]!r}, which is no file below {os.fspath(root)!r}: its columns hold paths below it"
        )
    return found
