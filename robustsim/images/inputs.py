"""Sort out what was passed as images, check it, and bring it to the encoder's square."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsim.errors import InputError
from robustsim.images.arrays import check_input_range, check_range, no_range, read_square, split_source
from robustsim.images.checks import Checks
from robustsim.images.fast import Decode
from robustsim.images.files import prefetch
from robustsim.images.preprocessing import Preprocessing, clip
from robustsim.images.tracing import concrete

if TYPE_CHECKING:
    from numpy.typing import NDArray

ImageSource: TypeAlias = Union[str, os.PathLike[str], bytes, Image.Image, "NDArray[Any]", Tensor]
ImageInput: TypeAlias = Union[ImageSource, Sequence[ImageSource]]


def split_images(images: ImageInput, *, as_rgb: bool = True) -> list[Any]:
    """What was passed, as a flat list: files, bytes, PIL images and uint8 arrays one by one, tensors as (N, 3, H, W).

    Args:
        images: what was passed.
        as_rgb: whether PIL images become RGB at once; else they are decoded alone, for whoever looks at their views.

    Raises:
        InputError: a shape or type that is no image, or an empty list.
    """
    if isinstance(images, (list, tuple)):
        flat = [part for image in images for part in split_images(image, as_rgb=as_rgb)]
        if not flat:
            raise InputError("got an empty list of images: pass at least one")
        return flat
    if isinstance(images, Tensor):
        return [_batched(images)]
    # Float arrays come as (H, W, C), grey ones with one channel for all three.
    return [
        torch.from_numpy(part).permute(2, 0, 1).expand(3, -1, -1)[None] if isinstance(part, np.ndarray) else part
        for part in split_source(images, as_rgb=as_rgb)
    ]


def _batched(tensor: Tensor) -> Tensor:
    shape = tuple(tensor.shape)
    if tensor.ndim not in (3, 4) or shape[-3] != 3:
        hint = ""
        if tensor.ndim in (3, 4) and shape[-1] == 3:
            order = "2, 0, 1" if tensor.ndim == 3 else "0, 3, 1, 2"
            hint = f"; the channels are last here: use tensor.permute({order})"
        elif tensor.ndim in (3, 4) and shape[-3] == 1:
            hint = "; for grey images use tensor.expand(3, -1, -1), or expand(-1, 3, -1, -1) for a batch"
        raise InputError(f"a tensor of shape {shape} is not an image: tensors are (3, H, W) or (N, 3, H, W){hint}")
    if 0 in shape or tensor.layout != torch.strided or tensor.is_meta:
        raise InputError(f"a tensor of shape {shape}, {tensor.layout} on {tensor.device}, holds no pixels")
    return tensor if tensor.ndim == 4 else tensor[None]


def unit_range(tensor: Tensor, input_range: tuple[float, float], checks: Checks | None = None) -> Tensor:
    """Any accepted tensor as floating point in [0, 1], of at least 32 bits.

    Args:
        tensor: an image, or several.
        input_range: of floating-point values.
        checks: what was asked of the device already; the range is asked with it, so that there is one wait.

    Raises:
        InputError: values outside the range, or a type without one; what `checks` finds comes first.
    """
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.float32).div(255)
    if not tensor.is_floating_point():
        raise InputError(no_range(tensor.dtype))
    if tensor.dtype != torch.float32:
        tensor = tensor.to(torch.float32)
    low, high = input_range
    if (low, high) != (0, 1):
        tensor = (tensor - low) / (high - low)
    if torch.compiler.is_compiling():
        return clip(tensor)  # the check would break the graph
    seen: list[float] = []
    checks = checks or Checks()
    checks.ask(torch.stack(torch.aminmax(concrete(tensor))), seen.extend)
    checks.settle()
    seen_low, seen_high = seen
    check_range(seen_low, seen_high, input_range)
    return clip(tensor) if seen_low < 0 or seen_high > 1 else tensor


def load_square(source: Any, preprocessing: Preprocessing, decode: Decode = "exact") -> Tensor:
    """A path, bytes or PIL image as the encoder's square, uint8 (S, S, 3); arguments as for `read_square`.

    Raises:
        ImageError: it cannot be read.
    """
    return torch.from_numpy(read_square(source, preprocessing, decode))


def stack_squares(squares: Sequence[Tensor], device: torch.device) -> Tensor:
    """Squares (S, S, 3), uint8 or float32 in [0, 1], as float32 (N, 3, S, S) in [0, 1] on a device.

    Those of uint8 travel there as bytes, if all are.
    """
    if len({square.dtype for square in squares}) > 1:
        squares = [square if square.is_floating_point() else square.to(torch.float32).div(255) for square in squares]
    batch = None
    if device.type == "cuda":  # in pinned memory: the next batch is decoded while this one travels
        shape, dtype = (len(squares), *squares[0].shape), squares[0].dtype
        batch = torch.empty(shape, dtype=dtype, pin_memory=True)
    return unit_pixels(torch.stack(tuple(squares), out=batch), device)


def to_picture(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [0, 1] as a picture, rounded to 8 bit."""
    return Image.fromarray(pixels.detach().mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def unit_pixels(squares: Tensor, device: torch.device) -> Tensor:
    """(N, S, S, 3), uint8 or float32 in [0, 1], as float32 (N, 3, S, S) in [0, 1] on a device.

    Nobody waits for those in pinned memory.
    """
    # Elsewhere than in CUDA the memory could be gone before it is read.
    there = squares.to(device, non_blocking=device.type == "cuda").permute(0, 3, 1, 2)
    return there if there.is_floating_point() else there.to(torch.float32).div(255)


def stream_pixels(
    parts: Sequence[Any],
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    input_range: tuple[float, float] = (0, 1),
    batch_size: int | None = None,
    checks: Checks | None = None,
    decode: Decode = "exact",
) -> Iterator[Tensor]:
    """The parts of `split_images` as batches of float32 (N, 3, size, size) in [0, 1] on `device`, in order.

    Files, bytes, PIL images and uint8 arrays go through Pillow, decoded by threads ahead of the batch they belong to,
    most JPEG files by a faster way that is near that, and not the same bits, if `decode` is `fast`; tensors and float
    arrays go through the differentiable path. All batches but the last are of `batch_size`, tensors are cut for that;
    without one, there is a single batch. `checks` as for `unit_range`; they are settled before the first batch comes.

    Raises:
        ImageError: a file that cannot be read.
        InputError: a type or value range that is no image.
    """
    check_input_range(input_range)
    files = [part for part in parts if not isinstance(part, Tensor)]
    load = partial(load_square, preprocessing=preprocessing, decode=decode)
    ahead = 2 * batch_size if batch_size else 64
    squares = prefetch(load, files, ahead=ahead) if len(files) > 1 else map(load, files)
    for batch in _batches(parts, batch_size):
        first = batch[0]
        if checks is not None and not (isinstance(first, Tensor) and first.is_floating_point()):
            checks.settle()  # before any file is waited for; else with the range of values
        if not any(isinstance(part, Tensor) for part in batch):
            yield stack_squares([next(squares) for _ in batch], device)
            continue
        pixels = [
            preprocessing.apply_tensor(unit_range(part.to(device), input_range, checks))
            if isinstance(part, Tensor)
            else stack_squares([next(squares)], device)
            for part in batch
        ]
        yield pixels[0] if len(pixels) == 1 else torch.cat(pixels)


def count_images(parts: Sequence[Any]) -> int:
    """How many images the parts of `split_images` are."""
    return sum(part.shape[0] if isinstance(part, Tensor) else 1 for part in parts)


def _batches(parts: Sequence[Any], size: int | None) -> Iterator[list[Any]]:
    if size is None:
        yield list(parts)
        return
    batch: list[Any] = []
    for part in parts:
        rest = part
        while isinstance(rest, Tensor) and len(rest) > (room := size - count_images(batch)):
            batch.append(rest[:room])
            rest = rest[room:]
            yield batch
            batch = []
        batch.append(rest)
        if count_images(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
