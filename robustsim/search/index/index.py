"""The index of pictures: add, bring up to date, search, forget, check."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.card import DEFAULT_MODEL, EncoderCard
from robustsim.errors import ImageError, InputError
from robustsim.images.files import find_images
from robustsim.images.inputs import ImageInput
from robustsim.images.views.names import check_views
from robustsim.metric import ImagesOrEmbeddings, RobustSim
from robustsim.search.duplicates.report import DuplicatesReport
from robustsim.search.index.alike import duplicates, lines_asked
from robustsim.search.index.answer import Answer
from robustsim.search.index.ask import Question
from robustsim.search.index.deciding import decide, lines_of, measure
from robustsim.search.index.models import Models, describe
from robustsim.search.index.update import Update, UpdateReport, parts_of
from robustsim.search.rates import drop_tails, keep_tails, known_tails, read_tails
from robustsim.search.storage.check import CheckReport, check_store
from robustsim.search.storage.forget import ForgetReport, forget
from robustsim.search.storage.loaded import Loaded
from robustsim.search.storage.rows import check_words
from robustsim.search.storage.store import Snapshot, Store

if TYPE_CHECKING:
    import torch

    from robustsim.encoders.tail import Tail


def _nothing(value: Any) -> None:
    """What is called where nobody wants to be called."""


class Index:
    """Pictures that are searched by what they look like, and by an exact scan: no neighbour is missed.

    ```python
    index = Index.create("photos.index")
    index.add("photos/")
    for hit in index.within("suspect.jpg", distance=0.44)[0]:
        print(hit.path, hit.distance)
    ```

    The folder holds the embeddings of one model, or of several, which it knows: another one is refused. An index
    answers from the version that was the newest when it was first asked, whatever others write meanwhile; what it
    writes itself it sees.

    Make one by [`create`][robustsim.search.Index.create] or [`open`][robustsim.search.Index.open].

    Attributes:
        lines: the ways in which pictures are compared: the names of its models, and `phash`, a perceptual hash.
        views: which views it keeps of each picture, beside the whole.
    """

    def __init__(
        self,
        store: Store,
        metrics: "Sequence[RobustSim | None]" = (),
        device: "str | torch.device | None" = None,
    ) -> None:
        self._store = store
        header = store.read().header
        self._models = Models(self.path, header, metrics, device)
        self.lines = self._models.lines
        self.views = check_views(header.get("views", ()))
        self._snapshot: Snapshot | None = None  # what answers, from when it was first asked
        self._loaded: Loaded | None = None

    @classmethod
    def create(
        cls,
        path: "str | os.PathLike[str]",
        metric: "RobustSim | str | os.PathLike[str]" = DEFAULT_MODEL,
        *,
        also: "Sequence[RobustSim | str | os.PathLike[str]]" = (),
        views: Sequence[str] = (),
        device: "str | torch.device | None" = None,
    ) -> "Index":
        """An empty index.

        Args:
            path: a new folder, or an empty one.
            metric: what embeds, or its name; see [`RobustSim.from_pretrained`][robustsim.RobustSim.from_pretrained]. A
                name is what `open` loads later, of a metric that was loaded the name in its card.
            also: further models that embed each picture; each is a line of its own.
            views: which views are kept of each picture, beside the whole, each in a row of its own: names of
                `robustsim.images.VIEWS`.
            device: where metrics that are named compute.

        Raises:
            OutputError: the folder is in use, or cannot be written.
            InputError: two models have one name, or there is no such view.
            MissingDependencyError: Lance is not installed.
        """
        kept = check_views(views)
        models, metrics = describe([metric, *also], device)
        dims = [one.card.embedding_dim for one in metrics]
        return cls(Store.create(path, dims, {"models": models, "views": list(kept)}), metrics)

    @classmethod
    def open(
        cls,
        path: "str | os.PathLike[str]",
        metric: "RobustSim | None" = None,
        *,
        also: "Sequence[RobustSim | None]" = (),
        device: "str | torch.device | None" = None,
    ) -> "Index":
        """An index that is there.

        Args:
            path: its folder.
            metric: the model that made it; None to load it by the name that the index knows, when it is needed.
            also: the further models likewise, in their order.
            device: where a metric that is loaded computes.

        Raises:
            SearchError: there is none, it is damaged, of a newer format, or of another model.
            MissingDependencyError: Lance is not installed.
        """
        return cls(Store(path), [metric, *also], device)

    @property
    def path(self) -> str:
        """The folder."""
        return os.fspath(self._store.folder)

    @property
    def card(self) -> EncoderCard:
        """The card of its own model, the first."""
        return self._models.cards[0]

    @property
    def metric(self) -> RobustSim:
        """What embeds.

        Raises:
            SearchError: there is no model of that name, or it is another one by now.
        """
        return self._models[0]

    @property
    def version(self) -> int:
        """The version that answers."""
        return self._answering().version

    def __len__(self) -> int:
        """How many pictures it holds."""
        return self._answering().pictures

    def add(
        self,
        images: "ImageInput | str | os.PathLike[str]",
        *,
        label: str | None = None,
        tenant: str | None = None,
        follow_links: bool = False,
        progress: Callable[[int], object] = _nothing,
        on_error: Callable[[ImageError], object] = _nothing,
    ) -> UpdateReport:
        """Add the pictures of a folder, files, or pictures in memory. What is there already is not embedded again.

        So a call that was interrupted is made again, and continues. A file is known by its name, size and time of
        change; one that has changed replaces its row. Memory does not grow with the folder.

        Args:
            images: a folder, a file, a list of both, or images as for [`RobustSim.embed`][robustsim.RobustSim.embed].
            label: what is kept with them, those that are there already included; None: these keep theirs.
            tenant: whose they are. The same file may be that of several.
            follow_links: walk linked folders too.
            progress: called with the number of pictures done since the last call.
            on_error: called for each file that cannot be read, and is skipped.

        Raises:
            ImageError: there is no such folder or file.
            EncodingError: an embedding is not finite, or nothing but zeros.
            SearchError: the index is damaged.
            OutputError: it cannot be written; what was in it stays.
        """
        report = UpdateReport()
        for part in parts_of(images):  # each compared anew: folders may lie in one another
            with self._updating(label, tenant, progress, on_error) as update:
                if isinstance(part, Path):
                    walk = find_images(part, follow_links=follow_links)
                    update.files(_absolute(part), walk)
                    update.report.passed_over = dict(walk.passed_over)
                elif part is None:
                    update.pictures(images)
                else:
                    update.files(Path(), dict.fromkeys(map(_absolute, part)))
            report.include(update.report)
        return report

    def sync(
        self,
        folder: "str | os.PathLike[str]",
        *,
        label: str | None = None,
        tenant: str | None = None,
        follow_links: bool = False,
        remove_all: bool = False,
        progress: Callable[[int], object] = _nothing,
        on_error: Callable[[ImageError], object] = _nothing,
    ) -> UpdateReport:
        """As [`add`][robustsim.search.Index.add], and remove what is gone from the folder, or is no picture any more.

        Only what the file system says is not there is removed, and what was read and is no picture: not what cannot be
        read, nor what lies below folders that cannot be listed or links that lead nowhere. With nothing new no model is
        loaded. What is removed is found no more; [`forget`][robustsim.search.Index.forget] erases it from the disk too.

        If nothing below the folder would be left in the index, it may be a disk that is not there: this is refused
        unless `remove_all` asks for it.

        Raises:
            InputError: nothing would be left, and that was not asked for.
        """
        root, walk = _absolute(folder), find_images(folder, follow_links=follow_links)
        with self._updating(label, tenant, progress, on_error) as update:
            update.files(root, walk)
            update.remove_gone(root, all_of_them=remove_all)
        update.report.passed_over = dict(walk.passed_over)
        return update.report

    def search(
        self,
        images: ImagesOrEmbeddings,
        k: int = 10,
        *,
        views: Sequence[str] = (),
        label: str | None = None,
        tenant: str | None = None,
    ) -> Answer:
        """The k nearest pictures to each query. Prefer [`within`][robustsim.search.Index.within] for a decision: who
        can add pictures can put k of them before the one that is looked for.

        Args:
            images: queries, as for [`RobustSim.embed`][robustsim.RobustSim.embed]; embeddings may stand in.
            k: how many; all if there are fewer.
            views: which views of a query are looked for, beside the whole: names of `robustsim.images.VIEWS`. A picture
                is as near as the nearest of them.
            label: only pictures with this label count.
            tenant: only pictures of this tenant count.

        Raises:
            ImageError: a query cannot be read.
            InputError: k is not positive, there is no such view, or a query is no image.
            SearchError: the index is damaged, or was erased since it was opened.
        """
        if not isinstance(k, (int, np.integer)) or k < 1:
            raise InputError(f"k must be at least 1, a whole number, not {k!r}")
        return self._question(images, self.lines[:1], views, label, tenant).nearest(int(k))

    def within(
        self,
        images: ImagesOrEmbeddings,
        distance: "float | Mapping[str, float] | None" = None,
        *,
        false_positives: float | None = None,
        by: "str | Sequence[str] | None" = None,
        views: Sequence[str] = (),
        label: str | None = None,
        tenant: str | None = None,
    ) -> Answer:
        """All pictures that match each query: those within a distance, or as near as a rate of false positives allows.

        Args:
            images: queries, as for [`search`][robustsim.search.Index.search].
            distance: by the one line that is asked, or the distance of each of several.
            false_positives: which share of pairs of different pictures may match, by chance, instead of a distance.
            by: the lines that compare: names, or `all`; the index's own model if not given. A picture that any of them
                finds is a hit. Only that of a robust model is a promise where somebody tampers.
            views: as for `search`.
            label: likewise.
            tenant: likewise.

        Raises:
            ImageError: a query cannot be read.
            InputError: neither or both of distance and rate were given, the rate is smaller than what was measured can
                say, there is no such line or view, or a query is no image.
            SearchError: the index is damaged, or was erased since it was opened.
        """
        lines = lines_of(self._models, by, distance, false_positives)
        question = self._question(images, lines, views, label, tenant)
        tails = {} if false_positives is None else self._tails()
        return question.within(decide(lines, distance, false_positives, tails, question.comparisons))

    def measure_rates(self, progress: Callable[[int], object] = _nothing) -> "dict[str, Tail]":
        """Measure how near different pictures of this index come to each other, by each line, and keep it beside it.

        `false_positives` means these from then on, as long as the index stays as it is, instead of what the cards of
        its models bring. Pictures that are copies of each other, and not the same file, count as different ones: so
        rates of an index with many copies allow too little, and never too much.

        Args:
            progress: called with the number of pairs compared since the last call.

        Raises:
            InputError: the index holds no two pictures.
            SearchError: it is damaged.
            OutputError: nothing can be kept beside it.
        """
        rows = self._rows()
        tails = measure(self._models, rows, f"the index {self.path!r}", progress)
        keep_tails(self.path, rows.snapshot.key, tails)
        return tails

    def duplicates(
        self,
        distance: "float | Mapping[str, float] | None" = None,
        false_positives: float | None = None,
        *,
        by: Sequence[str] | None = None,
        keep: str = "largest",
        label: str | None = None,
        tenant: str | None = None,
        progress: Callable[[int], object] = _nothing,
    ) -> DuplicatesReport:
        """Groups of pictures that look alike, each two of which do.

        All pairs are compared, and none is missed. Two pictures are alike if any of several lines says so; what it says
        of edits is good, and only the line of a robust encoder is a promise under attack. Files of the same content are
        in one group as a matter of course. Nothing is loaded but the index, and no file is touched.

        Args:
            distance: up to which pictures are alike by the index's own model, or by each line that is named.
            false_positives: a distance for each line, so that all together take at most such a share of pairs of
                different pictures for alike. One in a million, if neither is given.
            by: which lines compare; all of the index's, if a rate is given.
            keep: which of a group is kept: "largest" (the most pixels, then the most bytes), "smallest", "oldest",
                "newest" or "medoid", the one with the least sum of distances to the others.
            label: only pictures with this label count.
            tenant: only pictures of this tenant count.
            progress: called with the number of pairs compared since the last call.

        Raises:
            InputError: no such line, rule or distance, or no data that can say the rate.
            SearchError: the index is damaged, or was erased since it was opened.
            OutputError: there is no room on the disk for the pairs.
        """
        check_words(label=label, tenant=tenant)
        rows = self._rows()
        thresholds = lines_asked(self._models, rows, distance, false_positives, by)
        return duplicates(self._models, rows, thresholds, keep=keep, label=label, tenant=tenant, progress=progress)

    def forget(self, names: "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]") -> ForgetReport:
        """Erase pictures, by `id` or path, of all tenants: rows that are left are written anew, older files removed.

        Those that were removed before, by `sync` or as changed, are erased with them. Whoever has an older version open
        is told to open the index again. What a disk or its backups keep of removed files is not in our hands.

        Raises:
            InputError: a name is empty.
            SearchError: the index is damaged; nothing was erased.
            OutputError: it cannot be written.
        """
        try:
            drop_tails(self.path)
            return forget(self._store, [names] if isinstance(names, (str, os.PathLike)) else names)
        finally:
            self._snapshot = self._loaded = None

    def check(self, progress: Callable[[int], object] = _nothing) -> CheckReport:
        """Read every byte of the version that counts now, and compare it with what was written.

        Args:
            progress: called with the number of rows looked at since the last call.

        Raises:
            SearchError: it is no index any more.
        """
        return check_store(self._store, progress)

    def _answering(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = self._store.read()
        return self._snapshot

    def _rows(self) -> Loaded:
        if self._loaded is None:
            self._loaded = self._store.read_into(Loaded) if self._snapshot is None else Loaded(self._snapshot)
            self._snapshot = self._loaded.snapshot
        return self._loaded

    @contextmanager
    def _updating(
        self,
        label: str | None,
        tenant: str | None,
        progress: Callable[[int], object],
        on_error: Callable[[ImageError], object],
    ) -> Iterator[Update]:
        check_words(label=label, tenant=tenant)
        try:
            yield Update(self._store, self._models, self.views, label, tenant, progress, on_error)
            self._store.tidy()
        finally:
            self._snapshot = self._loaded = None  # what was committed is seen, whatever came after

    def _tails(self) -> "dict[str, Tail]":
        """What is known of how near different pictures come, by line."""
        cards = dict(zip(self.lines, self._models.cards, strict=False))
        return {**known_tails(cards), **read_tails(self.path, self._rows().snapshot.key)}

    def _question(
        self,
        images: ImagesOrEmbeddings,
        lines: Sequence[str],
        views: Sequence[str],
        label: str | None,
        tenant: str | None,
    ) -> Question:
        check_words(label=label, tenant=tenant)
        wanted, rows = check_views(views), self._rows()
        return Question(self._models, rows, images, views=wanted, lines=lines, label=label, tenant=tenant)


def _absolute(path: "str | os.PathLike[str]") -> Path:
    return Path(os.path.abspath(path))
