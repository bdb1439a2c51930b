"""Text-guided attention against masks as an evaluation: scores, adversarial examples, resumption, tables."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim import RobustSim
from robustsim.attacks import PGD, Classification
from robustsim.errors import ImageError, InputError
from robustsim.evaluation import attention, compare_reports, evaluate_attention, load_report, report_table
from robustsim.explain import attention_map, mask_scores, soft_iou
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("a_cat", "rocket")


@pytest.fixture(scope="module")
def clip(published):
    return RobustSim.from_pretrained(published["vit"][0], device="cpu", text=True)


@pytest.fixture
def masked(tmp_path):
    """Two pictures of each of two classes, as large as the encoder's square, and masks."""
    random = np.random.default_rng(0)
    for place, name in enumerate(("one.png", "two.png")):
        for label in CLASSES:
            image = Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8))
            mask = np.zeros((64, 64), np.uint8)
            mask[20 : 50 + place, 10:40] = 255
            for root, picture in (("images", image), ("masks", Image.fromarray(mask))):
                (tmp_path / root / label).mkdir(parents=True, exist_ok=True)
                picture.save(tmp_path / root / label / name)
    return tmp_path


def judge(metric, masked, output="r", **options):
    return evaluate_attention(metric, masked / "images", masked / "masks", output=masked / output, **options)


def everything(report):
    content = {name: value for name, value in report.content.items() if name != "times"}
    return json.dumps([content, {name: column.tolist() for name, column in report.items.items()}])


@pytest.mark.parametrize("form", ["paper", "published"])
def test_without_attack_it_is_mask_scores(clip, masked, form):
    report = judge(clip, masked, form=form)
    rows = mask_scores(clip, masked / "images", masked / "masks", form=form).rows
    assert report.items["id"].tolist() == [row.image for row in rows]
    for name in ("tga", "comp_tga"):
        wanted = [getattr(row, name) for row in rows]
        assert report.items[name].tolist() == pytest.approx(wanted, abs=1e-6)
        figure = report.results["clean"][name]
        assert figure["value"] == pytest.approx(np.mean(wanted), abs=1e-6)
        assert (figure["low"], figure["n"]) == (None, 4)  # two classes are too few to draw from
        assert figure["groups"]["a cat"]["value"] == pytest.approx(np.mean(wanted[:2]), abs=1e-6)
    assert report.results["adversarial"] == []


def test_adversarial_examples_word_by_word(clip, masked):
    report = judge(clip, masked, eps=("8/255",), steps=3, seed=2)
    texts = [f"This is a photo of a {name.replace('_', ' ')}" for name in CLASSES]
    classes = clip.embed_text(texts)
    files = sorted((masked / "images").rglob("*.png"))
    for place, file in enumerate(files):
        label = CLASSES.index(file.parent.name)
        goal = Classification(lambda x: 100 * clip.embed_pixels(x) @ classes.T, [label])
        generator = torch.Generator().manual_seed(2 * 1_000_003 + place)
        pixels = clip.preprocess([file])
        changed = PGD(norm="linf", eps=8 / 255, steps=3, generator=generator)(goal, pixels).images
        assert 0 < float((changed - pixels).abs().max()) <= 8 / 255 + 1e-6
        drawn = torch.from_numpy(np.array(Image.open(masked / "masks" / file.relative_to(masked / "images")))) > 0
        # The picture is as large as the square, so that the map of the square is that of the picture.
        wanted = soft_iou(attention_map(clip, changed, texts[label]), drawn[None]).item()
        assert report.items["tga 8/255"][place] == pytest.approx(wanted, abs=1e-4)
        right = int((clip.embed_pixels(changed) @ classes.T).argmax()) == label
        assert report.items["right 8/255"][place] == right
    (part,) = report.results["adversarial"]
    assert (part["norm"], part["eps"]) == ("linf", "8/255")
    assert part["tga"]["value"] == pytest.approx(np.mean(report.items["tga 8/255"].astype(float)))
    assert part["tga"]["value"] != report.results["clean"]["tga"]["value"]


def test_an_interrupted_run_ends_with_the_same_report(clip, masked, monkeypatch):
    (masked / "images" / "rocket" / "one.png").write_bytes(b"nothing")
    options = {"eps": ("4/255",), "steps": 1}
    undisturbed = judge(clip, masked, "whole", **options)
    assert [one["id"] for one in undisturbed.content["skipped"]] == ["rocket/one.png"]
    scored = attention.score_square
    for fail_at in (0, 3):
        calls = []

        def failing(*arguments, calls=calls, fail_at=fail_at, **keywords):
            calls.append(1)
            if len(calls) == fail_at + 1:
                raise KeyboardInterrupt
            return scored(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(attention, "score_square", failing)
            with pytest.raises(KeyboardInterrupt):
                judge(clip, masked, f"cut-{fail_at}", **options)
            again = judge(clip, masked, f"cut-{fail_at}", **options)
        assert len(calls) == 6 + 1  # three pictures twice, and the one that was interrupted
        assert everything(again) == everything(undisturbed)
        assert {path.suffix for path in (masked / f"cut-{fail_at}").iterdir()} == {".json", ".parquet"}


def test_refused(clip, metric, masked, published):
    with pytest.raises(InputError, match="has no text tower: use a CLIP model"):
        judge(metric, masked)
    with pytest.raises(InputError, match="load it with text=True"):
        judge(RobustSim.from_pretrained(published["vit"][0], device="cpu"), masked)
    with pytest.raises(InputError, match=r"'a photo' must hold \{\} once"):
        judge(clip, masked, prompt="a photo")
    with pytest.raises(InputError, match="steps"):
        judge(clip, masked, steps=0)
    Image.new("L", (70, 64), 1).save(masked / "masks" / "a_cat" / "one.png")
    with pytest.raises(InputError, match=r"one\.png' has 70 x 64 pixels, its picture 64 x 64"):
        judge(clip, masked)
    for file in (masked / "masks").rglob("*.png"):
        file.unlink()
    with pytest.raises(ImageError, match="not a single picture has a mask; the first: "):
        judge(clip, masked)
    for file in (masked / "images" / "rocket").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="'a cat' is the only class: an attack needs another one"):
        judge(clip, masked, eps=("1/255",))


def test_tables_comparisons_and_the_terminal(run, clip, masked, published):
    words = ("--data", masked / "images", "--masks", masked / "masks", "-m", published["vit"][0], "-o", masked / "r")
    code, out, err = run("evaluate", "attention", *words, "--eps", "4/255", "--steps", 1)
    assert code == 0, err
    (file,) = (masked / "r").glob("*.json")
    report = load_report(file)
    (table,) = report_table([report], groups=True)
    assert table.header[:4] == ("metric", "TGA", "TGA, a cat", "TGA, rocket")
    assert "TGA, linf 4/255" in table.header
    assert f"{report.results['clean']['tga']['value']:.3f}" in out
    assert "1 steps of PGD" in " ".join(table.notes)
    code, out, _ = run("evaluate", "attention", *words, "--eps", "4/255", "--steps", 1, "--json")
    assert json.loads(out) == [{"report": str(file), **report.content}]
    measures = [one.measure for one in compare_reports([report, report])]
    assert measures == ["tga", "comp_tga", "tga 4/255", "comp_tga 4/255"]
    code, _, err = run("evaluate", "attention", "--data", EXAMPLES, "--masks", EXAMPLES, "-m", "lite")
    assert code == 1
    assert "text" in err
