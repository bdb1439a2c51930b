"""Rows of the store: their columns, and the digests that tell whether a row is what was written.

Lance has no checksums. So each row has three digests, of its code, of its embedding, and of all else with these two;
and the seal (`robustsim.search.storage.seal`) has the number of rows and the sum of their digests. Whatever
is read is checked against them, whether little of a row is read or all of it.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robustsim.errors import InputError, SearchError
from robustsim.search.scan.codes import encode

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

#: Columns that say what a picture is.
DESCRIPTION = ("id", "path", "size", "mtime", "label", "tenant")
#: And all that are not vectors.
NARROW = (*DESCRIPTION, "scale", "residual", "code_digest", "embedding_digest", "digest")

_DIGEST = 16  # bytes
_MODULUS = 1 << (8 * _DIGEST)


class Entry(NamedTuple):
    """A picture.

    Attributes:
        id: SHA-256 of the file, or of the pixels that the encoder saw where there is no file.
        path: absolute; "" where there is no file.
        size: bytes of the file.
        mtime: when it was changed, in nanoseconds since 1970.
        label: what its owner calls it.
        tenant: whose it is.
    """

    id: str
    path: str = ""
    size: int | None = None
    mtime: int | None = None
    label: str | None = None
    tenant: str | None = None


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


def schema(dim: int, header: str) -> "pa.Schema":
    """The columns, with the header of the index in their metadata."""
    import pyarrow as pa

    digest = pa.binary(_DIGEST)
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            ("size", pa.int64()),
            ("mtime", pa.int64()),
            ("label", pa.string()),
            ("tenant", pa.string()),
            ("embedding", pa.list_(pa.float16(), dim)),
            ("code", pa.list_(pa.int8(), dim)),
            ("scale", pa.float32()),
            ("residual", pa.float32()),
            ("code_digest", digest),
            ("embedding_digest", digest),
            ("digest", digest),
        ],
        metadata={"robustsim": header},
    )


def make_table(entries: Sequence[Entry], embeddings: "NDArray[np.float32]", like: "pa.Schema") -> "pa.Table":
    """Rows to append.

    Args:
        entries: N pictures.
        embeddings: (N, D), of length 1; kept in float16.
        like: the schema of the store.
    """
    import pyarrow as pa

    kept = embeddings.astype(np.float16)
    codes = encode(kept)
    columns: dict[str, Any] = {name: [getattr(entry, name) for entry in entries] for name in DESCRIPTION}
    for name, values in (("embedding", kept), ("code", codes.values)):
        kind = like.field(name).type
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
        columns[f"{name}_digest"] = vector_digests(values)
    columns |= {"scale": codes.scales, "residual": codes.residuals}
    columns["digest"] = _digests(columns)
    return pa.table({field.name: columns[field.name] for field in like}, schema=like)


def vector_digests(values: "NDArray[Any]") -> list[bytes]:
    """Of each row of a matrix."""
    return [hashlib.blake2b(row, digest_size=_DIGEST).digest() for row in np.ascontiguousarray(values)]


def _text(name: str, path: str, size: int | None, mtime: int | None, label: str | None, tenant: str | None) -> bytes:
    """A description as bytes; the lengths keep one text from passing for the end of another."""
    label_size, tenant_size = (None if text is None else len(text) for text in (label, tenant))
    sizes = f"{len(name)} {len(path)} {size} {mtime} {label_size} {tenant_size}"
    return f"{sizes} {name}{path}{label}{tenant}".encode()


def _digests(columns: "dict[str, Any]") -> list[bytes]:
    described = zip(*(columns[name] for name in DESCRIPTION), strict=True)
    numbers = np.stack((columns["scale"], columns["residual"]), axis=1).astype("<f4")
    vectors = zip(columns["code_digest"], columns["embedding_digest"], strict=True)
    return [
        hashlib.blake2b(_text(*words) + row.tobytes() + code + embedding, digest_size=_DIGEST).digest()
        for words, row, (code, embedding) in zip(described, numbers, vectors, strict=True)
    ]


def check_narrow(table: "pa.Table") -> list[bytes]:
    """Check rows of which all columns but the vectors were read; their digests.

    Raises:
        SearchError: one is not what was written.
    """
    columns = {name: table.column(name).to_pylist() for name in (*DESCRIPTION, "code_digest", "embedding_digest")}
    columns |= {name: table.column(name).to_numpy() for name in ("scale", "residual")}
    digests: list[bytes] = table.column("digest").to_pylist()
    try:
        same = _digests(columns) == digests
    except TypeError:  # a null where there should be none
        same = False
    if not same:
        raise SearchError("a row of the index is not what was written")
    return digests


def read_back(table: "pa.Table", digests: Sequence[bytes]) -> "tuple[list[Entry], NDArray[np.float32]]":
    """The pictures and the embeddings (N, D) of rows that were read with them, as `make_table` takes them.

    Args:
        table: the rows, in any order.
        digests: theirs, in any order.

    Raises:
        SearchError: one is not what was written, or not there.
    """
    if sorted(check_narrow(table)) != sorted(digests):
        raise SearchError("a row of the index is not where it was")
    embeddings = matrix(table.column("embedding"))
    check_vectors(embeddings, table.column("embedding_digest").to_pylist(), "an embedding")
    columns = (table.column(name).to_pylist() for name in DESCRIPTION)
    return [Entry(*words) for words in zip(*columns, strict=True)], embeddings.astype(np.float32)


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
