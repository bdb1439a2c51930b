"""Rows of the store: their columns, and the digests that tell whether a row is what was written.

A row is one view of a picture, for most pictures the only one: the whole of it. It holds the vectors of each model of
the index, those of the first in columns of plain names, those of others in `embedding_1`, `code_1` and so on.

Lance has no checksums. So each row has digests, of each code, of each embedding, and of all else with these; and the
seal (`robustsim.search.storage.seal`) has the number of rows and the sum of their digests. Whatever is read is checked
against them, whether little of a row is read or all of it.
"""

import hashlib
from collections.abc import Sequence
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robustsim.errors import InputError, SearchError
from robustsim.images.hashes import HASH_BITS
from robustsim.search.scan.codes import encode

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_DIGEST = 16  # bytes
_MODULUS = 1 << (8 * _DIGEST)


class Vectors(NamedTuple):
    """The columns of one model's vectors."""

    embedding: str
    code: str
    scale: str
    residual: str
    embedding_digest: str
    code_digest: str

    @classmethod
    def of(cls, number: int) -> "Vectors":
        """Those of the model of that number, from 0."""
        return cls(*(f"{name}_{number}" if number else name for name in cls._fields))


class Entry(NamedTuple):
    """A picture.

    Attributes:
        id: SHA-256 of the file, or of the pixels that the encoder saw where there is no file.
        path: absolute; "" where there is no file.
        size: bytes of the file.
        mtime: when it was changed, in nanoseconds since 1970.
        label: what its owner calls it.
        tenant: whose it is.
        view: what of it the row shows; "" for the whole.
        width: of the picture, upright, in pixels.
        height: likewise.
        hash: perceptual hash of the view, 32 bytes; None for a view without contrast.
    """

    id: str
    path: str = ""
    size: int | None = None
    mtime: int | None = None
    label: str | None = None
    tenant: str | None = None
    view: str = ""
    width: int | None = None
    height: int | None = None
    hash: bytes | None = None


#: Columns that say what a picture is.
DESCRIPTION = Entry._fields


def check_words(**words: str | None) -> None:
    """Refuse a label or a tenant that no row can have.

    Raises:
        InputError: one is no text, or holds half characters, as bytes that are no UTF-8 become in the terminal.
    """
    for name, value in words.items():
        try:
            good = value is None or (isinstance(value, str) and value.encode() is not None)
        except UnicodeEncodeError:
            good = False
        if not good:
            raise InputError(f"the {name} is no text that UTF-8 can hold: {value!r}")


def schema(dims: Sequence[int], header: str) -> "pa.Schema":
    """The columns, with the header of the index in their metadata.

    Args:
        dims: D of each model's embeddings.
        header: JSON.
    """
    import pyarrow as pa

    digest = pa.binary(_DIGEST)
    fields: list[Any] = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("label", pa.string()),
        ("tenant", pa.string()),
        pa.field("view", pa.string(), nullable=False),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("hash", pa.binary(HASH_BITS // 8)),
    ]
    for number, dim in enumerate(dims):
        kinds = (pa.list_(pa.float16(), dim), pa.list_(pa.int8(), dim), pa.float32(), pa.float32(), digest, digest)
        fields += zip(Vectors.of(number), kinds, strict=True)
    return pa.schema([*fields, ("digest", digest)], metadata={"robustsim": header})


def vectors_of(columns: "pa.Schema") -> list[Vectors]:
    """The columns of each model's vectors, of rows of which all narrow columns are there."""
    every, names = map(Vectors.of, count()), set(columns.names)
    return list(takewhile(lambda one: one.scale in names, every))


def narrow(columns: "pa.Schema") -> list[str]:
    """The names of all columns but the vectors."""
    wide = {name for one in vectors_of(columns) for name in (one.embedding, one.code)}
    return [name for name in columns.names if name not in wide]


def make_table(entries: Sequence[Entry], embeddings: "Sequence[NDArray[np.float32]]", like: "pa.Schema") -> "pa.Table":
    """Rows to append.

    Args:
        entries: N of them.
        embeddings: (N, D) of each model, of length 1; kept in float16.
        like: the schema of the store.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {name: [getattr(entry, name) for entry in entries] for name in DESCRIPTION}
    names = vectors_of(like)
    for one, rows in zip(names, embeddings, strict=True):
        kept = rows.astype(np.float16)
        codes = encode(kept)
        for name, digest, values in (
            (one.embedding, one.embedding_digest, kept),
            (one.code, one.code_digest, codes.values),
        ):
            kind = like.field(name).type
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
            columns[digest] = vector_digests(values)
        columns |= {one.scale: codes.scales, one.residual: codes.residuals}
    columns["digest"] = _digests(columns, names)
    return pa.table({field.name: columns[field.name] for field in like}, schema=like)


def vector_digests(values: "NDArray[Any]") -> list[bytes]:
    """Of each row of a matrix."""
    return [hashlib.blake2b(row, digest_size=_DIGEST).digest() for row in np.ascontiguousarray(values)]


def _text(words: Sequence[Any]) -> bytes:
    """A description as bytes; the lengths keep one text from passing for the end of another."""
    name, path, size, mtime, label, tenant, view, width, height, mark = words
    ends = " ".join("-" if one is None else str(len(one)) for one in (label, tenant))
    sizes = f"{len(name)} {len(path)} - - {ends} {len(view)} - - {'-' if mark is None else len(mark)}"
    text = f"{sizes} {name} {path} {size} {mtime} {label} {tenant} {view} {width} {height}"
    return text.encode() + (b" None" if mark is None else mark)


def _digests(columns: "dict[str, Any]", names: Sequence[Vectors]) -> list[bytes]:
    described = zip(*(columns[name] for name in DESCRIPTION), strict=True)
    parts = []
    for one in names:
        numbers = np.stack((columns[one.scale], columns[one.residual]), axis=1).astype("<f4")
        vectors = zip(columns[one.code_digest], columns[one.embedding_digest], strict=True)
        pairs = zip(numbers, vectors, strict=True)
        parts.append([row.tobytes() + code + embedding for row, (code, embedding) in pairs])
    return [
        hashlib.blake2b(b"".join([_text(words), *vectors]), digest_size=_DIGEST).digest()
        for words, *vectors in zip(described, *parts, strict=True)
    ]


def check_narrow(table: "pa.Table") -> list[bytes]:
    """Check rows of which all columns but the vectors were read; their digests.

    Raises:
        SearchError: one is not what was written.
    """
    names = vectors_of(table.schema)
    columns = {name: listed(table.column(name)) for name in DESCRIPTION}
    for one in names:
        columns |= {name: listed(table.column(name)) for name in (one.code_digest, one.embedding_digest)}
        columns |= {name: table.column(name).to_numpy() for name in (one.scale, one.residual)}
    digests = listed(table.column("digest"))
    try:
        same = _digests(columns, names) == digests
    except TypeError:  # a null where there should be none
        same = False
    if not same:
        raise SearchError("a row of the index is not what was written")
    return digests


def read_back(table: "pa.Table", digests: Sequence[bytes]) -> "tuple[list[Entry], list[NDArray[np.float32]]]":
    """The pictures and the embeddings (N, D) of each model, of rows that were read with these, as `make_table` takes
    them.

    Args:
        table: the rows, in any order.
        digests: theirs, in any order.

    Raises:
        SearchError: one is not what was written, or not there.
    """
    if sorted(check_narrow(table)) != sorted(digests):
        raise SearchError("a row of the index is not where it was")
    every = []
    for one in vectors_of(table.schema):
        embeddings = matrix(table.column(one.embedding))
        check_vectors(embeddings, table.column(one.embedding_digest).to_pylist(), "an embedding")
        every.append(embeddings.astype(np.float32))
    columns = (table.column(name).to_pylist() for name in DESCRIPTION)
    return [Entry(*words) for words in zip(*columns, strict=True)], every


def listed(column: Any) -> list[Any]:
    """The values of a narrow column, in a ninth of the time that pyarrow takes for bytes of one size."""
    import pyarrow as pa

    values: list[Any] = (column.cast(pa.binary()) if pa.types.is_fixed_size_binary(column.type) else column).to_pylist()
    return values


def matrix(column: Any) -> "NDArray[Any]":
    """A column of lists of one size, (N, D)."""
    size = column.type.list_size
    values: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    return values


def check_vectors(values: "NDArray[Any]", digests: Sequence[bytes], what: str) -> None:
    """Check codes or embeddings.

    Raises:
        SearchError: one is not what was written.
    """
    if vector_digests(values) != list(digests):
        raise SearchError(f"{what} of the index is not what was written")


def add_up(digests: Sequence[bytes]) -> int:
    """The sum of digests, to which rows can be added and from which they can be taken, in any order."""
    return sum(int.from_bytes(digest, "little") for digest in digests) % _MODULUS
