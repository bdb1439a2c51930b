"""SSIM and MS-SSIM as distances, per image and per channel, with gradients that are finite everywhere.

The libraries' MS-SSIM raise a contrast that is negative, or was cut to 0, to a power below 1: the value is NaN, or its
gradient. Here both are 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.baselines.base import Baseline

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and its contrast and structure alone, of images (N, C, H, W) in [0, 1]: two tensors (N, C).

    With local means m, variances s and covariance s_ab under a Gaussian window of 11 x 11, sigma 1.5, taken where it
    lies inside the image (Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity,
    2004):

    ```text
    contrast = (2 s_ab + c2) / (s_a + s_b + c2)
    ssim     = (2 m_a m_b + c1) / (m_a^2 + m_b^2 + c1) * contrast
    ```
    """
    window = _window(a)
    m_a, m_b, m_aa, m_bb, m_ab = (_blur(image, window) for image in (a, b, a * a, b * b, a * b))
    product, squares = m_a * m_b, m_a * m_a + m_b * m_b
    contrast = (2 * (m_ab - product) + _C2) / (m_aa + m_bb - squares + _C2)
    similarity = (2 * product + _C1) / (squares + _C1) * contrast
    return similarity.mean((2, 3)), contrast.mean((2, 3))


class SSIM(Baseline):
    """`1 - SSIM`, in [0, 2], the mean over the channels.

    Images whose short side is nearer to a multiple n > 1 of 256 pixels are first averaged over n x n, as the authors'
    code does.
    """

    least_side = _WINDOW

    def __init__(self) -> None:
        super().__init__("ssim", "1 - SSIM; Wang et al., Image Quality Assessment, 2004")
        self._freeze()

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        factor = round(min(a.shape[2:]) / 256)
        if factor > 1:
            a, b = F.avg_pool2d(a, factor), F.avg_pool2d(b, factor)
        return 1 - ssim_terms(a, b)[0].mean(1)


class MSSSIM(Baseline):
    """`1 - MS-SSIM`, in [0, 1], the mean over the channels.

    The product over five scales, each half as large as the one before, of the contrast (of the SSIM itself at the last
    one) to the scale's power; what is negative counts as 0 (Wang, Simoncelli and Bovik, Multi-scale Structural
    Similarity for Image Quality Assessment, 2003).
    """

    least_side = (_WINDOW - 1) * 2 ** (len(_SCALES) - 1) + 1

    def __init__(self) -> None:
        super().__init__("ms-ssim", "1 - MS-SSIM; Wang et al., Multi-scale Structural Similarity, 2003")
        self._freeze()

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        *upper, last = _SCALES
        product = a.new_ones(())
        for power in upper:
            product = product * _power(ssim_terms(a, b)[1], power)
            a, b = _halved(a), _halved(b)
        return 1 - (product * _power(ssim_terms(a, b)[0], last)).mean(1)


def _power(x: Tensor, power: float) -> Tensor:
    """`max(x, 0) ** power` with the gradient 0 where x is not positive."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1) ** power, 0)


def _halved(image: Tensor) -> Tensor:
    """Half the size; an odd row or column is repeated at the top or left."""
    odd = max(image.shape[2] % 2, image.shape[3] % 2)
    return F.avg_pool2d(F.pad(image, (odd, 0, odd, 0), mode="replicate"), 2)


def _window(like: Tensor) -> Tensor:
    places = torch.arange(_WINDOW, dtype=like.dtype, device=like.device) - _WINDOW // 2
    weights = torch.exp(places.square() / (-2 * _SIGMA**2))
    return weights / weights.sum()


def _blur(image: Tensor, window: Tensor) -> Tensor:
    channels = image.shape[1]
    column = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    row = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(image, column, groups=channels), row, groups=channels)
