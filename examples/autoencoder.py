"""What the training examples share: a folder of photographs, and a small autoencoder that restores them."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset
from torchvision.transforms import functional as pictures

from robustsim import RobustSim
from robustsim.images import find_images, read_image


class Photographs(Dataset[tuple[Tensor, Tensor]]):
    """The pictures of a folder, (3, size, size) in [0, 1], each with its embedding, (D,).

    The originals never change, so the metric sees each of them once, and not once a step: where it is called, the
    embedding stands in for the picture.
    """

    def __init__(self, folder: str, size: int, metric: RobustSim) -> None:
        self.paths = [Path(folder, name) for name in find_images(folder)]
        self.size = size
        self.references = torch.cat([metric.embed(self.picture(path)).cpu() for path in self.paths])

    def picture(self, path: Path) -> Tensor:
        image = pictures.resize(read_image(path), self.size)
        return pictures.to_tensor(pictures.center_crop(image, self.size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.picture(self.paths[index]), self.references[index]


def block(inside: int, outside: int, scale: float) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False),
        nn.Conv2d(inside, outside, 3, padding=1),
        nn.GroupNorm(4, outside),
        nn.SiLU(),
    )


class Autoencoder(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] through a code of 1/8 of their size, and back; H and W are multiples of 8.

    Gradient checkpointing: what is inside the blocks is computed again when it is needed, and not kept.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        down = [block(a, b, 0.5) for a, b in pairwise(widths)]
        up = [block(4 * width, 2 * width, 2), block(2 * width, width, 2), block(width, width, 2)]
        self.blocks = nn.ModuleList([*down, *up])
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for one in self.blocks:
            x = checkpoint(one, x, use_reentrant=False) if self.training else one(x)
        return torch.sigmoid(self.last(x))
