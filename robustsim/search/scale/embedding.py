"""Embed batches of pictures anywhere, and write what comes of them as fragments of an index: two plain functions.

Both take and give dicts of arrays, as Ray Data, Daft and Spark have them. A picture's embedding is the same to the bit
whichever batch it comes in: encoders get batches of one size, the last one filled up.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from robustsim.errors import ImageError, RobustSimError
from robustsim.images.files import prefetch, worker_count
from robustsim.images.views.load import load_views
from robustsim.images.views.names import check_views
from robustsim.search.index.files import load_file
from robustsim.search.index.models import Models, loader
from robustsim.search.index.pictures import Embedded, Loading, embed_loaded
from robustsim.search.scale.sources import open_bytes
from robustsim.search.stamps import Stamp
from robustsim.search.storage.fragments import write_rows
from robustsim.search.storage.rows import Entry, Vectors, make_table
from robustsim.search.storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

_AHEAD = 64  # pictures decoded before they are asked for; 16 where there are views of them


class Encoders:
    """The models of an index, as a worker holds them.

    Attributes:
        columns: of the index.

    Args:
        index: its folder.
        device: where the models compute.
        threads: that encode and decode; None for as many as there are cores.
    """

    def __init__(self, index: str, device: str | None, threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        snapshot = Store(index).read()
        self.columns: pa.Schema = snapshot.dataset.schema
        self._models = Models(index, snapshot.header, (), loader(device))
        self._views = check_views(snapshot.header.get("views", ()))
        self._preprocessings = [card.preprocessing for card in self._models.cards]
        self._threads = min(threads or worker_count(), worker_count())

    def embed(
        self, batch: "Mapping[str, Any]", filesystem: "pa.fs.FileSystem | None"
    ) -> "Iterator[tuple[int, Stamp, Embedded | ImageError]]":
        """(place in the batch, what the file is known by, what came of it), in their order."""

        def load(at: int) -> tuple[tuple[int, Stamp], Loading]:
            name, file = str(batch["path"][at]), str(batch["file"][at]) if "file" in batch else ""
            if "bytes" not in batch and not filesystem and "length" not in batch and "://" not in (file or name):
                (_, stamp), found = load_file(self._preprocessings, self._views, file or name)
                return (at, stamp), found
            stamp = {one: _number(batch, one, at) for one in ("size", "mtime")}
            try:
                data = bytes(batch["bytes"][at]) if "bytes" in batch else self._read(batch, at, filesystem)
                stamp |= {"id": hashlib.sha256(data).hexdigest(), "file": name}
                stamp["size"] = len(data) if stamp["size"] is None else stamp["size"]
                return (at, stamp), load_views(data, self._preprocessings, self._views, hashed=True)
            except (ImageError, OSError) as error:
                return (at, stamp), ImageError(f"{name!r}: {error}")

        ahead = _AHEAD // 4 if self._views else _AHEAD
        loaded = prefetch(load, range(len(batch["path"])), workers=self._threads, ahead=ahead)
        called = lambda key: repr(str(batch["path"][key[0]]))  # noqa: E731
        for (at, stamp), found in embed_loaded(self._models.every, loaded, called, fill=True):
            if "error" in stamp and not isinstance(found, ImageError):
                found = ImageError(f"cannot read {str(batch['path'][at])!r}: {stamp['error']}")
            yield at, stamp, found

    @staticmethod
    def _read(batch: "Mapping[str, Any]", at: int, filesystem: "pa.fs.FileSystem | None") -> bytes:
        file = str(batch["file"][at] if "file" in batch else batch["path"][at])
        length = _number(batch, "length", at)
        return open_bytes(file, filesystem, _number(batch, "offset", at) or 0, length)


@lru_cache(maxsize=2)
def _encoders(index: str, device: str | None, threads: int | None) -> Encoders:
    return Encoders(index, device, threads)


def embed_batch(
    batch: "Mapping[str, Any]",
    *,
    index: "str | os.PathLike[str]",
    device: str | None = None,
    threads: int | None = None,
    filesystem: "pa.fs.FileSystem | None" = None,
) -> dict[str, Any]:
    """Decode pictures, and embed them by the models of an index, which a process loads once.

    Args:
        batch: N pictures: `path`, what the index is to call each, which is its file's absolute name unless there are
            `bytes`, their contents. With `file` that is opened instead, of `filesystem` if there is one, or by its URL;
            with `offset` and `length` a part of it. `size` and `mtime` (nanoseconds) are what a file of that kind is
            known by, `label` and `tenant` are kept with the pictures.
        index: the folder of the index, which this process must see.
        device: where the models compute; the best there is if not given.
        threads: that encode, and that decode; as many as there are cores if not given.
        filesystem: of pyarrow, which opens the files; None for one by the URL, or the local one.

    Returns:
        Columns for `write_fragment`: those that describe a row, a row for each view of a picture; `embedding`,
        `embedding_1` and so on, (M, D) float32, of length 1; and `error`, why a picture could not be read, else "".

    Raises:
        SearchError: there is no index, or its model is not there.
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    encoders = _encoders(os.fspath(index), device, threads)
    names = [Vectors.of(number).embedding for number in range(len(encoders._models))]
    dims = [card.embedding_dim for card in encoders._models.cards]
    rows: list[Entry] = []
    errors: list[str] = []
    vectors: list[list[Any]] = [[] for _ in names]
    for at, stamp, found in encoders.embed(batch, filesystem):
        label, tenant = (_text(batch, one, at) for one in ("label", "tenant"))
        if isinstance(found, ImageError):
            rows.append(Entry("", str(batch["path"][at]), label=label, tenant=tenant))
            errors.append(str(found))
            for column, dim in zip(vectors, dims, strict=True):
                column.append(np.zeros(dim, np.float32))
            continue
        entry = Entry(stamp["id"], stamp["file"], stamp["size"], stamp["mtime"], label, tenant)
        for seen in found.views:
            rows.append(entry._replace(view=seen.view, width=found.width, height=found.height, hash=seen.hash))
            errors.append("")
            for column, one in zip(vectors, seen.embeddings, strict=True):
                column.append(one.numpy())
    made: dict[str, Any] = {}
    for place, name in enumerate(Entry._fields):
        made[name] = np.array([row[place] for row in rows] + [None], object)[:-1]
    for name, column, dim in zip(names, vectors, dims, strict=True):
        made[name] = np.stack(column) if column else np.empty((0, dim), np.float32)
    return {**made, "error": np.array(errors, object)}


def write_fragment(rows: "Mapping[str, Any]", *, index: "str | os.PathLike[str]") -> dict[str, Any]:
    """Write rows that `embed_batch` made as a fragment of an index, which counts when `commit_fragments` takes it in.

    Args:
        rows: columns of `embed_batch`.
        index: the folder of the index.

    Returns:
        One row: `fragment`, its name, "" if none of the pictures could be read; `pictures`, how many could; `failed`,
        JSON of [path, reason] of the others.

    Raises:
        OutputError: it cannot be written.
    """
    folder, good = Store(index).folder, [at for at, error in enumerate(rows["error"]) if not error]
    failed = [[str(rows["path"][at]), str(error)] for at, error in enumerate(rows["error"]) if error]
    name, pictures = "", 0
    if good:
        columns = _columns(os.fspath(folder))
        described = [[_plain(rows[field][at]) for at in good] for field in Entry._fields]
        entries = [Entry(*words) for words in zip(*described, strict=True)]
        vectors = [
            np.stack([np.asarray(rows[one][at], np.float32) for at in good])
            for one in (Vectors.of(number).embedding for number in range(len(columns.names)))
            if one in rows
        ]
        name = write_rows(folder, make_table(entries, vectors, columns))
        pictures = sum(not entry.view for entry in entries)
    return {
        "fragment": np.array([name], object),
        "pictures": np.array([pictures], np.int64),
        "failed": np.array([json.dumps(failed)], object),
    }


@lru_cache(maxsize=2)
def _columns(folder: str) -> "pa.Schema":
    return Store(Path(folder)).read().dataset.schema


def _plain(value: Any) -> Any:
    """As rows of the index have it: NaN, which pandas has for what is missing in columns of numbers, is None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or value != value else int(value) if isinstance(value, float) else value


def _number(batch: "Mapping[str, Any]", name: str, at: int) -> int | None:
    value = _plain(batch[name][at]) if name in batch else None
    return None if value is None or (value < 0 and name != "mtime") else int(value)


def _text(batch: "Mapping[str, Any]", name: str, at: int) -> str | None:
    value = _plain(batch[name][at]) if name in batch else None
    return None if value is None else str(value)


def failures(failed: str) -> list[tuple[str, RobustSimError]]:
    """Of a column of `write_fragment`: the pictures that could not be read, and why."""
    return [(path, ImageError(reason)) for path, reason in json.loads(failed)]
