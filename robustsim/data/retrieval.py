"""Queries, and the pictures that a search should find for each: the revisited Oxford and Paris, or a table."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from robustsim.data.tables import read_header, read_rows, require, table_name
from robustsim.data.unpickle import plain, read_pickle
from robustsim.errors import DataError
from robustsim.images.files import list_images, printable

Box: TypeAlias = tuple[float, float, float, float]

COLUMNS = ("query", "relevant")
_PARTS = ("easy", "hard", "junk")
_FOLDER, _SUFFIX = "jpg", ".jpg"
_LONGEST_NAME = 1024
# Places in all lists together: a small pickle may name one list very often.
_MOST_PLACES = 50_000_000
#: How each question treats the lists of a query: which pictures are to be found, and which are passed over.
PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
#: The one question of a table.
RELEVANT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {"relevant": (("relevant",), ("junk",))}


@dataclass(frozen=True)
class Query:
    """A picture to search by.

    Attributes:
        name: unlike all others.
        path: its file.
        lists: places of pictures of the database, by what they are to this query.
        box: left, top, right and bottom of what is searched for, in pixels; None for the whole picture.
    """

    name: str
    path: Path
    lists: Mapping[str, tuple[int, ...]]
    box: Box | None = None


@dataclass(frozen=True)
class RetrievalSet:
    """Queries and the database that they are put to.

    Attributes:
        name: of the set.
        root: of the pictures.
        queries: in the file's order.
        database: the files that are searched, each once.
        protocols: the questions that are asked: of which lists pictures are to be found, and of which they are passed
            over, neither right nor wrong.
    """

    name: str
    root: Path
    queries: tuple[Query, ...]
    database: tuple[Path, ...]
    protocols: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=lambda: PROTOCOLS)


def read_retrieval(
    path: "str | os.PathLike[str]", images: "str | os.PathLike[str] | None" = None, *, follow_links: bool = False
) -> RetrievalSet:
    """Read queries and what they should find.

    `gnd_roxford5k.pkl` and `gnd_rparis6k.pkl` of the revisited Oxford and Paris (Radenovic et al. 2018) hold `imlist`,
    `qimlist` and `gnd`, for each query the places of `easy`, `hard` and `junk` pictures and the box `bbx`; JSON of that
    layout is read likewise. A pickle is read without running anything that is in it. Pictures are `jpg/NAME.jpg` beside
    the file.

    A table (CSV) has the columns `query` and `relevant`, and `junk` if there is some: paths below the folder of
    pictures, in as many rows for a query as it takes; `relevant` may be empty. The database is all pictures of the
    folder, in which a query does not find itself.

    Args:
        path: `.pkl`, `.json` or a table.
        images: folder of the pictures; if not given, `jpg` beside a ground truth, and the table's own folder.
        follow_links: for a table: walk linked folders, too.

    Raises:
        DataError: a file that is none of these, or names what is not there; a pickle that holds more than plain data.
        ImageError: a table whose folder holds no pictures.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{os.fspath(path)!r} is no file: pass gnd_*.pkl, JSON of that layout, or a table (CSV)")
    kind = file.suffix.lower()
    if kind in (".pkl", ".json"):
        return _ground_truth(
            file, _json(file) if kind == ".json" else read_pickle(file), Path(images or file.parent / _FOLDER)
        )
    return _table(file, Path(images or file.parent), follow_links)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {str(file)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON: {error}") from None


def _ground_truth(file: Path, content: Any, root: Path) -> RetrievalSet:
    if not isinstance(content, dict) or not {"gnd", "imlist", "qimlist"} <= content.keys():
        seen = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{file} holds {seen[:200]}; a ground truth has gnd, imlist and qimlist")
    names, queries = (_names(file, key, content[key]) for key in ("imlist", "qimlist"))
    truths = _sequence(plain(content["gnd"]))
    if truths is None or len(truths) != len(queries) or not queries:
        raise DataError(f"{file}: gnd must be a list of one dict for each of {len(queries)} queries, at least one")
    found, left = [], _MOST_PLACES
    for name, truth in zip(queries, truths, strict=True):
        where = f"{file}, query {name!r}"
        if not isinstance(truth, dict):
            raise DataError(f"{where}: its ground truth is no dict")
        lists = {}
        for part in _PARTS:
            values = _sequence(plain(truth.get(part, ())))
            left -= len(values or ())
            if left < 0:
                raise DataError(f"{file} names more than {_MOST_PLACES:,} places")
            lists[part] = _places(where, part, values, len(names))
        found.append(Query(name, _file(root, name), lists, _box(where, plain(truth.get("bbx")))))
    return RetrievalSet(file.stem.removeprefix("gnd_"), root, tuple(found), tuple(_file(root, name) for name in names))


def _sequence(value: Any) -> Sequence[Any] | None:
    """A list, a tuple or an array's values as a list."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else None
    return value if isinstance(value, (list, tuple)) else None


def _names(file: Path, key: str, value: Any) -> list[str]:
    found = _sequence(plain(value))
    names: dict[str, None] = {}
    for name in (None,) if found is None else found:
        text = _text(name)
        if text is None:
            raise DataError(f"{file}: {key} must be a list of names, without a folder's")
        if text in names:  # at once: a small pickle may name one very often
            raise DataError(f"{file} names a picture, or a query, twice")
        names[text] = None
    return list(names)


def _text(name: Any) -> str | None:
    """The name of a picture, which leads nowhere else."""
    if not isinstance(name, (str, bytes)) or len(name) > _LONGEST_NAME:
        return None
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    fits = text and not set(text) & set("/\\\0") and text not in (".", "..")
    return text if fits else None


def _file(root: Path, name: str) -> Path:
    return root / (name if name.lower().endswith(_SUFFIX) else name + _SUFFIX)


def _places(where: str, part: str, values: Sequence[Any] | None, count: int) -> tuple[int, ...]:
    if values is None or not all(type(value) is int and 0 <= value < count for value in values):
        raise DataError(f"{where}: {part} must be a list of places in imlist, from 0 to {count - 1}")
    return tuple(dict.fromkeys(values))


def _box(where: str, value: Any) -> Box | None:
    if value is None:
        return None
    numbers = _sequence(value)
    if numbers is None or len(numbers) != 4 or not all(type(one) in (int, float) for one in numbers):
        # Not by its content, which may be one thing named 2**60 times.
        raise DataError(f"{where}: bbx must be left, top, right and bottom of a box, not {type(value).__name__}")
    try:
        left, top, right, bottom = (float(one) for one in numbers)
    except OverflowError:  # an integer of hundreds of digits
        raise DataError(f"{where}: bbx must be left, top, right and bottom of a box, and is too large") from None
    if not (0 < right - left < 1e9 and 0 < bottom - top < 1e9):
        raise DataError(f"{where}: bbx must be left, top, right and bottom of a box, not {left, top, right, bottom}")
    return left, top, right, bottom


def _table(file: Path, root: Path, follow_links: bool) -> RetrievalSet:
    columns = read_header(file)
    require(file, columns, COLUMNS)
    files, _ = list_images(root, follow_links=follow_links)
    place = {printable(path): number for number, path in enumerate(files)}
    lists: dict[str, dict[str, dict[int, None]]] = {}
    for row in read_rows(file, columns, None):
        query = row.get("query")
        if query not in place:
            raise row.error(f"column 'query' names {query!r}, which is no picture below {str(root)!r}")
        own = lists.setdefault(query, {"relevant": {}, "junk": {}})
        for column, known in own.items():
            if not (name := row.get(column)):
                continue
            if name not in place:
                raise row.error(f"column {column!r} names {name!r}, which is no picture below {str(root)!r}")
            if column == "relevant" and name == query:
                raise row.error(f"{query!r} is relevant to itself: a query is not looked for")
            known[place[name]] = None
        if both := own["relevant"].keys() & own["junk"].keys():
            raise row.error(f"{printable(files[min(both)])!r} is both relevant and junk to {query!r}")
    if not lists:
        raise DataError(f"{file}: the data set is empty: no row names a query")
    queries = [
        # A query finds itself, which says nothing.
        Query(
            name, root / files[place[name]], {"relevant": tuple(own["relevant"]), "junk": (*own["junk"], place[name])}
        )
        for name, own in lists.items()
    ]
    return RetrievalSet(table_name(file), root, tuple(queries), tuple(root / path for path in files), RELEVANT)
