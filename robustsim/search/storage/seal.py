"""The seal of a store: which version of the rows counts, how many they are, and the checksums of their files.

Lance commits by versions. One change of an index may take several of them, and a process may be killed between any two.
So a version counts when it is sealed: the seal is one small file, replaced as a whole. Readers open the version that it
names; what was committed after it was never finished, and the next writer removes it.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robustsim.encoders.weights import sha256, whole_file
from robustsim.errors import SearchError

FORMAT = "robustsim-index"
FORMAT_VERSION = 2
NAME = "seal.json"


@dataclass(frozen=True)
class Seal:
    """What counts.

    Attributes:
        version: of the rows, Lance's.
        rows: how many there are.
        digest: the sum of their digests.
        erasing: rows were erased, and files that held them may still be there.
        files: name below the rows' folder -> size and SHA-256, of all files that the version consists of.
    """

    version: int
    rows: int = 0
    digest: int = 0
    erasing: bool = False
    files: dict[str, tuple[int, str]] = field(default_factory=dict)


def checksum_of(data: dict[str, Any]) -> str:
    """SHA-256 of what JSON can hold, however it is spaced."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def write_seal(folder: Path, seal: Seal) -> None:
    """Replace the seal of an index.

    Raises:
        OutputError: it cannot be written; the old one stays.
    """
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(seal), "digest": f"{seal.digest:032x}"}
    data = json.loads(json.dumps(data))  # tuples become lists, as they will be read
    with whole_file(folder / NAME) as temporary:
        temporary.write_text(json.dumps({**data, "sha256": checksum_of(data)}, indent=1), encoding="utf-8")


def read_seal(folder: Path) -> Seal:
    """The seal of an index.

    Raises:
        SearchError: there is none, it is damaged, or of a newer format.
    """
    where = os.fspath(folder)
    try:
        data = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SearchError(
            f"{where!r} is no index: it holds no {NAME}. `robustsim index` (Index.create) makes one"
        ) from None
    except OSError as error:
        raise SearchError(f"the index {where!r} cannot be read: {error.strerror or error}") from error
    except ValueError:
        data = None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise SearchError(f"the index {where!r} is damaged: its {NAME} cannot be understood")
    found = data.pop("format_version", None)
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise SearchError(
            f"the index {where!r} has format {found}, and this robustsim reads {FORMAT_VERSION}: upgrade robustsim"
        )
    if isinstance(found, int) and 0 < found < FORMAT_VERSION:
        raise SearchError(
            f"the index {where!r} has format {found}, of an earlier robustsim, which this one does not read: make "
            "another index of the same folders"
        )
    expected = data.pop("sha256", None)
    if found != FORMAT_VERSION or checksum_of({"format": FORMAT, "format_version": found, **data}) != expected:
        raise SearchError(f"the index {where!r} is damaged: its {NAME} does not match its checksum")
    files = {name: (size, checksum) for name, (size, checksum) in data["files"].items()}
    return Seal(**{**data, "digest": int(data["digest"], 16), "files": files})


def checked(root: Path, files: dict[str, tuple[int, str]], *, whole: bool = False) -> list[str]:
    """What is wrong with files of a version, a line each: missing, of another size, of another content.

    Args:
        root: the rows' folder.
        files: of the seal.
        whole: read the files of vectors too, and not their sizes alone.
    """
    wrong = []
    for name, (size, checksum) in files.items():
        path = root / name
        try:
            if (seen := path.stat().st_size) != size:
                wrong.append(f"{name} has {seen} bytes, and had {size}")
            elif (whole or not name.startswith("data/")) and sha256(path) != checksum:
                wrong.append(f"{name} does not match its checksum")
        except OSError as error:
            wrong.append(f"{name} cannot be read: {error.strerror or error}")
    return wrong


def seal_files(root: Path, names: list[str], known: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Checksums of the files of a version, brought to the disk; those known stay, whatever their files are by now."""
    files = {}
    for name in names:
        if name in known:
            files[name] = known[name]
            continue
        path = root / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[name] = (path.stat().st_size, sha256(path))
    return files
