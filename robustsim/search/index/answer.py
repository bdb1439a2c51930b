"""What a search answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Evidence(NamedTuple):
    """How a picture was found.

    Attributes:
        line: what compared: the name of a model, or `phash`.
        distance: by that line, of the two views that it found nearest. By `phash` it is `sqrt(bits / 128)`.
        query_view: which view of the query; "" for the whole.
        view: which view of the picture.
    """

    line: str
    distance: float
    query_view: str
    view: str


@dataclass(frozen=True)
class Hit:
    """A picture of the index.

    Attributes:
        path: absolute name of its file; "" if it was added without one.
        id: SHA-256 of the file's content, or of the pixels that the encoder saw where there is no file.
        distance: from the query, as `RobustSim.distance` gives it, by the first of the lines that were asked, which is
            the index's own model unless others were named; exact to what float16 keeps of the picture. Of several views
            the nearest.
        label: what it was added with.
        found_by: the lines that found it.
    """

    path: str
    id: str
    distance: float
    label: str | None
    found_by: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The hits of each query, the nearest first: `answer[0]` are those of the first.

    Attributes:
        hits: for each query.
        complete: whether nothing can be missing. An exact scan has shown it; see `bound`. False for an approximate one.
        bound: no similarity that was computed over codes was farther than this from the exact one, and every row that
            could be in the answer by that was measured exactly.
        version: of the index that answered.
        compared: how many pictures could have been hits: those with the label and of the tenant that were asked for.
        thresholds: for each query the distance of each line up to which a picture was a hit; empty for the k nearest. A
            rate of false positives is shared by the views of a query, so that queries may differ.
        false_positives: no larger share of pairs of different pictures match at these distances, with 95 % confidence
            for each line, if a rate was asked for; else None.
        measured_on: of which pictures it is known how near different ones come to each other, for each line, if a rate
            was asked for.
        recall: of an approximate search, the share that it finds of near-duplicates that were planted in this index: of
            copies at similarity 0.97, by the line that finds fewest. None for an exact one.
    """

    hits: tuple[tuple[Hit, ...], ...]
    complete: bool
    bound: float
    version: int
    compared: int
    thresholds: tuple[Mapping[str, float], ...] = ()
    false_positives: float | None = None
    measured_on: Mapping[str, str] = field(default_factory=dict)
    recall: float | None = None

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, query: int) -> tuple[Hit, ...]:
        return self.hits[query]

    def __iter__(self) -> Iterator[tuple[Hit, ...]]:
        return iter(self.hits)
