"""Files of embeddings with the names they belong to, written in blocks and whole or not at all."""

import io
import json
import os
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.weights import whole_file
from robustsim.errors import MissingDependencyError, OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Names = Callable[[], Iterator[str]]

_BLOCK = 4096


class Writer(ABC):
    """Writes `count` embeddings of `dim` values: first the names, then the rows, in blocks."""

    def __init__(self, path: Path, count: int, dim: int, model: str) -> None:
        self.path, self.count, self.dim, self.model = path, count, dim, model
        self._stack = ExitStack()

    @staticmethod
    def check(path: Path) -> None:
        """Raise now what would be raised at the end of a long run."""
        del path  # most formats have nothing to check

    def __enter__(self) -> "Writer":
        with self._stack as stack:
            self._start(stack.enter_context(whole_file(self.path)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    @abstractmethod
    def _start(self, path: Path) -> None: ...

    @abstractmethod
    def names(self, names: Names) -> None:
        """All names; the function gives them anew each time it is called."""

    @abstractmethod
    def rows(self, block: "NDArray[np.float32]") -> None:
        """The next rows."""


class NpzWriter(Writer):
    """`np.load(path)` gives `files`, `embeddings` (N, D) float32 and `model`; no pickle in it."""

    def _start(self, path: Path) -> None:
        self._zip = self._stack.enter_context(zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True))
        self._rows: Any = None
        with self._zip.open("model.npy", "w") as entry:
            buffer = io.BytesIO()
            np.save(buffer, np.array(self.model))
            entry.write(buffer.getvalue())

    def names(self, names: Names) -> None:
        width = max(len(name) for name in names())
        kind = np.dtype(f"<U{width}")
        packed = zipfile.ZipInfo("files.npy")
        packed.compress_type = zipfile.ZIP_DEFLATED  # four bytes a letter, most of them zero
        with self._zip.open(packed, "w", force_zip64=True) as entry:
            _npy_header(entry, kind, (self.count,))
            each = names()
            while block := list(islice(each, _BLOCK)):
                entry.write(np.array(block, dtype=kind).tobytes())
        self._rows = self._stack.enter_context(self._zip.open("embeddings.npy", "w", force_zip64=True))
        _npy_header(self._rows, np.dtype("<f4"), (self.count, self.dim))

    def rows(self, block: "NDArray[np.float32]") -> None:
        self._rows.write(block.tobytes())


def _npy_header(entry: Any, kind: "np.dtype[Any]", shape: tuple[int, ...]) -> None:
    head = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(entry, head)


class SafetensorsWriter(Writer):
    """A tensor `embeddings` (N, D); the metadata has `files`, a JSON list, and `model`."""

    _LONGEST_HEADER = 100_000_000  # the format's limit

    def _start(self, path: Path) -> None:
        self._file = self._stack.enter_context(path.open("wb"))

    def names(self, names: Names) -> None:
        size = 4 * self.count * self.dim
        head = {
            "__metadata__": {"files": json.dumps(list(names())), "model": self.model},
            "embeddings": {"dtype": "F32", "shape": [self.count, self.dim], "data_offsets": [0, size]},
        }
        encoded = json.dumps(head).encode()
        encoded += b" " * (-len(encoded) % 8)
        if len(encoded) > self._LONGEST_HEADER:
            raise OutputError(
                f"{self.count} names are too long for the head of a safetensors file: write .npz or .parquet; "
                "what is embedded is kept, and the same command with that ending continues from there"
            )
        self._file.write(struct.pack("<Q", len(encoded)) + encoded)

    def rows(self, block: "NDArray[np.float32]") -> None:
        self._file.write(block.tobytes())


class ParquetWriter(Writer):
    """Columns `file` (string) and `embedding` (list of D float32); the schema's metadata has `model`."""

    @staticmethod
    def check(path: Path) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise MissingDependencyError(
                f"writing {os.fspath(path)!r} needs pyarrow: pip install 'robustsim[parquet]', or write .npz"
            ) from None

    def _start(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [("file", pa.string()), ("embedding", pa.list_(pa.float32(), self.dim))]
        self._schema = pa.schema(fields, metadata={"model": self.model})
        self._out = self._stack.enter_context(pq.ParquetWriter(path, self._schema))

    def names(self, names: Names) -> None:
        self._names = names()

    def rows(self, block: "NDArray[np.float32]") -> None:
        import pyarrow as pa

        flat = pa.array(block.reshape(-1), type=pa.float32())
        columns = [
            pa.array(list(islice(self._names, len(block))), type=pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, self.dim),
        ]
        self._out.write_table(pa.Table.from_arrays(columns, schema=self._schema))


FORMATS: dict[str, type[Writer]] = {
    ".npz": NpzWriter,
    ".parquet": ParquetWriter,
    ".safetensors": SafetensorsWriter,
}
