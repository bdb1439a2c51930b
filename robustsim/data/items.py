"""What people were shown and what they said, one class for each kind of question."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

from robustsim.errors import InputError

Scoring: TypeAlias = Literal["majority", "share"]
Preprocess: TypeAlias = Literal["card", "squash"]


def checked_scoring(scoring: str) -> None:
    """Refuse what is no way to count answers.

    Raises:
        InputError: it is neither `majority` nor `share`.
    """
    if scoring not in get_args(Scoring):
        raise InputError(f"scoring is {scoring!r}; it must be one of {', '.join(get_args(Scoring))}")


@dataclass(frozen=True, slots=True)
class Triplet:
    """Which of two images looks more like the reference?

    Attributes:
        id: unique within its set and stable: the file's own id, or where it was found (`cnn/000003`, `row 17`).
        reference: what the two are compared with; all paths are ones that `open` takes.
        left: the first of the two.
        right: the second of the two.
        right_share: the share of people who found `right` nearer, in [0, 1].
        group: a part of the set that is reported by itself; empty where there are none.
    """

    id: str
    reference: Path
    left: Path
    right: Path
    right_share: float
    group: str = ""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images: reference, left, right."""
        return self.reference, self.left, self.right


@dataclass(frozen=True, slots=True)
class OddOneOut:
    """Which of three images does not belong?

    Attributes:
        id: unique within its set and stable.
        images: the three.
        odd: the index, 0 to 2, of the one that was chosen; the first of those that most people chose.
        group: as in [`Triplet`][robustsim.data.Triplet].
        shares: the share of people who chose each, in [0, 1]; None where there is but one answer.
    """

    id: str
    images: tuple[Path, Path, Path]
    odd: int
    group: str = ""
    shares: tuple[float, float, float] | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The three images."""
        return self.images


@dataclass(frozen=True, slots=True)
class Pair:
    """Just-noticeable differences: are these two the same?

    Attributes:
        id: unique within its set and stable.
        a: one image.
        b: the other.
        same_share: the share of people who saw no difference, in [0, 1].
        group: as in [`Triplet`][robustsim.data.Triplet].
    """

    id: str
    a: Path
    b: Path
    same_share: float
    group: str = ""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The two images."""
        return self.a, self.b


@dataclass(frozen=True, slots=True)
class Rating:
    """Opinion scores: how good is this image, given its reference?

    Attributes:
        id: unique within its set and stable.
        reference: the undistorted image.
        image: the one that was rated.
        quality: a finite number, larger is better; its scale is the data set's own.
        group: as in [`Triplet`][robustsim.data.Triplet].
    """

    id: str
    reference: Path
    image: Path
    quality: float
    group: str = ""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The two images: reference, rated one."""
        return self.reference, self.image


AnyItem: TypeAlias = "Triplet | OddOneOut | Pair | Rating"
Item = TypeVar("Item", bound=AnyItem)


@dataclass(frozen=True)
class DataSet(Generic[Item]):
    """Judgements of one kind, in the order of their files.

    Attributes:
        name: `nights`, `bapps`, `bapps-jnd`, `things`, or a table's folder and stem (`material-2afc/test`).
        root: the folder that the paths in the set's files are relative to.
        items: the judgements; at least one.
        scoring: how an answer on a [`Triplet`][robustsim.data.Triplet] or an
            [`OddOneOut`][robustsim.data.OddOneOut] counts: `majority` gives 1 for what most people chose and 0 for all
            else, `share` the share of people who agree (BAPPS).
        left_out: rows that are valid but not used: too few votes, or a tie where the majority counts.
        description: one line on what was taken, for reports.
        preprocess: how a picture becomes the square that a metric looks at: `card` as the metric's card says, `squash`
            whole and bilinear, whatever the card crops, as BAPPS's patches are shown to every metric.
        margin: of triplets that were made of ratings, by how much these differ at least; else None.
    """

    name: str
    root: Path
    items: tuple[Item, ...]
    scoring: Scoring = "majority"
    left_out: int = 0
    description: str = ""
    preprocess: Preprocess = "card"
    margin: float | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def sample(self, count: int, *, seed: int = 0) -> "DataSet[Item]":
        """So many items, drawn at random, in their order; all if there are not more."""
        if count >= len(self.items):
            return self
        places = sorted(random.Random(seed).sample(range(len(self.items)), count))
        drawn = f"{count} of {len(self.items)} items, drawn with seed {seed}"
        description = f"{self.description}; {drawn}" if self.description else drawn
        return replace(self, items=tuple(self.items[place] for place in places), description=description)

    @property
    def groups(self) -> dict[str, int]:
        """How many items each group has, in order of appearance."""
        return dict(Counter(item.group for item in self.items))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The distinct images, in order of appearance."""
        return tuple(dict.fromkeys(path for item in self.items for path in item.paths))
