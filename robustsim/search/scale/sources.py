"""Where pictures lie that many machines embed: folders, object stores, tar shards; with names, sizes and times."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from robustsim.errors import ImageError
from robustsim.images.files import find_images, picture_suffixes, printable, suffix_of
from robustsim.images.tars import NoEndError, members
from robustsim.search.stamps import in_64_bits, size_and_time

if TYPE_CHECKING:
    import pyarrow as pa

_SHARD = ".tar"


class Item(NamedTuple):
    """A picture that was not read yet.

    Attributes:
        name: what the index calls it: an absolute path, a URL, or `shard.tar/member` of either.
        file: what is opened; a path, or one of the file system.
        size: bytes of it; None for a file of a folder, of which it is asked when it is needed.
        mtime: when it, or its shard, was changed, in nanoseconds; None likewise.
        offset: where it begins, within a shard.
        length: bytes of it there; None for the whole file.
    """

    name: str
    file: str
    size: int | None = None
    mtime: int | None = None
    offset: int = 0
    length: int | None = None

    def size_and_time(self) -> tuple[int | None, int | None]:
        """What it is known by."""
        return size_and_time(self.file) if self.size is None else (self.size, self.mtime)


class Source:
    """One place that pictures are in.

    Attributes:
        folder: its absolute path, if it is a folder of this machine.
        passed_over: how many files of each kind were left out so far; see `robustsim.images.FoundImages`.
        filesystem: of pyarrow, that opens the files; None for the local one.

    Args:
        where: a folder, a tar file, or a URL of either, as `s3://bucket/photos` or `file:///photos`.
        follow_links: walk linked folders too.
        filesystem: of pyarrow, that knows `where`; the one of the URL if not given.

    Raises:
        ImageError: there is nothing of that name, or it cannot be listed.
    """

    def __init__(
        self,
        where: "str | os.PathLike[str]",
        *,
        follow_links: bool = False,
        filesystem: "pa.fs.FileSystem | None" = None,
    ) -> None:
        text = os.fspath(where)
        self.folder: Path | None = None
        self.passed_over: Counter[str] = Counter()
        self.filesystem, self._follow_links = filesystem, follow_links
        self._prefix = ""  # of names, before the path that the file system knows
        if filesystem is None and "://" in text:
            self.filesystem, text, self._prefix = _filesystem(text)
        self._place = text if self.filesystem is not None else os.path.abspath(text)
        if self.filesystem is None and os.path.isdir(self._place):
            self.folder = Path(self._place)

    def __iter__(self) -> Iterator[Item]:
        if self.folder is not None:
            walk = find_images(self.folder, follow_links=self._follow_links)
            for path in walk:
                whole = os.path.join(self.folder, path)
                yield Item(printable(whole), whole)
            self.passed_over = walk.passed_over
        elif self.filesystem is None:
            yield from self._local()
        else:
            yield from self._remote(self.filesystem)

    def _local(self) -> Iterator[Item]:
        size, mtime = size_and_time(self._place)
        if size is None:
            raise ImageError(f"{self._place!r} is neither a folder nor a file")
        if suffix_of(self._place) != _SHARD:
            yield Item(printable(self._place), self._place)
            return
        with Path(self._place).open("rb") as file:
            yield from self._members(file, printable(self._place), self._place, size, mtime)

    def _remote(self, filesystem: "pa.fs.FileSystem") -> Iterator[Item]:
        import pyarrow.fs as pf

        suffixes = picture_suffixes()
        try:
            found = filesystem.get_file_info(self._place)
            if found.type == pf.FileType.Directory:
                every = filesystem.get_file_info(pf.FileSelector(self._place, recursive=True))
                found = sorted((one for one in every if one.is_file), key=lambda one: one.path)
            elif found.type == pf.FileType.File:
                found = [found]
            else:
                raise ImageError(f"{self._prefix + self._place!r} is neither a folder nor a file")
        except OSError as error:
            raise ImageError(f"cannot list {self._prefix + self._place!r}: {error}") from error
        for one in found:
            below = one.path[len(self._place) :].split("/")
            mtime = in_64_bits(one.mtime_ns or 0)  # 0 where the file system does not tell
            if any(part.startswith(".") for part in below):
                self.passed_over["hidden picture" if suffix_of(one.base_name) in suffixes else "hidden folder"] += 1
            elif suffix_of(one.path) == _SHARD:
                with filesystem.open_input_file(one.path) as file:
                    yield from self._members(file, self._prefix + one.path, one.path, one.size, mtime)
            elif suffix_of(one.path) in suffixes or len(found) == 1:
                yield Item(self._prefix + one.path, one.path, one.size, mtime)
            else:
                self.passed_over[suffix_of(one.path) or "file without a suffix"] += 1

    def _members(self, file: Any, name: str, path: str, size: int, mtime: int | None) -> Iterator[Item]:
        """The pictures of a shard, by the time at which the shard was changed."""
        suffixes = picture_suffixes()
        try:
            for member, offset, length in members(file, size):
                if suffix_of(member) in suffixes:
                    yield Item(f"{name}/{member}", path, length, mtime, offset, length)
                else:
                    self.passed_over[suffix_of(member) or "file without a suffix"] += 1
        except NoEndError as error:
            self.passed_over[f"{_SHARD} file that stops early"] += 1
            del error
        except Exception as error:  # tarfile answers damage with many kinds of exception
            raise ImageError(f"the tar file {name!r} cannot be read: {error or type(error).__name__}") from error


def open_bytes(file: str, filesystem: "pa.fs.FileSystem | None", offset: int, length: int | None) -> bytes:
    """A file's content, or a part of it.

    Raises:
        OSError: it cannot be read.
    """
    if filesystem is None and "://" in file:
        filesystem, file, _ = _filesystem(file)
    if filesystem is None:
        with Path(file).open("rb") as local:
            local.seek(offset)
            return local.read(-1 if length is None else length)
    with filesystem.open_input_file(file) as stream:
        data: bytes = stream.read() if length is None else stream.read_at(length, offset)
        return data


def _filesystem(url: str) -> "tuple[pa.fs.FileSystem | None, str, str]":
    """The file system of a URL, the path in it, and what comes before that; none for local files."""
    import pyarrow.fs as pf

    scheme = url.partition("://")[0]
    try:
        filesystem, path = pf.FileSystem.from_uri(url)
    except (ValueError, OSError) as error:
        raise ImageError(f"{url!r} names no file system that pyarrow knows: {error}") from error
    return (None, path, "") if scheme == "file" else (filesystem, path, f"{scheme}://")
