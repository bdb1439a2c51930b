"""From images in some order to batches: shuffled, cropped and flipped the same way however often a run is resumed.

What happens to the image at a position of the training depends on the seed and the position alone. So nothing random
has to be stored to go on exactly, and any number of processes sees what one would.
"""

import math
import multiprocessing
import random
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsim.errors import DataError, ImageError
from robustsim.images.files import prefetch, worker_count
from robustsim.images.inputs import load_square, unit_pixels
from robustsim.images.preprocessing import Preprocessing

# So many images in a row that cannot be read are no accident.
_MOST_BAD = 100
# Brightness of red, green and blue (ITU-R BT.601), and the colour space of NTSC, in which a turn changes the hue alone.
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


class Images(Protocol):
    """What `robustsim.training.sources.open` opens."""

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
        jitter: how far brightness, contrast, saturation and hue are changed; see the recipe's `augment`.
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
        brightness, contrast, saturation = (draw.uniform(1 - self.jitter, 1 + self.jitter) for _ in range(3))
        angle = 2 * math.pi * draw.uniform(-self.jitter, self.jitter) / 4
        # All four are linear: one pass over the pixels, and nothing is clipped in between.
        i, q = math.cos(angle), math.sin(angle)
        turn = _FROM_YIQ @ np.array([[1, 0, 0], [0, i, -q], [0, q, i]]) @ _TO_YIQ
        change = brightness * contrast * turn @ (saturation * np.eye(3) + (1 - saturation) * _LUMA)
        mean = square.view(-1, 3).float().mean(0).numpy() @ _LUMA
        shift = brightness * (1 - contrast) * mean
        recoloured = image.convert("RGB", tuple(np.column_stack([change, np.full(3, shift)]).ravel().tolist()))
        return torch.from_numpy(np.array(recoloured))

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


class _Gathered(NamedTuple):
    """Images of a batch, not on their device yet."""

    squares: Tensor
    labels: Tensor | None
    skipped: list[str]


# The (position, index) of each image of a batch, and what becomes of them.
_Order: TypeAlias = Iterator[list[tuple[int, int]]]
_Parts: TypeAlias = Generator[_Gathered, None, None]


class Stream:
    """Batches of a source, read ahead.

    Threads read for a CPU. For a GPU processes do: threads would take the interpreter's lock away from the one that has
    to keep the GPU busy.

    Args:
        source: the images.
        indices: those that take part.
        augment: what is done to each.
        seed: of orders, crops and flips.
        size: the side of the image at a position.
        device: where batches go.
        report: is told of every image that cannot be read; another one takes its place.
        workers: threads or processes; one for each core if not given.
        processes: read in processes; where the device is a GPU and the system can fork, if not given.
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
        processes: bool | None = None,
    ) -> None:
        if not len(indices):
            raise DataError("no image is left to train on: hold out fewer for validation")
        self._source, self._indices, self._augment, self._seed = source, indices, augment, seed
        self._size, self._device, self._report = size, device, report
        self._workers = workers or worker_count()
        can = "fork" in multiprocessing.get_all_start_methods()
        self._processes = can and device.type == "cuda" if processes is None else processes
        self._order = Shuffle(indices, seed)

    def batches(self, wanted: Sequence[range] | Iterator[range]) -> Iterator[Batch]:
        """A batch for each range of positions.

        Raises:
            DataError: a hundred images one after the other that cannot be read.
        """
        spans: list[range] = []

        def places() -> _Order:
            for span in wanted:
                spans.append(span)
                # Looked up here, by one thread: an order belongs to one pass through the data.
                yield [(position, self._order(position)) for position in span]

        parts = self._by_processes(places()) if self._processes else self._by_threads(places(), spans)
        with closing(parts):
            for part in parts:
                for message in part.skipped:
                    self._report(message)
                yield _batch(part, list(spans.pop(0)), self._device)

    def _by_threads(self, places: _Order, spans: list[range]) -> _Parts:
        found: Any = prefetch(self._read, chain.from_iterable(places), workers=self._workers, ahead=256)
        with closing(found):
            while (first := next(found, None)) is not None:
                yield _gather([first, *(next(found) for _ in spans[0][1:])])

    def _by_processes(self, places: _Order) -> _Parts:
        others = set(multiprocessing.active_children())
        loader: Any = torch.utils.data.DataLoader(
            _Places(self._read),
            batch_sampler=places,
            num_workers=self._workers,
            collate_fn=_gather_unless,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # else it takes a number from the one that belongs to the step
            multiprocessing_context="fork",  # nothing of it can be pickled, and none of it touches the GPU
        )
        found = iter(loader)
        readers = set(multiprocessing.active_children()) - others
        try:
            while (part := next(found, None)) is not None:
                if isinstance(part, DataError):
                    raise part
                yield part
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a process that reads images has died: {error}. Where shared memory is small, as in a container, give "
                "it more (docker run --shm-size=2g)"
            ) from error
        finally:
            del found  # which asks them to end
            for reader in readers:
                reader.kill()  # one that hangs in a read heeds nothing else

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


class _Places(torch.utils.data.Dataset[Any]):
    """What stands at (position, index), for a process that reads."""

    def __init__(self, read: Callable[[tuple[int, int]], _Read]) -> None:
        self._read = read

    def __getitem__(self, place: tuple[int, int]) -> _Read | DataError:
        try:
            return self._read(place)
        except DataError as error:  # told by the process that trains, in its own words
            return error


def _gather_unless(read: Sequence[_Read | DataError]) -> _Gathered | DataError:
    return next((one for one in read if isinstance(one, DataError)), None) or _gather(read)  # type: ignore[arg-type]


def _leave_signals(number: int) -> None:
    """A signal to stop goes to the whole group; the process that trains heeds it, and needs its readers until then."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)


def _gather(read: Sequence[_Read]) -> _Gathered:
    labels = [one.label for one in read]
    known = None if any(label is None for label in labels) else torch.tensor(labels)
    return _Gathered(
        torch.stack([one.square for one in read]), known, [message for one in read for message in one.skipped]
    )


def _batch(part: _Gathered, positions: list[int], device: torch.device) -> Batch:
    labels = None if part.labels is None else part.labels.to(device, non_blocking=device.type == "cuda")
    return Batch(unit_pixels(part.squares, device), labels, positions)


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

    def read(wanted: tuple[int, int]) -> tuple[int, _Read] | str:
        position, index = wanted
        try:
            sample = source.read(index)
            return position, _Read(augment(sample.image, size, random.Random(0)), sample.label, ())
        except ImageError as error:
            return str(error)

    def gathered(pending: Sequence[tuple[int, _Read]]) -> Batch:
        positions, images = zip(*pending, strict=True)
        return _batch(_gather(images), list(positions), device)

    pending: list[tuple[int, _Read]] = []
    found: Any = prefetch(read, placed, ahead=4 * chunk)
    with closing(found):
        for one in found:
            if isinstance(one, str):
                report(one)
                continue
            pending.append(one)
            if len(pending) == chunk:
                yield gathered(pending)
                pending = []
        if pending:
            yield gathered(pending)
