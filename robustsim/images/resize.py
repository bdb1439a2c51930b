"""The differentiable resize: antialiased, as Pillow's, for tensors of any size."""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.images.tracing import is_traced

# Of the cubic kernel, in Pillow and in torch's antialiased interpolation (Keys 1981, Eq. 4).
_CUBIC = -0.5


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """No mixed precision in this block: a logit of 25 would be one of the multiples of 1/8 that bfloat16 has there."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def resize_window(
    pixels: Tensor, resized: tuple[int, int], corner: tuple[int, int], size: int, mode: str, fill: float
) -> Tensor:
    """Resize pictures, and cut a square window out of them; where it reaches beyond them, it is filled.

    Where torch traces the program, both are one product of matrices for rows and one for columns: the kernel behind
    `interpolate` has no gradient for sizes that a graph leaves open, and no size in between may depend on them.
    Elsewhere that kernel, which is faster on large pictures; but not for a result of one column, which it gets wrong.

    Args:
        pixels: (N, 3, H, W) floating point in [0, 1].
        resized: (height, width) of the whole picture after the resize, in pixels.
        corner: (top, left) of the window in it; negative where the window begins before the picture.
        size: side of the window, in pixels.
        mode: `bicubic` or `bilinear`, antialiased.
        fill: value beyond the picture.

    Returns:
        (N, 3, size, size), not clamped.
    """
    (height, width), (top, left) = resized, corner
    if is_traced(pixels) or width == 1:
        with full_precision(pixels):
            down, across = (
                _weights(source, target, first, size, mode, pixels)
                for source, target, first in ((pixels.shape[-2], height, top), (pixels.shape[-1], width, left))
            )
            out = down @ (pixels @ across.transpose(0, 1))
        # Inside, the weights of a line add up to 1, beyond to 0.
        return out if not fill else out + fill * (1 - down.sum(1)[:, None] * across.sum(1)[None])
    if pixels.shape[-2:] != (height, width):
        pixels = F.interpolate(pixels, size=(height, width), mode=mode, antialias=True, align_corners=False)
    if height < size or width < size:
        border = (-left, size - width + left, -top, size - height + top)
        return F.pad(pixels, border, value=fill)
    return pixels[..., top : top + size, left : left + size]


def _weights(source: int, target: int, first: int, size: int, mode: str, like: Tensor) -> Tensor:
    """(size, source): how much each value of a line is part of those after the resize, from the place `first` on."""
    scale = source / target
    stretch = cast(float, torch.sym_max(scale, 1.0))  # the kernel covers at least one value
    places = torch.arange(size, device=like.device) + first
    inside = (places >= 0) & (places < target)
    centres = (places.to(like.dtype) + 0.5) * scale
    lines = torch.arange(source, device=like.device, dtype=like.dtype)
    x = (lines[None] - centres[:, None] + 0.5).abs() / stretch
    if mode == "bicubic":
        near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * _CUBIC
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        weights = (1 - x).clamp_min(0)
    weights = torch.where(inside[:, None], weights, 0.0)
    return weights / torch.where(inside, weights.sum(1), 1.0)[:, None]
