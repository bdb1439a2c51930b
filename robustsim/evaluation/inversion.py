"""What the embeddings of models hold, judged by models: inversions of photographs (R-CLIP paper, Table VII).

Each model rebuilds each photograph from its own embedding of it alone, and every model says how similar the rebuilt
picture is to the photograph. What is judged is the square that the model was shown and the square that it gave back,
both of 8 bit as somebody would look at them, resized whole to the judge's square where that is another one.
"""

import hashlib
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from robustsim.attacks.engine.modules import undisturbed
from robustsim.attacks.engine.options import number, whole
from robustsim.baselines import Baseline
from robustsim.encoders.weights import whole_file
from robustsim.errors import ImageError, InputError, ObjectiveError, OutputError
from robustsim.evaluation.reports.report import Report, load_report, parquet, write_report
from robustsim.evaluation.running.identity import device_kind, file_hashes, stem, versions
from robustsim.evaluation.running.journal import Journal, discard
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.statistics import mean_of_numbers
from robustsim.evaluation.subjects import Subject, subject
from robustsim.evaluation.tasks.pictures import draw_files
from robustsim.explain.inversion import RADIUS, STEPS, InversionStep, invert
from robustsim.images import Preprocessing
from robustsim.images.files import printable
from robustsim.images.inputs import load_square, stack_squares, to_picture
from robustsim.metric import RobustSim

#: As many as in the paper.
PHOTOGRAPHS = 100
_PART = "rebuilt"
_GREY = 128


@dataclass(frozen=True, eq=False)
class _Generator:
    """A model that rebuilds pictures, what it is called, and the run that its pictures come from."""

    metric: RobustSim
    seen: Subject
    identity: dict[str, Any]
    folder: Path

    def picture(self, place: int) -> Path:
        return self.folder / f"rebuilt-{place:05d}.png"


def evaluate_inversion(
    metrics: "RobustSim | Sequence[RobustSim]",
    folder: "str | os.PathLike[str]",
    *,
    output: "str | os.PathLike[str]",
    judges: "Sequence[RobustSim | Baseline | Subject]" = (),
    photographs: int | None = PHOTOGRAPHS,
    steps: int = STEPS["apgd"],
    radius: float = RADIUS,
    seed: int = 0,
    batch_size: int = 32,
    follow_links: bool = False,
    restart: bool = False,
    progress: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> Report:
    """How similar is what each model gives back of photographs, in the eyes of every model? And write a report.

    [`invert`][robustsim.explain.invert] rebuilds each photograph by APGD from a grey start. Every picture is kept as
    soon as it is made, in a folder beside the report for each model, its name ending in `.pictures`: the same call
    continues from there, and one with other judges, or with another model besides, makes nothing again that is there.
    Started by `accelerate launch`, the processes share the work.

    Two more rows say what is no sign of anything: what a model gave back of *another* photograph, and a grey picture.

    Args:
        metrics: the models that rebuild. Each of them is a judge of all.
        folder: photographs; see `robustsim.images.find_images` for what counts.
        output: a folder for reports, made if it is not there.
        judges: of what was rebuilt, besides: models, which tell a cosine similarity, and baselines, which tell a
            distance in their own units.
        photographs: how many of them, drawn at random; all where it is None or there are fewer.
        steps: of APGD.
        radius: how far from grey a picture may be, in l2, as for `invert`.
        seed: of the draw, of the noise at the start, of which photograph is another's other, and of the resampling.
        batch_size: squares that a judge looks at together.
        follow_links: walk linked folders too.
        restart: forget what an earlier run has done, the pictures of these models included.
        progress: show progress on standard error.
        tell: called with a line for people if files of the folder are passed over.

    Returns:
        The report: `results["matrix"][generated with][judged by]` and likewise `"another"` and `"grey"`, each a mean
        over photographs with its 95 % interval.

    Raises:
        InputError: no model to invert, one named twice, options that do not fit.
        ObjectiveError: a model or judge that gives NaN or infinity.
        ImageError: there is no such folder, no image in it, or not a single one could be read.
        OutputError: the folder cannot be written, or another process is at work on the same run.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet()  # say now what would be missing at the end
    makers = [metrics] if isinstance(metrics, RobustSim) else list(metrics)
    if not makers or not all(isinstance(one, RobustSim) for one in makers):
        raise InputError("inversion needs at least one RobustSim to invert, and nothing else among the metrics")
    if batch_size < 1 or (photographs is not None and photographs < 1):
        raise InputError(f"batch_size and photographs must be at least 1, not {batch_size} and {photographs}")
    steps = whole("steps", steps)
    radius = number("radius", radius, "a number above 0", lambda value: 0 < value < float("inf"))
    root, workers = Path(folder), Workers()
    files, passed_over = draw_files(root, photographs, seed, follow_links=follow_links, tell=tell)
    subjects = [subject(one) for one in (*makers, *judges)]
    named = _named(subjects)
    names = [printable(file) for file in files]
    data = {
        "name": root.resolve().name,
        "root": os.path.abspath(root),
        "description": f"{len(files)} photographs",
        "items": len(files),
        "items_sha256": hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest(),
        **file_hashes(root, [root / file for file in files]),
    }
    search = {"method": "apgd", "steps": steps, "radius": radius}
    common = {"task": "inversion", "data": data, "attack": None, "inversion": search, "seed": seed}
    place = {"versions": versions(), "device": device_kind(named[0].device)}
    generators = []
    for metric, plain, one in zip(makers, subjects, named, strict=False):
        workers.check(one.name, one.device)
        # Under its plain name, which does not depend on who else is there.
        identity = {**common, "metric": {"name": plain.name, **plain.about}, **place}
        generators.append(_Generator(metric, one, identity, Path(output) / f"{stem(identity)}.pictures"))
    identity = {
        **common,
        "metric": {
            "name": ", ".join(one.seen.name for one in generators),
            "generators": [{"name": one.seen.name, **one.seen.about} for one in generators],
            "judges": [{"name": one.name, **one.about} for one in named],
        },
        "batch_size": batch_size,
        **place,
    }
    path = Path(output) / f"{stem(identity)}.json"
    if restart and workers.is_main:
        path.unlink(missing_ok=True)
        for generator in generators:
            discard(generator.folder)
    workers.wait()
    if path.exists() and path.with_suffix(".parquet").exists():
        return load_report(path)
    start = time.perf_counter()
    made = [_rebuild(one, root, files, steps, radius, seed, workers, progress) for one in generators]
    if workers.is_main:
        seconds = {"rebuilding_seconds": round(time.perf_counter() - start, 3)}
        content, columns = _judged(generators, named, root, files, names, made, seed, batch_size)
        content["times"] = {**seconds, "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write_report(path, {**identity, **content, "passed_over": dict(passed_over)}, columns)
    workers.wait()
    return load_report(path)


def _named(subjects: Sequence[Subject]) -> list[Subject]:
    """Under names of which none is there twice: namesakes of other weights have a part of their hash behind them."""
    names = [one.name for one in subjects]
    found = [
        one if names.count(one.name) == 1 else replace(one, name=f"{one.name} ({str(one.about['weights_sha256'])[:6]})")
        for one in subjects
    ]
    if twice := [one.name for place, one in enumerate(found) if one.name in {other.name for other in found[:place]}]:
        raise InputError(f"{twice[0]} is there twice among the models and judges: each model that rebuilds judges, too")
    return found


def _rebuild(
    generator: _Generator,
    root: Path,
    files: Sequence[Path],
    steps: int,
    radius: float,
    seed: int,
    workers: Workers,
    progress: bool,
) -> list[dict[str, Any]]:
    """Make the pictures of one model that are missing, one at a time; for each photograph what was reached, or why
    there is none.
    """
    from tqdm import tqdm

    metric = generator.metric

    def is_done(place: int, journal: Journal) -> bool:
        return journal.is_settled(place, _PART) and generator.picture(place).is_file()

    def is_told(place: int, journal: Journal) -> bool:
        return is_done(place, journal) or "error" in journal.done.get((place, _PART), {})

    with Journal(generator.folder, generator.identity, worker=workers.number) as journal:
        mine = [place for place in range(len(files)) if place % workers.count == workers.number]
        left = [place for place in mine if not is_done(place, journal)]  # what could not be read is tried again
        show = progress and workers.is_main and bool(left)
        with tqdm(total=len(left) * (steps + 1), desc=generator.seen.name, unit=" steps", disable=not show) as bar:

            def step(told: InversionStep) -> bool:
                bar.update()
                return False

            for place in left:
                try:
                    square = load_square(root / files[place], generator.seen.preprocessing)
                except ImageError as error:
                    journal.add(place, _PART, {"error": str(error)})
                    continue
                with torch.no_grad():
                    target = metric.embed_pixels(stack_squares([square], metric.device))
                found = invert(metric, target, steps=steps, radius=radius, seeds=[seed], callback=step)
                with whole_file(generator.picture(place)) as temporary:
                    to_picture(found.images[0, 0]).save(temporary, format="PNG")
                journal.add(place, _PART, {"similarity": float(found.similarity)})
        workers.wait()
        journal.read_all()
        if workers.is_main and (missing := sum(not is_told(place, journal) for place in range(len(files)))):
            raise OutputError(
                f"{missing} pictures of the run are missing: did its processes work on devices of several kinds? The "
                "same command continues"
            )
        return [journal.done.get((place, _PART), {}) for place in range(len(files))]


def _judged(
    generators: Sequence[_Generator],
    judges: Sequence[Subject],
    root: Path,
    files: Sequence[Path],
    names: Sequence[str],
    made: "Sequence[Sequence[dict[str, Any]]]",
    seed: int,
    batch_size: int,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The results and what was skipped for the report, and its columns: a row for each model and photograph."""
    # A picture may be one for the one model and none for the other, as where a crop makes a thread of it a picture.
    failed = {place: one["error"] for found in made for place, one in enumerate(found) if "error" in one}
    errors = dict(sorted(failed.items()))
    read = [place for place in range(len(files)) if place not in errors]
    if not read:
        raise ImageError(f"not a single photograph could be read; the first: {next(iter(errors.values()))}")
    others = _others(len(read), seed)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "group", "cluster", "answer", "error", "other", "reached", "picture")
    }
    measures = [_measure(judge) for judge in judges]
    for name in ("matrix", "another", "grey"):
        columns.update({f"{name} {judge.name}": [] for judge in judges})
    results: dict[str, Any] = {
        "judges": {judge.name: measure for judge, measure in zip(judges, measures, strict=True)},
        **{name: {} for name in ("reached", "matrix", "another", "grey")},
    }
    for generator, found in zip(generators, made, strict=True):
        own = generator.seen.name
        shown = [load_square(root / files[place], generator.seen.preprocessing) for place in read]
        rebuilt = [_square(generator.picture(place)) for place in read]
        scores: dict[str, dict[str, Any]] = {"matrix": {}, "another": {}, "grey": {}}
        for judge in judges:
            with torch.no_grad(), undisturbed([one for one in (judge.embed, judge.distance) if one is not None]):
                a, b = (_looked_at(judge, squares, batch_size) for squares in (shown, rebuilt))
                grey = _looked_at(judge, [torch.full_like(shown[0], _GREY)], batch_size)
                scores["matrix"][judge.name] = _scores(judge, a, b, range(len(read)), batch_size)
                scores["another"][judge.name] = _scores(judge, a, b, others, batch_size)
                scores["grey"][judge.name] = _scores(judge, a, grey, [0] * len(read), batch_size)
        results["reached"][own] = _mean([found[place]["similarity"] for place in read], seed)
        for name, by_judge in scores.items():
            results[name][own] = {judge: _mean(values, seed) for judge, values in by_judge.items()}
        row_of = {place: row for row, place in enumerate(read)}
        for place, photograph in enumerate(names):
            row = row_of.get(place)
            columns["id"].append(f"{own} {photograph}")
            columns["group"].append(own)
            columns["cluster"].append(photograph)
            columns["answer"].append(0.0)
            columns["error"].append(errors.get(place))
            columns["other"].append(names[read[others[row]]] if row is not None and others else None)
            columns["reached"].append(None if row is None else found[place]["similarity"])
            columns["picture"].append(None if row is None else _relative(generator, place))
            for name, by_judge in scores.items():
                for judge_name, values in by_judge.items():
                    columns[f"{name} {judge_name}"].append(values[row] if row is not None and values else None)
    skipped = [{"id": names[place], "error": error} for place, error in errors.items()]
    return {"results": results, "skipped": skipped}, columns


def _others(count: int, seed: int) -> list[int]:
    """For each photograph another one, each once, at random: a single cycle. Nothing for a single photograph."""
    if count < 2:
        return []
    order = random.Random(seed).sample(range(count), count)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[place] for place in range(count)]


def _relative(generator: _Generator, place: int) -> str:
    return f"{generator.folder.name}/{generator.picture(place).name}"


def _measure(judge: Subject) -> str:
    return "similarity" if judge.cosine else "distance"


def _square(path: Path) -> Tensor:
    """A rebuilt picture, uint8 (S, S, 3)."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def _looked_at(judge: Subject, squares: Sequence[Tensor], batch_size: int) -> "Tensor | list[Tensor]":
    """Squares as a judge compares them: their embeddings (n, D), or of a metric of pairs, squares of its size."""
    whole = Preprocessing(size=judge.preprocessing.size, mode="squash")
    fitting = [
        square if len(square) == whole.size else load_square(Image.fromarray(square.numpy()), whole)
        for square in squares
    ]
    if judge.embed is None:
        return fitting
    return torch.cat(
        [
            judge.embed(stack_squares(fitting[first : first + batch_size], judge.device))
            for first in range(0, len(fitting), batch_size)
        ]
    )


def _scores(
    judge: Subject,
    originals: "Tensor | list[Tensor]",
    rebuilt: "Tensor | list[Tensor]",
    order: Sequence[int],
    batch_size: int,
) -> list[float]:
    """How similar, or how far from each other, each original and the rebuilt picture at its place in the order are."""
    found: list[float] = []
    for first in range(0, len(order), batch_size):
        rows = range(first, min(first + batch_size, len(order)))
        a, b = (
            side[places] if isinstance(side, Tensor) else stack_squares([side[one] for one in places], judge.device)
            for side, places in ((originals, list(rows)), (rebuilt, [order[row] for row in rows]))
        )
        values = F.cosine_similarity(a.float(), b.float()).clamp(-1, 1) if judge.cosine else judge.distance(a, b)
        if not bool(torch.isfinite(values).all()):
            raise ObjectiveError(f"{judge.name} gives NaN or infinity for photographs {first} to {rows[-1]}")
        found += values.float().tolist()
    return found


def _mean(values: Sequence[float], seed: int) -> Mapping[str, Any] | None:
    """With its interval over photographs, for JSON; None where there is nothing."""
    if not values:
        return None
    return mean_of_numbers(np.array(values), seed=seed).to_dict()
