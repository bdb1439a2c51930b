"""Random views of a picture that gradients flow through: colour, translation, cutout.

DiffAugment (Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020) with its usual
strengths, on pixels in [0, 1], as text-to-image by CLIP uses it. What a view shows may lie outside [0, 1].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers that a view is made of.
_NUMBERS = 7
# How far a view is moved, and how long the side of what is cut out, by the picture's side.
_SHIFT, _HOLE = 0.125, 0.5


def draw_views(count: int, generator: torch.Generator) -> Tensor:
    """What so many views are made of, (V, 7) in [0, 1), on the generator's device; see `view`."""
    return torch.rand(count, _NUMBERS, generator=generator, device=generator.device)


def view(pictures: Tensor, numbers: Tensor) -> Tensor:
    """A view of each picture; differentiable.

    In this order: brightness shifted by -0.5 to 0.5; colours, the distance from the mean of the three channels, times
    0 to 2; contrast, the distance from the picture's mean, times 0.5 to 1.5; moved by up to an eighth of the side
    along both, black coming in; and a black square of half the side, its centre anywhere, cut by the border.

    Args:
        pictures: (V, 3, H, W) in [0, 1].
        numbers: (V, 7) in [0, 1), as `draw_views` gives them, on the CPU.

    Returns:
        (V, 3, H, W), of any values.
    """
    brightness, colour, contrast = (n.view(-1, 1, 1, 1).to(pictures) for n in numbers[:, :3].unbind(1))
    x = pictures + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * colour) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (contrast + 0.5) + mean
    height, width = x.shape[2:]
    (down, top), (across, left) = (_places(numbers[:, 3:].double(), axis, (height, width)[axis]) for axis in (0, 1))
    rows, columns = _reach(height), _reach(width)
    wide = F.pad(x, (columns, columns, rows, rows))
    moved = [
        one[:, rows - dy : rows - dy + height, columns - dx : columns - dx + width]
        for one, dy, dx in zip(wide.unbind(), down, across, strict=True)
    ]
    kept = x.new_ones(len(x), 1, height, width)
    high, broad = round(_HOLE * height), round(_HOLE * width)
    for mask, y, z in zip(kept, top, left, strict=True):
        mask[:, max(0, y) : max(0, y + high), max(0, z) : max(0, z + broad)] = 0
    return torch.stack(moved) * kept


def _reach(side: int) -> int:
    return int(_SHIFT * side + 0.5)


def _places(numbers: Tensor, axis: int, side: int) -> tuple[list[int], list[int]]:
    """By how much each view is moved along an axis, and where what is cut out of it begins, which may be outside."""
    reach, hole = _reach(side), round(_HOLE * side)
    shift = (numbers[:, axis] * (2 * reach + 1)).floor().long() - reach
    begin = (numbers[:, 2 + axis] * (side + 1 - hole % 2)).floor().long() - hole // 2
    return shift.tolist(), begin.tolist()
