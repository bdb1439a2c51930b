"""Inversions in a folder: for each source some pictures, and a JSON file that says how they were made.

The JSON is written before the picture that it names, so whatever it does not name is somebody else's and stays as it
is; a picture that it names and that is not there is made by the next run. Nothing is ever deleted.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from robustsim.encoders.weights import whole_file
from robustsim.errors import OutputError

_FORMAT, _VERSION = "robustsim inversions", 1
# A file of ours has its format in the first bytes; the others are not read further.
_HEAD = 64
_ENTRY: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "weights": str,
    "seed": int,
    "similarity": (int, float),
    "file": str,
    "gif": (str, type(None)),
}
# What no file system or shell likes in a name; and how long a name may be in bytes, so that there is room for the rest.
_ODD = re.compile(r"[^\w.+@ -]+")
_LONGEST = 100
# Of GIFs: how long a frame stays, and the last one, in milliseconds.
_FRAME, _LAST = 80, 2000


@dataclass(frozen=True)
class Source:
    """What is inverted.

    Attributes:
        kind: `image` or `text`.
        name: the whole path of the file, or the text.
        sha256: of the file's or the text's bytes.
    """

    kind: str
    name: str
    sha256: str

    @property
    def stem(self) -> str:
        """What its files are named after."""
        return safe_name(Path(self.name).stem if self.kind == "image" else "-".join(self.name.split()))


def safe_name(text: str) -> str:
    """A name for files that says the same, as far as it can."""
    safe = _ODD.sub("-", text).strip(" -.") or "unnamed"
    return safe.encode(errors="replace")[:_LONGEST].decode(errors="ignore").strip(" -.")


class Kept:
    """What is there of one source.

    Attributes:
        source: whose inversions they are.
        folder: where they are.
        stem: what their files' names begin with.
    """

    def __init__(self, source: Source, folder: Path, stem: str, record: dict[str, Any]) -> None:
        self.source, self.folder, self.stem, self._record = source, folder, stem, record

    @property
    def entries(self) -> list[dict[str, Any]]:
        """One for each picture: `model`, `weights`, `seed`, `similarity`, `file`, `gif` (None if there is none)."""
        return self._record["inversions"]  # type: ignore[no-any-return]

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.folder / f"{self.stem}.sheet.png"

    def path(self, model: str, seed: int, suffix: str = "png") -> Path:
        """Where a picture belongs."""
        return self.folder / f"{self.stem}.{model}.{seed}.{suffix}"

    def outputs(self, wanted: Iterable[tuple[str, int]]) -> list[Path]:
        """All files that may be written for these models and seeds."""
        pictures = [self.path(*one, suffix) for one in wanted for suffix in ("png", "gif")]
        return [_record_of(self.folder, self.stem), self.sheet, *pictures]

    def done(self, model: str, weights: str, seed: int, *, gif: bool = False) -> bool:
        """Whether a picture is there, and whole.

        Raises:
            OutputError: it is there, of other weights, without its GIF or damaged; or a file of its name is, that is
                not ours.
        """
        path, moving = self.path(model, seed), self.path(model, seed, "gif")
        entry = next((one for one in self.entries if (one["model"], one["seed"]) == (model, seed)), None)
        if entry is None:
            for one in (path, moving):
                if os.path.lexists(one):
                    raise OutputError(
                        f"{os.fspath(one)!r} is there and was not made by this command: choose another folder with -o"
                    )
            return False
        if entry["weights"] != weights:
            raise OutputError(
                f"{os.fspath(path)!r} was made with other weights of {model!r}: choose another folder with -o"
            )
        if not path.is_file():
            return False
        self.picture(entry)
        if gif and not (entry["gif"] and moving.is_file()):
            raise OutputError(
                f"{os.fspath(path)!r} is there without its GIF: choose another folder with -o for pictures with --gif"
            )
        return True

    def picture(self, entry: Mapping[str, Any]) -> Image.Image:
        """The picture of an entry, in RGB.

        Raises:
            OutputError: it is damaged.
        """
        path = self.folder / entry["file"]
        try:
            with Image.open(path) as image:
                found: Image.Image = image.convert("RGB")
                return found
        except (OSError, SyntaxError, ValueError) as error:  # all that Pillow raises for damaged PNGs
            raise OutputError(
                f"{os.fspath(path)!r} cannot be read ({error}): remove it, and the same command makes it anew"
            ) from error

    def add(
        self,
        model: str,
        weights: str,
        seed: int,
        similarity: float,
        image: Image.Image,
        frames: Sequence[Image.Image] = (),
    ) -> None:
        """Write what is known of a picture, the frames of the way there as a GIF, and the picture last.

        Raises:
            OutputError: they cannot be written.
        """
        path, moving = self.path(model, seed), self.path(model, seed, "gif")
        entry = {
            "model": model,
            "weights": weights,
            "seed": seed,
            "similarity": similarity,
            "file": path.name,
            "gif": moving.name if frames else None,
        }
        rest = [one for one in self.entries if (one["model"], one["seed"]) != (model, seed)]
        self._record["inversions"] = sorted([*rest, entry], key=lambda one: (one["model"], one["seed"]))
        self._save()
        if frames:
            with whole_file(moving) as temporary:
                times = [_FRAME] * (len(frames) - 1) + [_LAST]
                frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
        with whole_file(path) as temporary:
            image.save(temporary, format="PNG")

    def has_sheet(self, shown: Any) -> bool:
        """Whether the contact sheet is there and shows this."""
        return self.sheet.is_file() and self._record.get("sheet") == shown

    def add_sheet(self, shown: Any, image: Image.Image) -> None:
        """Write the contact sheet, and what it shows."""
        with whole_file(self.sheet) as temporary:
            image.save(temporary, format="PNG")
        self._record["sheet"] = shown
        self._save()

    def _save(self) -> None:
        with whole_file(_record_of(self.folder, self.stem)) as temporary:
            temporary.write_text(json.dumps(self._record, indent=2) + "\n", encoding="utf-8")


def open_kept(
    folder: Path, sources: Iterable[Source], parameters: Mapping[str, Any], wanted: Sequence[tuple[str, int]]
) -> list[Kept]:
    """What is there of each source, each under a name of its own, which it keeps in later runs; nothing is written.

    Args:
        folder: which is there.
        sources: none twice.
        parameters: how pictures are made: `method`, `steps`.
        wanted: models and seeds; a new name is one of which no file is there.

    Raises:
        OutputError: what is there of a source was made otherwise, or of another content; or a JSON file is damaged.
    """
    records = _records(folder)
    empty = {stem for stem, record in records.values() if not record["inversions"]}
    found: list[Kept] = []
    taken: set[str] = set()
    for source in sources:
        head = {"format": _FORMAT, "version": _VERSION, source.kind: source.name, "sha256": source.sha256, **parameters}
        stem, record = records.get((source.kind, source.name), ("", None))
        if record is None or not record["inversions"]:
            kept = _new(folder, source, {**head, "inversions": []}, wanted, taken, empty)
        else:
            kept = Kept(source, folder, stem, record)
            for key, value in head.items():
                if record.get(key) != value:
                    told = "its file was another one" if key == "sha256" else f"{key} was {record.get(key)!r}"
                    raise OutputError(
                        f"the inversions of {source.name!r} in {os.fspath(folder)!r} were made otherwise: {told}. "
                        "Choose another folder with -o"
                    )
        taken.add(kept.stem.casefold())
        found.append(kept)
    return found


def _record_of(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.json"


def _new(
    folder: Path,
    source: Source,
    record: dict[str, Any],
    wanted: Sequence[tuple[str, int]],
    taken: set[str],
    empty: set[str],
) -> Kept:
    """A source under the first name that is free."""
    number = 1
    while True:
        kept = Kept(source, folder, source.stem if number == 1 else f"{source.stem}-{number}", record)
        own, *others = kept.outputs(wanted)
        free = kept.stem in empty or not os.path.lexists(own)
        # Some systems do not tell A from a.
        if free and kept.stem.casefold() not in taken and not any(map(os.path.lexists, others)):
            return kept
        number += 1


def _records(folder: Path) -> dict[tuple[str, str], tuple[str, dict[str, Any]]]:
    """The records that are there, with their names, by kind and name of their sources."""
    found: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = _read(path)
        if record is not None:
            kind = "image" if "image" in record else "text"
            found.setdefault((kind, record[kind]), (path.stem, record))
    return found


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None if the file is not ours."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            if f'"format": "{_FORMAT}"'.encode() not in file.read(_HEAD):
                return None
            file.seek(0)
            content = file.read()
    except OSError as error:
        raise OutputError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from error
    try:
        record = json.loads(content)
    except ValueError:
        record = None
    if not _is_whole(record, path.stem):
        raise OutputError(f"{os.fspath(path)!r} is damaged or was renamed: choose another folder with -o")
    return record  # type: ignore[no-any-return]


def _is_whole(record: Any, stem: str) -> bool:
    """Whether a record has all that is read of it, and names no files but its own."""
    if not isinstance(record, dict) or not isinstance(record.get("image", record.get("text")), str):
        return False
    entries = record.get("inversions")
    return isinstance(entries, list) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key, entry), kind) for key, kind in _ENTRY.items())
        and entry["file"] == f"{stem}.{entry['model']}.{entry['seed']}.png"
        and entry["gif"] in (None, f"{stem}.{entry['model']}.{entry['seed']}.gif")
        for entry in entries
    )
