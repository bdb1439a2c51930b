"""The lines of a file of decisions, which anybody may have changed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from robustsim.errors import DataError
from robustsim.images.files import from_printable
from robustsim.jsonl import parse_line


def read_decisions(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of decisions.

    Raises:
        DataError: one is none.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                found = parse_line(line)
                if not is_decision(found):
                    raise DataError(f"line {number} of {os.fspath(path)!r} is no decision of `robustsim filter`")
                yield found
    except OSError as error:
        raise DataError(f"{os.fspath(path)!r} cannot be read: {error.strerror or error}") from error


def is_decision(line: Any) -> "TypeGuard[dict[str, Any]]":
    """Whether a line holds all that whoever acts on it takes from it, in the right types."""
    if not isinstance(line, dict):
        return False
    folders, reasons, nothing = line.get("folders", []), line.get("reasons"), object()
    if not (isinstance(folders, list) and all(map(_is_name, [line.get("folder"), line.get("file"), *folders]))):
        return False
    if Path(from_printable(line["folder"])).name == "..":  # a folder's name becomes one below the target
        return False
    if "error" in line:
        return "flagged" not in line
    return (
        isinstance(line.get("flagged"), bool)
        and isinstance(line.get("id"), str)
        and all(line.get(name, nothing) is None or type(line.get(name)) is int for name in ("size", "mtime"))
        and isinstance(line.get("class", nothing), str | None)
        and isinstance(reasons, list)
        and all(isinstance(one, dict) and isinstance(one.get("kind"), str) for one in reasons)
    )


def _is_name(word: Any) -> bool:
    """Whether a file may have such a name, as `printable` writes it."""
    try:
        return isinstance(word, str) and b"\0" not in os.fsencode(from_printable(word)) and bool(word.encode())
    except ValueError:  # half of a surrogate pair
        return False
