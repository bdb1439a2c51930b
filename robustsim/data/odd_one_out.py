"""Odd one out in a table of one's own: three images, and how many people found each of them the odd one."""

import os
from pathlib import Path

from robustsim.data.items import DataSet, OddOneOut, Scoring, checked_scoring
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

IMAGES = ("a", "b", "c")
VOTES = ("odd_a", "odd_b", "odd_c")
COLUMNS = (*IMAGES, *VOTES)


def read_odd_one_out(
    path: "str | os.PathLike[str]", *, scoring: Scoring = "majority", on_error: OnError | None = None
) -> DataSet[OddOneOut]:
    """A CSV with the columns `a, b, c`, three images, and `odd_a, odd_b, odd_c`, the votes for each as the odd one.

    Votes are numbers from 0 on. `group` and `id` may be there too, other columns are ignored. Paths are as in
    `read_triplets`.

    Args:
        path: the CSV, in UTF-8, with commas (or tabs, or semicolons).
        scoring: how an answer counts. Under `majority`, rows where two images or all three have the most votes are
            left out. Under `share` they stay: an answer is worth the share of people who gave it.
        on_error: takes each problem, whose row is skipped; without it the first one is raised.

    Raises:
        DataError: a row or file is not as above, or no row is left; the message names the file and the row.
        InputError: `scoring` is neither of the two.
    """
    checked_scoring(scoring)
    path = Path(path)
    columns = read_header(path)
    require(path, columns, COLUMNS)
    find = table_finder(path)
    left_out = 0

    def make(row: Row) -> OddOneOut | None:
        nonlocal left_out
        shares = row.shares(*VOTES)
        a, b, c = row.images(find, *IMAGES)
        if len({a, b, c}) < 3:
            raise row.error(f"it names an image twice: {', '.join(row[column] for column in IMAGES)}")
        most = max(shares)
        if shares.count(most) > 1 and scoring == "majority":
            left_out += 1
            return None
        return OddOneOut(row.id, (a, b, c), shares.index(most), row.get("group"), (shares[0], shares[1], shares[2]))

    items = collect(read_rows(path, columns, on_error), make, on_error)
    require_items(items, path, left_out)
    description = f"votes from {', '.join(VOTES)}" + ", ties left out" * (scoring == "majority")
    return DataSet(table_name(path), path.parent, items, scoring, left_out, description)
