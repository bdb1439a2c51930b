"""Opinion scores in a table of one's own."""

import os
from pathlib import Path

from robustsim.data.items import DataSet, Rating
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

COLUMNS = ("reference", "image")
SCORES = (("mos",), ("dmos",))


def read_ratings(path: "str | os.PathLike[str]", *, on_error: OnError | None = None) -> DataSet[Rating]:
    """A CSV with the columns `reference, image` and a mean opinion score.

    The score is `mos`, where higher is better, or `dmos`, where higher is worse and `quality` becomes its
    negative; with both, `mos` counts. `group` and `id` may be there too. Paths are as in `read_triplets`.

    Args:
        path: the CSV, in UTF-8, with commas (or tabs, or semicolons).
        on_error: takes each problem, whose row is skipped; without it the first one is raised.

    Raises:
        DataError: a row or file is not as above, or no row is left; the message names the file and the row.
    """
    path = Path(path)
    columns = read_header(path)
    (score,) = SCORES[require(path, columns, COLUMNS, SCORES)]
    find = table_finder(path)

    def make(row: Row) -> Rating:
        value = row.value(score)
        reference, image = row.images(find, *COLUMNS)
        return Rating(row.id, reference, image, value if score == "mos" else -value, row.get("group"))

    items = collect(read_rows(path, columns, on_error), make, on_error)
    require_items(items, path)
    return DataSet(table_name(path), path.parent, items, description=f"quality from {score}")
