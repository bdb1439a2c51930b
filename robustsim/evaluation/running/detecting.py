"""The work of judging detection: banks embedded once, and queries judged as they are and under each attack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsim.data.detection import DetectionSet
from robustsim.errors import ImageError, InputError
from robustsim.evaluation.running.database import Database, embedded
from robustsim.evaluation.running.escape import EscapePlan
from robustsim.evaluation.running.evasion import Evasion, Second, toward
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.statistics import Array
from robustsim.evaluation.subjects import Subject
from robustsim.evaluation.tasks.pictures import Photo, decode_square
from robustsim.images import prefetch
from robustsim.images.inputs import stack_squares
from robustsim.search import Rule, ScoreDetector

CLEAN = "clean"
#: What is attacked: the metric by Eq. 5; the other detector's own encoder by Eq. 5; that detector with its head; both
#: the metric and the detector by one perturbation.
METRIC, GREY, WHITE, JOINT = "metric", "grey", "white", "joint"


@dataclass(frozen=True)
class Chunk:
    """Queries of one class that are judged together.

    Attributes:
        places: in the list of all queries.
        kind: their class.
        attacked: whether they are attacked, too.
    """

    places: tuple[int, ...]
    kind: str
    attacked: bool


class Detecting:
    """What is to be done for one metric.

    Args:
        metric: one with embeddings.
        data: the pictures.
        rule: what decides.
        plan: of attacks.
        pairs: (class of queries, class that they are led to).
        targets: pictures of a class that attacks lead to, drawn at random.
        attacked: queries of each class that are attacked, drawn at random; all if None.
        detector: another one.
        seed: of draws and attacks.
        batch_size: pictures per encoding and attack.

    Attributes:
        queries: all of them, with their classes.
        drawn: the pictures that attacks lead to, by class.
        chunks: of queries.
        database: the banks and these pictures.
    """

    def __init__(
        self,
        metric: Subject,
        data: DetectionSet,
        rule: Rule,
        plan: EscapePlan,
        pairs: Sequence[tuple[str, str]],
        targets: int,
        attacked: int | None,
        detector: ScoreDetector | None,
        seed: int,
        batch_size: int,
    ) -> None:
        self.metric, self.data, self.rule, self.plan = metric, data, rule, plan
        self.seed, self.size = seed, batch_size
        self.second = None if detector is None else Second(detector, metric)
        self.pairs = tuple(pairs) if plan.eps else ()
        self.queries = [(kind, path) for kind, files in data.queries.items() for path in files]
        self.drawn = {
            kind: _draw(data.targets[kind], targets, f"{seed} target {kind}")
            for kind in dict.fromkeys(kind for _, kind in self.pairs)
        }
        self.chunks = self._cut(attacked)
        files = [*(path for some in data.bank.values() for path in some)]
        self._rows = _places(data.bank, 0)
        self._aims = _places(self.drawn, len(files))
        self.database = Database(metric, [*files, *(path for some in self.drawn.values() for path in some)], batch_size)

    def _cut(self, attacked: int | None) -> list[Chunk]:
        """Queries class by class, those that are attacked first."""
        chunks, first = [], 0
        for kind, files in self.data.queries.items():
            hurt = set(_draw(range(len(files)), len(files) if attacked is None else attacked, f"{self.seed} {kind}"))
            led = any(kind == source for source, _ in self.pairs)
            for some, is_attacked in ((sorted(hurt), led), (sorted({*range(len(files))} - hurt), False)):
                for start in range(0, len(some), self.size):
                    places = tuple(first + one for one in some[start : start + self.size])
                    chunks.append(Chunk(places, kind, is_attacked))
            first += len(files)
        return chunks

    def attacks(self, target: str, kind: str) -> list[str]:
        """What is attacked where queries of a class are led to another one."""
        if self.second is None or (kind in self.rule.safe) == (target in self.rule.safe):
            return [METRIC]  # no flag is to be turned
        grey = [GREY] if self.second.detector.metric is not None else []
        return [METRIC, *grey, WHITE, JOINT]

    def parts(self, chunk: Chunk) -> list[str]:
        """What is done with a chunk: as it is, and each attack."""
        if not chunk.attacked:
            return [CLEAN]
        return [
            CLEAN,
            *(
                part_of(eps, target, attack)
                for eps in self.plan.eps
                for source, target in self.pairs
                if source == chunk.kind
                for attack in self.attacks(target, chunk.kind)
            ),
        ]

    def do(self, journal: Journal, workers: Workers, *, progress: bool = False) -> None:
        """Do what is missing.

        Raises:
            ImageError: of a bank, or of the pictures that attacks lead to, not a single one could be read.
            ObjectiveError: the metric gives NaN or infinity, or the detector has no gradient.
            InputError: the detector failed.
            OutputError: the folder cannot be written, or holds not what was there.
        """
        from tqdm import tqdm

        self.database.embed(journal, workers, progress=progress)
        for what, rows in (("the bank", self._rows), ("the targets", self._aims)):
            for kind, places in rows.items():
                if not self._read(places):
                    bad = self.database.unread[places[0]]
                    raise ImageError(f"not a single picture of {what} {kind!r} could be read; the first: {bad}")
        aims = {kind: self._embeddings(journal, self._read(places)) for kind, places in self._aims.items()}
        own: dict[str, Tensor] = {}
        mine = [number for number in range(len(self.chunks)) if number % workers.count == workers.number]
        parts = {number: self.parts(self.chunks[number]) for number in mine}
        open_ = [n for n in mine if not all(journal.is_settled(n, part) for part in parts[n])]
        for number in tqdm(open_, desc=f"{self.metric.name}: queries", unit="batch", disable=not progress):
            chunk = self.chunks[number]
            places, errors, pixels = self._shown(chunk)
            found: dict[str, Any] = {"places": places, **({"error": errors} if errors else {})}
            for part in parts[number]:
                if journal.is_settled(number, part):
                    continue
                if not places:
                    journal.add(number, part, {**found, "class": [], "flagged": [], "score": []})
                    continue
                seen = pixels
                if part != CLEAN:
                    eps, target, attack = _split(part)
                    if attack == GREY and target not in own:
                        own[target] = self._own(target)
                    aim = own[target] if attack == GREY else aims[target]
                    seen = self._attacked(pixels, number, eps, target, attack, aim)
                journal.add(number, part, {**found, **self._judged(seen)})
        workers.wait()
        journal.read_all()
        journal.check((number, part) for number, chunk in enumerate(self.chunks) for part in self.parts(chunk))

    def _read(self, places: Sequence[int]) -> list[int]:
        return [place for place in places if place not in self.database.unread]

    def _embeddings(self, journal: Journal, places: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.database.take(np.array(places))).to(self.metric.device)

    def _own(self, target: str) -> Tensor:
        """Embeddings of the targets by the detector's own metric, of the squares that all are judged by."""
        if self.second is None:
            raise RuntimeError("there is no detector")
        files, first = self.drawn[target], self._aims[target][0]
        squares = [decode_square(self.metric, Photo(path)) for path in files]
        good = [one for one in squares if isinstance(one, Tensor)]
        if not good:
            raise ImageError(f"{self.database.files[first]} cannot be read any more")
        with torch.no_grad():
            return self.second.embed(stack_squares(good, self.metric.device))

    def _shown(self, chunk: Chunk) -> tuple[list[int], dict[int, str], Tensor]:
        """The queries of a chunk that can be read, why others cannot, and pixels of the former."""
        loaded = list(prefetch(partial(decode_square, self.metric), [Photo(self.queries[n][1]) for n in chunk.places]))
        errors = {n: str(bad) for n, bad in zip(chunk.places, loaded, strict=True) if isinstance(bad, ImageError)}
        good = [square for square in loaded if isinstance(square, Tensor)]
        pixels = stack_squares(good, self.metric.device) if good else torch.empty(0)
        return [place for place in chunk.places if place not in errors], errors, pixels

    def _attacked(self, pixels: Tensor, number: int, eps: str, target: str, attack: str, aim: Tensor) -> Tensor:
        flagged, second = target not in self.rule.safe, self.second
        seed = self.seed * 1_000_003 + number
        if attack == METRIC:
            goal = toward(self.metric, aim)
        elif second is None:
            raise RuntimeError("there is no detector")
        elif attack == GREY:
            goal = second.toward(aim)
        else:
            goal = Evasion(self.metric, aim if attack == JOINT else None, second, flagged=flagged)
        return self.plan.climb(goal, pixels, eps, seed=seed)

    def _judged(self, pixels: Tensor) -> dict[str, Any]:
        """The class of each picture, whether the rule flags it, and the detector's score."""
        codes = embedded(self.metric, pixels)
        decisions = [self.rule.decide(self._nearest(far)) for far in self.database.distances(codes)]
        scores = [] if self.second is None else self.second.scores(pixels, codes)
        return {
            "class": [one.bank for one in decisions],
            "flagged": [one.flagged for one in decisions],
            "score": scores,
        }

    def _nearest(self, far: Array) -> Mapping[str, Sequence[float]]:
        """For each bank the distances that vote, ascending."""
        own = {kind: np.sort(far[self._read(places)])[: self.rule.votes] for kind, places in self._rows.items()}
        return {kind: some.tolist() for kind, some in own.items()}


def part_of(eps: str, target: str, attack: str) -> str:
    """What the journal calls an attack."""
    return f"{attack} {eps} {target}"


def _split(part: str) -> tuple[str, str, str]:
    attack, eps, target = part.split(" ", 2)
    return eps, target, attack


def _places(files: Mapping[str, Sequence[Path]], first: int) -> dict[str, list[int]]:
    """Places of each class's files in a list of all, which begins somewhere."""
    found = {}
    for kind, some in files.items():
        found[kind] = list(range(first, first + len(some)))
        first += len(some)
    return found


def _draw(some: Sequence[Any], count: int, seed: str) -> list[Any]:
    """So many at random, in their order; all where there are fewer."""
    return sorted(Random(seed).sample(list(some), count)) if count < len(some) else list(some)


def check_pairs(data: DetectionSet, pairs: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
    """The attacks: those that are named, or every class of queries towards every other class that has targets.

    Raises:
        InputError: one that names a class without queries, or without targets, or the same class twice.
    """
    if pairs is None:
        return [(kind, other) for kind in data.queries for other in data.targets if kind != other]
    for kind, other in pairs:
        if kind not in data.queries or other not in data.targets or kind == other:
            raise InputError(
                f"no query can be led from {kind!r} to {other!r}: there are queries of {', '.join(data.queries)}, and "
                f"targets of {', '.join(data.targets) or 'no class'}"
            )
    return list(dict.fromkeys(pairs))
