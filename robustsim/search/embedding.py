"""Embed the images of a folder: decoding ahead, in constant memory, to be continued after any interruption.

What is computed in torch needs torch; a metric on ONNX Runtime embeds without it.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from robustsim.errors import EncodingError, ImageError, InputError, OutputError
from robustsim.images.arrays import read_square
from robustsim.images.fast import Decode
from robustsim.images.files import find_images, prefetch, printable, what_is_there
from robustsim.images.preprocessing import Preprocessing
from robustsim.jsonl import parse_line
from robustsim.onnx import OnnxMetric
from robustsim.search.engines import Embeds, embed_squares, values_of
from robustsim.search.formats import FORMATS, Writer
from robustsim.search.partial import IDENTITY, Journal, remove_leftovers, working
from robustsim.search.stamps import Stamp, stamp_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from robustsim.metric import RobustSim

    Array = NDArray[np.float32]


@dataclass(frozen=True)
class EmbedReport:
    """What `embed_folder` did.

    Attributes:
        embedded: images whose embeddings are in the file.
        failed: images that could not be read.
        resumed: how many of both an earlier run had done.
        passed_over: how many files of each kind were left out; see `robustsim.images.FoundImages`.
    """

    embedded: int
    failed: int
    resumed: int
    passed_over: Mapping[str, int] = field(default_factory=dict)


@overload
def embed_images(
    metric: OnnxMetric, folder: "str | os.PathLike[str]", *, skip: int = 0, follow_links: bool = False
) -> "Iterator[tuple[Path, Array | ImageError]]": ...


@overload
def embed_images(
    metric: "RobustSim", folder: "str | os.PathLike[str]", *, skip: int = 0, follow_links: bool = False
) -> "Iterator[tuple[Path, Tensor | ImageError]]": ...


def embed_images(
    metric: Embeds, folder: "str | os.PathLike[str]", *, skip: int = 0, follow_links: bool = False
) -> "Iterator[tuple[Path, Tensor | Array | ImageError]]":
    """(path below the folder, embedding (D,) or what is wrong with the file), in the order of `find_images`.

    Threads decode ahead while the encoder works; memory does not grow with the folder.

    Args:
        metric: embeds, `metric.batch_size` images at a time; one on ONNX Runtime gives arrays, and imports no torch.
        folder: the images.
        skip: files to leave out at the beginning.
        follow_links: whether to walk linked folders too.

    Raises:
        ImageError: there is no such folder, or it may not be read.
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    walk = find_images(folder, follow_links=follow_links)
    for path, _, result in embed_stamped(metric, Path(folder), islice(walk, skip, None)):
        if isinstance(result, ImageError) or isinstance(metric, OnnxMetric):
            yield path, result
        else:
            import torch

            yield path, torch.from_numpy(result)


def embed_stamped(
    metric: Embeds, root: Path, paths: Iterable[Path]
) -> "Iterator[tuple[Path, Stamp, Array | ImageError]]":
    """(path, its stamp, embedding (D,) or what is wrong with the file), in their order; threads decode ahead.

    Args:
        metric: embeds, `metric.batch_size` images at a time.
        root: what the paths begin at.
        paths: the files.

    Raises:
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    decode = partial(_decode, root, metric.card.preprocessing, metric.decode)
    decoded = prefetch(decode, paths, ahead=2 * metric.batch_size)
    while batch := list(islice(decoded, metric.batch_size)):
        squares = [found for *_, found in batch if not isinstance(found, ImageError)]
        rows: Iterator[Array] = iter(embed_squares(metric, squares) if squares else ())
        results = [
            (path, stamp, found if isinstance(found, ImageError) else next(rows)) for path, stamp, found in batch
        ]
        for path, _, result in results:
            if not isinstance(result, ImageError) and not (np.isfinite(result).all() and result.any()):
                raise no_embedding(metric.card.name, f"the embedding of {printable(root / path)!r}")
        yield from results


def no_embedding(model: str, what: str) -> EncodingError:
    """The error for values of a model that are NaN, infinite, or nothing but zeros, and help nobody.

    Args:
        model: its name.
        what: which values.
    """
    return EncodingError(
        f"{model!r} gives values that are not finite, or nothing but zeros: {what}. Its weights are damaged, or they "
        "overflow in a type of few bits: get them anew, or load the model in float32"
    )


def _decode(
    root: Path, preprocessing: Preprocessing, way: Decode, path: Path
) -> "tuple[Path, Stamp, NDArray[np.uint8] | ImageError]":
    known = stamp_of(root, path)  # before it is read: what changes meanwhile is noticed
    try:
        return path, known, read_square(root / path, preprocessing, way)
    except ImageError as error:
        return path, known, ImageError(str(error))  # without the traceback, which holds the half-decoded picture


def embed_folder(
    metric: Embeds,
    folder: "str | os.PathLike[str]",
    output: "str | os.PathLike[str]",
    *,
    restart: bool = False,
    overwrite: bool = False,
    follow_links: bool = False,
    progress: Callable[[int], object] = lambda count: None,
    on_error: Callable[[ImageError], object] = lambda error: None,
) -> EmbedReport:
    """Embed all images below a folder into one file, which appears when it is whole.

    Until then a folder beside it, its name ending in `.partial`, keeps what is done, and the same call continues from
    there, to the same result.
    Files that cannot be read are skipped and counted.

    Args:
        metric: embeds, `metric.batch_size` images at a time; one on ONNX Runtime imports no torch.
        folder: the images; see [`find_images`][robustsim.images.find_images] for what counts.
        output: a file ending in `.npz`, `.parquet` or `.safetensors`.
        restart: forget what an interrupted run has done.
        overwrite: replace `output` if it is there.
        follow_links: walk linked folders too.
        progress: called with the number of files done since the last call.
        on_error: called for each file that is skipped.

    Raises:
        InputError: no such format.
        ImageError: there is no such folder, or no image in it.
        OutputError: the output is there already, cannot be written, or is being written by another run; or the
            folder, the model or its `decode` is not the one that the interrupted run saw.
        EncodingError: an embedding is not finite, or nothing but zeros. The output is not written.
    """
    out = Path(output)
    if out.suffix not in FORMATS:
        raise InputError(f"{out.name!r} ends in none of {', '.join(FORMATS)}")
    FORMATS[out.suffix].check(out)
    if out.exists() and not overwrite:
        raise OutputError(f"{os.fspath(out)!r} is there already: pass overwrite (--overwrite) or another name")
    with working(out, _Journal.FILES, [Path(folder)]) as partial_dir:
        return _run(metric, Path(folder), out, partial_dir, restart, follow_links, progress, on_error)


def _run(
    metric: Embeds,
    folder: Path,
    out: Path,
    partial_dir: Path,
    restart: bool,
    follow_links: bool,
    progress: Callable[[int], object],
    on_error: Callable[[ImageError], object],
) -> EmbedReport:
    journal = _Journal(partial_dir, metric.card.embedding_dim)
    identity = {
        "folder": os.fspath(folder.resolve()),
        "model": metric.card.to_identity(),
        **values_of(metric),
        **({"follow_links": True} if follow_links else {}),
        **({"decode": metric.decode} if metric.decode != "exact" else {}),
    }
    walk, resumed = find_images(folder, follow_links=follow_links), 0
    if restart:
        journal.clear()
    elif journal.identity() not in (None, identity):
        raise OutputError(
            f"{os.fspath(partial_dir)!r} was begun with another folder or model, another decode, or without its links "
            "or with them, or by another version: pass restart (--restart), or choose another output"
        )
    else:
        resumed = journal.resume(folder, follow_links)
        progress(resumed)
    journal.begin(identity)
    with journal:
        for _, stamp, result in embed_stamped(metric, folder, islice(walk, resumed, None)):
            if isinstance(result, ImageError):
                on_error(result)
                journal.add(stamp, error=str(result))
            else:
                journal.add(stamp, embedding=result)
            progress(1)
    if not journal.good:
        journal.remove()
        raise ImageError(
            f"the folder {os.fspath(folder)!r} holds no readable images: "
            f"{what_is_there(walk.passed_over, unreadable=journal.bad)}"
        )
    remove_leftovers(out.parent, out.name)  # nobody else writes this file: the lock is ours
    with FORMATS[out.suffix](out, journal.good, metric.card.embedding_dim, metric.card.name) as writer:
        journal.copy_to(writer)
    journal.remove()
    return EmbedReport(journal.good, journal.bad, resumed, dict(walk.passed_over))


class _Journal(Journal):
    """What an unfinished run has done: rows of float32, and a line for each file in the order of the walk."""

    FILES = (IDENTITY, "embeddings.f32", "files.jsonl")

    def __init__(self, root: Path, dim: int) -> None:
        super().__init__(root, self.FILES)
        self.dim = dim
        _, self._rows, self._lines = self._paths
        self.good = self.bad = 0
        self._open: list[Any] = []

    def resume(self, folder: Path, follow_links: bool) -> int:
        """Check what is done against the folder, cut off what was half-written; the number of files done."""
        if self.identity() is None:
            self.clear()
            return 0
        rows = self._rows.stat().st_size // (4 * self.dim) if self._rows.exists() else 0
        walk, end, done = find_images(folder, follow_links=follow_links), 0, 0
        with suppress(FileNotFoundError), self._lines.open("rb") as lines:
            for line in lines:
                entry = parse_line(line)
                if entry is None or ("error" not in entry and self.good == rows):
                    break
                path = next(walk, None)
                if path is None or entry != {**entry, **stamp_of(folder, path)}:
                    raise OutputError(
                        f"the folder {os.fspath(folder)!r} changed since the interrupted run ({entry['file']!r} is not "
                        "what it was): pass restart (--restart) to begin anew"
                    )
                end, done = end + len(line), done + 1
                self.good, self.bad = self.good + ("error" not in entry), self.bad + ("error" in entry)
        for path, size in ((self._lines, end), (self._rows, 4 * self.dim * self.good)):
            if path.exists():
                os.truncate(path, size)
        return done

    def __enter__(self) -> "_Journal":
        self._open = [self._rows.open("ab", buffering=0), self._lines.open("ab", buffering=0)]
        return self

    def __exit__(self, *details: object) -> None:
        for file in self._open:
            file.close()

    def add(self, stamp: Stamp, *, embedding: "Array | None" = None, error: str | None = None) -> None:
        rows, lines = self._open
        entry = dict(stamp)
        if embedding is None:
            entry["error"], self.bad = error, self.bad + 1
        else:
            rows.write(embedding.astype("<f4", copy=False).tobytes())  # the row first: a line vouches for it
            self.good += 1
        lines.write(json.dumps(entry).encode() + b"\n")

    def copy_to(self, writer: Writer) -> None:
        """The result, in blocks; the names are read twice, so that nobody holds them all."""
        writer.names(lambda: self._names())
        with self._rows.open("rb") as file:
            while block := file.read(4 * self.dim * 4096):
                rows = np.frombuffer(block, dtype="<f4").reshape(-1, self.dim)
                if not np.isfinite(rows).all():  # of an earlier version, which did not look
                    raise no_embedding(
                        writer.model, "what an interrupted run has left; begin anew by restart (--restart)"
                    )
                writer.rows(rows)

    def _names(self) -> Iterator[str]:
        with self._lines.open("rb") as lines:
            for line in lines:
                entry = json.loads(line)
                if "error" not in entry:
                    yield entry["file"]
