"""Where the distance of a pair hangs on the pixels of each picture: the slope, not the difference."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.distances import finite, pair_distance
from robustsim.errors import InputError
from robustsim.explain.drawing import Overlay
from robustsim.metric import RobustSim

# Pixels of the square on a side of a cell: single pixels of a slope are grain.
_CELL = 8
_TITLE = "how far a small change here can move the distance, as a multiple of the mean of all places"


def importance(metric: RobustSim, a: Tensor, b: Tensor) -> list[Overlay]:
    """How far a small change at a place of each picture can move the distance of the pair, to first order.

    Of every pixel, the slopes of its channels are added without their signs: that is how fast the distance moves where
    each of them may change by the same amount, as an attack in linf may. Cells of 8 x 8 pixels are multiples of the
    mean. Where the pixels of both are the same the distance has no slope, and all is 0.

    Args:
        metric: whose distance.
        a: pixels as `metric.preprocess` returns them, (1, 3, S, S).
        b: likewise.

    Raises:
        InputError: an encoder without gradients.
        EncodingError: values that are not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        sides = [side.detach().clone().requires_grad_() for side in (a, b)]
        # Of the squared distance, which differs by a factor, the same everywhere, and which has a slope at 0.
        u, v = map(metric.embed_pixels, sides)
        d = pair_distance(u, v, None, squared=True)
        if not d.requires_grad:
            raise InputError(f"{metric.card.name!r} gives no gradients, and cannot be asked what it hangs on")
        slopes = torch.autograd.grad(d.sum(), sides)
    kept = 0.0 if bool((a == b).all()) else 1.0
    return [_overlay(kept * finite(slope).abs().sum(1), metric) for slope in slopes]


def _overlay(slopes: Tensor, metric: RobustSim) -> Overlay:
    cells = F.adaptive_avg_pool2d(slopes[None], max(1, slopes.shape[1] // _CELL))[0].cpu()
    mean = float(cells.mean())
    values = cells / mean if mean > 0 else torch.zeros_like(cells)
    return Overlay(values, max(float(values.max()), 1.0), False, _TITLE, metric.card.preprocessing)
