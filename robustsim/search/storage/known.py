"""Which pictures an index has rows of: what `add` and `sync` compare a folder with."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.search.storage.rows import add_up, check_narrow, listed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robustsim.search.storage.store import Snapshot


class Known:
    """The N pictures of one tenant, by the names of their files: some hundred bytes a row.

    Attributes:
        sizes: (N,) of the files when they were read, bytes; -1 where there is no file.
        mtimes: (N,) when they had been changed then, nanoseconds; -1 likewise.
        digests: (N,) of the rows of the whole pictures.

    Args:
        snapshot: whose rows.
        tenant: whose pictures; None for those that are nobody's.

    Raises:
        SearchError: a row is damaged.
    """

    def __init__(self, snapshot: "Snapshot", tenant: str | None) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        columns = ["id", "path", "view", "label", "size", "mtime", "digest", "_rowid"]
        kept, done, total = [], 0, 0
        for batch in snapshot.batches(snapshot.narrow, row_ids=True):
            total += add_up(check_narrow(batch))
            done += len(batch)
            owner = batch.column("tenant")
            kept.append(batch.filter(pc.is_null(owner) if tenant is None else pc.equal(owner, tenant)).select(columns))
        snapshot.compare(done, total)
        empty = pa.table({name: pa.array([], pa.string() if at < 4 else pa.int64()) for at, name in enumerate(columns)})
        every = pa.concat_tables(kept).combine_chunks() if kept else empty
        whole = pc.equal(every.column("view"), "")
        table, views = every.filter(whole).combine_chunks(), every.filter(pc.invert(whole)).combine_chunks()
        self._texts: dict[str, Any] = {name: table.column(name) for name in ("id", "path", "label")}

        def numbers(name: str) -> "NDArray[np.int64]":
            return np.asarray(pc.fill_null(table.column(name).cast(pa.int64()), -1).to_numpy())

        self.sizes, self.mtimes, self._row_ids = numbers("size"), numbers("mtime"), numbers("_rowid")
        self.digests: list[bytes] = listed(table.column("digest"))
        self._sorted: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._views = views.select(["_rowid", "digest"])
        paths, ids = (views.column(name).to_pylist() for name in ("path", "id"))
        owners = np.where([bool(path) for path in paths], self.match("path", paths), self.match("id", ids))
        self._by_owner = np.argsort(owners, kind="stable")
        self._owners = owners[self._by_owner]

    def __len__(self) -> int:
        return len(self.digests)

    def rows_of(self, positions: "NDArray[np.int64]") -> tuple[list[int], list[bytes]]:
        """All rows of some pictures, those of their views included: Lance's numbers of them, and their digests."""
        begin, end = (np.searchsorted(self._owners, positions, side) for side in ("left", "right"))
        at = [self._by_owner[first:last] for first, last in zip(begin, end, strict=True) if first < last]
        views = self._views.take(np.concatenate([*at, np.empty(0, np.int64)]))
        row_ids = [*self._row_ids[positions].tolist(), *views.column("_rowid").to_pylist()]
        return row_ids, [*(self.digests[one] for one in positions), *views.column("digest").to_pylist()]

    def match(self, column: str, values: Sequence[str]) -> "NDArray[np.int64]":
        """Where each of these is in `path` or `id`, (M,); -1 where it is not."""
        found = np.full(len(values), -1, np.int64)
        if not len(self):
            return found
        if column not in self._sorted:
            # Numbers that stand for texts, which as objects would take ten times as much; what is found is compared.
            every = np.concatenate([_numbers(chunk) for chunk in _pieces(self._texts[column])])
            order = np.argsort(every, kind="stable")
            self._sorted[column] = every[order], order
        every, order = self._sorted[column]
        wanted = _numbers(values)
        at = np.searchsorted(every, wanted)
        open_ = np.arange(len(values))
        while len(open_ := open_[at[open_] < len(every)]):
            open_ = open_[every[at[open_]] == wanted[open_]]
            positions = order[at[open_]]
            texts = self._texts[column].take(positions).to_pylist()
            same = np.array([text == values[one] for text, one in zip(texts, open_, strict=True)], bool)
            found[open_[same]] = positions[same]
            open_ = open_[~same]
            at[open_] += 1
        return found

    def paths(self, positions: "NDArray[np.int64]") -> list[str]:
        """The names of files."""
        paths: list[str] = self._texts["path"].take(positions).to_pylist()
        return paths

    def labels(self, positions: "NDArray[np.int64]") -> list[str | None]:
        """What pictures are called; None where they have no name, or the position is -1."""
        known = positions >= 0
        labels = np.full(len(positions), None, object)
        labels[known] = self._texts["label"].take(positions[known]).to_pylist()
        return list(labels)

    def below(self, folder: str, unlisted: Iterable[str] = ()) -> "NDArray[np.bool_]":
        """Which rows are of files below a folder, and not below those that could not be listed, (N,)."""
        inside = self._starts(folder)
        for other in unlisted:
            inside &= ~self._starts(other)
        return inside

    def _starts(self, folder: str) -> "NDArray[np.bool_]":
        import pyarrow.compute as pc

        begins = pc.starts_with(self._texts["path"], folder if folder.endswith("/") else f"{folder}/")
        return np.array(begins.to_pylist(), bool)


def _numbers(texts: Sequence[str]) -> "NDArray[np.int64]":
    return np.fromiter(map(hash, texts), np.int64, len(texts))


def _pieces(column: Any, size: int = 4096) -> "Iterable[list[str]]":
    for start in range(0, len(column), size):
        yield column.slice(start, size).to_pylist()
