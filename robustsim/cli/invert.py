"""`robustsim invert`: pictures made from nothing but embeddings, of images or of texts."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output, pictures
from robustsim.errors import ImageError, InputError, OutputError

if TYPE_CHECKING:
    from PIL import Image

    from robustsim.cli.pictures import Picture
    from robustsim.explain import InversionStep
    from robustsim.explain.kept import Kept, Source
    from robustsim.metric import RobustSim

_FRAMES = 40  # of a GIF
_LOCK = ".invert.lock"


class Method(str, Enum):
    """As `robustsim.explain.invert` has them."""

    apgd = "apgd"
    multiview = "multiview"


def invert(
    out: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write into.")],
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE...]", help="Files; - is standard input.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text to invert, or several; of CLIP models.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A name of `robustsim models`, a Hub id or a folder; several to compare them. "
            f"{output.DEFAULT_MODEL} if not given.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of each, from the seeds 0 to N - 1.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="500 if not given, 1000 for --method multiview.")] = None,
    method: Annotated[
        Method, typer.Option(help="apgd, or multiview: random views, for texts; a step costs 32 times as much.")
    ] = Method.apgd,
    gif: Annotated[bool, typer.Option("--gif", help="Write the way there as well, as moving pictures.")] = False,
    device: output.DeviceOption = None,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """What an embedding holds: pictures made from it alone. An interrupted run is continued by the same command."""
    if not images and not text:
        raise typer.BadParameter("give an image, or a text with --text")
    names = list(dict.fromkeys(model or [output.DEFAULT_MODEL]))
    if text:
        check_text(names, text)

    from robustsim.explain.inversion import STEPS
    from robustsim.explain.kept import open_kept

    count = STEPS[method.value] if steps is None else steps
    opened = pictures.open_pictures(images or [], encoded=True)
    sources, bad = _sources(opened, text or [])
    models = _models(names, device, text=bool(text))
    wanted = [(label, seed) for label in models for seed in range(seeds)]
    _refuse_to_replace([out / _LOCK], sources)
    with _held(out):
        kept = open_kept(out, sources, {"method": method.value, "steps": count}, wanted)
        _refuse_to_replace([path for one in kept for path in one.outputs(wanted)], sources)
        job = _Job(kept, sources, models, wanted, count, method.value, gif)
        job.run()
        job.draw_sheets()
    if as_json:
        output.print_json(job.document(bad))
    else:
        job.show()
    output.finish(len(bad), len(kept), strict)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The folder for this run alone."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / _LOCK, timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OutputError(f"another run is writing into {str(out)!r} at this moment") from None
    except OSError as error:
        raise OutputError(f"cannot write into {str(out)!r}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _models(names: list[str], device: str | None, *, text: bool) -> "dict[str, RobustSim]":
    """All models, by what they are called in the names of files."""
    from robustsim.explain.kept import safe_name

    found: dict[str, RobustSim] = {}
    for name in names:
        metric = output.load_metric(name, device, text=text)
        label = safe_name(metric.card.name)
        if label.casefold() in map(str.casefold, found):  # some systems do not tell A from a
            raise InputError(f"two of the models are called {label!r} in file names: invert them into two folders")
        found[label] = metric
    return found


def _refuse_to_replace(paths: "Sequence[Path]", sources: "dict[Source, Picture | None]") -> None:
    """Nothing is written over what is read, nor over another file of this run."""
    read = {
        _identity(source.name)
        for source, picture in sources.items()
        if source.kind == "image" and not isinstance(picture, bytes)
    }
    seen = set()
    for path in paths:
        if _identity(path) in read:
            raise OutputError(f"{str(path)!r} is read and would be overwritten: choose another folder with -o")
        if str(path).casefold() in seen:
            raise OutputError(f"{str(path)!r} would be written for two pictures: invert them into two folders")
        seen.add(str(path).casefold())


def _identity(path: "str | Path") -> object:
    """The same for all names of a file."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def check_text(names: list[str], texts: list[str]) -> None:
    """Refuse texts for models of the catalogue that know none, before anything is loaded."""
    from robustsim.encoders.card import list_models, load_card

    if not all(text.strip() for text in texts):
        raise typer.BadParameter("a text has nothing in it", param_hint="--text")
    known = list_models()
    for name in names:
        if name in known and load_card(name).architecture.library != "open_clip":
            raise InputError(
                f"{name!r} has no text tower, so it knows no texts: use a CLIP model, such as 'clip-vit-b-32'"
            )


def _sources(opened: "dict[str, Picture]", texts: list[str]) -> "tuple[dict[Source, Picture | None], list[Any]]":
    """What is to be inverted, each once, and the files that cannot be read, which are told."""
    from robustsim.encoders.weights import sha256
    from robustsim.explain.kept import Source
    from robustsim.images import read_image

    found: dict[Source, Picture | None] = {}
    bad: list[dict[str, str]] = []
    for name, picture in opened.items():
        try:
            read_image(picture)
        except ImageError as error:
            output.report_bad(error)
            bad.append({"file": name, "error": str(error)})
            continue
        if isinstance(picture, bytes):
            whole, digest = "standard input", hashlib.sha256(picture).hexdigest()
            if name != pictures.STANDARD_INPUT:
                whole = os.path.abspath(name)
        else:
            whole, digest = os.path.abspath(name), sha256(Path(name))
        found.setdefault(Source("image", whole, digest), picture)
    for text in texts:
        found.setdefault(Source("text", text, hashlib.sha256(text.encode(errors="replace")).hexdigest()), None)
    return found, bad


class _Job:
    """One run of the command."""

    def __init__(
        self,
        kept: "list[Kept]",
        sources: "dict[Source, Picture | None]",
        models: "dict[str, RobustSim]",
        wanted: list[tuple[str, int]],
        steps: int,
        method: str,
        gif: bool,
    ) -> None:
        self.kept, self.sources, self.models, self.wanted = kept, sources, models, wanted
        self.steps, self.method, self.gif = steps, method, gif

    def run(self) -> None:
        """Make the pictures that are missing, one at a time: none depends on what is made beside it."""
        from tqdm import tqdm

        from robustsim.encoders.load import image_sha256

        weights = {label: image_sha256(metric.encoder) for label, metric in self.models.items()}
        # All is looked at before the first search.
        missing = [
            (label, one, seed)
            for label, seed in self.wanted
            for one in self.kept
            if not one.done(label, weights[label], seed, gif=self.gif)
        ]
        for label, group in groupby(missing, lambda row: row[0]):
            rows = list(group)
            with tqdm(total=len(rows) * (self.steps + 1), desc=label, unit=" steps", disable=None) as bar:
                for _, one, seed in rows:
                    self._make(label, weights[label], one, seed, bar)

    def _make(self, label: str, weights: str, one: "Kept", seed: int, bar: Any) -> None:
        from robustsim.explain import invert as make
        from robustsim.images.inputs import to_picture

        frames: list[Image.Image] = []

        def tell(step: "InversionStep") -> bool:
            bar.update()
            if self.gif and _is_frame(step.step, step.steps):
                frames.append(to_picture(step.images[0]))
            return False

        target: dict[str, Any] = (
            {"text": one.source.name} if one.source.kind == "text" else {"target": [self._picture(one)]}
        )
        found = make(
            self.models[label],
            method=self.method,  # type: ignore[arg-type]
            steps=self.steps,
            seeds=[seed],
            callback=tell,
            **target,
        )
        one.add(label, weights, seed, float(found.similarity[0, 0]), to_picture(found.images[0, 0]), frames)

    def _picture(self, one: "Kept") -> "Picture":
        picture = self.sources[one.source]
        if picture is None:
            raise RuntimeError("a text is no picture")
        return picture

    def entries(self) -> "Iterator[tuple[Kept, dict[str, Any]]]":
        """What there is of the models and seeds of this run."""
        wanted = set(self.wanted)
        for one in self.kept:
            for entry in one.entries:
                if (entry["model"], entry["seed"]) in wanted:
                    yield one, entry

    def draw_sheets(self) -> None:
        """A contact sheet of all that there is of each source: a row for each model, the original first."""
        from PIL import ImageOps

        from robustsim.explain.panels import rows as rows_of_panels
        from robustsim.images import read_image

        for one in self.kept:
            entries = [entry for entry in one.entries if (one.folder / entry["file"]).is_file()]
            shown = [[entry["model"], entry["seed"], entry["similarity"]] for entry in entries]
            if one.has_sheet(shown):
                continue
            original = read_image(self._picture(one)) if one.source.kind == "image" else None
            rows = []
            for label, group in groupby(entries, lambda entry: entry["model"]):
                panels = [
                    (one.picture(entry), f"{label}, seed {entry['seed']}: {entry['similarity']:.3f}") for entry in group
                ]
                if original is not None:
                    panels.insert(0, (ImageOps.contain(original, panels[0][0].size), "original"))
                rows.append(panels)
            title = one.source.name if one.source.kind == "text" else ""
            one.add_sheet(shown, rows_of_panels(rows, title))

    def document(self, bad: list[Any]) -> dict[str, Any]:
        """All there is to know, for JSON."""
        return {
            "method": self.method,
            "steps": self.steps,
            "models": list(self.models),
            "inversions": [
                {
                    one.source.kind: one.source.name,
                    "model": entry["model"],
                    "seed": entry["seed"],
                    "similarity": entry["similarity"],
                    "file": str(one.folder / entry["file"]),
                    "gif": str(one.folder / entry["gif"]) if entry["gif"] else None,
                }
                for one, entry in self.entries()
            ],
            "sheets": [{one.source.kind: one.source.name, "file": str(one.sheet)} for one in self.kept],
            "failed": bad,
        }

    def show(self) -> None:
        """The same for people."""
        cells = []
        for (sheet, label), group in groupby(self.entries(), lambda row: (row[0].sheet, row[1]["model"])):
            reached = ", ".join(f"{entry['similarity']:.3f}" for _, entry in group)
            cells.append((str(sheet), label, reached))
        if cells:
            output.print_table(("contact sheet", "model", "similarity reached, by seed"), cells)
            typer.echo(
                "similarity is the cosine of the picture's embedding and of what was inverted: at 1 they are the same "
                "to the model, whatever they look like to you."
            )


def _is_frame(step: int, steps: int) -> bool:
    """Whether one of so many frames, spread evenly over the steps, falls here; the last step is one."""
    count = min(_FRAMES, steps)
    return step * count // steps > (step - 1) * count // steps
