"""Two distortions of a picture, of one kind, the second stronger: what a metric should find nearer, and what farther.

Nobody has to label them (as in RankIQA, Liu et al. 2017). Amounts are continuous and shapes random, and everything is
torch on a batch, where the images are. Amounts in pixels are meant for a side of 224.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.images.resize import full_precision

# (N, 3, H, W) images; on the CPU, (N,) amounts and (N, 64) random numbers that give the shape.
_Distort: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
_SHAPE = 64
# The second amount is at least as many times, and at most as many times, the first.
_LEAST, _MOST = 1.35, 4.0
_SIDE = 224


@dataclass(frozen=True)
class _Kind:
    how: _Distort
    low: float
    high: float


def graded(images: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A weaker and a stronger distortion of each image.

    Args:
        images: (N, 3, H, W) in [0, 1].
        seeds: (N,) of kind, amounts and shape of each image's, which depend on nothing else.

    Returns:
        Two of (N, 3, H, W) in [0, 1].
    """
    plans = [_plan(random.Random(seed)) for seed in seeds]
    weaker, stronger = torch.empty_like(images), torch.empty_like(images)
    with torch.no_grad(), full_precision(images):
        for name in dict.fromkeys(kind for kind, *_ in plans):
            rows = [row for row, plan in enumerate(plans) if plan[0] == name]
            numbers = torch.tensor([[*plans[row][1], *plans[row][2]] for row in rows])
            place = torch.tensor(rows, device=images.device)
            for amount, result in enumerate((weaker, stronger)):
                result[place] = _KINDS[name].how(images[place], numbers[:, amount], numbers[:, 2:]).clamp(0, 1)
    return weaker, stronger


def _plan(draw: random.Random) -> tuple[str, tuple[float, float], list[float]]:
    """Kind, amounts and shape."""
    name = draw.choice(list(_KINDS))
    kind = _KINDS[name]
    first = math.exp(draw.uniform(math.log(kind.low), math.log(kind.high / _LEAST)))
    second = min(kind.high, first * math.exp(draw.uniform(math.log(_LEAST), math.log(_MOST))))
    return name, (first, second), [draw.gauss(0, 1) for _ in range(_SHAPE)]


# -- things move


def _turn(images: Tensor, amount: Tensor, shape: Tensor) -> Tensor:
    """By an angle in radians."""
    angle = amount * shape[:, 0].sign()
    sine, cosine, none = angle.sin(), angle.cos(), torch.zeros_like(angle)
    return _mapped(images, torch.stack([cosine, -sine, none, sine, cosine, none], 1).view(-1, 2, 3))


def _zoom(images: Tensor, amount: Tensor, shape: Tensor) -> Tensor:
    """To a smaller part of the picture, by a share of its side."""
    return _mapped(images, (1 - amount).view(-1, 1, 1) * torch.eye(2, 3))


def _shear(images: Tensor, amount: Tensor, shape: Tensor) -> Tensor:
    """A random affine map, which moves a corner by that share of the side or so."""
    change = shape[:, :6].view(-1, 2, 3) * torch.tensor([1.0, 1.0, 0.3])
    change = change / torch.linalg.matrix_norm(change, keepdim=True)
    return _mapped(images, torch.eye(2, 3) + amount.view(-1, 1, 1) * change)


def _bend(images: Tensor, amount: Tensor, shape: Tensor) -> Tensor:
    """A smooth field of displacements, the largest of that many pixels."""
    size = images.shape[-2:]
    field = F.interpolate(shape[:, :50].to(images).view(-1, 2, 5, 5), size=size, mode="bicubic", align_corners=True)
    largest = field.abs().amax((1, 2, 3), keepdim=True)
    return _sampled(images, (field / largest * (2 * amount / _SIDE).to(images).view(-1, 1, 1, 1)).permute(0, 2, 3, 1))


def _mapped(images: Tensor, matrices: Tensor) -> Tensor:
    change = (matrices - torch.eye(2, 3)).to(images)
    return _sampled(images, F.affine_grid(change, list(images.shape), align_corners=False))


def _sampled(images: Tensor, displacement: Tensor) -> Tensor:
    """Displacements (N, H, W, 2) in halves of the side; what comes in from outside is mirrored."""
    still = torch.eye(2, 3).to(images).expand(len(images), 2, 3)
    grid = F.affine_grid(still, list(images.shape), align_corners=False) + displacement
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


# -- details go


def _coarse(images: Tensor, amount: Tensor, shape: Tensor) -> Tensor:
    """Fewer pixels, by that factor of the side: as squares, or blurred."""
    size = images.shape[-2:]
    out = []
    for image, factor, kind in zip(images[:, None], amount.tolist(), shape[:, 0].tolist(), strict=True):
        small = F.interpolate(image, size=[max(2, round(side / factor)) for side in size], mode="area")
        out.append(F.interpolate(small, size=size, mode="nearest" if kind < 0 else "bilinear"))
    return torch.cat(out)


_KINDS: dict[str, _Kind] = {
    "turn": _Kind(_turn, 0.03, 0.55),
    "zoom": _Kind(_zoom, 0.04, 0.45),
    "shear": _Kind(_shear, 0.03, 0.6),
    "bend": _Kind(_bend, 1.0, 16.0),
    "coarse": _Kind(_coarse, 1.4, 5.0),
}
#: All kinds.
KINDS = tuple(_KINDS)
