"""Drawings of a map over its pictures: colours, scale, sizes; and ``robustsim compare --map``."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim import RobustSim
from robustsim.encoders import Encoder
from robustsim.errors import InputError
from robustsim.explain import draw_difference
from robustsim.explain.colours import colours
from robustsim.explain.drawing import Overlay, draw_overlay, overlay
from robustsim.explain.panels import font, shortened
from robustsim.images import Preprocessing
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture(scope="module")
def cropping(published):
    """A small model that looks at the middle of a picture."""
    return published["vit"][0]


@pytest.fixture(scope="module")
def model(cropping):
    return RobustSim.from_pretrained(cropping, device="cpu")


@pytest.fixture
def small(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for name in NAMES:
        with Image.open(EXAMPLES / name) as image:
            image.resize((90, 60)).save(root / name)
    return root


def luminance(rgb):
    """Relative luminance of sRGB (WCAG 2.1)."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_lightness_tells_the_value():
    rising = luminance(colours(np.linspace(0, 1, 200), signed=False))
    assert (np.diff(rising) > 0).all()
    assert rising[-1] / max(rising[0], 0.01) > 10
    signed = luminance(colours(np.linspace(-1, 1, 201), signed=True))
    assert (np.diff(signed[:101]) > 0).all()
    assert (np.diff(signed[100:]) < 0).all()
    low, middle, high = colours(np.array([-1, 0, 1]), signed=True)
    assert middle[0] == middle[1] == middle[2]
    assert low[2] > low[0]  # blue, and the other end is not: the two differ without red and green
    assert high[2] < high[0]
    assert (colours(np.array([-3, 5]), signed=False) == colours(np.array([0, 1]), signed=False)).all()


@pytest.mark.parametrize("signed", [False, True])
def test_one_scale_for_map_and_legend(signed):
    values = torch.tensor([[[0.0, 2.0], [1.0, -2.0 if signed else 0.5]]])
    made = Overlay(values, 2.0, signed, "what the numbers are", Preprocessing(size=2))
    drawn = np.asarray(made.over(Image.new("RGB", (40, 40), (128, 128, 128)))).astype(int)
    legend = np.asarray(made.legend(401)).astype(int)[9]
    for (row, column), value in {(0, 0): 0, (0, -1): 2, (-1, 0): 1, (-1, -1): -2 if signed else 0.5}.items():
        place = round(400 * ((value + 2) / 4 if signed else value / 2))
        assert abs(drawn[row, column] - legend[place]).max() <= 1


def test_grey_where_nobody_looks():
    made = Overlay(torch.ones(1, 2, 2), 1.0, False, "title", Preprocessing(size=20, mode="shortest"))
    drawn = np.asarray(made.over(picture(60, 30))).astype(int)
    grey = np.ptp(drawn, axis=2) == 0
    assert grey[:, :15].all()
    assert grey[:, 45:].all()
    assert not grey[:, 15:45].any()


@pytest.mark.parametrize(
    ("first", "second"),
    [((64, 43), (64, 43)), ((2000, 1000), (300, 451)), ((900, 4), (5, 700)), ((1, 1), (3, 2))],
    ids=lambda size: "x".join(map(str, size)),
)
@pytest.mark.parametrize("method", ["layers", "gradient"])
def test_pictures_of_any_size(model, first, second, method):
    a, b = picture(*first), picture(*second, seed=1)
    drawn = draw_difference(model, a, b, method=method, steps=2, names=("a" * 300, "b.png"))
    assert drawn.mode == "RGB"
    pixels = np.asarray(drawn)
    assert drawn.width <= 2 * 768 + 3 * 12
    assert drawn.height <= 512 + 250
    assert (pixels[:, [0, -1]] == 255).all()  # a margin all around
    assert (pixels[[0, -1]] == 255).all()
    assert (pixels[-60:] < 100).any()  # the legend's words


def test_equal_pictures_have_the_colour_of_0(model):
    a = Image.new("RGB", (64, 64), (128, 128, 128))
    for method in ("layers", "features", "gradient"):
        found = overlay(model, a, a, method=method, steps=1)
        assert found.values.abs().max() == 0
        assert found.end == 1
        drawn = np.asarray(found.over(a))
        assert (drawn == drawn[0, 0]).all()


def test_the_title_tells_of_a_crop(model, metric):
    a = picture(64, 64)
    assert overlay(model, a, a).title.endswith("; without colour: not looked at")
    assert "not looked at" not in overlay(metric, a, a).title


def test_cells_of_a_gradient_are_multiples_of_the_mean(model):
    a, b = picture(64, 64), picture(64, 64, seed=1)
    found = overlay(model, a, b, method="gradient", steps=3)
    assert found.signed
    assert found.values.shape == (1, 8, 8)
    assert found.values.mean().item() == pytest.approx(1, rel=1e-4)


def test_what_may_be_drawn(model):
    tensor = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    assert draw_difference(model, tensor, EXAMPLES / "chelsea.png").mode == "RGB"
    with pytest.raises(InputError, match="2 pictures on one side: a drawing shows one pair"):
        draw_difference(model, [tensor, tensor], tensor)
    with pytest.raises(InputError, match="none of layers, features, gradient"):
        draw_difference(model, tensor, tensor, method="no")


def test_long_names():
    assert shortened("photo.png", 200) == "photo.png"
    name = "a/very/long/way/to/a/picture/of/something.png"
    short = shortened(name, 120)
    assert font().getlength(short) <= 120
    assert short.startswith("a/ve")
    assert short.endswith("g.png")


@pytest.mark.parametrize("method", ["layers", "features", "gradient"])
def test_compare_draws(run, small, tmp_path, cropping, method):
    out = tmp_path / "map.png"
    words = ("compare", small / "chelsea.png", small / "coffee.png", "-m", cropping, "--map", out)
    code, text, err = run(*words, "--map-method", method)
    assert (code, err) == (0, "")
    assert f"map.png: where they differ, by the method '{method}'" in text.replace("\n", "")
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > 2 * 180
    before = out.read_bytes()
    code, text, _ = run(*words, "--json", "--map-method", method)  # written over, as by other commands
    assert json.loads(text)["map"] == {"file": str(out), "method": method}
    assert out.read_bytes() == before
    assert json.loads(run(*words[:5], "--json")[1])["map"] is None


def test_what_goes_wrong_with_a_drawing_takes_no_number_with_it(run, small, tmp_path, cropping, monkeypatch):
    def fails(*words, **options):
        raise InputError("no map of this")

    words = ("compare", small / "chelsea.png", small / "coffee.png", "-m", cropping)
    for name in ("overlay", "draw_overlay"):
        with monkeypatch.context() as patched:
            patched.setattr(f"robustsim.explain.drawing.{name}", fails)
            code, text, err = run(*words, "--map", tmp_path / "map.png")
        assert code == 1
        assert "coffee.png" in text
        assert "no map of this" in err
    assert not (tmp_path / "map.png").exists()
    code, _, err = run(*words, "--map-method", "gradient")
    assert code == 2
    assert "--map-method goes with --map" in err


@pytest.mark.parametrize(("method", "passes"), [("layers", [2]), ("features", [2]), ("gradient", [2] + 12 * [1])])
def test_compare_encodes_a_pair_once(run, small, tmp_path, published, method, passes, monkeypatch):
    """For the distance and for its map; and the distance is that without a map, to the last digit."""
    seen = []
    normalize = Encoder.normalize
    monkeypatch.setattr(Encoder, "normalize", lambda self, x: (seen.append(len(x)), normalize(self, x))[1])
    words = ("compare", small / "chelsea.png", small / "rocket.jpg", "-m", published["convnext"][0], "--json")
    plain = json.loads(run(*words)[1])
    assert seen == [2]
    seen.clear()
    drawn = json.loads(run(*words, "--map", tmp_path / "map.png", "--map-method", method)[1])
    assert seen == passes
    assert drawn["pairs"] == plain["pairs"]


def test_an_overlay_holds_the_distance(model):
    a, b = picture(64, 64), picture(90, 64, seed=1)
    d = model.distance(a, b)
    for method in ("layers", "features", "gradient"):
        found = overlay(model, a, b, method=method, steps=1)
        assert found.distance == pytest.approx(d.item(), rel=1e-6)
    found = overlay(model, a, b)
    assert f"the distance, {d.item():.3g})" in found.title
    assert found.values.mean().item() == pytest.approx(d.item(), rel=0.05)  # exactly so over pixels
    drawn = draw_overlay(found, a, b, names=("one", "two"))
    assert drawn.tobytes() == draw_difference(model, a, b, names=("one", "two")).tobytes()


def test_the_map_of_tensors_is_theirs(model):
    """Not that of what 8 bits keep of them."""
    pixels = torch.full((3, 40, 40), 0.5)
    near = pixels.clone()
    near[:, :20] += 0.0009
    assert (
        np.asarray(draw_difference(model, pixels, near)).tobytes()
        != np.asarray(draw_difference(model, pixels, pixels)).tobytes()
    )


def test_compare_draws_no_more_than_a_pair(run, small, tmp_path, cropping):
    out = tmp_path / "map.png"
    three = [small / name for name in NAMES]
    code, text, err = run("compare", *three, "-m", cropping, "--map", out)
    assert (code, text) == (2, "")
    assert "one pair, and here are 2" in err.replace("\n", " ")
    assert not out.exists()
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        shutil.copy(small / "coffee.png", folder)
    assert run("compare", one, other, "-m", cropping, "--map", out)[0] == 0
    assert out.exists()
    # A file of a folder is not drawn over either.
    before = (one / "coffee.png").read_bytes()
    assert run("compare", one, other, "-m", cropping, "--map", one / "coffee.png")[0] == 2
    assert (one / "coffee.png").read_bytes() == before


def test_compare_refuses_before_it_works(run, small, tmp_path, cropping):
    pair = ("compare", small / "chelsea.png", small / "coffee.png", "-m", cropping, "--map")
    for out, code, words in (
        (tmp_path / "map.jpg", 2, "does not end in .png"),
        (small / "coffee.png", 2, "would be overwritten"),
        (tmp_path / "nowhere" / "map.png", 1, "there is no folder"),
    ):
        found, text, err = run(*pair, out)
        assert (found, text) == (code, "")
        assert words in " ".join(err.replace("│", " ").split())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    assert run("compare", small / "chelsea.png", broken, "-m", cropping, "--map", tmp_path / "map.png")[0] == 1
    assert sorted(os.listdir(tmp_path)) == ["broken.png", "photos"]
    assert run(*pair, tmp_path / "map.png", "--map-method", "no")[0] == 2
