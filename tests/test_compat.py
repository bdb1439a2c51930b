"""The drop-ins: what is written for LPIPS and DreamSim runs, and is held against the packages themselves."""

import copy
import inspect
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from robustsim import RobustSim
from robustsim.compat import CompatWarning, PerceptualModel, dreamsim, dropin, lpips
from robustsim.errors import ImageError, InputError
from robustsim.explain import difference_map
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

CHELSEA, COFFEE, ROCKET = (EXAMPLES / name for name in ("chelsea.png", "coffee.png", "rocket.jpg"))


def images(count, height=64, width=64, *, seed=0, low=-1.0, high=1.0):
    drawn = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return drawn * (high - low) + low


@pytest.fixture(autouse=True)
def told():
    """As if the drop-ins had said already how they differ; a test of that empties it."""
    before = set(dropin._told)
    dropin._told.update({"LPIPS", "dreamsim"})
    yield dropin._told
    dropin._told.clear()
    dropin._told.update(before)


@pytest.fixture(scope="module")
def real_lpips():
    """The package, whose trunks have random weights here: nothing is downloaded."""
    package = pytest.importorskip("lpips", reason="the package lpips is not installed")

    def make(**options):
        with torch.random.fork_rng(), warnings.catch_warnings():
            torch.manual_seed(0)
            warnings.simplefilter("ignore")  # of torchvision, about how the package calls it
            return package.LPIPS(**{"pnet_rand": True, "verbose": False, **options})

    return make


@pytest.fixture(scope="module")
def loss(metric):
    return lpips.LPIPS(verbose=False, model=metric)


@pytest.fixture(scope="module")
def tiny(published):
    """A small transformer, which crops."""
    return RobustSim.from_pretrained(published["vit"][0], device="cpu")


# --- LPIPS: its own examples, with the import changed


def test_the_quick_start_of_lpips():
    loss_fn_alex = lpips.LPIPS(net="alex")
    loss_fn_vgg = lpips.LPIPS(net="vgg")
    img0 = torch.zeros(1, 3, 64, 64)
    img1 = torch.zeros(1, 3, 64, 64)
    d = loss_fn_alex(img0, img1)
    assert d.shape == (1, 1, 1, 1)
    assert d.item() == 0
    img1[..., 20:40, 20:40] = 1
    assert loss_fn_alex(img0, img1) == loss_fn_vgg(img0, img1) > 0


def test_two_files_as_its_script_compares_them(capsys):
    loss_fn = lpips.LPIPS(net="alex", version="0.1")
    img0 = lpips.im2tensor(lpips.load_image(str(CHELSEA)))
    img1 = lpips.im2tensor(lpips.load_image(str(ROCKET)))
    dist01 = loss_fn.forward(img0, img1)
    assert 0 < float(f"{dist01.item():.3f}") == float("%.3f" % dist01)  # noqa: UP031 - as it is written there
    whole, layers = loss_fn.forward(img0, img1, retPerLayer=True)
    assert torch.equal(whole, dist01)
    assert [layer.shape for layer in layers] == [(1, 1, 1, 1)] * loss_fn.L
    assert capsys.readouterr().out == ""


def test_a_picture_is_optimised_as_its_script_does():
    loss_fn = lpips.LPIPS(net="vgg")
    with Image.open(CHELSEA) as image:
        small = np.asarray(image.convert("RGB").resize((64, 64)))
    ref = lpips.im2tensor(small)
    pred = torch.autograd.Variable(lpips.im2tensor(small[::-1].copy()), requires_grad=True)
    optimizer = torch.optim.Adam([pred], lr=1e-2, betas=(0.9, 0.999))
    values = []
    for _ in range(6):
        dist = loss_fn.forward(pred, ref)
        optimizer.zero_grad()
        dist.backward()
        optimizer.step()
        pred.data = torch.clamp(pred.data, -1, 1)
        values.append(dist.view(-1).data.cpu().numpy()[0])
    assert values[-1] < values[0]
    assert lpips.tensor2im(pred.data).shape == (64, 64, 3)


def test_the_maps_of_its_test_network(metric):
    loss_fn = lpips.LPIPS(net="alex", spatial=True)
    a, b = images(2, 50, 70), images(2, 50, 70, seed=1)
    maps = loss_fn(a, b)
    assert maps.shape == (2, 1, 50, 70)
    torch.testing.assert_close(maps[:, 0], difference_map(metric, a, b, squared=True, input_range=(-1, 1)))
    # As of LPIPS's maps, the mean is the number.
    number = lpips.LPIPS(net="alex")(a, b)
    assert number.min() > 0
    torch.testing.assert_close(maps.mean((1, 2, 3), keepdim=True), number, rtol=1e-4, atol=1e-6)
    assert loss_fn(a, a).abs().max() == 0
    value, layers = loss_fn(a, b, retPerLayer=True)
    assert torch.equal(value, maps)
    assert len(layers) == 1


def test_files_and_tensors_and_back(tmp_path):
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    Image.fromarray(array).save(tmp_path / "grey.png")
    loaded = lpips.load_image(tmp_path / "grey.png")
    assert np.array_equal(loaded, array)
    assert loaded.dtype == np.uint8
    tensor = lpips.im2tensor(loaded)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    package = pytest.importorskip("lpips", reason="the package lpips is not installed")
    assert torch.equal(tensor, package.im2tensor(array))
    assert np.array_equal(lpips.tensor2im(tensor), package.tensor2im(tensor))
    assert np.array_equal(lpips.tensor2im(tensor, float), package.tensor2im(tensor, float))
    with pytest.raises(ImageError, match="no such file"):
        lpips.load_image(tmp_path / "none.png")


# --- LPIPS: beside the package


def test_the_constructor_is_that_of_the_package(real_lpips):
    package = sys.modules["lpips"]
    ours, theirs = (inspect.signature(one.LPIPS).parameters for one in (lpips, package))
    assert [(name, ours[name].default, ours[name].kind) for name in theirs] == [
        (name, parameter.default, parameter.kind) for name, parameter in theirs.items()
    ]
    rest = [parameter for name, parameter in ours.items() if name not in theirs]
    assert [parameter.name for parameter in rest] == ["model", "squared"]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in rest)
    ours, theirs = (list(inspect.signature(one.LPIPS.forward).parameters.values()) for one in (lpips, package))
    assert [(one.name, one.default) for one in ours] == [(one.name, one.default) for one in theirs]


BATCHES = [
    ((2, 3, 64, 64), (2, 3, 64, 64)),
    ((1, 3, 64, 72), (3, 3, 64, 72)),
    ((3, 3, 64, 64), (1, 3, 64, 64)),
    ((2, 1, 64, 64), (2, 3, 64, 64)),
]
UNBATCHED = [((3, 64, 64), (1, 3, 64, 64)), ((1, 64, 64), (3, 64, 64))]  # of which the package has no maps


@pytest.mark.parametrize(
    ("spatial", "first", "second"),
    [(False, *shapes) for shapes in BATCHES + UNBATCHED] + [(True, *shapes) for shapes in BATCHES],
)
def test_shapes_and_types_are_those_of_the_package(real_lpips, metric, spatial, first, second):
    ours, theirs = lpips.LPIPS(spatial=spatial, model=metric), real_lpips(spatial=spatial)
    a, b = (torch.rand(shape, generator=torch.Generator().manual_seed(k)) for k, shape in enumerate((first, second)))
    for normalize in (False, True):
        for per_layer in (False, True):
            mine = ours(a, b, per_layer, normalize)
            with torch.no_grad():
                other = theirs(a, b, per_layer, normalize)
            assert type(mine) is type(other)
            (mine, *layers), (other, *_) = (x if per_layer else (x,) for x in (mine, other))
            assert mine.shape == other.shape
            assert mine.dtype == other.dtype
            assert all(layer.shape == mine.shape for layer in (layers[0] if layers else ()))


def test_what_moves_and_what_trains_beside_the_package(real_lpips, loss):
    for one in (loss, real_lpips()):
        x = images(1).requires_grad_()
        d = one(x, images(1, seed=1))
        assert d.requires_grad
        d.mean().backward()
        assert torch.isfinite(x.grad).all()
        assert x.grad.abs().sum() > 0
        assert not one.training
        assert one.to("cpu") is one
        assert one.eval() is one
    # The package's linear layers want gradients, and it trains when it is told to; a metric here does neither.
    assert not loss(images(1), images(1, seed=1)).requires_grad
    assert not loss.train().training
    assert not loss.metric.training
    assert not lpips.LPIPS(eval_mode=False, model=loss.metric).training
    assert (loss.spatial, loss.lpips, loss.version, loss.pnet_type, loss.pnet_tune) == (
        False,
        True,
        "0.1",
        "alex",
        False,
    )


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
@pytest.mark.parametrize("dropout", [True, False])
def test_a_checkpoint_that_holds_lpips_is_read(real_lpips, loss, net, dropout):
    def parent(perceptual):
        model = nn.Module()
        model.body, model.perceptual = nn.Linear(2, 2), perceptual
        return model

    before = parent(real_lpips(net=net, use_dropout=dropout))
    state = before.state_dict()
    assert sum(key.startswith("perceptual.") for key in state) > 15
    after = parent(copy.deepcopy(loss))
    kept = list(state)
    assert after.load_state_dict(state, strict=True) == ([], [])
    assert list(state) == kept
    assert torch.equal(after.body.weight, before.body.weight)
    assert loss.load_state_dict(before.perceptual.state_dict(), strict=True) == ([], [])
    # What it writes holds nothing of the metric, and is read again.
    assert list(after.state_dict()) == ["body.weight", "body.bias"]
    assert after.load_state_dict(after.state_dict()) == ([], [])
    for foreign in ("perceptual.net.head.weight", "perceptual.lin9.model.1.weight", "perceptual.scaling_layer.bias"):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            after.load_state_dict({**after.state_dict(), foreign: torch.zeros(1)})


# --- LPIPS: values, ranges, what cannot be honoured


def test_values_are_the_metrics(loss, metric):
    a, b = images(3, 90, 60), images(3, 90, 60, seed=1)
    expected = metric(a, b, squared=True, input_range=(-1, 1))
    assert torch.equal(loss(a, b)[:, 0, 0, 0], expected)
    root = lpips.LPIPS(squared=False, model=metric)
    assert torch.equal(root(a, b)[:, 0, 0, 0], metric(a, b, input_range=(-1, 1)))
    unit = (a + 1) / 2
    torch.testing.assert_close(loss(unit, (b + 1) / 2, normalize=True)[:, 0, 0, 0], expected, rtol=1e-4, atol=1e-6)
    assert loss(a, a).tolist() == [[[[0]]]] * 3
    grey = a[:, :1]
    assert torch.equal(loss(grey, b), loss(grey.expand(-1, 3, -1, -1), b))
    assert torch.equal(loss(a, b[:, :, :40]), loss(a, b[:, :, :40].clone()))  # sizes may differ


def test_the_gradient_goes_to_zero_with_the_distance(loss):
    a = images(1)
    lengths = []
    for step in (1e-1, 1e-2, 0.0):
        x = (0.8 * a + step * torch.sign(images(1, seed=1))).requires_grad_()
        loss(x, 0.8 * a).backward()
        lengths.append(float(x.grad.norm()))
    assert lengths[0] > lengths[1] > lengths[2] == 0


@pytest.mark.parametrize(("normalize", "low", "high"), [(False, -1.0, 1.0), (True, 0.0, 1.0)])
def test_values_outside_are_clamped_and_only_a_gradient_inwards_passes(loss, normalize, low, high):
    width = high - low
    b = images(1, low=low, high=high, seed=1)
    wide = images(1, low=low - 0.9 * width, high=high + 0.9 * width)
    x = wide.clone().requires_grad_()
    d = loss(x, b, normalize=normalize)
    torch.testing.assert_close(d, loss(wide.clamp(low, high), b, normalize=normalize), rtol=1e-4, atol=1e-6)
    d.backward()
    outside = (wide < low) | (wide > high)
    assert outside.float().mean() > 0.4
    inside = wide.clamp(low, high).requires_grad_()
    loss(inside, b, normalize=normalize).backward()
    outward = ((wide < low) & (inside.grad > 0)) | ((wide > high) & (inside.grad < 0))
    torch.testing.assert_close(x.grad, inside.grad.masked_fill(outward, 0), rtol=1e-2, atol=1e-6)
    assert x.grad[outside].abs().sum() > 0
    assert outward.any()


def test_further_outside_is_refused(loss):
    a = images(1)
    with pytest.raises(InputError, match=r"from 0 to 255, outside \[-1, 1\]: .*in 0..255: x / 255 \* 2 - 1\)"):
        loss(torch.tensor([0.0, 255.0]).repeat(1, 3, 8, 4), a)
    with pytest.raises(InputError, match=r"outside \[0, 1\]: .*in 0..255: x / 255\)"):
        loss(a.abs(), 255 * a.abs(), normalize=True)
    assert loss(40 * torch.sign(a), a).isfinite().all()
    bytes_of = ((a + 1) * 127.5).to(torch.uint8)  # in 0..255 by its type
    assert loss(bytes_of, a).item() < 0.01


def test_other_shapes_are_refused(loss):
    a = images(2)
    for wrong in (a[:, :2], a[0, 0], a[None], a[..., :0]):
        with pytest.raises(InputError, match="is no batch of pictures"):
            loss(wrong, a)
    with pytest.raises(InputError, match="0 images against 2"):
        loss(a[:0], a)
    with pytest.raises(InputError, match="take tensors"):
        loss(str(CHELSEA), a)
    with pytest.raises(InputError, match="2 images against 3"):
        loss(a, images(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_gives_nan_for_its_pair(loss, tiny, bad):
    """And no error: mixed precision skips such a step, and goes on."""
    a, b = images(3), images(3, seed=1)
    broken = a.clone()
    broken[1, 0, 5, 7] = bad
    for one in (loss, lpips.LPIPS(spatial=True, model=tiny, verbose=False)):
        d = one(broken, b)
        assert d[1].isnan().any()
        torch.testing.assert_close(d[::2], one(a, b)[::2], rtol=1e-4, atol=1e-5)


def test_a_scaler_skips_a_step_and_goes_on(loss):
    weights = torch.ones(1, 3, 1, 1, requires_grad=True)
    optimizer, scaler = torch.optim.SGD([weights], lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    a, b = images(1), images(1, seed=1)
    for step in range(3):
        before = weights.detach().clone()
        x = a * (weights if step != 1 else weights * float("nan"))
        optimizer.zero_grad()
        scaler.scale(loss(x, b).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weights, before) == (step == 1)
    assert scaler.get_scale() == 4


def test_a_generator_without_bounds_comes_back(loss):
    """Where `torch.clamp` would leave it, and a gradient passed on would drive it out."""
    b = images(1, seed=1)
    x = (3 * images(1)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    first = None
    for _ in range(25):
        d = loss(x, b)
        optimizer.zero_grad()
        d.backward()
        optimizer.step()
        first = d.item() if first is None else first
    assert d.item() < 0.7 * first
    assert x.detach().abs().max() < 3.1


@pytest.mark.parametrize("spatial", [False, True])
def test_an_empty_batch(tiny, spatial):
    one = lpips.LPIPS(spatial=spatial, model=tiny, verbose=False)
    a = images(2)
    shape = (0, 1, *a.shape[-2:]) if spatial else (0, 1, 1, 1)
    assert one(a[:0], a[:0]).shape == one(a[:0], a[:1]).shape == shape


def test_near_pictures_in_half_precision(loss):
    """Their distance is that of full precision: in half of it, rounding is larger than what they differ by."""
    a = images(1)
    x = (a + 0.004 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    found = []
    for enabled in (False, True):
        y = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss(y, a).backward()
        found.append(y.grad)
    assert torch.equal(*found)


def test_its_parameters_are_its_own_business(tiny):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.loss = lpips.LPIPS(model=tiny, verbose=False)

    model = Model()
    assert next(model.loss.parameters()).device.type == "cpu"
    assert len(list(model.parameters())) == 2
    model.requires_grad_(True)
    model.loss.requires_grad_(True)
    assert not any(one.requires_grad for one in model.loss.parameters())
    assert set(model.state_dict()) == {"layer.weight", "layer.bias"}


def test_other_names_of_the_package():
    assert not hasattr(lpips, "Trainer")
    with pytest.raises(AttributeError, match="the package lpips itself has the rest"):
        lpips.normalize_tensor  # noqa: B018


def test_each_input_is_waited_for_once(loss, monkeypatch):
    calls, real = [], torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    loss(images(1), images(1, seed=1))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"pretrained": False}, {"pnet_rand": True}, {"pnet_tune": True}, {"model_path": "w.pth"}, {"net": "vgg19"}],
)
def test_what_cannot_be_honoured_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=rf"{name}=.* cannot be honoured"):
        lpips.LPIPS(**wrong)


def test_it_is_said_once(told, metric):
    told.clear()
    lpips.LPIPS(verbose=False, model=metric)
    with pytest.warns(
        CompatWarning, match=r"'lite'.*net='squeeze' has no effect.*224 x 224.*1 - cos.*verbose=False"
    ) as seen:
        lpips.LPIPS(net="squeeze", model=metric)
    assert [one.filename for one in seen] == [__file__]
    lpips.LPIPS(model=metric)
    with pytest.warns(CompatWarning, match=r"'lite'.*dreamsim_type= and use_patch_model= have no effect") as seen:
        dreamsim(model=metric)
    assert [one.filename for one in seen] == [__file__]
    dreamsim(model=metric)
    assert issubclass(CompatWarning, UserWarning)


# --- LPIPS: as a module


def test_any_model_is_taken(metric, tiny, published):
    a, b = images(2), images(2, seed=1)
    by_folder = lpips.LPIPS(model=published["vit"][0])
    by_metric = lpips.LPIPS(model=tiny)
    assert by_metric.metric.encoder is tiny.encoder
    assert torch.equal(by_folder(a, b), by_metric(a, b))
    assert torch.equal(by_folder(a, b)[:, 0, 0, 0], tiny(a, b, squared=True, input_range=(-1, 1)))
    assert lpips.LPIPS(model="lite-clean").metric.card.name == "lite-clean"
    assert lpips.LPIPS().metric.card == metric.card
    assert lpips.LPIPS().metric.device == torch.device("cpu")


def test_copied_pickled_and_moved(loss):
    a, b = images(2), images(2, seed=1)
    expected = loss(a, b)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss).float().cpu()):
        assert torch.equal(other(a, b), expected)
        assert not other.training
    other = copy.deepcopy(loss).to(torch.bfloat16)
    assert other.metric.encoder.mean.dtype == torch.bfloat16
    assert loss.metric.encoder.mean.dtype == torch.float32
    assert other(a, b).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(a, b).dtype == torch.float32
    outer = nn.Sequential(copy.deepcopy(loss))
    assert list(outer.parameters()) == []
    outer.to(torch.float64)
    assert outer[0].metric.encoder.mean.dtype == torch.float64


def test_replicas_of_data_parallel(loss):
    loss = copy.deepcopy(loss)  # which DataParallel moves to a GPU, where there is one
    replica = copy.copy(loss)._replicate_for_data_parallel()
    for name, module in loss._modules.items():
        replica._modules[name] = module._replicate_for_data_parallel()
    a, b = images(2), images(2, seed=1)
    assert torch.equal(replica(a, b), loss(a, b))
    assert torch.equal(nn.DataParallel(loss)(a, b), loss(a, b))


@pytest.mark.parametrize("spatial", [False, True])
def test_compiled(tiny, spatial):
    one = lpips.LPIPS(spatial=spatial, model=tiny, verbose=False)
    torch._dynamo.reset()
    compiled = torch.compile(one, fullgraph=True, backend="aot_eager")
    a, b = images(2, low=-1.5, high=1.5), images(2, seed=1)
    grads = []
    for function in (compiled, one):
        x = a.clone().requires_grad_()
        d = function(x, b)
        d.sum().backward()
        grads.append((d.detach(), x.grad))
    (found, ours), (wanted, theirs) = grads
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_nothing_of_the_packages_is_imported():
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from robustsim.compat import lpips, dreamsim\n"
        "assert callable(dreamsim) and lpips.__name__ == 'robustsim.compat.lpips'\n"
        "lpips.LPIPS(); dreamsim(device='cpu')\n"
        "import robustsim.compat; assert robustsim.compat.dreamsim is dreamsim and robustsim.compat.lpips is lpips\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"lpips", "dreamsim", "torchvision", "peft", "timm", "open_clip"} & set(done.stdout.split())


# --- DreamSim


@pytest.fixture(scope="module")
def pair_of(metric):
    """(model, preprocess), of the default."""
    dropin._told.add("dreamsim")
    return dreamsim(device="cpu")


def test_the_quick_start_of_dreamsim(metric):
    device = "cpu"
    model, preprocess = dreamsim(pretrained=True, device=device)
    img1 = preprocess(Image.open(CHELSEA)).to(device)
    img2 = preprocess(Image.open(COFFEE)).to(device)
    distance = model(img1, img2)
    assert img1.shape == (1, 3, 224, 224)
    assert distance.shape == (1,)
    assert torch.equal(distance, metric(CHELSEA, COFFEE, squared=True))
    single, _ = dreamsim(pretrained=True, dreamsim_type="dino_vitb16", device=device)
    assert torch.equal(single(img1, img2), distance)


def test_embeddings_and_retrieval_as_its_readme_does(pair_of):
    model, preprocess = pair_of
    query = Image.open(CHELSEA)
    others = [Image.open(path) for path in (COFFEE, ROCKET, CHELSEA)]
    query_embed = model.embed(preprocess(query).to("cpu"))
    assert query_embed.shape == (1, model.embed_size)
    assert query_embed.norm(dim=1).item() == pytest.approx(1, abs=1e-5)
    dists = {}
    for i, im in enumerate(others):
        img_embed = model.embed(preprocess(im).to("cpu"))
        dists[i] = (1 - F.cosine_similarity(query_embed, img_embed, dim=-1)).item()
        assert dists[i] == pytest.approx(model(preprocess(query), preprocess(im)).item(), abs=1e-5)
    assert min(dists, key=dists.get) == 2
    assert dists[2] == pytest.approx(0, abs=1e-6)


def test_a_picture_is_optimised_as_its_readme_does(pair_of):
    model, preprocess = pair_of
    reference_image = preprocess(Image.open(CHELSEA))
    predicted_image = preprocess(Image.open(ROCKET)).clone().requires_grad_()
    optimizer = torch.optim.Adam([predicted_image], lr=0.05)
    values = []

    def loop():  # as it is written there: nothing sets gradients to zero, nor brings the pixels back
        for _ in range(30):
            dist = model(predicted_image, reference_image)
            dist.backward()
            optimizer.step()
            values.append(dist.item())

    with pytest.warns(CompatWarning, match="are clamped by PerceptualModel"):
        loop()
    assert min(values) < 0.7 * values[0]
    assert predicted_image.min() < 0
    assert not any(parameter.requires_grad for parameter in model.metric.parameters())
    assert not model.train().training


def test_preprocess_is_the_file_path_bit_for_bit(pair_of, metric, tiny):
    _, preprocess = pair_of
    for path in (CHELSEA, ROCKET):
        pixels = preprocess(Image.open(path))
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, metric.preprocess(str(path)))
    assert torch.equal(preprocess(str(CHELSEA)), preprocess(Image.open(CHELSEA)))
    assert torch.equal(pickle.loads(pickle.dumps(preprocess))(str(CHELSEA)), preprocess(str(CHELSEA)))
    _, small = dreamsim(model=tiny)
    assert small(Image.open(CHELSEA)).shape == (1, 3, 64, 64)  # as large as that model looks at
    with pytest.raises(InputError, match="takes a PIL image"):
        preprocess(torch.rand(3, 64, 64))


def test_preprocessed_pictures_are_not_cropped_again(tiny):
    import dataclasses

    encoder = copy.deepcopy(tiny.encoder)
    pre = dataclasses.replace(encoder.card.preprocessing, resize=80)  # of 80, the middle 64
    encoder.card = dataclasses.replace(encoder.card, preprocessing=pre)
    cropping = RobustSim(encoder)
    model, preprocess = dreamsim(model=cropping)
    a, b = preprocess(Image.open(CHELSEA)), preprocess(Image.open(COFFEE))
    assert torch.equal(model(a, b), cropping(CHELSEA, COFFEE, squared=True))
    assert torch.equal(model.embed(a), cropping.embed(CHELSEA))
    large = images(1, 100, 120, low=0)
    assert torch.equal(model.embed(large), cropping.embed(large))  # of another size: as the card says


def test_batches_and_broadcasts(pair_of, metric):
    model, _ = pair_of
    a, b = images(3, 224, 224, low=0), images(3, 224, 224, low=0, seed=1)
    assert torch.equal(model(a, b), metric(a, b, squared=True))
    torch.testing.assert_close(model(a[:1], b), metric(a[:1], b, squared=True), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model(a, b[:1]), metric(a, b[:1], squared=True), rtol=1e-4, atol=1e-6)
    small = PerceptualModel(RobustSim(metric.encoder, batch_size=2), None)
    torch.testing.assert_close(small(a, b), model(a, b), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(small.embed(a), model.embed(a), rtol=1e-4, atol=1e-5)
    assert model(a, a).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="3 images against 2"):
        model(a, b[:2])
    with pytest.raises(InputError, match=r"outside \[0, 1\].*x / 255\)"):
        model(255 * a, b)


def test_raw_embeddings(metric):
    raw, preprocess = dreamsim(normalize_embeds=False, model=metric)
    x = torch.cat([preprocess(str(path)) for path in (CHELSEA, COFFEE)])
    z = raw.embed(x)
    assert torch.equal(z, metric.encoder(metric.preprocess([CHELSEA, COFFEE])))
    torch.testing.assert_close(F.normalize(z, dim=1), metric.embed([CHELSEA, COFFEE]))
    assert raw(x[:1], x[1:]).item() == pytest.approx(1 - F.cosine_similarity(z[:1], z[1:]).item(), abs=1e-5)


def test_options_of_dreamsim(metric, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = dreamsim(True, "cpu", "./models", True, "ensemble", False)
    assert model.device == torch.device("cpu")
    assert list(tmp_path.iterdir()) == []  # the package's folder is not made
    with pytest.raises(InputError, match="pretrained=False cannot be honoured"):
        dreamsim(pretrained=False)
    for options in ({}, {"model": metric}):
        with pytest.raises(InputError, match="device"):
            dreamsim(device="no-such-device", **options)
    seen = {}
    monkeypatch.setattr(RobustSim, "from_pretrained", lambda name, **options: seen.update(options) or metric)
    dreamsim(cache_dir="kept", device="cpu", model="org/repo")
    assert seen["cache_dir"] == "kept"
    dreamsim(model="org/repo")
    assert seen == {"cache_dir": None, "device": None}


def test_the_function_is_that_of_the_package():
    package = pytest.importorskip("dreamsim", reason="the package dreamsim is not installed")
    ours, theirs = (inspect.signature(one).parameters for one in (dreamsim, package.dreamsim))
    assert list(ours) == [*theirs, "model"]
    assert ours["model"].kind is inspect.Parameter.KEYWORD_ONLY
    others = [name for name in theirs if name != "device"]  # None is the best there is, "cuda" may not be there
    assert [ours[name].default for name in others] == [theirs[name].default for name in others]
    for method in ("forward", "embed"):
        ours, theirs = (inspect.signature(getattr(one, method)) for one in (PerceptualModel, package.PerceptualModel))
        assert list(ours.parameters) == list(theirs.parameters)


def test_beside_the_package_dreamsim(pair_of, small_dreamsim, tmp_path):
    """The package's own networks, small and of random weights: the same calls, shapes and types; its checkpoint."""
    package = pytest.importorskip("dreamsim", reason="the package dreamsim is not installed")
    from robustsim.baselines.libraries import undisturbed
    from tests import dreamsim_files

    folder = dreamsim_files.write_dreamsim(tmp_path / "files", "dreamsim-clip-vit-b-32", dreamsim_files.small_vit)
    with undisturbed():
        theirs, their_preprocess = package.dreamsim(device="cpu", cache_dir=str(folder), dreamsim_type="clip_vitb32")
    ours, preprocess = pair_of
    picture = Image.open(CHELSEA)
    assert torch.equal(preprocess(picture), their_preprocess(picture))  # the default squashes, as the package does
    a, b = images(3, 224, 224, low=0), images(3, 224, 224, low=0, seed=1)
    for x, y in ((a, b), (a[:1], b[:1]), (a[:1], b), (a, b[:1])):
        mine, other = ours(x, y), theirs(x, y)
        assert (mine.shape, mine.dtype, mine.requires_grad) == (other.shape, other.dtype, other.requires_grad)
    for x in (a, a[:1]):
        mine, other = ours.embed(x), theirs.embed(x)
        assert (mine.ndim, len(mine), mine.dtype) == (other.ndim, len(other), other.dtype)
        torch.testing.assert_close(mine.norm(dim=1), other.norm(dim=1))
    assert ours.training == theirs.training
    parent = nn.ModuleDict({"perceptual": copy.deepcopy(ours)})
    before = nn.ModuleDict({"perceptual": theirs})
    assert parent.load_state_dict(before.state_dict(), strict=True) == ([], [])
    assert list(parent.state_dict()) == []
