"""The distance place by place: what the encoder has for each part of one picture, against the same part of another.

With the features u_p and v_p of place p, scaled to length 1 (cosine distance, as between whole pictures):

    map(p) = |u_p - v_p| / sqrt(2)      in [0, sqrt(2)]
"""

from typing import Any

import torch
from torch import Tensor

from robustsim.distances import check_counts, encode_together, finite, joined, pair_distance, same_pictures
from robustsim.errors import InputError
from robustsim.images.decode import read_image
from robustsim.images.inputs import ImageInput, split_images
from robustsim.images.resize import full_precision
from robustsim.metric import Range, RobustSim


def difference_map(
    metric: RobustSim, a: ImageInput, b: ImageInput, *, squared: bool = False, input_range: Range = (0, 1)
) -> Tensor:
    """Where pairs of pictures differ, at the resolution of the first: (N, H, W) float32 in [0, sqrt(2)].

    The encoder's last features are compared place by place (a transformer's patches after the last norm, the last map
    of a convolutional network) and interpolated bilinearly. They are coarse, 7 x 7 for many models, and each has seen
    more of the picture than its own part: read a map as "about here". Its mean is not the distance of the pictures,
    which comes from what the encoder makes of all places together.

    Identical pictures give exactly 0 everywhere. What the encoder does not look at, where its card has a picture
    cropped, is 0 too ([`seen`][robustsim.images.Preprocessing.seen] says where that is). A place for which the encoder
    has nothing but zeros, as behind a ReLU, is 1 from every other, and 0 from another such.

    Args:
        metric: whose encoder looks.
        a: N pictures of one size, or 1.
        b: N pictures of any sizes, or 1; embeddings have no places, and will not do.
        squared: give `|u_p - v_p|^2 / 2` instead, in [0, 2].
        input_range: as for [`RobustSim.preprocess`][robustsim.RobustSim.preprocess].

    Returns:
        (N, H, W) on the metric's device; differentiable to tensors, with gradients that are finite everywhere.

    Raises:
        InputError: pictures of several sizes in `a`, counts that differ, or an architecture without access to places.
        ImageError: a file that cannot be read.
    """
    # Files are read here, for their sizes, and not again: what comes back is a picture in memory.
    parts = [part if isinstance(part, Tensor) else read_image(part) for part in split_images(a)]
    sizes = {_size(part) for part in parts}
    if len(sizes) > 1:
        seen = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise InputError(f"pictures of several sizes ({seen}) have no common map: pass those of one size at a time")
    x, y = (metric.preprocess(images, input_range=input_range) for images in (parts, b))
    return map_of_pixels(metric, x, y, sizes.pop(), squared=squared)


def map_of_pixels(
    metric: RobustSim, a: Tensor, b: Tensor, size: tuple[int, int], *, squared: bool, check: bool = True
) -> Tensor:
    """As `difference_map`, of what `metric.preprocess` returned: (N, 3, S, S) or (1, 3, S, S).

    Args:
        metric: whose encoder looks.
        a: pixels.
        b: pixels.
        size: (height, width) of the pictures that these pixels were made of.
        squared: as for `difference_map`.
        check: whether what is not finite is an error.
    """
    sides = (a, b)
    counts = [side.shape[0] for side in sides]
    check_counts(counts)

    def encode(pixels: Tensor) -> Tensor:
        return _places(metric, pixels)

    # The one that stands against many is encoded once.
    known = [encode(side) if side.shape[0] < max(counts) else None for side in sides]
    step = max(counts)
    if not torch.compiler.is_compiling() and sum(counts) > metric.batch_size:
        step = max(1, metric.batch_size // known.count(None))
    maps = []
    for first in range(0, max(counts), step):
        rows = [side if side.shape[0] == 1 else side[first : first + step] for side in sides]
        fresh = iter(encode_together(encode, [rows[i] for i in range(2) if known[i] is None]))
        u, v = (next(fresh) if one is None else one for one in known)
        maps.append(pair_distance(u, v, same_pictures(*rows)[:, None, None], squared=squared))
    places = joined(maps)
    height, width = size
    left, top, right, bottom = metric.card.preprocessing.square(width, height)
    with full_precision(places):
        down = _weights(height, places.shape[1], top, bottom, places)
        across = _weights(width, places.shape[2], left, right, places)
        # What is interpolated between values at the bound may lie beyond it by rounding.
        whole = (down @ places @ across.transpose(0, 1)).clamp(max=2 if squared else 2**0.5)
    return finite(whole) if check else whole


def _places(metric: RobustSim, pixels: Tensor) -> Tensor:
    """Unit vectors for each place, (N, C + 1, h, w) float32; the last channel is that of places with none but zeros."""
    features = metric.encoder.features(pixels)
    tokens = features.tokens.to(torch.float32).transpose(1, 2).reshape(len(pixels), -1, *features.grid)
    length = torch.linalg.vector_norm(tokens, dim=1, keepdim=True)
    empty = length == 0
    # Divided by 1 there, as the gradient of what is not taken must be finite too.
    unit = (tokens / torch.where(empty, torch.ones_like(length), length)).masked_fill(empty, 0)
    return torch.cat((unit, empty.to(torch.float32)), 1)


def _weights(pixels: int, places: int, low: float, high: float, like: Tensor) -> Tensor:
    """(pixels, places): how much of each place a pixel of a line gets; the places fill it from `low` to `high`."""
    centres = torch.arange(pixels, device=like.device, dtype=torch.float32) + 0.5
    at = ((centres - low) * (places / (high - low)) - 0.5).clamp(0, places - 1)
    weights = (1 - (at[:, None] - torch.arange(places, device=like.device)).abs()).clamp_min(0)
    return weights * ((centres >= low) & (centres <= high))[:, None]


def _size(part: Any) -> tuple[int, int]:
    """(height, width) of a tensor or a PIL image."""
    return (part.shape[-2], part.shape[-1]) if isinstance(part, Tensor) else (part.height, part.width)
