"""A perceptual hash as a metric: bits that differ, with a gradient that passes through them.

The hash is 256 comparisons of DCT coefficients with their median. Up to rounding, the coefficients are linear in the
pixels: grey, Pillow's Lanczos filter and the DCT are matrices, made by the libraries themselves, and the median is
differentiable. The comparison is not.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsim.baselines.base import Baseline
from robustsim.images.hashes import HASH_BITS, hash_rows, perceptual_hash

_HASH_SIDE = 16
_GREY = (0.299, 0.587, 0.114)
# Added to a squared distance, so that its root has a gradient at 0 too; more than rounding takes from it.
_TINY = 1e-5


class PHash(Baseline):
    """ImageHash's `phash` of 256 bits: `sqrt(b / 128)` for b bits that differ, in [0, sqrt(2)].

    A picture with next to no contrast has no hash and is at 1 from all others, as pictures that have nothing to do with
    each other are. The picture is rounded to 8 bits first. Distances are exact; the gradient is that of the
    coefficients behind the bits, through `tanh` in units of their median size.
    """

    embeds = True

    def __init__(self) -> None:
        super().__init__("phash", "ImageHash's phash of 256 bits")
        self._freeze()

    def _embed(self, images: Tensor) -> Tensor:
        hard = hash_vectors([perceptual_hash(one) for one in pictures(images)]).to(images.device)
        if not images.requires_grad:
            return hard
        heights = SoftHash(*images.shape[2:])(in_8_bits(images))
        scale = heights.detach().abs().median(1, keepdim=True).values.clamp_min(torch.finfo(torch.float32).tiny)
        soft = torch.tanh(heights / scale) / HASH_BITS**0.5
        passed: Tensor = hard + (soft - soft.detach())
        return passed

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        square = 1 - (u * v).sum(1)
        smooth = square.add(_TINY).clamp_min(0).sqrt()
        exact = (square.detach() * HASH_BITS / 2).round().mul(2 / HASH_BITS).clamp_min(0).sqrt()
        distance: Tensor = exact + (smooth - smooth.detach())
        return distance


def hash_vectors(hashes: Sequence[bytes | None]) -> Tensor:
    """Hashes as unit vectors (N, 256); zeros, which are far from all, where a flat picture has none."""
    blank = bytes(HASH_BITS // 8)
    rows = torch.from_numpy(hash_rows([one or blank for one in hashes])).float() / HASH_BITS**0.5
    known = torch.tensor([[one is not None] for one in hashes])
    return torch.where(known, rows, torch.zeros(()))


class SoftHash:
    """The hash before it becomes bits, for pictures of one size.

    Args:
        height: of the pictures.
        width: of the pictures.
    """

    def __init__(self, height: int, width: int) -> None:
        self._rows, self._columns = _frequencies(height), _frequencies(width)

    def __call__(self, images: Tensor) -> Tensor:
        """By how much each coefficient exceeds the median: (N, 3, H, W) in [0, 1] -> (N, 256)."""
        rows, columns = self._rows.to(images.device), self._columns.to(images.device)
        grey = 255 * torch.einsum("nchw,c->nhw", images, torch.tensor(_GREY, device=images.device))
        heights = (rows @ grey @ columns.T).flatten(1)
        middle = heights.sort(1).values[:, HASH_BITS // 2 - 1 : HASH_BITS // 2 + 1].mean(1, keepdim=True)
        return heights - middle


@lru_cache(maxsize=16)
def _frequencies(length: int) -> Tensor:
    """The lowest frequencies of a line of so many pixels, reduced as ImageHash does, (16, length)."""
    from scipy.fftpack import dct  # which ImageHash brings

    side = 4 * _HASH_SIDE
    return torch.tensor(dct(np.eye(side), axis=0)[:_HASH_SIDE] @ _lanczos(length, side).T, dtype=torch.float32)


def _lanczos(source: int, target: int) -> Any:
    """Pillow's own filter as a matrix, (source, target)."""
    impulses = Image.fromarray(np.eye(source, dtype=np.float32))
    return np.asarray(impulses.resize((target, source), Image.Resampling.LANCZOS))


def in_8_bits(images: Tensor) -> Tensor:
    """Rounded to 8 bits; the gradient is that of the identity."""
    return images + (images.mul(255).round().div(255) - images).detach()


def pictures(images: Tensor) -> list[Image.Image]:
    """Tensors (N, 3, H, W) in [0, 1] as pictures of 8 bits."""
    levels = images.detach().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(one) for one in levels.contiguous().cpu().numpy()]
