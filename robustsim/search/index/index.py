"""The index of pictures: make it, add, bring up to date, forget."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.errors import ImageError
from robustsim.images.files import find_images
from robustsim.images.inputs import ImageInput
from robustsim.images.views.names import check_views
from robustsim.metric import RobustSim
from robustsim.search.index.answering import Answering, nothing
from robustsim.search.index.models import describe, loader
from robustsim.search.index.update import Update, UpdateReport, parts_of
from robustsim.search.storage.forget import ForgetReport, forget
from robustsim.search.storage.rows import check_words
from robustsim.search.storage.store import Store

if TYPE_CHECKING:
    import torch


class Index(Answering):
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

    @classmethod
    def create(
        cls,
        path: "str | os.PathLike[str]",
        metric: "RobustSim | str | os.PathLike[str]" = DEFAULT_MODEL,
        *,
        also: "Sequence[RobustSim | str | os.PathLike[str]]" = (),
        views: Sequence[str] = (),
        device: "str | torch.device | None" = None,
        load: "Callable[[str], RobustSim] | None" = None,
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
            load: makes a metric of a name, in place of `RobustSim.from_pretrained`, also later.

        Raises:
            OutputError: the folder is in use, or cannot be written.
            InputError: two models have one name, or there is no such view.
            MissingDependencyError: Lance is not installed.
        """
        kept, load = check_views(views), load or loader(device)
        models, metrics = describe([metric, *also], load)
        dims = [one.card.embedding_dim for one in metrics]
        return cls(Store.create(path, dims, {"models": models, "views": list(kept)}), metrics, load)

    @classmethod
    def open(
        cls,
        path: "str | os.PathLike[str]",
        metric: "RobustSim | None" = None,
        *,
        also: "Sequence[RobustSim | None]" = (),
        device: "str | torch.device | None" = None,
        load: "Callable[[str], RobustSim] | None" = None,
    ) -> "Index":
        """An index that is there.

        Args:
            path: its folder.
            metric: the model that made it; None to load it by the name that the index knows, when it is needed.
            also: the further models likewise, in their order.
            device: where a metric that is loaded computes.
            load: makes a metric of a name, in place of `RobustSim.from_pretrained`.

        Raises:
            SearchError: there is none, it is damaged, of a newer format, or of another model.
            MissingDependencyError: Lance is not installed.
        """
        return cls(Store(path), [metric, *also], load or loader(device))

    def add(
        self,
        images: "ImageInput | str | os.PathLike[str]",
        *,
        label: str | None = None,
        tenant: str | None = None,
        follow_links: bool = False,
        progress: Callable[[int], object] = nothing,
        on_error: Callable[[ImageError], object] = nothing,
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
        progress: Callable[[int], object] = nothing,
        on_error: Callable[[ImageError], object] = nothing,
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


def _absolute(path: "str | os.PathLike[str]") -> Path:
    return Path(os.path.abspath(path))
