"""Tell which layout a path has, and read it."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from robustsim.data import bapps, jnd, nights, odd_one_out, ratings, things, triplets
from robustsim.data.items import DataSet
from robustsim.data.numbered import find_splits, seen_in
from robustsim.data.tables import OnError, read_header
from robustsim.errors import DataError, InputError

Task: TypeAlias = Literal["2afc", "odd-one-out", "jnd", "quality"]

# In the order in which they are told.
TASKS: dict[str, Task] = {
    "nights": "2afc",
    "bapps": "2afc",
    "jnd": "jnd",
    "things": "odd-one-out",
    "odd-one-out": "odd-one-out",
    "triplets": "2afc",
    "ratings": "quality",
}
_READERS: dict[str, Callable[..., DataSet[Any]]] = {
    "nights": nights.read_nights,
    "bapps": bapps.read_bapps,
    "jnd": jnd.read_jnd,
    "things": things.read_things,
    "odd-one-out": odd_one_out.read_odd_one_out,
    "triplets": triplets.read_triplets,
    "ratings": ratings.read_ratings,
}
_TABLES = (".csv", ".tsv")
_LOOKED_FOR = (
    f"{nights.FILE} with a column ref_path (NIGHTS), {{{','.join(bapps.SPLITS)}}}/{bapps.ANSWERS} here or below "
    f"{', '.join(bapps.BELOW)} (BAPPS), {{{','.join(jnd.SPLITS)}}}/{jnd.ANSWERS} here or below {', '.join(jnd.BELOW)} "
    f"(JND), a file of triplets beside a list of images (THINGS), one CSV"
)
_HEADERS = (
    f"{', '.join(triplets.COLUMNS)} (2afc); {', '.join(jnd.COLUMNS)} (jnd); {', '.join(ratings.COLUMNS)} (quality); "
    f"{', '.join(odd_one_out.COLUMNS)} (odd-one-out); {', '.join(things.COLUMNS)} (THINGS); ref_path (NIGHTS)"
)


class Found(NamedTuple):
    """A layout, and the path to hand to its reader."""

    layout: str
    path: Path


def find_layout(path: "str | os.PathLike[str]") -> str:
    """The layout of a data set: `nights`, `bapps`, `jnd`, `things`, `odd-one-out`, `triplets` or `ratings`.

    A folder that holds both parts of BAPPS is `bapps`.

    Args:
        path: a folder or a file. A folder with nothing but one CSV is told by that.

    Raises:
        DataError: it is none of them; the message says what was looked for and what was there.
    """
    return find_layouts(path)[0].layout


def read_dataset(
    path: "str | os.PathLike[str]", task: Task, *, on_error: OnError | None = None, **options: Any
) -> DataSet[Any]:
    """Find out which layout a path has, and read it.

    Args:
        path: a folder or a file, as [`find_layout`][robustsim.data.find_layout] takes it.
        task: what the items are to be: `2afc` gives [`Triplet`][robustsim.data.Triplet], `odd-one-out`
            [`OddOneOut`][robustsim.data.OddOneOut], `jnd` [`Pair`][robustsim.data.Pair], `quality`
            [`Rating`][robustsim.data.Rating].
        on_error: takes each problem, whose row is skipped; without it the first one is raised.
        options: those of the reader, such as `split`.

    Raises:
        DataError: no layout fits, or what its reader raises.
        InputError: the data answer another question than `task`, or the reader does not take an option.
    """
    return read_layout(find_fitting(path, task)[0], on_error=on_error, **options)


def find_fitting(path: "str | os.PathLike[str]", *tasks: Task) -> list[Found]:
    """Those layouts of a path that are for one of some tasks, at least one.

    Raises:
        DataError: no layout fits.
        InputError: the data answer other questions.
    """
    for task in tasks:
        if task not in get_args(Task):
            raise InputError(f"task is {task!r}; it must be one of {', '.join(get_args(Task))}")
    layouts = find_layouts(path)
    fitting = [found for found in layouts if TASKS[found.layout] in tasks]
    if not fitting:
        kinds = ", ".join(f"{found.layout} ({TASKS[found.layout]})" for found in layouts)
        wanted = " or ".join(map(repr, tasks))
        raise InputError(f"{os.fspath(path)} holds {kinds}, nothing for the task {wanted}")
    return fitting


def options_of(layout: str) -> tuple[str, ...]:
    """The options of a layout's reader, such as `split`."""
    known = inspect.signature(_READERS[layout]).parameters
    return tuple(name for name in known if name not in ("root", "path", "on_error"))


def read_layout(found: Found, *, on_error: OnError | None = None, **options: Any) -> DataSet[Any]:
    """Call the reader of a layout.

    Raises:
        InputError: it does not take one of the options.
    """
    known = options_of(found.layout)
    if unknown := sorted(set(options) - set(known)):
        taken = ", ".join(known) or "none"
        raise InputError(
            f"{found.path} is read as {found.layout}, which takes no option {', '.join(unknown)}; its options: {taken}"
        )
    return _READERS[found.layout](found.path, on_error=on_error, **options)


def find_layouts(path: "str | os.PathLike[str]") -> list[Found]:
    """Every layout that a path has, at least one; both parts of BAPPS may lie in one folder.

    Raises:
        DataError: it has none.
    """
    path = Path(path)
    if path.is_file():
        return [_of_file(path)]
    if not path.is_dir():
        raise DataError(f"{str(path)!r} is no file and no folder")
    found = []
    if (path / nights.FILE).is_file() and "ref_path" in read_header(path / nights.FILE):
        found.append("nights")
    if find_splits(path, bapps.BELOW, bapps.SPLITS, bapps.ANSWERS):
        found.append("bapps")
    if find_splits(path, jnd.BELOW, jnd.SPLITS, jnd.ANSWERS):
        found.append("jnd")
    if not found and things.find_triplets(path):
        found.append("things")
    if found:
        return [Found(layout, path) for layout in found]
    tables = sorted(one for one in path.iterdir() if one.suffix.lower() in _TABLES and one.is_file())
    if len(tables) == 1:
        return [_of_file(tables[0])]
    if tables:
        raise DataError(f"{path} holds {len(tables)} tables, {', '.join(one.name for one in tables)}: pass one of them")
    raise DataError(f"{path} is no data set that is known here. Looked for: {_LOOKED_FOR}; it {seen_in(path)}")


def _of_file(path: Path) -> Found:
    if path.suffix.lower() in _TABLES:
        columns = set(read_header(path))
        layouts = {
            "nights": {"ref_path"},
            "triplets": set(triplets.COLUMNS),
            "odd-one-out": set(odd_one_out.COLUMNS),
            "jnd": set(jnd.COLUMNS),
            "ratings": set(ratings.COLUMNS),
            "things": set(things.COLUMNS),
        }
        for layout, needed in layouts.items():
            if needed <= columns:
                return Found(layout, path)
        raise DataError(
            f"{path}, row 1: the header has the columns {', '.join(read_header(path))}; looked for {_HEADERS}"
        )
    if things.holds_triplets(path):
        return Found("things", path)
    raise DataError(f"{path} is no CSV and no list of triplets; looked for a CSV with {_HEADERS}")
