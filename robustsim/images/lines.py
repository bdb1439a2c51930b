"""The weights of an antialiased resize of one line of a picture, as Pillow's and `resize`'s, without torch."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CUBIC = -0.5  # as in `resize`
#: How far from a place a value still counts, in values of the smaller of both lines.
REACH = {"bicubic": 2, "bilinear": 1}


def kernel(distance: "NDArray[np.float64]", mode: str) -> "NDArray[np.float64]":
    """How much a value counts, not normed, by its distance >= 0 from the place, in the unit of `REACH`; same shape."""
    x = distance
    if mode == "bicubic":
        near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * _CUBIC
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return np.asarray(np.clip(1 - x, 0, None))


def line_weights(source: int, target: int, first: int, size: int, mode: str) -> "NDArray[np.float64]":
    """`resize._weights` without torch: (size, source), how much each value of a line is part of those after."""
    scale = source / target
    places = np.arange(size) + first
    inside = (places >= 0) & (places < target)
    x = np.abs(np.arange(source)[None] - ((places + 0.5) * scale)[:, None] + 0.5) / max(scale, 1.0)
    weights = np.where(inside[:, None], kernel(x, mode), 0.0)
    return np.asarray(weights / np.where(inside, weights.sum(1), 1.0)[:, None])
