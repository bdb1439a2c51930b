"""The work of a run: distances of all questions, and attacks on right decisions, in pieces that are kept one by one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

import numpy as np
import torch

from robustsim.attacks.engine.modules import undisturbed
from robustsim.errors import ImageError, InputError, ObjectiveError
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.plan import AttackPlan
from robustsim.evaluation.running.progress import Bars
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.subjects import Subject
from robustsim.evaluation.tasks.choices import Choice, Task, codes
from robustsim.evaluation.tasks.pictures import Gallery, Picture, Seen

# Numbers that a comparison of embeddings holds at once: 64 MB of each side.
_MOST_NUMBERS = 2**24
#: The part of each chunk that is done without attack; the others are named by their radius.
CLEAN = "clean"
#: What is found of an item under attack.
FOUND = ("holds", "broken_by", "queries", "gradients", "no_gradient")


@dataclass(frozen=True)
class Chunk:
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


class Work:
    """What is to be done for one metric on one task.

    Attributes:
        chunks: all of it, attacked ones first, so that they are full.
        attacked: the places of the questions that are attacked.
        perturb: what of them.
    """

    def __init__(self, metric: Subject, task: Task, plan: AttackPlan | None, seed: int, batch_size: int) -> None:
        self.metric, self.task, self.plan, self.seed, self.batch_size = metric, task, plan, seed, batch_size
        self.perturb = (plan and plan.perturb) or next(iter(task.perturbable), "")
        everything = range(len(task.questions))
        attacked: list[int] = []
        if plan is not None and isinstance(task, Choice):
            attacked = [place for place in everything if task.attackable(task.questions[place])]
            if plan.attacked is not None and plan.attacked < len(attacked):
                attacked = sorted(Random(seed).sample(attacked, plan.attacked))
        taken = set(attacked)
        parts = [(attacked, True), ([place for place in everything if place not in taken], False)]
        split = [
            (tuple(part[start : start + batch_size]), is_attacked)
            for part, is_attacked in parts
            for start in range(0, len(part), batch_size)
        ]
        starts = accumulate((len(questions) for questions, _ in split), initial=0)
        self.chunks = [
            Chunk(number, start, *both) for number, (start, both) in enumerate(zip(starts, split, strict=False))
        ]
        self.attacked = attacked

    def parts(self, chunk: Chunk) -> list[str]:
        """The names of what is to be done on a chunk."""
        return [CLEAN, *(self.plan.radii if self.plan is not None and chunk.attacked else ())]

    def do(self, journal: Journal, workers: Workers, progress: bool) -> None:
        """Do what is left for this process."""
        mine = [chunk for chunk in self.chunks if chunk.number % workers.count == workers.number]
        open_ = [chunk for chunk in mine if any((chunk.number, part) not in journal.done for part in self.parts(chunk))]
        pictures: set[Picture] = set()
        if isinstance(self.task, Choice):
            for item in self.attacked:
                question = self.task.questions[item]
                pictures.update(question.pictures[place] for place in self.task.attacked_places(question, self.perturb))
        gallery = Gallery(
            self.metric,
            [self.task.questions[item].pictures for chunk in self.chunks for item in chunk.questions],
            [place for chunk in open_ for place in chunk.places],
            attacked=pictures,
            batch_size=self.batch_size,
        )
        behind = [function for function in (self.metric.embed, self.metric.distance) if function is not None]
        bars = None
        if progress:
            pieces = [
                (chunk.attacked, len(chunk.questions), key in journal.done)
                for chunk in mine
                for key in self._keys(chunk)
            ]
            bars = Bars(pieces, workers.count)
        with undisturbed(behind):
            for chunk in open_:
                self._one(chunk, journal, gallery, bars)
        if bars is not None:
            bars.close()

    def check(self, journal: Journal) -> None:
        """Refuse to write a report of which something is missing."""
        journal.check(one for chunk in self.chunks for one in self._keys(chunk))

    def _keys(self, chunk: Chunk) -> list[tuple[int, str]]:
        return [(chunk.number, part) for part in self.parts(chunk)]

    def _one(self, chunk: Chunk, journal: Journal, gallery: Gallery, bars: "Bars | None") -> None:
        seen = [gallery.take(place) for place in chunk.places]
        for number, part in self._keys(chunk):
            if (number, part) in journal.done:
                continue
            begun = time.perf_counter()
            if part == CLEAN:
                found = self._clean(chunk, seen)
            else:
                found = self._attack(chunk, seen, journal.done[number, CLEAN]["distances"], part)
            journal.add(number, part, {**found, "seconds": time.perf_counter() - begun})
            if bars is not None:
                bars.update(chunk.attacked, len(chunk.questions))

    def _clean(self, chunk: Chunk, seen: "Sequence[Sequence[Seen | ImageError]]") -> dict[str, Any]:
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
        self, chunk: Chunk, seen: "Sequence[Sequence[Seen | ImageError]]", clean: list[Any], eps: str
    ) -> dict[str, Any]:
        """For each question that is right without attack: whether it holds, what broke it, and what that cost."""
        plan, task = self.plan, self.task
        if plan is None or not isinstance(task, Choice):
            raise RuntimeError("nothing is planned")
        count = len(chunk.questions)
        found: dict[str, list[Any]] = {name: [None] * count for name in FOUND}
        questions = [task.questions[item] for item in chunk.questions]
        rows = [
            row for row in range(count) if clean[row] is not None and task.right(np.array(clean[row]), questions[row])
        ]
        if not rows:
            return found
        shown = [[one for one in seen[row] if isinstance(one, Seen)] for row in rows]
        # Not of their differences: those may be tiny beside what the attack moves.
        metric = self.metric.in_units_of(max(abs(value) for row in rows for value in clean[row]) or 1.0)
        objective = task.objective(metric, [questions[row] for row in rows], shown, self.perturb, plan.loss)
        costs = {name: torch.zeros(len(rows), dtype=torch.int64) for name in ("queries", "gradients")}
        points = objective.images.clone()

        def break_(goal: Any, standing: torch.Tensor) -> torch.Tensor:
            """Attack these places one way after the other; what still stands."""
            for name in plan.names:
                if not len(standing):
                    break
                one = plan.make(name, eps, seed=self.seed * 1_000_003 + chunk.number)
                result = one(goal.select(standing), objective.images[standing])
                costs["queries"][standing.cpu()] += result.queries.cpu()
                costs["gradients"][standing.cpu()] += result.gradients.cpu()
                points[standing] = result.images
                if result.success is None:
                    raise RuntimeError(f"{name} does not tell success")
                for place in standing[result.success].tolist():
                    found["broken_by"][rows[place]] = name
                standing = standing[~result.success]
            return standing

        standing = break_(objective, torch.arange(len(rows), device=self.metric.device))
        if len(standing) and plan.follows_gradients:
            blind = standing[_flat(objective.select(standing), points[standing])]
            if len(blind) and plan.loss == "ce":
                # Cross-entropy has run out of digits where the margin may not have.
                other = objective.with_loss("margin")
                blind = break_(other, blind)
                blind = blind[_flat(other.select(blind), points[blind])] if len(blind) else blind
            for place in blind.tolist():
                found["no_gradient"][rows[place]] = True
        for place, row in enumerate(rows):
            found["holds"][row] = found["broken_by"][row] is None
            for name, cost in costs.items():
                found[name][row] = int(cost[place])
        return found


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
