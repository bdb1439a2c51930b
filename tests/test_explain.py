"""Maps of where two pictures differ: places, ranges, gradients, and what a model does not look at."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustsim import RobustSim
from robustsim.encoders.timm_models import TimmTrunk
from robustsim.errors import InputError
from robustsim.explain import difference_map, differences
from robustsim.explain.resolution import interpolated
from robustsim.images import Preprocessing
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

CHELSEA, COFFEE, ROCKET = (EXAMPLES / name for name in ("chelsea.png", "coffee.png", "rocket.jpg"))
FAMILIES = ("lite", "vit", "convnext", "dino", "classifier")  # ours, open_clip's two, timm's two


def images(count, height=64, width=64, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def models(metric, published):
    made = {name: RobustSim.from_pretrained(published[name][0], device="cpu") for name in FAMILIES[1:]}
    return {"lite": metric, **made}


class Places(nn.Module):
    """A trunk whose features of a place are the mean of its pixels: (N, 3, S, S) -> (N, 3, h, w), in several sizes."""

    def __init__(self, *sides):
        super().__init__()
        self.sides = sides

    def forward(self, x):
        return x.mean((2, 3))

    def tokens(self, x, *, project=False):
        return self(x), nn.functional.adaptive_avg_pool2d(x, self.sides[-1])

    def layers(self, x):
        return self(x), [nn.functional.adaptive_avg_pool2d(x, side) for side in self.sides]


def seeing(preprocessing, *sides):
    """A metric whose features are known; black pixels are zeros."""
    encoder = RobustSim.from_pretrained("lite", device="cpu").encoder
    encoder.trunk = Places(*sides)
    encoder.card = dataclasses.replace(encoder.card, preprocessing=preprocessing)
    encoder.mean.zero_()
    encoder.std.fill_(1)
    return RobustSim(encoder)


def looked_at(model, height, width):
    """Which pixels of a picture have their centres in what the model looks at, (height, width) bool."""
    left, top, right, bottom = model.card.preprocessing.seen(width, height)
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return ((rows >= top) & (rows <= bottom))[:, None] & ((columns >= left) & (columns <= right))


def maps_of(model, pixels):
    """The maps of layers that a map is made of, asked of the architectures in other ways than the encoder's own."""
    trunk, x = model.encoder.trunk, model.encoder.normalize(pixels)
    kept = {}

    def keep(name):
        return lambda module, args, out: kept.__setitem__(name, out)

    inner = getattr(trunk, "visual", getattr(trunk, "model", trunk))
    inner = getattr(inner, "trunk", inner)
    if hasattr(inner, "transformer"):
        blocks, norm, prefix = list(inner.transformer.resblocks), inner.ln_post, 1
    elif hasattr(inner, "stages"):
        blocks, norm, prefix = list(inner.stages), None, 0
    elif hasattr(inner, "patch_embed"):
        blocks, norm, prefix = list(inner.blocks), inner.norm, inner.num_prefix_tokens
    else:  # lite: the last block of each resolution, and the last map
        blocks, norm, prefix = [inner.blocks[i] for i in (0, 2, 4, 10, -1)], None, 0
    hooks = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks)]
    trunk(x)
    for hook in hooks:
        hook.remove()
    found = [kept[number] for number in range(len(blocks))]
    if norm is not None:
        found = [norm(one)[:, prefix:] for one in found]
        return [one.transpose(1, 2).unflatten(2, (int(one.shape[1] ** 0.5),) * 2) for one in found]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_formula_of_layers(models, name):
    """Transcribed: scaled features, the harmonic mean of the finer layers, times the last one."""
    model = models[name]
    size = model.card.preprocessing.size
    a, b = images(2, size, size), images(2, size, size, seed=1)
    with torch.no_grad():
        first, second = maps_of(model, a), maps_of(model, b)
        found = differences.compared(model, a, b).places
    r = []
    for number, (u, v) in enumerate(zip(first, second, strict=True)):
        lengths = [one.square().sum(1).mean((1, 2))[:, None, None, None] for one in (u, v)]
        if number < len(first) - 1:
            lengths = [sum(lengths) / 2] * 2
        u, v = (one / length.sqrt() for one, length in zip((u, v), lengths, strict=True))
        r.append(((u - v).square().sum(1) / 2).sqrt())
    grid = max(one.shape[1] for one in r)
    up = {"mode": "bilinear", "align_corners": False}
    r = [nn.functional.interpolate(one[:, None], size=(grid, grid), **up) for one in r]
    wanted = (r[-1] * len(r[:-1]) / sum(1 / one for one in r[:-1]))[:, 0]
    assert len(r) > 1
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_between_the_least_and_as_many_times_it():
    generator = torch.Generator().manual_seed(0)
    *finer, last = (torch.rand(2, 6, 6, generator=generator) ** 4 for _ in range(4))
    finer[0][0, 0, 0] = 0
    least = torch.stack(finer).amin(0)
    found = differences._shares([*finer, last])
    assert (found >= last * least * (1 - 1e-5)).all()
    assert (found <= 3 * last * least * (1 + 1e-5)).all()
    assert found[0, 0, 0] == 0
    assert torch.equal(differences._shares([last]), last)
    for tiny in (1e-10, 1e-25, 1e-37, 0.0):
        roots = [one * tiny for one in finer]
        x = [one.clone().requires_grad_() for one in (*roots, last)]
        differences._shares(x).sum().backward()
        assert all(torch.isfinite(one.grad).all() for one in x)


def test_where_layers_agree_on_no_place_all_share():
    """A difference that one finer layer does not see at all: the mean is the distance still."""
    known = seeing(Preprocessing(size=8, mode="squash"), 1, 8)
    a, b = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5)
    a[:, 0, 0, 0], a[:, 0, 7, 7] = 1.0, 0.0  # of the same mean as b
    known.encoder.trunk.forward = lambda x: x[:, :, 0, 0]
    d = known.distance(a, b)
    assert d > 0.1
    torch.testing.assert_close(difference_map(known, a, b), d[:, None, None].expand(1, 8, 8))


@pytest.mark.parametrize("place", [(20, 30), (170, 10), (120, 330)])
def test_a_pasted_patch_is_found(metric, place):
    """By the default: the largest value inside, and at least three times its share of the area."""
    top, left = place
    with Image.open(CHELSEA) as photo, Image.open(COFFEE) as cup:
        photo = photo.convert("RGB")
        changed = photo.copy()
        changed.paste(cup.convert("RGB").resize((110, 80)), (left, top))
    with torch.no_grad():
        d = difference_map(metric, changed, photo)[0]
    inside = d[top : top + 80, left : left + 110]
    assert inside.max() == d.max()
    assert inside.sum() / d.sum() > 3 * inside.numel() / d.numel()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_has_a_map(models, name):
    model = models[name]
    a, b = images(2, 70, 90), images(2, 70, 90, seed=1)
    seen = looked_at(model, 70, 90)
    for squared in (False, True):
        d = difference_map(model, a, b, squared=squared)
        assert d.shape == (2, 70, 90)
        assert d.dtype == torch.float32
        assert d.min() >= 0
        assert d[:, ~seen].abs().sum() == 0
        wanted = model.distance(a, b, squared=squared)
        torch.testing.assert_close(d[:, seen].mean(1), wanted, rtol=1e-4, atol=1e-6)
        assert (d[:, seen].amax(1) > 1.1 * wanted).all()  # and not the same everywhere
    torch.testing.assert_close(difference_map(model, b, a), difference_map(model, a, b), rtol=1e-3, atol=1e-4)
    assert difference_map(model, a, a).abs().max() == 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_finite_and_zero_at_equality(models, name):
    model, size = models[name], models[name].card.preprocessing.size
    for a, b in ((images(1, size, size), images(1, size, size, seed=1)), (images(1), images(1))):
        for squared in (False, True):
            x = a.clone().requires_grad_()
            difference_map(model, x, b, squared=squared).sum().backward()
            assert torch.isfinite(x.grad).all()
            assert bool(x.grad.abs().sum() > 0) is not torch.equal(a, b)


def test_black_pictures_have_places_without_features():
    """Behind the ReLU6 of a head: their gradients are finite."""
    metric = RobustSim.from_pretrained("lite-2026.11", device="cpu")
    black, other = torch.zeros(1, 3, 224, 224), images(1, 224, 224)
    tokens = metric.encoder.features(black).tokens
    assert (tokens.abs().sum(2) == 0).any()
    for method in ("layers", "features"):
        x = black.clone().requires_grad_()
        d = difference_map(metric, x, other, method=method)
        d.sum().backward()
        assert torch.isfinite(d).all()
        assert torch.isfinite(x.grad).all()
        assert difference_map(metric, black, black, method=method).abs().max() == 0


def test_gradients_where_single_pixels_differ(metric):
    """Elsewhere the finer layers find exactly nothing, and their shares have no slope that is no number."""
    a = images(1, 224, 224)
    b = a.clone()
    b[..., 100, 100] = 1 - b[..., 100, 100]
    for change in (b, a + 1e-6 * (b - a)):
        x = change.clone().requires_grad_()
        d = difference_map(metric, x, a)
        (d * images(1, 224, 224, seed=2)[:, 0]).sum().backward()
        assert torch.isfinite(x.grad).all()
    assert (difference_map(metric, b, a) == 0).any()


def test_features_keep_their_lengths():
    """The formula, and the mean over the places: 1 - cosine of all features together."""
    known = seeing(Preprocessing(size=8, mode="squash"), 8)
    a, b = images(2, 8, 8), images(2, 8, 8, seed=1) ** 3
    u, v = (x / x.square().sum(1).mean((1, 2)).sqrt()[:, None, None, None] for x in (a, b))
    wanted = (u - v).square().sum(1) / 2
    squared = difference_map(known, a, b, method="features", squared=True)
    torch.testing.assert_close(squared, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(difference_map(known, a, b, method="features"), wanted.sqrt(), rtol=1e-4, atol=1e-5)
    whole = 1 - nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(squared.mean((1, 2)), whole, rtol=1e-4, atol=1e-5)
    # What is dark in both counts little, whatever its colours.
    dark, other = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5)
    dark[..., 0, 0], other[..., 0, 0] = torch.tensor([0.01, 0, 0]), torch.tensor([0, 0.01, 0])
    assert difference_map(known, dark, other, method="features")[0, 0, 0] < 0.02


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_every_architecture(models, name):
    model, a, b = models[name], images(2), images(2, seed=1)
    x = a.clone().requires_grad_()
    d = difference_map(model, x, b, method="features")
    assert d.shape == (2, 64, 64)
    assert d.min() >= 0
    assert d.amax((1, 2)).min() > 0
    d.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert difference_map(model, a, a, method="features").abs().max() == 0
    black = torch.zeros(1, 3, 64, 64)
    assert torch.isfinite(difference_map(model, black, b[:1], method="features")).all()


def test_the_interpolation_is_torchs():
    known = seeing(Preprocessing(size=16, mode="squash"), 4)
    a, b = images(1, 16, 16), images(1, 16, 16, seed=1)
    u, v = (nn.functional.adaptive_avg_pool2d(x, 4) for x in (a, b))
    u, v = (x / x.square().sum(1).mean((1, 2)).sqrt()[:, None, None, None] for x in (u, v))
    places = (u - v).square().sum(1).div(2).sqrt()
    wanted = nn.functional.interpolate(places[:, None], size=(16, 16), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(difference_map(known, a, b, method="features"), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("preprocessing", "size"),
    [
        (Preprocessing(size=32, mode="shortest"), (40, 80)),
        (Preprocessing(size=32, mode="shortest", resize=48), (60, 40)),
        (Preprocessing(size=32, mode="squash", resize=40), (50, 70)),
        (Preprocessing(size=32, mode="longest"), (40, 80)),
        (Preprocessing(size=32, mode="longest"), (90, 30)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_a_change_is_shown_where_it_is(preprocessing, size):
    """A part of the picture changes its colour; the map has its peak there, and 0 beyond what is seen."""
    known = seeing(preprocessing, 32, 32)  # a place for each pixel that the encoder sees
    height, width = size
    left, top, right, bottom = preprocessing.seen(width, height)
    a = torch.full((1, 3, height, width), 0.5)
    b = a.clone()
    x, y = left + 0.75 * (right - left), top + 0.25 * (bottom - top)
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    reach = min(bottom - top, right - left) / 8
    near = ((rows - y).abs() <= reach)[:, None] & ((columns - x).abs() <= reach)[None]
    b[:, 0][:, near] = 1.0
    d = difference_map(known, a, b)[0]
    outside = (rows < top) | (rows > bottom)
    assert d[outside].abs().sum() == 0
    assert d[:, (columns < left) | (columns > right)].abs().sum() == 0
    weight = d / d.sum()
    assert abs(float((weight.sum(1) * rows).sum()) - y) < 0.5
    assert abs(float((weight.sum(0) * columns).sum()) - x) < 0.5
    assert d[near].mean() > 10 * d[~near].mean()


def test_one_against_many_and_batches(models):
    model = models["vit"]
    a, b = images(5, 60, 80), images(5, 60, 80, seed=1)
    whole = difference_map(model, a, b)
    small = RobustSim(model.encoder, batch_size=2)
    torch.testing.assert_close(difference_map(small, a, b), whole, rtol=1e-4, atol=1e-5)
    for one in (model, small):
        many = difference_map(one, a[:1], b)
        assert many.shape == (5, 60, 80)
        each = torch.cat([difference_map(one, a[:1], b[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(many, each, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(difference_map(one, b, a[:1]), many, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="2 images against 3: the counts must be equal"):
        difference_map(model, a[:2], a[:3])


def test_the_one_is_encoded_once(models):
    seen = []
    small = RobustSim(models["vit"].encoder, batch_size=2)
    hook = small.encoder.trunk.visual.conv1.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    try:
        difference_map(small, images(1), images(5, seed=1))
    finally:
        hook.remove()
    assert seen == [1, 2, 2, 1]


def test_files_at_their_own_resolution(models):
    model = models["lite"]
    with Image.open(CHELSEA) as image:
        width, height = image.size
        array = np.asarray(image.convert("RGB"))
    d = difference_map(model, CHELSEA, COFFEE)
    assert d.shape == (1, height, width)
    for same in (str(CHELSEA), CHELSEA.read_bytes(), Image.fromarray(array), array, [CHELSEA]):
        assert torch.equal(difference_map(model, same, COFFEE), d)
    assert difference_map(model, CHELSEA, array).abs().max() == 0
    # Sizes of b may be what they like; those of a have no common map.
    assert difference_map(model, [CHELSEA] * 2, [COFFEE, ROCKET]).shape == (2, height, width)
    with pytest.raises(InputError, match=rf"several sizes \(.*{width} x {height}.*\) have no common map"):
        difference_map(model, [CHELSEA, COFFEE], CHELSEA)


def test_ranges_and_embeddings(models):
    a, b = images(1), images(1, seed=1)
    model = models["vit"]
    torch.testing.assert_close(
        difference_map(model, 2 * a - 1, 2 * b - 1, input_range=(-1, 1)), difference_map(model, a, b)
    )
    with pytest.raises(InputError, match=r"pass input_range=\(-1, 1\)"):
        difference_map(model, 2 * a - 1, b)
    with pytest.raises(InputError, match="not an image"):
        difference_map(model, model.embed(a), b)


@pytest.mark.parametrize("name", ["lite", "vit"])
def test_half_the_digits(models, name):
    """In mixed precision, or with an encoder in bfloat16, the map stays float32 and about the same."""
    model, a, b = models[name], images(1, 224, 224), images(1, 224, 224, seed=1)
    whole = difference_map(model, a, b)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = difference_map(model, a, b)
    half = difference_map(copy.deepcopy(model).to(torch.bfloat16), a, b)
    for d in (mixed, half):
        assert d.dtype == torch.float32
        torch.testing.assert_close(d, whole, rtol=0.2, atol=0.1)


def test_compiled(models):
    model, a, b = models["vit"], images(2), images(2, seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: difference_map(model, x, y), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), difference_map(model, a, b), rtol=1e-4, atol=1e-5)


def test_no_places_no_map():
    encoder = RobustSim.from_pretrained("lite", device="cpu").encoder

    class Closed(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    encoder.trunk = TimmTrunk(Closed())
    with pytest.raises(InputError, match="no access to the last feature map of Closed"):
        difference_map(RobustSim(encoder), images(1), images(1, seed=1))


def test_of_a_tiny_cropped_picture_the_nearest_pixels_count():
    """No pixel's centre lies in what the model sees of 2 x 1 pixels: the map must not be 0 for that."""
    cropping = Preprocessing(size=224, resize=256, mode="shortest")
    for size in ((1, 2), (1, 4), (2, 1), (1, 3), (300, 451)):
        assert interpolated(torch.ones(1, 7, 7), size, cropping).max() == pytest.approx(1, abs=1e-6), size
