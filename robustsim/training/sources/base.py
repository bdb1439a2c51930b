"""What every source of training images is, and what the readers of the several kinds share."""

import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from robustsim.data.tables import read_lines
from robustsim.errors import DataError
from robustsim.images.files import printable

#: Words that make a subfolder, or a shard, a split.
SPLITS = ("train", "val", "valid", "validation", "test")
_MANY = 5


@dataclass(frozen=True)
class Sample:
    """One image to train on.

    Attributes:
        image: decoded, in mode RGB, upright, of the file's own size.
        label: the place of its class in the source's `classes`; None where the images have no labels.
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
        passed_over: how many files of each kind do not count as images; see `robustsim.images.FoundImages`.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str] | None,
        labels: Sequence[int] = (),
        problems: Iterable[str] = (),
        passed_over: Mapping[str, int] | None = None,
    ) -> None:
        self.name, self.classes, self.problems = name, None if classes is None else tuple(classes), tuple(problems)
        self.passed_over = dict(passed_over or {})
        self._labels = array("i", labels)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place(self, index: int) -> str:
        """What messages call an image: the path of its file, `shard.tar:KEY`, or `name:row`."""

    @abstractmethod
    def _image(self, index: int) -> Image.Image:
        """The decoded image; an `ImageError` says where it is."""

    def label(self, index: int) -> int | None:
        """What `read(index).label` is, without reading the image."""
        return None if self.classes is None else self._labels[index]

    def read(self, index: int) -> Sample:
        """The image of an index, and its label.

        Args:
            index: from 0 to `len(self) - 1`.

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


def read_classes(file: Path) -> tuple[str, ...]:
    """Names of classes in the order of their labels.

    A JSON file holds a list, or an object with a name for each label from "0". What stands for a name may be an object
    that has it as `name` or `words`, or a list that has it at its end. Any other file has one name a line.

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
    """A folder's own name, behind that of its parent where it says little: `nips17/images`."""
    whole = Path(os.path.abspath(path))
    says_little = whole.name.lower() in (*SPLITS, "images") and whole.parent.name
    return printable(Path(whole.parent.name, whole.name) if says_little else Path(whole.name or whole))


def listing(names: Sequence[str]) -> str:
    """The first few of some names, for a message."""
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return (", ".join(map(repr, names[:_MANY])) or "none") + more
