"""The rows of a version in memory, but their embeddings: what a search needs at hand."""

from collections.abc import Iterator, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.images.hashes import HASH_BITS, hash_rows
from robustsim.search.scan.codes import Codes, encode
from robustsim.search.scan.exact import Read, Rows
from robustsim.search.storage.rows import Vectors, add_up, check_narrow, check_vectors, matrix
from robustsim.search.storage.store import Snapshot

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

# Rows and bytes of codes read at a time, and hashes coded at a time.
_ROWS, _CODES, _BLOCK = 1 << 12, 1 << 19, 1 << 14


class Loaded:
    """A snapshot, read and checked; the codes of a model once a search asks for them.

    Attributes:
        table: the narrow columns but the digest of all of them, in the order of the rows.
        order: (N,): the rank of each row by id, path, tenant and view, for those at the same distance.
        pictures: (N,): which picture each row is a view of, from 0; the whole of it and its views have one number.
        count: of pictures.
        most_views: of one picture, the whole of it included.

    Args:
        snapshot: what is loaded.

    Raises:
        SearchError: it is damaged.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.snapshot = snapshot
        held = [name for name in snapshot.narrow if name != "digest"]
        kept, done, total = [], 0, 0
        for batch in self._pieces(snapshot.narrow, _ROWS):
            # Copied: columns as Lance gives them may hold on to all that was read with them.
            kept.append(batch.select(held).take(np.arange(len(batch))))
            total += add_up(check_narrow(batch))
            done += len(batch)
        snapshot.compare(done, total)
        # In one piece, which takes a third less than some hundred small ones.
        self.table = pa.concat_tables(kept).combine_chunks() if kept else snapshot.empty(held)
        del kept
        keys = [(name, "ascending") for name in ("id", "path", "tenant", "view")]
        ranked = pc.sort_indices(self.table, sort_keys=keys).to_numpy()
        self.order = np.empty(done, np.int64)
        self.order[ranked] = np.arange(done)
        self.pictures = np.empty(done, np.int64)
        self.pictures[ranked] = self._numbered(ranked)
        self.count = int(self.pictures.max(initial=-1)) + 1
        self.most_views = 1 if self.count == done else int(np.bincount(self.pictures).max())
        pa.default_memory_pool().release_unused()  # what was needed on the way, as much again
        self._codes: dict[int, Codes] = {}
        self._hashes: Codes | None = None

    def line(self, model: int | None) -> Rows:
        """What is scanned for the model of that number, or, for None, for the perceptual hash.

        A hash stands for the row of length 1 whose values are +-1/16: what is 31 of 256 bits away is at a distance of
        sqrt(31 / 128). Rows without one are none of `hashed`.

        Raises:
            SearchError: a code is damaged.
        """
        if model is None:
            return Rows(self._hash_codes(), self.reader(None), self.order)
        if model not in self._codes:
            self._codes[model] = self._read_codes(model)
        return Rows(self._codes[model], self.reader(model), self.order)

    def reader(self, model: int | None) -> Read:
        """As `line(model).read`, without the codes."""
        return self._read_hashes if model is None else partial(self.embeddings, model=model)

    def embeddings(self, positions: "NDArray[np.int64]", model: int = 0) -> "NDArray[np.float16]":
        """Rows of float16, checked.

        Raises:
            SearchError: one is damaged, or was erased meanwhile.
        """
        names = Vectors.of(model)
        rows = matrix(self.snapshot.take(positions, [names.embedding]).column(names.embedding))
        digests = self.table.column(names.embedding_digest).take(positions).to_pylist()
        check_vectors(rows, digests, "an embedding")
        return rows

    @property
    def comparisons(self) -> int:
        """How many two pictures take, on average: views of the one times views of the other."""
        return max(1, ceil((len(self.pictures) / max(1, self.count)) ** 2))

    @property
    def hashed(self) -> "NDArray[np.int64]":
        """Positions of the rows that have a perceptual hash, ascending."""
        found: NDArray[np.int64] = np.flatnonzero(self.table.column("hash").is_valid().to_numpy())
        return found

    def allowed(self, label: str | None, tenant: str | None) -> "NDArray[np.int64] | None":
        """Positions of the rows with that label and that tenant, ascending; None for all."""
        import pyarrow.compute as pc

        wanted = None
        for name, value in (("label", label), ("tenant", tenant)):
            if value is not None:
                this = pc.fill_null(pc.equal(self.table.column(name), value), False)
                wanted = this if wanted is None else pc.and_(wanted, this)
        return None if wanted is None else np.flatnonzero(wanted.to_numpy()).astype(np.int64)

    def _pieces(self, columns: Sequence[str], rows: int) -> "Iterator[pa.Table]":
        """All rows, some at a time. Taken by their places: a scan of Lance's reads hundreds of megabytes ahead."""
        for start in range(0, self.snapshot.count, rows):
            yield self.snapshot.take(np.arange(start, min(start + rows, self.snapshot.count)), columns)

    def _numbered(self, ranked: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """The number of the picture of each row, in the order by id, path and tenant."""
        import pyarrow.compute as pc

        begins = np.zeros(len(ranked), bool)
        texts = [pc.fill_null(self.table.column(name), "") for name in ("id", "path", "tenant")]
        for column in (*texts, self.table.column("tenant").is_null()):
            there = column.combine_chunks().take(ranked)
            if len(ranked) > 1:
                begins[1:] |= pc.not_equal(there[1:], there[:-1]).to_numpy(zero_copy_only=False)
        return np.cumsum(begins)

    def _read_codes(self, model: int) -> Codes:
        names = Vectors.of(model)
        values = np.empty((len(self.table), self.snapshot.dims[model]), np.int8)
        digests, done = self.table.column(names.code_digest), 0
        for batch in self._pieces([names.code], max(1, _CODES // values.shape[1])):
            block = matrix(batch.column(names.code))
            check_vectors(block, digests.slice(done, len(block)).to_pylist(), "a code")
            values[done : done + len(block)] = block
            done += len(block)
        return Codes(values, *(self.table.column(name).to_numpy() for name in (names.scale, names.residual)))

    def _hash_codes(self) -> Codes:
        if self._hashes is None:
            count = len(self.table)
            whole: Any = [np.empty((count, HASH_BITS), np.int8), *np.empty((2, count), np.float32)]
            for start in range(0, count, _BLOCK):
                at = np.arange(start, min(start + _BLOCK, count))
                block = encode(self._read_hashes(at))
                for column, part in zip(whole, (block.values, block.scales, block.residuals), strict=True):
                    column[at] = part
            self._hashes = Codes(*whole)
        return self._hashes

    def _read_hashes(self, positions: "NDArray[np.int64]") -> "NDArray[np.float16]":
        hashes = self.table.column("hash").take(positions).to_pylist()
        rows: NDArray[np.float16] = hash_rows([one or bytes(HASH_BITS // 8) for one in hashes]).astype(np.float16)
        return rows
