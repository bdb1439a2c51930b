"""Copies as an evaluation: thresholds of a rate, edits, attacks, hashes, resumption, tables."""

import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import gaussian_blur

from robustsim import RobustSim
from robustsim.baselines import load_baseline
from robustsim.encoders.pairs import near_pairs
from robustsim.errors import DataError, ImageError, InputError, OutputError
from robustsim.evaluation import compare_reports, copies, evaluate_copies, load_report, report_table
from robustsim.evaluation.impostors import draw_photographs, limit_of, limits_of_draws, shares_of_draws
from robustsim.evaluation.running import copying
from robustsim.evaluation.subjects import subject
from robustsim.evaluation.tasks.distortions import change, check_changes, seed_of
from robustsim.images import read_image
from tests import trainings
from tests.judges import pairs, pictures, small
from tests.processes import GATE, killed

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 12
EDITS = {"jpeg": (50, 10), "crop": (0.7,), "mirror": (1,)}
LABELS = ["unchanged", "jpeg 50", "jpeg 10", "crop 0.7", "mirror 1"]


@pytest.fixture
def folder(tmp_path):
    return pictures(tmp_path / "photographs", COUNT, size=40)


@pytest.fixture(scope="module")
def robust():
    return RobustSim(trainings.encoder())


def judge(metric, folder, output="r", **options):
    options = {"edits": EDITS, "rates": (0.1, 0.01), "batch_size": 4, **options}
    return evaluate_copies(metric, folder, output=folder.parent / output, **options)


def everything(report):
    content = {name: value for name, value in report.content.items() if name != "times"}
    return json.dumps([content, {name: column.tolist() for name, column in report.items.items()}])


def looked_at(one, images):
    squares = [np.array(one.preprocessing.apply(image)) for image in images]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


def compared(metric, a, b):
    """Distances of pixels, (n,), as the metric itself tells them."""
    one = subject(metric)
    with torch.no_grad():
        return one.distance(*((a, b) if one.embed is None else (one.embed(a), one.embed(b)))).double().numpy()


@pytest.mark.parametrize("kind", ["cosine", "embeds", "pairs"])
def test_figures_word_by_word(kind, robust, folder):
    metric = {"cosine": robust, "embeds": small(), "pairs": pairs()}[kind]
    report = judge(metric, folder)
    files = sorted(folder.glob("*.png"))
    one = subject(metric)
    photographs = looked_at(one, map(read_image, files))
    left, right = np.triu_indices(COUNT, 1)
    impostors = np.sort(compared(metric, photographs[left], photographs[right]))
    for limit, allowed in zip(report.results["limits"], (6, 0), strict=True):  # of 66 pairs
        assert limit["distance"] == pytest.approx(impostors[allowed], abs=1e-6)
        assert (limit["within"], limit["pairs"], limit["supported"]) == (allowed, 66, allowed > 0)
        assert limit["rate_bound"] > limit["rate"]
    for place, file in enumerate(files):
        image = read_image(file)
        made = [
            image,
            *(change(image.copy(), kind, amount, seed_of(file.name, 0)) for kind in EDITS for amount in EDITS[kind]),
        ]
        far = compared(metric, looked_at(one, made), photographs[place : place + 1].expand(len(made), -1, -1, -1))
        rows = slice(place * len(LABELS), (place + 1) * len(LABELS))
        assert report.items["id"][rows].tolist() == [f"{file.name} {label}" for label in LABELS]
        assert report.items["distance"][rows].tolist() == pytest.approx(far, abs=1e-5)
    found = report.items["distance"].reshape(COUNT, -1) < report.results["limits"][0]["distance"]
    figures = report.results["clean"]["0.1"]
    assert figures["all"]["value"] == pytest.approx(found[:, 1:].mean())
    assert figures["all"]["n"] == COUNT * 4
    assert {name: one["value"] for name, one in figures["edits"].items()} == pytest.approx(
        dict(zip(LABELS, found.mean(0), strict=True))
    )
    assert figures["edits"]["unchanged"]["value"] == 1
    assert report.items["found 0.1"].reshape(COUNT, -1)[:, 0].tolist() == [None] * COUNT
    assert report.items["found 0.1"].reshape(COUNT, -1)[:, 1:].astype(float).mean() == pytest.approx(
        found[:, 1:].mean()
    )
    nearest = report.content["nearest"][0]
    assert nearest["distance"] == pytest.approx(impostors[0], abs=1e-6)
    if kind == "pairs":
        assert judge(metric, folder, "drawn", pairs=66).results == report.results
        few = judge(metric, folder, "few", pairs=30)
        assert few.results["limits"][0]["pairs"] == 30
        assert {one["distance"] for one in few.content["nearest"]} <= set(impostors.astype(np.float32).astype(float))


def test_thresholds_are_resampled_with_the_photographs():
    random = np.random.default_rng(0)
    rows = random.normal(size=(20, 3))
    rows[1] = rows[0]  # the same picture, which is no pair
    near = near_pairs(lambda places: rows[places], [0, 0, *range(1, 19)])
    times = draw_photographs(20, 0)
    assert (times.sum(1) == 20).all()
    for rate in (0.05, 0.001):
        limits = limits_of_draws(near, rate, times, drawn=False)
        known = {(int(a), int(b)): d for a, b, d in zip(near.left, near.right, near.distances, strict=True)}
        for number in range(0, 1000, 97):
            chosen = np.repeat(np.arange(20), times[number])
            far = sorted(
                known[min(a, b), max(a, b)]
                for n, a in enumerate(chosen)
                for b in chosen[n + 1 :]
                if (min(a, b), max(a, b)) in known
            )
            assert limits[number] == far[int(rate * len(far) * (1 + 1e-9))]
        drawn = limits_of_draws(near, rate, times, drawn=True)
        assert np.array_equal(drawn, limits)
    assert limit_of(near, 0.05).within == int(0.05 * near.pairs)
    distances = np.append(random.random(19), np.nan)
    shares = shares_of_draws(distances, limits, times)
    weights = times[5, :19]
    assert shares[5] == pytest.approx((weights * (distances[:19] < limits[5])).sum() / weights.sum())


def test_attacks_move_copies_away(robust, folder):
    metrics = {"cosine": robust, "embeds": small(), "pairs": pairs()}
    for name, metric in metrics.items():
        report = judge(metric, folder, eps=("2/255", "8/255"), steps=3, attacked=3)
        clean = report.items["distance"]
        weak, strong = (report.items[f"distance {eps}"] for eps in ("2/255", "8/255"))
        known = ~np.isnan(strong)
        assert known.sum() == 3 * len(LABELS), name
        assert (weak[known] >= clean[known]).all()
        assert (strong[known] > weak[known]).mean() > 0.9
        part = report.results["adversarial"][1]["0.1"]
        of_three = (clean[known].reshape(3, -1) < report.results["limits"][0]["distance"])[:, 1:]
        assert part["before"]["value"] == pytest.approx(of_three.mean())
        assert part["all"]["value"] <= part["before"]["value"]
        assert part["all"]["n"] == 3 * 4


def test_a_perceptual_hash_beside(folder):
    for place, file in enumerate(sorted(folder.iterdir())):
        noise = np.random.default_rng(place).integers(0, 256, (28, 28, 3), np.uint8)
        Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC).save(file)
    options = {"edits": {"jpeg": (50,)}, "photographs": 5, "attacked": 2}
    report = judge(load_baseline("phash"), folder, eps=("8/255",), steps=8, **options)
    bits = report.items["distance"] ** 2 * 128
    assert bits == pytest.approx(bits.round(), abs=1e-3)
    known = ~np.isnan(report.items["distance 8/255"])
    assert report.items["distance 8/255"][known].mean() > report.items["distance"][known].mean() + 0.1


def test_copies_that_are_named_are_no_pair(robust, folder):
    (folder / "00.png").rename(folder / "a.png")
    Image.open(folder / "a.png").save(folder / "b.bmp")  # of the same pixels
    Image.open(folder / "a.png").rotate(10).save(folder / "c.png")
    alone = judge(robust, folder, "alone")
    assert alone.results["limits"][0]["pairs"] == 14 * 13 // 2 - 1
    (folder.parent / "same.csv").write_text("file,same_as\na.png,c.png\n")
    named = judge(robust, folder, "named", same=folder.parent / "same.csv")
    assert named.results["limits"][0]["pairs"] == 14 * 13 // 2 - 3
    assert named.results["limits"][1]["distance"] > alone.results["limits"][1]["distance"]
    (folder.parent / "same.csv").write_text("file,same_as\na.png,z.png\n")
    with pytest.raises(DataError, match=r"names 'z\.png'"):
        judge(robust, folder, same=folder.parent / "same.csv")


@pytest.mark.parametrize("size", [(96, 40), (512, 10), (16, 16), (3, 200), (1, 1)])
def test_every_edit_takes_every_size(size):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(noise)
    for kind, amounts in copies.EDITS.items():
        for amount in amounts:
            changed = change(image.copy(), kind, amount, 1)
            assert (changed.size, changed.mode) == (size, "RGB"), (kind, amount)
    blurred = np.asarray(change(image, "blur", 4))
    grey = change(Image.new("RGB", size, (9, 99, 200)), "blur", 4)
    assert np.array_equal(np.asarray(grey)[..., 1], np.full(size[::-1], 99))
    if size == (96, 40):
        assert np.array_equal(blurred, np.asarray(gaussian_blur(image, 33, 4.0)))
    elif min(size) > 1:
        assert blurred.std() < 0.5 * noise.std()


@pytest.mark.parametrize(
    ("kind", "amount"),
    [
        ("jpeg", math.nan), ("jpeg", 500), ("jpeg", 0), ("resize", math.inf), ("resize", 0), ("crop", 0), ("crop", 1.5),
        ("blur", 0), ("noise", math.nan), ("noise", -0.1), ("brightness", -1), ("contrast", -1), ("saturation", -1),
        ("rotation", math.nan), ("caption", 2), ("border", -1), ("mirror", math.inf), ("repost", 0), ("warp", math.inf),
    ],
)  # fmt: skip
def test_amounts_out_of_range_are_refused(kind, amount):
    with pytest.raises(InputError, match=f"an amount of {kind} must be (from|a finite number).*, not {amount:g}"):
        check_changes({"jpeg": (50,), kind: (amount,)})


def test_a_photograph_that_an_edit_fails_on_is_skipped(folder, monkeypatch):
    def failing(image, kind, amount, seed):
        if kind == "crop" and seed == seed_of("03.png", 0):
            raise RuntimeError("Padding size is too large")
        return change(image, kind, amount, seed)

    monkeypatch.setattr(copying, "change", failing)
    (skipped,) = judge(small(), folder).content["skipped"]
    assert skipped["id"] == "03.png"
    assert "03.png', 40 x 40: crop 0.7 gave RuntimeError: Padding size is too large" in skipped["error"]


@pytest.mark.parametrize("make", [small, pairs])
def test_an_interrupted_run_ends_with_the_same_report(make, folder, monkeypatch):
    (folder / "03.png").write_bytes(b"nothing" * 50)
    options = {"eps": ("4/255",), "steps": 2, "attacked": 3}
    undisturbed = judge(make(), folder, "whole", **options)
    assert [one["id"] for one in undisturbed.content["skipped"]] == ["03.png"]
    add = copies.Journal.add
    for fail_at in (1, 4, 9):
        calls = []

        def failing(*arguments, calls=calls, fail_at=fail_at):
            calls.append(1)
            if len(calls) == fail_at + 1:
                raise KeyboardInterrupt
            return add(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(copies.Journal, "add", failing)
            with pytest.raises(KeyboardInterrupt):
                judge(make(), folder, f"cut-{fail_at}", **options)
            again = judge(make(), folder, f"cut-{fail_at}", **options)
        assert everything(again) == everything(undisturbed)
        assert {path.suffix for path in (folder.parent / f"cut-{fail_at}").iterdir()} == {".json", ".parquet"}


@pytest.mark.slow  # an interruption of the same kind, in one process, is above
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_killed_it_ends_with_the_same_report(folder, tmp_path, server):
    options = {"edits": EDITS, "rates": (0.1,), "eps": ("4/255",), "steps": 10, "batch_size": 4}
    undisturbed = evaluate_copies(small(), folder, output=tmp_path / "whole", **options)
    job = f"""
import torch
from robustsim.evaluation import copies, evaluate_copies
from tests.judges import small
torch.set_num_threads(1)
copies.write_report = lambda *arguments: gate({str(tmp_path / "gate")!r})
evaluate_copies(small(pause=0.003), {str(folder)!r}, output={str(tmp_path / "cut")!r}, **{options!r})
"""
    for moment in (0.05, 0.3):
        begun = lambda: any((tmp_path / "cut").rglob("journal-0.jsonl"))  # noqa: E731
        killed(server, GATE + job, begun, tmp_path / "gate", moment)
    again = evaluate_copies(small(), folder, output=tmp_path / "cut", **options)
    assert everything(again) == everything(undisturbed)


def test_refused(robust, folder, monkeypatch):
    with pytest.raises(InputError, match="'melt' is none of the edits jpeg, blur"):
        judge(robust, folder, edits={"melt": (1,)})
    with pytest.raises(InputError, match=r"an amount of crop must be from 0\.01 to 1, not 1\.5"):
        judge(robust, folder / "not even there", edits={"jpeg": (50,), "crop": (0.9, 1.5)})
    with pytest.raises(InputError, match="the same amount twice"):
        judge(robust, folder, edits={"jpeg": (50, 50.0)})
    with pytest.raises(InputError, match="rates of false positives above 0 and below 1"):
        judge(robust, folder, rates=(0,))
    with pytest.raises(InputError, match="must be at least 1"):
        judge(robust, folder, attacked=0)
    with pytest.raises(InputError, match="a distance below 0"):
        judge(load_baseline("psnr"), folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(copies.Copying, "_copy", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        judge(robust, folder, "lost")
    (rows,) = (folder.parent / "lost").rglob("photographs.f32")
    rows.unlink()
    with pytest.raises(OutputError, match="is not what it was: pass restart"):
        judge(robust, folder, "lost")
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="all show one picture"):
        judge(robust, folder)
    next(folder.iterdir()).write_bytes(b"nothing" * 50)
    with pytest.raises(ImageError, match="not a single photograph could be read"):
        judge(robust, folder)


def test_comparison_tables_and_the_terminal(run, robust, folder, tmp_path):
    a, b = (judge(one, folder, eps=("4/255",), steps=1) for one in (robust, small()))
    found = {one.measure: one for one in compare_reports([a, b])}
    assert list(found) == ["found 0.1", "found 0.01", "found 0.1 4/255", "found 0.01 4/255"]
    assert found["found 0.1"].value_a == pytest.approx(a.results["clean"]["0.1"]["all"]["value"])
    (table,) = report_table([a, b])
    assert table.header[1:] == (
        "at 0.1", "at 0.01", "at 0.1, before attack", "at 0.1, linf 4/255", "at 0.01, before attack",
        "at 0.01, linf 4/255",
    )  # fmt: skip
    assert sum("So few pairs cannot say that rate" in note for note in table.notes) == 2
    words = ("evaluate", "copies", "--data", folder, "-m", "l2", "-m", "ssim", "-o", tmp_path / "t")
    words = (*words, "--photographs", 6, "--edit", "jpeg=30", "--edit", "mirror", "--rate", 0.1, "--pairs", 10)
    code, out, err = run(*words, "--groups")
    assert code == 0, err
    assert "at 0.1, jpeg 30" in out
    assert len(list((tmp_path / "t").glob("*.json"))) == 2
    code, out, _ = run(*words, "--json")
    reports = json.loads(out)
    assert [one["report"] for one in reports] == [
        str(tmp_path / "t" / f"{load_report(one['report']).path.name}") for one in reports
    ]
    same = ("--edit", "jpeg=30", "--edit", "mirror", "--edit", "jpeg=10,30", "--edit", "mirror", "--rate", 0.1)
    code, out, err = run(*words[:6], "-o", tmp_path / "same", *same, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["labels"] == ["unchanged", "jpeg 30", "jpeg 10", "mirror 1"]
    for option, match in (
        ("melt", "is none of jpeg"), ("jpeg=x", "amounts are numbers"), ("jpeg=,", "amounts are numbers"),
    ):  # fmt: skip
        code, _, err = run("evaluate", "copies", "--data", folder, "--edit", option)
        assert code == 2
        assert match in " ".join(err.split())
