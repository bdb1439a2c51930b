"""Just-noticeable differences: pairs of images, and the share of people who saw no difference.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from robustsim.data.bapps import checked_splits
from robustsim.data.items import DataSet, Pair
from robustsim.data.numbered import numbered, require_splits
from robustsim.data.tables import (
    OnError,
    Row,
    collect,
    read_header,
    read_rows,
    require,
    require_items,
    table_finder,
    table_name,
)
from robustsim.errors import InputError

SPLITS = ("cnn", "traditional")
ANSWERS = "same"
BELOW = ("val", "jnd/val")
COLUMNS = ("a", "b", "same")


def read_jnd(
    root: "str | os.PathLike[str]", *, splits: Sequence[str] | None = None, on_error: OnError | None = None
) -> DataSet[Pair]:
    """The JND part of BAPPS, `jnd/val/{cnn,traditional}/{p0,p1,same}`, or a CSV with the columns `a, b, same`.

    `same` is the share of people who said that the two are the same: one number in each `.npy` file, or the cell
    of the CSV, where `group` and `id` may be there too and paths are as in `read_triplets`. BAPPS states
    `squash`, as in `read_bapps`.

    Args:
        root: the folder that holds `val` or `jnd/val`, or `val` itself, or the CSV.
        splits: the kinds of distortion to take; None: those of `cnn` and `traditional` that are there.
        on_error: takes each problem, whose item is skipped; without it the first one is raised.

    Raises:
        DataError: a row or file is not as above, or nothing is left; the message names the file.
        InputError: splits are asked of a CSV, or none is named.
    """
    path = Path(root)
    if path.is_file():
        if splits is not None:
            raise InputError(f"{path} is a table and has no splits: leave `splits` away")
        return _read_table(path, on_error)
    names = SPLITS if splits is None else checked_splits(splits)
    folder = require_splits(path, BELOW, names, ANSWERS)
    if splits is None:
        names = tuple(name for name in SPLITS if (folder / name).is_dir())
    items = tuple(
        Pair(f"{split}/{number}", images[0], images[1], share, split)
        for split in names
        for number, images, share in numbered(folder / split, ("p0", "p1"), ANSWERS, on_error)
    )
    require_items(items, folder)
    return DataSet("bapps-jnd", folder, items, description=f"splits {', '.join(names)}", preprocess="squash")


def _read_table(path: Path, on_error: OnError | None) -> DataSet[Pair]:
    columns = read_header(path)
    require(path, columns, COLUMNS)
    find = table_finder(path)

    def make(row: Row) -> Pair:
        share = row.value("same", 0, 1)
        a, b = row.images(find, "a", "b")
        return Pair(row.id, a, b, share, row.get("group"))

    items = collect(read_rows(path, columns, on_error), make, on_error)
    require_items(items, path)
    return DataSet(table_name(path), path.parent, items, description="shares from same")
