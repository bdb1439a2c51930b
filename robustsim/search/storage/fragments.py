"""Rows that were written for an index and do not count yet: fragments, each whole or not there at all.

Whoever embeds writes them, any number of processes at once and without a lock, in a folder of their own beside the
rows, where nothing removes them that tidies these up. One process then makes them count: their files are linked to
those of the index, and a new version names them. Until then a fragment is a checkpoint: what it holds is not lost when
processes are killed.
"""

import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsim.errors import OutputError, SearchError
from robustsim.search.storage.caches import FRAGMENTS, remove
from robustsim.search.storage.library import lance, lances
from robustsim.search.storage.rows import Entry, check_narrow, narrow

if TYPE_CHECKING:
    import pyarrow as pa

_PART = ".part"
_LEFT = 24 * 3600  # seconds after which who began a fragment has been killed


def write_rows(folder: Path, table: "pa.Table") -> str:
    """Write rows of `make_table` as a fragment; its name.

    Args:
        folder: of the index.
        table: the rows.

    Raises:
        OutputError: they cannot be written.
    """
    root, name = folder / FRAGMENTS, uuid.uuid4().hex
    part = root / f"{name}{_PART}"
    try:
        root.mkdir(exist_ok=True)
        with lances(folder, writes=True):
            lance().write_dataset(table, os.fspath(part), schema=table.schema, mode="create")
        part.rename(root / name)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise OutputError(f"cannot write {os.fspath(root)!r}: {error.strerror or error}") from error
        raise
    return name


def waiting(folder: Path) -> list[str]:
    """The names of fragments that are whole, and do not count yet; what was left unfinished long ago is removed."""
    found = []
    for path in sorted((folder / FRAGMENTS).glob("*")):
        if path.suffix != _PART:
            found.append(path.name)
            continue
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT:
                shutil.rmtree(path, ignore_errors=True)
    return found


class Fragment:
    """One that is there.

    Attributes:
        name: of it.
        entries: of its rows, in their order.
        digests: likewise.

    Args:
        folder: of the index.
        name: of the fragment.
        like: the columns of the index.

    Raises:
        SearchError: it is not there, is damaged, or of another index.
    """

    def __init__(self, folder: Path, name: str, like: "pa.Schema") -> None:
        self.name, self._folder, self._place = name, folder, folder / FRAGMENTS / name
        if not self._place.is_dir():
            raise SearchError(f"the fragment {os.fspath(self._place)!r} is not there any more")
        with lances(folder):
            self._dataset = lance().dataset(os.fspath(self._place))
            if not self._dataset.schema.equals(like, check_metadata=True):
                raise SearchError(f"the fragment {os.fspath(self._place)!r} is that of another index, or model")
            table = self._dataset.to_table(columns=narrow(like))
        self.digests = check_narrow(table)
        columns = (table.column(name).to_pylist() for name in Entry._fields)
        self.entries = [Entry(*words) for words in zip(*columns, strict=True)]

    def table(self) -> "pa.Table":
        """All of its rows."""
        with lances(self._folder):
            return self._dataset.to_table()

    def link(self, root: Path) -> list[Any]:
        """Give its files places among those of the rows; what Lance knows of them.

        Args:
            root: the rows' folder.

        Raises:
            OSError: they cannot be linked, nor copied.
        """
        made = [fragment.metadata for fragment in self._dataset.get_fragments()]
        (root / "data").mkdir(exist_ok=True)  # an empty index has none
        for one in made:
            for file in one.files:
                source, target = self._place / "data" / file.path, root / "data" / file.path
                target.unlink(missing_ok=True)  # of a process that was killed before the version counted
                try:
                    os.link(source, target)
                except OSError:  # a file system without links
                    shutil.copyfile(source, target)
        return made

    def remove(self) -> None:
        """Take it away; its rows count, or are not wanted."""
        remove(self._place)
