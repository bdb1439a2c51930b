"""Judge the pictures of folders, one line of JSON each, to be continued after any interruption."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from robustsim.encoders.weights import sha256, state_sha256
from robustsim.errors import ImageError, InputError, OutputError
from robustsim.images.files import FoundImages, find_images, from_printable, printable, tell_passed_over
from robustsim.jsonl import parse_line
from robustsim.search.detection.detector import Detector
from robustsim.search.detection.lines import is_decision, read_decisions
from robustsim.search.duplicates.moving import state
from robustsim.search.index.pictures import Loading, load_ahead
from robustsim.search.partial import IDENTITY, Journal, remove_leftovers, working
from robustsim.search.stamps import Stamp, content_sha256, size_and_time
from robustsim.search.storage.seal import NAME

_FILES = (IDENTITY, "decisions.jsonl")
# In the first of them: the name of the result, and, when that is whole, its SHA-256.
_OUTPUT, _FINISHED = "output", "finished"


@dataclass(frozen=True)
class FilterReport:
    """What `judge_folders` found.

    Attributes:
        kept: pictures that are not flagged.
        flagged: those that are.
        failed: files that could not be read.
        resumed: how many of all of these an earlier run had judged.
        classes: pictures of each class; those of none under "unknown".
        reasons: how often each kind of reason flagged one.
        passed_over: how many files of each kind were left out; see `robustsim.images.FoundImages`.
        changed: pictures in the folders that are new or others than those judged, where the decisions are of before.
    """

    kept: int
    flagged: int
    failed: int
    resumed: int
    classes: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)
    changed: int = 0


class _Tally:
    """The report, line by line."""

    def __init__(self) -> None:
        self.kept = self.flagged = self.failed = 0
        self.classes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.kept + self.flagged + self.failed

    def report(self, resumed: int, passed_over: Mapping[str, int], changed: int = 0) -> FilterReport:
        return FilterReport(
            self.kept,
            self.flagged,
            self.failed,
            resumed,
            dict(self.classes),
            dict(self.reasons),
            dict(passed_over),
            changed,
        )

    def add(self, line: Mapping[str, Any]) -> None:
        if "error" in line:
            self.failed += 1
            return
        self.flagged += line["flagged"]
        self.kept += not line["flagged"]
        self.classes["unknown" if line["class"] is None else line["class"]] += 1
        if line["flagged"]:
            self.reasons.update({reason["kind"] for reason in line["reasons"]})


def judge_folders(
    detector: Detector,
    folders: "Sequence[str | os.PathLike[str]]",
    output: "str | os.PathLike[str]",
    *,
    restart: bool = False,
    overwrite: bool = False,
    follow_links: bool = False,
    keep_state: bool = False,
    progress: Callable[[int], object] = lambda count: None,
    on_error: Callable[[ImageError], object] = lambda error: None,
) -> FilterReport:
    """Judge all pictures below folders into one file, which appears when it is whole. No picture is touched.

    Until then a folder beside it, of its name and `.partial`, keeps what is done, and the same call continues from
    there. Each line of the file holds one picture: `folder`, `file` (below it), `size`, `mtime`, `id` (the SHA-256 of
    its content) and what `Verdict.described` gives, or `error`; the first one also `folders`, all that were judged.
    Memory does not grow with the pictures.

    Args:
        detector: what judges.
        folders: of pictures; none inside another, and no two of one name.
        output: the file.
        restart: forget what an interrupted run has done.
        overwrite: replace `output` if it is there.
        follow_links: walk linked folders too.
        keep_state: let the folder stay when the file is whole, until `forget_run`: the same call then reads the file,
            if it is as it was, so that whoever acts on it can be interrupted and called again. Pictures that came or
            changed since are counted, and not judged.
        progress: called with the number of files done since the last call.
        on_error: called for each file that is skipped.

    Raises:
        InputError: folders do not fit together, or a detector failed.
        ImageError: there is no such folder, or there are no pictures.
        OutputError: the output is there already, cannot be written, or is being written by another run; or the
            folders, the banks, the rule or the model are not those that the interrupted run saw.
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    out, roots = Path(output), check_folders(folders)
    is_there, kept = out.exists() and not (overwrite or restart), _partial(out)
    taken = OutputError(f"{os.fspath(out)!r} is there already: pass overwrite (--overwrite) or another name")
    if out.exists() and not overwrite and not (is_there and kept.exists()):
        raise taken
    with working(out, _FILES, roots, kept) as place:
        run = _Run(detector, roots, place, follow_links)
        if restart:
            run.clear()
        identity = {_OUTPUT: printable(out.name), **_identity(detector, roots, follow_links)}
        begun, finished = _split(run.identity())
        if begun not in (None, identity):
            raise OutputError(
                f"{os.fspath(place)!r} was begun with other folders, banks, detectors or another rule or model: pass "
                "restart (--restart), or choose another output"
            )
        if is_there:
            if begun is None or run.is_unfinished or finished != sha256(out):
                raise taken
            changed = run.read(out, progress)
            return run.tally.report(run.tally.total, run.passed_over, changed)
        resumed = run.resume()
        progress(resumed)
        run.begin(identity)
        run.judge(resumed, progress, on_error)
        passed_over = run.passed_over
        if not run.tally.total:
            run.remove()
            raise ImageError(
                f"there are no pictures in {', '.join(map(printable, roots))}; {tell_passed_over(passed_over)}".rstrip(
                    "; "
                )
            )
        remove_leftovers(out.parent, out.name)
        run.finish(out, identity)
        if not keep_state:
            run.remove()
    return run.tally.report(resumed, passed_over)


def forget_run(output: "str | os.PathLike[str]") -> None:
    """Remove what `judge_folders` has kept of the run that made this file; whatever else is there stays."""
    out = Path(output)
    kept = _partial(out)
    if not kept.is_dir():
        return
    with suppress(OutputError), working(out, _FILES, (), kept) as place:  # if another run is in it, it is that one's
        run = Journal(place, _FILES)
        begun, finished = _split(run.identity())
        is_unfinished = (place / _FILES[1]).exists()
        if (
            begun is not None
            and begun.get(_OUTPUT) == printable(out.name)
            and not is_unfinished
            and finished == sha256(out)
        ):
            run.remove()


def _partial(out: Path) -> Path:
    """By the whole name: `a.jsonl` and `a.txt` are of two runs."""
    return out.with_name(f"{out.name}.partial")


def _split(kept: Any) -> "tuple[dict[str, Any] | None, str | None]":
    """What a run was begun with, and the SHA-256 of what came of it; None for what is not there."""
    if not isinstance(kept, dict):
        return None, None
    begun = {name: value for name, value in kept.items() if name != _FINISHED}
    return begun, kept.get(_FINISHED)


def check_folders(folders: "Sequence[str | os.PathLike[str]]") -> list[Path]:
    """Absolute folders, of which none lies in another and no two have one name.

    Raises:
        InputError: they do, or there is none.
    """
    roots = [Path(os.path.abspath(folder)) for folder in folders]
    if not roots:
        raise InputError("name one folder of pictures at least")
    real = [Path(os.path.realpath(root)) for root in roots]
    for at, one in enumerate(real):
        for other in (*real[:at], *real[at + 1 :]):
            if one.is_relative_to(other):
                raise InputError(f"{printable(one)!r} is in {printable(other)!r}: its pictures would be judged twice")
    names = Counter(root.name for root in roots)
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(
            f"two folders have the name {twice[0]!r}, by which they are told apart where pictures go: filter them one "
            "after the other"
        )
    return roots


class _Run(Journal):
    def __init__(self, detector: Detector, roots: Sequence[Path], place: Path, follow_links: bool) -> None:
        super().__init__(place, _FILES)
        self._detector, self._roots, self._follow_links = detector, roots, follow_links
        self._lines = self._paths[1]
        self.tally = _Tally()
        self.passed_over: Counter[str] = Counter()

    @property
    def is_unfinished(self) -> bool:
        """Whether lines are there that are no result yet."""
        return self._lines.exists()

    def walk(self) -> Iterator[tuple[Path, Path]]:
        """(folder, file below it), always in one order; what was passed over is counted at the end of each folder."""
        walks: list[tuple[Path, FoundImages]] = [
            (root, find_images(root, follow_links=self._follow_links)) for root in self._roots
        ]
        for root, files in walks:
            for path in files:
                yield root, path
            self.passed_over.update(files.passed_over)

    def resume(self) -> int:
        """Check what is done against the folders, cut off what was half-written; the number of files done."""
        if self.identity() is None:
            self.clear()
            return 0
        if not self._lines.exists():
            return 0
        walk, end, done = self.walk(), 0, 0
        with self._lines.open("rb") as lines:
            for line in lines:
                entry = parse_line(line)
                if not is_decision(entry):
                    break
                found = next(walk, None)
                if found is None or entry != {**entry, **_stamp(*found)}:
                    raise OutputError(
                        f"the folders changed since the interrupted run ({entry.get('file')!r} is not what it was): "
                        "pass restart (--restart) to begin anew"
                    )
                end, done = end + len(line), done + 1
                self.tally.add(entry)
        self.passed_over.clear()  # counted again by the walk that goes on
        os.truncate(self._lines, end)
        return done

    def judge(self, resumed: int, progress: Callable[[int], object], on_error: Callable[[ImageError], object]) -> None:
        loaded = load_ahead(self._load, islice(self.walk(), resumed, None), self._detector.views)
        with self._lines.open("ab", buffering=0) as file:
            for stamp, found in self._detector.judge(
                loaded, lambda stamp: repr(os.path.join(stamp["folder"], stamp["file"]))
            ):
                if isinstance(found, ImageError):
                    on_error(found)
                    line = {**stamp, "error": str(found)}
                else:
                    line = {**stamp, **found.described()}
                if not self.tally.total:
                    line["folders"] = [printable(root) for root in self._roots]
                file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                self.tally.add(line)
                progress(1)
            os.fsync(file.fileno())

    def read(self, out: Path, progress: Callable[[int], object]) -> int:
        """Take what was decided from the result; how many pictures are new, or others than those that were judged.

        Lines and walk have one order, by folder and the parts of names, so that one pass over both is enough. Pictures
        that are gone are not counted: they were moved.
        """
        walk = ((printable(root), path, _stamp(root, path)) for root, path in self.walk())
        order = {printable(root): at for at, root in enumerate(self._roots)}
        here, changed = next(walk, None), 0
        for line in read_decisions(out):
            key = order.get(line["folder"], len(order)), Path(from_printable(line["file"])).parts
            while here is not None and (order[here[0]], here[1].parts) <= key:
                changed += line != {**line, **here[2]}
                here = next(walk, None)
            self.tally.add(line)
            progress(1)
        return changed + sum(1 for _ in walk) + (here is not None)

    def finish(self, out: Path, identity: Any) -> None:
        """Let the lines be the result: they are on the same file system, so that it appears as a whole."""
        self.begin({**identity, _FINISHED: sha256(self._lines)})  # first: the result never lacks it
        os.replace(self._lines, out)

    def _load(self, found: tuple[Path, Path]) -> tuple[Stamp, Loading]:
        root, path = found
        stamp, then = _stamp(root, path), _state(root / path)
        content = content_sha256(root / path)
        try:
            loaded = self._detector.load(root / path)
        except ImageError as error:
            return stamp, ImageError(str(error))  # without the traceback, which holds the half-decoded picture
        if "error" in content:  # it decoded, and could not be read before: what it is is not known
            return stamp, ImageError(f"cannot read {os.fspath(root / path)!r}: {content['error']}")
        if then != _state(root / path):  # what was judged may be another picture than the one that has this SHA-256
            return stamp, ImageError(f"{os.fspath(root / path)!r} has changed while it was read")
        return {**stamp, **content}, loaded


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        return state(os.stat(path))
    except (OSError, ValueError):  # reading it will tell why
        return None


def _stamp(root: Path, path: Path) -> Stamp:
    size, mtime = size_and_time(root / path)
    return {"folder": printable(root), "file": printable(path), "size": size, "mtime": mtime}


def _identity(detector: Detector, roots: Sequence[Path], follow_links: bool) -> dict[str, Any]:
    """What decides: a run goes on where all of it is the same."""
    rule = asdict(detector.rule)
    made = {
        "folders": [printable(root) for root in roots],
        "follow_links": follow_links,
        "model": detector.card.to_identity(),
        "weights": state_sha256(detector.metric.encoder),
        "banks": {
            name: [printable(os.path.abspath(bank.path)), bank.version, len(bank), sha256(Path(bank.path) / NAME)]
            for name, bank in detector.banks.items()
        },
        "rule": rule,
        "views": list(detector.views),
        "detectors": [one.identity() for one in detector.detectors],
    }
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]
