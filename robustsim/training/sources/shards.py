"""Images in tar files of WebDataset's layout, read at any index.

A sample is the members that share a KEY, which ends at the first dot of the name: an image (`KEY.jpg`) and, where
there are labels, a whole number in text (`KEY.cls`). Opening reads the heads of the members, once; from then on an
image is one read at its offset. Compressed archives have no offsets, so they are refused.

The package `webdataset` is not used: it streams shards and shuffles within a buffer. A run that was interrupted
cannot go on from the exact place there, and the order depends on how many processes share the shards.
"""

import os
import re
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, product
from pathlib import Path
from typing import Any

from PIL import Image

from robustsim.errors import DataError, ImageError, InputError
from robustsim.images.decode import read_image
from robustsim.images.files import picture_suffixes, prefetch, printable, suffix_of, what_is_there
from robustsim.images.tars import NoEndError, members
from robustsim.training.sources.base import SPLITS, Names, Source, listing, read_classes

CLASSES = "classes.json"
_MOST_OPEN = 64
_MOST_THREADS = 16
_MOST_CLASSES = 1_000_000
_MOST_SHARDS = 1_000_000
_UNLABELLED = -1
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


class _Shard:
    """What one tar file holds.

    Attributes:
        labels: -1 where a sample has none.
        problem: what is wrong with the file; None where it is whole.
        damaged: whether there is more in it that cannot be read.
        left_out: what is wrong with samples, for people.
        passed_over: how many keys have no image, by the suffix of what they have.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.keys = path, Names()
        self.offsets, self.sizes, self.labels = array("q"), array("q"), array("i")
        self.problem: str | None = None
        self.damaged = False
        self.left_out: list[str] = []
        self.passed_over: Counter[str] = Counter()

    def add(self, key: str, offset: int, size: int, label: int) -> None:
        self.keys.append(key)
        self.offsets.append(offset)
        self.sizes.append(size)
        self.labels.append(label)

    def labelled(self) -> "_Shard":
        """The same without the samples that have no label."""
        other = _Shard(self.path)
        other.problem, other.damaged, other.left_out = self.problem, self.damaged, self.left_out
        other.passed_over = self.passed_over
        for place, label in enumerate(self.labels):
            if label != _UNLABELLED:
                other.add(self.keys[place], self.offsets[place], self.sizes[place], label)
        return other

    def messages(self) -> list[str]:
        """What could not be read, one message each."""
        whole = [] if self.problem is None else [f"{self.problem}; samples of it that are used: {len(self.keys)}"]
        return [f"{printable(self.path)}: {message}" for message in whole + self.left_out]


class _Descriptor:
    """A file that is open until nobody uses it any more."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class ShardSource(Source):
    """The samples of some tar files, in the order of the files and of the images in each.

    A shard that is damaged counts as far as it can be read, and is among `problems`; so is one that is missing. A
    sample whose `.cls` holds no label is left out. There are labels where every sample has one. The classes are those
    of `classes.json` beside the first shard, else "0", "1" and so on.

    Args:
        paths: the tar files.
        name: see `Source`.
        problems: what is known of before.

    Raises:
        DataError: every shard is damaged, there is no sample, or `classes.json` has fewer names than there are
            labels.
    """

    def __init__(self, paths: Sequence[Path], name: str, problems: Sequence[str] = ()) -> None:
        shards = _index_all(paths)
        if any(label != _UNLABELLED for shard in shards for label in shard.labels):
            # Damage that parts an image from its label must not cost the labels of all the others.
            shards = [shard if shard.problem is None else shard.labelled() for shard in shards]
        messages = [*problems, *(message for shard in shards for message in shard.messages())]
        if all(shard.damaged for shard in shards):
            raise DataError(f"{name}: every shard is damaged ({len(shards)}): {'; '.join(messages[:3])}")
        self._firsts = list(accumulate((len(shard.keys) for shard in shards), initial=0))
        self._shards = shards
        if not len(self):
            passed_over = sum((shard.passed_over for shard in shards), Counter[str]())
            what = "; ".join(messages[:3]) or (
                f"{printable(paths[0])} holds no member KEY.jpg, KEY.png or the like; {what_is_there(passed_over)}"
            )
            raise DataError(f"{name} has no sample: {what}")
        labels = array("i")
        for shard in shards:
            labels += shard.labels
        classes = None
        without = labels.count(_UNLABELLED)
        if not without:
            classes = _classes(paths[0].parent / CLASSES, max(labels) + 1)
        elif without < len(labels):
            first = self.place(labels.index(_UNLABELLED))
            messages.append(f"labels are ignored: {without} of {len(labels)} samples have none, the first is {first}")
        passed_over = sum((shard.passed_over for shard in shards), Counter[str]())
        super().__init__(name, classes, labels, messages, passed_over)
        self._open = lru_cache(maxsize=_MOST_OPEN)(_Descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = lru_cache(maxsize=_MOST_OPEN)(_Descriptor)

    def __len__(self) -> int:
        return self._firsts[-1]

    def place(self, index: int) -> str:
        """The shard's name and the key of the sample."""
        shard, member = self._find(index)
        return f"{printable(Path(shard.path.name))}:{printable(Path(shard.keys[member]))}"

    def _find(self, index: int) -> tuple[_Shard, int]:
        shard = bisect_right(self._firsts, index) - 1
        return self._shards[shard], index - self._firsts[shard]

    def _image(self, index: int) -> Image.Image:
        shard, member = self._find(index)
        size = shard.sizes[member]
        try:
            # Held until the data are there: the cache may let it go meanwhile, and its number would be another file's.
            opened = self._open(shard.path)
            data = os.pread(opened.number, size, shard.offsets[member])
        except OSError as error:
            raise ImageError(f"{self.place(index)}: cannot read the shard: {error.strerror or error}") from error
        if len(data) < size:
            raise ImageError(f"{self.place(index)}: the shard ends {size - len(data)} bytes before the image does")
        try:
            return read_image(data)
        except ImageError as error:
            raise ImageError(f"{self.place(index)}: {error}") from None


def open_shards(
    paths: Sequence[Path], name: str, split: str | None, *, divided: bool = False, left_out: Sequence[str] = ()
) -> ShardSource:
    """Open tar files, all of them or those of one split.

    Args:
        paths: the files.
        name: of the source; that of the split is added.
        split: a word in the names of the files to take.
        divided: whether to take `train` where no split is given and the names have the words of several.
        left_out: names of archives that cannot be read, for `problems`.

    Raises:
        DataError: see `ShardSource`.
        InputError: there is no such split, or there are splits but no `train`.
    """
    if split is None and divided:
        found = {word for path in paths for word in _words(path)} & set(SPLITS)
        # One word alone is but a name.
        if len(found) > 1:
            if "train" not in found:
                seen = listing([path.name for path in paths])
                raise InputError(
                    f"{name} holds shards of several splits but none of 'train': {seen}; say which (split=)"
                )
            split = "train"
    problems = [f"left out, because it is compressed: {printable(Path(one))}" for one in left_out]
    if split is None:
        return ShardSource(paths, name, problems)
    chosen = [path for path in paths if split in _words(path)]
    if not chosen:
        raise InputError(f"{name} has no shard of the split {split!r}: {listing([path.name for path in paths])}")
    return ShardSource(chosen, f"{name}/{split}", problems)


def expand(pattern: str) -> list[str]:
    """The names that `{000..127}` and `{a,b}` in a pattern stand for, as in a shell.

    Raises:
        InputError: a brace holds neither, or they stand for too many names.
    """
    parts: list[Sequence[str]] = []
    count = 1
    for place, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        if place % 2 == 0:
            parts.append([part])
        elif limits := _RANGE.fullmatch(part):
            low, high = int(limits[1]), int(limits[2])
            count *= max(high - low + 1, 0)
            # Padded where a limit is, as a shell does.
            padded = any(one != "0" and one.startswith("0") for one in limits.groups())
            width = max(map(len, limits.groups())) if padded else 1
            parts.append([f"{number:0{width}d}" for number in range(low, high + 1)] if count <= _MOST_SHARDS else [])
        else:
            parts.append(part.split(","))
            count *= len(parts[-1]) if "," in part else 0
        if not 0 < count <= _MOST_SHARDS:
            raise InputError(
                f"{pattern!r}: {{{part}}} cannot be expanded: expected two numbers, the lower first, as in "
                f"{{000..127}}, or names as in {{a,b}}; at most {_MOST_SHARDS:,} files"
            )
    if any("{" in part or "}" in part for part, *_ in parts[::2]):
        raise InputError(f"{pattern!r}: a brace is not closed, or within another one")
    return ["".join(chosen) for chosen in product(*parts)]


def _words(path: Path) -> list[str]:
    return re.split(r"[-_.]", path.stem)


def _classes(file: Path, count: int) -> tuple[str, ...]:
    if not file.exists():
        return tuple(map(str, range(count)))
    names = read_classes(file)
    if len(names) < count:
        raise DataError(f"{file} names {len(names)} classes, but the greatest label is {count - 1}")
    return names


def _index_all(paths: Sequence[Path]) -> list[_Shard]:
    """Index tar files, in order, with as many threads as pays."""
    wall, busy = time.perf_counter(), time.thread_time()
    first = _index(paths[0])
    wall, busy = time.perf_counter() - wall, time.thread_time() - busy
    # While one waits for the disk another can parse. More than that would but wait for the interpreter's lock, and
    # where the disk is fast this takes longer than doing without.
    workers = round(min(max(wall / max(busy, 1e-6), 1), _MOST_THREADS))
    return [first, *prefetch(_index, paths[1:], workers=workers)]


def _index(path: Path) -> _Shard:
    """Read the heads of a tar file's members."""
    shard = _Shard(path)
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    wrong: dict[str, bytes] = {}
    others: dict[str, str] = {}
    extensions = {suffix[1:] for suffix in picture_suffixes()}
    # tarfile answers damage with many kinds of exception, all of which mean that there is no way on from here.
    try:
        with path.open("rb") as file:
            for name, offset, size in members(file, os.fstat(file.fileno()).st_size):
                parts = _KEY.fullmatch(name)
                if parts is None:
                    continue
                key, extension = parts[1], parts[2].lower()
                if extension in extensions:
                    images.setdefault(key, (offset, size))
                elif extension == "cls":
                    file.seek(offset)
                    text = file.read(min(size, 64)).strip()
                    if text.isdigit() and int(text) < _MOST_CLASSES:
                        labels[key] = int(text)
                    else:
                        wrong[key] = text
                else:
                    others.setdefault(key, suffix_of(name))
    except NoEndError as error:
        shard.problem = str(error)
    except OSError as error:
        shard.problem, shard.damaged = f"cannot be read: {error.strerror or error}", True
    except Exception as error:
        shard.problem, shard.damaged = f"damaged: {error or type(error).__name__}", True
    for key, (offset, size) in images.items():
        if key not in wrong:
            shard.add(key, offset, size, labels.get(key, _UNLABELLED))
    shard.passed_over.update(suffix for key, suffix in others.items() if key not in images)
    if bad := [key for key in wrong if key in images]:
        shard.left_out.append(
            f"left out, because their .cls is no whole number below {_MOST_CLASSES:,}: {len(bad)} samples, the first "
            f"is {bad[0]!r} with {wrong[bad[0]][:20]!r}"
        )
    return shard
