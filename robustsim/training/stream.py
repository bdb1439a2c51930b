"""From images in some order to batches: shuffled, cropped and flipped the same way however often a run is resumed.

What happens to the image at a position of the training depends on the seed and the position alone. So nothing random
has to be stored to go on exactly, and any number of processes sees what one would.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from robustsim.errors import DataError, ImageError
from robustsim.images.files import prefetch
from robustsim.images.inputs import load_square, stack_squares
from robustsim.images.preprocessing import Preprocessing

# So many images in a row that cannot be read are no accident.
_MOST_BAD = 100


class Images(Protocol):
    """What :mod:`robustsim.training.sources` opens."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Any:
        """The image of that index, and its label."""

    def label(self, index: int) -> int | None:
        """The image's label, without decoding it."""


@dataclass(frozen=True)
class Batch:
    """Images on their device.

    Attributes:
        pixels: (N, 3, S, S) float32 in [0, 1].
        labels: (N,) int64, or None.
        positions: (N,) where each stands in the training, on the CPU.
    """

    pixels: Tensor
    labels: Tensor | None
    positions: list[int]


@dataclass(frozen=True)
class Augment:
    """Random crops and flips, drawn from a generator of Python's own.

    Attributes:
        preprocessing: of the card; what is done where there is no crop.
        crop: least and greatest share of the picture's area, or None.
        ratio: greatest aspect ratio of a crop.
        flip: mirror half of the images.
        jitter: how far brightness, contrast, saturation and hue are changed; see the recipe's ``augment``.
        mixup: share of the images that are blended with another one.
    """

    preprocessing: Preprocessing
    crop: tuple[float, float] | None = None
    ratio: float = 4 / 3
    flip: bool = False
    jitter: float = 0.0
    mixup: float = 0.0

    def __call__(self, image: Image.Image, size: int, draw: random.Random) -> Tensor:
        """An RGB image as (size, size, 3) uint8."""
        if self.crop is None:
            square = load_square(image, _sized(self.preprocessing, size))
        else:
            resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
            box = self._box(image.size, draw)
            small = image.resize((size, size), resample[self.preprocessing.interpolation], box=box)
            square = load_square(small, Preprocessing(size=size))
        if self.flip and draw.random() < 0.5:
            square = square.flip(1)
        return square if not self.jitter else self._recolour(square, draw)

    def _recolour(self, square: Tensor, draw: random.Random) -> Tensor:
        image = Image.fromarray(square.numpy())
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(draw.uniform(1 - self.jitter, 1 + self.jitter))
        hue, saturation, value = image.convert("HSV").split()
        turn = round(255 * draw.uniform(-self.jitter, self.jitter) / 4)
        turned = Image.merge("HSV", (hue.point([(level + turn) % 256 for level in range(256)]), saturation, value))
        return load_square(turned.convert("RGB"), Preprocessing(size=len(square)))

    def _box(self, size: tuple[int, int], draw: random.Random) -> tuple[float, float, float, float]:
        """A rectangle of a random share of the area, and a random aspect, where one fits; else as much as does."""
        width, height = size
        low, high = self.crop or (1.0, 1.0)
        for _ in range(10):
            area = width * height * draw.uniform(low, high)
            aspect = self.ratio ** draw.uniform(-1, 1)
            w, h = (area * aspect) ** 0.5, (area / aspect) ** 0.5
            if w <= width and h <= height:
                break
        else:
            w = h = float(min(width, height))
        left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
        return left, top, left + w, top + h


@lru_cache(maxsize=16)
def _sized(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """The same preprocessing for another size, what is cropped away in proportion."""
    if size == preprocessing.size:
        return preprocessing
    from dataclasses import replace

    resize = None if preprocessing.resize is None else round(preprocessing.resize * size / preprocessing.size)
    return replace(preprocessing, size=size, resize=resize)


class Shuffle:
    """Which image stands at which position: every pass through the data in an order of its own.

    Args:
        indices: the images that take part.
        seed: of the orders.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self._indices, self._seed = indices, seed
        self._epoch, self._order = -1, torch.empty(0)

    def __call__(self, position: int) -> int:
        """The index of the image at a position."""
        epoch, place = divmod(position, len(self._indices))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mix(self._seed, epoch, 1))
            self._order, self._epoch = torch.randperm(len(self._indices), generator=generator), epoch
        return self._indices[int(self._order[place])]


def mix(*numbers: int) -> int:
    """One seed from several numbers, the same on every machine."""
    return random.Random(" ".join(map(str, numbers))).getrandbits(62)


@dataclass(frozen=True)
class _Read:
    square: Tensor
    label: int | None
    skipped: tuple[str, ...]


class Stream:
    """Batches of a source, read ahead by threads.

    Args:
        source: the images.
        indices: those that take part.
        augment: what is done to each.
        seed: of orders, crops and flips.
        size: the side of the image at a position.
        device: where batches go.
        report: is told of every image that cannot be read; another one takes its place.
        workers: threads; one for each core if not given.
    """

    def __init__(
        self,
        source: Images,
        indices: Sequence[int],
        augment: Augment,
        *,
        seed: int,
        size: Callable[[int], int],
        device: torch.device,
        report: Callable[[str], None],
        workers: int | None = None,
    ) -> None:
        if not len(indices):
            raise DataError("no image is left to train on: hold out fewer for validation")
        self._source, self._indices, self._augment, self._seed = source, indices, augment, seed
        self._size, self._device, self._report, self._workers = size, device, report, workers
        self._order = Shuffle(indices, seed)

    def batches(self, wanted: Sequence[range] | Iterator[range]) -> Iterator[Batch]:
        """A batch for each range of positions.

        Raises:
            DataError: a hundred images one after the other that cannot be read.
        """
        ranges: list[range] = []

        def positions() -> Iterator[tuple[int, int]]:
            for span in wanted:
                ranges.append(span)
                # Looked up here, by one thread: an order belongs to one pass through the data.
                yield from ((position, self._order(position)) for position in span)

        squares: Any = prefetch(self._read, positions(), workers=self._workers, ahead=256)
        with closing(squares):
            while (first := next(squares, None)) is not None:
                span = ranges.pop(0)
                yield self._batch([first, *(next(squares) for _ in span[1:])], span)

    def _batch(self, read: list[_Read], span: range) -> Batch:
        for one in read:
            for message in one.skipped:
                self._report(message)
        return _stack([one.square for one in read], [one.label for one in read], list(span), self._device)

    def _read(self, wanted: tuple[int, int]) -> _Read:
        position, index = wanted
        skipped: list[str] = []
        draw = random.Random(mix(self._seed, position, 2))
        for _ in range(_MOST_BAD):
            try:
                sample = self._source.read(index)
                square = self._augment(sample.image, self._size(position), draw)
                if self._augment.mixup and draw.random() < self._augment.mixup:
                    square = self._mixed(square, position, draw)
            except ImageError as error:
                skipped.append(str(error))
                index = self._indices[draw.randrange(len(self._indices))]
                continue
            return _Read(square, sample.label, tuple(skipped))
        raise DataError(f"{_MOST_BAD} images in a row could not be read, at last {skipped[-1]}")

    def _mixed(self, square: Tensor, position: int, draw: random.Random) -> Tensor:
        """Blended with any other image, read for this alone, so that it does not depend on who shares the batch."""
        other = self._source.read(self._indices[draw.randrange(len(self._indices))])
        veil = self._augment(other.image, self._size(position), draw)
        return torch.lerp(square.float(), veil.float(), draw.random()).round().byte()


def readable(
    source: Images,
    placed: Sequence[tuple[int, int]],
    augment: Augment,
    *,
    size: int,
    device: torch.device,
    report: Callable[[str], None],
    chunk: int,
) -> Iterator[Batch]:
    """Batches of images in order, without those that cannot be read.

    Args:
        source: the images.
        placed: the position that each is to have, and its index.
        augment: what is done to each.
        size: the side of the images.
        device: where batches go.
        report: is told of every image that cannot be read.
        chunk: images in a batch, at most.
    """

    def read(wanted: tuple[int, int]) -> tuple[int, Tensor, int | None] | str:
        position, index = wanted
        try:
            sample = source.read(index)
            return position, augment(sample.image, size, random.Random(0)), sample.label
        except ImageError as error:
            return str(error)

    pending: list[tuple[int, Tensor, int | None]] = []
    found: Any = prefetch(read, placed, ahead=4 * chunk)
    with closing(found):
        for one in found:
            if isinstance(one, str):
                report(one)
                continue
            pending.append(one)
            if len(pending) == chunk:
                yield _gather(pending, device)
                pending = []
        if pending:
            yield _gather(pending, device)


def _gather(read: Sequence[tuple[int, Tensor, int | None]], device: torch.device) -> Batch:
    positions, squares, labels = zip(*read, strict=True)
    return _stack(squares, labels, list(positions), device)


def _stack(
    squares: Sequence[Tensor], labels: Sequence[int | None], positions: list[int], device: torch.device
) -> Batch:
    known = None if any(label is None for label in labels) else torch.tensor(labels, device=device)
    return Batch(stack_squares(squares, device), known, positions)
