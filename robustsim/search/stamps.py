"""What tells whether a file is still the one that was read."""

import hashlib
import os
from pathlib import Path
from typing import Any, TypeAlias

from robustsim.images.files import printable

#: A file's name, size and time of change, and perhaps what is in it.
Stamp: TypeAlias = dict[str, Any]


def stamp_of(folder: Path, path: Path) -> Stamp:
    """The name below a folder, size and time of change of a file, as far as they can be told."""
    name = printable(path)
    try:
        stat = (folder / path).stat()
    except OSError:  # reading it will tell why
        return {"file": name, "size": None, "mtime": None}
    return {"file": name, "size": stat.st_size, "mtime": stat.st_mtime_ns}


def size_and_time(path: "str | Path") -> "tuple[int | None, int | None]":
    """A file's size and time of change; None where it cannot be told."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # reading it will tell why
        return None, None
    return found.st_size, in_64_bits(found.st_mtime_ns)


def in_64_bits(time_ns: int) -> int:
    """A time as the index keeps it: these end in the year 2262; file systems have later ones, and two still differ."""
    return (time_ns + (1 << 63)) % (1 << 64) - (1 << 63)


def hashed_stamp(root: Path, path: Path) -> Stamp:
    """A file's absolute name, size, time of change, and SHA-256, or why that cannot be told."""
    size, mtime = size_and_time(root / path)
    return {"file": printable(root / path), "size": size, "mtime": mtime, **content_sha256(root / path)}


def content_sha256(path: Path) -> Stamp:
    """`id`, the SHA-256 of a file; or `error`, why it cannot be told."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError) as error:
        return {"error": getattr(error, "strerror", None) or str(error)}
    return {"id": digest.hexdigest()}
