"""Maps by integrated gradients: their sum, the formula, where amounts go, what they cost."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from robustsim import RobustSim
from robustsim.errors import InputError
from robustsim.explain import difference_map, gradients
from robustsim.explain.resolution import shared_out
from robustsim.images import Preprocessing, read_image
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

CHELSEA, COFFEE = EXAMPLES / "chelsea.png", EXAMPLES / "coffee.png"
FAMILIES = ("lite", "vit", "convnext", "dino", "classifier")


def images(count, height=64, width=64, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def gradient_map(metric, a, b, **options):
    return difference_map(metric, a, b, method="gradient", **options)


@pytest.fixture(scope="module")
def models(metric, published):
    made = {name: RobustSim.from_pretrained(published[name][0], device="cpu") for name in FAMILIES[1:]}
    return {"lite": metric, **made}


@pytest.fixture(scope="module")
def with_a_cup():
    """A photograph, and the same with a part of another one in it."""
    photo, cup = read_image(CHELSEA), read_image(COFFEE).resize((110, 80))
    changed = photo.copy()
    changed.paste(cup, (260, 150))
    return photo, changed


class Colours(nn.Module):
    """A trunk that looks at mean colours, each cubed."""

    def forward(self, x):
        return x.mean((2, 3)) ** 3


class Blind(nn.Module):
    """A trunk through which no gradient comes."""

    def forward(self, x):
        return x.detach().mean((2, 3))


def seeing(trunk, preprocessing):
    encoder = RobustSim.from_pretrained("lite", device="cpu").encoder
    encoder.trunk = trunk
    encoder.card = dataclasses.replace(encoder.card, preprocessing=preprocessing)
    encoder.mean.zero_()
    encoder.std.fill_(1)
    return RobustSim(encoder)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sum_is_the_distance(models, name):
    model = models[name]
    a, b = images(2, 70, 90), images(2, 70, 90, seed=1)
    for squared in (False, True):
        found = gradient_map(model, a, b, squared=squared, steps=4)
        assert found.shape == (2, 70, 90)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found.sum((1, 2)), model.distance(a, b, squared=squared), rtol=1e-4, atol=1e-5)
    assert gradient_map(model, a, a).abs().max() == 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_files_of_other_sizes(metric):
    found = gradient_map(metric, CHELSEA, COFFEE, steps=3)
    with Image.open(CHELSEA) as image:
        assert found.shape == (1, image.height, image.width)
    assert found.sum().item() == pytest.approx(metric.distance(CHELSEA, COFFEE).item(), rel=1e-4)
    assert torch.equal(gradient_map(metric, [CHELSEA], read_image(COFFEE), steps=3), found)
    assert gradient_map(metric, CHELSEA, read_image(CHELSEA), steps=1).abs().max() == 0


@pytest.mark.parametrize("squared", [False, True])
def test_the_formula(squared):
    """Against the paper's sum over many points, of the distance as it is defined."""
    model = seeing(Colours(), Preprocessing(size=6))
    a, b = images(1, 6, 6), images(1, 6, 6, seed=1) ** 2
    change, total, points = a - b, 0, 1500
    v = nn.functional.normalize(b.mean((2, 3)) ** 3, dim=1)
    for point in range(points):
        at = (b + (point + 0.5) / points * change).requires_grad_()
        u = nn.functional.normalize(at.mean((2, 3)) ** 3, dim=1)
        d = 1 - (u * v).sum()
        total = total + torch.autograd.grad(d if squared else d.clamp_min(1e-9).sqrt(), at)[0] / points
    wanted = (change * total).sum(1)
    torch.testing.assert_close(gradient_map(model, a, b, squared=squared), wanted, rtol=0.02, atol=2e-5)


def test_what_the_steps_leave(metric, with_a_cup):
    """Before the rest is shared out: within 5 % at 12 steps, and nearer with more."""
    x, y = (metric.preprocess(picture) for picture in with_a_cup)
    d = metric.distance(*with_a_cup).item()
    left = {}
    for steps in (1, 12, 24):
        found = gradients.integrated_gradients(metric, x, y, steps=steps, squared=False, closed=False)
        left[steps] = abs(found.sum().item() / d - 1)
    assert left[12] < 0.05
    assert left[24] < 0.03
    assert left[1] > left[12]


def test_a_change_is_shown_where_it_is(metric, with_a_cup):
    """The cup's part of the pixels has nearly all of the map; the rest is what the resize spreads."""
    found = gradient_map(metric, *with_a_cup)[0]
    inside = found[150:230, 260:370]
    assert inside.abs().sum() > 0.98 * found.abs().sum()
    assert found[140:240, 250:380].abs().sum() == pytest.approx(found.abs().sum().item(), rel=1e-6)
    assert (found < 0).any()
    peak = int(found.argmax())
    assert 150 <= peak // found.shape[1] < 230
    assert 260 <= peak % found.shape[1] < 370


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["squash", "shortest", "longest"]),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    side=st.integers(1, 24),
    extra=st.integers(0, 9),
)
def test_amounts_keep_their_sum(mode, size, side, extra):
    preprocessing = Preprocessing(size=side, mode=mode, resize=None if mode == "longest" else side + extra)
    amounts = torch.randn(2, side, side, generator=torch.Generator().manual_seed(side))
    found = shared_out(amounts, size, preprocessing)
    assert found.shape == (2, *size)
    torch.testing.assert_close(found.sum((1, 2)), amounts.sum((1, 2)), rtol=1e-4, atol=1e-4)
    height, width = size
    left, top, right, bottom = preprocessing.seen(width, height)
    rows, columns = torch.arange(height), torch.arange(width)
    assert found[:, (rows + 1 < top - 1e-3) | (rows > bottom + 1e-3)].abs().sum() == 0
    assert found[..., (columns + 1 < left - 1e-3) | (columns > right + 1e-3)].abs().sum() == 0


def test_amounts_by_area():
    amounts = torch.arange(16.0).view(1, 4, 4)
    squash = Preprocessing(size=4, mode="squash")
    assert torch.equal(shared_out(amounts, (4, 4), squash), amounts)
    larger = shared_out(amounts, (8, 12), squash)
    torch.testing.assert_close(larger, amounts.repeat_interleave(2, 1).repeat_interleave(3, 2) / 6)
    smaller = shared_out(amounts, (2, 2), squash)
    torch.testing.assert_close(smaller, 4 * nn.functional.avg_pool2d(amounts, 2))
    # The padding's part, above and below, goes to the edge.
    wide = shared_out(amounts, (2, 4), Preprocessing(size=4, mode="longest"))
    torch.testing.assert_close(wide, torch.stack([amounts[:, :2].sum(1), amounts[:, 2:].sum(1)], 1))


def test_one_against_many_and_batches(models):
    model = models["vit"]
    a, b = images(5, 60, 80), images(5, 60, 80, seed=1)
    small = RobustSim(model.encoder, batch_size=8)
    torch.testing.assert_close(gradient_map(small, a, b), gradient_map(model, a, b), rtol=1e-3, atol=1e-7)
    for one, other in ((a[:1], b), (b, a[:1])):
        many = gradient_map(small, one, other)
        pairs = [(one[i % len(one)], other[i % len(other)]) for i in range(5)]
        each = torch.cat([gradient_map(model, x, y) for x, y in pairs])
        torch.testing.assert_close(many, each, rtol=1e-3, atol=1e-7)
    with pytest.raises(InputError, match="2 images against 3: the counts must be equal"):
        gradient_map(model, a[:2], a[:3])


def test_costs(models):
    """How often pictures are encoded: once each, and once for each step."""
    seen = []
    model = models["vit"]
    hook = model.encoder.trunk.visual.conv1.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    try:
        gradient_map(model, images(1), images(1, seed=1))
        assert sum(seen) == 2 + 12
        seen.clear()
        gradient_map(model, images(1), images(3, seed=1), steps=5)
        assert sum(seen) == 1 + 3 + 3 * 5
        seen.clear()
        difference_map(model, images(1), images(1, seed=1))
        assert sum(seen) == 2
    finally:
        hook.remove()


def test_where_gradients_are_off(models):
    model, a, b = models["vit"], images(1), images(1, seed=1)
    wanted = gradient_map(model, a, b)
    with torch.no_grad():
        assert torch.equal(gradient_map(model, a, b), wanted)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(gradient_map(model, a.clone(), b.clone()), wanted)
    assert torch.equal(gradient_map(model, a.requires_grad_(), b), wanted)
    assert a.grad is None


def test_half_the_digits(models):
    model, a, b = models["vit"], images(1), images(1, seed=1)
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = gradient_map(half, a, b)
    assert found.dtype == torch.float32
    assert found.sum().item() == pytest.approx(half.distance(a, b).item(), rel=1e-3)


def test_pictures_that_the_encoder_cannot_tell_apart():
    """Distance 0 of other pixels: nothing is shared out, and nothing is divided by 0."""
    model = seeing(Colours(), Preprocessing(size=4))
    a = torch.full((1, 3, 4, 4), 0.5)
    b = a.clone()
    b[..., 0, 0], b[..., 1, 1] = 0.25, 0.75
    assert model.distance(a, b) == 0
    assert gradient_map(model, a, b).abs().max() == 0


def test_no_gradient_no_map():
    with pytest.raises(InputError, match="gives no gradients: use method='layers'"):
        gradient_map(seeing(Blind(), Preprocessing(size=4)), images(1, 4, 4), images(1, 4, 4, seed=1))


def test_refused(metric):
    a, b = images(1), images(1, seed=1)
    with pytest.raises(InputError, match="method='grad' is none of layers, features, gradient"):
        difference_map(metric, a, b, method="grad")
    with pytest.raises(InputError, match="steps must be at least 1, not 0"):
        gradient_map(metric, a, b, steps=0)
    with pytest.raises(InputError, match="not an image"):
        gradient_map(metric, metric.embed(a), b)


def test_the_rest_goes_where_the_values_are():
    values = torch.tensor([[[3.0, -1.0], [0.0, 0.0]]])
    x, y = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    closed = gradients._closed(values, x, y, torch.tensor([4.0]))
    torch.testing.assert_close(closed, torch.tensor([[[4.5, -0.5], [0.0, 0.0]]]))
    # Where there are none, where pixels differ.
    y[..., 0, 0] = 1
    closed = gradients._closed(torch.zeros(1, 2, 2), x, y, torch.tensor([3.0]))
    torch.testing.assert_close(closed, torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]))
