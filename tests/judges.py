"""Small metrics to be judged, and small data to judge them on."""

import csv
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from robustsim.baselines import from_callable
from robustsim.images import Preprocessing

SIZE = 16


class Small(nn.Module):
    """A convolution and a mean: (N, 3, 16, 16) -> (N, 12). Counts the images it embeds, and may be slow."""

    def __init__(self, seed=0, pause=0.0):
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 5, stride=2)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.pause, self.images, self.calls = pause, 0, 0

    def embed(self, images):
        self.images, self.calls = self.images + len(images), self.calls + 1
        time.sleep(self.pause)
        return F.relu(self.convolution(images)).mean((2, 3))


def small(**options):
    return from_callable(Small(**options), name="small", preprocessing=Preprocessing(size=SIZE))


def pairs(function=lambda a, b: (a - b).square().mean((1, 2, 3)), name="pairs"):
    """A metric without embeddings."""
    return from_callable(function, name=name, preprocessing=Preprocessing(size=SIZE))


def pictures(folder, count, size=SIZE, seed=0):
    """Smooth random pictures 00.png, 01.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = F.interpolate(coarse, size=(size, size), mode="bilinear").mul(255).byte()
    for index, pixels in enumerate(fine.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def triplets(folder, count, *, images=10, seed=0, groups=False):
    """A CSV of triplets over a few pictures."""
    pictures(folder, images)
    generator = np.random.default_rng(seed)
    path = folder / "triplets.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["reference", "left", "right", "left_votes", "right_votes", *(["group"] if groups else [])])
        for index in range(count):
            chosen = generator.choice(images, 3, replace=False)
            votes = [int(generator.integers(0, 6)) * 2, 5]  # never tied
            group = ["ab"[index % 3 == 0]] if groups else []
            writer.writerow([*(f"{one:02}.png" for one in chosen), *votes, *group])
    return path


def threes(folder, count=15, *, images=8, seed=0):
    """A CSV of threes over a few pictures, with votes for the odd one."""
    generator = np.random.default_rng(seed)
    pictures(folder, images, seed=seed)
    path = folder / "odd.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "odd_a", "odd_b", "odd_c"])
        for _ in range(count):
            names = [f"{one:02}.png" for one in generator.choice(images, 3, replace=False)]
            writer.writerow([*names, *generator.permutation([5, 3, 1]).tolist()])
    return path
