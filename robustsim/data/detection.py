"""Pictures of classes, in the parts that detection by neighbours is judged with: banks, queries, and the attacker's."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from robustsim.data.tables import read_header, read_rows, require, table_name
from robustsim.errors import DataError
from robustsim.images.files import from_printable, list_images

#: What a picture may be for.
PARTS = ("bank", "query", "target")
#: Of a class that is divided, at most so many pictures are the attacker's.
TARGETS = 16

_Folders = Mapping[str, "str | os.PathLike[str]"]


@dataclass(frozen=True)
class DetectionSet:
    """Pictures by class, in three parts.

    Attributes:
        name: of the set.
        root: of the pictures.
        bank: the pictures that a query is compared with.
        queries: pictures whose class is asked for.
        targets: pictures that an attacker holds, which are in no bank.
    """

    name: str
    root: Path
    bank: Mapping[str, tuple[Path, ...]]
    queries: Mapping[str, tuple[Path, ...]]
    targets: Mapping[str, tuple[Path, ...]]


def detection_folders(
    bank: _Folders, queries: _Folders, targets: _Folders | None = None, *, follow_links: bool = False
) -> DetectionSet:
    """Pictures in a folder for each class and part.

    Args:
        bank: folders by class.
        queries: folders by class; not every class needs one.
        targets: folders by class, for attacks towards that class.
        follow_links: walk linked folders, too.

    Raises:
        DataError: no bank or no query, or queries or targets of a class that has no bank.
        ImageError: there is no such folder, or no image in it.
    """
    parts = {"bank": bank, "query": queries, "target": targets or {}}
    found = {
        part: {
            name: tuple(Path(folder) / file for file in list_images(folder, follow_links=follow_links)[0])
            for name, folder in folders.items()
        }
        for part, folders in parts.items()
    }
    roots = [os.path.abspath(folder) for folders in parts.values() for folder in folders.values()]
    root = Path(os.path.commonpath(roots)) if roots and len({Path(one).anchor for one in roots}) == 1 else Path()
    return _checked("folders", root.name, root, found)


def read_detection(
    table: "str | os.PathLike[str]",
    images: "str | os.PathLike[str] | None" = None,
    *,
    seed: int = 0,
    bank_only: Sequence[str] = (),
) -> DetectionSet:
    """Pictures that a table (CSV) tells the classes of.

    The columns are `file` and `class`, and `part`: `bank`, `query` or `target`. Without `part` each class is divided at
    random: up to 16 pictures, and at most a quarter, are the attacker's, of the others half the bank's.

    Args:
        table: the file.
        images: the folder that `file` is below; the table's own if not given.
        seed: of the division.
        bank_only: classes all of whose pictures are the bank's, where they are divided, such as one between two others.

    Raises:
        DataError: a file that is none such, or names what is not there or a picture twice; no bank or no query, or
            queries or targets of a class that has no bank.
    """
    file = Path(table)
    root = Path(images or file.parent)
    columns = read_header(file)
    require(file, columns, ("file", "class"))
    rows: dict[str, dict[str, list[Path]]] = {part: {} for part in (*PARTS, "")}
    seen: dict[str, int] = {}
    for row in read_rows(file, columns, None):
        name, kind, part = row.get("file"), row.get("class"), row.get("part")
        path = root / from_printable(name)
        if not name or not path.is_file():
            raise row.error(f"column 'file' names {name!r}, which is no file below {os.fspath(root)!r}")
        if not kind:
            raise row.error("column 'class' is empty")
        if "part" in columns and part not in PARTS:
            raise row.error(f"column 'part' holds {part!r}, expected one of {', '.join(PARTS)}")
        if (first := seen.setdefault(os.path.normpath(path), row.number)) != row.number:
            raise row.error(f"{name!r} is in row {first} already: a picture has one class and one part")
        rows[part].setdefault(kind, []).append(path)
    whole = rows.pop("")
    if unknown := [name for name in bank_only if name not in (*whole, *rows["bank"])]:
        raise DataError(f"{file}: there is no class {unknown[0]!r}; there are {', '.join(whole) or 'none'}")
    for kind, files in whole.items():
        for part, some in _divided(kind, files, seed, bank_only).items():
            rows[part].update({kind: some} if some else {})
    return _checked(os.fspath(file), table_name(file), root, rows)


def _divided(kind: str, files: Sequence[Path], seed: int, bank_only: Sequence[str]) -> dict[str, list[Path]]:
    """One class in parts; which does not depend on the others."""
    if kind in bank_only:
        return {"bank": list(files)}
    order = sorted(files)
    Random(f"{seed} {kind}").shuffle(order)
    attackers = min(TARGETS, len(order) // 4)
    banked = attackers + (len(order) - attackers + 1) // 2
    parts = {"target": order[:attackers], "bank": order[attackers:banked], "query": order[banked:]}
    return {part: sorted(some) for part, some in parts.items()}


def _checked(where: str, name: str, root: Path, parts: Mapping[str, Mapping[str, Sequence[Path]]]) -> DetectionSet:
    bank, queries, targets = ({kind: tuple(some) for kind, some in parts[part].items()} for part in PARTS)
    if not bank or not queries:
        raise DataError(f"{where}: detection needs banks and queries, and there is no {'query' if bank else 'bank'}")
    if lost := [kind for kind in (*queries, *targets) if kind not in bank]:
        raise DataError(f"{where}: the class {lost[0]!r} has no bank; the banks are {', '.join(bank)}")
    return DetectionSet(name or "folders", root, bank, queries, targets)
