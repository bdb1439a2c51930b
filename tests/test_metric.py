"""The promises of the public API, one by one."""

import copy
import math
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robustsim
from robustsim import RobustSim
from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.errors import CardError, InputError, ModelNotFoundError
from tests.conftest import EXAMPLES

CHELSEA, COFFEE, ROCKET = (EXAMPLES / name for name in ("chelsea.png", "coffee.png", "rocket.jpg"))


def images(count, size=96, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny(published):
    """A small transformer behind the same interface."""
    return RobustSim.from_pretrained(published["vit"][0], device="cpu")


@pytest.fixture(params=["lite", "vit"])
def any_metric(request, metric, tiny):
    return {"lite": metric, "vit": tiny}[request.param]


class Counting(nn.Module):
    """Counts the images that go through a trunk."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.seen = trunk, []

    def forward(self, x):
        self.seen.append(len(x))
        return self.trunk(x)


@pytest.fixture
def counted(metric):
    other = copy.deepcopy(metric)
    other.encoder.trunk = Counting(other.encoder.trunk)
    return other, other.encoder.trunk.seen


# --- shapes, broadcasting, ranges, types


def test_shapes_are_always_n(any_metric):
    a, b = images(3), images(3, seed=1)
    for function in (any_metric, any_metric.distance, any_metric.similarity):
        assert function(a, b).shape == (3,)
        assert function(a[0], b[0]).shape == (1,)
        assert function(a[0], b).shape == function(a, b[:1]).shape == (3,)
    assert any_metric.embed(a).shape == (3, any_metric.card.embedding_dim)
    assert any_metric.embed(a[0]).shape == (1, any_metric.card.embedding_dim)
    assert any_metric.distance_matrix(a, b[:2]).shape == (3, 2)
    assert any_metric.distance_matrix(a).shape == (3, 3)
    assert any_metric.two_afc(a, b, images(3, seed=2)).shape == (3,)


def test_broadcasting_is_the_loop(any_metric):
    a, b = images(1), images(4, seed=1)
    one_by_one = torch.cat([any_metric.distance(a, b[i]) for i in range(4)])
    torch.testing.assert_close(any_metric.distance(a, b), one_by_one)
    torch.testing.assert_close(any_metric.distance(b, a), one_by_one)


def test_mismatched_counts_raise(metric):
    with pytest.raises(InputError, match="3 images against 2: the counts must be equal, or one of them 1"):
        metric.distance(images(3), images(2))
    with pytest.raises(InputError, match="1 images against 2 against 3: the counts must be equal, or one of them 1"):
        metric.two_afc(images(1), images(2), images(3))


def test_ranges_and_formulas(any_metric):
    a, b = images(5), images(5, seed=1)
    d, sim = any_metric.distance(a, b), any_metric.similarity(a, b)
    z, w = any_metric.embed(a), any_metric.embed(b)
    cosine = (z.double() * w.double()).sum(1)
    torch.testing.assert_close(sim.double(), cosine, rtol=0, atol=1e-6)
    torch.testing.assert_close(d.double(), (1 - cosine).sqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(any_metric.distance(a, b, squared=True), 1 - sim)
    torch.testing.assert_close(any_metric(a, b, squared=True), d.square(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.linalg.vector_norm(z, dim=1), torch.ones(5))
    assert (d >= 0).all()
    assert (d <= math.sqrt(2)).all()


def test_opposite_embeddings_are_sqrt_two_apart(metric):
    z = metric.embed(images(1))
    assert metric.distance(z, -z).item() == pytest.approx(math.sqrt(2))
    assert metric.distance(z, -z).item() <= 2**0.5
    assert metric.similarity(z, -z).item() == pytest.approx(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_results_are_float32_whatever_the_encoder(metric, dtype):
    other = copy.deepcopy(metric).to(dtype)
    a, b = images(1), images(1, seed=1)  # half precision is slow on a CPU
    d = other.distance(a, b)
    assert d.dtype == other.embed(a).dtype == other.similarity(a, b).dtype == torch.float32
    assert other.distance_matrix(a, b).dtype == other.two_afc(a, a, b).dtype == torch.float32
    torch.testing.assert_close(d, metric.distance(a, b), rtol=0, atol=0.03)
    assert other.distance(a, a).tolist() == [0]


def test_half_and_bfloat16_methods(metric):
    for other in (copy.deepcopy(metric).half(), copy.deepcopy(metric).bfloat16()):
        assert other.distance(CHELSEA, COFFEE).dtype == torch.float32


def test_under_autocast_distances_stay_float32(metric):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d = metric.distance(images(2), images(2, seed=1))
    assert d.dtype == torch.float32
    torch.testing.assert_close(d, metric.distance(images(2), images(2, seed=1)), rtol=0, atol=0.03)


# --- identity


def test_identical_inputs_give_exactly_zero(any_metric):
    x = images(5)
    assert any_metric.distance(x, x.clone()).tolist() == [0] * 5
    assert any_metric.similarity(x, x.clone()).tolist() == [1] * 5
    assert any_metric(x, x, squared=True).tolist() == [0] * 5
    assert any_metric.distance(CHELSEA, CHELSEA).tolist() == [0]
    # encoded in batches of other sizes, where kernels may round otherwise
    for count in (2, 7, 40):
        others = torch.cat((images(count - 1, seed=3), x[:1]))
        assert any_metric.distance(x[0], others)[-1] == 0
        assert any_metric.distance_matrix(x[:1], others)[0, -1] == 0
    assert any_metric.distance_matrix(x).diagonal().tolist() == [0] * 5


def test_almost_identical_inputs_do_not_give_zero(any_metric):
    x = images(1)
    y = x.clone()
    y[0, 1, 10:14, 20:24] += 0.02
    assert any_metric.distance(x, y.clamp(0, 1)).item() > 0


def test_symmetry(any_metric):
    a, b = images(4), images(4, seed=1)
    torch.testing.assert_close(any_metric.distance(a, b), any_metric.distance(b, a), rtol=0, atol=1e-6)
    matrix = any_metric.distance_matrix(a)
    assert torch.equal(matrix, matrix.T)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-4, 2))
def test_triangle_inequality(metric, seed, spread):
    """On embeddings, near and far: where 1 - cos alone would fail, its root holds."""
    generator = torch.Generator().manual_seed(seed)
    size = metric.card.embedding_dim
    centre = torch.randn(1, size, generator=generator)
    points = torch.nn.functional.normalize(torch.randn(3, size, generator=generator) * spread + centre, dim=1)
    ab, bc, ac = (metric.distance(points[i], points[j]).item() for i, j in ((0, 1), (1, 2), (0, 2)))
    assert ac <= ab + bc + 1e-6


def test_triangle_inequality_on_pictures(metric):
    d = metric.distance_matrix([*sorted(EXAMPLES.glob("*.png")), ROCKET])
    for through in range(len(d)):
        assert (d <= d[:, through, None] + d[None, through] + 1e-6).all()


# --- gradients


def test_gradients_flow_to_images_that_require_them(any_metric):
    a, b = images(2).requires_grad_(), images(2, seed=1).requires_grad_()
    any_metric(a, b).sum().backward()
    for x in (a, b):
        assert torch.isfinite(x.grad).all()
        assert x.grad.abs().sum() > 0
    alone = images(2).requires_grad_()
    any_metric(alone, images(2, seed=1)).sum().backward()
    torch.testing.assert_close(alone.grad, a.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_gradients_are_finite_at_distance_zero(any_metric, squared):
    x = images(3).requires_grad_()
    d = any_metric(x, x.detach().clone(), squared=squared)
    d.sum().backward()
    assert d.tolist() == [0, 0, 0]
    assert torch.isfinite(x.grad).all()
    x = images(3).requires_grad_()
    any_metric.distance_matrix(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    x = images(1).requires_grad_()
    any_metric(x, any_metric.embed(images(1)), squared=squared).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("size", [64, 150])  # without and with the differentiable resize
@pytest.mark.parametrize("squared", [False, True])
def test_gradients_against_finite_differences(published, size, squared):
    metric = RobustSim.from_pretrained(published["vit"][0], device="cpu")
    x, y = images(1, size).requires_grad_(), images(1, size, seed=1)
    metric(x, y, squared=squared).sum().backward()
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        direction = torch.randn(x.shape, generator=generator)
        direction = direction / direction.norm() + x.grad / x.grad.norm()
        step = 1e-2
        with torch.no_grad():
            inside = [(x + sign * step * direction).clamp(0, 1) for sign in (1, -1)]
            high, low = (metric(point, y, squared=squared).double() for point in inside)
        numeric = (high - low).item()
        analytic = (x.grad.double() * (inside[0] - inside[1]).double()).sum().item()
        assert numeric == pytest.approx(analytic, rel=0.02, abs=2e-6)


def test_a_loss_step_towards_the_reference_lowers_the_distance(metric):
    reference = metric.embed(CHELSEA)
    x = metric.preprocess(COFFEE).clone().requires_grad_()
    before = metric(x, reference)
    before.sum().backward()
    after = metric((x - 0.5 * x.grad / x.grad.norm()).clamp(0, 1).detach(), reference)
    assert after.item() < before.item()


# --- the module


def test_parameters_are_frozen_and_never_get_gradients(any_metric):
    x = images(1).requires_grad_()
    any_metric(x, images(1, seed=1)).sum().backward()
    assert not any(parameter.requires_grad for parameter in any_metric.parameters())
    assert all(parameter.grad is None for parameter in any_metric.parameters())
    assert not any_metric.embed(images(1)).requires_grad


def test_eval_mode_is_kept(metric):
    other = copy.deepcopy(metric)
    assert other.train() is other
    bigger = nn.Sequential(nn.Linear(2, 2), other)
    bigger.train()
    assert bigger[0].training
    assert not any(module.training for module in other.modules())


def test_deepcopy_is_independent(metric):
    other = copy.deepcopy(metric)
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert metric.distance(CHELSEA, COFFEE).item() != other.distance(CHELSEA, COFFEE).item()


@pytest.mark.parametrize("persistent", [True, False])
def test_it_goes_to_other_processes(metric, persistent):
    """As to the workers of a DataLoader, or of `ddp_spawn`."""
    a, b = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = pickle.loads(pickle.dumps(RobustSim(metric.encoder, persistent=persistent)))
    assert torch.equal(other(a, b), metric(a, b))
    assert other.persistent == persistent
    assert len(other.state_dict(prefix="metric.")) == (len(metric.state_dict()) if persistent else 0)


def test_compile_gives_one_graph_and_the_same_numbers(metric):
    compiled = torch.compile(metric, fullgraph=True, backend="aot_eager")
    a, b = images(2, 224), images(2, 224, seed=1)
    torch.testing.assert_close(compiled(a, b), metric(a, b))
    x = a.clone().requires_grad_()
    compiled(x, b).sum().backward()
    y = a.clone().requires_grad_()
    metric(y, b).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-7)


def test_data_parallel_replicas_work(metric):
    """What DataParallel makes on GPUs: copies whose parameters are plain attributes."""
    wrapped = nn.DataParallel(metric)
    torch.testing.assert_close(wrapped(images(2), images(2, seed=1)), metric(images(2), images(2, seed=1)))
    replica = metric._replicate_for_data_parallel()
    replica.encoder = metric.encoder._replicate_for_data_parallel()
    assert list(replica.parameters()) != []
    replica.encoder._parameters.clear()
    assert replica.device == metric.device


def test_inside_distributed_data_parallel(metric, tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = nn.Conv2d(3, 3, 1)
            self.metric = metric

        def forward(self, x, reference):
            return self.metric(self.generator(x).sigmoid(), reference)

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Model())
        model(images(2), images(2, seed=1)).mean().backward()
        assert model.module.generator.weight.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()


def test_state_dict_with_and_without_the_metric(metric):
    class Model(nn.Module):
        def __init__(self, persistent):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.metric = RobustSim(copy.deepcopy(metric.encoder), persistent=persistent)
            self.last = nn.Linear(2, 2)

    with_it, without = Model(True), Model(False)
    assert any(key.startswith("metric.encoder.trunk.") for key in with_it.state_dict())
    own = {"layer.weight", "layer.bias", "last.weight", "last.bias"}
    assert set(without.state_dict()) == own
    assert without.load_state_dict(Model(False).state_dict(), strict=True).missing_keys == []
    without.load_state_dict(with_it.state_dict(), strict=True)  # an old checkpoint that holds it still loads
    with pytest.raises(RuntimeError, match="Missing key"):
        with_it.load_state_dict(without.state_dict(), strict=True)
    assert torch.equal(without.metric.distance(CHELSEA, COFFEE), metric.distance(CHELSEA, COFFEE))
    assert set(without.metric.state_dict()) == set(metric.state_dict()) != set()


def test_to_moves_and_casts(metric):
    other = copy.deepcopy(metric).to("meta")
    assert other.device.type == "meta"
    assert copy.deepcopy(metric).to(torch.float64).encoder.mean.dtype == torch.float64


def test_no_call_touches_global_state(metric, published):
    def state():
        return (
            torch.random.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = state()
    RobustSim.from_pretrained(device="cpu")
    for name in ("vit", "convnext", "dino", "dinov3", "classifier"):
        RobustSim.from_pretrained(published[name][0], device="cpu")
    RobustSim.from_pretrained(published["vit"][0], device="cpu", text=True).embed_text("a cat")
    metric.distance(CHELSEA, [COFFEE, ROCKET])
    metric.distance_matrix([CHELSEA, COFFEE])
    metric.two_afc(CHELSEA, COFFEE, ROCKET)
    assert state() == before


def test_inputs_are_left_untouched(metric):
    x = images(2) * 1.0009
    copied = x.clone()
    metric.distance(x, images(2, seed=1))
    assert torch.equal(x, copied)


# --- encodings


def test_embeddings_stand_in_for_images(any_metric):
    a, b = images(3), images(3, seed=1)
    z = any_metric.embed(b)
    expected = any_metric.distance(a, b)
    torch.testing.assert_close(any_metric.distance(a, z), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(any_metric.distance(any_metric.embed(a), z), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(any_metric.distance(a[0], z[0]), expected[:1], rtol=1e-4, atol=1e-6)
    assert torch.equal(any_metric.embed(z), z)  # to the bit, and so does not drift
    assert any_metric.distance(z, z).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match=r"shape \(2, 5\) is neither an image.*nor an embedding of"):
        any_metric.distance(torch.rand(2, 5), z)


def test_the_fixed_side_is_encoded_once(counted):
    metric, seen = counted
    metric.distance(images(1), images(9, seed=1))
    assert sum(seen) == 10
    seen.clear()
    reference = metric.embed(images(1))
    assert seen == [1]
    for _ in range(3):
        metric(images(4, seed=2).requires_grad_(), reference)
    assert seen == [1, 4, 4, 4]


def test_distance_matrix_takes_n_plus_m_encodings(counted):
    metric, seen = counted
    metric.distance_matrix(images(6), images(5, seed=1))
    assert sum(seen) == 11
    seen.clear()
    metric.distance_matrix(images(6))
    assert sum(seen) == 6
    seen.clear()
    metric.two_afc(images(2), images(2, seed=1), images(2, seed=2))
    assert sum(seen) == 6


def test_long_lists_go_in_batches(counted):
    metric, seen = counted
    metric.batch_size = 4
    many = [CHELSEA, COFFEE, ROCKET, images(1, 50)[0], CHELSEA]
    z = metric.embed(many)
    assert seen == [4, 1]
    d = metric.distance(many, list(reversed(many)))
    assert d[2] == 0
    torch.testing.assert_close(z[0], z[4], rtol=0, atol=1e-5)


def test_matrix_agrees_with_pairs(metric):
    files = [CHELSEA, COFFEE, ROCKET]
    matrix = metric.distance_matrix(files, files[:2])
    for i, a in enumerate(files):
        for j, b in enumerate(files[:2]):
            assert matrix[i, j].item() == pytest.approx(metric.distance(a, b).item(), abs=1e-5)
    torch.testing.assert_close(metric.distance_matrix(files, squared=True), metric.distance_matrix(files).square())


def test_two_afc(metric):
    x = images(1)
    far, near = images(1, seed=9), (x + 0.01).clamp(0, 1)
    assert metric.two_afc(x, near, far).tolist() == [0]
    assert metric.two_afc(x, far, near).tolist() == [1]
    assert metric.two_afc(x, far, far).tolist() == [0.5]
    assert metric.two_afc(x, torch.cat((near, far)), torch.cat((far, near))).tolist() == [0, 1]


def test_input_range_of_lpips(metric):
    a, b = images(2), images(2, seed=1)
    expected = metric.distance(a, b)
    got = metric.distance(a * 2 - 1, b * 2 - 1, input_range=(-1, 1))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


# --- loading and saving


def test_save_and_load_bit_for_bit(metric, published, tmp_path):
    for name, one in (
        ("lite", metric),
        *((n, RobustSim.from_pretrained(f, device="cpu")) for n, (f, _) in published.items()),
    ):
        one.save_pretrained(tmp_path / name)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["config.json", "model.safetensors"]
        again = RobustSim.from_pretrained(tmp_path / name, device="cpu")
        state, other = one.state_dict(), again.state_dict()
        assert state.keys() == other.keys()
        assert all(torch.equal(state[key], other[key]) for key in state)
        x = images(2, one.card.preprocessing.size)
        assert torch.equal(one.embed(x), again.embed(x))


def test_save_keeps_the_text_tower(published, tmp_path):
    metric = RobustSim.from_pretrained(published["vit"][0], device="cpu", text=True)
    metric.save_pretrained(tmp_path / "clip")
    again = RobustSim.from_pretrained(tmp_path / "clip", device="cpu", text=True)
    assert torch.equal(metric.embed_text("a cat"), again.embed_text("a cat"))
    assert copy.deepcopy(again).embed_text(["a", "b"]).shape == (2, 24)
    assert RobustSim.from_pretrained(tmp_path / "clip", device="cpu").embed(images(1)).shape == (1, 24)


def test_text_on_request_only(metric, published):
    with pytest.raises(InputError, match=r"loaded without a text tower: load it with text=True"):
        RobustSim.from_pretrained(published["vit"][0], device="cpu").embed_text("a cat")
    with pytest.raises(InputError, match=f"'{DEFAULT_MODEL}' has no text tower"):
        metric.embed_text("a cat")
    with pytest.raises(InputError, match=r"has no text tower"):
        RobustSim.from_pretrained(text=True)
    with pytest.raises(InputError, match="at least one"):
        metric.embed_text([])


def test_names_and_devices_that_do_not_exist(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no model is called 'lite-cleam'; did you mean 'lite-clean'"):
        RobustSim.from_pretrained("lite-cleam")
    with pytest.raises(CardError, match="revision is given twice"):
        RobustSim.from_pretrained("org/model@v1", revision="v2")
    with pytest.raises(InputError, match="'toaster' is no device"):
        RobustSim.from_pretrained(device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no 'cuda' device"):
            RobustSim.from_pretrained(device="cuda")
    with pytest.raises(InputError, match="batch_size"):
        RobustSim(RobustSim.from_pretrained(device="cpu").encoder, batch_size=0)


def test_types_by_name_and_under_another_default_device(published, tiny):
    folder = published["vit"][0]
    for dtype, expected in (("float16", torch.float16), ("torch.bfloat16", torch.bfloat16), ("fp64", torch.float64)):
        assert RobustSim.from_pretrained(folder, device="cpu", dtype=dtype).encoder.mean.dtype == expected
    for wrong in ("int8", torch.int8, 16):
        with pytest.raises(InputError, match=r"is no type that an encoder computes in"):
            RobustSim.from_pretrained(folder, device="cpu", dtype=wrong)
    with torch.device("meta"):
        other = RobustSim.from_pretrained(folder, device="cpu", dtype="float32")
    assert torch.equal(other.distance(images(1), images(1, seed=1)), tiny.distance(images(1), images(1, seed=1)))


def test_module_level_functions_use_one_cached_metric(metric):
    from robustsim import default as module

    module._default_metric.cache_clear()
    d = robustsim.distance(CHELSEA, COFFEE, device="cpu")
    assert torch.equal(d, metric.distance(CHELSEA, COFFEE))
    assert torch.equal(robustsim.similarity(CHELSEA, COFFEE, device="cpu"), metric.similarity(CHELSEA, COFFEE))
    assert torch.equal(robustsim.embed(CHELSEA, device="cpu"), metric.embed(CHELSEA))
    assert module._default_metric.cache_info().misses == 1
    assert torch.equal(
        robustsim.distance(CHELSEA, COFFEE, device="cpu", squared=True), metric(CHELSEA, COFFEE, squared=True)
    )


def test_list_models():
    names = robustsim.list_models()
    assert names == sorted(names)
    assert {"lite-clean", "rclip-f-convnext-base", "dinov2-vit-b-14"} <= set(names)
    assert all(name.startswith("rclip-t") for name in robustsim.list_models("rclip-t*"))


def test_agreement_with_people_on_materials(metric, shared):
    """1,369 triplets of Lagunas et al. 2019, majority vote: the bundled encoder's promise."""
    import csv

    with (shared / "material-2afc" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = sorted({row[side] for row in rows for side in ("reference", "left", "right")})
    z = metric.embed([shared / "material-2afc" / "images" / name for name in names])
    place = {name: index for index, name in enumerate(names)}
    sides = [z[[place[row[side]] for row in rows]] for side in ("reference", "left", "right")]
    choice = metric.two_afc(*sides)
    right = torch.tensor([float(int(row["right_votes"]) > int(row["left_votes"])) for row in rows])
    assert len(rows) == 1369
    assert (1 - (choice - right).abs()).mean().item() >= 0.77


def test_ties_are_exact_whatever_the_batches(any_metric):
    left = images(1, seed=4)
    for count in (1, 2, 7, 30):
        right = torch.cat((images(count, seed=5), left))
        assert any_metric.two_afc(images(1), left, right)[-1] == 0.5
    assert any_metric.two_afc(left, left, torch.cat((images(3), left)))[-1] == 0.5


def test_arrays_of_embeddings_are_embeddings(metric):
    z = metric.embed([CHELSEA, COFFEE])
    array = z.numpy()
    assert torch.equal(metric.distance(array, CHELSEA), metric.distance(z, CHELSEA))
    assert torch.equal(metric.distance_matrix(array), metric.distance_matrix(z))
    assert metric.distance(array[0], array).shape == (2,)
    size = metric.card.embedding_dim
    grey = np.random.default_rng(0).random((40, size), np.float32)  # a picture, as its rows have no unit length
    assert metric.embed(grey).shape == (1, size)


def test_first_use_in_inference_mode_spoils_nothing():
    from robustsim import default as module

    module._default_metric.cache_clear()
    with torch.inference_mode():
        robustsim.distance(images(1), images(1, seed=1), device="cpu")
    x = images(1).requires_grad_()
    robustsim.distance(x, images(1, seed=1), device="cpu").sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_matrix_keeps_its_range_and_its_zeros(metric):
    z = metric.embed(images(6))
    both = metric.distance_matrix(z, torch.cat((-z, z.clone())))
    assert both.max() <= 2**0.5
    assert both[:, 6:].diagonal().tolist() == [0] * 6
    assert metric.distance_matrix(z, -z, squared=True).max() <= 2
    nearby = torch.nn.functional.normalize(z + 1e-5 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0)))
    exact = (nearby.double() - z.double()).norm(dim=1) / 2**0.5
    torch.testing.assert_close(metric.distance_matrix(z, nearby).diagonal().double(), exact, rtol=0.01, atol=0)


def test_one_large_tensor_goes_in_batches(counted):
    metric, seen = counted
    metric.embed(images(40, 32))
    assert seen == [32, 8]


def test_only_what_requires_gradients_is_differentiated(counted):
    metric, seen = counted
    metric(images(2).requires_grad_(), images(2, seed=1))
    assert seen == [2, 2]
    seen.clear()
    metric(images(2), images(2, seed=1))
    assert seen == [4]


def test_compiled_gradients_of_black_and_white(metric):
    compiled = torch.compile(metric, fullgraph=True, backend="aot_eager")
    reference = metric.embed(CHELSEA)
    picture = (images(1, 224) > 0.5).float()
    grads = []
    for function in (metric, compiled):
        x = picture.clone().requires_grad_()
        function(x, reference).sum().backward()
        grads.append(x.grad)
    assert (grads[0] != 0).float().mean() > 0.9
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-7)
