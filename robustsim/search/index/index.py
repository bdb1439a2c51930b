"""The index of pictures: add, bring up to date, search, forget, check."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.card import DEFAULT_MODEL, EncoderCard, list_models
from robustsim.encoders.load import image_sha256
from robustsim.errors import ImageError, InputError, ModelNotFoundError, SearchError
from robustsim.images.files import find_images
from robustsim.images.inputs import ImageInput
from robustsim.metric import ImagesOrEmbeddings, RobustSim
from robustsim.search.index.answer import Answer, Hit
from robustsim.search.index.update import Update, UpdateReport, parts_of
from robustsim.search.scan import exact as scan
from robustsim.search.storage.check import CheckReport, check_store
from robustsim.search.storage.forget import ForgetReport, forget
from robustsim.search.storage.loaded import Loaded
from robustsim.search.storage.rows import check_words
from robustsim.search.storage.store import Snapshot, Store

if TYPE_CHECKING:
    import torch

# What two cards have in common if the same picture gives the same embedding, beside the weights.
_DECISIVE = ("architecture", "embedding_dim", "preprocessing", "mean", "std", "head")


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

    The folder holds the embeddings of one model, which it knows: another one is refused. An index answers from the
    version that was the newest when it was first asked, whatever others write meanwhile; what it writes itself it sees.

    Make one by [`create`][robustsim.search.Index.create] or [`open`][robustsim.search.Index.open].
    """

    def __init__(
        self, store: Store, metric: "RobustSim | None" = None, device: "str | torch.device | None" = None
    ) -> None:
        self._store, self._device = store, device
        header = store.read().header
        try:
            self._weights: str = header["weights"]
            self._model: str = header["model"]
            self.card = EncoderCard.from_json(json.dumps(header["card"]), where=f"the card in {self.path!r}")
        except (KeyError, TypeError):
            raise SearchError(f"the index {self.path!r} does not say which model made it") from None
        self._metric: RobustSim | None = None
        self._snapshot: Snapshot | None = None  # what answers, from when it was first asked
        self._loaded: Loaded | None = None
        if metric is not None:
            self._metric = self._checked(metric)

    @classmethod
    def create(
        cls,
        path: "str | os.PathLike[str]",
        metric: "RobustSim | str | os.PathLike[str]" = DEFAULT_MODEL,
        *,
        device: "str | torch.device | None" = None,
    ) -> "Index":
        """An empty index.

        Args:
            path: a new folder, or an empty one.
            metric: what embeds, or its name; see [`RobustSim.from_pretrained`][robustsim.RobustSim.from_pretrained]. A
                name is what `open` loads later, of a metric that was loaded the name in its card.
            device: where a metric that is named computes.

        Raises:
            OutputError: the folder is in use, or cannot be written.
            MissingDependencyError: Lance is not installed.
        """
        if isinstance(metric, RobustSim):
            model = metric.card.name
        else:
            name, metric = metric, RobustSim.from_pretrained(metric, device=device)
            model = _whole_name(name)
        card = metric.card
        header = {"model": model, "card": json.loads(card.to_json()), "weights": image_sha256(metric.encoder)}
        return cls(Store.create(path, card.embedding_dim, header), metric)

    @classmethod
    def open(
        cls,
        path: "str | os.PathLike[str]",
        metric: "RobustSim | None" = None,
        *,
        device: "str | torch.device | None" = None,
    ) -> "Index":
        """An index that is there.

        Args:
            path: its folder.
            metric: the model that made it; None to load it by the name that the index knows, when it is needed.
            device: where a metric that is loaded computes.

        Raises:
            SearchError: there is none, it is damaged, of a newer format, or of another model.
            MissingDependencyError: Lance is not installed.
        """
        return cls(Store(path), metric, device)

    @property
    def path(self) -> str:
        """The folder."""
        return os.fspath(self._store.folder)

    @property
    def metric(self) -> RobustSim:
        """What embeds.

        Raises:
            SearchError: there is no model of that name, or it is another one by now.
        """
        if self._metric is None:
            try:
                metric = RobustSim.from_pretrained(self._model, device=self._device)
            except ModelNotFoundError as error:
                raise SearchError(
                    f"the index {self.path!r} was made by {self._model!r}, which is not there: open it with the model "
                    f"(Index.open(path, metric), --model). {error}"
                ) from None
            self._metric = self._checked(metric)
        return self._metric

    @property
    def version(self) -> int:
        """The version that answers."""
        return self._answering().version

    def __len__(self) -> int:
        return self._answering().count

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
        label: str | None = None,
        tenant: str | None = None,
    ) -> Answer:
        """The k nearest pictures to each query. Prefer [`within`][robustsim.search.Index.within] for a decision: who
        can add pictures can put k of them before the one that is looked for.

        Args:
            images: queries, as for [`RobustSim.embed`][robustsim.RobustSim.embed]; embeddings may stand in.
            k: how many; all if there are fewer.
            label: only pictures with this label count.
            tenant: only pictures of this tenant count.

        Raises:
            ImageError: a query cannot be read.
            InputError: k is not positive, or a query is no image.
            SearchError: the index is damaged, or was erased since it was opened.
        """
        if not isinstance(k, (int, np.integer)) or k < 1:
            raise InputError(f"k must be at least 1, a whole number, not {k!r}")
        return self._answer(partial(scan.nearest, k=k), images, label, tenant)

    def within(
        self, images: ImagesOrEmbeddings, distance: float, *, label: str | None = None, tenant: str | None = None
    ) -> Answer:
        """All pictures at most at that distance from each query; arguments and errors as for
        [`search`][robustsim.search.Index.search].
        """
        if not 0 <= distance <= 2**0.5:
            raise InputError(f"distance must be from 0 to 1.414, not {distance}")
        return self._answer(partial(scan.within, distance=distance), images, label, tenant)

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
        preprocessing = self.card.preprocessing
        try:
            yield Update(self._store, preprocessing, lambda: self.metric, label, tenant, progress, on_error)
            self._store.tidy()
        finally:
            self._snapshot = self._loaded = None  # what was committed is seen, whatever came after

    def _answer(
        self, search: "partial[list[scan.Found]]", images: ImagesOrEmbeddings, label: str | None, tenant: str | None
    ) -> Answer:
        check_words(label=label, tenant=tenant)
        rows = self._rows()
        queries = self.metric.embed(images).detach().cpu().numpy()
        allowed = rows.allowed(label, tenant)
        device = self.metric.device.type if self.metric.device.type == "cuda" else "cpu"
        found = search(scan.Rows(rows.codes, rows.embeddings, rows.order), queries, allowed=allowed, device=device)
        hits = []
        for one in found:
            columns = (rows.table.column(name).take(one.positions).to_pylist() for name in ("path", "id", "label"))
            described = zip(*columns, one.distances.tolist(), strict=True)
            hits.append(tuple(Hit(path, name, away, label) for path, name, label, away in described))
        bound = max((one.bound for one in found), default=0.0)
        compared = rows.snapshot.count if allowed is None else len(allowed)
        return Answer(tuple(hits), True, bound, rows.snapshot.version, compared)

    def _checked(self, metric: RobustSim) -> RobustSim:
        """Refuse another model than the one that made the index."""
        differs = [name for name in _DECISIVE if getattr(metric.card, name) != getattr(self.card, name)]
        if differs or image_sha256(metric.encoder) != self._weights:
            what = f"another {' and '.join(differs).replace('_', ' ')}" if differs else "other weights, or another type"
            raise SearchError(
                f"the index {self.path!r} was made by {self.card.name!r}, and this {metric.card.name!r} has {what}: "
                "distances of two models do not compare. Open the index with the model that made it, or make another "
                "index"
            )
        return metric


def _whole_name(model: "str | os.PathLike[str]") -> str:
    """A model's name as it is good from everywhere: a folder's with all of its path, unless the catalogue has it."""
    name = os.fsdecode(model)
    folder = os.path.abspath(os.path.expanduser(name))
    return folder if name not in list_models() and os.path.isdir(folder) else name


def _absolute(path: "str | os.PathLike[str]") -> Path:
    return Path(os.path.abspath(path))
