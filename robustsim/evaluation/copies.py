"""Which copies of photographs a metric finds, after edits and under attack, at a rate of false positives."""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustsim.attacks.engine.modules import undisturbed
from robustsim.attacks.engine.region import Norm
from robustsim.data.items import Preprocess
from robustsim.errors import InputError
from robustsim.evaluation.impostors import draw_photographs, limit_of, limits_of_draws, shares_of_draws
from robustsim.evaluation.reports.report import Report, load_report, parquet, write_report
from robustsim.evaluation.running.copying import UNCHANGED, Copying
from robustsim.evaluation.running.escape import EscapePlan
from robustsim.evaluation.running.identity import device_kind, file_hashes, versions
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.place import place_of
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.statistics import Array, share_of_draws
from robustsim.evaluation.subjects import subject
from robustsim.evaluation.tails import copies_named
from robustsim.evaluation.tasks.distortions import check_changes
from robustsim.evaluation.tasks.pictures import draw_files
from robustsim.images.files import printable

#: Twelve edits, each in some amounts; what these are, `robustsim.evaluation.tasks.distortions.change` says.
EDITS: Mapping[str, tuple[float, ...]] = {
    "jpeg": (50, 20, 10),
    "resize": (0.5, 0.25, 0.125),
    "crop": (0.9, 0.7, 0.5),
    "blur": (1, 2, 4),
    "noise": (0.05, 0.1, 0.2),
    "brightness": (0.6, 1.5, 2),
    "contrast": (0.75, 0.5, 0.25),
    "saturation": (2, 0.5, 0),
    "rotation": (2, 5, 15),
    "mirror": (1,),
    "caption": (0.1, 0.2, 0.3),
    "border": (0.05, 0.1, 0.2),
}
RATES = (1e-4, 1e-5)
CLEAN = "clean"


def evaluate_copies(
    metric: Any,
    folder: "str | os.PathLike[str]",
    *,
    output: "str | os.PathLike[str]",
    edits: Mapping[str, Sequence[float]] = EDITS,
    rates: Sequence[float] = RATES,
    photographs: int | None = None,
    pairs: int = 100_000,
    same: "str | os.PathLike[str] | None" = None,
    eps: "Sequence[str]" = (),
    norm: Norm = "linf",
    steps: int = 100,
    attacked: int | None = 100,
    preprocess: Preprocess = "card",
    seed: int = 0,
    batch_size: int = 32,
    follow_links: bool = False,
    restart: bool = False,
    progress: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> Report:
    """The share of edited copies that are found, by edit and amount, clean and under attack, and write a report.

    A copy is found if it is nearer to its photograph than the threshold, which is the exact quantile of the distances
    between different photographs for each rate: of all their pairs, or for a metric without embeddings of `pairs` drawn
    at random. Photographs of the same pixels count as one; so do those that `same` names. Where there are too few pairs
    to say a rate, the threshold is the nearest of them, and the report says so.

    Copies are made of the photograph brought to 512 pixels on its longer side, where that is more. Under attack, each
    copy is moved as far as possible from its photograph by all steps of APGD within the radius, on the square that the
    metric looks at; the attacker may leave it as it is.

    What is done is kept in a folder beside the report, its name ending in `.partial`: the same call continues from
    there. Started by `accelerate launch`, the processes share the work.

    Args:
        metric: a [`RobustSim`][robustsim.RobustSim], a baseline such as `phash`, or what
            [`load_metric`][robustsim.evaluation.load_metric] returned.
        folder: photographs, none of which is a copy of another; see `robustsim.images.find_images` for what counts.
        output: a folder for reports, made if it is not there.
        edits: amounts by kind of edit, each within the kind's range; `EDITS` if not given.
        rates: of false positives, each above 0 and below 1.
        photographs: so many of them, drawn at random; all if None.
        pairs: of different photographs that a metric without embeddings compares.
        same: a table (CSV) of copies in the folder, with the columns `file` and `same_as`.
        eps: radii such as `4/255`, for figures under attack each.
        norm: of the radii: `linf`, `l2` or `l1`.
        steps: of APGD.
        attacked: the copies of so many photographs are attacked; of all if None.
        preprocess: how a picture becomes the metric's square: `card` as its card says, `squash` whole and bilinear.
        seed: of all draws, of noise and directions of edits, of attacks and of the resampling.
        batch_size: pictures per encoding and attack.
        follow_links: walk linked folders too.
        restart: forget what an earlier run has done.
        progress: show progress on standard error.
        tell: called with a line for people if files of the folder are passed over.

    Returns:
        The report: `results["limits"]` are the thresholds, `results["clean"]` and each of `results["adversarial"]` hold
        for each rate (`0.0001`) the share of all copies and by edit (`jpeg 20`). Their 95 % intervals draw photographs,
        and the threshold anew from each draw.

    Raises:
        InputError: fewer than two different photographs, options that do not fit, an amount out of its kind's range.
        DataError: the table of copies is none, or names what is not there.
        ObjectiveError: a metric that gives NaN or infinity.
        ImageError: there is no such folder, or no image in it that can be read.
        OutputError: the folder cannot be written, or another process is at work on the same run.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet()  # say now what would be missing at the end
    if min(batch_size, pairs, photographs or 1, attacked or 1) < 1 or 0 in (photographs, attacked):
        raise InputError("batch_size, pairs, photographs and attacked must be at least 1")
    check_changes(edits)
    if not rates or not all(0 < rate < 1 for rate in rates) or not any(edits.values()):
        raise InputError("copies need an edit with an amount, and rates of false positives above 0 and below 1")
    plan, root = EscapePlan(eps=eps, norm=norm, steps=steps), Path(folder)
    one, workers = subject(metric).seeing(preprocess), Workers()
    files, passed_over = draw_files(root, photographs, seed, follow_links=follow_links, tell=tell)
    links = copies_named(None if same is None else Path(same), root)
    names = [printable(file) for file in files]
    hurt = len(files) if attacked is None else min(attacked, len(files))
    identity = {
        "task": "copies",
        "metric": {"name": one.name, **one.about},
        "data": {
            "name": root.resolve().name,
            "root": os.path.abspath(root),
            "description": f"{len(files)} photographs",
            "items": len(files),
            "items_sha256": hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest(),
            **file_hashes(root, [root / file for file in files]),
        },
        "copies": {
            "edits": {kind: [float(amount) for amount in amounts] for kind, amounts in edits.items()},
            "rates": [float(rate) for rate in rates],
            "pairs": None if one.embed is not None else pairs,
            "same_sha256": hashlib.sha256(repr(links).encode()).hexdigest() if links else None,
        },
        "preprocessing": {"rule": preprocess, **asdict(one.preprocessing)},
        "attack": None,  # no decision is judged
        "adversarial": plan.to_dict(),
        "attacked": hurt if plan.eps else 0,
        "seed": seed,
        "batch_size": batch_size,
        "versions": versions(),
        "device": device_kind(one.device),
    }
    path, partial, is_done = place_of(output, identity, workers, restart=restart)
    if is_done:
        return load_report(path)
    workers.check(one.name, one.device)
    behind = [function for function in (one.embed, one.distance) if function is not None]
    with Journal(partial, identity, worker=workers.number) as journal, undisturbed(behind):
        work = Copying(one, root, files, edits, plan, hurt, seed, batch_size)
        work.do(journal, workers, pairs=pairs, links=links, progress=progress and workers.is_main)
        if workers.is_main:
            content, columns = _summary(work, journal, rates, seed)
            write_report(path, {**identity, **content, "passed_over": dict(passed_over)}, columns)
        workers.wait()
        if workers.is_main:
            journal.remove()
    return load_report(path)


@dataclass(frozen=True)
class _Found:
    """Distances of copies, (photographs, labels), NaN where there is none, and what they are judged by."""

    labels: Sequence[str]
    limit: float
    limits: Array
    times: Array

    def figures(self, distances: Array) -> dict[str, Any]:
        """The share that is found of all edits together, and of each."""
        draws = {name: shares_of_draws(distances[:, n], self.limits, self.times) for n, name in enumerate(self.labels)}
        return {
            "all": self._interval(distances[:, 1:], np.mean([draws[name] for name in self.labels[1:]], axis=0)),
            "edits": {name: self._interval(distances[:, n : n + 1], draws[name]) for n, name in enumerate(self.labels)},
        }

    def _interval(self, distances: Array, draws: Array) -> dict[str, Any] | None:
        known = ~np.isnan(distances)
        if not known.any():
            return None
        share = float((distances[known] < self.limit).mean())
        return share_of_draws(share, draws, int(known.sum()), units=int(known.any(1).sum())).to_dict()


def _summary(
    work: Copying, journal: Journal, rates: Sequence[float], seed: int
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The results and what was skipped for the report, and its columns: a row for each photograph and edit."""
    errors, read, labels = work.unread, work.read, work.labels
    names = [printable(file) for file in work.files]
    near, is_drawn = work.impostors(journal)
    parts = [CLEAN, *work.plan.eps]
    distances = {part: work.distances(journal, part) for part in parts}
    times = draw_photographs(len(read), seed)
    limits = {rate: limit_of(near, rate) for rate in rates}
    rows = [(place, label) for place in range(len(names)) for label in range(len(labels))]
    columns: dict[str, list[Any]] = {
        "id": [f"{names[place]} {labels[label]}" for place, label in rows],
        "group": [labels[label] for _, label in rows],
        "cluster": [names[place] for place, _ in rows],
        "answer": [0.0] * len(rows),
        "error": [errors.get(place) for place, _ in rows],
    }
    row_of = {place: row for row, place in enumerate(read)}
    figures: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for part in parts:
        aside = "" if part == CLEAN else f" {part}"
        found = [float(distances[part][row_of[place], label]) if place in row_of else np.nan for place, label in rows]
        columns[f"distance{aside}"] = [None if np.isnan(far) else far for far in found]
        for rate, limit in limits.items():
            # The unchanged copy is in the table, and no edit.
            columns[f"found {rate:g}{aside}"] = [
                None if np.isnan(far) or not label else float(far < limit.distance)
                for far, (_, label) in zip(found, rows, strict=True)
            ]
    for rate, limit in limits.items():
        judge = _Found(labels, limit.distance, limits_of_draws(near, rate, times, drawn=is_drawn), times)
        figures[CLEAN][f"{rate:g}"] = judge.figures(distances[CLEAN])
        for eps in work.plan.eps:
            hurt = ~np.isnan(distances[eps])
            figures[eps][f"{rate:g}"] = {
                **judge.figures(distances[eps]),
                "before": judge.figures(np.where(hurt, distances[CLEAN], np.nan))["all"],
            }
    nearest = zip(near.left[:20], near.right[:20], near.distances[:20], strict=True)
    return {
        "results": {
            "limits": [limit.to_dict() for limit in limits.values()],
            CLEAN: figures[CLEAN],
            "adversarial": [{"norm": work.plan.norm, "eps": eps, **figures[eps]} for eps in work.plan.eps],
        },
        "labels": list(labels),
        "unchanged": UNCHANGED,
        "nearest": [
            {"a": names[read[int(a)]], "b": names[read[int(b)]], "distance": float(far)} for a, b, far in nearest
        ],
        "skipped": [{"id": names[place], "error": error} for place, error in sorted(errors.items())],
        "times": {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }, columns
