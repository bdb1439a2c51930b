"""Tables as people make them: a header, rows that are counted from 1, and errors that say where."""

import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias, TypeVar

from robustsim.data.items import Item
from robustsim.errors import DataError

OnError: TypeAlias = Callable[[DataError], object]
Line = TypeVar("Line")

# Tried in this order: a comma in the header settles it. Tabs are THINGS', semicolons a spreadsheet's in half of Europe.
_DELIMITERS = ",\t;"


def report(error: DataError, on_error: OnError | None) -> None:
    """Hand a problem over, or raise it where nobody takes it."""
    if on_error is None:
        raise error
    on_error(error)


class Finder:
    """Paths of a table, looked up in some folders in turn; each distinct one is looked for once.

    A file that is written in several ways (`a.png`, `../set/a.png`) is one picture: its path is the first one.
    """

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self._known: dict[str, Path | None] = {}
        self._written: dict[tuple[str, str], Path] = {}
        self._real: dict[str, str] = {}

    def __call__(self, name: str) -> Path | None:
        """The file, or None where there is none."""
        if name not in self._known:
            tried = (folder / name for folder in self.folders)
            found = next((path for path in tried if os.path.isfile(path)), None)
            self._known[name] = found and self._first(found)
        return self._known[name]

    def _first(self, path: Path) -> Path:
        """The path under which the same file of the same folder was found first; links to files are their own."""
        folder, name = os.path.split(path)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return self._written.setdefault((self._real[folder], name), path)


class Row:
    """One row of a table.

    Attributes:
        file: the table.
        number: its line as a person counts them; the header is line 1.
    """

    __slots__ = ("_cells", "_columns", "file", "number")

    def __init__(self, file: Path, number: int, columns: dict[str, int], cells: Sequence[str]) -> None:
        self.file, self.number, self._columns, self._cells = file, number, columns, cells

    def __getitem__(self, column: str) -> str:
        return self._cells[self._columns[column]]

    def get(self, column: str) -> str:
        """The cell without the spaces around it; empty where the table has no such column."""
        return self[column].strip() if column in self._columns else ""

    def error(self, what: str) -> DataError:
        """A problem of this row."""
        return DataError(f"{self.file}, row {self.number}: {what}")

    @property
    def id(self) -> str:
        """The cell of the column `id`, or `row 17`."""
        if "id" not in self._columns:
            return f"row {self.number}"
        if not (name := self.get("id")):
            raise self.error("column 'id' is empty")
        return name

    def value(self, column: str, low: float = -math.inf, high: float = math.inf) -> float:
        """The cell as a finite number in [low, high].

        Raises:
            DataError: it is none.
        """
        cell = self[column]
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if math.isfinite(number) and low <= number <= high:
            return number
        within = f" in [{low:g}, {high:g}]" if math.isfinite(high) else f" of at least {low:g}" * math.isfinite(low)
        raise self.error(f"column {column!r} holds {cell!r}, expected a number{within}")

    def shares(self, *columns: str) -> tuple[float, ...]:
        """The cells, numbers of votes from 0 on, as shares of their sum.

        Raises:
            DataError: one is none, or there is no vote at all.
        """
        votes = [self.value(column, low=0) for column in columns]
        total = sum(votes)
        if not 0 < total < math.inf:
            named = f"{', '.join(columns[:-1])} and {columns[-1]}"
            raise self.error(f"{named} sum to {total:g}: no share can be told")
        return tuple(one / total for one in votes)

    def images(self, find: Finder, *columns: str) -> tuple[Path, ...]:
        """The files that the cells name.

        Raises:
            DataError: some are not there; all of them are in the message.
        """
        found = [find(self[column]) if self[column] else None for column in columns]
        missing = [
            f"column {column!r} names {self[column]!r}, and there is no file {str(find.folders[0] / self[column])!r}"
            if self[column]
            else f"column {column!r} is empty"
            for column, path in zip(columns, found, strict=True)
            if path is None
        ]
        if missing:
            raise self.error("; ".join(missing))
        return tuple(path for path in found if path is not None)


def read_header(path: Path) -> tuple[str, ...]:
    """The names of a table's columns.

    Raises:
        DataError: there is no such file, it is no UTF-8 text, or it is empty.
    """
    for _, fields in _records(path):
        return tuple(field.strip() for field in fields)
    raise DataError(f"{path} is empty: expected a header and rows")


def require(path: Path, columns: Sequence[str], needed: Sequence[str], one_of: Sequence[Sequence[str]] = ()) -> int:
    """Check a header; the index in `one_of` of the first choice that is there whole.

    Raises:
        DataError: a column is missing, or named twice. The message names the columns seen and those needed.
    """
    wanted = {*needed, *(column for choice in one_of for column in choice)}
    if twice := sorted(column for column in wanted if columns.count(column) > 1):
        raise DataError(f"{path}, row 1: the header names {', '.join(map(repr, twice))} more than once")
    chosen = next((index for index, choice in enumerate(one_of) if set(choice) <= set(columns)), -1)
    missing = [column for column in needed if column not in columns]
    if missing or (one_of and chosen < 0):
        expected = ", ".join(needed)
        if one_of:
            expected += " and " + " or ".join(" + ".join(choice) for choice in one_of)
        seen = ", ".join(columns)
        raise DataError(f"{path}, row 1: the header has the columns {seen}; needed are {expected}")
    return chosen


def read_rows(path: Path, columns: Sequence[str], on_error: OnError | None) -> Iterator[Row]:
    """The rows below a header; blank ones are left out, those with too few or too many fields are reported."""
    index = {column: position for position, column in enumerate(columns)}
    records = _records(path)
    next(records)
    while True:
        try:
            number, fields = next(records)
        except StopIteration:
            return
        except DataError as error:  # what follows cannot be told apart any more
            report(error, on_error)
            return
        if len(fields) == len(columns):
            yield Row(path, number, index, fields)
        else:
            what = f"{path}, row {number}: {len(fields)} fields where the header names {len(columns)}"
            report(DataError(what), on_error)


def collect(rows: Iterable[Row], make: Callable[[Row], Item | None], on_error: OnError | None) -> tuple[Item, ...]:
    """What `make` gives for each row; None is left out, a `DataError` reported, an id that comes twice as well."""
    items = []
    seen: dict[str, int] = {}
    for row in rows:
        try:
            first = seen.setdefault(row.id, row.number)
            if first != row.number:
                raise row.error(f"its id {row.id!r} is that of row {first} already")
            item = make(row)
        except DataError as error:
            report(error, on_error)
            continue
        if item is not None:
            items.append(item)
    return tuple(items)


def require_items(items: Sequence[object], where: Path, left_out: int = 0, wanted: str = "") -> None:
    """Refuse an empty data set, whoever takes the problems.

    Raises:
        DataError: there is not one item.
    """
    if not items:
        left = f"; left out: {left_out}" if left_out else ""
        raise DataError(f"{where}: the data set is empty: no usable row{' of ' * bool(wanted)}{wanted}{left}")


def table_name(path: Path) -> str:
    """The name of a set that is a table: its folder's name and its stem."""
    whole = Path(os.path.abspath(path))
    return f"{whole.parent.name}/{whole.stem}" if whole.parent.name else whole.stem


def table_finder(path: Path) -> Finder:
    """Paths in a table are relative to it, or, where nothing is there, to the folder `images` beside it."""
    return Finder(path.parent, path.parent / "images")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line without the spaces around it) of each line that is not blank.

    Raises:
        DataError: there is no such file, or it is no UTF-8 text.
    """
    with_ends = enumerate(_text(path, lambda stream: stream), start=1)
    return ((number, line.strip()) for number, line in with_ends if line.strip())


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    number = 1  # of the line where a record begins: quoted fields may hold line breaks

    def parse(stream: TextIO) -> Iterator[tuple[int, list[str]]]:
        nonlocal number
        head = next((line for line in stream if line.strip()), "")
        stream.seek(0)
        delimiter = next((mark for mark in _DELIMITERS if mark in head), ",")
        reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True, strict=True)
        for fields in reader:
            if any(field.strip() for field in fields):
                yield number, fields
            number = reader.line_num + 1

    try:
        yield from _text(path, parse)
    except csv.Error as error:
        raise DataError(f"{path}, row {number}: it cannot be told into fields: {error}") from error


def _text(path: Path, parse: Callable[[TextIO], Iterable[Line]]) -> Iterator[Line]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from parse(stream)
    except UnicodeDecodeError:
        raise DataError(f"{path}, row {_undecodable(path)}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _undecodable(path: Path) -> int:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
