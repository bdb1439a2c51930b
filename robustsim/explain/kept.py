"""Inversions in a folder: for each source some pictures, and a JSON file that says how they were made.

What the JSON names is whole. A run that was interrupted left nothing else that counts, and the next one makes the rest.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from robustsim.encoders.weights import whole_file
from robustsim.errors import OutputError

_FORMAT, _VERSION = "robustsim inversions", 1
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

    def done(self, model: str, weights: str, seed: int, *, gif: bool = False) -> dict[str, Any] | None:
        """The entry of a picture that is there and whole.

        Raises:
            OutputError: it is there, of other weights.
        """
        for entry in self.entries:
            if (entry["model"], entry["seed"]) != (model, seed):
                continue
            if entry["weights"] != weights:
                raise OutputError(
                    f"{os.fspath(self.path(model, seed))!r} was made with other weights of {model!r}: pass --restart "
                    "to make it anew, or choose another folder"
                )
            names = [entry["file"], *([entry["gif"]] if gif else [])]
            return entry if all(name and (self.folder / name).is_file() for name in names) else None
        return None

    def add(
        self,
        model: str,
        weights: str,
        seed: int,
        similarity: float,
        image: Image.Image,
        frames: Sequence[Image.Image] = (),
    ) -> None:
        """Write a picture, and the frames of the way there as a GIF; then say that they are there.

        Raises:
            OutputError: they cannot be written.
        """
        path, moving = self.path(model, seed), self.path(model, seed, "gif")
        with whole_file(path) as temporary:
            image.save(temporary, format="PNG")
        if frames:
            with whole_file(moving) as temporary:
                times = [_FRAME] * (len(frames) - 1) + [_LAST]
                frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
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
        self.save()

    def has_sheet(self, shown: Any) -> bool:
        """Whether the contact sheet is there and shows this."""
        return self.sheet.is_file() and self._record.get("sheet") == shown

    def add_sheet(self, shown: Any, image: Image.Image) -> None:
        """Write the contact sheet, and what it shows."""
        with whole_file(self.sheet) as temporary:
            image.save(temporary, format="PNG")
        self._record["sheet"] = shown
        self.save()

    def save(self) -> None:
        """Write the JSON.

        Raises:
            OutputError: it cannot be written.
        """
        with whole_file(_record_of(self.folder, self.stem)) as temporary:
            temporary.write_text(json.dumps(self._record, indent=2) + "\n", encoding="utf-8")


def open_kept(
    folder: Path, sources: Iterable[Source], parameters: Mapping[str, Any], *, restart: bool = False
) -> list[Kept]:
    """What is there of each source, each under a name of its own, which it keeps in later runs.

    Args:
        folder: made if it is not there.
        sources: none twice.
        parameters: how pictures are made: `method`, `steps`.
        restart: forget what is there of these sources.

    Raises:
        OutputError: what is there of a source was made otherwise, or of another content; or nothing can be written.
    """
    found: list[Kept] = []
    for source in sources:
        stem, record = _place(folder, source, {kept.stem.casefold() for kept in found})
        head = {"format": _FORMAT, "version": _VERSION, source.kind: source.name, "sha256": source.sha256, **parameters}
        if record is not None and restart:
            for entry in record["inversions"]:
                for name in filter(None, (entry["file"], entry["gif"])):
                    with suppress(OSError):
                        (folder / Path(name).name).unlink()
            record = None
        if record is not None:
            for key, value in head.items():
                if record.get(key) != value:
                    told = "its file was another one" if key == "sha256" else f"{key} was {record.get(key)!r}"
                    raise OutputError(
                        f"the inversions of {source.name!r} in {os.fspath(folder)!r} were made otherwise: {told}. Pass "
                        "--restart to make them anew, or choose another folder"
                    )
        kept = Kept(source, folder, stem, record or {**head, "inversions": []})
        if record is None:
            kept.save()
        found.append(kept)
    return found


def _record_of(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.json"


def _place(folder: Path, source: Source, taken: set[str]) -> tuple[str, dict[str, Any] | None]:
    """The name that a source has in the folder, with its record, or the first one that is free."""
    number = 1
    while True:
        stem = source.stem if number == 1 else f"{source.stem}-{number}"
        number += 1
        if stem.casefold() in taken:  # some systems do not tell A from a
            continue
        path = _record_of(folder, stem)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if not (folder / f"{stem}.sheet.png").exists():
                return stem, None
            continue
        except OSError as error:
            raise OutputError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from error
        except UnicodeDecodeError:
            continue
        with suppress(ValueError):
            record = json.loads(text)
            if isinstance(record, dict) and record.get("format") == _FORMAT and record.get(source.kind) == source.name:
                return stem, record
