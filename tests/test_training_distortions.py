"""Two distortions of an image, the second stronger: what the ranking trains on."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsim.training.methods import distortions
from robustsim.training.methods.distortions import KINDS, graded


def waves(count=1, size=64):
    """Smooth pictures, so that a small change of place is a small change of pixels."""
    y, x = torch.meshgrid(torch.linspace(0, 6, size), torch.linspace(0, 6, size), indexing="ij")
    rows = [torch.stack([(x + n).sin(), (y - n).cos(), (x + y).sin()]) for n in range(count)]
    return torch.stack(rows) * 0.4 + 0.5


def seed_of(kind):
    return next(seed for seed in range(500) if distortions._plan(random.Random(seed))[0] == kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_is_the_stronger_one(kind):
    changes = []
    seeds = [seed for seed in range(400) if distortions._plan(random.Random(seed))[0] == kind][:25]
    image = waves()
    for seed in seeds:
        weaker, stronger = graded(image, [seed])
        changes.append([float((one - image).square().mean()) for one in (weaker, stronger)])
    assert len(changes) == 25
    assert all(weak > 0 for weak, _ in changes)
    # Far away a wave comes round to where it was: not all of them, then.
    assert sum(weak < strong for weak, strong in changes) >= 22


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([8, 17, 40]))
def test_results_are_images_of_the_same_size(seed, size):
    for result in graded(torch.rand(2, 3, size, size + 3), [seed, seed + 1]):
        assert result.shape == (2, 3, size, size + 3)
        assert bool(((result >= 0) & (result <= 1)).all())


def test_a_distortion_does_not_depend_on_who_shares_the_batch():
    images, seeds = waves(12), list(range(12))
    whole = graded(images, seeds)
    assert {distortions._plan(random.Random(seed))[0] for seed in seeds} > {KINDS[0]}
    for row in range(12):
        alone = graded(images[row : row + 1], [seeds[row]])
        for one, other in zip(whole, alone, strict=True):
            torch.testing.assert_close(one[row : row + 1], other, rtol=0, atol=1e-6)


def test_mixed_precision_does_not_reach_them():
    images = waves(6)
    plain = graded(images, range(6))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = graded(images, range(6))
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


def test_a_turn_and_a_zoom_are_what_they_are_called():
    size = 64
    centre = torch.zeros(1, 3, size, size)
    centre[..., size // 2 - 8 : size // 2 + 8, size // 2 - 8 : size // 2 + 8] = 1  # a square of 16
    zoomed = graded(centre, [seed_of("zoom")])[1]
    assert zoomed.sum() > 1.1 * centre.sum()  # a smaller part of the picture is seen larger
    turned = graded(centre, [seed_of("turn")])[1]
    torch.testing.assert_close(turned.sum(), centre.sum(), rtol=0.03, atol=0)  # as large, and in another direction
    assert not torch.allclose(turned, centre, atol=0.2)
