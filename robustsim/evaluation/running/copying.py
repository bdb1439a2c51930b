"""The work of finding copies: photographs, the pairs of different ones, and edited copies, in pieces that are kept."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsim.distances import identities
from robustsim.encoders.pairs import NearPairs, near_pairs
from robustsim.errors import ImageError, InputError, ObjectiveError, OutputError
from robustsim.evaluation.running.database import embedded
from robustsim.evaluation.running.escape import EscapePlan
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.rows import Rows
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.statistics import Array
from robustsim.evaluation.subjects import Subject
from robustsim.evaluation.tasks.distortions import change, seed_of
from robustsim.evaluation.tasks.pictures import Photo, decode_square, pictures_of
from robustsim.images import prefetch, read_image
from robustsim.images.files import printable
from robustsim.images.inputs import load_square, stack_squares, unit_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What copies are made of has at most so many pixels on its longer side.
LONGEST = 512
#: The copy that nothing was done to, but for that.
UNCHANGED = "unchanged"
_ORIGINAL, _PAIRS, _CLEAN = "original", "pairs", "clean"
# Pairs that are kept together.
_TOGETHER = 512


class Copying:
    """What is to be done for one metric.

    Args:
        metric: with or without embeddings.
        root: of the photographs.
        files: the photographs, below it.
        edits: amounts by kind.
        plan: of attacks.
        attacked: the copies of so many photographs, drawn at random, are attacked.
        seed: of noise, directions and attacks.
        batch_size: pictures per encoding and attack.

    Attributes:
        labels: of the copies of each photograph, the unchanged one first.
        unread: places of photographs that cannot be read, and why; known when all is done.
        read: places of the others.
    """

    def __init__(
        self,
        metric: Subject,
        root: Path,
        files: Sequence[Path],
        edits: Mapping[str, Sequence[float]],
        plan: EscapePlan,
        attacked: int,
        seed: int,
        batch_size: int,
    ) -> None:
        self.metric, self.root, self.files, self.plan = metric, root, files, plan
        self.seed, self.size = seed, batch_size
        self.attacked = frozenset(Random(seed).sample(range(len(files)), attacked))
        self.copies = [(kind, float(amount)) for kind, amounts in edits.items() for amount in amounts]
        self.labels = [UNCHANGED, *(f"{kind} {amount:g}" for kind, amount in self.copies)]
        if len(set(self.labels)) < len(self.labels):
            raise InputError("an edit has the same amount twice")
        self.unread: dict[int, str] = {}
        self.read: list[int] = []
        self.pictures: NDArray[np.int64] = np.empty(0, np.int64)
        self._pairs: NDArray[np.int64] = np.empty((2, 0), np.int64)
        self._shape: tuple[int, ...] = ()

    def do(
        self,
        journal: Journal,
        workers: Workers,
        *,
        pairs: int,
        links: Sequence[tuple[str, str]],
        progress: bool = False,
    ) -> None:
        """Do what is missing of everything.

        Raises:
            ImageError: not a single photograph could be read.
            InputError: there is no pair of different ones.
            ObjectiveError: the metric gives NaN or infinity.
            OutputError: the folder cannot be written, or holds not what was there.
        """
        self._look(journal, workers, links, progress)
        if self.metric.embed is None:
            self._draw(pairs)
            self._compare(journal, workers, progress)
        self._copy(journal, workers, progress)

    # -- photographs

    def _look(self, journal: Journal, workers: Workers, links: Sequence[tuple[str, str]], progress: bool) -> None:
        """Look at all photographs: their embeddings, or for a metric of pairs their squares."""
        from tqdm import tqdm

        count = len(self.files)
        chunks = [range(start, min(start + self.size, count)) for start in range(0, count, self.size)]
        keys = [(chunk.start, _ORIGINAL) for chunk in chunks]
        self._check_file(journal, [journal.done[key] for key in keys if key in journal.done])
        mine = [chunk for number, chunk in enumerate(chunks) if number % workers.count == workers.number]
        open_ = [chunk for chunk in mine if not journal.is_settled(chunk.start, _ORIGINAL)]
        photos = (Photo(self.root / self.files[place]) for chunk in open_ for place in chunk)
        squares = prefetch(partial(decode_square, self.metric), photos, ahead=2 * self.size)
        for chunk in tqdm(open_, desc=f"{self.metric.name}: photographs", unit="batch", disable=not progress):
            loaded = [next(squares) for _ in chunk]
            errors = {place: str(bad) for place, bad in zip(chunk, loaded, strict=True) if isinstance(bad, ImageError)}
            good = {place: one for place, one in zip(chunk, loaded, strict=True) if isinstance(one, Tensor)}
            found: dict[str, Any] = {"error": errors} if errors else {}
            if good:
                stacked = stack_squares(list(good.values()), self.metric.device)
                codes = self._codes(torch.stack(list(good.values())))
                with self._rows(journal, codes.shape[1:]) as rows:
                    for place, code in zip(good, codes.cpu().numpy(), strict=True):
                        rows.write(place, code[None])
                found["shape"] = list(codes.shape[1:])
                pixels = (row.tobytes().hex() for row in identities(stacked).numpy())
                found["pixels"] = dict(zip(good, pixels, strict=True))
            journal.add(chunk.start, _ORIGINAL, found)
        workers.wait()
        journal.read_all()
        journal.check(keys)
        pixels_of: dict[int, str] = {}
        for key in keys:
            self.unread.update({int(place): text for place, text in journal.done[key].get("error", {}).items()})
            pixels_of.update({int(place): text for place, text in journal.done[key].get("pixels", {}).items()})
            self._shape = tuple(journal.done[key].get("shape", self._shape))
        self.read = sorted(pixels_of)
        if not self.read:
            raise ImageError(f"not a single photograph could be read; the first: {next(iter(self.unread.values()))}")
        names = [printable(self.files[place]) for place in self.read]
        own = {*names}
        known = [link for link in links if own >= set(link)]
        self.pictures = np.array(pictures_of(names, [pixels_of[place] for place in self.read], known), np.int64)
        if len(set(self.pictures.tolist())) < 2:
            raise InputError(f"{len(names)} photographs, and all show one picture: there is no pair of different ones")

    def _codes(self, squares: Tensor) -> Tensor:
        """Squares (n, S, S, 3) uint8 as what is compared: embeddings (n, D), or for a metric of pairs as they are."""
        if self.metric.embed is None:
            return squares
        parts = torch.split(squares, self.size)
        return torch.cat([embedded(self.metric, stack_squares(list(part), self.metric.device)) for part in parts])

    def _rows(self, journal: Journal, shape: Sequence[int]) -> Rows:
        name, dtype = ("photographs.u8", np.uint8) if self.metric.embed is None else ("photographs.f32", np.float32)
        return Rows(journal.root / name, len(self.files), shape, dtype)

    def _check_file(self, journal: Journal, done: "list[dict[str, Any]]") -> None:
        """Rows that the journal says are done must be there: zeros in their place would be figures, too."""
        shape = next((found["shape"] for found in done if "shape" in found), None)
        if shape is None:
            return
        wide = 1 if self.metric.embed is None else 4
        path = journal.root / ("photographs.u8" if self.metric.embed is None else "photographs.f32")
        if not path.is_file() or path.stat().st_size != wide * int(np.prod(shape)) * len(self.files):
            raise OutputError(f"'{path}' is not what it was: pass restart (--restart)")

    # -- pairs of different photographs

    def _draw(self, wanted: int) -> None:
        """Pairs for a metric that cannot compare all of them: every one, or so many at random, each once."""
        count = len(self.read)
        every = count * (count - 1) // 2
        generator = np.random.default_rng(self.seed)
        if wanted >= every:
            left, right = np.triu_indices(count, 1)
        else:
            chosen = np.sort(generator.choice(every, wanted, replace=False))
            # Row by row of the upper triangle.
            ends = np.cumsum(np.arange(count - 1, 0, -1))
            left = np.searchsorted(ends, chosen, side="right")
            right = chosen - np.concatenate([[0], ends])[left] + left + 1
        different = self.pictures[left] != self.pictures[right]
        self._pairs = np.stack([left[different], right[different]]).astype(np.int64)

    def _compare(self, journal: Journal, workers: Workers, progress: bool) -> None:
        from tqdm import tqdm

        starts = range(0, self._pairs.shape[1], _TOGETHER)
        mine = [start for number, start in enumerate(starts) if number % workers.count == workers.number]
        open_ = [start for start in mine if (start, _PAIRS) not in journal.done]
        places = np.array(self.read)
        with self._rows(journal, self._shape) as rows:
            for start in tqdm(open_, desc=f"{self.metric.name}: pairs", unit="batch", disable=not progress):
                sides = [torch.from_numpy(rows.take(places[side[start : start + _TOGETHER]])) for side in self._pairs]
                journal.add(start, _PAIRS, {"distances": self._far(*sides)})
        workers.wait()
        journal.read_all()
        journal.check((start, _PAIRS) for start in starts)

    def _far(self, a: Tensor, b: Tensor) -> list[float]:
        """Distances of rows, as they are kept."""
        found: list[float] = []
        for one, other in zip(torch.split(a, self.size), torch.split(b, self.size), strict=True):
            with torch.no_grad():
                if self.metric.embed is None:
                    one, other = (unit_pixels(side, self.metric.device) for side in (one, other))
                elif self.metric.cosine:
                    found += _angles(one.cpu().numpy(), other.cpu().numpy())
                    continue
                values = self.metric.distance(one.to(self.metric.device), other.to(self.metric.device))
            found += values.float().tolist()
        if not np.isfinite(found).all():
            raise ObjectiveError(f"{self.metric.name} gives NaN or infinity: copies need finite distances")
        return found

    def impostors(self, journal: Journal) -> tuple[NearPairs, bool]:
        """The nearest pairs of different photographs that can be read, and whether they were a sample of all."""
        if self.metric.embed is None:
            left, right = self._pairs
            far = np.array(
                [d for start in range(0, len(left), _TOGETHER) for d in journal.done[start, _PAIRS]["distances"]]
            )
            order = np.lexsort((right, left, far))
            return NearPairs(left[order], right[order], far[order], np.inf, len(far), self.pictures), True
        places = np.array(self.read)
        with self._rows(journal, self._shape) as rows:
            squared = None if self.metric.cosine else self._squares
            return near_pairs(lambda chosen: rows.take(places[chosen]), self.pictures, squared=squared), False

    def _squares(self, a: "NDArray[Any]", b: "NDArray[Any]") -> "NDArray[np.float64]":
        one, other = (torch.from_numpy(side).to(self.metric.device) for side in (a, b))
        with torch.no_grad():
            far = torch.stack([self.metric.distance(row.expand_as(other), other).float() for row in one])
        if not bool(torch.isfinite(far).all()):
            raise ObjectiveError(f"{self.metric.name} gives NaN or infinity: copies need finite distances")
        if bool((far < 0).any()):
            raise InputError(f"{self.metric.name} gives a distance below 0: copies need those that begin there")
        return np.square(far.cpu().numpy().astype(np.float64))

    # -- copies

    def _copy(self, journal: Journal, workers: Workers, progress: bool) -> None:
        from tqdm import tqdm

        mine = [place for n, place in enumerate(self.read) if n % workers.count == workers.number]
        parts = {place: [_CLEAN, *(self.plan.eps if place in self.attacked else ())] for place in self.read}
        open_ = [place for place in mine if not all(journal.is_settled(place, part) for part in parts[place])]
        with self._rows(journal, self._shape) as rows:
            for place in tqdm(open_, desc=f"{self.metric.name}: copies", unit="photograph", disable=not progress):
                try:
                    squares = torch.stack(list(self._copies(place)))
                except ImageError as error:
                    for part in parts[place]:
                        journal.add(place, part, {"error": str(error), "distances": [None] * len(self.labels)})
                    continue
                own = torch.from_numpy(rows.take(np.array([place])))
                own = own.expand(len(squares), *own.shape[1:])
                for part in parts[place]:
                    if journal.is_settled(place, part):
                        continue
                    if part == _CLEAN:
                        far = self._far(self._codes(squares), own)
                    else:
                        far = self._attacked(place, squares, own, part)
                    journal.add(place, part, {"distances": far})
        workers.wait()
        journal.read_all()
        journal.check((place, part) for place in self.read for part in parts[place])
        found = {place: journal.done[place, _CLEAN] for place in self.read}
        self.unread.update({place: one["error"] for place, one in found.items() if "error" in one})

    def _copies(self, place: int) -> Iterator[Tensor]:
        """The squares of a photograph's copies, (S, S, 3) uint8, in the order of the labels."""
        whole = read_image(self.root / self.files[place])
        whole.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        seed = seed_of(printable(self.files[place]), self.seed)
        for kind, amount in (("", 0.0), *self.copies):
            try:
                copy = change(whole.copy(), kind, amount, seed) if kind else whole
            except Exception as error:  # of torchvision or Pillow: one odd picture must not end a run of many
                raise ImageError(
                    f"{str(self.root / self.files[place])!r}, {whole.width} x {whole.height}: {kind} {amount:g} gave "
                    f"{type(error).__name__}: {error}"
                ) from error
            yield load_square(copy, self.metric.preprocessing)

    def _attacked(self, place: int, squares: Tensor, own: Tensor, eps: str) -> list[float]:
        """Distances of a photograph's copies under attack."""
        found: list[float] = []
        for start in range(0, len(squares), self.size):
            pixels = unit_pixels(squares[start : start + self.size], self.metric.device)
            fixed = own[start : start + self.size].contiguous()
            fixed = unit_pixels(fixed, self.metric.device) if self.metric.embed is None else fixed.to(pixels)
            seed = self.seed * 1_000_003 + place * len(squares) + start
            moved = self.plan.move(self.metric, fixed, pixels, eps, seed=seed)
            if self.metric.embed is None:
                with torch.no_grad():
                    found += self.metric.distance(moved, fixed).float().tolist()
            else:
                found += self._far(embedded(self.metric, moved), fixed)
        return found

    def distances(self, journal: Journal, part: str) -> Array:
        """Of the copies of what could be read, (photographs, labels); NaN where a part was not asked for.

        Under attack the larger one counts: an attacker may leave a copy as it is.
        """
        empty = [np.nan] * len(self.labels)
        clean, found = (
            np.array([journal.done.get((place, one), {"distances": empty})["distances"] for place in self.read], float)
            for one in (_CLEAN, part)
        )
        return np.where(np.isnan(found), np.nan, np.maximum(clean, found))


def _angles(a: "NDArray[Any]", b: "NDArray[Any]") -> list[float]:
    """`sqrt(1 - cos)` of rows in float64, as pairs of different photographs are compared."""
    one, other = (side.astype(np.float64) for side in (a, b))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    if not (lengths > 0).all():
        raise ObjectiveError("an embedding is nothing but zeros: no distance to it means anything")
    found: list[float] = np.sqrt(np.maximum(1 - (one * other).sum(1) / lengths, 0)).tolist()
    return found
