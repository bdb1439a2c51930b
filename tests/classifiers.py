"""Small classifiers that are trained in seconds on real pictures, one as usual and one adversarially.

The task: which of ten tiles of the example photographs does a crop come from?
"""

from functools import cache

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from robustsim.attacks import PGD, Classification
from tests.conftest import EXAMPLES

SIDE, CLASSES = 20, 10
_TILE = 56
_PICTURES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")


@cache
def tiles():
    """Ten tiles (10, 3, 56, 56) in [0, 1], from the middle of the pictures outwards."""
    found = []
    for name in _PICTURES:
        with Image.open(EXAMPLES / name) as image:
            small = image.convert("RGB").resize((3 * _TILE, 2 * _TILE))
        pixels = torch.tensor(list(small.tobytes()), dtype=torch.float32).view(2 * _TILE, 3 * _TILE, 3) / 255
        found += [
            pixels[top : top + _TILE, left : left + _TILE].permute(2, 0, 1)
            for top in (0, _TILE)
            for left in (0, _TILE, 2 * _TILE)
        ]
    return torch.stack(found)[[1, 4, 6, 7, 10, 13, 16, 19, 20, 22]]


def crops(count, *, seed, classes=CLASSES):
    """Random crops (N, 3, 20, 20) with flips, brightness and noise, and the tiles they come from."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    top, left = torch.randint(_TILE - SIDE + 1, (2, count), generator=generator)
    images = torch.stack(
        [
            tiles()[label, :, y : y + SIDE, x : x + SIDE]
            for label, y, x in zip(labels, top.tolist(), left.tolist(), strict=True)
        ]
    )
    flips = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flips[:, None, None, None], images.flip(3), images)
    light = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    images = images * light + 0.05 * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1), labels


def network(classes=CLASSES):
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2, stride=2), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


@cache
def trained(*, robust=False, classes=CLASSES, steps=300):
    """A network in eval mode, trained on crops; ``robust``: on PGD's images at linf 8/255."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network(classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        attack = PGD(norm="linf", eps=8 / 255, steps=4, step_size=3 / 255, keep="last")
        for step in range(steps):
            images, labels = crops(96, seed=step, classes=classes)
            if robust:
                images = attack(Classification(model, labels), images).images
            model.train()
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
