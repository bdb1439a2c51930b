"""Integrated gradients of a distance.

Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, ICML 2017, Eq. 1.

From the pixels y of the second picture to the pixels x of the first, channel by channel and place by place:

    map(p) = (x_p - y_p) * integral over t from 0 to 1 of the derivative of d(y + t (x - y), y) by its pixel p
"""

import numpy as np
import torch
from torch import Tensor

from robustsim.distances import encode_together, finite, joined, pair_distance, same_pictures
from robustsim.errors import InputError
from robustsim.metric import RobustSim
from robustsim.vectors import check_counts

# How many times less pictures go into a pass that keeps what it needs to go back.
_HELD = 4


def integrated_gradients(
    metric: RobustSim, a: Tensor, b: Tensor, *, steps: int, squared: bool, closed: bool = True
) -> Tensor:
    """What each pixel of the encoder's square adds to the distance: (N, S, S) float32, whose sum is the distance.

    The second picture is the baseline: the distance is 0 there, and grows from 0 along the line. As the length of a
    difference, `|u - v| / sqrt(2)`, it has a slope at 0, unlike the root of a difference of similarities, and the
    points of Gauss and Legendre do not touch the ends of the line.

    What so few points leave of the distance, or add to it, is shared out in proportion to the sizes of the values: how
    much that is, scripts/map_costs.py measures.

    Args:
        metric: whose distance.
        a: pixels as `metric.preprocess` returns them, (N, 3, S, S) or (1, 3, S, S).
        b: pixels, likewise.
        steps: points of the line, each a forward and a backward pass of a picture.
        squared: of the squared distance.
        closed: whether what the points leave is shared out.

    Raises:
        InputError: counts that differ, no steps, or an encoder without gradients.
        EncodingError: values that are not finite.
    """
    return gradients_with_squares(metric, a, b, steps=steps, squared=squared, closed=closed)[0]


def gradients_with_squares(
    metric: RobustSim, a: Tensor, b: Tensor, *, steps: int, squared: bool, closed: bool = True
) -> tuple[Tensor, Tensor]:
    """As `integrated_gradients`, with the squared distances, (N,), to the bits that `metric.distance` gives."""
    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    counts = [a.shape[0], b.shape[0]]
    check_counts(counts)
    count, rows = max(counts), max(1, metric.batch_size // _HELD)
    # Also where the caller computes no gradients: those of this function are its own.
    with torch.inference_mode(False), torch.enable_grad():
        a, b = (side.detach().clone() for side in (a, b))
        one = [metric.embed_pixels(side) if side.shape[0] < count else None for side in (a, b)]
        maps, squares = [], []
        for first in range(0, count, rows):
            x, y = (side if side.shape[0] < count else side[first : first + rows] for side in (a, b))
            with torch.no_grad():
                new = [side for side, z in zip((x, y), one, strict=True) if z is None]
                fresh = iter(encode_together(metric.embed_pixels, new))
                u, v = (next(fresh) if z is None else z for z in one)
                same = same_pictures(x, y)
                d = pair_distance(u, v, same, squared=squared)
                squares.append(pair_distance(u, v, same, squared=True))
            values = _line(metric, x, y, v, steps, squared)
            maps.append(_closed(values, x, y, d) if closed else values)
    return finite(joined(maps)), joined(squares)


def _line(metric: RobustSim, x: Tensor, y: Tensor, v: Tensor, steps: int, squared: bool) -> Tensor:
    """The integral as a weighted sum, (n, S, S)."""
    change = x - y
    total = torch.zeros_like(change)
    points, weights = np.polynomial.legendre.leggauss(steps)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        at = (y + float(point) * change).requires_grad_()
        d = pair_distance(metric.embed_pixels(at), v, None, squared=squared)
        if not d.requires_grad:
            raise InputError(f"{metric.card.name!r} gives no gradients: use method='layers'")
        total += float(weight) * torch.autograd.grad(d.sum(), at)[0]
    return (change * total).sum(1)


def _closed(values: Tensor, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    """Values whose sums are the distances, (n,): what they lack is added where they are large."""
    rest = d - values.sum((1, 2))
    sizes = values.abs()
    # Where no point of the line has a gradient, by how much the pixels differ.
    sizes = torch.where(sizes.sum((1, 2), keepdim=True) > 0, sizes, (x - y).abs().sum(1))
    total = sizes.sum((1, 2))
    shares = sizes / torch.where(total > 0, total, 1.0)[:, None, None]
    return (values + rest[:, None, None] * shares).masked_fill((d == 0)[:, None, None], 0)
