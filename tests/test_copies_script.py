"""scripts/copies.py: the table of edits and attacks, and the differentiable hash that its attacks work on."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim.evaluation.tasks.distortions import change
from robustsim.images import perceptual_hash
from tests.conftest import EXAMPLES, ROOT

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("imagehash")


@pytest.fixture(scope="module")
def scripts():
    """The script's modules, which import each other by their plain names."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import copies
        import copies_attack
        import copies_page

        yield copies, copies_attack, copies_page
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two folders of parts of the examples."""
    root = tmp_path_factory.mktemp("photographs")
    for name, suffixes in (("one", ("chelsea.png", "coffee.png")), ("two", ("rocket.jpg", "astronaut.png"))):
        (root / name).mkdir()
        for file in suffixes:
            with Image.open(EXAMPLES / file) as image:
                whole = image.convert("RGB").resize((240, 180))
            for number, (left, top) in enumerate(((0, 0), (120, 0), (0, 90))):
                whole.crop((left, top, left + 120, top + 90)).save(root / name / f"{file}.{number}.png")
    return root


def noise(seed, height, width):
    values = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def tensor(images):
    return torch.stack([torch.from_numpy(np.array(one)) for one in images]).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (304, 232)])
def test_the_differentiable_hash_has_imagehash_s_bits(scripts, size):
    _, copies_attack, _ = scripts
    images = [noise(seed, *size) for seed in range(8)]
    heights = copies_attack.SoftHash(*size)(tensor(images))
    bits = torch.from_numpy(
        np.stack([np.unpackbits(np.frombuffer(perceptual_hash(one), np.uint8)) for one in images]).astype(bool)
    )
    wrong = (heights > 0) != bits
    # Pillow rounds to 8 bits on the way: a coefficient that nearly is the median may fall on either side of it.
    assert wrong.float().mean() < 0.02
    assert (heights.abs()[wrong] < 0.05 * heights.abs().median()).all()


def test_an_attack_on_the_hash_turns_bits_within_its_budget(scripts):
    _, copies_attack, _ = scripts
    images = tensor([noise(seed, 224, 224) for seed in range(2)])
    own = copies_attack.hash_vectors([perceptual_hash(one) for one in copies_attack.pictures(images)])
    objective = copies_attack.Escape({}, {"phash": own}, {"phash": 0.8}, ["phash"], 224)
    found = copies_attack.attack(objective, images, eps=8, steps=10, seed=0).permute(0, 3, 1, 2)
    levels = images.mul(255).round()
    assert (found - levels).abs().max() <= 8
    drawn = torch.Generator().manual_seed(1)
    random = levels + torch.randint(-8, 9, levels.shape, generator=drawn)

    def turned(pictures):
        there = [perceptual_hash(one) for one in copies_attack.pictures(pictures.float().div(255).clamp(0, 1))]
        return ((copies_attack.hash_vectors(there) * own) < 0).sum(1)

    assert (turned(found) > 2 * turned(random)).all()


def test_the_line_that_is_behind_has_the_gradient(scripts, metric):
    _, copies_attack, _ = scripts
    images = tensor([noise(3, 224, 224)])
    own = {
        "lite": metric.embed_pixels(images).detach(),
        "phash": copies_attack.hash_vectors([perceptual_hash(one) for one in copies_attack.pictures(images)]),
    }
    moved = (images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)

    def gradient(aims, thresholds):
        objective = copies_attack.Escape({"lite": metric}, own, thresholds, aims, 224)
        x = moved.clone().requires_grad_()
        return torch.autograd.grad(objective(x).sum(), x)[0].flatten()

    far, near = {"lite": 1.4, "phash": 0.8}, {"lite": 1e-3, "phash": 0.8}
    alone = gradient(["lite"], far)
    assert torch.cosine_similarity(gradient(["lite", "phash"], far), alone, dim=0) > 0.99
    assert torch.cosine_similarity(gradient(["lite", "phash"], near), alone, dim=0) < 0.9


def test_the_script_resumes_and_its_tables_have_all_rows(scripts, photographs, tmp_path, monkeypatch, capsys):
    copies, _, _ = scripts
    docs = tmp_path / "search.md"
    docs.write_text("before\n<!-- edits and attacks -->\n<!-- end of edits and attacks -->\nafter\n")
    words = ["--data", *(f"{name}={photographs / name}" for name in ("one", "two")), "--work", str(tmp_path / "work")]
    words += ["--docs", str(docs), "--edited", "2", "--attacked", "1", "--steps", "1", "--rate", "0.05"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["copies.py", *words, *more])
        copies.main()
        return capsys.readouterr().out

    done = []

    def stopped(self, known, rows, aims, *rest):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(aims)
        return whole(self, known, rows, aims, *rest)

    whole = copies.Copies._attacked
    monkeypatch.setattr(copies.Copies, "_attacked", stopped)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(copies.Copies, "_edited", None)  # done before
    monkeypatch.setattr(copies.Copies, "_attacked", lambda *given: done.append(given[3]) or whole(*given))
    run()
    assert len(done) == 2 * (1 + 2 * 4)
    page = docs.read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    for name in ("one", "two"):
        assert page.count(f"**{name}**") == 2
    for edit, kind, _ in copies.EDITS:
        assert page.count(f"| {edit} |") == 2
        assert page.count(f"| {edit}; the query's views too |") == (2 if kind in copies.VIEWED else 0)
    for row in ("lite", "lite-clean", "phash", "all three at once", "the best of these"):
        assert page.count(f"\n| {row}, 4/255 |") == page.count(f"\n| {row}, 8/255 |") == 2
    assert "| nothing | 1 (" in page

    monkeypatch.setattr(copies.Copies, "_attacked", None)  # nothing is left to do
    run("--check")
    docs.write_text(page.replace("| nothing | 1 (", "| nothing | 0 ("))
    with pytest.raises(SystemExit, match="other tables"):
        run("--check")


def test_thresholds_allow_no_more_pairs_than_the_rate(scripts):
    _, _, copies_page = scripts
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(30, 6)).astype(np.float32)
    rows[1] = rows[0]  # one pair at 0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    known = {"names": np.arange(30).astype(str), "line": rows, "views of line": rows[:0], "view_of": np.arange(0)}
    thresholds, told = copies_page.thresholds_of({"set": known}, ["line"], 0.01)
    squares = 1 - rows @ rows.T
    near = np.sqrt(np.maximum(squares[np.triu_indices(30, 1)], 0))
    assert told["pairs"] == 435
    assert told["found"] == {"line": 4}
    assert (near <= thresholds["line"]).sum() == told["union"] == 4
    assert told["nearest"]["line"][0][:2] == ("set/0", "set/1")


def test_intervals_are_those_of_clopper_and_pearson(scripts):
    _, _, copies_page = scripts
    assert copies_page.interval(0, 20) == (0, pytest.approx(0.1684, abs=1e-4))
    assert copies_page.interval(5, 20) == pytest.approx((0.0866, 0.4910), abs=1e-4)
    assert copies_page.interval(20, 20)[1] == 1
    assert copies_page.upper(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))


@pytest.mark.parametrize(("kind", "amount"), [("border", 0.08), ("caption", 0.15), ("grey", 1), ("repost", 0.5)])
def test_edits_of_copies_keep_the_size_and_change_something(kind, amount):
    image = noise(1, 90, 120)
    before = image.tobytes()
    changed = change(image, kind, amount, 5)
    assert (changed.size, changed.mode) == (image.size, "RGB")
    assert image.tobytes() == before != changed.tobytes()
    assert changed.tobytes() == change(image, kind, amount, 5).tobytes()
    pixels = np.asarray(changed)
    if kind == "grey":
        assert (pixels == pixels[..., :1]).all()
    if kind == "border":
        assert (pixels[:6] == 255).all()
        assert (pixels[:, :8] == 255).all()
        assert (np.asarray(change(image, kind, amount, 4))[:6] == 0).all()
    if kind == "caption":
        assert (pixels[:75] == np.asarray(image)[:75]).all()
        assert pixels[78:].max() > 200
        assert pixels[78:].min() == 20
