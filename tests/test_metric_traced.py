"""The metric where torch traces it: compiled, exported, under the transforms of torch.func."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from robustsim import RobustSim
from robustsim.images.preprocessing import Preprocessing

# What torch says of operations that it runs one by one under vmap, such as attention.
SLOW_UNDER_VMAP = "ignore:There is a performance drop:UserWarning"
# (images, height, width) in an order in which batch and size change alone, together, and back.
SHAPES = [(4, 64, 64), (3, 64, 64), (3, 96, 64), (1, 64, 64), (2, 90, 120), (4, 64, 64)]


@pytest.fixture(scope="module")
def tiny(published):
    """A small transformer, which crops."""
    return RobustSim.from_pretrained(published["vit"][0], device="cpu")


def images(count, height=64, width=64, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def value_and_gradient(function, a, b):
    x = a.clone().requires_grad_()
    d = function(x, b)
    (gradient,) = torch.autograd.grad(d.sum(), x)
    return d.detach(), gradient


class Small(nn.Module):
    """A trunk that costs next to nothing to compile."""

    def __init__(self, size):
        super().__init__()
        self.conv = nn.Conv2d(3, size, 8, 8, bias=False)

    def forward(self, x):
        return self.conv(x).sigmoid().mean((2, 3))


@pytest.mark.parametrize(("backend", "name"), [("aot_eager", "vit"), ("aot_eager", "lite"), ("inductor", "small")])
def test_compiled_it_takes_any_sequence_of_shapes(metric, tiny, backend, name):
    one = {"vit": tiny, "lite": metric}.get(name)
    if one is None:
        encoder = copy.deepcopy(tiny.encoder)
        encoder.trunk = Small(tiny.card.embedding_dim)
        one = RobustSim(encoder)
    torch._dynamo.reset()
    compiled = torch.compile(one, fullgraph=True, backend=backend)
    for count, height, width in SHAPES[: {"vit": 4, "small": 1, "lite": 2}[name]]:
        a, b = images(count, height, width), images(count, height, width, seed=1)
        (d, gradient), (seen, expected) = value_and_gradient(compiled, a, b), value_and_gradient(one, a, b)
        torch.testing.assert_close(d, seen, rtol=1e-4, atol=1e-6)
        # At a kink of an activation, the last bit of a value decides on a gradient: of few pixels, and by little.
        error, most = (gradient - expected).abs(), expected.abs().max()
        assert error.max() < 0.05 * most
        assert (error > 1e-3 * expected.abs() + 2e-3 * most).double().mean() < 1e-3


@pytest.mark.parametrize(
    "mode", ["shortest", *(pytest.param(one, marks=pytest.mark.slow) for one in ("squash", "longest"))]
)
def test_a_stream_of_any_sizes_stays_within_the_limit_of_graphs(tiny, mode):
    """Sizes that guards could tell apart: landscape, portrait, square, the card's own, one against many, both alike."""
    preprocessing = Preprocessing(size=32, mode=mode, resize=40 if mode == "shortest" else None)
    encoder = copy.deepcopy(tiny.encoder)
    encoder.trunk = Small(tiny.card.embedding_dim)
    encoder.card = dataclasses.replace(encoder.card, preprocessing=preprocessing)
    one = RobustSim(encoder)
    torch._dynamo.reset()
    compiled = torch.compile(one, fullgraph=True, backend="eager")
    generator = torch.Generator().manual_seed(0)
    for call in range(40):
        count, height, width, other_height, other_width = torch.randint(2, 60, (5,), generator=generator).tolist()
        count = 1 + count % 4
        if call % 3 == 0:
            width = height
        if call % 4 == 0:
            other_height, other_width = height, width
        if call % 7 == 0:
            height = width = 32
        a = images(count, height, width).requires_grad_(call % 2 == 1)
        b = images(1 if call % 5 == 0 else count, other_height, other_width, seed=1)
        with torch.set_grad_enabled(call % 2 == 1):
            torch.testing.assert_close(compiled(a, b), one(a, b), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_traced_preprocessing_of_every_mode(mode, interpolation):
    resized = None if mode == "longest" else 40
    preprocessing = Preprocessing(size=32, mode=mode, interpolation=interpolation, resize=resized, fill=77)
    torch._dynamo.reset()
    compiled = torch.compile(preprocessing.apply_tensor, fullgraph=True, backend="aot_eager")
    mapped = torch.vmap(lambda one: preprocessing.apply_tensor(one[None])[0])
    for count, height, width in [(2, 64, 64), (1, 64, 64), (2, 48, 70), (3, 70, 48), (2, 32, 32), (1, 31, 32)]:
        x = images(count, height, width).requires_grad_()
        wanted = preprocessing.apply_tensor(x)
        weights = torch.linspace(0, 1, 32)
        (expected,) = torch.autograd.grad((wanted * weights).sum(), x)
        for got in (compiled(x), mapped(x)):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)
            (gradient,) = torch.autograd.grad((got * weights).sum(), x)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_traced_resize_is_in_full_precision_under_autocast():
    x, preprocessing = images(2, 50, 70), Preprocessing(size=32)
    expected = preprocessing.apply_tensor(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.vmap(lambda one: preprocessing.apply_tensor(one[None])[0])(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_other_calls_compile(tiny):
    torch._dynamo.reset()
    a, b, c = images(3), images(3, seed=1), images(3, seed=2)
    for function in (tiny.distance_matrix, tiny.two_afc, tiny.embed, tiny.similarity):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for count in (3, 2):
            given = [x[:count] for x in (a, b, c)][: {"two_afc": 3, "embed": 1}.get(function.__name__, 2)]
            torch.testing.assert_close(compiled(*given), function(*given), rtol=1e-4, atol=1e-6)
    matrix = torch.compile(tiny.distance_matrix, fullgraph=True, backend="aot_eager")(torch.cat((a, a[:1])))
    assert matrix[0, 3] == 0 < matrix[0, 1]


def test_more_images_than_a_batch_compile(tiny):
    torch._dynamo.reset()
    small = RobustSim(copy.deepcopy(tiny.encoder), batch_size=4)
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    for count in (3, 9, 5):
        a, b = images(count), images(count, seed=1)
        torch.testing.assert_close(compiled(a, b), small(a, b), rtol=1e-4, atol=1e-6)


class Embed(nn.Module):
    def __init__(self, metric):
        super().__init__()
        self.metric = metric

    def forward(self, pixels):
        return self.metric.embed_pixels(pixels)


@pytest.mark.parametrize("name", ["lite", "vit"])
def test_exported_with_a_free_batch(metric, tiny, name):
    one = {"vit": tiny, "lite": metric}[name]
    size = one.card.preprocessing.size
    batch = torch.export.Dim("batch")
    program = torch.export.export(Embed(one), (images(2, size, size),), dynamic_shapes={"pixels": {0: batch}})
    for count in (1, 3, 40) if name == "vit" else (1, 3):
        pixels = images(count, size, size)
        torch.testing.assert_close(program.module()(pixels), one.embed_pixels(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(SLOW_UNDER_VMAP)
@pytest.mark.parametrize(("name", "size"), [("lite", 64), ("lite", 224), ("vit", 64), ("vit", 224)])
def test_vmap_over_the_metric(metric, tiny, name, size):
    one = {"vit": tiny, "lite": metric}[name]
    a, b = images(3, size, size), images(3, size, size, seed=1)
    expected = one(a, b)
    torch.testing.assert_close(torch.vmap(one)(a, b).squeeze(1), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        torch.vmap(one, in_dims=(0, None))(a, b[0]).squeeze(1), one(a, b[0]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.filterwarnings(SLOW_UNDER_VMAP)
def test_per_sample_gradients_by_torch_func(tiny):
    a, b = images(3), images(3, seed=1)
    gradients = torch.vmap(torch.func.grad(lambda x, y: tiny(x, y).sum()))(a, b)
    torch.testing.assert_close(gradients, value_and_gradient(tiny, a, b)[1], rtol=1e-3, atol=1e-5)
    matrix = torch.vmap(tiny.distance_matrix)(torch.stack((a, a.flip(0))))
    torch.testing.assert_close(matrix, torch.stack((tiny.distance_matrix(a), tiny.distance_matrix(a.flip(0)))))


def test_the_range_is_checked_under_vmap_too(tiny):
    from robustsim.errors import InputError

    with pytest.raises(InputError, match=r"from 0 to 3, outside \[0, 1\]"):
        torch.vmap(tiny)(torch.stack((images(1)[0] * 0, images(1)[0] * 0 + 3)), images(2))


def test_compile_is_asked_for_by_name(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, *args, **kwargs: asked.append(module))
    metric = RobustSim.from_pretrained(device="cpu", compile=True)
    assert asked == [metric.encoder]
    RobustSim.from_pretrained(device="cpu")
    assert len(asked) == 1


def test_a_compiled_encoder_gives_the_same_numbers_and_is_copied_and_saved(tiny, tmp_path):
    metric, a, b = copy.deepcopy(tiny), images(2), images(2, seed=1)
    metric.encoder.compile(backend="eager")  # the same graph, without a C++ compiler
    expected, wanted = value_and_gradient(tiny, a, b)
    found, gradient = value_and_gradient(metric, a, b)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)
    assert torch.equal(copy.deepcopy(metric).embed(a), tiny.embed(a))  # a copy is compiled no more
    metric.save_pretrained(tmp_path / "saved")
    assert torch.equal(RobustSim.from_pretrained(tmp_path / "saved", device="cpu").embed(a), tiny.embed(a))
