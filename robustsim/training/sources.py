"""Where training images come from: folders, tar shards and Hugging Face data sets, each read at any index.

A training loop that can ask for any image shuffles them all by one seeded permutation, goes on after an interruption
exactly where it was, and shares the work with other processes by sharing out the indices. Nothing is decoded when a
source is opened. Its names are packed, so that a million images take some fifty megabytes.

A folder may hold splits: subfolders ``train``, ``val`` and the like, or shards whose names have such a word in them.
Where no split is asked for, ``train`` is taken, so that nobody trains on the images to validate with.
"""

import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from robustsim.data.tables import read_lines
from robustsim.errors import DataError, InputError
from robustsim.images.files import SUFFIXES, find_images, printable

#: Words that make a subfolder, or a shard, a split.
SPLITS = ("train", "val", "valid", "validation", "test")
_HUB = "hf:"
# Written by Hugging Face's save_to_disk.
_ARROW = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
_MANY = 5


@dataclass(frozen=True)
class Sample:
    """One image to train on.

    Attributes:
        image: decoded, in mode RGB, upright, of the file's own size.
        label: the place of its class in the source's ``classes``; None where the images have no labels.
    """

    image: Image.Image
    label: int | None


class Source(ABC):
    """Images in a fixed order, which is the same whenever and wherever the same files are opened.

    Any number of threads may read at once; a source can be pickled for other processes.

    Attributes:
        name: short, for logs and model cards: the folder's own name.
        classes: names of the classes in the order of their labels; None where not every image has a label.
        problems: what could not be read when the source was opened, one message each.
    """

    def __init__(
        self, name: str, classes: Sequence[str] | None, labels: Sequence[int] = (), problems: Iterable[str] = ()
    ) -> None:
        self.name, self.classes, self.problems = name, None if classes is None else tuple(classes), tuple(problems)
        self._labels = array("i", labels)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place(self, index: int) -> str:
        """What messages call an image: the path of its file, ``shard.tar:KEY``, or ``name:row``."""

    @abstractmethod
    def _image(self, index: int) -> Image.Image:
        """The decoded image; an ``ImageError`` says where it is."""

    def label(self, index: int) -> int | None:
        """What ``read(index).label`` is, without reading the image."""
        return None if self.classes is None else self._labels[index]

    def read(self, index: int) -> Sample:
        """The image of an index, and its label.

        Args:
            index: from 0 to ``len(self) - 1``.

        Raises:
            ImageError: the image cannot be read. The message names the file, or the shard and the member.
            IndexError: there is no such index.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has images 0 to {len(self) - 1}, and not {index}")
        return Sample(self._image(index), self.label(index))


class Names:
    """Many short strings in one block of memory, a tenth of what a list of them takes."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("Q")

    def append(self, name: str) -> None:
        """Add one at the end."""
        self._text += name.encode("utf-8", "surrogateescape")  # names of files need not be UTF-8
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode("utf-8", "surrogateescape")


def open_source(
    path: "str | os.PathLike[str]", *, split: str | None = None, classes: "str | os.PathLike[str] | None" = None
) -> Source:
    """Open images to train on.

    ==================================  ===============================================================
    path                                what is opened
    ==================================  ===============================================================
    a folder of images                  :class:`robustsim.training.folders.FolderSource`
    a folder of ``*.tar`` files         :class:`robustsim.training.shards.ShardSource`
    ``x.tar``, ``x-{000..127}.tar``     the same
    ``hf:NAME``, ``hf:NAME:CONFIG``     :class:`robustsim.training.hf.HuggingFaceSource`
    a folder written by save_to_disk    the same
    ==================================  ===============================================================

    Args:
        path: see the table.
        split: ``train`` if not given and there are splits. It is a subfolder's name, a word in the names of the shards
            (``train-0000.tar``), or a split of the Hugging Face data set.
        classes: a file with other names for the classes, in the order of their labels: one a line, or a list in JSON.

    Raises:
        DataError: there is nothing at the path, or nothing that can be read; or ``classes`` has not one name for each
            class.
        ImageError: a folder of images may not be read.
        InputError: there is no such split, or there are some without a ``train``; the path is a pattern that cannot be
            expanded, or has no name after ``hf:``.
        MissingDependencyError: a Hugging Face data set, and the package ``datasets`` is not installed.
    """
    source = _open(os.fspath(path), split)
    if classes is not None:
        file = Path(classes)
        names = read_classes(file)
        if source.classes is None:
            raise DataError(f"{file} names {len(names)} classes, but the images of {source.name} have no labels")
        if len(names) != len(source.classes):
            raise DataError(f"{file} names {len(names)} classes, but {source.name} has {len(source.classes)}")
        source.classes = names
    return source


def read_classes(file: Path) -> tuple[str, ...]:
    """Names of classes in the order of their labels.

    A JSON file holds a list, or an object with a name for each label from "0". What stands for a name may be an object
    that has it as ``name`` or ``words``, or a list that has it at its end. Any other file has one name a line.

    Raises:
        DataError: the file cannot be read, or is none of these.
    """
    if file.suffix.lower() != ".json":
        found: list[Any] = [line for _, line in read_lines(file)]
    else:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot read {str(file)!r}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} is no JSON: {error}") from None
        if isinstance(content, dict):
            places = [str(label) for label in range(len(content))]
            if missing := [label for label in places if label not in content]:
                raise DataError(f"{file} names {len(content)} classes, but none for the label {missing[0]}")
            content = [content[label] for label in places]
        if not isinstance(content, list):
            raise DataError(f"{file} holds neither a list of names nor names by label")
        found = content
    if not found:
        raise DataError(f"{file} names no class")
    return tuple(_class_name(file, label, entry) for label, entry in enumerate(found))


def _class_name(file: Path, label: int, entry: Any) -> str:
    match entry:
        case str(name) | {"name": str(name)} | {"words": str(name)} | [*_, str(name)]:
            return name
    raise DataError(f"{file}: the class of the label {label} is {str(entry)[:80]}, expected a name")


def folder_name(path: Path) -> str:
    """A folder's own name, behind that of its parent where it says little: ``nips17/images``."""
    whole = Path(os.path.abspath(path))
    says_little = whole.name.lower() in (*SPLITS, "images") and whole.parent.name
    return printable(Path(whole.parent.name, whole.name) if says_little else Path(whole.name or whole))


def _open(name: str, split: str | None) -> Source:
    # The rooms of the three kinds know this one.
    from robustsim.training import hf, shards

    if name.startswith(_HUB):
        return hf.load(name[len(_HUB) :], split)
    path = Path(name)
    if path.is_dir():
        return _open_folder(path, split, folder_name(path))
    is_pattern = "{" in name and not path.exists()
    paths = [Path(one) for one in shards.expand(name)] if is_pattern else [_one_shard(path)]
    return shards.open_shards(paths, f"{folder_name(path.parent)}/{printable(Path(path.stem))}", split)


def _one_shard(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"there is no {str(path)!r} (looked from {os.getcwd()!r}); a data set of the Hub is 'hf:NAME'")
    name = path.name.lower()
    if name.endswith(_COMPRESSED):
        raise DataError(f"{path} is compressed, and images are read from uncompressed tar files: unpack it")
    if name.endswith(tuple(SUFFIXES)):
        raise DataError(f"{path} is one image: pass the folder that holds the images")
    if not name.endswith(".tar"):
        raise DataError(f"{path} is no tar file: pass a folder of images, or tar files that hold them")
    return path


def _open_folder(path: Path, split: str | None, name: str) -> Source:
    from robustsim.training import folders, hf, shards

    try:
        found = sorted(one.name for one in path.iterdir() if not one.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list {str(path)!r}: {error.strerror or error}") from error
    if not _ARROW.isdisjoint(found):
        return hf.open_folder(path, split, name)
    subfolders = [one for one in found if (path / one).is_dir()]
    if split in subfolders:
        return _open_folder(path / split, None, f"{name}/{split}")
    tars = [path / one for one in found if one.lower().endswith(".tar") and (path / one).is_file()]
    if tars:
        if (image := next(find_images(path), None)) is not None:
            raise DataError(
                f"{path} holds tar files ({tars[0].name}) and images ({printable(image)}): pass the subfolder of the "
                f"images, or the tar files by a pattern such as '{path.name}/train-{{000..127}}.tar'"
            )
        packed = [one for one in found if one.lower().endswith(_COMPRESSED)]
        return shards.open_shards(tars, name, split, divided=True, left_out=packed)
    if split is not None:
        raise InputError(f"{path} has no split {split!r}: its subfolders are {listing(subfolders)}")
    if _are_splits(subfolders):
        if "train" not in subfolders:
            raise InputError(f"{path} holds the splits {listing(subfolders)} and no 'train': say which one (split=)")
        return _open_folder(path / "train", None, f"{name}/train")
    source = folders.FolderSource(path, name)
    if not len(source):
        raise DataError(f"{path} holds neither images nor tar files: {_seen(found, source.problems)}")
    return source


def _are_splits(subfolders: Sequence[str]) -> bool:
    known = [one for one in subfolders if one in SPLITS]
    # A class may well be called "train"; two of these words, or nothing else, are splits.
    return len(known) >= 2 or (len(known) == 1 and known == subfolders)


def _seen(found: Sequence[str], problems: Sequence[str]) -> str:
    if not found:
        return "it is empty"
    advice = ""
    if any(one.lower().endswith(_COMPRESSED) for one in found):
        advice = "; unpack what is compressed"
    elif any(one.endswith(".parquet") for one in found):
        advice = "; parquet files are read by 'hf:' and the folder's path"
    elif problems:
        advice = f"; {problems[0]}"
    return f"seen: {listing(found)} (links to folders are not followed){advice}"


def listing(names: Sequence[str]) -> str:
    """The first few of some names, for a message."""
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return (", ".join(map(repr, names[:_MANY])) or "none") + more
