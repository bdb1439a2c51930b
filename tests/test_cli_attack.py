"""``robustsim attack``: what is in the file, what is said of it, and what is refused before any work."""

import errno
import io
import json
import math
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from robustsim import RobustSim
from robustsim.attacks.rounding import change_size, to_8_bits
from robustsim.cli.drawing import three_panels
from robustsim.errors import InputError
from robustsim.explain.report.tampering import magnified
from robustsim.images import Preprocessing, read_image
from tests.conftest import EXAMPLES
from tests.test_structure import modules_after

CHELSEA, ROCKET = str(EXAMPLES / "chelsea.png"), str(EXAMPLES / "rocket.jpg")
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with three small pictures."""
    root = tmp_path_factory.mktemp("small")
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        with Image.open(EXAMPLES / name) as image:
            image.resize((64, 43)).save(root / name)
    return root


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The bundled clean model, which a few steps move, made to look at fewer pixels; and at the middle alone."""
    root = tmp_path_factory.mktemp("models")
    for mode in ("squash", "shortest"):
        metric = RobustSim.from_pretrained("lite-clean", device="cpu")
        preprocessing = Preprocessing(mode=mode, size=64)
        metric.encoder.card = replace(metric.card, name=mode, preprocessing=preprocessing)
        metric.save_pretrained(root / mode)
    return root


def size_of(path, original, norm):
    """The size of what was changed, in float64, by nothing of robustsim but its reader."""
    change = np.asarray(read_image(str(path))) / 255.0 - np.asarray(read_image(str(original))) / 255.0
    return np.linalg.norm(change.ravel(), ORDERS[norm])


def as_line(text):
    return " ".join(text.split())


# -- rounding to 8 bits


@st.composite
def attacked_pictures(draw):
    shape = draw(st.sampled_from([(1, 1, 3), (2, 3, 3), (5, 4, 3)]))
    original = draw(arrays(np.uint8, shape))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    attacked = draw(arrays(kind, shape, elements=st.floats(0, 1, width=32)))
    if draw(st.booleans()):  # a small change
        attacked = (original / 255 + (attacked - 0.5) / 16).clip(0, 1).astype(kind)
    return original, attacked


RADII = st.one_of(st.floats(1 / 255, 1), st.integers(1, 255).map(lambda levels: levels / 255))


@settings(deadline=None)
@given(attacked_pictures(), st.sampled_from(sorted(ORDERS)), RADII, st.sampled_from([1, 10]))
def test_rounded_pixels_keep_every_budget(pictures, norm, eps, factor):
    original, attacked = pictures
    eps = eps if norm == "linf" else factor * eps
    pixels = to_8_bits(original, attacked, norm, eps)
    assert pixels.dtype == np.uint8
    change = pixels / 255.0 - original / 255.0
    size = np.linalg.norm(change.ravel(), ORDERS[norm])
    assert size <= eps + 1e-6
    assert change_size(original, pixels, norm) == pytest.approx(size, abs=1e-9)
    # No pixel moves against the attack.
    wanted = 255 * attacked.astype(np.float64) - original
    assert (change * wanted >= 0).all()


@settings(deadline=None)
@given(st.data(), st.sampled_from(sorted(ORDERS)))
def test_whole_levels_within_the_budget_stay(data, norm):
    shape = (2, 3, 3)
    original, changed = (data.draw(arrays(np.uint8, shape)) for _ in range(2))
    eps = max(1 / 255, change_size(original, changed, norm)) * data.draw(st.sampled_from([1, 1.01, 3]))
    kind = data.draw(st.sampled_from([np.float32, np.float64]))
    np.testing.assert_array_equal(to_8_bits(original, (changed / 255).astype(kind), norm, eps), changed)


def test_the_rounded_change_is_as_large_as_may_be():
    random = np.random.default_rng(0)
    original = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    direction = random.normal(size=original.shape)
    for norm, eps in (("l2", 0.2), ("l2", 3), ("l1", 20.0)):
        change = direction * eps / np.linalg.norm(direction.ravel(), ORDERS[norm])
        attacked = (original / 255 + change).clip(0, 1)
        reached = np.linalg.norm((attacked - original / 255).ravel(), ORDERS[norm])
        size = change_size(original, to_8_bits(original, attacked, norm, eps), norm)
        assert 0.99 * reached < size <= eps
        # A tighter budget than the attack had is kept too.
        assert 0.98 * eps / 2 < change_size(original, to_8_bits(original, attacked, norm, eps / 2), norm) <= eps / 2


def test_a_change_is_not_scaled_beyond_where_the_attack_stopped():
    original = np.full((4, 4, 3), 100, np.uint8)
    attacked = original / 255
    attacked[0, 0] += 10 / 255
    pixels = to_8_bits(original, attacked, "l2", 1.0)
    assert change_size(original, pixels, "l2") == pytest.approx(math.sqrt(300) / 255)


def test_linf_changes_are_whole_levels_of_the_budget():
    original = np.array([0, 100, 100, 100, 255], np.uint8)
    attacked = np.array([0.9, 3.4, -3.6, 4.6, -4.4]) / 255 + original / 255
    assert to_8_bits(original, attacked, "linf", 4 / 255).tolist() == [1, 103, 96, 104, 251]
    assert to_8_bits(original, attacked, "linf", 3.99 / 255).tolist() == [1, 103, 97, 103, 252]


# -- what is written and said


@pytest.mark.parametrize(
    ("image", "norm", "eps"), [(CHELSEA, "linf", "4/255"), (ROCKET, "l2", "3"), (CHELSEA, "l1", "100")]
)
def test_the_file_keeps_the_budget_and_its_distance_is_told(run, tmp_path, metric, image, norm, eps):
    out = tmp_path / "out.png"
    usual = () if norm != "l1" else ("--eps", eps)
    code, told, err = run("attack", image, "-o", out, "--norm", norm, *usual, "--steps", 3)
    assert (code, err) == (0, "")
    with Image.open(out) as written, Image.open(image) as original:
        assert (written.format, written.mode, written.size) == ("PNG", "RGB", original.size)
    radius = eval(eps)
    size = size_of(out, image, norm)
    assert 0.8 * radius < size <= radius + 1e-6
    shown = "linf 4/255; the budget is 4/255" if norm == "linf" else f"{norm} {size:.6g}; the budget is {eps}"
    assert f"out.png: changed by {shown}." in told
    distance = metric.distance(image, out).item()
    assert distance > 0.01
    assert f"{distance:.4f}" in told
    assert f"{distance:.4f}" in run("compare", image, out)[1]
    assert "against tampering" in told


def test_json_is_one_document(run, small, tmp_path, metric):
    out, image = tmp_path / "out.png", small / "chelsea.png"
    command = ("attack", image, "-o", out, "--steps", 4, "--seed", 5, "--json", "--plot", tmp_path / "plot.png")
    code, told, err = run(*command)
    document = json.loads(told)
    assert (code, err) == (0, "")
    assert list(document) == [
        "model", "image", "output", "norm", "eps", "steps", "seed", "image_size", "attacked_size", "size", "distances",
        "queries", "gradients", "not_looked_at",
    ]  # fmt: skip
    assert document["model"] == metric.card.name
    assert (document["image"], document["output"]) == (str(image), str(out))
    assert (document["norm"], document["eps"], document["steps"], document["seed"]) == ("linf", 4 / 255, 4, 5)
    assert document["size"] == pytest.approx(4 / 255)
    assert (document["queries"], document["gradients"]) == (5, 4)
    [row] = document["distances"]
    assert (row["to"], row["before"]) == (str(image), 0)
    assert row["after"] == json.loads(run("compare", "--json", image, out)[1])["pairs"][0]["distance"]
    assert row["after"] == pytest.approx(row["before_rounding"], abs=0.05)


def test_targets_come_nearer(run, small, tmp_path, quick):
    metric = RobustSim.from_pretrained(quick / "squash", device="cpu")
    image, targets, out = small / "chelsea.png", [small / "coffee.png", small / "rocket.jpg"], tmp_path / "out.png"
    words = [word for target in targets for word in ("--target", target)]
    options = ("-m", quick / "squash", "--eps", "16/255", "--steps", 8)
    rows = json.loads(run("attack", image, *words, "-o", out, *options, "--json")[1])["distances"]
    assert [row["to"] for row in rows] == [str(path) for path in (image, *targets)]
    for row, path in zip(rows, (image, *targets), strict=True):
        assert row["before"] == pytest.approx(metric.distance(image, path).item(), abs=1e-5)
        assert row["after"] == pytest.approx(metric.distance(out, path).item(), abs=1e-5)
    assert all(row["after"] < row["before"] - 0.1 for row in rows[1:])
    told = run("attack", image, *words, "-o", out, *options)[1]
    assert all(f"{row[when]:.4f}" in told for row in rows for when in ("before", "after"))
    # One target alone is come nearer to than one of two.
    [_, alone] = json.loads(run("attack", image, *words[:2], "-o", out, *options, "--json")[1])["distances"]
    assert alone["after"] < rows[1]["after"]


def test_the_same_seed_gives_the_same_files(run, small, tmp_path, quick):
    made = []
    for index, seed in enumerate((0, 0, 1)):
        out, plot = tmp_path / f"{index}.png", tmp_path / f"plot-{index}.png"
        options = ("-m", quick / "squash", "--steps", 3, "--seed", seed)
        assert run("attack", small / "coffee.png", "-o", out, "--plot", plot, *options)[0] == 0
        made.append((out.read_bytes(), plot.read_bytes()))
    assert made[0] == made[1] != made[2]


def test_a_budget_between_two_levels(run, small, tmp_path, quick):
    command = ("attack", small / "coffee.png", "-m", quick / "squash", "-o", tmp_path / "out.png", "--steps", 2)
    told = run(*command, "--eps", "0.0157")[1]
    assert "linf 4/255; the budget is 4.0035/255" in told
    told = run(*command, "--eps", "0.0156")[1]
    assert "linf 3/255; the budget is 3.978/255" in told
    # The attack knows which levels there are: what it reaches is not far above what the file can hold.
    document = json.loads(run(*command, "--eps", "1.99/255", "--json")[1])
    assert document["size"] == pytest.approx(1 / 255)
    [row] = document["distances"]
    assert row["before_rounding"] == pytest.approx(row["after"], abs=0.06)


def test_what_rounding_takes_is_told(run, small, tmp_path, quick, metric):
    image, out = small / "chelsea.png", tmp_path / "out.png"
    options = ("-o", out, "--norm", "l2")
    told = run("attack", image, *options, "--eps", "0.1", "--steps", 8, "-m", quick / "squash")[1]
    assert f"Before rounding to 8 bits the distance to {image} was 0." in told
    assert "no change" not in told
    # Of a large picture no pixel gets half a level.
    code, told, _ = run("attack", CHELSEA, *options, "--eps", "1/255", "--steps", 3)
    assert code == 0
    assert "Rounding to 8 bits left no change at all." in told
    assert metric.distance(CHELSEA, out).item() == 0


@pytest.mark.parametrize("kind", ["turned", "alpha", "palette", "cmyk", "sixteen"])
def test_odd_files_are_attacked_as_they_are_read(run, small, tmp_path, quick, kind):
    with Image.open(small / "chelsea.png") as image:
        image.load()
    path, options = tmp_path / "odd.png", {}
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    elif kind == "alpha":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    elif kind == "palette":
        image = image.quantize(16)
    elif kind == "cmyk":
        image, path = image.convert("CMYK"), tmp_path / "odd.jpg"
    else:
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image.save(path, **options)
    code, told, _ = run("attack", path, "-m", quick / "squash", "-o", tmp_path / "out.png", "--steps", 1)
    assert code == 0
    assert "changed by linf 4/255" in told
    with Image.open(tmp_path / "out.png") as written:
        assert (written.mode, written.size) == ("RGB", read_image(str(path)).size)
    assert 0 < size_of(tmp_path / "out.png", path, "linf") <= 4 / 255 + 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (300, 2)])
def test_pictures_of_few_pixels(run, tmp_path, quick, size):
    Image.new("RGB", size, (255, 255, 0)).save(tmp_path / "few.png")
    options = ("-m", quick / "squash", "--steps", 1, "--plot", tmp_path / "plot.png")
    assert run("attack", tmp_path / "few.png", "-o", tmp_path / "out.png", *options)[0] == 0
    assert size_of(tmp_path / "out.png", tmp_path / "few.png", "linf") <= 4 / 255 + 1e-6


def test_what_the_model_does_not_look_at_stays_and_is_told(run, small, tmp_path, quick):
    image, out = small / "chelsea.png", tmp_path / "out.png"
    command = ("attack", image, "-o", out, "-m", quick / "shortest", "--target", small / "rocket.jpg", "--steps", 2)
    code, told, _ = run(*command)
    assert code == 0
    for name in ("chelsea.png", "rocket.jpg"):
        assert f"{name}: 33% was not looked at; of 64 x 43 pixels the model saw columns 10.8 to 53.9" in as_line(told)
    parts = json.loads(run(*command, "--json")[1])["not_looked_at"]
    assert [part["looked_at"][1::2] for part in parts] == [[0, 43], [0, 43]]
    change = np.asarray(read_image(str(out))) != np.asarray(read_image(str(image)))
    touched = np.flatnonzero(change.any(axis=(0, 2)))
    assert 8 <= touched[0] <= 10
    assert 53 <= touched[-1] <= 55


# -- large pictures, and pipes


@pytest.mark.parametrize(("most", "size"), [(32, (32, 22)), (1, (1, 1)), (64, (64, 43)), (1000, (64, 43))])
def test_a_smaller_copy_is_attacked_on_demand(run, small, tmp_path, quick, most, size):
    image, out, model = small / "chelsea.png", tmp_path / "out.png", quick / "squash"
    command = (
        "attack",
        image,
        "-o",
        out,
        "-m",
        model,
        "--steps",
        5,
        "--max-side",
        most,
        "--target",
        small / "rocket.jpg",
    )
    document = json.loads(run(*command, "--json")[1])
    assert (document["image_size"], document["attacked_size"]) == ([64, 43], list(size))
    with Image.open(image) as whole:
        copy = (
            whole.convert("RGB") if size == whole.size else whole.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        )
    written = read_image(out)
    assert written.size == size
    change = np.asarray(written).astype(int) - np.asarray(copy)
    assert 0 < abs(change).max() <= 4
    assert document["size"] == pytest.approx(abs(change).max() / 255)
    # All distances are from the files that were named; before, they are those of the copy.
    metric = RobustSim.from_pretrained(model, device="cpu")
    for row in document["distances"]:
        assert row["before"] == pytest.approx(metric.distance(copy, row["to"]).item(), abs=1e-5)
        pairs = json.loads(run("compare", "--json", "-m", model, out, row["to"])[1])["pairs"]
        assert row["after"] == pairs[0]["distance"]
        assert row["before_rounding"] == pytest.approx(row["after"], abs=0.2)
    assert (document["distances"][0]["before"] == 0) == (size == (64, 43))
    _, told, _ = run(*command)
    smaller = f"{image} has 64 x 43 pixels; its copy of {size[0]} x {size[1]} was attacked, and written."
    assert (as_line(smaller) in as_line(told)) == (size != (64, 43))


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_what_a_large_picture_takes_is_said_before(run, tmp_path, quick, monkeypatch, norm):
    """2.1 megapixels; of smaller ones nothing is said."""
    from robustsim.cli import attack

    image, notes, said = tmp_path / "large.png", [], []
    Image.new("RGB", (2100, 1000), (90, 100, 110)).save(image)

    def stop(*args, **options):
        said.append(list(notes))
        raise InputError("stopped")

    monkeypatch.setattr(attack.output, "note", notes.append)
    monkeypatch.setattr(attack, "_attacked", stop)
    command = ("attack", image, "-o", tmp_path / "out.png", "-m", quick / "squash", "--norm", norm, "--eps", "1")
    assert run(*command)[0] == 1
    memory = {"linf": "0.4", "l1": "0.5"}[norm]
    assert said[0] == [
        f"{image}: 2100 x 1000 is 2.1 megapixels; attacking them takes about {memory} GiB of memory besides the "
        "model's own. --max-side 1024 attacks a smaller copy."
    ]
    notes.clear()
    assert run(*command, "--max-side", "1024")[0] == 1
    assert notes == []


def test_how_long_a_large_picture_takes_is_said_after_two_steps(run, tmp_path, quick, monkeypatch):
    from types import SimpleNamespace

    from robustsim.cli import attack

    image, out = tmp_path / "a.png", tmp_path / "out.png"
    Image.new("RGB", (60, 50), (90, 100, 110)).save(image)
    seconds = iter(range(0, 10_000, 7))
    monkeypatch.setattr(attack, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    command = ("attack", image, "-o", out, "-m", quick / "squash", "--steps", 100)
    assert run(*command)[2] == ""
    monkeypatch.setattr(attack, "_LARGE", 3000)
    assert "a step takes 7.0 s: the attack goes on for about 11 min\n" in run(*command)[2]
    assert "a step takes" not in run(*command[:-1], 4)[2]


def test_rounding_in_parts_is_rounding(monkeypatch):
    from robustsim.attacks import rounding

    random = np.random.default_rng(0)
    original = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    attacked = (original / 255 + random.normal(size=original.shape) / 100).clip(0, 1)
    for norm, eps in (("l2", 0.2), ("l1", 20.0)):
        whole = to_8_bits(original, attacked, norm, eps)
        monkeypatch.setattr(rounding, "_BLOCK", 7)
        np.testing.assert_array_equal(to_8_bits(original, attacked, norm, eps), whole)
        monkeypatch.undo()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
@pytest.mark.timeout(60)
def test_pictures_come_through_pipes(run, small, tmp_path, quick, monkeypatch):
    model = quick / "squash"
    command = ("--target", "-", "-m", model, "--steps", 3, "--json", "-o")
    expected = run("attack", small / "chelsea.png", "--target", small / "rocket.jpg", *command[2:], tmp_path / "a.png")[
        1
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((small / "rocket.jpg").read_bytes())))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=((small / "chelsea.png").read_bytes(),), daemon=True)
    writer.start()
    code, told, err = run("attack", fifo, *command, tmp_path / "b.png")
    writer.join(10)
    assert (code, err) == (0, "")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    names = {"-": str(small / "rocket.jpg"), str(fifo): str(small / "chelsea.png")}
    got, known = json.loads(told), json.loads(expected)
    assert [{**row, "to": names[row["to"]]} for row in got["distances"]] == known["distances"]


def test_a_progress_bar_is_for_terminals(run, small, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    command = ("attack", small / "coffee.png", "-m", quick / "squash", "-o", tmp_path / "out.png", "--steps", 2)
    code, told, err = run(*command, "--json")
    assert code == 0
    assert "APGD" in err
    json.loads(told)


# -- drawing


def test_the_change_is_magnified_as_far_as_it_fits():
    original = np.full((2, 2, 3), 100, np.uint8)
    changed = original.copy()
    changed[0, 0], changed[1, 1] = 104, 96
    picture, factor = magnified(original, changed)
    assert factor == 31
    assert picture[0, 0].tolist() == [252] * 3  # 127.5 + 4 * 31, to even
    assert picture[1, 1].tolist() == [4] * 3
    assert picture[0, 1].tolist() == [128] * 3
    assert magnified(original, original)[0].tolist() == np.full((2, 2, 3), 128).tolist()
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert magnified(black, white)[1] == magnified(white, black)[1] == 0.5
    assert magnified(black, white)[0].max() == 255


@pytest.mark.parametrize(("size", "height"), [((64, 43), 4 * 43), ((300, 200), 200), ((2000, 1000), 384)])
def test_three_panels(size, height):
    random = np.random.default_rng(0)
    original = np.full((size[1], size[0], 3), 200, np.uint8)
    changed = original + random.choice(np.array([-2, 2]), original.shape).astype(np.int16)
    drawn = three_panels(original, changed.astype(np.uint8), "distance 0.5")
    pixels = np.asarray(drawn)
    width = (drawn.width - 12) // 3
    left, middle, right = (pixels[12 : 12 + height, 12 + width * i : width * (i + 1)] for i in range(3))
    assert (left == 200).all()
    assert set(np.unique(middle)) <= {2, 254, 255} | set(range(3))
    assert abs(right.astype(float) - 200).max() <= 3
    captions = pixels[12 + height :]
    for index in range(3):  # some ink under each panel, none between them
        column = captions[:, 12 + width * index : width * (index + 1)]
        assert (column < 128).any()
    assert (captions[:, [0, 5, drawn.width - 1]] == 255).all()
    if size[0] == 300:
        assert width == 300 + 12


def test_plot(run, small, tmp_path, quick):
    plot = tmp_path / "plot.png"
    command = ("attack", small / "coffee.png", "-m", quick / "squash", "-o", tmp_path / "out.png", "--plot", plot)
    assert run(*command, "--steps", 1)[0] == 0
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG"
        assert drawn.height > 4 * 43
        assert drawn.width > 3 * 4 * 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "plot.png"]


# -- what is refused


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("-o", "out.png", "--eps", "4"), "did you mean 4/255?"),
        (("-o", "out.png", "--eps", ""), "is no radius"),
        (("-o", "out.png", "--eps", "four"), "'four' is no radius"),
        (("-o", "out.png", "--eps", "-1/255"), "at least 0"),
        (("-o", "out.png", "--eps", "0.0039"), "0.0039 is less than 1/255"),
        (("-o", "out.png", "--eps", "0", "--norm", "l2"), "0 is less than 1/255"),
        (("-o", "out.png", "--norm", "l1"), "l1 has no usual radius"),
        (("-o", "out.png", "--norm", "l0"), "l0"),
        (("-o", "out.png", "--steps", "0"), "--steps"),
        (("-o", "out.png", "--seed", "-1"), "--seed"),
        (("-o", "out.jpg"), "does not end in .png"),
        (("-o", "out"), "does not end in .png"),
        (("-o", "chelsea.png"), "would be overwritten"),
        (("-o", "folder/../chelsea.png"), "would be overwritten"),
        (("-o", "link.png"), "would be overwritten"),
        (("-o", "out.png", "--target", "coffee.png", "--plot", "coffee.png"), "would be overwritten"),
        (("-o", "coffee.png", "--target", "coffee.png"), "would be overwritten"),
        (("-o", "out.png", "--plot", "out.png"), "would be overwritten"),
        (("-o", "out.png", "--plot", "plot.pdf"), "does not end in .png"),
        ((), "-o"),
    ],
)
def test_wrong_usage_exits_with_2(run, small, tmp_path, monkeypatch, words, hint):
    monkeypatch.chdir(tmp_path)
    for name in ("chelsea.png", "coffee.png"):
        (tmp_path / name).write_bytes((small / name).read_bytes())
    (tmp_path / "link.png").symlink_to(tmp_path / "chelsea.png")
    (tmp_path / "folder").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    code, out, err = run("attack", "chelsea.png", *words)
    assert (code, out) == (2, "")
    assert hint in as_line(err)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("option", ["-o", "--plot"])
def test_an_output_that_cannot_be_is_told_before_any_work(run, small, tmp_path, monkeypatch, option):
    def none(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(RobustSim, "from_pretrained", none)
    monkeypatch.setattr("os.access", lambda path, *args, **kwargs: Path(path).name != "closed")
    for name in ("folder.png", "closed"):
        (tmp_path / name).mkdir()
    image = small / "chelsea.png"
    others = () if option == "-o" else ("-o", tmp_path / "out.png")
    hints = {"none/x.png": "there is no folder", "closed/x.png": "nothing may be", "folder.png": "it is a folder"}
    for name, hint in hints.items():
        path = tmp_path / name
        code, out, err = run("attack", image, option, path, *others)
        assert (code, out) == (1, "")
        assert err.startswith(f"robustsim: cannot write '{path}'")
        assert hint in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["closed", "folder.png"]


def test_bad_pictures_are_named_and_nothing_is_written(run, small, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    out, image = tmp_path / "out.png", small / "chelsea.png"
    for first in (bad, tmp_path / "none.png", small, "https://example.org/a.png"):
        code, told, err = run("attack", first, "-o", out)
        assert (code, told) == (1, "")
        assert err.startswith("robustsim: ")
        assert str(first) in err
        assert "Traceback" not in err
    words = ("--target", bad, "--target", small / "coffee.png", "--target", tmp_path / "none.png", "--target", bad)
    code, told, err = run("attack", image, *words, "-o", out)
    assert (code, told) == (1, "")
    first, second = err.splitlines()
    assert first.startswith("robustsim: cannot read")
    assert "bad.png" in first
    assert second.startswith("robustsim: cannot read")
    assert "none.png" in second
    code, told, err = run("attack", image, "-m", "lite-clea", "-o", out)
    assert (code, told) == (1, "")
    assert "did you mean 'lite-clean'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


def test_a_full_disk_leaves_nothing_behind(run, small, tmp_path, quick, monkeypatch):
    save = Image.Image.save

    def full(self, file, *args, **kwargs):
        if fatal in file.name:
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, file, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    command = ("attack", small / "coffee.png", "-o", tmp_path / "out.png", "--plot", tmp_path / "plot.png")
    for name, left in (("out", []), ("plot", ["out.png"])):
        fatal = name
        code, told, err = run(*command, "-m", quick / "squash", "--steps", 1)
        assert (code, told) == (1, "")
        assert "No space left on device; nothing was left there" in err
        assert [path.name for path in tmp_path.iterdir()] == left


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['robustsim', 'attack', '--help']\n"
        "from robustsim.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    assert not {"torch", "numpy", "PIL"} & modules_after(code)
