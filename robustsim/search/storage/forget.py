"""Erase pictures from an index."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from robustsim.errors import InputError
from robustsim.images.files import printable
from robustsim.search.storage.rows import add_up, check_narrow
from robustsim.search.storage.store import Store


@dataclass(frozen=True)
class ForgetReport:
    """What `Index.forget` did.

    Attributes:
        forgotten: how many pictures were erased.
        missing: which of the names are those of no row.
    """

    forgotten: int
    missing: tuple[str, ...]


def forget(store: Store, names: "Iterable[str | os.PathLike[str]]") -> ForgetReport:
    """Erase rows, by `id` or path, and all that was removed before.

    Raises:
        InputError: a name is empty.
        SearchError: the index is damaged; nothing was erased.
        OutputError: it cannot be written.
    """
    asked = [os.fspath(name) for name in names]
    by_id: dict[str, set[str]] = {}
    by_path: dict[str, set[str]] = {}
    for name in asked:
        if not name:
            raise InputError("an empty name is that of no picture: pass ids or paths")
        by_id.setdefault(name, set()).add(name)
        by_path.setdefault(printable(os.path.abspath(os.path.expanduser(name))), set()).add(name)
        if os.path.isabs(name) or "://" in name:  # as a hit has it
            by_path.setdefault(name, set()).add(name)
    row_ids: list[int] = []
    gone: list[bytes] = []
    found: set[str] = set()
    done = total = pictures = 0
    with store.writing() as writer:
        for batch in writer.snapshot.batches(writer.snapshot.narrow, row_ids=True):
            digests = check_narrow(batch)
            done, total = done + len(digests), total + add_up(digests)
            columns = (batch.column(name).to_pylist() for name in ("id", "path", "view", "_rowid"))
            for name, path, view, row_id, digest in zip(*columns, digests, strict=True):
                if hits := by_id.get(name, set()) | by_path.get(path, set()):
                    found |= hits
                    pictures += not view
                    row_ids.append(row_id)
                    gone.append(digest)
        writer.snapshot.compare(done, total)
        if row_ids:
            writer.delete(row_ids, gone)
        writer.erase()
    return ForgetReport(pictures, tuple(name for name in asked if name not in found))
