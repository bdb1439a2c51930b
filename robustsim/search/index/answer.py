"""What a search answers."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """A picture of the index.

    Attributes:
        path: absolute name of its file; "" if it was added without one.
        id: SHA-256 of the file's content, or of the pixels that the encoder saw where there is no file.
        distance: from the query, as `RobustSim.distance` gives it; exact to what float16 keeps of the picture.
        label: what it was added with.
    """

    path: str
    id: str
    distance: float
    label: str | None


@dataclass(frozen=True)
class Answer:
    """The hits of each query, the nearest first: `answer[0]` are those of the first.

    Attributes:
        hits: for each query.
        complete: whether nothing can be missing. An exact scan has shown it; see `bound`.
        bound: no similarity that was computed over codes was farther than this from the exact one, and every row that
            could be in the answer by that was measured exactly.
        version: of the index that answered.
        compared: how many pictures could have been hits: those with the label and of the tenant that were asked for.
    """

    hits: tuple[tuple[Hit, ...], ...]
    complete: bool
    bound: float
    version: int
    compared: int

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, query: int) -> tuple[Hit, ...]:
        return self.hits[query]

    def __iter__(self) -> Iterator[tuple[Hit, ...]]:
        return iter(self.hits)
