"""All rows of a version in memory, but their embeddings: what a search needs at hand."""

from typing import TYPE_CHECKING

import numpy as np

from robustsim.search.scan.codes import Codes
from robustsim.search.storage.rows import NARROW, add_up, check_narrow, check_vectors, matrix
from robustsim.search.storage.store import Snapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Loaded:
    """A snapshot, read and checked.

    Attributes:
        table: the narrow columns, in the order of the rows.
        codes: the codes; 1 byte a value, and the largest part of the memory by far.
        order: (N,): the rank of each row by id, path and tenant, for those at the same distance.

    Args:
        snapshot: what is loaded.

    Raises:
        SearchError: it is damaged.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.snapshot = snapshot
        values = np.empty((snapshot.count, snapshot.dim), np.int8)
        narrow, done, total = [], 0, 0
        for batch in snapshot.batches((*NARROW, "code")):
            block = matrix(batch.column("code"))
            check_vectors(block, batch.column("code_digest").to_pylist(), "a code")
            values[done : done + len(block)] = block  # the seal has been compared: there are no more rows
            # Copied: columns as Lance gives them may hold on to all that was read with them.
            narrow.append(batch.drop_columns(["code"]).take(np.arange(len(block))))
            total += add_up(check_narrow(narrow[-1]))
            done += len(block)
        snapshot.compare(done, total)
        self.table = pa.concat_tables(narrow) if narrow else snapshot.empty(NARROW)
        self.codes = Codes(values, *(self.table.column(name).to_numpy() for name in ("scale", "residual")))
        self.order = np.empty(done, np.int64)
        keys = [(name, "ascending") for name in ("id", "path", "tenant")]
        self.order[pc.sort_indices(self.table, sort_keys=keys).to_numpy()] = np.arange(done)

    def embeddings(self, positions: "NDArray[np.int64]") -> "NDArray[np.float16]":
        """Rows of float16, checked.

        Raises:
            SearchError: one is damaged, or was erased meanwhile.
        """
        rows = self.snapshot.take(positions)
        check_vectors(rows, self.table.column("embedding_digest").take(positions).to_pylist(), "an embedding")
        return rows

    def allowed(self, label: str | None, tenant: str | None) -> "NDArray[np.int64] | None":
        """Positions of the rows with that label and that tenant; None for all."""
        import pyarrow.compute as pc

        wanted = None
        for name, value in (("label", label), ("tenant", tenant)):
            if value is not None:
                this = pc.fill_null(pc.equal(self.table.column(name), value), False)
                wanted = this if wanted is None else pc.and_(wanted, this)
        return None if wanted is None else np.flatnonzero(wanted.to_numpy()).astype(np.int64)
