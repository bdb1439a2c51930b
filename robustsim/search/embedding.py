"""Embed the images of a folder: decoding ahead, in constant memory, to be continued after any interruption."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from robustsim.errors import ImageError, InputError, OutputError
from robustsim.images.files import find_images, prefetch
from robustsim.images.inputs import load_square, stack_squares
from robustsim.images.preprocessing import Preprocessing
from robustsim.metric import RobustSim
from robustsim.search.store import FORMATS, Writer


@dataclass(frozen=True)
class EmbedReport:
    """What :func:`embed_folder` did: images embedded, files skipped, and how many of both an earlier run had done."""

    embedded: int
    failed: int
    resumed: int


def embed_images(
    metric: RobustSim, folder: "str | os.PathLike[str]", *, skip: int = 0
) -> "Iterator[tuple[Path, Tensor | ImageError]]":
    """(path below the folder, embedding (D,) or what is wrong with the file), in the order of ``find_images``.

    Threads decode ahead while the encoder works; memory does not grow with the folder.

    Args:
        metric: embeds, ``metric.batch_size`` images at a time.
        folder: the images.
        skip: files to leave out at the beginning.
    """
    root = Path(folder)
    decode = partial(_decode, root, metric.card.preprocessing)
    decoded = prefetch(decode, islice(find_images(root), skip, None), ahead=2 * metric.batch_size)
    waiting: list[tuple[Path, Tensor | ImageError]] = []
    squares: list[Tensor] = []
    for path, square in decoded:
        waiting.append((path, square))
        if isinstance(square, Tensor):
            squares.append(square)
        if len(squares) == metric.batch_size:
            yield from _embedded(metric, waiting, squares)
            waiting, squares = [], []
    yield from _embedded(metric, waiting, squares)


def _decode(root: Path, preprocessing: Preprocessing, path: Path) -> "tuple[Path, Tensor | ImageError]":
    try:
        return path, load_square(root / path, preprocessing)
    except ImageError as error:
        return path, error


def _embedded(
    metric: RobustSim, waiting: "list[tuple[Path, Tensor | ImageError]]", squares: list[Tensor]
) -> "Iterator[tuple[Path, Tensor | ImageError]]":
    rows = iter(metric.embed_pixels(stack_squares(squares, metric.device)).cpu() if squares else ())
    for path, found in waiting:
        yield path, next(rows) if isinstance(found, Tensor) else found


def embed_folder(
    metric: RobustSim,
    folder: "str | os.PathLike[str]",
    output: "str | os.PathLike[str]",
    *,
    restart: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda count: None,
    on_error: Callable[[ImageError], object] = lambda error: None,
) -> EmbedReport:
    """Embed all images below a folder into one file, which appears when it is whole.

    Until then a folder beside it, its name ending in ``.partial``, keeps what is done, and the same call continues from
    there, to the same result.
    Files that cannot be read are skipped and counted.

    Args:
        metric: embeds, ``metric.batch_size`` images at a time.
        folder: the images; see :func:`robustsim.images.find_images` for what counts.
        output: a file ending in ``.npz``, ``.parquet`` or ``.safetensors``.
        restart: forget what an interrupted run has done.
        overwrite: replace ``output`` if it is there.
        progress: called with the number of files done since the last call.
        on_error: called for each file that is skipped.

    Raises:
        InputError: no such format.
        ImageError: there is no such folder, or no image in it.
        OutputError: the output is there already, cannot be written, or is being written by another run; or the
            folder or the model is not the one that the interrupted run saw.
    """
    out = Path(output)
    if out.suffix not in FORMATS:
        raise InputError(f"{out.name!r} ends in none of {', '.join(FORMATS)}")
    FORMATS[out.suffix].check(out)
    if out.exists() and not overwrite:
        raise OutputError(f"{os.fspath(out)!r} is there already: pass overwrite (--overwrite) or another name")
    partial_dir = out.with_suffix(".partial")
    try:
        partial_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(partial_dir / "lock", timeout=0):
            report = _run(metric, Path(folder), out, partial_dir, restart, progress, on_error)
        shutil.rmtree(partial_dir)
    except Timeout:
        raise OutputError(f"another run is writing {os.fspath(out)!r} at this moment") from None
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write {os.fspath(out)!r}: {error.strerror or error}; what is done is kept in "
            f"{os.fspath(partial_dir)!r}, and the same command continues from there"
        ) from error
    return report


def _run(
    metric: RobustSim,
    folder: Path,
    out: Path,
    partial_dir: Path,
    restart: bool,
    progress: Callable[[int], object],
    on_error: Callable[[ImageError], object],
) -> EmbedReport:
    journal = _Journal(partial_dir, metric.card.embedding_dim)
    identity = {
        "folder": os.fspath(folder.resolve()),
        "model": json.loads(metric.card.to_json()),
        **_weights_id(metric),
    }
    resumed = 0
    if restart:
        journal.clear()
    elif journal.identity() not in (None, identity):
        raise OutputError(
            f"{os.fspath(partial_dir)!r} was begun with another folder or model: pass restart (--restart), or "
            "choose another output"
        )
    else:
        resumed = journal.resume(folder)
        progress(resumed)
    journal.begin(identity)
    with journal:
        for path, result in embed_images(metric, folder, skip=resumed):
            if isinstance(result, ImageError):
                on_error(result)
                journal.add(folder, path, error=str(result))
            else:
                journal.add(folder, path, embedding=result)
            progress(1)
    if not journal.good:
        shutil.rmtree(partial_dir)
        raise ImageError(f"the folder {os.fspath(folder)!r} holds no readable images ({journal.bad} could not be read)")
    with FORMATS[out.suffix](out, journal.good, metric.card.embedding_dim, metric.card.name) as writer:
        journal.copy_to(writer)
    return EmbedReport(embedded=journal.good, failed=journal.bad, resumed=resumed)


def _weights_id(metric: RobustSim) -> dict[str, str]:
    """What tells two sets of weights apart, the encoder's type included."""
    digest = sha256()
    for key, value in metric.encoder.state_dict().items():
        digest.update(f"{key} {value.dtype}".encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {"weights": digest.hexdigest()}


class _Journal:
    """What an unfinished run has done: rows of float32, and a line for each file in the order of the walk."""

    def __init__(self, root: Path, dim: int) -> None:
        self.dim = dim
        self._identity = root / "run.json"
        self._rows = root / "embeddings.f32"
        self._lines = root / "files.jsonl"
        self.good = self.bad = 0
        self._open: list[Any] = []

    def identity(self) -> Any:
        try:
            return json.loads(self._identity.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def clear(self) -> None:
        for path in (self._identity, self._rows, self._lines):
            path.unlink(missing_ok=True)

    def begin(self, identity: Any) -> None:
        self._identity.write_text(json.dumps(identity), encoding="utf-8")

    def resume(self, folder: Path) -> int:
        """Check what is done against the folder, cut off what was half-written; the number of files done."""
        if self.identity() is None:
            self.clear()
            return 0
        rows = self._rows.stat().st_size // (4 * self.dim) if self._rows.exists() else 0
        walk, end, done = find_images(folder), 0, 0
        with suppress(FileNotFoundError), self._lines.open("rb") as lines:
            for line in lines:
                entry = _parse(line)
                if entry is None or ("error" not in entry and self.good == rows):
                    break
                path = next(walk, None)
                if path is None or entry != {**entry, **_stamp(folder, path)}:
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

    def add(self, folder: Path, path: Path, *, embedding: Tensor | None = None, error: str | None = None) -> None:
        rows, lines = self._open
        entry: dict[str, Any] = _stamp(folder, path)
        if embedding is None:
            entry["error"], self.bad = error, self.bad + 1
        else:
            rows.write(embedding.numpy().astype("<f4", copy=False).tobytes())  # the row first: a line vouches for it
            self.good += 1
        lines.write(json.dumps(entry).encode() + b"\n")

    def copy_to(self, writer: Writer) -> None:
        """The result, in blocks; the names are read twice, so that nobody holds them all."""
        writer.names(lambda: self._names())
        with self._rows.open("rb") as file:
            while block := file.read(4 * self.dim * 4096):
                writer.rows(np.frombuffer(block, dtype="<f4").reshape(-1, self.dim))

    def _names(self) -> Iterator[str]:
        with self._lines.open("rb") as lines:
            for line in lines:
                entry = json.loads(line)
                if "error" not in entry:
                    yield entry["file"]


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return entry


def _stamp(folder: Path, path: Path) -> dict[str, Any]:
    stat = (folder / path).stat()
    return {"file": path.as_posix(), "size": stat.st_size, "mtime": stat.st_mtime_ns}
