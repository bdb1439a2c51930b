"""Images of Hugging Face data sets, from the Hub or a folder, by the optional package `datasets`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from robustsim.errors import DataError, ImageError, InputError, MissingDependencyError
from robustsim.images.decode import read_image
from robustsim.training.sources.base import Source, listing

_IMAGES, _LABELS = ("image", "img"), ("label", "labels")


class HuggingFaceSource(Source):
    """The rows of a data set that has a column of images.

    The images are those of the column `image`, or else of the first one of that type; the labels likewise those of
    `label` or the first `ClassLabel`. Rows keep what was stored, and images are decoded by robustsim's own rules.

    Args:
        data: the rows.
        name: see `Source`.

    Raises:
        DataError: there is no column of images, or no row.
    """

    def __init__(self, data: Any, name: str) -> None:
        datasets = _datasets()
        features: Mapping[str, Any] = data.features or {}
        column = _column(features, datasets.Image, _IMAGES)
        if column is None:
            seen = ", ".join(f"{one!r} ({type(feature).__name__})" for one, feature in features.items())
            raise DataError(f"{name} has no column of images: its columns are {seen or 'unknown'}")
        if not len(data):
            raise DataError(f"{name} has no row")
        classes, problems = None, []
        labels: list[int] = []
        label = _column(features, datasets.ClassLabel, _LABELS)
        if label is not None:
            found = data.select_columns([label]).with_format(None)[:][label]
            # -1 is what published test splits have.
            labels = [value for value in found if value is not None and value >= 0]
            if len(labels) == len(found):
                classes = features[label].names
            elif labels:
                problems.append(f"labels are ignored: {len(found) - len(labels)} of {len(found)} rows have none")
        self._column = column
        self._rows = data.select_columns([column]).with_format(None).cast_column(column, datasets.Image(decode=False))
        super().__init__(name, classes, labels, problems)

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> str:
        """The name of the source and the row, counted from 0."""
        return f"{self.name}:{index}"

    def _image(self, index: int) -> Image.Image:
        try:
            stored = self._rows[int(index)][self._column] or {}
        except (OSError, ValueError) as error:  # arrow's own are among these
            raise ImageError(f"{self.place(index)}: cannot read the row: {error}") from error
        found: bytes | str | None = stored.get("path") if stored.get("bytes") is None else stored["bytes"]
        if found is None:
            raise ImageError(f"{self.place(index)}: the column {self._column!r} is empty")
        try:
            return read_image(found)
        except ImageError as error:
            raise ImageError(f"{self.place(index)}: {error}") from None


def load(what: str, split: str | None) -> HuggingFaceSource:
    """Open `NAME` or `NAME:CONFIG` of the Hub, or of its cache.

    Raises:
        DataError: it cannot be loaded; see `HuggingFaceSource` too.
        InputError: there is no name.
        MissingDependencyError: the package `datasets` is not installed.
    """
    repository, _, config = what.partition(":")
    if not repository:
        raise InputError("'hf:' needs the name of a data set: hf:NAME or hf:NAME:CONFIG")
    datasets = _datasets()
    chosen = split or "train"
    try:
        data = datasets.load_dataset(repository, config or None, split=chosen)
    except Exception as error:  # from the network, from every format there is, from arrow
        raise DataError(f"cannot load the split {chosen!r} of {what!r} from Hugging Face: {error}") from error
    return HuggingFaceSource(data, f"{what}/{split}" if split else what)


def open_folder(path: Path, split: str | None, name: str) -> HuggingFaceSource:
    """Open what `save_to_disk` has written.

    Raises:
        DataError: it cannot be read; see `HuggingFaceSource` too.
        InputError: there is no such split, or none is given and there is no `train`.
        MissingDependencyError: the package `datasets` is not installed.
    """
    datasets = _datasets()
    try:
        data = datasets.load_from_disk(os.fspath(path))
    except Exception as error:
        raise DataError(f"cannot load {str(path)!r} as a Hugging Face data set: {error}") from error
    if isinstance(data, datasets.DatasetDict):
        chosen = split or "train"
        if chosen not in data:
            raise InputError(f"{path} has no split {chosen!r}: it has {listing(list(data))}; say which one (split=)")
        return HuggingFaceSource(data[chosen], f"{name}/{chosen}")
    if split is not None and split != str(data.split):
        raise InputError(f"{path} has no split {split!r}: it is one data set")
    return HuggingFaceSource(data, name)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            'data sets of Hugging Face need the package datasets: pip install "robustsim[hf]"'
        ) from error
    return datasets


def _column(features: Mapping[str, Any], kind: type, names: tuple[str, ...]) -> str | None:
    """The column of a type; one of the usual names goes first."""
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    return next((column for column in names if column in found), found[0] if found else None)
