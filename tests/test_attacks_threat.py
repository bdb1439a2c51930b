"""Balls and boxes: projections are exact, starts and steps stay inside, radii are read and refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsim.attacks import ThreatModel, parse_eps
from robustsim.attacks.engine.region import steepest
from robustsim.attacks.methods.fab import to_plane
from robustsim.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

NORMS = ("linf", "l2", "l1")
ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}


def size(delta, norm):
    return torch.linalg.vector_norm(delta.double().flatten(1), ORDERS[norm], dim=1)


@st.composite
def cases(draw):
    """Originals in the box, points anywhere, and a radius: small ones, large ones, pixels at the bounds."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from([(1, 3), (2, 7), (3, 3, 4, 5), (2, 3, 3, 2, 2)]))
    originals = torch.rand(shape, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        originals = originals.round()  # saturated pictures
    points = originals + draw(st.sampled_from([1e-3, 0.3, 3.0])) * torch.randn(
        shape, generator=generator, dtype=torch.float64
    )
    return originals, points, draw(st.sampled_from([0.0, 1e-3, 0.05, 0.4, 1.0])), generator


def pictures(batch):
    """Each picture of a batch as a row, as the norms see it."""
    return batch.flatten(0, 1).flatten(1) if batch.ndim == 5 else batch.flatten(1)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_projection_is_inside_idempotent_and_nearest(norm, case):
    originals, points, eps, generator = case
    threat = ThreatModel(norm, eps)
    projected = threat.project(points, originals)
    assert projected.shape == points.shape
    assert float(projected.min()) >= 0
    assert float(projected.max()) <= 1
    assert float(size(pictures(projected - originals), norm).max()) <= eps * (1 + 1e-6) + 1e-12
    torch.testing.assert_close(threat.project(projected, originals), projected, rtol=0, atol=1e-7)
    # Nearest: towards any other point of the convex set, the angle at the projection is obtuse.
    for _ in range(10):
        other = pictures(threat.project(originals + torch.randn(points.shape, generator=generator).double(), originals))
        here, wanted = pictures(projected), pictures(points)
        products = ((wanted - here) * (other - here)).sum(1)
        assert float(products.max()) <= 1e-5 * max(1.0, float(size(wanted - here, "l2").max()))


@pytest.mark.parametrize("norm", NORMS)
def test_projection_has_its_closed_form_where_there_is_one(norm):
    generator = torch.Generator().manual_seed(0)
    originals = torch.full((4, 3, 5, 5), 0.5, dtype=torch.float64)  # far from the box: the ball alone
    delta = 0.05 * torch.randn(originals.shape, generator=generator, dtype=torch.float64)
    eps = 0.1 if norm != "l1" else 0.5
    found = ThreatModel(norm, eps).project(originals + delta, originals) - originals
    if norm == "linf":
        wanted = delta.clamp(-eps, eps)
    elif norm == "l2":
        wanted = delta * (eps / size(delta, "l2")).view(-1, 1, 1, 1)
    else:  # soft threshold, by sorting (Duchi et al. 2008)
        rows = delta.flatten(1)
        ordered = rows.abs().sort(1, descending=True).values
        shares = (ordered.cumsum(1) - eps) / torch.arange(1, rows.shape[1] + 1)
        last = (ordered > shares).sum(1) - 1
        threshold = shares.gather(1, last[:, None])
        wanted = (rows.sign() * (rows.abs() - threshold).clamp_min(0)).view_as(delta)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_inside_keeps_its_bits(norm):
    generator = torch.Generator().manual_seed(1)
    originals = torch.rand(3, 3, 16, 16, generator=generator)
    points = (originals + 1e-4 * torch.randn(originals.shape, generator=generator)).clamp(0, 1)
    eps = {"linf": 0.1, "l2": 1.0, "l1": 10.0}[norm]
    assert torch.equal(ThreatModel(norm, eps).project(points, originals), points)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_random_starts_are_inside_and_differ(norm, case):
    originals, _, eps, generator = case
    start = ThreatModel(norm, eps).random_start(originals, generator=generator)
    assert float(start.min()) >= 0
    assert float(start.max()) <= 1
    assert float(size(pictures(start - originals), norm).max()) <= eps * (1 + 1e-6) + 1e-12
    if eps > 0.01 and originals.numel() > 20:
        assert not torch.equal(start, ThreatModel(norm, eps).random_start(originals, generator=generator))


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-30, 1.0, 1e20]))
def test_the_steepest_step_has_length_one_and_the_dual_norm_for_product(norm, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(3, 3, 4, 4, generator=generator).double() * scale
    step = steepest(gradient, norm)
    torch.testing.assert_close(size(step, norm), torch.ones(3).double())
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    products = (gradient * step).flatten(1).sum(1)
    torch.testing.assert_close(products, size(gradient, dual), rtol=1e-6, atol=0)
    assert not steepest(torch.zeros(2, 3, 4, 4), norm).any()


def test_a_sparse_step_moves_the_largest_coordinates():
    gradient = torch.tensor([[0.1, -5.0, 3.0, 0.2, 0.0, 1.0, 2.0, -0.3, 0.4, 0.5]]).view(1, 1, 2, 5)
    step = steepest(gradient, "l1", torch.tensor([0.3]))
    assert step.flatten().nonzero().flatten().tolist() == [1, 2, 6]
    torch.testing.assert_close(step.abs().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), rise=st.floats(-3, 3))
def test_the_way_to_a_plane_is_the_shortest(norm, seed, rise):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(2, 8, generator=generator).double()
    normal = torch.randn(2, 8, generator=generator).double()
    room = torch.where(normal * rise > 0, 1 - points, points)
    reachable = (normal.abs() * room).sum(1) * (1 if rise >= 0 else -1)
    step = to_plane(points, normal, torch.full((2,), rise).double(), norm, (0.0, 1.0))
    assert float((points + step).min()) >= -1e-9
    assert float((points + step).max()) <= 1 + 1e-9
    gained = (normal * step).sum(1)
    wanted = torch.full((2,), rise).double()
    wanted = torch.where(reachable.abs() < abs(rise), reachable, wanted)
    torch.testing.assert_close(gained, wanted, rtol=1e-5, atol=1e-7)
    # No shorter change of a fine grid of directions gains as much: it would beat the dual bound.
    for _ in range(20):
        other = torch.randn(2, 8, generator=generator).double()
        other = (points + other * size(step, norm)[:, None] / size(other, norm)[:, None]).clamp(0, 1) - points
        assert bool((((normal * other).sum(1) * (1 if rise >= 0 else -1)) <= gained.abs() + 1e-6).all())


def test_radii_of_each_image():
    originals = torch.full((3, 1, 2, 2), 0.5)
    eps = torch.tensor([0.0, 0.1, 0.4])
    for norm in NORMS:
        moved = ThreatModel(norm, eps).project(originals + 0.45, originals)
        torch.testing.assert_close(ThreatModel(norm, eps).distance(moved, originals), eps, rtol=1e-5, atol=1e-6)


def test_each_picture_of_a_triplet_has_the_radius_for_itself():
    originals = torch.full((2, 3, 3, 4, 4), 0.5)
    moved = ThreatModel("l2", 0.3).project(originals + 0.2, originals)
    torch.testing.assert_close((moved - originals).flatten(2).norm(dim=2), torch.full((2, 3), 0.3))


@pytest.mark.parametrize(
    ("text", "value"), [("4/255", 4 / 255), (" 0.0157 ", 0.0157), ("0.5/255", 0.5 / 255), ("1e-2", 0.01), ("0", 0.0)]
)
def test_radii_as_people_write_them(text, value):
    assert parse_eps(text) == value
    assert parse_eps("3", "l2") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", "did you mean 4/255"),
        ("300", "more than the range"),
        ("-1/255", "at least 0"),
        ("four", "no radius"),
        ("1/0", "no radius"),
        ("nan", "no radius"),
        ("inf", "no radius"),
        ("1/2/3", "no radius"),
    ],
)
def test_what_is_no_radius_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_eps(text)


def test_threats_that_cannot_be_are_refused():
    image = torch.rand(2, 3, 4, 4)
    with pytest.raises(InputError, match="did you mean 8/255"):
        ThreatModel("linf", 8)
    with pytest.raises(InputError, match="none of the norms linf, l2, l1"):
        ThreatModel("l3", 0.1)
    with pytest.raises(InputError, match="low < high"):
        ThreatModel("l2", 0.1, bounds=(1, 0))
    with pytest.raises(InputError, match="3 radii for 2 images"):
        ThreatModel("l2", torch.ones(3)).around(image)
    with pytest.raises(InputError, match=r"images.float\(\) / 255"):
        ThreatModel("l2", 0.1).around((image * 255).byte())
    with pytest.raises(InputError, match=r"finer step than torch\.bfloat16"):
        ThreatModel("l2", 0.1).around(image.bfloat16())
    with pytest.raises(InputError, match="outside the bounds"):
        ThreatModel("l2", 0.1).around(2 * image - 1)
    with pytest.raises(InputError, match="at least one image"):
        ThreatModel("l2", 0.1).around(image[:0])
    with pytest.raises(InputError, match="no random point"):
        ThreatModel("l2", math.inf).random_start(image)
    ThreatModel("linf", 0.5, bounds=(-1, 1)).around(2 * image - 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["flat", "noise", "white"])
def test_no_rounding_of_many_pixels_exceeds_the_radius(norm, kind):
    """In float32, at the size of pictures, measured in float64."""
    shape = (1, 3, 224, 224)
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(shape, generator=generator) if kind == "noise" else torch.tensor(0.51 if kind == "flat" else 1.0)
    originals = value.expand(shape).clone()
    for eps in {"linf": (4 / 255, 0.1), "l2": (3.0, 7.1234), "l1": (743.24, 1000.7)}[norm]:
        for points in (originals + 0.1, originals - 0.1, torch.rand(shape, generator=generator)):
            region = ThreatModel(norm, eps).around(originals)
            found = region.tightened(points)
            assert float(size(found.double() - originals.double(), norm)) <= eps + 1e-6
            assert float(size(found.double() - originals.double(), norm)) >= 0.99 * min(
                eps, float(size((points.clamp(0, 1) - originals).double(), norm))
            )


def test_other_ranges_of_pixels():
    originals = 255 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    region = ThreatModel("linf", 4.0, bounds=(0, 255)).around(originals)
    found = region.tightened(originals + 9)
    assert float((found.double() - originals.double()).abs().max()) <= 4 + 1e-6
    ThreatModel("linf", 2.64 + 2.1179, bounds=(-2.1179, 2.64))


@pytest.mark.parametrize("norm", NORMS)
def test_an_original_that_rounding_left_outside_belongs_to_its_set(norm):
    originals = torch.full((1, 3, 64, 64), 1 + 2.4e-7)
    assert torch.equal(ThreatModel(norm, 0.0).project(originals, originals), originals)
