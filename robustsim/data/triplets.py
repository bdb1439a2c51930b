"""Triplets in a table of one's own."""

import os
from pathlib import Path

from robustsim.data.items import DataSet, Scoring, Triplet, checked_scoring
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

COLUMNS = ("reference", "left", "right")
# What a table may say about the answers; the first that is there whole counts.
ANSWERS = (("left_votes", "right_votes"), ("right_share",), ("label",))
_LABELS = {"0": 0.0, "left": 0.0, "1": 1.0, "right": 1.0}


def read_triplets(
    path: "str | os.PathLike[str]", *, scoring: Scoring = "majority", on_error: OnError | None = None
) -> DataSet[Triplet]:
    """A CSV with the columns `reference, left, right` and what people said.

    The answers are `left_votes` and `right_votes` (numbers from 0 on), or `right_share` (in [0, 1]), or
    `label` (0 or `left`, 1 or `right`); the first of these that is there counts. `group` and `id` may be
    there too, other columns are ignored. Paths are relative to the file, or, where nothing is there, to the folder
    `images` beside it.

    Args:
        path: the CSV, in UTF-8, with commas (or tabs, or semicolons).
        scoring: how an answer counts. Under `majority`, tied rows are left out.
        on_error: takes each problem, whose row is skipped; without it the first one is raised.

    Raises:
        DataError: a row or file is not as above, or no row is left; the message names the file and the row.
        InputError: `scoring` is neither of the two.
    """
    checked_scoring(scoring)
    path = Path(path)
    columns = read_header(path)
    answer = ANSWERS[require(path, columns, COLUMNS, ANSWERS)]
    find = table_finder(path)
    left_out = 0

    def make(row: Row) -> Triplet | None:
        nonlocal left_out
        share = _right_share(row, answer)
        reference, left, right = row.images(find, *COLUMNS)
        if share == 0.5 and scoring == "majority":
            left_out += 1
            return None
        return Triplet(row.id, reference, left, right, share, row.get("group"))

    items = collect(read_rows(path, columns, on_error), make, on_error)
    require_items(items, path, left_out)
    description = f"answers from {' and '.join(answer)}" + ", ties left out" * (scoring == "majority")
    return DataSet(table_name(path), path.parent, items, scoring, left_out, description)


def _right_share(row: Row, answer: tuple[str, ...]) -> float:
    if len(answer) == 2:
        return row.shares(*answer)[1]
    if answer == ("right_share",):
        return row.value("right_share", 0, 1)
    label = row.get("label")
    if label.lower() not in _LABELS:
        raise row.error(f"column 'label' holds {label!r}, expected 0, 1, left or right")
    return _LABELS[label.lower()]
