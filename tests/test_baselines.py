"""Other people's metrics: each against the library that owns it, and all against one contract."""

import shutil
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from robustsim.baselines import (
    DISTS,
    L2,
    LPIPS,
    MSSSIM,
    PSNR,
    SSIM,
    Baseline,
    DreamSim,
    Linf,
    LipSim,
    PieAPP,
    from_callable,
    import_metric,
    list_baselines,
    load_baseline,
)
from robustsim.baselines.callables import find_object
from robustsim.baselines.dreamsim import KINDS
from robustsim.baselines.libraries import need, undisturbed
from robustsim.baselines.lipsim import convolution_rates, linear_rates
from robustsim.errors import (
    CorruptFileError,
    HubError,
    ImageError,
    InputError,
    MissingDependencyError,
    ModelNotFoundError,
    WeightsError,
)
from robustsim.images.preprocessing import Preprocessing
from tests.conftest import EXAMPLES
from tests.dreamsim_files import generator, random_state, small_vit, write_dreamsim

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = ("alex", "vgg", "squeeze")
SMALL_DREAMSIM = (
    *("dreamsim", "dreamsim-open-clip-vit-b-32", "dreamsim-dino-vit-b-16", "dreamsim-dino-vit-b-16-patch"),
    *("dreamsim-dinov2-vit-b-14", "dreamsim-dinov2-vit-b-14-patch"),
)


# Random weights in the layouts of the published files.


def trunk_state(net):
    """torchvision's ``features.*``."""
    import torchvision

    maker = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[net]
    with undisturbed(), torch.device("meta"):
        features = getattr(torchvision.models, maker)(weights=None).features
    return {f"features.{key}": value for key, value in random_state(features).items()}


def linear_state(net):
    widths = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512),
              "squeeze": (64, 128, 256, 384, 384, 512, 512)}[net]  # fmt: skip
    return {f"lin{k}.weight": torch.rand(1, w, 1, 1, generator=generator(k)) for k, w in enumerate(widths)}


def package_lpips(state, net):
    """The package's own module with these weights, the names of which are torchvision's."""
    lpips = need("lpips", "test")
    with undisturbed():
        module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    own = module.state_dict()
    for key in own:
        if key.startswith("net."):
            own[key] = state["features." + key.split(".", 2)[2]]
        elif key.startswith("lin"):
            own[key] = state[f"lin{key.removeprefix('lins.').removeprefix('lin')[0]}.weight"]
    module.load_state_dict(own)
    return module.eval()


def lipsim_state(channels=4, inner=3, cells=2, depth=2, linears=2, hidden=6, seed=0):
    """A small network in the layout of the published checkpoints, every layer there twice."""
    draw = generator(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw) * 0.5

    state = {}
    for k in range(depth):
        state |= {f"convs.{k}.kernel": normal(inner, channels, 3, 3), f"convs.{k}.bias": normal(1, inner, 1, 1),
                  f"convs.{k}.q": normal(inner)}  # fmt: skip
    for k in range(1, linears + 1):
        state |= {f"linear.{k}.weight": normal(hidden, channels * cells**2), f"linear.{k}.bias": normal(1, hidden),
                  f"linear.{k}.q": normal(hidden)}  # fmt: skip
    twice = {key.replace("convs", "base.1").replace("linear", "base.2"): value for key, value in state.items()}
    return {f"module.model.{key}": value for key, value in (state | twice).items()}


def dists_state():
    factors = torch.rand(2, 1475, 1, 1, generator=generator(3))
    factors = factors / factors.sum()
    return trunk_state("vgg") | {"alpha": factors[:1].clone(), "beta": factors[1:].clone()}


def pieapp_state():
    with torch.device("meta"):
        model = need("piq.pieapp", "test").PieAPPModel()
    state = random_state(model)
    state["ref_score_subtract.weight"] = torch.ones(1)  # one-dimensional in the published file
    state["fc2_weight.weight"] = state["fc2_weight.weight"].abs()  # weights are positive after training
    return state


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights files by the names of the baselines that read them."""
    root = tmp_path_factory.mktemp("baselines")
    made = {}
    for net in NETS:
        made[f"lpips-{net}"] = root / f"{net}.safetensors"
        save_file(trunk_state(net) | linear_state(net), made[f"lpips-{net}"])
    made["r-lpips"] = root / "latest_net_.pth"
    with torch.no_grad():
        torch.save(package_lpips(trunk_state("alex") | linear_state("alex"), "alex").state_dict(), made["r-lpips"])
    made["lipsim"] = root / "model.ckpt-1.pth"
    torch.save({"epoch": 1, "model_state_dict": lipsim_state()}, made["lipsim"])
    made["dists"] = root / "dists.safetensors"
    save_file(dists_state(), made["dists"])
    made["pieapp"] = root / "pieapp.safetensors"
    save_file(pieapp_state(), made["pieapp"])
    for name in SMALL_DREAMSIM:
        made[name] = write_dreamsim(root / name, name, small_vit)
    yield made
    shutil.rmtree(root)


def pair(size, count=2, seed=0):
    """Smooth pictures and noisy copies, (count, 3, size, size) in [0, 1]."""
    draw = generator(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=draw)
    a = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return a, (a + 0.1 * torch.randn(a.shape, generator=draw)).clamp(0, 1)


# Weights are numbers.

# For each baseline with weights, a tensor that it uses and that is spoilt, and where its file has it.
SPOILT = {
    "lpips-alex": "features.3.weight",
    "lpips-vgg": "lin2.weight",
    "r-lpips": "net.slice1.0.bias",
    "lipsim": "module.model.convs.1.kernel",
    "dists": "beta",
    "pieapp": "conv1.weight",
}


@pytest.mark.parametrize("name", SPOILT)
def test_weights_with_nan_are_refused(name, files, tmp_path):
    path = files[name]
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    inside = state.get("model_state_dict", state)
    for fault, what in ((float("nan"), "NaN"), (float("inf"), "infinity")):
        tensor = inside[SPOILT[name]].clone()
        tensor.view(-1)[-1] = fault
        torch.save({**inside, SPOILT[name]: tensor}, tmp_path / "w.pth")
        tail = SPOILT[name].removeprefix("module.model.")
        with pytest.raises(WeightsError, match=rf"w\.pth' hold values that are not finite, .*{tail} \({what}\)"):
            load_baseline(name, weights=tmp_path / "w.pth")


def test_weights_with_nan_that_a_library_loads_are_refused(files, small_dreamsim, tmp_path, monkeypatch):
    name = "dreamsim-open-clip-vit-b-32"
    folder = shutil.copytree(files[name], tmp_path / name)
    file = folder / "open_clip_vitb32_pretrain.pth.tar"
    state = torch.load(file, weights_only=True)["state_dict"]
    for key in ("blocks.3.attn.qkv.weight", "proj"):
        spoilt = state[key].clone()
        spoilt[1, 1] = float("nan")
        torch.save({"state_dict": {**state, key: spoilt}}, file)
        with pytest.raises(WeightsError, match=rf"the weights of {name} hold .*{key} \(NaN\)"):
            load_baseline(name, weights=folder)
    bad = pieapp_state()
    bad["conv3.weight"][0, 0, 0, 0] = float("inf")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: bad)
    with pytest.raises(WeightsError, match=r"the weights of pieapp hold .*library\.conv3\.weight \(infinity\)"):
        load_baseline("pieapp")


def test_infinities_in_somebodys_own_module_are_theirs():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

        def forward(self, a, b):
            return (a - b).square().mean((1, 2, 3))

    assert from_callable(Masked())(*pair(8)).shape == (2,)


@pytest.mark.parametrize("name", ["lpips-alex", "lipsim", "dists", "pieapp", "dreamsim", "ssim"])
def test_another_device_for_new_tensors_is_not_the_metrics(name, files, small_dreamsim):
    expected = load_baseline(name, weights=files.get(name)).weights_sha256()
    with torch.device("meta"):
        metric = load_baseline(name, weights=files.get(name))
    assert {value.device.type for value in (*metric.parameters(), *metric.buffers())} <= {"cpu"}
    assert metric.weights_sha256() == expected


# The contract.


class TinyModel(nn.Module):
    """An embedding model as users have them."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Tanh(), nn.Flatten(), nn.LazyLinear(5))
            self.layers(torch.zeros(1, 3, 64, 64))

    def forward(self, images):
        return self.layers(images)


class TinyMetric(nn.Module):
    """A metric with embeddings as users have them."""

    def __init__(self):
        super().__init__()
        self.model = TinyModel()

    def embed(self, images):
        return self.model(images)

    def forward(self, a, b):
        return 1 - F.cosine_similarity(self.embed(a), self.embed(b))


def mean_squares(a, b):
    return (a - b).square().mean((1, 2, 3), keepdim=True)


CUSTOM = {
    "function": lambda: from_callable(mean_squares, name="function"),
    "model": lambda: from_callable(TinyModel(), name="model"),
    "metric": lambda: from_callable(TinyMetric(), name="metric"),
}
PLAIN = ("l2", "linf", "psnr", "ssim", "ms-ssim", "phash")
LEARNED = ("lpips-alex", "lpips-vgg", "lpips-squeeze", "r-lpips", "lipsim", "dreamsim", "dreamsim-open-clip-vit-b-32",
           "dreamsim-dino-vit-b-16-patch", "dists", "pieapp")  # fmt: skip


@pytest.fixture(scope="module", params=[*PLAIN, *LEARNED, *CUSTOM])
def made(request, files, small_dreamsim):
    name = request.param
    return CUSTOM[name]() if name in CUSTOM else load_baseline(name, weights=files.get(name))


def size_for(metric):
    return metric.side or max(64, metric.least_side)


def test_contract_values(made):
    a, b = pair(size_for(made))
    before = a.clone(), b.clone()
    with torch.no_grad():
        d, back, one = made(a, b), made.distance(b, a), made(a[1:], b[1:])
        same = made(a, a.clone())
        many = made(a[:1], torch.cat((a[:1], b)))
        assert torch.equal(made(a, b), d)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    assert d.shape == (2,)
    assert one.shape == (1,)
    assert many.shape == (3,)
    assert d.dtype == torch.float32
    assert torch.isfinite(d).all()
    torch.testing.assert_close(one, d[1:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(many[1:2], d[:1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(many[0], same[0], rtol=1e-4, atol=1e-6)
    if made.name == "pieapp":  # has a direction, and a constant for what is equal
        torch.testing.assert_close(same[0], same[1])
        return
    torch.testing.assert_close(d, back, rtol=1e-4, atol=1e-6)
    assert (same < d).all()
    torch.testing.assert_close(same, torch.full((2,), -100.0 if made.name == "psnr" else 0.0), rtol=0, atol=1e-6)


def test_contract_embeddings(made):
    a, b = pair(size_for(made))
    if not made.embeds:
        with pytest.raises(InputError, match="has no embeddings"):
            made.embed(a)
        with pytest.raises(InputError, match="has no embeddings"):
            made.compare(a.flatten(1), b.flatten(1))
        return
    with torch.no_grad():
        u, v = made.embed(a), made.embed(b)
        assert u.ndim == 2
        assert u.dtype == torch.float32
        assert len(u) == 2
        assert len(made.embed(a[:1])) == 1
        torch.testing.assert_close(made.compare(u, v), made(a, b), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"compares embeddings .* not \(2, 3\) with \(2, 4\)"):
        made.compare(torch.zeros(2, 3), torch.zeros(2, 4))


def test_contract_gradients(made):
    a, b = pair(size_for(made))
    x, y = a.requires_grad_(), b.requires_grad_()
    for gradient in torch.autograd.grad(made(x, y).sum(), (x, y)):
        assert torch.isfinite(gradient).all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all()
    same = a.detach().clone().requires_grad_()
    for gradient in torch.autograd.grad(made(x, same).sum(), (x, same), allow_unused=True):
        assert torch.isfinite(gradient).all()
    flat = torch.zeros(1, 3, *a.shape[2:], requires_grad=True)
    for gradient in torch.autograd.grad(made(flat, flat.detach() + 1).sum(), flat):
        assert torch.isfinite(gradient).all()


def test_contract_module(made):
    assert isinstance(made, Baseline)
    assert made.name
    assert made.source
    assert isinstance(made.preprocessing, Preprocessing)
    assert made.preprocessing.size == (made.side or 224)
    before = made.weights_sha256()
    assert (before is None) == (made.name in (*PLAIN, "function"))
    assert made.train() is made
    assert not any(module.training for module in made.modules())
    assert not any(parameter.requires_grad for parameter in made.parameters())
    made(*pair(size_for(made)))
    assert made.weights_sha256() == before


def test_contract_input(made):
    size = size_for(made)
    good = torch.zeros(2, 3, size, size)
    for bad in (good[0], good[:, :2], (good * 255).to(torch.uint8), good[:0], "a.png"):
        with pytest.raises(InputError, match=r"takes floating-point pixels \(N, 3, H, W\) in \[0, 1\], not "):
            made.distance(good, bad)
    with pytest.raises(ImageError, match="there is no such file"):
        made(good, "a.png")
    with pytest.raises(InputError, match=rf"N with N or one with N, not \(2, 3, {size}, {size}\) with \(3, "):
        made(good, torch.zeros(3, 3, size, size))
    if made.side:
        with pytest.raises(InputError, match=f"looks at {size} x {size} pixels, not {size} x {size + 1}"):
            made(good, torch.zeros(2, 3, size, size + 1))
        return
    with pytest.raises(InputError, match="of one size"):
        made(good, torch.zeros(2, 3, size, size + 1))
    if made.least_side > 1:
        least = made.least_side
        with pytest.raises(InputError, match=f"needs at least {least} x {least} pixels, not {size} x {least - 1}"):
            made(torch.zeros(2, 3, size, least - 1), torch.zeros(2, 3, size, least - 1))
        made(torch.rand(1, 3, least, least), torch.rand(1, 3, least, least))


@pytest.mark.parametrize("name", ["ssim", "ms-ssim", "lpips-squeeze", "lipsim", "dreamsim", "dists", "pieapp"])
def test_nothing_stays_behind_on_the_cpu(name, files, small_dreamsim):
    """On a device without memory, as on any other, a tensor that did not move would raise."""
    metric = load_baseline(name, weights=files.get(name))
    metric(*pair(size_for(metric), count=1))
    metric.to("meta")
    if name == "dreamsim":  # torchvision's normalisation looks at values, which are not there
        metric.library._preprocess = lambda images, model_type: images
    a, b = (image.to("meta") for image in pair(size_for(metric)))
    assert metric.distance(a, b).shape == (2,)
    assert metric.distance(a, b).device.type == "meta"


def test_construction_leaves_no_trace(files, small_dreamsim, capsys):
    state, folder = torch.get_rng_state(), torch.hub.get_dir()
    for name in ("lpips-alex", "lpips-squeeze", "dists", "dreamsim"):
        load_baseline(name, weights=files[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.hub.get_dir() == folder
    assert vars(torch.hub)["_hub_dir"] is None
    assert capsys.readouterr().out == ""


def test_made_in_inference_mode_it_still_has_gradients(files):
    with torch.inference_mode():
        metric = load_baseline("dists", weights=files["dists"])
        metric(*pair(64))
    a, b = pair(64)
    metric(a.requires_grad_(), b).sum().backward()
    assert a.grad.abs().max() > 0


# Pixels and structure.


def test_pixel_distances():
    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    b[0, 0, 0, 0] = 1.0
    mse = (47 * 0.25 + 1) / 48
    assert L2()(a, b).item() == pytest.approx(mse**0.5)
    assert Linf()(a, b).item() == 1
    assert PSNR()(a, b).item() == pytest.approx(10 * np.log10(mse), abs=1e-5)
    x = a.clone().requires_grad_()
    L2()(x, a).sum().backward()
    assert x.grad.abs().max() == 0


@pytest.mark.parametrize("size", [(64, 96), (161, 175), (400, 500)])
def test_ssim_is_piqs(size):
    piq = need("piq", "test")
    draw = generator()
    a = torch.rand(2, 3, *size, generator=draw)
    b = (a + 0.2 * torch.randn(a.shape, generator=draw)).clamp(0, 1)
    torch.testing.assert_close(SSIM()(a, b), 1 - piq.ssim(a, b, reduction="none"), rtol=0, atol=2e-6)
    if min(size) >= 161:
        theirs = 1 - piq.multi_scale_ssim(a, b, reduction="none")
        torch.testing.assert_close(MSSSIM()(a, b), theirs, rtol=0, atol=1e-5)


def test_ssim_is_torchmetrics_inside_the_border():
    """Its local values, where no window leaves the image."""
    functional = need("torchmetrics.functional.image", "test")
    a, b = pair(64)
    _, image = functional.structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(SSIM()(a, b), 1 - image[..., 5:-5, 5:-5].mean((1, 2, 3)), rtol=0, atol=1e-5)


def test_ms_ssim_has_gradients_where_contrast_is_negative():
    a = torch.rand(1, 3, 161, 161, generator=generator())
    b = (1 - a).requires_grad_()
    d = MSSSIM()(a, b)
    d.sum().backward()
    assert d.item() == 1
    assert torch.isfinite(b.grad).all()


# LPIPS.


def read(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1)[None] / np.float32(255))


def test_lpips_of_its_own_example(shared):
    metric = load_baseline("lpips-alex", weights=shared / "weights" / "lpips-alex.safetensors")
    reference, p0, p1 = (read(shared / "lpips-example" / f"ex_{part}.png") for part in ("ref", "p0", "p1"))
    assert metric(reference, p0).item() == pytest.approx(0.7219, abs=5e-4)
    assert metric(reference, p1).item() == pytest.approx(0.1376, abs=5e-4)


@pytest.mark.parametrize("net", NETS)
def test_lpips_is_the_packages(net, files):
    ours = LPIPS(net, weights=files[f"lpips-{net}"])
    theirs = package_lpips(trunk_state(net) | linear_state(net), net)
    inputs = [image.requires_grad_() for image in pair(64)]
    d, expected = ours(*inputs), theirs(*inputs, normalize=True).flatten()
    torch.testing.assert_close(d, expected, rtol=1e-5, atol=1e-5)
    for mine, its in zip(
        torch.autograd.grad(d.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-6 + 1e-4 * its.abs().max().item())


def test_lpips_reads_every_layout(files, tmp_path):
    expected = LPIPS(weights=files["lpips-alex"])
    trunk, linear = trunk_state("alex"), linear_state("alex")
    package = package_lpips(trunk | linear, "alex").state_dict()
    layouts = {
        "whole.pth": trunk | linear | {"classifier.1.weight": torch.zeros(2, 2)},
        "model.pt": {"state_dict": trunk | {k.replace(".weight", ".model.1.weight"): v for k, v in linear.items()}},
        "package.safetensors": {key: value.clone() for key, value in package.items()},
        "compiled.pth": {"model_state": {f"_orig_mod.module.{key}": value for key, value in package.items()}},
        "parallel.pth": {f"module.{key}": value for key, value in package.items() if not key.startswith("scaling")},
    }
    for name, state in layouts.items():
        save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
        assert LPIPS(weights=tmp_path / name).weights_sha256() == expected.weights_sha256(), name
    torch.save(trunk, tmp_path / "trunk.pth")
    lpips = need("lpips", "test")
    own = torch.load(f"{lpips.__path__[0]}/weights/v0.1/alex.pth", weights_only=True, map_location="cpu")
    assert torch.equal(LPIPS(weights=tmp_path / "trunk.pth").library.lin2.model[1].weight, own["lin2.model.1.weight"])


def test_lpips_refuses_other_files(tmp_path):
    trunk, linear = trunk_state("alex"), linear_state("alex")
    good = trunk | linear

    def refused(state, match, name="lpips-alex", error=WeightsError):
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(error, match=match):
            load_baseline(name, weights=tmp_path / "w.pth")

    refused({k: v for k, v in good.items() if k != "features.3.bias"}, r"lpips-alex: it lacks features\.3\.bias")
    refused({k: v for k, v in good.items() if k != "lin3.weight"}, r"it lacks lin3\.weight")
    refused(trunk, r"does not fit r-lpips: it lacks lin0\.weight", name="r-lpips")
    refused(good | {"norm.weight": torch.ones(2)}, r"it holds norm\.weight, which do not belong there")
    refused(good | {"features.12.weight": torch.ones(2)}, r"it holds features\.12\.weight, which")
    refused(good | {"lin0.weight": torch.ones(1, 63, 1, 1)}, r"lin0\.weight \(1, 63, 1, 1\) instead of \(1, 64, 1, 1\)")
    refused(good | {"lin1.weight": -linear["lin1.weight"]}, "linear layer 1 of lpips-alex has negative weights")
    refused(good | {"lins.1.model.1.weight": linear["lin1.weight"] + 1}, r"holds two different lin1\.weight")
    refused({"epoch": 3}, "holds no tensors")
    with pytest.raises(WeightsError, match="there is no file"):
        load_baseline("lpips-alex", weights=tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    with pytest.raises(CorruptFileError, match="no whole safetensors file"):
        load_baseline("lpips-alex", weights=tmp_path / "damaged.safetensors")
    with pytest.raises(InputError, match="trunks alex, vgg, squeeze, not 'resnet'"):
        LPIPS("resnet")


def test_lpips_has_gradients_where_no_channel_is_active(files):
    metric = LPIPS(weights=files["lpips-alex"])
    with torch.no_grad():
        metric.library.net.slice1[0].bias.fill_(-100)
    a, b = pair(64)
    metric(a.requires_grad_(), b).sum().backward()
    assert torch.isfinite(a.grad).all()


# LipSim.


def direct_lipsim(state, x, channels):
    """The network from the published formulas, its rates worked out at each layer."""
    layers = {key.removeprefix("module.model."): value for key, value in state.items() if ".base." not in key}
    x = torch.cat((x, x.new_zeros(len(x), channels - 3, *x.shape[2:])), 1)
    for k in range(sum(key.startswith("convs") for key in layers) // 3):
        kernel, bias, _ = (layers[f"convs.{k}.{part}"] for part in ("kernel", "bias", "q"))
        total = F.conv2d(kernel, kernel, padding=2).abs().sum((1, 2, 3))
        inner = (F.conv2d(x, kernel, padding=1) + bias).relu() / total[:, None, None]
        x = x - 2 * F.conv_transpose2d(inner, kernel, padding=1)
    for _ in range(2):
        x = x.unfold(2, 4, 4).unfold(3, 4, 4).sum((-1, -2)) / 4
    x = x.flatten(1)
    for k in range(1, 1 + sum(key.startswith("linear") for key in layers) // 3):
        weight, bias, q = (layers[f"linear.{k}.{part}"] for part in ("weight", "bias", "q"))
        q = q.exp()
        t = [1 / sum(abs(weight[i] @ weight[j]) * q[j] / q[i] for j in range(len(q))) for i in range(len(q))]
        x = x - 2 * (torch.stack(t) * (x @ weight.T + bias).relu()) @ weight
    return x


def test_lipsim_is_what_its_formulas_say(files):
    metric = load_baseline("lipsim", weights=files["lipsim"])
    assert (metric.side, metric.preprocessing) == (32, Preprocessing(size=32))
    a, b = pair(32)
    u, v = (direct_lipsim(lipsim_state(), image, 4) for image in (a, b))
    torch.testing.assert_close(metric.embed(a), u, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metric(a, b), 1 - F.cosine_similarity(u, v), rtol=1e-3, atol=1e-6)
    assert LipSim(weights=files["lipsim"], embedding_dim=7).embed(a).shape == (2, 7)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 30))
def test_lipsim_is_one_lipschitz(seed, scale):
    draw = generator(seed)
    kernel, weight, q = (torch.randn(shape, generator=draw) * scale for shape in ((3, 4, 3, 3), (5, 7), (5,)))
    q = q.clamp(-4, 4)
    x, y = torch.randn(2, 1, 4, 6, 6, generator=draw)
    t = convolution_rates(kernel)[:, None, None]

    def convolution(x):
        return x - 2 * F.conv_transpose2d(t * F.conv2d(x, kernel, padding=1).relu(), kernel, padding=1)

    assert (convolution(x) - convolution(y)).norm() <= (x - y).norm() * (1 + 1e-4)
    u, v = torch.randn(2, 7, generator=draw)
    r = linear_rates(weight, q)

    def linear(u):
        return u - 2 * (r * (weight @ u).relu()) @ weight

    assert (linear(u) - linear(v)).norm() <= (u - v).norm() * (1 + 1e-4)


def test_lipsim_network_is_one_lipschitz(files):
    metric = load_baseline("lipsim", weights=files["lipsim"])
    a, b = pair(32, count=8)
    assert ((metric.embed(a) - metric.embed(b)).norm(dim=1) <= (a - b).flatten(1).norm(dim=1)).all()
    dead = linear_rates(torch.zeros(2, 3), torch.zeros(2))
    assert torch.equal(dead, torch.zeros(2))


def test_lipsim_reads_other_wrappings_and_refuses_other_files(tmp_path):
    good = lipsim_state()
    bare = {key.removeprefix("module.model."): value for key, value in good.items() if ".base." not in key}
    only_base = {key: value for key, value in good.items() if ".base." in key}
    shas = set()
    for state in (good, bare, only_base, good | {"module.model.alpha": torch.ones(1)}):
        torch.save(state, tmp_path / "w.pth")
        shas.add(LipSim(weights=tmp_path / "w.pth").weights_sha256())
    assert len(shas) == 1

    def refused(state, match):
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=match):
            load_baseline("lipsim", weights=tmp_path / "w.pth")

    refused({k: v for k, v in bare.items() if k != "convs.1.bias"}, r"lacks convs\.1\.bias")
    refused({k: v for k, v in bare.items() if not k.startswith("linear.1")}, r"lacks linear\.1\.weight")
    refused(bare | {"last.weight": torch.ones(2, 2)}, r"holds last\.weight")
    refused(good | {"convs.0.q": torch.ones(3)}, r"two different convs\.0\.q")
    refused(bare | {"linear.2.bias": torch.ones(6)}, r"linear\.2\.bias \(6,\) instead of \(1, 6\)")
    refused(
        lipsim_state(channels=5) | {k: v for k, v in good.items() if "linear" in k and ".base." not in k}, "two diff"
    )
    odd = {k: v[:, :15] if k.endswith("weight") else v for k, v in bare.items()}
    refused(odd, "linear layers over 15 values do not follow 4 channels of a square")
    refused({"weight": torch.ones(2)}, r"lacks convs\.0\.kernel")


# DreamSim.


@pytest.mark.parametrize("name", SMALL_DREAMSIM)
def test_dreamsim_is_the_packages(name, files, small_dreamsim):
    ours = load_baseline(name, weights=files[name])
    package = need("dreamsim", "test")
    kind = KINDS[name][0]
    with undisturbed():
        theirs, preprocess = package.dreamsim(
            device="cpu",
            cache_dir=str(files[name]),
            dreamsim_type=kind.removesuffix("_patch"),
            use_patch_model=kind.endswith("_patch"),
        )
    a, b = pair(224)[0], 1 - pair(224, seed=1)[0]
    expected = theirs(a, b)
    assert (expected > 1e-4).all()
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours(a[:1], b[:1]), theirs(a[:1], b[:1]), rtol=0, atol=1e-6)
    embedding, theirs_embedding = ours.embed(a), theirs.embed(a)
    if kind.endswith("_patch"):  # every token of its own, which only their distance brings together
        patches = theirs_embedding[:, 1:].mean(1)
        theirs_embedding = torch.cat((theirs_embedding[:, 0], patches), 1)
    torch.testing.assert_close(embedding, theirs_embedding, rtol=0, atol=1e-5)
    if not kind.endswith("_patch"):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
        torch.testing.assert_close(embedding.mean(1), torch.zeros(2), rtol=0, atol=1e-6)
    width = {"dreamsim": 512 + 512 + 24, "dreamsim-open-clip-vit-b-32": 512}.get(name, 24)
    assert ours.embed(a[:1]).shape == (1, 2 * width if kind.endswith("_patch") else width)
    picture = Image.fromarray((torch.rand(61, 47, 3, generator=generator()) * 255).to(torch.uint8).numpy())
    mine = np.asarray(ours.preprocessing.apply(picture)).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(mine, preprocess(picture)[0].numpy())
    assert not any(extractor._feats for extractor in ours.library.extractor_list)
    for extractor in ours.library.extractor_list:  # DINO's blocks, all of them
        assert {type(block).__module__ for block in extractor.model.blocks} == {"robustsim.encoders.fast.dino"}
    wanted, found = (slope(lambda x, metric=metric: metric(x, b), a) for metric in (theirs, ours))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def slope(function, images):
    x = images.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def test_blocks_that_compute_something_else_stay():
    from robustsim.encoders.fast.dino import fuse_blocks

    with undisturbed():
        blocks = small_vit().eval().requires_grad_(False).blocks[:4]
    before = {key: value.clone() for key, value in blocks.state_dict().items()}
    blocks[0].attn.scale = 0.9  # a number that is no child
    blocks[1].attn.qkv = torch.nn.Conv1d(24, 72, 1)
    blocks[2].train()
    assert fuse_blocks(blocks, only_first=True) == 1
    assert [type(block).__name__ for block in blocks] == ["Block", "Block", "Block", "_Block"]
    assert blocks.state_dict().keys() == before.keys()
    x = torch.randn(2, 7, 24, generator=generator())
    assert blocks[3](x).shape == (2, 1, 24)


def test_dreamsim_of_its_real_size(tmp_path, monkeypatch):
    import dreamsim.feature_extraction.load_open_clip_as_dino as open_clip
    from dreamsim.feature_extraction.vision_transformer import vit_base

    monkeypatch.setattr(open_clip, "vit_base", vit_base)
    name = "dreamsim-open-clip-vit-b-32"
    folder = write_dreamsim(tmp_path / "files", name, vit_base)
    ours = load_baseline(name, weights=folder)
    with undisturbed():
        theirs, _ = need("dreamsim", "test").dreamsim(
            device="cpu", cache_dir=str(folder), dreamsim_type="open_clip_vitb32"
        )
    a, b = pair(224)
    torch.testing.assert_close(ours(a, b), theirs(a, b), rtol=0, atol=1e-6)
    shutil.rmtree(folder)


def test_dreamsim_moves_with_its_projection(files, small_dreamsim):
    metric = load_baseline("dreamsim", weights=files["dreamsim"])
    assert {"library.extractor_list.1.proj", "library.extractor_list.2.proj"} <= set(metric.state_dict())
    before = metric.weights_sha256()
    metric.to(torch.float64)
    assert metric.library.extractor_list[1].device.type == "cpu"
    assert metric.weights_sha256() != before


def test_dreamsim_without_its_files(files, small_dreamsim, tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match=r"lacks clip_vitb32_pretrain\.pth\.tar, clip_vitb32_single_lora/adapter_"):
        load_baseline("dreamsim-clip-vit-b-32", weights=tmp_path / "empty")

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(HubError, match=r"synclr_vit_b_16\.pth, .* could not be downloaded into .*robustsim.dreamsim"):
        load_baseline("dreamsim-synclr-vit-b-16")
    shutil.copytree(files["dreamsim"], tmp_path / "no-hub", ignore=shutil.ignore_patterns("facebookresearch*"))
    with pytest.raises(
        HubError, match=r"what dreamsim takes from torch\.hub could not be downloaded .* weights=FOLDER"
    ):
        load_baseline("dreamsim", weights=tmp_path / "no-hub")
    name = "dreamsim-open-clip-vit-b-32"
    shutil.copytree(files[name], tmp_path / "damaged")
    torch.save({"state_dict": {"proj": torch.ones(2, 2)}}, tmp_path / "damaged" / "open_clip_vitb32_pretrain.pth.tar")
    with pytest.raises(WeightsError, match=f"the files of {name} .* could not be loaded: .* another type$") as caught:
        load_baseline(name, weights=tmp_path / "damaged")
    assert caught.value.__cause__ is not None
    assert str(caught.value.__cause__)[:40] not in str(caught.value)
    with pytest.raises(InputError, match="DreamSim has the types"):
        DreamSim("dreamsim-resnet")


# DISTS and PieAPP.


def test_dists_is_piqs(files, monkeypatch, tmp_path):
    piq, perceptual = need("piq", "test"), need("piq.perceptual", "test")
    state = dists_state()
    with torch.device("meta"):
        from torchvision.models import vgg16

        network = vgg16(weights=None)
    network.features.load_state_dict(
        {key.removeprefix("features."): value for key, value in state.items() if "." in key}, assign=True
    )
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: state)
    monkeypatch.setattr(perceptual, "vgg16", lambda **kwargs: network)
    theirs = piq.DISTS(reduction="none")
    ours, downloaded = DISTS(weights=files["dists"]), DISTS()
    for size in (64, 300):
        a, b = pair(size)
        expected = theirs(a, b)
        torch.testing.assert_close(ours(a, b), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(downloaded(a, b), expected, rtol=0, atol=1e-5)
    assert torch.equal(ours.alpha, downloaded.alpha)
    doubled = {key: value if "." in key else 2 * value for key, value in state.items()}
    save_file(doubled, tmp_path / "authors.safetensors")  # whose factors do not add up to 1
    torch.testing.assert_close(DISTS(weights=tmp_path / "authors.safetensors").beta, ours.beta)


def test_pieapp_is_piqs(files, monkeypatch):
    piq = need("piq", "test")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: pieapp_state())
    theirs = piq.PieAPP(reduction="none", enable_grad=True)
    ours = PieAPP(weights=files["pieapp"])
    reference, other = pair(100)
    torch.testing.assert_close(ours(reference, other), theirs(other, reference), rtol=1e-4, atol=1e-4)


def test_quality_refuses_other_files(tmp_path):
    state = {key: value for key, value in dists_state().items() if key != "beta"}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"does not fit dists: it lacks beta$"):
        load_baseline("dists", weights=tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"does not fit pieapp: it lacks conv1\.weight, .* it holds alpha"):
        load_baseline("pieapp", weights=tmp_path / "w.pth")


# One's own.


def test_a_callable_is_wrapped_by_what_it_takes():
    a, b = pair(64)
    two = from_callable(mean_squares)
    assert (two.name, two.embeds, two.weights_sha256()) == ("custom", False, None)
    torch.testing.assert_close(two(a, b), (a - b).square().mean((1, 2, 3)))
    model = TinyModel()
    one = from_callable(model, name="mine", preprocessing=Preprocessing(size=64))
    assert (one.name, one.embeds, one.preprocessing.size) == ("mine", True, 64)
    torch.testing.assert_close(one(a, b), (1 - F.cosine_similarity(model(a), model(b))).sqrt())
    both = TinyMetric()
    embedding = from_callable(both)
    torch.testing.assert_close(embedding(a, b), both(a, b))
    both.compare = lambda u, v: (u - v).abs().sum(1, keepdim=True)
    embedding = from_callable(both)
    torch.testing.assert_close(embedding(a[:1], b), (both.embed(a[:1]) - both.embed(b)).abs().sum(1))
    assert from_callable(embedding) is embedding

    class Layered(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Flatten()

        def forward(self, a, b):
            return (self.embed(a) - self.embed(b)).abs().mean(1)

    assert not from_callable(Layered()).embeds
    assert not from_callable(lambda *images: mean_squares(*images)).embeds
    assert not from_callable(max).embeds


def test_what_a_callable_gives_is_checked():
    a, b = pair(8)
    for wrong, seen in (
        (lambda a, b: a.mean(), r"\(\)"),
        (lambda a, b: a, r"\(2, 3, 8, 8\)"),
        (lambda a, b: 1.0, "float"),
    ):
        with pytest.raises(InputError, match=rf"custom must give 2 distances, .* not {seen}"):
            from_callable(wrong)(a, b)
    for wrong, seen in ((lambda a: a, r"torch.float32 \(2, 3, 8, 8\)"), (lambda a: [a], "list")):
        with pytest.raises(InputError, match=rf"custom must give embeddings, floating point \(2, D\), not {seen}"):
            from_callable(wrong)(a, b)
    with pytest.raises(InputError, match="is int, which can neither be called nor has a method embed"):
        from_callable(3)


def test_a_metric_is_imported_by_name(monkeypatch):
    module = types.ModuleType("somebodys_metrics")
    module.Metric, module.squares, module.Needy = (
        TinyMetric,
        mean_squares,
        type("Needy", (), {"__init__": lambda s, x: None}),
    )
    module.nested = types.SimpleNamespace(squares=mean_squares)
    monkeypatch.setitem(sys.modules, "somebodys_metrics", module)
    assert isinstance(find_object("somebodys_metrics:Metric"), TinyMetric)
    assert find_object("somebodys_metrics:squares") is mean_squares
    assert find_object("somebodys_metrics:nested.squares") is mean_squares
    metric = import_metric("somebodys_metrics:Metric")
    assert (metric.name, metric.embeds) == ("somebodys_metrics:Metric", True)
    for path, match in {
        "somebodys_metrics": "write package.module:name",
        "somebodys_metrics:": "write package.module:name",
        "nobodys_metrics:x": "module 'nobodys_metrics' cannot be imported",
        ".relative:x": "write package.module:name",
        "somebodys_metrics:other": "has no 'other'",
        "somebodys_metrics:Needy": "cannot be made without arguments",
    }.items():
        with pytest.raises(InputError, match=match):
            import_metric(path)


# By name.


def test_names():
    assert list_baselines() == sorted({*PLAIN, *LEARNED, *KINDS})
    with pytest.raises(ModelNotFoundError, match="no baseline 'lpips-alexnet'; did you mean 'lpips-alex'"):
        load_baseline("lpips-alexnet")
    with pytest.raises(InputError, match=r"l2 has no weights: leave 'w\.pth' out"):
        load_baseline("l2", weights="w.pth")
    for name, repository in (("lipsim", "lipsim"), ("r-lpips", "R-LPIPS")):
        with pytest.raises(
            InputError, match=rf"{name} needs .*github\.com/SaraGhazanfari/{repository} .*\({name}=FILE"
        ):
            load_baseline(name)
    assert load_baseline("l2", device="cpu").name == "l2"
    with pytest.raises(InputError, match="has no device 'abacus'"):
        load_baseline("l2", device="abacus")


@pytest.mark.parametrize("name", ["lpips-alex", "dists", "pieapp"])
def test_a_download_that_fails(name, monkeypatch, tmp_path, capsys):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(HubError, match=rf"weights of {name} could not be downloaded \(no network\).*\({name}=FILE"):
        load_baseline(name)
    assert capsys.readouterr().out == ""


def test_a_library_that_is_missing(monkeypatch):
    for library, name in (
        ("lpips", "lpips-alex"),
        ("piq", "dists"),
        ("piq.pieapp", "pieapp"),
        ("dreamsim", "dreamsim"),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingDependencyError, match=rf'{name} needs the package .* pip install "robustsim\[base'):
            load_baseline(name)


def test_the_list_of_names_is_light():
    import subprocess

    code = "from robustsim.baselines import list_baselines; list_baselines(); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_images_of_any_kind_are_taken():
    metric = load_baseline("l2")
    files = [EXAMPLES / name for name in ("chelsea.png", "coffee.png")]
    d = metric(files[0], files)
    assert d.shape == (2,)
    assert d[0] == 0 < d[1]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30), dtype=np.uint8))
    torch.testing.assert_close(metric(pixels[0], pixels), metric.distance(pixels[:1] / 255, pixels / 255))
    with pytest.raises(InputError, match=r"from -1 to 1, outside \[0, 1\]"):
        metric(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2), pixels[:1])  # what LPIPS itself takes
    with pytest.raises(InputError, match="no agreed range"):
        metric(pixels.long(), pixels)
