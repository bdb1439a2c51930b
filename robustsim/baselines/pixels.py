"""Distances of the pixels themselves."""

import math

import torch
from torch import Tensor

from robustsim.baselines.base import Baseline


class _Pixels(Baseline):
    """A distance of flattened pixels (N, 3 * H * W)."""

    embeds = True

    def _embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class L2(_Pixels):
    """The root of the mean squared difference of the pixels, in [0, 1]."""

    def __init__(self) -> None:
        super().__init__("l2", "root of the mean squared difference of the pixels")
        self._freeze()

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        # The norm's gradient at 0 is defined as 0; that of the root of a mean would be infinite.
        length: Tensor = torch.linalg.vector_norm(u - v, dim=1)
        return length / math.sqrt(u.shape[1])


class Linf(_Pixels):
    """The largest difference of two pixels, in [0, 1]."""

    def __init__(self) -> None:
        super().__init__("linf", "largest difference of the pixels")
        self._freeze()

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        return (u - v).abs().amax(1)


class PSNR(_Pixels):
    """Minus the peak signal-to-noise ratio, `10 log10(mean squared difference)`, in decibels, in [-100, 0].

    A mean squared difference below 1e-10 counts as that, so that identical images have -100 dB.
    """

    def __init__(self) -> None:
        super().__init__("psnr", "minus the peak signal-to-noise ratio, in dB")
        self._freeze()

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        return 10 * torch.log10((u - v).square().mean(1).clamp_min(1e-10))
