"""What counts as equal, what is an embedding, and that only numbers come out."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robustsim import RobustSim
from robustsim.distances import identities, same_of_all, same_pictures
from robustsim.errors import EncodingError, InputError
from tests.conftest import EXAMPLES


def blocks(count, side=8, seed=0):
    """Random binary pictures of 224 x 224, in blocks: low bits of their values are all alike."""
    cells = torch.randint(0, 2, (count, 1, 224 // side, 224 // side), generator=torch.Generator().manual_seed(seed))
    return cells.float().repeat_interleave(side, 2).repeat_interleave(side, 3).expand(-1, 3, -1, -1).contiguous()


class Blind(torch.nn.Module):
    """Looks at a few values, and hardly at those."""

    def forward(self, x):
        return 1 + 1e-3 * x.flatten(1)[:, ::997][:, :24]


@pytest.fixture(scope="module")
def tiny(published):
    return RobustSim.from_pretrained(published["vit"][0], device="cpu")


@pytest.fixture(scope="module")
def blind(tiny):
    """An encoder to which nearly everything looks alike: what is equal shows in nothing but the pixels."""
    encoder = copy.deepcopy(tiny.encoder)
    encoder.trunk = Blind()
    return RobustSim(encoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_different_pictures_are_never_equal(blind, dtype):
    pictures = (blocks(120) * 0.5 + 0.25).to(dtype)
    pictures[:, 0, 0, 0] = torch.linspace(0, 1, 120).to(dtype)  # what this encoder sees
    matrix = blind.distance_matrix(pictures)
    assert matrix.max() < 0.05
    off = ~torch.eye(120, dtype=torch.bool)
    assert (matrix[off] > 0).float().mean() > 0.9
    left, right = pictures[:60], pictures[60:]
    assert (blind.two_afc(pictures[:1].expand(60, -1, -1, -1), left, right)[1:] != 0.5).all()
    x = left.float().requires_grad_()
    d = blind(x, right.float())
    d.sum().backward()
    assert (d > 0).all()
    assert (x.grad.flatten(1).abs().amax(1) > 0).all()


def test_no_two_of_many_binary_pictures_are_the_same():
    pictures = blocks(413)
    for other in (pictures, pictures.bfloat16().float() * 0.5, pictures.half().float() * 2**-10):
        assert torch.equal(same_of_all(identities(other), identities(other)), torch.eye(413, dtype=torch.bool))
        assert not same_pictures(other[1:], other[:-1]).any()
        assert same_pictures(other, other.clone()).all()


def test_one_value_of_one_pixel_makes_a_difference():
    x = blocks(1).mul(0.5)
    for place in (0, 1, 997, 3 * 224 * 224 - 1):
        y = x.clone()
        y.view(-1)[place] = torch.nextafter(y.view(-1)[place], torch.tensor(1.0))
        assert not same_pictures(x, y)
        assert not same_of_all(identities(x), identities(y))
    assert same_of_all(identities(x), identities(x.clone()))
    zeros = torch.zeros(1, 3, 4, 4)
    assert same_of_all(identities(zeros), identities(-zeros))
    assert same_pictures(zeros, -zeros)


def test_equal_pictures_far_apart_in_long_lists(tiny):
    small = RobustSim(tiny.encoder, batch_size=4)
    x = blocks(9, seed=3)[..., :64, :64]  # of the size that is looked at, so that files and tensors are alike
    mixed = [x[0], x[1:6], (x[6].permute(1, 2, 0).numpy() * 255).astype(np.uint8), x[7:]]
    assert small.distance(mixed, x).tolist() == [0] * 9
    assert small.distance(x[4], mixed).tolist().count(0) == 1
    assert small.distance(mixed, x[4])[4] == 0
    assert (small.distance_matrix(mixed, x) == 0).sum() == 9
    choice = small.two_afc(x[0], mixed, x.flip(0))
    assert choice[4] == 0.5  # the middle one is the same picture from both ends
    assert choice[0] == 0
    assert choice[8] == 1
    assert small.two_afc(x, mixed, x).tolist() == [0.5] * 9
    expected = torch.cat([tiny.distance(x[i], x[8 - i]) for i in range(9)])
    torch.testing.assert_close(small.distance(mixed, x.flip(0)), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="9 images against 2: the counts"):
        small.distance(mixed, x[:2])


def test_gradients_of_long_tensors_are_those_of_short_ones(tiny):
    small = RobustSim(tiny.encoder, batch_size=4)
    a, b = blocks(6, seed=5).mul(0.8), blocks(6, seed=6)
    gradients = []
    for one in (tiny, small):
        x = a.clone().requires_grad_()
        one(x, b).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


# --- embeddings are known by their length


def test_what_has_no_unit_length_is_no_embedding(metric):
    size = metric.card.embedding_dim
    grey = torch.rand(720, size, generator=torch.Generator().manual_seed(0))
    both = r"could be embeddings of .* divide them by their lengths .*if it is a grey image, give it three channels"
    for call in (
        lambda: metric.embed(grey),
        lambda: metric.distance(grey, metric.embed(blocks(1))),
        lambda: metric.distance_matrix(grey),
        lambda: metric.two_afc(blocks(1), grey, grey),
        lambda: metric.embed(grey[0]),
    ):
        with pytest.raises(InputError, match=both):
            call()
    unit = F.normalize(grey[:3], dim=1)
    assert torch.equal(metric.embed(unit), unit)
    for stored in (unit.half(), unit.bfloat16()):  # rounded, they are embeddings still
        torch.testing.assert_close(metric.embed(stored).norm(dim=1), torch.ones(3))
    assert metric.embed(unit.half().numpy()).shape == (3, size)


# --- a device is waited for as seldom as may be


class Waits(TorchFunctionMode):
    """Counts the calls that bring values from a device, wherever the tensors of a test are."""

    ASKING = frozenset({"tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"})

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.ASKING:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def waits(call):
    with Waits() as seen:
        call()
    return len(seen.names)


def test_what_is_checked_of_a_call_is_fetched_together(tiny):
    x, y = blocks(2), blocks(2, seed=1)
    z = tiny.embed(y)
    assert waits(lambda: tiny.embed(z)) == 2  # so they are counted: its length, and whether it is finite
    for call in (lambda: tiny(x, z), lambda: tiny(z, x, squared=True), lambda: tiny(z, z)):
        assert waits(call) == 2
    assert waits(lambda: tiny.two_afc(x, z, z)) == 2
    assert waits(lambda: tiny(x.mul(255).to(torch.uint8), z)) == 2


def test_an_embedding_that_is_none_is_told_before_anything_is_encoded(tiny, monkeypatch):
    monkeypatch.setattr(tiny.encoder, "forward", None)
    x, z = blocks(2), torch.ones(2, tiny.card.embedding_dim)
    some = [x, x * 9, x.mul(255).to(torch.uint8), x[:1], blocks(3), str(EXAMPLES / "chelsea.png")]
    for images in some:  # of the right range and of none, as many and not
        for call in (lambda images=images: tiny(images, z), lambda images=images: tiny.two_afc(z, z, images)):
            with pytest.raises(InputError, match="could be embeddings of"):
                call()
    with pytest.raises(InputError, match="values from 0 to 9"):
        tiny(x * 9, F.normalize(z, dim=1))


# --- what comes out is finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_an_error_everywhere(tiny, value):
    broken = copy.deepcopy(tiny)
    with torch.no_grad():
        next(iter(broken.encoder.trunk.parameters())).fill_(value)
    x, y = blocks(2), blocks(2, seed=1)
    for call in (
        lambda: broken(x, y),
        lambda: broken.distance(x, y, squared=True),
        lambda: broken.similarity(x, y),
        lambda: broken.distance_matrix(x),
        lambda: broken.two_afc(x, x, y),
        lambda: broken.embed(x),
    ):
        with pytest.raises(EncodingError, match="values that are not finite"):
            call()


def test_pictures_of_which_nothing_is_seen_have_no_distance(tiny):
    blank = copy.deepcopy(tiny)
    with torch.no_grad():
        blank.encoder.trunk.visual.proj.zero_()
    x, y = blocks(2), blocks(2, seed=1)
    for call in (
        lambda: blank(x, y),
        lambda: blank.similarity(x, tiny.embed(y)),
        lambda: blank.distance_matrix(x, y),
        lambda: blank.two_afc(x, x, y),
        lambda: blank.embed(x),
    ):
        with pytest.raises(EncodingError, match="nothing but zeros"):
            call()


def test_a_matrix_with_embeddings_compares_no_pixels(tiny, monkeypatch):
    from robustsim import metric as module

    monkeypatch.setattr(module, "identities", None)
    x = blocks(3)
    z = tiny.embed(x)
    torch.testing.assert_close(tiny.distance_matrix(x, z), tiny.distance_matrix(z, x).T)
    assert tiny.distance_matrix(z).shape == (3, 3)


def test_features_beyond_float16_are_an_error(tiny):
    large = copy.deepcopy(tiny)
    with torch.no_grad():
        projection = large.encoder.trunk.visual.proj
        projection.mul_(6e4 / projection.abs().max())  # itself within the range of float16
    assert torch.isfinite(large.distance(blocks(1), blocks(1, seed=1))).all()
    with pytest.raises(EncodingError, match="float16 ends at 65,504"):
        large.half().distance(blocks(1), blocks(1, seed=1))
