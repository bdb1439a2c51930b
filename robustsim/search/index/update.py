"""Bring an index up to date with files: what is new or has changed is embedded, some hundred pictures at a time."""

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from robustsim.errors import ImageError, InputError
from robustsim.images.files import from_printable, printable
from robustsim.images.inputs import ImageInput, split_images
from robustsim.images.views.load import load_views
from robustsim.search.index.files import is_gone, load_file
from robustsim.search.index.models import Models
from robustsim.search.index.pictures import Loading, Seen, embed_loaded, load_ahead, one_by_one, pixels_sha256
from robustsim.search.stamps import content_sha256, size_and_time
from robustsim.search.storage.fragments import Fragment
from robustsim.search.storage.known import Known
from robustsim.search.storage.rows import Entry, Vectors, make_table, read_back
from robustsim.search.storage.store import Snapshot, Store, Writer

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

_TOGETHER = 512  # rows that are committed together
_LONGEST = 30.0  # seconds of work that a process which is killed may lose
_COMPARED = 1024  # files compared with the index at a time


@dataclass
class UpdateReport:
    """What `Index.add` and `Index.sync` did.

    Attributes:
        added: pictures that the index did not have.
        replaced: files that had changed.
        unchanged: files, or pictures, that it had already.
        removed: rows whose files are gone.
        relabelled: files, or pictures, that it had already, and with another label than the one that is given.
        failed: files that could not be read.
        passed_over: how many files of each kind were left out; see `robustsim.images.FoundImages`.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    removed: int = 0
    relabelled: int = 0
    failed: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)

    def include(self, other: "UpdateReport") -> None:
        """Add what another one counts."""
        for name, count in vars(other).items():
            if name == "passed_over":
                self.passed_over = dict(Counter(self.passed_over) + Counter(count))
            else:
                setattr(self, name, getattr(self, name) + count)


class Update:
    """One run of `add` or `sync`, for one tenant.

    Args:
        store: what is brought up to date.
        models: of the index, loaded when there is something to embed.
        views: which are kept of each picture, beside the whole.
        label: of what is named; None to let those keep theirs that the index has.
        tenant: whose it is.
        progress: called with the number of files done since the last call.
        on_error: called for each file that is skipped.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        views: Sequence[str],
        label: str | None,
        tenant: str | None,
        progress: Callable[[int], object],
        on_error: Callable[[ImageError], object],
    ) -> None:
        self._store, self._models, self._views = store, models, views
        self._preprocessings = [card.preprocessing for card in models.cards]
        self._label, self._tenant, self.progress, self._on_error = label, tenant, progress, on_error
        self.report = UpdateReport()
        snapshot, self._start = store.read_into(lambda snapshot: (snapshot, Known(snapshot, tenant)))
        self._current = self._start
        self._version = snapshot.version
        self._seen = np.zeros(len(self._start), bool)
        self._unlisted: list[str] = []
        self._spoilt: set[str] = set()  # files that were read to their end, and are no pictures
        self._put: list[tuple[Entry, list[Seen]]] = []
        self._since = time.monotonic()

    def files(self, root: Path, paths: Iterable[Path]) -> None:
        """Add files, each of which is named once, that the index does not have as they are.

        Raises:
            EncodingError: an embedding is not finite, or nothing but zeros; what was committed stays.
        """
        whole = (os.path.join(root, path) for path in paths)
        loaded = load_ahead(partial(load_file, self._preprocessings, self._views), self.todo(whole), self._views)
        called = lambda key: repr(printable(key[0]))  # noqa: E731
        for (path, stamp), found in embed_loaded(self._models.every, loaded, called, fill=None):
            if isinstance(found, ImageError):
                self.fails(Path(path), found)
            elif "error" in stamp:  # it decoded, and could not be read again: what it is is not known
                self.fails(Path(path), ImageError(f"cannot read {path!r}: {stamp['error']}"))
            else:
                entry = Entry(stamp["id"], stamp["file"], stamp["size"], stamp["mtime"])
                self.put(entry._replace(width=found.width, height=found.height), found.views)
                self.progress(1)
        self.commit()

    def pictures(self, images: ImageInput) -> None:
        """Add pictures in memory.

        Raises:
            ImageError, InputError: they are none.
        """

        def load(source: Any) -> tuple[str, Loading]:
            found = load_views(source, self._preprocessings, self._views, hashed=True)
            return pixels_sha256(found), found

        sources, seen = one_by_one(split_images(images, as_rgb=False)), set()
        stream = load_ahead(load, sources, self._views) if len(sources) > 1 else map(load, sources)
        for name, found in embed_loaded(self._models.every, stream, lambda name: f"the picture {name}"):
            if name not in seen and not isinstance(found, ImageError):
                seen.add(name)
                self.put(Entry(name, width=found.width, height=found.height), found.views)
            self.progress(1)
        self.commit()

    def put(self, entry: Entry, views: list[Seen]) -> None:
        """Add a picture, with the others of its batch, each of which is put once."""
        self._put.append((entry._replace(label=self._label, tenant=self._tenant), views))
        if sum(len(seen) for _, seen in self._put) >= _TOGETHER or time.monotonic() - self._since > _LONGEST:
            self.commit()

    def commit(self) -> None:
        """Write what was put, in one version."""
        if self._put:
            with self._replacing([entry for entry, _ in self._put]) as (writer, entries, taken):
                if taken:
                    pairs = [(entries[row], seen) for row in taken for seen in self._put[row][1]]
                    columns = zip(*(seen.embeddings for _, seen in pairs), strict=True)
                    rows = [entry._replace(view=seen.view, hash=seen.hash) for entry, seen in pairs]
                    embeddings = [torch.stack(one).numpy() for one in columns]
                    writer.append(make_table(rows, embeddings, writer.snapshot.dataset.schema))
        self._put, self._since = [], time.monotonic()

    def adopt(self, fragments: Sequence[Fragment], *, left: bool = False) -> None:
        """Make the rows of fragments count, in one version; those that the index has meanwhile do not.

        Args:
            fragments: of which no two have rows of one file.
            left: whether an earlier run has left them: they replace nothing then, as what is there may be newer.
        """
        whole = [[entry for entry in one.entries if not entry.view] for one in fragments]
        every = [entry for of_one in whole for entry in of_one]
        with self._replacing(every, replaces=not left) as (writer, entries, taken):
            chosen, start = set(taken), 0
            for one, of_one in zip(fragments, whole, strict=True):
                own = range(start, start + len(of_one))
                start += len(of_one)
                same = all(entries[at].label == every[at].label for at in own)
                if same and chosen.issuperset(own):
                    writer.adopt(one)
                elif chosen.intersection(own):
                    writer.append(_some_rows(one, [entries[at] for at in own if at in chosen], writer.snapshot))
        for one in fragments:
            one.remove()

    @contextmanager
    def _replacing(
        self, entries: list[Entry], *, replaces: bool = True
    ) -> Iterator[tuple[Writer, list[Entry], list[int]]]:
        """Add pictures in one version, and take away what the index has of their files; count them when that is done.

        Gives what writes, the pictures with the labels that they are to have, and the places of those that are to be
        written: the index may have the others already.
        """
        with self._store.writing() as writer:
            self._meet(writer.snapshot)
            old = _positions(self._current, entries)
            labels = self._current.labels(old)
            renamed = [at >= 0 and self._renames(label) for at, label in zip(old, labels, strict=True)]
            same = [
                at >= 0 and (self._same(int(at), one) or not replaces) for at, one in zip(old, entries, strict=True)
            ]
            taken = [row for row in range(len(old)) if not same[row] or (renamed[row] and replaces)]
            if self._label is None:
                entries = [
                    one._replace(label=label) if at >= 0 else one
                    for one, label, at in zip(entries, labels, old, strict=True)
                ]
            stale = np.unique(old[taken][old[taken] >= 0])
            if len(stale):
                writer.delete(*self._current.rows_of(stale))
            yield writer, entries, taken
        self._version = writer.version
        written = self._start.match("path", [entries[row].path for row in taken])
        self._seen[written[written >= 0]] = True  # nothing is left of them that could be gone
        relabelled = sum(bool(one and other and replaces) for one, other in zip(same, renamed, strict=True))
        self.report.relabelled += relabelled
        self.report.replaced += len(stale) - relabelled
        self.report.added += len(taken) - len(stale)
        self.report.unchanged += len(old) - len(taken)

    def remove_gone(self, root: Path, *, all_of_them: bool) -> None:
        """Remove the rows that were there when this began, and whose files below the folder are not there any more.

        What the walk did not come by may well be there: each file is asked for by its name before its row is removed.

        Args:
            root: the folder.
            all_of_them: even if no row below the folder is left then.

        Raises:
            InputError: none would be left, and that was not asked for; no row is removed.
        """
        missed = np.flatnonzero(~self._seen & self._start.below(printable(root), self._unlisted))
        names = self._start.paths(missed)
        gone = missed[np.array([name in self._spoilt or is_gone(from_printable(name), root) for name in names], bool)]
        if not len(gone):
            return
        # A file that was read, whatever it is, shows that the disk is there.
        is_there = self.report.added or self._spoilt
        if not (is_there or all_of_them) and len(gone) == self._start.below(printable(root)).sum():
            raise InputError(
                f"nothing that the index has of {os.fspath(root)!r} is there any more, and all {len(gone)} rows would "
                "be removed: nothing was. If it is a disk that is not there, bring it back; if they are to be removed, "
                "say so by remove_all=True (--remove-all)"
            )
        with self._store.writing() as writer:
            self._meet(writer.snapshot)
            here = self._current.match("path", self._start.paths(gone))
            pairs = zip(gone, here, strict=True)
            # Another writer may have removed or replaced one.
            same = [at for old, at in pairs if at >= 0 and self._current.digests[at] == self._start.digests[old]]
            if same:
                writer.delete(*self._current.rows_of(np.array(same)))
        self._version = writer.version
        self.report.removed += len(same)

    def _meet(self, snapshot: Snapshot) -> None:
        """Look again at what is known, if another writer has been there."""
        if snapshot.version != self._version:
            self._current = Known(snapshot, self._tenant)

    def _relabel(self, paths: Sequence[str]) -> None:
        """Give rows of files the label; what was embedded stays. A row that somebody else took away stays away."""
        if not paths:
            return
        with self._store.writing() as writer:
            self._meet(writer.snapshot)
            at = self._current.match("path", paths)
            at = at[at >= 0]
            at = at[[self._renames(label) for label in self._current.labels(at)]]
            wanted = [*writer.snapshot.narrow, *(Vectors.of(n).embedding for n in range(len(self._models)))]
            row_ids, digests = self._current.rows_of(at)
            for start in range(0, len(row_ids), _TOGETHER):
                some, theirs = row_ids[start : start + _TOGETHER], digests[start : start + _TOGETHER]
                entries, embeddings = read_back(writer.snapshot.rows(wanted, some), theirs)
                writer.delete(some, theirs)
                renamed = [entry._replace(label=self._label) for entry in entries]
                writer.append(make_table(renamed, embeddings, writer.snapshot.dataset.schema))
        self._version = writer.version
        self.report.relabelled += len(at)
        self.report.unchanged += len(paths) - len(at)

    def _renames(self, label: str | None) -> bool:
        """Whether what has this label is to have another one."""
        return self._label is not None and label != self._label

    def _same(self, at: int, entry: Entry) -> bool:
        known = self._current
        return not entry.path or (known.sizes[at], known.mtimes[at]) == (entry.size, entry.mtime)

    def todo(
        self,
        files: Iterator[T],
        name: Callable[[T], str] = printable,  # type: ignore[assignment]
        known_by: "Callable[[T], tuple[int | None, int | None]] | None" = None,
    ) -> Iterator[T]:
        """Those of the files that the index does not have as they are; the others get the label, if they need it.

        Args:
            files: any number; texts take half the time of paths that are objects.
            name: file -> how the index calls it.
            known_by: file -> what it is known by; asked where the index has a file of that name.
        """
        sizes, mtimes, stamp = self._start.sizes, self._start.mtimes, known_by or size_and_time
        while chunk := list(islice(files, _COMPARED)):
            names = [name(file) for file in chunk]
            found = self._start.match("path", names).tolist()
            labels = self._start.labels(np.array(found, np.int64)) if self._label is not None else [None] * len(chunk)
            renamed = []
            for file, called, at, label in zip(chunk, names, found, labels, strict=True):
                if at >= 0 and stamp(file) == (sizes.item(at), mtimes.item(at)):  # type: ignore[arg-type]
                    self._seen[at] = True
                    if self._renames(label):
                        renamed.append(called)
                    else:
                        self.report.unchanged += 1
                    self.progress(1)
                    continue
                yield file
            self._relabel(renamed)

    def labels(self, names: Sequence[str]) -> list[str | None]:
        """With which label pictures are to be kept: the one that is given, or that which the index has of the file."""
        if self._label is not None:
            return [self._label] * len(names)
        return self._current.labels(self._current.match("path", names))

    def fails(self, path: Path, error: ImageError) -> None:
        """Count a file that cannot be read, and tell of it."""
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, ValueError):
            pass
        except OSError:  # nobody can say what is in that folder
            self._unlisted.append(printable(path.parent))
        else:
            if stat.S_ISDIR(mode):  # what lies below it may be there
                self._unlisted.append(printable(path))
            elif stat.S_ISREG(mode) and "error" not in content_sha256(path):
                self._spoilt.add(printable(path))
        self.report.failed += 1
        self._on_error(error)
        self.progress(1)


def parts_of(images: Any) -> "Sequence[Path | list[Path] | None]":
    """What is to be added, in parts: a folder, files, or None for pictures in memory.

    Raises:
        ImageError: what was passed alone is not there.
        InputError: files and pictures in memory were passed together.
    """
    kinds = (str, os.PathLike)
    if isinstance(images, kinds):
        if not os.path.lexists(images):
            raise ImageError(f"{os.fspath(images)!r} is neither a folder nor a file")
        images = [images]
    if not isinstance(images, (list, tuple)) or not any(isinstance(one, kinds) for one in images):
        return [None]
    if not all(isinstance(one, kinds) for one in images):
        raise InputError("files and pictures in memory cannot be added together: add them in two calls")
    paths = [Path(one) for one in images]
    folders = [path for path in paths if os.path.isdir(path)]
    files = [path for path in paths if not os.path.isdir(path)]
    return [*folders, files] if files else folders


def _positions(known: Known, entries: Sequence[Entry]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Where pictures are among the known ones: files by their names, others by what they are."""
    by_path = known.match("path", [entry.path for entry in entries])
    by_id = known.match("id", [entry.id for entry in entries])
    return np.where([bool(entry.path) for entry in entries], by_path, by_id)


def _some_rows(fragment: Fragment, pictures: Sequence[Entry], snapshot: Snapshot) -> "pa.Table":
    """Those rows of a fragment that are of some of its pictures, with the labels that these have."""
    labels = {(one.path, one.id): one.label for one in pictures}
    entries, embeddings = read_back(fragment.table(), fragment.digests)
    at = [row for row, one in enumerate(entries) if (one.path, one.id) in labels]
    named = [entries[row]._replace(label=labels[entries[row].path, entries[row].id]) for row in at]
    return make_table(named, [rows[at] for rows in embeddings], snapshot.dataset.schema)
