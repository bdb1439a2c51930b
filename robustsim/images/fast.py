"""The fast way from a JPEG file to the encoder's square: near the exact one, and not the same bits.

Two things make it fast. libjpeg decodes a large picture at 1/2, 1/4 or 1/8 of its size, by fewer coefficients of each
block; and the resize, which costs more than the decoding of a small one, is products of small matrices, without a step
back to 8 bits in between. It needs Pillow and NumPy alone, so that every engine has the same pixels.
"""

import math
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from robustsim.errors import InputError
from robustsim.images.decode import is_sideways, mirrored_axes
from robustsim.images.lines import REACH, kernel
from robustsim.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

#: How files become pixels: by Pillow, to the bit as the reference pipelines, or faster and near that.
Decode: TypeAlias = Literal["exact", "fast"]

# What libjpeg leaves has at least so many times the sides after the resize: with less, the error doubles.
_SPARE = 2
_MODES = frozenset({"RGB", "L"})
# Values of a line that are computed at once: with more, more weights beyond the kernel's reach are multiplied in vain,
# with fewer there are more products. None has so many multiplications that OpenBLAS would divide it among threads:
# those that decode ahead are enough.
_BLOCK, _MOST_PRODUCTS = 8, 2**18


def check_decode(decode: str) -> Decode:
    """A name of a way to decode, as such.

    Raises:
        InputError: it is none.
    """
    for known in get_args(Decode):
        if decode == known:
            found: Decode = known
            return found
    raise InputError(f"decode is {decode!r}: it is 'exact', the pixels of the reference pipelines, or 'fast'")


class Drafted(NamedTuple):
    """What a file that is to be decoded fast holds, upright.

    Attributes:
        size: (width, height) of the picture.
        extent: how much of the pixels that come out of the decoder it takes, (across, down): of 1,001 pixels at half
            the size, 500.5 of 501.
        mirrored: whether the pixel of which it takes a part is the first one, (across, down): the last one as stored.
    """

    size: tuple[int, int]
    extent: tuple[float, float]
    mirrored: tuple[bool, bool]


def draft(image: "Image.Image", preprocessing: Preprocessing) -> Drafted | None:
    """Tell Pillow's decoder how large a picture has to become; None if it is not for the fast way, and untouched.

    Args:
        image: a file as Pillow opens it.
        preprocessing: what the picture is for.
    """
    if image.format != "JPEG" or image.mode not in _MODES:
        return None
    turned = -1 if is_sideways(image) else 1
    width, height = image.size[::turned]
    resized = preprocessing.resized(width, height)
    if resized == (width, height):
        return None
    wanted = [math.ceil(_SPARE * side) for side in resized]
    found = image.draft(image.mode, (wanted[::turned][0], wanted[::turned][1]))
    _, _, *extent = found[1] if found else (0, 0, *image.size)
    across, down = extent[::turned]
    return Drafted((width, height), (across, down), mirrored_axes(image))


def fast_square(image: "Image.Image", drafted: Drafted, preprocessing: Preprocessing) -> "NDArray[np.uint8]":
    """What [`apply`][robustsim.images.Preprocessing.apply] makes of the whole picture, nearly: (S, S, 3).

    Args:
        image: in mode RGB and upright, decoded after `draft`.
        drafted: what that gave.
        preprocessing: as there.

    Raises:
        ImageError: as for [`apply`][robustsim.images.Preprocessing.apply].
    """
    size, mode = preprocessing.size, preprocessing.interpolation
    (width, height), (left, top) = preprocessing.window(*drafted.size)
    pixels = np.asarray(image)
    rows, columns = pixels.shape[:2]
    (wide, high), (from_right, from_below) = drafted.extent, drafted.mirrored
    down = _blocks(rows, height, top, size, mode, high, rows - high if from_below else 0.0)
    across = _blocks(columns, width, left, size, mode, wide, columns - wide if from_right else 0.0)
    lines = _down(pixels.reshape(rows, -1), down, size)
    planes = _room("planes", 3, size, columns)
    for channel, plane in enumerate(planes):
        plane[...] = lines[:, channel::3]
    out = _across(planes.reshape(3 * size, columns), across, size)
    np.rint(out, out=out)
    np.clip(out, 0, 255, out=out)
    square = np.full((size, size, 3), preprocessing.fill, dtype=np.uint8)
    down_to, across_to = (slice(max(0, -first), min(size, n - first)) for first, n in ((top, height), (left, width)))
    for channel, plane in enumerate(out.reshape(3, size, size)):
        square[down_to, across_to, channel] = plane[down_to, across_to]
    return square


_rooms = threading.local()


def _room(name: str, *shape: int) -> "NDArray[np.float32]":
    """Memory to work in, which a thread keeps: to get new pages from the system costs more than to compute on them."""
    held, count = getattr(_rooms, name, None), math.prod(shape)
    if held is None or held.size < count:
        held = np.empty(count, dtype=np.float32)
        setattr(_rooms, name, held)
    room: NDArray[np.float32] = held[:count].reshape(shape)
    return room


class _Block(NamedTuple):
    """Weights of the places from `first` on, (places, values), for the values `begin` to `end` of a line."""

    first: int
    begin: int
    end: int
    weights: "NDArray[np.float32]"


@lru_cache(maxsize=256)
def _blocks(
    source: int, target: int, first: int, size: int, mode: str, extent: float, origin: float
) -> tuple[_Block, ...]:
    """The weights of `lines.line_weights`, of a picture that takes `extent` of the line from `origin` on, in blocks."""
    scale = extent / target
    stretch = max(scale, 1.0)
    places = (np.arange(math.ceil(size / _BLOCK) * _BLOCK) + first).reshape(-1, _BLOCK)
    inside = (places >= 0) & (places < target)
    centres = (places + 0.5) * scale + origin
    reach = REACH[mode] * stretch
    width = min(source, math.ceil((_BLOCK - 1) * scale + 2 * reach) + 1)
    begins = np.clip(np.floor(centres[:, 0] - reach).astype(int), 0, source - width)
    values = begins[:, None] + np.arange(width)
    x = np.abs(values[:, None] - centres[:, :, None] + 0.5) / stretch
    weights = np.where(inside[:, :, None], kernel(x, mode), 0.0)
    weights /= np.where(inside, weights.sum(2), 1.0)[:, :, None]
    return tuple(
        _Block(start, int(begin), int(begin) + width, part[: size - start].astype(np.float32))
        for start, begin, part in zip(range(0, size, _BLOCK), begins, weights, strict=True)
    )


def _step(blocks: tuple[_Block, ...]) -> int:
    return max(1, _MOST_PRODUCTS // max(block.weights.size for block in blocks))


def _down(lines: "NDArray[np.uint8]", blocks: tuple[_Block, ...], size: int) -> "NDArray[np.float32]":
    """(H, M) to (size, M)."""
    out, step = _room("lines", size, lines.shape[1]), _step(blocks)
    for start in range(0, lines.shape[1], step):
        bytes_ = lines[:, start : start + step]
        part = _room("part", *bytes_.shape)
        np.copyto(part, bytes_)
        for first, begin, end, weights in blocks:
            np.matmul(weights, part[begin:end], out=out[first : first + len(weights), start : start + step])
    return out


def _across(lines: "NDArray[np.float32]", blocks: tuple[_Block, ...], size: int) -> "NDArray[np.float32]":
    """(M, W) to (M, size)."""
    out, step = _room("out", len(lines), size), _step(blocks)
    for start in range(0, len(lines), step):
        part = lines[start : start + step]
        for first, begin, end, weights in blocks:
            np.matmul(part[:, begin:end], weights.T, out=out[start : start + step, first : first + len(weights)])
    return out
