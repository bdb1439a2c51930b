"""Pictures by name, each decoded and encoded once however many questions it is in."""

import os
import random
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from robustsim.errors import ImageError
from robustsim.evaluation.subjects import Subject
from robustsim.images import prefetch, read_image
from robustsim.images.files import list_images
from robustsim.images.inputs import load_square, stack_squares

#: Bytes of embeddings that are held at once.
MOST_HELD = 4 * 2**30


class Picture(Hashable, Protocol):
    """Something to look at: equal for equal pictures, and cheap to hold."""

    @property
    def path(self) -> Path:
        """The file behind it."""

    @property
    def variant(self) -> str:
        """What was made of the file; "" for the file itself."""

    def read(self) -> Image.Image:
        """The picture in mode RGB.

        Raises:
            ImageError: it cannot be read.
        """


class Photo:
    """A file."""

    __slots__ = ("path",)
    variant = ""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Image.Image:
        """See `Picture`."""
        return read_image(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Photo) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


@dataclass(frozen=True, slots=True)
class Part:
    """What a box holds of a photograph.

    Attributes:
        path: the file.
        box: left, top, right and bottom in its pixels, rounded as Pillow does; what lies outside is left out. None for
            the whole.
    """

    path: Path
    box: tuple[float, float, float, float] | None = None

    @property
    def variant(self) -> str:
        """See `Picture`."""
        return "" if self.box is None else f"box {self.box}"

    def read(self) -> Image.Image:
        """See `Picture`."""
        image = read_image(self.path)
        if self.box is None:
            return image
        left, top, right, bottom = (round(value) for value in self.box)
        inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise ImageError(f"{os.fspath(self.path)!r} has {image.width} x {image.height} pixels, none in {self.box}")
        return image.crop(inside)


def below(root: "str | os.PathLike[str]", path: Path) -> Path:
    """A path relative to a folder, however the two are spelt; absolute where it is not below it."""
    start, full = os.path.abspath(root), Path(os.path.abspath(path))
    return full.relative_to(start) if full.is_relative_to(start) else full


def pictures_of(names: Sequence[str], pixels: Sequence[str], links: Sequence[tuple[str, str]]) -> list[int]:
    """Which picture each photograph is: those with the same pixels are one, and those that are linked."""
    own: dict[str, str] = {}

    def first_of(name: str) -> str:
        while (other := own.get(name, name)) != name:
            name = other
        return name

    by_pixels: dict[str, str] = {}
    for a, b in (*links, *((name, by_pixels.setdefault(one, name)) for name, one in zip(names, pixels, strict=True))):
        own[first_of(a)] = first_of(b)
    places: Mapping[str, int] = {name: place for place, name in enumerate(dict.fromkeys(map(first_of, names)))}
    return [places[first_of(name)] for name in names]


def draw_files(
    root: Path,
    count: int | None,
    seed: int,
    *,
    follow_links: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[list[Path], Mapping[str, int]]:
    """So many of the images below a folder, drawn at random and in the order of their names, relative to it.

    Args:
        root: the folder.
        count: how many; all where it is None or there are fewer.
        seed: of the draw.
        follow_links: walk linked folders too.
        tell: called with a line for people if files of the folder are passed over.

    Returns:
        The files, and how many of each other kind were passed over.

    Raises:
        ImageError: there is no such folder, or no image in it.
    """
    files, passed_over = list_images(root, follow_links=follow_links, tell=tell)
    if count is not None and count < len(files):
        files = sorted(random.Random(seed).sample(files, count))
    return files, passed_over


class Seen:
    """A picture that was decoded: what tells it from others, and what the metric makes of it.

    Attributes:
        digest: equal for equal pixels.
        code: its embedding (D,), or for a metric of pairs its pixels, uint8 (S, S, 3).
        square: its pixels, uint8 (S, S, 3), where they will be attacked; else None.
    """

    __slots__ = ("code", "digest", "square")

    def __init__(self, digest: bytes, code: Tensor, square: Tensor | None) -> None:
        self.digest, self.code, self.square = digest, code, square


class Gallery:
    """The pictures of some questions, in the order in which they are asked.

    Pictures are encoded in batches that depend on the whole list alone, so that a run that was interrupted, or shares
    the work with others, gets the same embeddings to the bit. Threads decode ahead. A picture is let go after its last
    use. Where the embeddings that must be held meanwhile would not fit (`MOST_HELD`), pixels are held in their
    place and the pictures of a question are encoded when it is asked.

    Args:
        metric: encodes.
        questions: the pictures of every question, in order.
        asked: the questions (their places in that list) that `take` will be called for, in that order.
        attacked: pictures whose pixels are needed too.
        batch_size: pictures per encoding.
    """

    def __init__(
        self,
        metric: Subject,
        questions: Sequence[Sequence[Picture]],
        asked: Sequence[int],
        *,
        attacked: "set[Picture] | frozenset[Picture]" = frozenset(),
        batch_size: int = 32,
    ) -> None:
        self._metric, self._attacked, self._size = metric, attacked, batch_size
        self._order = list(dict.fromkeys(chain.from_iterable(questions)))
        self._place = {picture: place for place, picture in enumerate(self._order)}
        wanted = [picture for question in asked for picture in questions[question]]
        self._uses = Counter(wanted)
        self._questions = questions
        self._batches = deque(dict.fromkeys(self._place[picture] // batch_size for picture in wanted))
        self._decoded = prefetch(
            partial(decode_square, metric),
            chain.from_iterable(map(self._members, self._batches.copy())),
            ahead=2 * batch_size,
        )
        self._held: dict[Picture, Seen | ImageError] = {}
        self._most = _most_held(questions)
        self._late = False  # whether pictures are encoded when they are asked for
        #: How many pictures were encoded.
        self.encoded = 0

    def take(self, question: int) -> list[Seen | ImageError]:
        """The pictures of a question, some of which may be unreadable; once for each question that was announced."""
        pictures = self._questions[question]
        while any(picture not in self._held for picture in pictures):
            self._encode(self._batches.popleft())
        found = [self._held[picture] for picture in pictures]
        if self._late:
            found = self._encoded(found)
        for picture in pictures:
            self._uses[picture] -= 1
            if not self._uses[picture]:
                del self._held[picture], self._uses[picture]
        return found

    def _encoded(self, found: "list[Seen | ImageError]") -> "list[Seen | ImageError]":
        """The same pictures with embeddings for pixels."""
        good = [one for one in found if isinstance(one, Seen)]
        rows = iter(self._embed([one.code for one in good]) if good else ())
        return [Seen(one.digest, next(rows), one.square) if isinstance(one, Seen) else one for one in found]

    def _embed(self, squares: Sequence[Tensor]) -> Tensor:
        if self._metric.embed is None:
            raise RuntimeError("a metric of pairs embeds nothing")
        self.encoded += len(squares)
        with torch.no_grad():
            return self._metric.embed(stack_squares(squares, self._metric.device))

    def _members(self, batch: int) -> list[Picture]:
        return self._order[batch * self._size : (batch + 1) * self._size]

    def _encode(self, batch: int) -> None:
        members = self._members(batch)
        decoded = [next(self._decoded) for _ in members]
        squares = [square for square in decoded if isinstance(square, Tensor)]
        codes: Iterator[Tensor] = iter(squares)
        if self._metric.embed is not None and squares and not self._late:
            embeddings = self._embed(squares)
            self._late = embeddings[0].numel() * embeddings.element_size() * self._most > MOST_HELD
            if not self._late:
                # Each a tensor of its own, so that the batch can go when some of it is done.
                codes = (row.clone() for row in embeddings)
        for picture, square in zip(members, decoded, strict=True):
            found: Seen | ImageError
            if isinstance(square, Tensor):
                digest = blake2b(square.numpy().tobytes(), digest_size=16).digest()
                found = Seen(digest, next(codes), square if picture in self._attacked else None)
            else:
                found = square
            if self._uses[picture]:
                self._held[picture] = found


def _most_held(questions: "Sequence[Sequence[Picture]]") -> int:
    """How many pictures are held at once at most, when each is let go after its last use."""
    last = {picture: place for place, question in enumerate(questions) for picture in question}
    held, most = 0, 0
    seen: set[Picture] = set()
    for place, question in enumerate(questions):
        new = set(question) - seen
        seen |= new
        held += len(new)
        most = max(most, held)
        held -= sum(last[picture] == place for picture in set(question))
    return most


def decode_square(metric: Subject, picture: Picture) -> "Tensor | ImageError":
    """A picture as the metric's square, uint8 (S, S, 3), or why there is none."""
    try:
        return load_square(picture.read(), metric.preprocessing)
    except ImageError as error:
        return ImageError(str(error))  # without the traceback, which holds the half-decoded picture
