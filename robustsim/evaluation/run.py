"""Run a task on a metric: one pass over the questions, continued after any interruption, to the same figures."""

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from robustsim import __version__
from robustsim.attacks.modules import undisturbed
from robustsim.errors import ImageError, InputError, ObjectiveError, OutputError
from robustsim.evaluation import statistics
from robustsim.evaluation.journal import Journal, discard
from robustsim.evaluation.pictures import Gallery, Picture, Seen
from robustsim.evaluation.plan import AttackPlan
from robustsim.evaluation.reports import Report, load_report, parquet, write_report
from robustsim.evaluation.subjects import Subject, subject
from robustsim.evaluation.tasks import Task, accuracies, codes
from robustsim.evaluation.workers import Workers

# Numbers that a comparison of embeddings holds at once: 64 MB of each side.
_MOST_NUMBERS = 2**24
_CLEAN = "clean"
# What is found of an item under attack.
_FOUND = ("holds", "broken_by", "queries", "gradients", "no_gradient")
# Characters of a name that go into that of a file.
_LONGEST = 50


@dataclass(frozen=True)
class _Chunk:
    """Questions that are worked on, and kept, together.

    Attributes:
        number: which one it is.
        start: how many questions come before it.
        questions: their places in the task.
        attacked: whether they are.
    """

    number: int
    start: int
    questions: tuple[int, ...]
    attacked: bool

    @property
    def places(self) -> range:
        """Where its questions are in the order of all chunks."""
        return range(self.start, self.start + len(self.questions))


def evaluate(
    metric: Any,
    task: Task,
    *,
    output: "str | os.PathLike[str]",
    attack: AttackPlan | None = None,
    seed: int = 0,
    batch_size: int = 32,
    restart: bool = False,
    progress: bool = False,
) -> Report:
    """Judge a metric, and write a report.

    Each picture is encoded once. What is done is kept in a folder beside the report, its name ending in ``.partial``;
    the same call continues from there, and one whose report is there already returns that. Started by ``accelerate
    launch``, the processes share the work.

    Args:
        metric: a :class:`robustsim.RobustSim`, a baseline, or what :func:`load_metric` returned.
        task: see :mod:`robustsim.evaluation.questions` and :func:`distortion_ladder`.
        output: a folder for reports, made if it is not there.
        attack: also attack the metric's right decisions.
        seed: of the draw of attacked items, of the attacks and of the resampling.
        batch_size: pictures per encoding, and items per attack.
        restart: forget what an earlier run has done.
        progress: show progress on standard error.

    Returns:
        The report.

    Raises:
        InputError: a task that cannot be attacked in that way; a metric that does not give one distance for each pair.
        ObjectiveError: a metric that gives NaN.
        ImageError: not a single item could be read.
        OutputError: the folder cannot be written, or another process is at work on the same run.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet()  # say now what would be missing at the end
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    if attack is not None and not task.perturbable:
        raise InputError(f"{task.name} has no decisions that an attack could turn: leave the attack out")
    if attack is not None and attack.perturb not in (None, *task.perturbable):
        raise InputError(
            f"perturb={attack.perturb!r} is none of {', '.join(task.perturbable)}, as {task.name} has them"
        )
    one, workers = subject(metric), Workers()
    run = _Run(one, task, attack, seed, batch_size)
    path = Path(output) / f"{run.stem}.json"
    folder = path.with_suffix(".partial")
    if restart and workers.is_main:
        path.unlink(missing_ok=True)
        discard(folder)
    workers.wait()
    if path.exists():
        if workers.is_main:
            discard(folder)  # of a run that was killed after its report was written
        return load_report(path)
    if workers.device is not None and workers.device.type == "cuda" and one.device != workers.device:
        raise InputError(
            f"{one.name} is on {one.device}, and this process should work on {workers.device}: load it there"
        )
    with Journal(folder, run.journal_identity(), worker=workers.number) as journal:
        run.work(journal, workers, progress and workers.is_main)
        workers.wait()
        if workers.is_main:
            journal.read_all()
            run.check(journal)
            write_report(path, *run.summary(journal))
        workers.wait()
        if workers.is_main:
            journal.remove()
    return load_report(path)


class _Run:
    """One metric on one task."""

    def __init__(self, metric: Subject, task: Task, plan: AttackPlan | None, seed: int, batch_size: int) -> None:
        self.metric, self.task, self.plan, self.seed, self.batch_size = metric, task, plan, seed, batch_size
        self.perturb = (plan and plan.perturb) or next(iter(task.perturbable), "")
        everything = range(len(task.questions))
        attacked: list[int] = []
        if plan is not None:
            attacked = [place for place in everything if task.attackable(task.questions[place])]
            if plan.attacked is not None and plan.attacked < len(attacked):
                attacked = sorted(Random(seed).sample(attacked, plan.attacked))
        taken = set(attacked)
        # The attacked ones first, so that they fill their chunks.
        parts = [(attacked, True), ([place for place in everything if place not in taken], False)]
        split = [
            (tuple(part[start : start + batch_size]), is_attacked)
            for part, is_attacked in parts
            for start in range(0, len(part), batch_size)
        ]
        starts = accumulate((len(questions) for questions, _ in split), initial=0)
        self.chunks = [
            _Chunk(number, start, *both) for number, (start, both) in enumerate(zip(starts, split, strict=False))
        ]
        self.attacked = attacked
        self.identity = self._identify()
        short = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        named = (task.name, str(task.data.get("name", "data")), metric.name)
        readable = (re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:_LONGEST] for name in named)
        self.stem = "-".join([*filter(None, readable), short])

    # -- what it is

    def _identify(self) -> dict[str, Any]:
        questions = hashlib.sha256()
        for question in self.task.questions:
            shown = (f"{self._name(picture.path)}\1{picture.variant}" for picture in question.pictures)
            fields = (question.id, repr(question.answer), question.group, question.cluster, repr(question.duel), *shown)
            questions.update("\0".join(fields).encode("utf-8", "surrogateescape") + b"\n")
        sizes, stamps, count = self._files()
        return {
            "task": self.task.name,
            "metric": {"name": self.metric.name, **self.metric.about},
            "data": {
                **self.task.data,
                "items": len(self.task.questions),
                "items_sha256": questions.hexdigest(),
                "files": count,
                "files_sha256": sizes,
                "stamps_sha256": stamps,
            },
            "attack": None if self.plan is None else {**self.plan.to_dict(), "perturb": self.perturb},
            "attacked": len(self.attacked),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "versions": _versions(),
            "device": _device(self.metric.device),
        }

    def _name(self, path: Path) -> str:
        root = Path(self.task.data.get("root", "."))
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()

    def _files(self) -> tuple[str, str, int]:
        """Hash of the files' names and sizes, hash of their times of change besides, and how many there are."""
        paths = sorted({picture.path for question in self.task.questions for picture in question.pictures})
        sizes, stamps = hashlib.sha256(), hashlib.sha256()
        for path in paths:
            try:
                stat = path.stat()
                size, changed = stat.st_size, stat.st_mtime_ns
            except OSError:  # whoever reads it will tell why
                size = changed = -1
            name = os.fsencode(self._name(path))
            sizes.update(name + f"\0{size}\n".encode())
            stamps.update(name + f"\0{size} {changed}\n".encode())
        return sizes.hexdigest(), stamps.hexdigest(), len(paths)

    def journal_identity(self) -> dict[str, Any]:
        """What an interrupted run must have been to be continued."""
        found: dict[str, Any] = json.loads(json.dumps(self.identity))
        return found

    def parts(self, chunk: _Chunk) -> list[str]:
        """The names of what is to be done on a chunk."""
        return [_CLEAN, *(self.plan.radii if self.plan is not None and chunk.attacked else ())]

    # -- the work

    def work(self, journal: Journal, workers: Workers, progress: bool) -> None:
        """Do what is left for this process."""
        mine = [chunk for chunk in self.chunks if chunk.number % workers.count == workers.number]
        open_ = [chunk for chunk in mine if any((chunk.number, part) not in journal.done for part in self.parts(chunk))]
        places = self.task.attacked_places
        pictures: set[Picture] = {
            self.task.questions[item].pictures[place]
            for item in self.attacked
            for place in places(self.task.questions[item], self.perturb)
        }
        gallery = Gallery(
            self.metric,
            [self.task.questions[item].pictures for chunk in self.chunks for item in chunk.questions],
            [place for chunk in open_ for place in chunk.places],
            attacked=pictures,
            batch_size=self.batch_size,
        )
        behind = [function for function in (self.metric.embed, self.metric.distance) if function is not None]
        bars = _Bars(self.parts, mine, journal, workers.count) if progress else None
        with undisturbed(behind):
            for chunk in open_:
                self._one(chunk, journal, gallery, bars)
        if bars is not None:
            bars.close()

    def check(self, journal: Journal) -> None:
        """Refuse to write a report of which something is missing."""
        missing = [one for chunk in self.chunks for one in self._keys(chunk) if one not in journal.done]
        if missing:
            raise OutputError(
                f"{len(missing)} parts of the run are missing: did its processes work on devices of several kinds? The "
                "same command continues"
            )

    def _keys(self, chunk: _Chunk) -> list[tuple[int, str]]:
        return [(chunk.number, part) for part in self.parts(chunk)]

    def _one(self, chunk: _Chunk, journal: Journal, gallery: Gallery, bars: "_Bars | None") -> None:
        seen = [gallery.take(place) for place in chunk.places]
        for number, part in self._keys(chunk):
            if (number, part) in journal.done:
                continue
            begun = time.perf_counter()
            if part == _CLEAN:
                found = self._clean(chunk, seen)
            else:
                found = self._attack(chunk, seen, journal.done[number, _CLEAN]["distances"], part)
            journal.add(number, part, {**found, "seconds": time.perf_counter() - begun})
            if bars is not None:
                bars.update(chunk)

    def _clean(self, chunk: _Chunk, seen: "Sequence[Sequence[Seen | ImageError]]") -> dict[str, Any]:
        """Distances of each question's pairs, None where a picture cannot be read, and why."""
        errors = {row: str(bad) for row, shown in enumerate(seen) for bad in shown if isinstance(bad, ImageError)}
        good = [row for row in range(len(seen)) if row not in errors]
        distances: list[list[float] | None] = [None] * len(seen)
        readable = [_alike([one for one in seen[row] if isinstance(one, Seen)]) for row in good]
        columns = [self._distances([(row[a], row[b]) for row in readable]) for a, b in self.task.pairs]
        for row, values in zip(good, zip(*columns, strict=True), strict=True):
            distances[row] = list(values)
        for item, found in zip(chunk.questions, distances, strict=True):
            bad = [value for value in found or () if not np.isfinite(value)]
            if bad:
                raise ObjectiveError(
                    f"{self.metric.name} gives {bad[0]} for the item {self.task.questions[item].id!r}: to be judged, a "
                    "metric needs finite distances, those of identical pictures included"
                )
        return {"distances": distances, "errors": {str(row): text for row, text in errors.items()}}

    def _distances(self, pairs: "Sequence[tuple[Seen, Seen]]") -> list[float]:
        if not pairs:
            return []
        step, found = max(1, _MOST_NUMBERS // pairs[0][0].code.numel()), []
        for start in range(0, len(pairs), step):
            part = pairs[start : start + step]
            with torch.no_grad():
                d = self.metric.distance(
                    codes(self.metric, [a for a, _ in part]), codes(self.metric, [b for _, b in part])
                )
            if d.shape != (len(part),):
                raise InputError(
                    f"{self.metric.name} gives distances of shape {tuple(d.shape)} for {len(part)} pairs: it must be "
                    f"({len(part)},)"
                )
            found += d.float().tolist()
        return found

    def _attack(
        self, chunk: _Chunk, seen: "Sequence[Sequence[Seen | ImageError]]", clean: list[Any], eps: str
    ) -> dict[str, Any]:
        """For each question that is right without attack: whether it holds, what broke it, and what that cost."""
        plan, task = self.plan, self.task
        if plan is None:
            raise RuntimeError("nothing is planned")
        count = len(chunk.questions)
        found: dict[str, list[Any]] = {name: [None] * count for name in _FOUND}
        questions = [task.questions[item] for item in chunk.questions]
        rows = [
            row for row in range(count) if clean[row] is not None and task.right(np.array(clean[row]), questions[row])
        ]
        if not rows:
            return found
        shown = [[one for one in seen[row] if isinstance(one, Seen)] for row in rows]
        spread = max(max(clean[row]) - min(clean[row]) for row in rows) or 1.0
        metric = self.metric.in_units_of(spread)
        objective = task.objective(metric, [questions[row] for row in rows], shown, self.perturb, plan.loss)
        standing = torch.arange(len(rows), device=self.metric.device)
        costs = {name: torch.zeros(len(rows), dtype=torch.int64) for name in ("queries", "gradients")}
        points = objective.images
        for name in plan.names:
            if not len(standing):
                break
            one = plan.make(name, eps, seed=self.seed * 1_000_003 + chunk.number)
            part = objective if len(standing) == len(rows) else objective.select(standing)
            result = one(part, objective.images[standing])
            costs["queries"][standing.cpu()] += result.queries.cpu()
            costs["gradients"][standing.cpu()] += result.gradients.cpu()
            if result.success is None:
                raise RuntimeError(f"{name} does not tell success")
            for place in standing[result.success].tolist():
                found["broken_by"][rows[place]] = name
            standing, points = standing[~result.success], result.images[~result.success]
        if len(standing) and plan.follows_gradients:
            for place in standing[_flat(objective.select(standing), points)].tolist():
                found["no_gradient"][rows[place]] = True
        for place, row in enumerate(rows):
            found["holds"][row] = found["broken_by"][row] is None
            for name, cost in costs.items():
                found[name][row] = int(cost[place])
        return found

    # -- the report

    def summary(self, journal: Journal) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """The report's content and its columns."""
        questions, task = self.task.questions, self.task
        columns: dict[str, list[Any]] = {
            "id": [question.id for question in questions],
            "group": [question.group for question in questions],
            "cluster": [question.cluster or question.id for question in questions],
            "answer": [float(question.answer) for question in questions],
            **{name: [None] * len(questions) for name in (*task.distance_names, "score", "error")},
        }
        seconds = {_CLEAN: 0.0, "attack": 0.0}
        for chunk in self.chunks:
            found = journal.done[chunk.number, _CLEAN]
            seconds[_CLEAN] += found["seconds"]
            for row, item in enumerate(chunk.questions):
                columns["error"][item] = found["errors"].get(str(row))
                for place, name in enumerate(task.distance_names):
                    if found["distances"][row] is not None:
                        columns[name][item] = found["distances"][row][place]
            if self.plan is not None:
                column = columns.setdefault("attacked", [False] * len(questions))
                for item in chunk.questions:
                    column[item] = chunk.attacked
            for eps in self.parts(chunk)[1:]:
                found = journal.done[chunk.number, eps]
                seconds["attack"] += found["seconds"]
                for name in _FOUND:
                    column = columns.setdefault(f"{name} {eps}", [None] * len(questions))
                    for row, item in enumerate(chunk.questions):
                        column[item] = found[name][row]
        read = [item for item in range(len(questions)) if columns["error"][item] is None]
        if not read:
            raise ImageError(f"not a single item could be read; the first: {columns['error'][0]}")
        asked = [questions[item] for item in read]
        distances = np.array([[columns[name][item] for name in task.distance_names] for item in read])
        for item, score in zip(read, task.scores(distances, asked).tolist(), strict=True):
            columns["score"][item] = None if np.isnan(score) else score
        arrays = {
            name: np.array([columns[name][item] for item in read], dtype=dtype)
            for name, dtype in (
                ("group", object), ("cluster", object), ("answer", float), ("score", float),
                *((name, float) for name in task.distance_names),
            )
        }  # fmt: skip
        results = task.results(arrays, seed=self.seed)
        if self.plan is not None:
            results["robust"] = [self._robust(eps, columns, read, arrays) for eps in self.plan.radii]
        bad = [{"id": columns["id"][item], "error": error} for item, error in enumerate(columns["error"]) if error]
        content = {
            **self.identity,
            "results": results,
            "skipped": bad,
            "times": {**{f"{name}_seconds": round(value, 3) for name, value in seconds.items()}, "written": _now()},
        }
        return content, columns

    def _robust(self, eps: str, columns: Any, read: list[int], arrays: Any) -> dict[str, Any]:
        """Figures under attack, over the attacked items that could be read."""
        plan, taken = self.plan, set(self.attacked)
        if plan is None:
            raise RuntimeError("nothing is planned")
        rows = np.array([row for row, item in enumerate(read) if item in taken], dtype=int)
        part = {name: column[rows] for name, column in arrays.items()}
        held, broken, flat = (
            [columns[f"{name} {eps}"][read[row]] for row in rows] for name in ("holds", "broken_by", "no_gradient")
        )
        holds = np.array([one is True for one in held], dtype=float)
        right = np.array([one is not None for one in held], dtype=float)
        if not len(holds):
            return {"norm": plan.norm, "eps": eps, "n": 0}
        return {
            "norm": plan.norm,
            "eps": eps,
            "n": len(holds),
            "clean": statistics.mean_interval(right, clusters=part["cluster"], seed=self.seed).to_dict(),
            **accuracies(holds, part, seed=self.seed),
            "broken_by": {name: broken.count(name) for name in plan.names},
            "no_gradient": flat.count(True),
        }


def _alike(seen: "list[Seen]") -> "list[Seen]":
    """Pictures of equal pixels as the same picture: their embeddings may differ by rounding."""
    first: dict[bytes, Seen] = {}
    return [first.setdefault(one.digest, one) for one in seen]


def _flat(objective: Any, points: torch.Tensor) -> torch.Tensor:
    """Where the loss has no gradient to the images at all, (n,) bool: attacks that follow it have seen nothing."""
    with torch.enable_grad():
        x = points.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective(x).sum(), x)
    return slope.flatten(1).abs().amax(1) == 0


class _Bars:
    """Progress: one bar for what is attacked and one for the rest, as they take unlike times.

    The estimate comes from all that this process has done, not from the last chunk alone.
    """

    def __init__(self, parts: Any, mine: list[_Chunk], journal: Journal, share: int) -> None:
        from tqdm import tqdm

        self._bars: dict[bool, Any] = {}
        for attacked, label in ((True, "attack"), (False, "clean")):
            sizes = [
                (len(chunk.questions), (chunk.number, part) in journal.done)
                for chunk in mine
                if chunk.attacked is attacked
                for part in parts(chunk)
            ]
            if sizes:
                others = "" if share == 1 else f", 1 of {share} processes"
                done = sum(size for size, is_done in sizes if is_done)
                total = sum(size for size, _ in sizes)
                self._bars[attacked] = tqdm(
                    total=total, initial=done, desc=label + others, unit="item", smoothing=0, position=len(self._bars)
                )

    def update(self, chunk: _Chunk) -> None:
        """A part of this chunk is done."""
        self._bars[chunk.attacked].update(len(chunk.questions))

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()


_NAMED = (
    "torchvision", "numpy", "scipy", "pillow", "timm", "open_clip_torch", "transformers", "lpips", "dreamsim", "piq",
)  # fmt: skip


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"robustsim": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in _NAMED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
