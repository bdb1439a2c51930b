"""From the encoder's square to the picture: values are interpolated, amounts are shared out."""

from typing import Any

import torch
from torch import Tensor

from robustsim.errors import InputError
from robustsim.images.decode import read_image
from robustsim.images.inputs import ImageInput, split_images
from robustsim.images.preprocessing import Preprocessing
from robustsim.images.resize import full_precision


def of_one_size(images: ImageInput) -> tuple[list[Any], tuple[int, int]]:
    """Pictures in memory, tensors or PIL images, and their (height, width): files are read here, and not again.

    Raises:
        ImageError: a file that cannot be read.
        InputError: what is no image, or pictures of several sizes.
    """
    parts = [part if isinstance(part, Tensor) else read_image(part) for part in split_images(images)]
    sizes = {
        (part.shape[-2], part.shape[-1]) if isinstance(part, Tensor) else (part.height, part.width) for part in parts
    }
    if len(sizes) > 1:
        seen = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise InputError(f"pictures of several sizes ({seen}) have no common map: pass those of one size at a time")
    return parts, sizes.pop()


def interpolated(places: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    """Values of the square's places at each pixel of a picture, bilinearly; 0 where the encoder does not look.

    Args:
        places: (N, h, w), which fill the encoder's square.
        size: (height, width) of the picture.
        preprocessing: how the picture becomes the square.

    Returns:
        (N, height, width), between the values of the places but for rounding.
    """
    height, width = size
    left, top, right, bottom = preprocessing.square(width, height)
    with full_precision(places):
        down = _weights(height, places.shape[1], top, bottom, places)
        across = _weights(width, places.shape[2], left, right, places)
        return down @ places @ across.transpose(0, 1)


def enlarged(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values of places, (N, h, w), at those of a finer grid on the same square, (N, H, W), bilinearly."""
    if places.shape[1:] == grid:
        return places
    with full_precision(places):
        down, across = (_weights(grid[i], places.shape[1 + i], 0, grid[i], places) for i in range(2))
        return down @ places @ across.transpose(0, 1)


def mean_of_pixels(places: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    """The mean of what `interpolated` gives, over the pixels that the encoder looks at, (N,); 0 where it sees none."""
    height, width = size
    left, top, right, bottom = preprocessing.square(width, height)
    with full_precision(places):
        down = _weights(height, places.shape[1], top, bottom, places).sum(0)
        across = _weights(width, places.shape[2], left, right, places).sum(0)
        total = (places * (down[:, None] * across)).sum((1, 2))
        return total / (down.sum() * across.sum()).clamp_min(1)


def shared_out(amounts: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    """Amounts of the square's pixels as those of a picture's pixels, with the same sum.

    Each pixel of the square gives to those that it covers, by the areas that it has in common with them. What lies
    beyond the picture, in the padding of `longest`, goes to the nearest pixels of its edge.

    Args:
        amounts: (N, S, S).
        size: (height, width) of the picture.
        preprocessing: how the picture becomes the square.

    Returns:
        (N, height, width), 0 where the encoder does not look.
    """
    height, width = size
    left, top, right, bottom = preprocessing.square(width, height)
    with full_precision(amounts):
        down = _shares(height, amounts.shape[1], top, bottom, amounts)
        across = _shares(width, amounts.shape[2], left, right, amounts)
        return down @ amounts @ across.transpose(0, 1)


def _weights(pixels: int, places: int, low: float, high: float, like: Tensor) -> Tensor:
    """(pixels, places): how much of each place a pixel of a line gets; the places fill it from `low` to `high`."""
    centres = torch.arange(pixels, device=like.device, dtype=torch.float32) + 0.5
    at = ((centres - low) * (places / (high - low)) - 0.5).clamp(0, places - 1)
    weights = (1 - (at[:, None] - torch.arange(places, device=like.device)).abs()).clamp_min(0)
    # Of a tiny picture that is cropped, no pixel's centre may lie inside: then the nearest ones do.
    beyond = torch.maximum(low - centres, centres - high)
    return weights * (beyond <= beyond.min().clamp_min(0))[:, None]


def _shares(pixels: int, places: int, low: float, high: float, like: Tensor) -> Tensor:
    """(pixels, places): the share of each place that a pixel of a line gets, 1 for each place together."""
    edges = low + torch.arange(places + 1, device=like.device, dtype=torch.float32) * ((high - low) / places)
    starts = torch.arange(pixels, device=like.device, dtype=torch.float32)[:, None]
    common = (torch.minimum(starts + 1, edges[1:]) - torch.maximum(starts, edges[:-1])).clamp_min(0)
    # A place beyond the picture has nothing in common with it.
    nearest = ((edges[1:] + edges[:-1]) / 2).floor().clamp(0, pixels - 1)
    total = common.sum(0)
    beyond = total <= 0
    return torch.where(beyond, (starts == nearest).to(torch.float32), common / torch.where(beyond, 1.0, total))
