"""What was passed as images, as NumPy arrays: the part of the door for which nobody needs torch.

[`inputs`][robustsim.images] makes tensors of what comes out here; pictures that go through Pillow have the same pixels
on both ways, to the bit.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from robustsim.errors import ImageError, InputError
from robustsim.images.decode import decoded, loaded, opened, read_image
from robustsim.images.fast import Decode, draft, fast_square
from robustsim.images.files import prefetch
from robustsim.images.lines import line_weights
from robustsim.images.preprocessing import RANGE_TOLERANCE, Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KINDS = "a path, bytes, a PIL image, an (H, W, 3) array, a (3, H, W) or (N, 3, H, W) tensor, or a list of those"


def split_source(image: Any, *, as_rgb: bool = True) -> list[Any]:
    """What is neither a list nor a tensor, as a flat list: files, bytes, PIL images, and float32 arrays (H, W, C).

    C is 3, or 1 of grey pictures. Arrays of uint8 become PIL images: the same picture as a file holds, and so the same
    path through Pillow, to the same bits.

    Args:
        image: what was passed.
        as_rgb: whether PIL images become RGB at once; else they are decoded alone.

    Raises:
        InputError: a shape or type that is no image.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, (bytearray, memoryview)):
        return [bytes(image)]
    if isinstance(image, Image.Image):
        return [loaded(image, as_rgb=as_rgb)]
    if isinstance(image, (str, os.PathLike, bytes)):
        return [image]
    raise InputError(f"{type(image).__name__} is not an image: an image is {_KINDS}")


def _from_array(array: "NDArray[Any]") -> list[Any]:
    shape = array.shape
    if array.ndim == 4 and shape[-1] == 3:
        return [part for image in array for part in _from_array(image)]
    channels = 1 if array.ndim == 2 else shape[-1] if array.ndim == 3 else 0
    if channels not in (1, 3, 4) or 0 in shape:
        hint = ""
        if array.ndim in (3, 4) and shape[-3] == 3:
            order = "1, 2, 0" if array.ndim == 3 else "0, 2, 3, 1"
            hint = f"; the channels are first here: use array.transpose({order}), or torch.from_numpy(array)"
        raise InputError(f"an array of shape {shape} is not an image: arrays are (H, W, 3), (H, W, 4) or (H, W){hint}")
    if array.dtype == np.uint8:
        return [Image.fromarray(array[..., 0] if array.ndim == 3 and channels == 1 else array)]
    if channels == 4:
        raise InputError(f"a {array.dtype} array with alpha, of shape {shape}: composite it first, or use uint8")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(no_range(array.dtype))
    # A copy: torch takes no read-only memory.
    return [np.array(array, dtype=np.float32, order="C").reshape(*shape[:2], channels)]


def no_range(dtype: object) -> str:
    """The message about a type whose values have no agreed meaning."""
    return (
        f"images of type {dtype} have no agreed range: use uint8 (0..255) or floating point in [0, 1] "
        "(16-bit data: array / 65535)"
    )


def check_range(low: float, high: float, input_range: tuple[float, float]) -> None:
    """Refuse values outside [0, 1], beyond what rounding does.

    Args:
        low: the smallest value, after `input_range` was brought to [0, 1].
        high: the largest.
        input_range: what the caller said the range was.

    Raises:
        InputError: they are, or there is NaN among them.
    """
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise InputError(_range_message(low, high, input_range))


def check_input_range(input_range: object) -> None:
    """Refuse what is no range of values.

    Raises:
        InputError: it is not (low, high) with low < high.
    """
    if not (isinstance(input_range, (tuple, list)) and len(input_range) == 2 and input_range[0] < input_range[1]):
        raise InputError(f"input_range must be (low, high) with low < high, not {input_range!r}")


def _range_message(seen_low: float, seen_high: float, input_range: tuple[float, float]) -> str:
    low, high = input_range
    seen_low, seen_high = (value * (high - low) + low for value in (seen_low, seen_high))
    seen = f"floating-point images with values from {seen_low:.4g} to {seen_high:.4g}"
    if seen_low != seen_low or seen_high != seen_high:
        return "floating-point images that contain NaN: find out where it comes from before comparing them"
    fix = f"scale them to [{low:g}, {high:g}]"
    if (low, high) == (0, 1):
        if seen_low >= -1 - RANGE_TOLERANCE and seen_high <= 1 + RANGE_TOLERANCE:
            fix = "pass input_range=(-1, 1)"
        elif seen_low >= 0 and seen_high <= 255:
            fix = "pass input_range=(0, 255), or uint8"
    return f"{seen}, outside [{low:g}, {high:g}]: {fix}"


def read_square(source: Any, preprocessing: Preprocessing, decode: Decode = "exact") -> "NDArray[np.uint8]":
    """A path, bytes or PIL image as the encoder's square, (S, S, 3).

    Args:
        source: what is read.
        preprocessing: how it becomes the square.
        decode: `exact` for the pixels of the reference pipelines, or `fast`, which leaves what it is not made for to
            the exact way.

    Raises:
        ImageError: it cannot be read; the same pictures for the same reasons on both ways.
    """
    drafted = None
    if decode == "fast" and not isinstance(source, Image.Image):  # whose decoder may have begun already
        with opened(source) as (image, what):
            drafted = draft(image, preprocessing)
            image = decoded(image, what)
    else:
        image = read_image(source)
    try:
        if drafted is not None:
            return fast_square(image, drafted, preprocessing)
        return np.array(preprocessing.apply(image))
    except ImageError as error:
        name = "" if isinstance(source, (bytes, Image.Image)) else f"{os.fspath(source)!r}: "
        raise ImageError(f"{name}{error}") from None


def unit_array(square: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """A square (S, S, 3) as float32 (3, S, S) in [0, 1], to the bit as tensors have it."""
    turned = np.ascontiguousarray(square.transpose(2, 0, 1))
    unit: NDArray[np.float32] = np.divide(turned, np.float32(255), dtype=np.float32)
    return unit


def stream_arrays(
    parts: Sequence[Any],
    preprocessing: Preprocessing,
    *,
    input_range: tuple[float, float] = (0, 1),
    batch_size: int | None = None,
    decode: Decode = "exact",
) -> "Iterator[NDArray[np.float32]]":
    """Files, bytes, PIL images and float32 or uint8 arrays (H, W, C) as batches (N, 3, size, size) in [0, 1], in order.

    As [`stream_pixels`][robustsim.images] without tensors; threads decode ahead.

    Raises:
        ImageError: a file that cannot be read.
        InputError: a value range that is no image's.
    """
    check_input_range(input_range)
    size = batch_size or len(parts)
    load = partial(_load, preprocessing=preprocessing, input_range=input_range, decode=decode)
    rows = prefetch(load, parts, ahead=2 * size) if len(parts) > 1 else map(load, parts)
    for start in range(0, len(parts), size):
        yield np.stack([next(rows) for _ in parts[start : start + size]])


def _load(
    part: Any, preprocessing: Preprocessing, input_range: tuple[float, float], decode: Decode
) -> "NDArray[np.float32]":
    if not isinstance(part, np.ndarray):
        return unit_array(read_square(part, preprocessing, decode))
    if part.dtype == np.uint8:  # a tensor's, resized as one, without a step back to 8 bits; it has a range of its own
        return _square(part.transpose(2, 0, 1).astype(np.float32) / np.float32(255), preprocessing)
    low, high = input_range
    if (low, high) != (0, 1):
        part = (part - np.float32(low)) / np.float32(high - low)
    check_range(float(part.min()), float(part.max()), input_range)
    return _square(part.clip(0, 1).transpose(2, 0, 1), preprocessing)


def _square(pixels: "NDArray[np.float32]", preprocessing: Preprocessing) -> "NDArray[np.float32]":
    """What [`apply_tensor`][robustsim.images.Preprocessing.apply_tensor] makes of (C, H, W), to rounding: (3, S, S)."""
    size = preprocessing.size
    height, width = pixels.shape[1:]
    (new_width, new_height), (left, top) = preprocessing.window(width, height)
    if {height, width, new_width, new_height} != {size}:
        down = line_weights(height, new_height, top, size, preprocessing.interpolation)
        across = line_weights(width, new_width, left, size, preprocessing.interpolation)
        # Inside, the weights of a line add up to 1, beyond to 0.
        beyond = 1 - down.sum(1)[:, None] * across.sum(1)[None]
        pixels = (down @ (pixels @ across.T) + beyond * (preprocessing.fill / 255)).clip(0, 1).astype(np.float32)
    return np.broadcast_to(pixels, (3, size, size))
