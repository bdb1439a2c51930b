"""An index whose work is done by many processes: embedding, searching, finding duplicates."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from robustsim.errors import ImageError, InputError, SearchError
from robustsim.images.inputs import ImageInput
from robustsim.search.duplicates.find import Compare, Line
from robustsim.search.index.answering import nothing
from robustsim.search.index.index import Index
from robustsim.search.index.scanning import Scanner
from robustsim.search.index.update import Update, UpdateReport
from robustsim.search.scale.comparing import compare_parts
from robustsim.search.scale.embedding import embed_batch, failures, write_fragment
from robustsim.search.scale.scanning import Gathered, Request, Scanned, merge, parts_of, scan_fragment
from robustsim.search.scale.sources import Item, Source
from robustsim.search.storage.fragments import Fragment, waiting

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from robustsim.search.scan.pairs import Pairs

T = TypeVar("T")
R = TypeVar("R")

#: Pictures of a fragment, if there are so many for each worker.
TOGETHER = 256
_BATCH = 32  # `RobustSim.batch_size` of a model that is loaded by its name
_ROUND = 1 << 20  # pictures of which the names are held at a time
_SHARES = 4  # fragments for each worker, at least, so that none waits for another one at the end


class Runner(Protocol):
    """What maps functions over work, here or elsewhere.

    Attributes:
        workers: how many there are.
        threads: of each; None for as many as there are cores.
    """

    workers: int
    threads: int | None

    def map(self, function: Callable[[T], R], work: Iterator[T]) -> Iterator[R]:
        """`map(function, work)`, in any order; the function and what it takes and gives can be pickled."""
        ...

    def embed(
        self, batches: "Iterator[dict[str, Any]]", index: str, filesystem: "pa.fs.FileSystem | None"
    ) -> "Iterator[Mapping[str, Any]]":
        """`embed_fragment` of each batch, in any order."""
        ...


class MapRunner:
    """Work by any function like `map`: that of a pool, or one that collects what Spark or Daft made of it.

    Args:
        function: (function, work) -> results, in any order.
        workers: how many share the work.
        threads: of each; None for as many as there are cores.
        device: where models compute.
    """

    def __init__(
        self,
        function: "Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]" = map,
        *,
        workers: int = 1,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        self._function, self.workers, self.threads, self._device = function, workers, threads, device

    def map(self, function: Callable[[T], R], work: Iterator[T]) -> Iterator[R]:
        return iter(self._function(function, work))

    def embed(
        self, batches: "Iterator[dict[str, Any]]", index: str, filesystem: "pa.fs.FileSystem | None"
    ) -> "Iterator[Mapping[str, Any]]":
        words: dict[str, Any] = {
            "index": index,
            "device": self._device,
            "threads": self.threads,
            "filesystem": filesystem,
        }
        return self.map(partial(embed_fragment, **words), batches)


def embed_fragment(batch: "Mapping[str, Any]", *, index: str, **words: Any) -> dict[str, Any]:
    """`write_fragment(embed_batch(batch))`, for whoever has both done in one place."""
    return write_fragment(embed_batch(batch, index=index, **words), index=index)


class SpreadIndex(Index):
    """An index whose work is spread over processes, which all see its folder. It gives what the index alone gives.

    ```python
    with RayRunner(workers=8) as runner:
        index = SpreadIndex(Index.open("photos.index"), runner)
        index.add("s3://bucket/photos")
        answer = index.within(pictures, 0.3)
    ```

    Args:
        index: the index.
        runner: who does the work.
    """

    def __init__(self, index: Index, runner: Runner) -> None:
        super().__init__(index._store, (), index._models.load)
        self._models, self._runner = index._models, runner

    def add(
        self,
        images: "ImageInput | str | os.PathLike[str]",
        *,
        label: str | None = None,
        tenant: str | None = None,
        follow_links: bool = False,
        filesystem: "pa.fs.FileSystem | None" = None,
        progress: Callable[[int], object] = nothing,
        on_error: Callable[[ImageError], object] = nothing,
    ) -> UpdateReport:
        """Add the pictures of folders, object stores and tar shards. What is there already is not embedded again.

        Workers write fragments, which are checkpoints; this process takes them into the index. So a call that was
        interrupted is made again, and continues: what workers had written then counts now.

        Args:
            images: folders, files, `.tar` files of WebDataset's layout, or URLs of any of these that pyarrow knows, as
                `s3://bucket/photos`. A picture of a shard is called `shard.tar/member`. Pictures in memory this process
                embeds.
            label: as for [`Index.add`][robustsim.search.Index.add].
            tenant: likewise.
            follow_links: likewise.
            filesystem: of pyarrow, that knows `images`; the one of the URL, or the local one, if not given.
            progress: called with the number of pictures done since the last call.
            on_error: called for each that cannot be read, and is skipped.

        Raises:
            ImageError: there is nothing of that name.
            EncodingError: an embedding is not finite, or nothing but zeros.
            SearchError: the index is damaged.
            OutputError: it cannot be written; what was in it stays.
        """
        report = self._left(label, tenant, progress)
        places = [images] if isinstance(images, (str, os.PathLike)) else images
        if not (isinstance(places, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in places)):
            return super().add(images, label=label, tenant=tenant, progress=progress, on_error=on_error)
        for where in places:
            source = Source(where, follow_links=follow_links, filesystem=filesystem)
            lost = True
            while lost:  # of which another call has taken something in, or something was erased
                with self._updating(label, tenant, progress, on_error) as update:
                    lost = self._embed(update, source, tenant)
                report.include(update.report)
            report.include(UpdateReport(passed_over=dict(source.passed_over)))
        report.include(self._left(label, tenant, progress))  # of workers that died after they wrote
        return report

    def sync(
        self,
        folder: "str | os.PathLike[str]",
        *,
        label: str | None = None,
        tenant: str | None = None,
        follow_links: bool = False,
        remove_all: bool = False,
        progress: Callable[[int], object] = nothing,
        on_error: Callable[[ImageError], object] = nothing,
    ) -> UpdateReport:
        """As [`Index.sync`][robustsim.search.Index.sync], of a folder of this machine.

        Raises:
            InputError: it is no folder; or nothing would be left, and that was not asked for.
        """
        report, source = self._left(label, tenant, progress), Source(folder, follow_links=follow_links)
        if source.folder is None:
            raise InputError(
                f"{os.fspath(folder)!r} is no folder of this machine, and what is gone is told of these alone: add it"
            )
        with self._updating(label, tenant, progress, on_error) as update:
            if self._embed(update, source, tenant):
                raise SearchError(f"the index {self.path!r} was changed by others meanwhile: the same call continues")
            update.remove_gone(source.folder, all_of_them=remove_all)
        update.report.passed_over = dict(source.passed_over)
        report.include(update.report)
        return report

    def _left(self, label: str | None, tenant: str | None, progress: Callable[[int], object]) -> UpdateReport:
        """Take in what workers of an earlier run have written for this tenant."""
        report = UpdateReport()
        for name in waiting(self._store.folder):
            columns = self._store.read().dataset.schema
            try:
                fragment = Fragment(self._store.folder, name, columns)
            except SearchError:
                continue  # of a run that goes on, and has taken it in meanwhile
            if {entry.tenant for entry in fragment.entries} != {tenant}:
                continue
            with self._updating(None, tenant, progress, nothing) as update:
                update.adopt([fragment], left=True)
            # What is there already is counted when the files are compared.
            report.include(UpdateReport(added=update.report.added))
        return report

    def _embed(self, update: Update, source: Source, tenant: str | None) -> bool:
        """Have what is new or has changed embedded, and take in what comes of it; whether some of it was gone."""
        lost = False
        todo = update.todo(iter(source), lambda item: item.name, Item.size_and_time)
        while items := list(islice(todo, _ROUND)):
            share = -(-len(items) // (_SHARES * max(1, self._runner.workers)))
            size = min(TOGETHER, -(-share // _BATCH) * _BATCH)  # a batch that is not full costs as much as one that is
            batches = (_batch(items[start : start + size], update, tenant) for start in range(0, len(items), size))
            for rows in self._runner.embed(batches, self.path, source.filesystem):
                for name, failed in zip(rows["fragment"], rows["failed"], strict=True):
                    lost |= not self._take_in(update, str(name), str(failed), source.folder is not None)
        return lost

    def _take_in(self, update: Update, name: str, failed: str, are_files: bool) -> bool:
        for path, error in failures(failed):
            update.fails(Path(path if are_files else os.devnull), ImageError(str(error)))
        if name:
            try:
                fragment = Fragment(self._store.folder, name, self._store.read().dataset.schema)
            except SearchError:
                return False
            done = sum(not entry.view for entry in fragment.entries)
            update.adopt([fragment])
            update.progress(done)
        return True

    def _scanner(
        self, numbers: Sequence[int | None], label: str | None, tenant: str | None, approximate: bool, device: str
    ) -> Scanner:
        if approximate:
            raise InputError("an approximate search is one process's: leave out approximate, or the workers")
        snapshot = self._answering()
        parts = parts_of(self.path, snapshot.seal, self._runner.workers)

        def ask(request: Request) -> Scanned:
            return merge(
                self._runner.map(partial(scan_fragment, request=request), iter(parts)), snapshot.seal, self.path
            )

        return Gathered(ask, label, tenant, snapshot.version)

    def _compare(self) -> "Compare | None":
        seal = self._answering().seal
        parts = parts_of(self.path, seal, 2 * self._runner.workers)

        def compare(line: Line, pictures: "NDArray[np.int64]", progress: Callable[[int], object]) -> "Iterator[Pairs]":
            number = self._models.number(line.name)
            return compare_parts(self._runner.map, parts, seal, line, number, pictures, progress, self._runner.threads)

        return compare


def _batch(items: Sequence[Item], update: Update, tenant: str | None) -> dict[str, Any]:
    """Columns for `embed_batch`."""
    names = [item.name for item in items]
    batch: dict[str, Any] = {
        "path": np.array(names, object),
        "file": np.array([item.file for item in items], object),
        "label": np.array(update.labels(names), object),
        "tenant": np.array([tenant] * len(items), object),
    }
    if any(item.size is not None for item in items):
        for name in ("size", "mtime", "offset"):
            batch[name] = np.array([getattr(item, name) for item in items], np.int64)
        batch["length"] = np.array([-1 if item.length is None else item.length for item in items], np.int64)
    return batch


def commit_fragments(index: "Index | str | os.PathLike[str]", *, tenant: str | None = None) -> UpdateReport:
    """Make all fragments count that `write_fragment` has written for an index, of pictures of one tenant.

    What the index has of a file already stays: fragments replace nothing.

    Args:
        index: it, or its folder.
        tenant: whose pictures they are.

    Raises:
        SearchError: the index is damaged.
        OutputError: it cannot be written; what was in it stays.
    """
    opened = index if isinstance(index, Index) else Index.open(index)
    return SpreadIndex(opened, MapRunner())._left(None, tenant, nothing)
