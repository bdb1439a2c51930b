"""`robustsim invert`: pictures made from nothing but embeddings, of images or of texts."""

import hashlib
from collections.abc import Iterator
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output, pictures
from robustsim.errors import ImageError, InputError, OutputError, RobustSimError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from robustsim.cli.pictures import Picture
    from robustsim.explain import InversionStep
    from robustsim.explain.kept import Kept, Source
    from robustsim.metric import RobustSim

_FRAMES = 40  # of a GIF
# Sources at a time, with all of their seeds: on a CPU, more at once gain nothing and are lost together.
_TOGETHER = {"cpu": 1}
_TOGETHER_ELSEWHERE = 8


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
    restart: Annotated[bool, typer.Option("--restart", help="Make anew what is there already.")] = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """What an embedding holds: pictures made from it alone. An interrupted run is continued by the same command."""
    if not images and not text:
        raise typer.BadParameter("give an image, or a text with --text")
    names = list(dict.fromkeys(model or [output.DEFAULT_MODEL]))
    if text:
        _check_text(names, text)

    from filelock import FileLock, Timeout

    from robustsim.explain.inversion import STEPS
    from robustsim.explain.kept import open_kept

    count = STEPS[method.value] if steps is None else steps
    opened = pictures.open_pictures(images or [], encoded=True)
    sources, bad = _sources(opened, text or [])
    lock = out / ".invert.lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            kept = open_kept(out, sources, {"method": method.value, "steps": count}, restart=restart)
            job = _Job(kept, sources, seeds, count, method.value, gif)
            labels: list[str] = []
            for name in names:
                labels.append(job.run(output.load_metric(name, device, text=bool(text)), labels))
            job.draw_sheets(labels)
            lock.unlink(missing_ok=True)
    except Timeout:
        raise OutputError(f"another run is writing into {str(out)!r} at this moment") from None
    except OSError as error:
        if isinstance(error, RobustSimError):
            raise
        raise OutputError(f"cannot write into {str(out)!r}: {error.strerror or error}") from error
    if as_json:
        output.print_json(job.document(labels, bad))
    else:
        job.show(labels)
    output.finish(len(bad), len(kept), strict)


def _check_text(names: list[str], texts: list[str]) -> None:
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
    import os

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
        seeds: int,
        steps: int,
        method: str,
        gif: bool,
    ) -> None:
        self.kept, self.sources, self.seeds, self.steps = kept, sources, seeds, steps
        self.method, self.gif = method, gif
        self._squares: dict[tuple[str, str], Image.Image] = {}
        self._preprocessing: dict[str, Any] = {}

    def run(self, metric: "RobustSim", before: list[str]) -> str:
        """Make what is missing of a model's pictures; what the model is called in their names."""
        from tqdm import tqdm

        from robustsim.encoders.load import image_sha256
        from robustsim.explain.kept import safe_name

        label = safe_name(metric.card.name)
        if label in before:
            raise InputError(f"two of the models are called {label!r} in file names: invert them into two folders")
        self._preprocessing[label] = metric.card.preprocessing
        weights = image_sha256(metric.encoder)
        missing = [
            (one, tuple(s for s in range(self.seeds) if one.done(label, weights, s, gif=self.gif) is None))
            for one in self.kept
        ]
        self._refuse_to_replace(label)
        together = _TOGETHER.get(metric.device.type, _TOGETHER_ELSEWHERE)
        total = sum(len(seeds) for _, seeds in missing) * (self.steps + 1)
        with tqdm(total=total, desc=label, unit=" steps", disable=None if total else True) as bar:
            for seeds, group in groupby(missing, lambda pair: pair[1]):
                rows = [one for one, _ in group]
                for first in range(0, len(rows) if seeds else 0, together):
                    self._make(metric, label, weights, rows[first : first + together], seeds, bar)
        return label

    def _refuse_to_replace(self, label: str) -> None:
        """No picture is written over one that is read."""
        read = {source.name for source in self.sources if source.kind == "image"}
        for one in self.kept:
            for seed in range(self.seeds):
                if str(one.path(label, seed).absolute()) in read:
                    raise OutputError(
                        f"{str(one.path(label, seed))!r} is read and would be overwritten: choose another DIR"
                    )

    def _make(
        self, metric: "RobustSim", label: str, weights: str, group: "list[Kept]", seeds: tuple[int, ...], bar: Any
    ) -> None:
        from robustsim.explain import invert as make

        frames: dict[tuple[int, int], list[Image.Image]] = {}

        def tell(step: "InversionStep") -> bool:
            bar.update(len(step.targets))
            if self.gif and _is_frame(step.step, step.steps):
                for target, seed, image in zip(step.targets.tolist(), step.seeds.tolist(), step.images, strict=True):
                    frames.setdefault((target, seed), []).append(_to_image(image))
            return False

        metric.batch_size = max(metric.batch_size, len(group) * len(seeds))
        options: dict[str, Any] = {"method": self.method, "steps": self.steps, "seeds": seeds, "callback": tell}
        for kind, rows in groupby(group, lambda one: one.source.kind):
            members = list(rows)
            frames.clear()
            if kind == "text":
                found = make(metric, text=[one.source.name for one in members], **options)
            else:
                found = make(metric, [self._picture(one) for one in members], **options)
            for row, one in enumerate(members):
                for column, seed in enumerate(seeds):
                    similarity = float(found.similarity[row, column])
                    image = _to_image(found.images[row, column])
                    one.add(label, weights, seed, similarity, image, frames.get((row, seed), ()))

    def _picture(self, one: "Kept") -> "Picture":
        picture = self.sources[one.source]
        if picture is None:
            raise RuntimeError("a text is no picture")
        return picture

    def entries(self, labels: list[str]) -> "Iterator[tuple[Kept, dict[str, Any]]]":
        """What there is of these models and of the seeds of this run."""
        for one in self.kept:
            for label in labels:
                for entry in one.entries:
                    if entry["model"] == label and entry["seed"] < self.seeds:
                        yield one, entry

    def draw_sheets(self, labels: list[str]) -> None:
        """A contact sheet for each source: a row for each model, the original first."""
        import torch
        from PIL import Image

        from robustsim.explain.panels import rows as rows_of_panels
        from robustsim.images.inputs import load_square, stack_squares

        for one in self.kept:
            entries = [entry for _, entry in self.entries(labels) if _ is one]
            shown = [[entry["model"], entry["seed"], entry["similarity"]] for entry in entries]
            if one.has_sheet(shown):
                continue
            rows = []
            for label, group in groupby(entries, lambda entry: entry["model"]):
                panels = []
                if one.source.kind == "image":
                    square = load_square(self._picture(one), self._preprocessing[label])
                    panels.append((_to_image(stack_squares([square], torch.device("cpu"))[0]), "original"))
                for entry in group:
                    with Image.open(one.folder / entry["file"]) as image:
                        words = f"{label}, seed {entry['seed']}: {entry['similarity']:.3f}"
                        panels.append((image.convert("RGB"), words))
                rows.append(panels)
            title = one.source.name if one.source.kind == "text" else ""
            one.add_sheet(shown, rows_of_panels(rows, title))

    def document(self, labels: list[str], bad: list[Any]) -> dict[str, Any]:
        """All there is to know, for JSON."""
        return {
            "method": self.method,
            "steps": self.steps,
            "models": labels,
            "inversions": [
                {
                    one.source.kind: one.source.name,
                    "model": entry["model"],
                    "seed": entry["seed"],
                    "similarity": entry["similarity"],
                    "file": str(one.folder / entry["file"]),
                    "gif": str(one.folder / entry["gif"]) if entry["gif"] else None,
                }
                for one, entry in self.entries(labels)
            ],
            "sheets": [{one.source.kind: one.source.name, "file": str(one.sheet)} for one in self.kept],
            "failed": bad,
        }

    def show(self, labels: list[str]) -> None:
        """The same for people."""
        cells = []
        for (sheet, label), group in groupby(self.entries(labels), lambda row: (row[0].sheet, row[1]["model"])):
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


def _to_image(pixels: "Tensor") -> "Image.Image":
    """(3, S, S) in [0, 1]."""
    from PIL import Image

    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy())
