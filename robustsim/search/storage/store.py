"""The store: rows in Lance, a seal that says which version of them counts, and a lock for those who write."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from robustsim.errors import OutputError, RobustSimError, SearchError
from robustsim.search.storage.caches import cleared
from robustsim.search.storage.library import lance, lances
from robustsim.search.storage.readback import files_of, gained, manifest
from robustsim.search.storage.rows import add_up, narrow, schema, vectors_of
from robustsim.search.storage.seal import NAME, Seal, checked, read_seal, seal_files, write_seal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from robustsim.search.storage.fragments import Fragment

T = TypeVar("T")

ROWS, LOCK = "rows.lance", "lock"

_BATCH = 1024  # rows read at a time
_PATIENCE = 300  # seconds to wait for another writer, who needs one or two
_KEPT = timedelta(hours=1)  # for how long a reader may go on with what it opened
_ATTEMPTS = 5
_MOST, _LARGE = 64, 1 << 15  # small files of rows, and from how many rows on a file is none


class Snapshot:
    """One version of the rows, which stays what it is while others write.

    Attributes:
        version: of the rows.
        header: what `Store.create` was given.
        dims: D of each model's embeddings.
        narrow: the names of all columns but the vectors.
        count: of rows.
    """

    def __init__(self, folder: Path, seal: Seal) -> None:
        self.folder, self.seal, self.version, self.count = folder, seal, seal.version, seal.rows
        module = lance()
        if wrong := checked(folder / ROWS, seal.files):
            raise SearchError(f"the index {os.fspath(folder)!r} is damaged: {'; '.join(wrong[:3])}")
        with lances(folder):
            self.dataset = module.dataset(os.fspath(folder / ROWS), version=seal.version)
            self.header: dict[str, Any] = json.loads(self.dataset.schema.metadata[b"robustsim"])
            columns = self.dataset.schema
            self.dims: list[int] = [columns.field(one.code).type.list_size for one in vectors_of(columns)]
            self.narrow = narrow(columns)
            self.compare(self.dataset.count_rows())

    @property
    def pictures(self) -> int:
        """How many there are."""
        with lances(self.folder):
            found: int = self.dataset.count_rows("view = ''")
            return found

    def batches(self, columns: Sequence[str] | None, *, row_ids: bool = False) -> "Iterator[pa.Table]":
        """The rows, in their order, some at a time; with `_rowid`, Lance's number of a row, if that is wanted.

        Args:
            columns: which; None for all.
            row_ids: whether `_rowid` is wanted.

        Raises:
            SearchError: a file is damaged, or was erased since.
        """
        import pyarrow as pa

        with lances(self.folder):
            ahead = {"batch_readahead": 1, "fragment_readahead": 1}  # Lance's own holds a hundred megabytes more
            for batch in self.dataset.to_batches(
                columns=columns and list(columns), batch_size=_BATCH, with_row_id=row_ids, scan_in_order=True, **ahead
            ):
                yield pa.Table.from_batches([batch])

    def empty(self, columns: Sequence[str]) -> "pa.Table":
        """No rows, with these columns."""
        import pyarrow as pa

        return pa.schema([self.dataset.schema.field(name) for name in columns]).empty_table()

    def take(self, positions: "NDArray[np.int64]", columns: Sequence[str]) -> "pa.Table":
        """Some rows, by their place in the order."""
        with lances(self.folder):
            return self.dataset.take(positions, columns=list(columns))

    def rows(self, columns: Sequence[str], row_ids: Sequence[int]) -> "pa.Table":
        """Some rows, by Lance's numbers of them, in any order."""
        with lances(self.folder):
            some = ", ".join(str(int(one)) for one in row_ids)
            return self.dataset.to_table(columns=list(columns), filter=f"_rowid IN ({some})")

    def compare(self, rows: int, digest: int | None = None) -> None:
        """Compare what was read with the seal.

        Args:
            rows: how many.
            digest: the sum of their digests; any.

        Raises:
            SearchError: they are others.
        """
        if rows != self.seal.rows or (digest is not None and digest % (1 << 128) != self.seal.digest):
            raise SearchError(
                f"the index {os.fspath(self.folder)!r} is damaged: it should hold {self.seal.rows} rows, and holds "
                f"{rows}, or others"
            )


class Writer:
    """Changes to the rows, which count together when the block that `Store.writing` opened ends without an error."""

    def __init__(self, folder: Path, snapshot: Snapshot) -> None:
        self._folder, self.snapshot = folder, snapshot
        versions = folder / ROWS / "_versions"
        for version in _versions(versions):
            if version > snapshot.version:  # somebody was killed before the seal, perhaps while this was written
                (versions / manifest(version)).unlink(missing_ok=True)
        self._dataset, self._seal = lance().dataset(os.fspath(folder / ROWS), version=snapshot.version), snapshot.seal
        self._sealed, self._counts = snapshot.seal, snapshot.dataset  # what counts on the disk
        self._changed = False

    @property
    def version(self) -> int:
        """The version that counts."""
        return self._seal.version

    def append(self, table: "pa.Table") -> None:
        """Add rows that `robustsim.search.storage.rows.make_table` made."""
        with lances(self._folder, writes=True):
            self._dataset = lance().write_dataset(table, self._dataset, mode="append")
        digests = table.column("digest").to_pylist()
        self._count(len(digests), add_up(digests))

    def adopt(self, fragment: "Fragment") -> None:
        """Add the rows of a fragment, by its files."""
        with lances(self._folder, writes=True):
            made = lance().LanceOperation.Append(fragment.link(self._folder / ROWS))
            version = self._dataset.version
            self._dataset = lance().LanceDataset.commit(self._dataset, made, read_version=version)
        self._count(len(fragment.digests), add_up(fragment.digests))

    def delete(self, row_ids: Sequence[int], digests: Sequence[bytes]) -> None:
        """Take away rows of the snapshot, each of them once, by Lance's numbers of them and their digests.

        Raises:
            SearchError: one of them is not there.
        """
        deleted = 0
        for start in range(0, len(row_ids), _BATCH):
            some = ", ".join(str(int(one)) for one in row_ids[start : start + _BATCH])
            with lances(self._folder, writes=True):
                deleted += self._dataset.delete(f"_rowid IN ({some})")["num_deleted_rows"]
        if deleted != len(row_ids):
            raise SearchError(
                f"{len(row_ids)} rows of the index {os.fspath(self._folder)!r} were to be removed, and {deleted} of "
                "them are there: nothing was changed. Open it again"
            )
        self._count(-len(row_ids), -add_up(digests))

    def erase(self) -> None:
        """Leave no file that holds what was ever deleted: write the rows that are left anew, remove all older ones.

        Only the newest version can be read then; who has an older one open is told to open it again. Caches that were
        made from rows go first, and none is made meanwhile.
        """
        with cleared(self._folder):
            self._erase()

    def _erase(self) -> None:
        with lances(self._folder, writes=True):
            self._dataset.optimize.compact_files(
                materialize_deletions=True, materialize_deletions_threshold=0.0, batch_size=_BATCH
            )
        self._seal = replace(self._seal, erasing=True)
        self.seal(whole=True)  # until here the old version counts, from here the new one
        with lances(self._folder, writes=True):
            self._dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
        root = self._folder / ROWS
        for part in ("data", "_deletions", "_versions"):  # and what processes that were killed have left
            for path in (root / part).glob("*"):
                if f"{part}/{path.name}" not in self._seal.files:
                    path.unlink(missing_ok=True)
        self._seal = replace(self._seal, erasing=False)
        self.seal()

    def tidy(self) -> None:
        """Bring small files together, if there are many: each costs a search some time. Rows stay as they are."""
        small = sum(fragment.physical_rows < _LARGE for fragment in self._dataset.get_fragments())
        if small > _MOST:
            with lances(self._folder, writes=True):
                self._dataset.optimize.compact_files(target_rows_per_fragment=_LARGE, batch_size=_BATCH)
            self._changed = True

    def _count(self, rows: int, digest: int) -> None:
        self._changed = True
        before = self._seal
        self._seal = replace(before, rows=before.rows + rows, digest=(before.digest + digest) % (1 << 128))

    def seal(self, *, whole: bool = False) -> None:
        """Make what was done count, once it was read back: what is new, or the whole version.

        Raises:
            OutputError: it is not there as it was written. The version before counts.
        """
        root, wanted, before = self._folder / ROWS, self._seal, self._sealed
        with lances(self._folder, writes=True):
            # Opened anew: this process may remember what never reached the disk.
            dataset = lance().dataset(os.fspath(root), version=self._dataset.version)
            try:
                rows, digest = gained(root, dataset, None if whole else self._counts, _BATCH)
                if not whole:
                    rows, digest = rows + before.rows, digest + before.digest
                if (rows, digest % (1 << 128)) != (wanted.rows, wanted.digest):
                    raise SearchError(f"it should hold {wanted.rows} rows, and holds {rows}, or others")
            except SearchError as error:
                raise OutputError(
                    f"cannot write the index {os.fspath(self._folder)!r}; what was in it stays. What was written is "
                    f"not what is there, as when a disk is full ({error})"
                ) from error
        files = seal_files(root, files_of(dataset), before.files)
        self._seal = replace(wanted, version=dataset.version, files=files)
        write_seal(self._folder, self._seal)
        self._sealed, self._counts, self._changed = self._seal, dataset, False

    def finish(self) -> None:
        """Make it count if anything was done, and drop versions that nobody reads any more."""
        if self._changed:
            self.seal()
            with lances(self._folder, writes=True):
                if old := _superseded(self._folder / ROWS / "_versions", self.version):
                    # Nobody else writes, so files that are of no version were left by who was killed.
                    self._dataset.cleanup_old_versions(versions=old, delete_unverified=True)


def _versions(folder: Path) -> list[int]:
    """Which versions there are."""
    return sorted((1 << 64) - 1 - int(path.stem) for path in folder.glob("*.manifest") if path.stem.isdecimal())


def _superseded(folder: Path, current: int) -> list[int]:
    """Versions that have not been the newest for a while, however old they are: nobody reads them any more."""
    versions = [version for version in _versions(folder) if version <= current]
    made = [(folder / manifest(version)).stat().st_mtime for version in versions[1:]]
    before = time.time() - _KEPT.total_seconds()
    return [version for version, when in zip(versions, made, strict=False) if when < before]


class Store:
    """The folder of an index.

    Args:
        folder: where it is; `~` is the home folder.
    """

    def __init__(self, folder: "str | os.PathLike[str]") -> None:
        self.folder = Path(os.path.expanduser(folder)).absolute()  # wherever the process goes

    @classmethod
    def create(cls, folder: "str | os.PathLike[str]", dims: Sequence[int], header: Mapping[str, Any]) -> "Store":
        """An empty one.

        Args:
            folder: a new one, or an empty one.
            dims: D of each model's embeddings.
            header: what JSON can hold.

        Raises:
            OutputError: the folder is in use, or cannot be written.
            MissingDependencyError: Lance is not installed.
        """
        module, store = lance(), cls(folder)
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            with store._locked():
                store._clear()
                held = {path.name for path in store.folder.iterdir()} - {LOCK}
                # Without a seal, rows that hold nothing are those of a run that was killed before it sealed them.
                if held - {ROWS} or any((store.folder / ROWS / "data").glob("*")):
                    raise OutputError(
                        f"{os.fspath(folder)!r} is in use: open the index that it holds, or choose another folder"
                    )
                like = schema(dims, json.dumps(header))
                mode = "overwrite" if ROWS in held else "create"
                rows = module.write_dataset(like.empty_table(), os.fspath(store.folder / ROWS), schema=like, mode=mode)
                files = seal_files(store.folder / ROWS, files_of(rows), {})
                write_seal(store.folder, Seal(rows.version, files=files))
        except OSError as error:
            if isinstance(error, RobustSimError):
                raise
            raise OutputError(f"cannot make an index in {os.fspath(folder)!r}: {error.strerror or error}") from error
        return store

    def read(self) -> Snapshot:
        """The version that counts now.

        Raises:
            SearchError: there is no index, it is damaged, or of a newer format.
        """
        return self.read_into(lambda snapshot: snapshot)

    def read_into(self, use: Callable[[Snapshot], T]) -> T:
        """What `use` makes of the version that counts now; of a later one, if a writer erases that meanwhile."""
        seal = read_seal(self.folder)
        for _ in range(_ATTEMPTS):
            try:
                return use(Snapshot(self.folder, seal))
            except SearchError:
                before, seal = seal, read_seal(self.folder)
                if seal == before:
                    raise
        return use(Snapshot(self.folder, seal))

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Change rows; nobody else writes until the block ends, and nobody sees any of it before.

        Raises:
            OutputError: another process writes and does not end, or the disk is full.
            SearchError: the index is damaged.
        """
        try:
            with self._locked():
                self._clear()
                snapshot = self.read()
                with lances(self.folder):
                    writer = Writer(self.folder, snapshot)
                    if snapshot.seal.erasing:
                        writer.erase()
                yield writer
                writer.finish()
        except OSError as error:
            if isinstance(error, RobustSimError):
                raise
            raise OutputError(
                f"cannot write the index {os.fspath(self.folder)!r}: {error.strerror or error}; what was in it stays"
            ) from error

    def tidy(self) -> None:
        """Bring small files together, if there are many."""
        if len(read_seal(self.folder).files) > _MOST:
            with self.writing() as writer:
                writer.tidy()

    def _clear(self) -> None:
        """Remove what a process has left that was killed while it wrote a seal."""
        for path in self.folder.glob(f".{NAME}.*.part"):
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(self.folder / LOCK, timeout=_PATIENCE):
                yield
        except Timeout:
            raise OutputError(
                f"another process has been writing the index {os.fspath(self.folder)!r} for {_PATIENCE} seconds"
            ) from None
