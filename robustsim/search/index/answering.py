"""What an index answers: the nearest pictures, those that match, and those that are alike."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.card import EncoderCard
from robustsim.errors import InputError, SearchError
from robustsim.images.views.names import check_views
from robustsim.metric import ImagesOrEmbeddings, RobustSim
from robustsim.search.duplicates.find import Compare
from robustsim.search.duplicates.report import DuplicatesReport
from robustsim.search.index.alike import duplicates
from robustsim.search.index.answer import Answer
from robustsim.search.index.ask import Question
from robustsim.search.index.deciding import ALL, RATE, decide, lines_of, measure
from robustsim.search.index.models import Loader, Models
from robustsim.search.index.scanning import Clusters, LoadedScanner, Scanner, opened
from robustsim.search.rates import keep_tails, known_tails, read_tails
from robustsim.search.storage.approximate import Approximate
from robustsim.search.storage.check import CheckReport, check_store
from robustsim.search.storage.loaded import Loaded
from robustsim.search.storage.rows import check_words
from robustsim.search.storage.store import Snapshot, Store

if TYPE_CHECKING:
    from robustsim.encoders.tail import Tail


def nothing(value: Any) -> None:
    """What is called where nobody wants to be called."""


class Answering:
    """An index as far as it only answers; see [`Index`][robustsim.search.Index].

    Attributes:
        lines: the ways in which pictures are compared: the names of its models, and `phash`, a perceptual hash.
        views: which views it keeps of each picture, beside the whole.
    """

    def __init__(
        self,
        store: Store,
        metrics: "Sequence[RobustSim | None]",
        load: Loader,
    ) -> None:
        self._store = store
        header = store.read().header
        self._models = Models(self.path, header, metrics, load)
        self.lines = self._models.lines
        self.views = check_views(header.get("views", ()))
        self._snapshot: Snapshot | None = None  # what answers, from when it was first asked
        self._loaded: Loaded | None = None
        self._clusters: Clusters = {}

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

    def share_model(self, other: "Answering") -> None:
        """Let another index's own model be this one's, so that it is loaded once and one embedding asks both.

        Raises:
            SearchError: they are of different models; the message names both.
        """
        self._models.share(other._models)

    def distance_at(self, false_positives: float, *, query_views: int = 1) -> float:
        """Up to which distance pictures match by the index's own model, so that at most such a share of pairs of
        different ones do.

        Args:
            false_positives: the share.
            query_views: how many views a query has, the whole included: they share it.

        Raises:
            InputError: the rate cannot be told, or is smaller than what was measured can say.
            SearchError: the index is damaged.
        """
        rows, line = self._rows(), self.lines[0]
        comparisons = max(1, ceil(query_views * len(rows.pictures) / max(1, rows.count)))
        return decide([line], None, false_positives, self._tails(), comparisons).thresholds[line]

    def search(
        self,
        images: ImagesOrEmbeddings,
        k: int = 10,
        *,
        views: Sequence[str] = (),
        label: str | None = None,
        tenant: str | None = None,
        approximate: bool = False,
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
            approximate: look at a part of the rows, by clusters that Lance makes when this is first asked of a version.
                The answer says that it is not complete, and which share of planted near-duplicates is found. An index
                of less than 1,000 rows is scanned as ever.

        Raises:
            ImageError: a query cannot be read.
            InputError: k is not positive, there is no such view, or a query is no image.
            SearchError: the index is damaged, or was erased since it was opened.
        """
        if not isinstance(k, (int, np.integer)) or k < 1:
            raise InputError(f"k must be at least 1, a whole number, not {k!r}")
        return self._question(images, self.lines[:1], views, label, tenant, approximate).nearest(int(k))

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
        approximate: bool = False,
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
            approximate: likewise; no decision should hang on what may be missing.

        Raises:
            ImageError: a query cannot be read.
            InputError: neither or both of distance and rate were given, the rate is smaller than what was measured can
                say, there is no such line or view, or a query is no image.
            SearchError: the index is damaged, or was erased since it was opened.
        """
        lines = lines_of(self._models, by, distance, false_positives)
        question = self._question(images, lines, views, label, tenant, approximate)
        tails = {} if false_positives is None else self._tails()
        return question.within(cache(partial(decide, lines, distance, false_positives, tails)))

    def measure_rates(self, progress: Callable[[int], object] = nothing) -> "dict[str, Tail]":
        """Measure how near different pictures of this index come to each other, by each line, and keep it beside it.

        `false_positives` means these from then on, instead of what the cards of its models bring, and
        `Answer.measured_on` says so: measure again when the index has become another one. Files of the same content are
        one picture. Copies that are not the same file count as different ones: so rates of an index with many of them
        allow too little, and never too much. What is kept is how many pairs are within each distance, and stays when
        pictures are forgotten.

        Args:
            progress: called with the number of pairs compared since the last call.

        Raises:
            InputError: the index holds no two pictures.
            SearchError: it is damaged.
            OutputError: nothing can be kept beside it.
        """
        rows = self._rows()
        about = f"{rows.count:,} pictures of the index {self.path!r}, version {rows.snapshot.version}"
        tails = measure(self._models, rows, about, progress)
        keep_tails(self.path, tails)
        return tails

    def duplicates(
        self,
        distance: "float | Mapping[str, float] | None" = None,
        false_positives: float | None = None,
        *,
        by: "str | Sequence[str] | None" = None,
        keep: str = "largest",
        label: str | None = None,
        tenant: str | None = None,
        progress: Callable[[int], object] = nothing,
    ) -> DuplicatesReport:
        """Groups of pictures that look alike, each two of which do.

        All pairs are compared, and none is missed. Two pictures are alike if any of several lines says so; what it says
        of edits is good, and only the line of a robust encoder is a promise under attack. Files of the same content are
        in one group as a matter of course. Nothing is loaded but the index, and no file is touched.

        Args:
            distance: up to which pictures are alike by the index's own model, or by each line that is named.
            false_positives: a distance for each line, so that all together take at most such a share of pairs of
                different pictures for alike. 1e-5, if neither is given.
            by: which lines compare, or `all`. If none is named, all for a rate, and the index's own for a distance.
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
        if distance is None:
            by, false_positives = by or ALL, RATE if false_positives is None else false_positives
        lines, rows = lines_of(self._models, by, distance, false_positives), self._rows()
        tails = {} if false_positives is None else self._tails()
        found = decide(lines, distance, false_positives, tails, rows.comparisons)
        words: dict[str, Any] = {"keep": keep, "label": label, "tenant": tenant, "progress": progress}
        return duplicates(self._models, rows, found, **words, compare=self._compare())

    def check(self, progress: Callable[[int], object] = nothing) -> CheckReport:
        """Read every byte of the version that counts now, and compare it with what was written.

        Args:
            progress: called with the number of rows looked at since the last call.

        Raises:
            SearchError: it is no index any more.
        """
        report = check_store(self._store, progress)
        try:
            read_tails(self.path)
        except SearchError as error:
            return replace(report, problems=(*report.problems, str(error)))
        return report

    def _answering(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = self._store.read()
        return self._snapshot

    def _rows(self) -> Loaded:
        if self._loaded is None:
            self._loaded = self._store.read_into(Loaded) if self._snapshot is None else Loaded(self._snapshot)
            self._snapshot = self._loaded.snapshot
        return self._loaded

    def _tails(self) -> "dict[str, Tail]":
        """What is known of how near different pictures come, by line."""
        cards = dict(zip(self.lines, self._models.cards, strict=False))
        return {**known_tails(cards), **read_tails(self.path)}

    def _question(
        self,
        images: ImagesOrEmbeddings,
        lines: Sequence[str],
        views: Sequence[str],
        label: str | None,
        tenant: str | None,
        approximate: bool,
    ) -> Question:
        check_words(label=label, tenant=tenant)
        numbers = [self._models.number(line) for line in lines]
        scanner = partial(self._scanner, numbers, label, tenant, approximate)
        return Question(self._models, scanner, images, views=check_views(views), lines=lines)

    def _compare(self) -> "Compare | None":
        """What finds pairs of rows, if that is not this process."""
        return None

    def _scanner(
        self, numbers: Sequence[int | None], label: str | None, tenant: str | None, approximate: bool, device: str
    ) -> Scanner:
        """What scans the rows that count, by the models of these numbers."""
        loaded = self._rows()
        made: dict[int | None, Approximate] = {}
        for number in numbers if approximate else ():
            if number is not None and (clusters := opened(self._clusters, loaded, number)):
                made[number] = clusters
        return LoadedScanner(loaded, label, tenant, device=device, made=made)
