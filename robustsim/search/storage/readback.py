"""Read back what was written, before it counts.

Lance loses the error of a write that comes last in a file: on a full disk it commits a file that is cut off, and says
nothing. So no version is sealed, and no older one removed, until its new files have been read from the disk.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.errors import SearchError
from robustsim.search.scan.codes import residuals_of, unit
from robustsim.search.storage.rows import add_up, check_narrow, check_vectors, matrix, vectors_of

if TYPE_CHECKING:
    import pyarrow as pa


def check_whole(table: "pa.Table") -> list[bytes]:
    """Check rows of which all columns were read; their digests.

    Raises:
        SearchError: one is not what was written, or is farther from its code than it says.
    """
    digests = check_narrow(table)
    for one in vectors_of(table.schema):
        codes, embeddings = matrix(table.column(one.code)), matrix(table.column(one.embedding))
        check_vectors(codes, table.column(one.code_digest).to_pylist(), "a code")
        check_vectors(embeddings, table.column(one.embedding_digest).to_pylist(), "an embedding")
        needed = residuals_of(unit(embeddings), codes, table.column(one.scale).to_numpy())
        # Another machine may round the last digit of what it computes otherwise.
        if not (needed <= table.column(one.residual).to_numpy() * np.float32(1 + 1e-6)).all():
            raise SearchError("a row of the index is farther from its code than it says")
    return digests


def manifest(version: int) -> str:
    """The name of a version's manifest."""
    return f"{(1 << 64) - 1 - version:020}.manifest"


def files_of(dataset: Any) -> list[str]:
    """The files that a version consists of: its manifest, its data, and which rows of them are deleted."""
    whose = f"_versions/{manifest(dataset.version)}"
    return [whose, *(name for fragment in dataset.get_fragments() for name in _files_of(fragment))]


def gained(root: Path, after: Any, before: Any, batch_size: int) -> tuple[int, int]:
    """What a version has more than another: rows, and the sum of their digests, any.

    What both have in the same files is not read. Rows in new files are checked, each value of them; where nothing but
    deletions is new, the digests of the rows are read.

    Args:
        root: the rows' folder.
        after: the version, as Lance opens it.
        before: the other one; None for one without rows.
        batch_size: rows read at a time.

    Raises:
        SearchError: a file is not as long as what was written to it, or a row not what was written.
    """
    new = {_files_of(fragment): fragment for fragment in after.get_fragments()}
    old = {} if before is None else {_files_of(fragment): fragment for fragment in before.get_fragments()}
    known = {name for names in old for name in names}
    rows = total = 0
    for names in new.keys() - old.keys():
        fragment = new[names]
        data = {f"data/{file.path}": file.file_size_bytes for file in fragment.metadata.files}
        for name, size in data.items():
            if size is not None and (seen := (root / name).stat().st_size) != size:
                raise SearchError(f"{name} has {seen} bytes, and {size} were written")
        written = not known.issuperset(data)
        for batch in _read(fragment, None if written else ["digest"], batch_size):
            rows += len(batch)
            total += add_up(check_whole(batch) if written else batch.column("digest").to_pylist())
    for names in old.keys() - new.keys():
        for batch in _read(old[names], ["digest"], batch_size):
            rows -= len(batch)
            total -= add_up(batch.column("digest").to_pylist())
    return rows, total


def _files_of(fragment: Any) -> tuple[str, ...]:
    deleted = fragment.deletion_file()
    return (*(f"data/{file.path}" for file in fragment.metadata.files), *([deleted] if deleted else ()))


def _read(fragment: Any, columns: list[str] | None, batch_size: int) -> "Iterator[pa.Table]":
    import pyarrow as pa

    for batch in fragment.to_batches(columns=columns, batch_size=batch_size, batch_readahead=1):
        yield pa.Table.from_batches([batch])
