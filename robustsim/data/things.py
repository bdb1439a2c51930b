"""THINGS: triplets of objects, and which of the three people chose as the odd one out.

Source: Hebart et al., THINGS-data, eLife 2023; the text format is that of SPoSE and VICE.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from robustsim.data.items import DataSet, OddOneOut
from robustsim.data.numbered import seen_in
from robustsim.data.tables import (
    Finder,
    OnError,
    Row,
    collect,
    read_header,
    read_lines,
    read_rows,
    report,
    require,
    require_items,
)
from robustsim.errors import DataError, InputError
from robustsim.images.files import picture_suffixes, suffix_of

COLUMNS = ("image1", "image2", "image3", "choice")
# Names that lists of the 1,854 concept images go by; any other list is found by what it holds.
_LISTS = ("images.txt", "things_image_paths.txt", "image_paths.txt", "image-paths.txt")
# The archive of the judgements unpacks to this folder, and holds a training file beside the held-out one.
_FOLDER, _HELD_OUT = "triplet_dataset", "validationset.txt"
_TRIPLETS = (".csv", ".tsv", ".txt")
_GAP = re.compile(r"[\s,;]+")
_Numbers: TypeAlias = tuple[tuple[int, ...], int]  # of the images, and the position of the odd one


def read_things(
    root: "str | os.PathLike[str]",
    *,
    triplets: "str | os.PathLike[str] | None" = None,
    images: "str | os.PathLike[str] | None" = None,
    on_error: OnError | None = None,
) -> DataSet[OddOneOut]:
    """A folder with a list of images, one path on each line, and a file of triplets.

    The triplets are a table with the columns `image1, image2, image3, choice` (image numbers from 1 on, and the
    position, 1 to 3, of the odd one), or lines of three image numbers from 0 on, of which the last is the odd one.

    Args:
        root: the folder; paths in the list are relative to it or to its folder `images`. Or the file of triplets in
            it.
        triplets: the file of triplets, in `root` or anywhere; None: the one in `root` or its `triplet_dataset`,
            `validationset.txt` where there are several.
        images: the list of images; None: `images.txt` or the like, else the one `.txt` file that lists images.
        on_error: takes each problem, whose row is skipped; without it the first one is raised.

    Raises:
        DataError: a file cannot be found or told from others, an image is not there, a number is none or beyond the
            list, or nothing is left; the message names the file and the row.
        InputError: `root` is a file, and `triplets` names another.
    """
    folder = Path(root)
    if folder.is_file():
        if triplets is not None:
            raise InputError(f"{folder} is a file: pass the folder, or leave `triplets` away")
        folder, triplets = folder.parent, folder.name
    source = _given(folder, triplets) if triplets is not None else _only_triplets(folder)
    listing = _given(folder, images) if images is not None else _only_list(folder)
    items = _read(source, _read_list(listing, folder, on_error), listing, on_error)
    require_items(items, source)
    return DataSet("things", folder, items, description=f"triplets of {source.name}, images of {listing.name}")


def holds_triplets(path: Path) -> bool:
    """Whether a file begins like one of the two formats."""
    with suppress(DataError):
        if path.suffix.lower() in (".csv", ".tsv"):
            return set(COLUMNS) <= set(read_header(path))
        if path.suffix.lower() == ".txt":
            fields = _GAP.split(next(read_lines(path), (0, ""))[1])
            return set(COLUMNS) <= set(fields) or (len(fields) == 3 and None not in map(_whole, fields))
    return False


def find_triplets(folder: Path) -> list[Path]:
    """The files of triplets in a folder and its `triplet_dataset`."""
    return [path for place in (folder, folder / _FOLDER) for path in _files(place, _TRIPLETS) if holds_triplets(path)]


def _only_triplets(folder: Path) -> Path:
    found = find_triplets(folder)
    held_out = [path for path in found if path.name == _HELD_OUT]
    for choice in (found, held_out):
        if len(choice) == 1:
            return choice[0]
    wanted = f"a file of triplets (a table with {', '.join(COLUMNS)}, or lines of three image numbers)"
    if not found:
        raise DataError(f"{folder}: no {wanted[2:]} here or in {_FOLDER}/; {folder} {seen_in(folder)}")
    raise DataError(
        f"{folder}: {len(found)} files of triplets ({_names(found)}): pass one of them as the path, or triplets= in "
        "Python"
    )


def _only_list(folder: Path) -> Path:
    for name in _LISTS:
        if (folder / name).is_file():
            return folder / name
    found = [path for path in _files(folder, (".txt",)) if _lists_images(path)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{folder}: no list of images ({', '.join(_LISTS)}, or another .txt with one path on each line); "
            f"{folder} {seen_in(folder)}"
        )
    raise DataError(
        f"{folder}: {len(found)} lists of images ({_names(found)}): pass images= in Python, or name one images.txt"
    )


def _lists_images(path: Path) -> bool:
    with suppress(DataError):
        return suffix_of(next(read_lines(path), (0, ""))[1]) in picture_suffixes()
    return False


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _given(folder: Path, path: "str | os.PathLike[str]") -> Path:
    inside = folder / path
    return inside if inside.is_file() else Path(path)


def _read_list(listing: Path, folder: Path, on_error: OnError | None) -> list[Path | None]:
    find = Finder(folder, folder / "images")
    found = []
    for number, line in read_lines(listing):
        found.append(find(line))
        if found[-1] is None:
            what = f"{listing}, row {number}: it names {line!r}, and there is no file {str(folder / line)!r}"
            report(DataError(what), on_error)
    if not found:
        raise DataError(f"{listing} is empty: expected the path of an image on each line")
    return found


def _read(source: Path, images: list[Path | None], listing: Path, on_error: OnError | None) -> tuple[OddOneOut, ...]:
    """The items; three numbers and the position of the odd one come from one of two formats."""
    rows, numbers, first = _table_rows(source, on_error) if _is_table(source) else _text_rows(source, on_error)

    def make(row: Row) -> OddOneOut:
        chosen, odd = numbers(row)
        if len(set(chosen)) < 3:
            raise row.error(f"it names an image twice: {', '.join(map(str, chosen))}")
        paths = []
        for number in chosen:
            if not first <= number < first + len(images):
                last = first + len(images) - 1
                raise row.error(f"there is no image {number}: {listing.name} has {first} to {last}")
            if (path := images[number - first]) is None:
                raise row.error(f"image {number} of {listing.name} is not there")
            paths.append(path)
        return OddOneOut(row.id, (paths[0], paths[1], paths[2]), odd)

    return collect(rows, make, on_error)


def _is_table(source: Path) -> bool:
    for _, line in read_lines(source):
        return _whole(_GAP.split(line)[0]) is None
    raise DataError(f"{source} is empty: expected triplets")


def _table_rows(source: Path, on_error: OnError | None) -> tuple[Iterator[Row], Callable[[Row], _Numbers], int]:
    columns = read_header(source)
    require(source, columns, COLUMNS)

    def numbers(row: Row) -> _Numbers:
        chosen = tuple(_number(row, row[column], f"column {column!r}") for column in COLUMNS[:3])
        odd = _number(row, row["choice"], "column 'choice'")
        if odd not in (1, 2, 3):
            raise row.error(f"column 'choice' holds {row['choice']!r}, expected 1, 2 or 3")
        return chosen, odd - 1

    return read_rows(source, columns, on_error), numbers, 1


def _text_rows(source: Path, on_error: OnError | None) -> tuple[Iterator[Row], Callable[[Row], _Numbers], int]:
    def rows() -> Iterator[Row]:
        names = {name: index for index, name in enumerate(COLUMNS[:3])}
        for number, line in read_lines(source):
            fields = _GAP.split(line)
            if len(fields) == 3:
                yield Row(source, number, names, fields)
            else:
                what = f"{source}, row {number}: {len(fields)} fields where three image numbers are expected"
                report(DataError(what), on_error)

    def numbers(row: Row) -> _Numbers:
        return tuple(_number(row, row[column], f"field {i}") for i, column in enumerate(COLUMNS[:3], start=1)), 2

    return rows(), numbers, 0


def _number(row: Row, cell: str, where: str) -> int:
    if (number := _whole(cell)) is None:
        raise row.error(f"{where} holds {cell!r}, expected a whole number")
    return number


def _whole(cell: str) -> int | None:
    with suppress(ValueError, OverflowError):
        number = float(cell)  # NumPy writes whole numbers as 1.7e+01 too
        return int(number) if number == int(number) else None
    return None
