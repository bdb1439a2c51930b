"""Move or copy what was not flagged, by the decisions in a file; nothing is overwritten, and none is lost."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustsim.encoders.weights import whole_file
from robustsim.errors import DataError, InputError, OutputError
from robustsim.images.files import from_printable, printable
from robustsim.search.detection.lines import read_decisions
from robustsim.search.duplicates.act import Done
from robustsim.search.duplicates.moving import (
    LeftAloneError,
    Target,
    alone,
    check_unchanged,
    content_of,
    copy,
    look_at_regular,
)

_SINCE = "it was judged"


@dataclass(frozen=True)
class Applied:
    """What `apply_decisions` did.

    Attributes:
        done: files that were moved or copied.
        before: files that an earlier run had moved or copied.
        left: files that were left alone.
    """

    done: int
    before: int
    left: int


def apply_decisions(
    decisions: "str | os.PathLike[str]",
    folder: "str | os.PathLike[str]",
    *,
    move: bool,
    tell: Callable[[Done], object] = lambda done: None,
    progress: Callable[[int], object] = lambda count: None,
) -> Applied:
    """Move or copy the pictures that were not flagged to a folder. Those that were, and bad files, stay.

    A file keeps its place below its folder; where several folders were judged, below that one's name, whether or not
    there were pictures in the others. It is moved or copied if it is a regular file and has the size, the time and the
    SHA-256 of what was judged; else it is left alone. What was done before is not done again, so that an interrupted
    run is repeated by the same call. Memory does not grow with the pictures.

    Args:
        decisions: the file of [`judge_folders`][robustsim.search.judge_folders].
        folder: where they go; made if it is not there.
        move: move, and list in `moved.jsonl` what was moved from where; else copy.
        tell: called for each file that was moved or copied, or left alone.
        progress: called with the number of decisions looked at since the last call.

    Raises:
        InputError: the folder is inside one that was judged, or such a one inside of it.
        DataError: the file does not hold decisions.
        OutputError: the folder cannot be written, or another run moves or deletes.
    """
    source, target = Path(decisions), Path(os.path.abspath(os.path.expanduser(folder)))
    roots = _roots(source)
    _check_outside(target, roots)
    several, counts = len(roots) > 1, {"done": 0, "before": 0, "left": 0}
    with alone(), _Goes(target, move) as goes:
        for line in read_decisions(source):
            if not line.get("flagged", True):
                root = Path(from_printable(line["folder"]))
                below = Path(from_printable(line["file"]))
                path = root / below
                to, why = target / (root.name if several else "") / below, None
                try:
                    kind = "done" if goes.take(path, to, line) else "before"
                except LeftAloneError as error:
                    kind, why = "left", str(error)
                except (OSError, ValueError) as error:
                    kind, why = "left", f"it could not be read or written: {getattr(error, 'strerror', None) or error}"
                counts[kind] += 1
                if kind != "before":
                    tell(Done(printable(path), None if why else printable(to), why, line["size"] or 0))
            progress(1)
    return Applied(**counts)


def check_list(
    decisions: "str | os.PathLike[str]", output: "str | os.PathLike[str]", *, overwrite: bool = False
) -> None:
    """Refuse a place for a list, as `list_kept` does.

    Raises:
        InputError: it is the file of decisions.
        OutputError: there is a file already.
    """
    one, other = os.path.realpath(decisions), os.path.realpath(output)
    if one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)):
        raise InputError(f"the list {os.fspath(output)!r} would replace the decisions: choose another name for it")
    if os.path.lexists(output) and not overwrite:
        raise OutputError(f"{os.fspath(output)!r} is there already: pass overwrite (--overwrite) or another name")


def list_kept(decisions: "str | os.PathLike[str]", output: "str | os.PathLike[str]", *, overwrite: bool = False) -> int:
    """Write the absolute names of the pictures that were not flagged, a line each; how many.

    A name with a line break or another control character in it, or bytes that are no UTF-8, or that begins with a
    quotation mark, is written as a JSON string: whoever names files must not add lines.

    Args:
        decisions: the file of [`judge_folders`][robustsim.search.judge_folders].
        output: the list; there as a whole, or not at all.
        overwrite: replace `output` if it is there.

    Raises:
        InputError: the list is the file of decisions.
        DataError: the file does not hold decisions.
        OutputError: the list is there already, or cannot be written.
    """
    check_list(decisions, output, overwrite=overwrite)
    count = 0
    with whole_file(Path(output)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for line in read_decisions(Path(decisions)):
            if not line.get("flagged", True):
                file.write(_as_line(os.path.join(line["folder"], line["file"])) + "\n")
                count += 1
    return count


def _as_line(name: str) -> str:
    is_plain = name.isprintable() and not name.startswith('"') and "\\x" not in name
    return name if is_plain else json.dumps(name)


def _roots(decisions: Path) -> list[Path]:
    """The folders that were judged, which are few."""
    found: dict[str, None] = {}
    for line in read_decisions(decisions):
        found.update(dict.fromkeys([*line.get("folders", ()), line["folder"]]))
        if not _is_below(line["file"]):
            raise DataError(f"{os.fspath(decisions)!r} names {line['file']!r}, which is not below its folder")
    return [Path(from_printable(name)) for name in found]


def _is_below(file: str) -> bool:
    path = Path(from_printable(file))
    return not path.is_absolute() and ".." not in path.parts and path != Path()


def _check_outside(target: Path, roots: "list[Path]") -> None:
    real = Path(os.path.realpath(target))
    for root in roots:
        judged = Path(os.path.realpath(root))
        if real.is_relative_to(judged) or judged.is_relative_to(real):
            raise InputError(
                f"{os.fspath(target)!r} and {os.fspath(root)!r}, whose pictures were judged, lie in one another: "
                "choose a folder outside"
            )


class _Goes:
    """Where files go; for a `with` block."""

    def __init__(self, folder: Path, move: bool) -> None:
        self._folder, self._target = folder, Target(folder)
        self._move = move

    def __enter__(self) -> "_Goes":
        if self._move:
            self._target.__enter__()
            return self
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {os.fspath(self._folder)!r}: {error.strerror or error}") from error
        return self

    def __exit__(self, *details: object) -> None:
        if self._move:
            self._target.__exit__(*details)

    def take(self, path: Path, to: Path, line: "dict[str, Any]") -> bool:
        """Move or copy a file; False if that was done before."""
        content = line["id"]
        if self._move and not os.path.lexists(path) and os.path.lexists(to):
            if os.path.islink(to) or content_of(to, "what is in its place") != content:
                raise LeftAloneError("it is gone, and what is where it was to go is another file")
            return False
        then = look_at_regular(path, line["size"], line["mtime"], _SINCE)
        if not self._move:
            self._target.clear(to.parent)
            return copy(path, to, content)
        if content_of(path, "it") != content:
            raise LeftAloneError(f"it has changed since {_SINCE}")
        self._target.take(path, to, content, lambda has_another_name: check_unchanged(path, then, has_another_name))
        return True
