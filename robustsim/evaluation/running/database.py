"""The pictures that are searched: embedded once, kept on disk, and compared with queries in parts that fit."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.errors import ImageError, ObjectiveError, OutputError
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.rows import Rows
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.statistics import Array
from robustsim.evaluation.subjects import Subject
from robustsim.evaluation.tasks.pictures import Photo, decode_square
from robustsim.images import prefetch
from robustsim.images.inputs import stack_squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EMBEDDED, _NAME = "embedded", "database.f32"
# Numbers of distances, and of embeddings, that are held at once: 256 MB.
_MOST_NUMBERS = 2**26


class Database:
    """Embeddings of pictures, each at its place.

    Args:
        metric: one with embeddings.
        files: the pictures, each once.
        batch_size: pictures per encoding.

    Attributes:
        unread: places of pictures that cannot be read, and why; known once all are embedded.
    """

    def __init__(self, metric: Subject, files: Sequence[Path], batch_size: int) -> None:
        self.metric, self.files, self._size = metric, files, batch_size
        self.unread: dict[int, str] = {}
        self._path, self._width = Path(), 0

    def embed(self, journal: Journal, workers: Workers, *, progress: bool = False) -> None:
        """Embed what is missing; then all processes know all of it.

        Raises:
            ImageError: not a single one could be read.
            ObjectiveError: an embedding is not finite.
            OutputError: the file cannot be written, or is not what it was.
        """
        from tqdm import tqdm

        self._path = journal.root / _NAME
        chunks = range(-(-len(self.files) // self._size))
        keys = [(chunk, _EMBEDDED) for chunk in chunks]
        self._check_file(journal.done[key] for key in keys if key in journal.done)
        open_ = [n for n in chunks if n % workers.count == workers.number and not journal.is_settled(n, _EMBEDDED)]
        places = (place for chunk in open_ for place in self._members(chunk))
        load = partial(decode_square, self.metric)
        squares = prefetch(load, (Photo(self.files[place]) for place in places), ahead=2 * self._size)
        for chunk in tqdm(open_, desc=f"{self.metric.name}: database", unit="batch", disable=not progress):
            journal.add(chunk, _EMBEDDED, self._embedded(chunk, [next(squares) for _ in self._members(chunk)]))
        workers.wait()
        journal.read_all()
        journal.check(keys)
        for key in keys:
            errors = journal.done[key].get("error", {})
            self.unread.update({int(place): error for place, error in errors.items()})
            self._width = journal.done[key].get("width", self._width)
        if not self._width:
            first = next(iter(self.unread.values()), "there are none")
            raise ImageError(f"not a single picture of the database could be read; the first: {first}")

    def _members(self, chunk: int) -> range:
        return range(chunk * self._size, min((chunk + 1) * self._size, len(self.files)))

    def _check_file(self, done: Iterator[dict[str, Any]]) -> None:
        """Rows that the journal says are done must be there: zeros in their place would be figures, too."""
        width = next((found["width"] for found in done if "width" in found), 0)
        if width and (not self._path.is_file() or self._path.stat().st_size != 4 * width * len(self.files)):
            raise OutputError(f"'{self._path}' is not what it was: pass restart (--restart)")

    def _embedded(self, chunk: int, loaded: "Sequence[Tensor | ImageError]") -> dict[str, Any]:
        """Keep the embeddings of a chunk; for the journal, how long they are and what could not be read."""
        members = self._members(chunk)
        errors = {place: str(bad) for place, bad in zip(members, loaded, strict=True) if isinstance(bad, ImageError)}
        found: dict[str, Any] = {"error": errors} if errors else {}
        if good := [square for square in loaded if isinstance(square, Tensor)]:
            codes = embedded(self.metric, stack_squares(good, self.metric.device)).cpu().numpy()
            whole = np.zeros((len(members), codes.shape[1]), np.float32)
            whole[[row for row, place in enumerate(members) if place not in errors]] = codes
            with Rows(self._path, len(self.files), codes.shape[1:]) as rows:
                rows.write(members.start, whole)
            found["width"] = codes.shape[1]
        return found

    def distances(self, codes: Tensor) -> Iterator[Array]:
        """For each query (n, D) its distances to all pictures, or numbers of their order, (N,) float32.

        NaN where a picture could not be read.

        Raises:
            ObjectiveError: the metric gives NaN or infinity.
        """
        count, missing = len(self.files), list(self.unread)
        present = np.ones(count, dtype=bool)
        present[missing] = False
        together, step = max(1, _MOST_NUMBERS // count), max(1, _MOST_NUMBERS // self._width // 4)
        with Rows(self._path, count, (self._width,)) as rows:
            for first in range(0, len(codes), together):
                part = codes[first : first + together]
                found = np.empty((len(part), count), np.float32)
                for start in range(0, count, step):
                    block = torch.from_numpy(rows.read(start, min(start + step, count))).to(part.device)
                    found[:, start : start + len(block)] = self._compared(part, block).cpu().numpy()
                if not np.isfinite(found[:, present]).all():
                    raise ObjectiveError(f"{self.metric.name} gives NaN or infinity for queries and pictures")
                found[:, missing] = np.nan
                yield from found

    def take(self, places: "NDArray[np.int64]") -> Array:
        """The embeddings at some places, (n, D) float32."""
        with Rows(self._path, len(self.files), (self._width,)) as rows:
            return rows.take(places)

    def _compared(self, codes: Tensor, rows: Tensor) -> Tensor:
        """(n, m)."""
        with torch.no_grad():
            if self.metric.cosine:
                return 1 - F.normalize(codes, dim=1) @ F.normalize(rows, dim=1).T
            return torch.stack([self.metric.distance(code.expand_as(rows), rows).float() for code in codes])


def embedded(metric: Subject, pixels: Tensor) -> Tensor:
    """Embeddings (n, D) of pixels (n, 3, S, S), float32.

    Raises:
        ObjectiveError: they are not finite.
    """
    if metric.embed is None:
        raise RuntimeError("a metric of pairs embeds nothing")
    with torch.no_grad():
        codes = metric.embed(pixels)
    if not bool(torch.isfinite(codes).all()):
        raise ObjectiveError(f"{metric.name} gives NaN or infinity: a search needs finite embeddings")
    return codes.float()
