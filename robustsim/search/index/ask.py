"""Ask an index: queries, view by view and line by line, and what they find, picture by picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from robustsim.errors import InputError
from robustsim.images.hashes import hash_rows
from robustsim.images.inputs import split_images
from robustsim.metric import ImagesOrEmbeddings
from robustsim.search.index.answer import Answer, Evidence, Hit
from robustsim.search.index.deciding import Decision
from robustsim.search.index.models import Models
from robustsim.search.index.pictures import Seen, embed_pictures, one_by_one
from robustsim.search.index.scanning import Scanner
from robustsim.search.rates import PHASH
from robustsim.search.scan.exact import Found

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Positions: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class _Asked:
    """What is looked for by one line.

    Attributes:
        rows: (M, D), of all views of all queries.
        owners: (M,): which query each is of.
        views: M names.
    """

    rows: "NDArray[np.float32]"
    owners: "Positions"
    views: Sequence[str]


class _Nearest(NamedTuple):
    """The nearest view of a picture to those of a query; ordered as hits are."""

    away: float
    rank: Any
    query_view: str
    at: int


class Question:
    """Queries, and the pictures that count.

    Args:
        models: of the index.
        scanner: the device of the first model that is asked ("cpu" or "cuda") -> what scans the rows that count.
        images: queries; embeddings of the index's own model may stand in where neither views nor other lines are asked.
        views: which views of the queries are looked for, beside the whole.
        lines: what compares; taken in the order of the index, so that a hash is never the first where a model is there.

    Raises:
        ImageError: a query cannot be read.
        InputError: a query is no image, or views or further lines of an embedding were asked for.
    """

    def __init__(
        self,
        models: Models,
        scanner: Callable[[str], Scanner],
        images: ImagesOrEmbeddings,
        *,
        views: Sequence[str],
        lines: Sequence[str],
    ) -> None:
        numbers = {line: models.number(line) for line in lines}
        self._lines = {line: numbers[line] for line in models.lines if line in numbers}
        self._device = "cpu"
        if list(self._lines.values()) == [0] and not views:
            metric = models[0]
            self._device = metric.device.type if metric.device.type == "cuda" else "cpu"
            rows = metric.embed(images).detach().cpu().numpy()
            self._asked = {next(iter(self._lines)): _Asked(rows, np.arange(len(rows)), [""] * len(rows))}
            self._count = len(rows)
        else:
            self._ask(models, images, views)
        self._scanner = scanner(self._device)

    def _ask(self, models: Models, images: ImagesOrEmbeddings, views: Sequence[str]) -> None:
        if isinstance(images, Tensor) and images.ndim < 3:
            raise InputError("an embedding has no views, and is compared by its own model alone: pass the picture")
        numbers = [number for number in self._lines.values() if number is not None]
        metrics = [models[number] for number in numbers]
        if metrics:
            self._device = "cuda" if metrics[0].device.type == "cuda" else "cpu"
        hashed = PHASH in self._lines
        wanted = [models.cards[number].preprocessing for number in numbers or [0]]
        found = embed_pictures(metrics, wanted, one_by_one(split_images(images, as_rgb=False)), views, hashed=hashed)
        self._count = len(found)
        every = [(query, seen) for query, of_one in enumerate(found) for seen in of_one]
        self._asked = {
            line: _of_line([pair for pair in every if number is not None or pair[1].hash], number, numbers)
            for line, number in self._lines.items()
        }

    def nearest(self, k: int) -> Answer:
        """The k nearest pictures by the one line that is asked."""
        ((line, number),) = self._lines.items()
        return self._answer({line: self._scanner.nearest(number, self._asked[line].rows, k)}, k)

    def within(self, decide: Callable[[int], Decision]) -> Answer:
        """All pictures that at least one line takes for a match.

        Args:
            decide: how many comparisons a query and a picture take on each line -> what counts as a match.
        """
        decisions = [decide(count) for count in self._comparisons()]
        found: dict[str, list[Found]] = {}
        for line, number in self._lines.items():
            asked = self._asked[line]
            limits = np.array([decisions[owner].thresholds[line] for owner in asked.owners])
            of_line: dict[int, Found] = {}
            for limit in np.unique(limits):
                at = np.flatnonzero(limits == limit)
                of_line |= zip(at.tolist(), self._scanner.within(number, asked.rows[at], float(limit)), strict=True)
            found[line] = [of_line[at] for at in range(len(limits))]
        rates = [one.false_positives for one in decisions if one.false_positives is not None]
        return replace(
            self._answer(found, None),
            thresholds=tuple(one.thresholds for one in decisions),
            false_positives=max(rates, default=None),
            measured_on=decisions[0].measured_on if decisions else {},
        )

    def _comparisons(self) -> list[int]:
        """How many each query and a picture take on each line: views of the one times views of the other, on average.

        A rate is a share of pairs, so that it is the mean of the views of the pictures that counts.
        """
        rows, compared = self._scanner.counted, self._scanner.compared
        views = np.zeros(self._count, np.int64)
        for asked in self._asked.values():
            views = np.maximum(views, np.bincount(asked.owners, minlength=self._count))
        return [max(1, ceil(count * rows / max(1, compared))) for count in views.tolist()]

    def _answer(self, found: Mapping[str, Sequence[Found]], k: int | None) -> Answer:
        best: list[dict[int, dict[str, _Nearest]]] = [{} for _ in range(self._count)]
        scanner = self._scanner
        for line, per_row in found.items():
            asked = self._asked[line]
            for owner, view, one in zip(asked.owners.tolist(), asked.views, per_row, strict=True):
                columns = (scanner.ranks(one.positions), one.positions.tolist(), scanner.numbers(one.positions))
                described = zip(one.distances.tolist(), *columns, strict=True)
                for away, rank, at, picture in described:
                    lines, new = best[owner].setdefault(picture, {}), _Nearest(away, rank, view, at)
                    if line not in lines or new < lines[line]:
                        lines[line] = new
        hits = tuple(self._hits(query, of_one, k) for query, of_one in enumerate(best))
        bound = max((one.bound for per_row in found.values() for one in per_row), default=0.0)
        recall = scanner.recall
        return Answer(hits, recall is None, bound, scanner.version, scanner.compared, recall=recall)

    def _hits(self, query: int, found: "Mapping[int, Mapping[str, _Nearest]]", k: int | None) -> tuple[Hit, ...]:
        line = next(iter(self._lines))
        first = {picture: lines[line] for picture, lines in found.items() if line in lines}
        if len(first) < len(found):
            first |= self._measured(line, query, [picture for picture in found if picture not in first])
        ranked = sorted(first, key=first.__getitem__)[:k]
        every = [near.at for picture in ranked for near in (first[picture], *found[picture].values())]
        texts = {name: self._scanner.texts(name, every) for name in ("path", "id", "label", "view")}
        hits, at = [], 0
        for picture in ranked:
            lines = found[picture]
            views = texts["view"][at + 1 : at + 1 + len(lines)]
            found_by = tuple(
                Evidence(line, near.away, near.query_view, view)
                for (line, near), view in zip(lines.items(), views, strict=True)
            )
            away = first[picture].away
            hits.append(Hit(texts["path"][at], texts["id"][at], away, texts["label"][at], found_by))
            at += 1 + len(lines)
        return tuple(hits)

    def _measured(self, line: str, query: int, pictures: Sequence[int]) -> "dict[int, _Nearest]":
        """How near pictures are by a line that did not find them."""
        asked, found = self._asked[line], dict[int, _Nearest]()
        own = np.flatnonzero(asked.owners == query)
        at, every = self._scanner.measured(self._lines[line], asked.rows[own], pictures)
        described = list(zip(self._scanner.ranks(at), at.tolist(), self._scanner.numbers(at), strict=True))
        for view, aways in zip(own.tolist(), every.tolist(), strict=True):
            for away, (rank, position, picture) in zip(aways, described, strict=True):
                new = _Nearest(away, rank, asked.views[view], position)
                found[picture] = min(new, found.get(picture, new))
        return found


def _of_line(pairs: Sequence[tuple[int, Seen]], number: int | None, numbers: Sequence[int]) -> _Asked:
    owners = np.array([query for query, _ in pairs], np.int64)
    views = [seen.view for _, seen in pairs]
    if number is None:
        return _Asked(hash_rows([seen.hash for _, seen in pairs if seen.hash]).astype(np.float32), owners, views)
    at = numbers.index(number)
    return _Asked(np.stack([seen.embeddings[at].numpy() for _, seen in pairs]), owners, views)
