"""NIGHTS: triplets of synthetic images, and which of two variations people found nearer to the reference.

Source: Fu et al., DreamSim, NeurIPS 2023.
"""

import os
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, get_args

from robustsim.data.items import DataSet, Triplet
from robustsim.data.tables import Finder, OnError, Row, collect, read_header, read_rows, require, require_items
from robustsim.errors import DataError, InputError

Split: TypeAlias = Literal["train", "val", "test", "all"]
Value = TypeVar("Value")

FILE = "data.csv"
_PATHS = ("ref_path", "left_path", "right_path")
_COLUMNS = ("id", "left_vote", "right_vote", "votes", *_PATHS, "split", "is_imagenet")
# Some releases write the two halves of the test split apart.
_SPLITS = {"train": "train", "val": "val", "test": "test", "test_imagenet": "test", "test_no_imagenet": "test"}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read_nights(
    root: "str | os.PathLike[str]",
    *,
    split: Split = "test",
    min_votes: int = 6,
    imagenet: bool | None = None,
    on_error: OnError | None = None,
) -> DataSet[Triplet]:
    """The folder of NIGHTS: `data.csv`, whose columns are found by name, and the images beside it.

    The file says which side won, not by how much: `right_share` is 0 or 1. Groups are `imagenet` and
    `non-imagenet`.

    Args:
        root: the folder, or the `data.csv` in it.
        split: the rows to take. `test_imagenet` and `test_no_imagenet` in the file belong to `test`.
        min_votes: rows with fewer votes are left out; 6 as in the paper.
        imagenet: only the triplets whose reference is of an ImageNet class (True) or of none (False).
        on_error: takes each problem, whose row is skipped; without it the first one is raised.

    Raises:
        DataError: a row or file is not as its format says, or no row is left; the message names the file and the row.
        InputError: there is no such split.
    """
    if split not in get_args(Split):
        raise InputError(f"split is {split!r}; NIGHTS has {', '.join(get_args(Split))}")
    path = _table(root)
    columns = read_header(path)
    require(path, columns, _COLUMNS)
    find = Finder(path.parent)
    left_out = 0

    def make(row: Row) -> Triplet | None:
        nonlocal left_out
        own = _meaning(row, "split", _SPLITS)
        if split not in (own, "all"):
            return None
        is_imagenet = _meaning(row, "is_imagenet", _BOOLEANS)
        if imagenet not in (is_imagenet, None):
            return None
        votes = row.value("votes", low=0)
        left_won, right_won = (row.value(column, 0, 1) for column in ("left_vote", "right_vote"))
        if {left_won, right_won} != {0, 1}:
            raise row.error(
                f"columns 'left_vote' and 'right_vote' hold {row['left_vote']!r} and {row['right_vote']!r}, "
                "expected 1 for the side that won and 0 for the other"
            )
        if votes < min_votes:
            left_out += 1
            return None
        reference, left, right = row.images(find, *_PATHS)
        return Triplet(row.id, reference, left, right, right_won, "imagenet" if is_imagenet else "non-imagenet")

    items = collect(read_rows(path, columns, on_error), make, on_error)
    kind = "" if imagenet is None else ", ImageNet classes" if imagenet else ", no ImageNet classes"
    require_items(items, path, left_out, f"split {split!r}{kind}")
    description = f"split {split}{kind}, at least {min_votes} votes"
    return DataSet("nights", path.parent, items, left_out=left_out, description=description)


def splits_by_id(root: "str | os.PathLike[str]") -> dict[str, str]:
    """The split of every row whose split can be told, by its id."""
    path = _table(root)
    columns = read_header(path)
    require(path, columns, ("id", "split"))
    rows = read_rows(path, columns, _ignore)
    known = ((row.get("id"), _SPLITS.get(row.get("split").lower())) for row in rows)
    return {name: split for name, split in known if split}


def _ignore(error: DataError) -> None:
    """Whoever asks has had the problems reported by `read_nights`."""


def _table(root: "str | os.PathLike[str]") -> Path:
    path = Path(root)
    return path / FILE if path.is_dir() else path


def _meaning(row: Row, column: str, known: dict[str, Value]) -> Value:
    value = row.get(column)
    if value.lower() in known:
        return known[value.lower()]
    raise row.error(f"column {column!r} holds {value!r}, expected one of {', '.join(known)}")
