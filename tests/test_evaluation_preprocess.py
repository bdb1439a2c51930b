"""How pictures become the metric's square: as its card says or squashed, clean and under attack, and never mixed up."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim.baselines import from_callable
from robustsim.data import DataSet, Pair, Triplet, read_dataset, read_triplets
from robustsim.errors import InputError
from robustsim.evaluation import (
    AttackPlan,
    compare_reports,
    distortion_ladder,
    evaluate,
    just_noticeable,
    load_report,
    report_table,
    two_afc,
)
from robustsim.evaluation.subjects import subject
from robustsim.images import Preprocessing
from robustsim.images.inputs import load_square, stack_squares
from robustsim.metric import RobustSim
from tests import trainings
from tests.conftest import EXAMPLES
from tests.judges import SIZE, Small, pictures, triplets

pytestmark = pytest.mark.usefixtures("one_thread")

WIDE = Preprocessing(size=SIZE, mode="squash", interpolation="bilinear")
CARDS = {
    "crops after the resize": Preprocessing(size=SIZE, mode="shortest", resize=SIZE + 8),
    "crops the long side": Preprocessing(size=SIZE, mode="shortest"),
    "squashes and crops": Preprocessing(size=SIZE, mode="squash", resize=SIZE + 8),
    "pads": Preprocessing(size=SIZE, mode="longest"),
    "squashes, bicubic": Preprocessing(size=SIZE),
}
CROPS = CARDS["crops after the resize"]


def bapps(folder, count=3, side=SIZE + 8):
    """Patches in BAPPS's layout that differ at their edges alone; people preferred p1, which differs less."""
    root = folder / "2afc" / "val"
    draw = np.random.default_rng(0)
    for split in ("cnn", "color", "deblur", "frameinterp", "superres", "traditional"):
        for name in ("ref", "p0", "p1", "judge"):
            (root / split / name).mkdir(parents=True)
        for number in range(count):
            reference = draw.integers(40, 200, (side, side, 3), dtype=np.uint8)
            left, right = reference.copy(), reference.copy()
            left[:2], right[:2, :3] = 255, 255
            for name, pixels in (("ref", reference), ("p0", left), ("p1", right)):
                Image.fromarray(pixels).save(root / split / name / f"{number:06}.png")
            np.save(root / split / "judge" / f"{number:06}.npy", np.array([0.8], dtype=np.float32))
    return folder


class Watched:
    """The mean square difference; keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, a, b):
        self.shown += [a.detach().clone(), b.detach().clone()]
        return (a - b).square().mean((1, 2, 3))


def watched(preprocessing):
    function = Watched()
    return function, from_callable(function, name="watched", preprocessing=preprocessing)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_squash_is_the_whole_picture_whatever_the_card_does(card, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (9, 14, 3), dtype=np.uint8)).save(path)
    _, metric = watched(card)
    squashed = subject(metric).seeing("squash")
    assert squashed.preprocessing == WIDE
    shown = load_square(path, squashed.preprocessing)
    wanted = np.array(Image.open(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert np.array_equal(shown.numpy(), wanted)
    assert subject(metric).seeing("card").preprocessing == card


def test_an_encoder_keeps_its_side_when_it_is_shown_whole_pictures(metric):
    card = metric.card.preprocessing
    squashed = subject(metric).seeing("squash")
    assert squashed.preprocessing == replace(WIDE, size=card.size)
    assert subject(metric).seeing("card").preprocessing == card
    with pytest.raises(InputError, match="preprocess='crop' is none of card, squash"):
        subject(metric).seeing("crop")


def test_bapps_is_shown_whole_to_a_metric_whose_card_crops(tmp_path):
    data = read_dataset(bapps(tmp_path / "b"), "2afc")
    _, metric = watched(CROPS)
    whole = evaluate(metric, two_afc(data), output=tmp_path / "r")
    cropped = evaluate(metric, two_afc(data), output=tmp_path / "r", preprocess="card")
    # What differs lies at the edge: in the crop there is nothing to tell the two apart by.
    assert whole.results["accuracy"]["value"] == pytest.approx(0.8)
    assert cropped.results["accuracy"]["value"] == pytest.approx(0.5)
    told = {"rule": "squash", "size": SIZE, "mode": "squash", "resize": None, "interpolation": "bilinear"}
    assert whole.content["preprocessing"].items() >= told.items()
    assert cropped.content["preprocessing"]["rule"] == "card"
    assert cropped.content["preprocessing"]["resize"] == CROPS.resize


def test_bapps_is_shown_whole_to_an_encoder_whose_card_crops_under_attack_too(tmp_path):
    data = read_dataset(bapps(tmp_path / "b", 1), "2afc")
    encoder = trainings.encoder()
    encoder.card = replace(encoder.card, preprocessing=CROPS)
    metric = RobustSim(encoder)
    plan = AttackPlan(attacks="noise", eps="1/255")
    whole, cropped = (
        evaluate(metric, two_afc(data), output=tmp_path / "r", attack=plan, preprocess=how) for how in (None, "card")
    )
    assert min(whole.items["distance_left"]) > 0
    assert max(cropped.items["distance_left"]) == 0
    # A tie is no right decision, and there is nothing to attack.
    assert cropped.threats[0]["clean"]["value"] == 0
    assert whole.content["metric"] == cropped.content["metric"]


def test_each_data_set_states_how_it_is_shown(tmp_path):
    folder = bapps(tmp_path / "b", 1)
    for split in ("cnn", "traditional"):
        for name in ("p0", "p1", "same"):
            (folder / "jnd" / "val" / split / name).mkdir(parents=True)
        for name in ("p0", "p1"):
            Image.new("RGB", (8, 8)).save(folder / "jnd" / "val" / split / name / "000000.png")
        np.save(folder / "jnd" / "val" / split / "same" / "000000.npy", np.array([0.5]))
    own = read_triplets(triplets(tmp_path / "own", 3))
    first = own.items[0]
    pair = DataSet("pairs", own.root, (Pair("0", first.left, first.right, 0.5),))
    bapps_data, jnd_data = read_dataset(folder, "2afc"), read_dataset(folder, "jnd")
    for task in (two_afc(bapps_data), two_afc(bapps_data.sample(2)), just_noticeable(jnd_data)):
        assert task.preprocess == "squash"
    for task in (two_afc(own), two_afc(own.sample(2)), just_noticeable(pair)):
        assert task.preprocess == "card"
    assert distortion_ladder(EXAMPLES, photographs=1).preprocess == "card"


@pytest.mark.parametrize("how", ["card", "squash"])
@pytest.mark.parametrize("attack", ["pgd", "apgd", "square", "noise"])
def test_attacks_change_the_square_that_the_rule_gives(how, attack, tmp_path):
    pictures(tmp_path, 3, size=24)
    paths = [tmp_path / f"{index:02}.png" for index in range(3)]
    function, metric = watched(CROPS)
    reference, left, right = (
        stack_squares([load_square(path, CROPS if how == "card" else WIDE)], torch.device("cpu")) for path in paths
    )
    nearer_right = bool(((reference - right) ** 2).mean() < ((reference - left) ** 2).mean())
    data = DataSet("own", tmp_path, (Triplet("0", *paths, float(nearer_right)),))
    plan = AttackPlan(attacks=attack, eps="2/255", steps=4, queries=8, perturb="reference")
    metric = subject(metric)  # which looks at fixed noise, to know its behaviour
    function.shown.clear()
    report = evaluate(metric, two_afc(data), output=tmp_path / "r", attack=plan, preprocess=how)
    (threat,) = report.threats
    assert threat["clean"]["value"] == 1
    moved = 0
    for shown in function.shown:
        for one in shown:
            near = [float((one - plain[0]).abs().max()) for plain in (reference, left, right)]
            assert min(near) <= 2 / 255 + 1e-6
            moved += 0 < near[0] <= 2 / 255 + 1e-6
    assert moved > 0


class Stopping(Small):
    """Gives up after so many pictures."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def embed(self, images):
        if self.images >= self.most:
            raise KeyboardInterrupt
        return super().embed(images)


def cropping(most=10**9):
    return from_callable(Stopping(most), name="small", preprocessing=CROPS)


@pytest.mark.parametrize(("first", "then"), [("card", "squash"), ("squash", "card")])
def test_a_run_that_goes_on_under_another_rule_is_another_run(first, then, tmp_path):
    pictures(tmp_path / "data", 20, size=24)
    paths = [tmp_path / "data" / f"{index:02}.png" for index in range(20)]
    items = tuple(Triplet(str(n), *(paths[(n + k) % 20] for k in (0, 3, 7)), float(n % 2)) for n in range(20))
    task = two_afc(DataSet("own", tmp_path / "data", items))
    plain = {how: evaluate(cropping(), task, output=tmp_path / how, preprocess=how) for how in (first, then)}
    assert plain[first].items["distance_left"].tolist() != plain[then].items["distance_left"].tolist()
    stopping = subject(cropping(12), name="small")
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopping, task, output=tmp_path / "r", preprocess=first, batch_size=4)
    assert len(list((tmp_path / "r").glob("*.partial"))) == 1
    for how in (then, first):
        report = evaluate(cropping(), task, output=tmp_path / "r", preprocess=how, batch_size=4)
        fresh = evaluate(cropping(), task, output=tmp_path / f"fresh {how}", preprocess=how, batch_size=4)
        assert report.items["distance_left"].tolist() == fresh.items["distance_left"].tolist()
        assert np.allclose(report.items["distance_left"], plain[how].items["distance_left"], atol=1e-5)
    assert len(list((tmp_path / "r").glob("*.json"))) == 2
    # What the task states and what is said are the same run.
    again = evaluate(cropping(), replace(task, preprocess=then), output=tmp_path / "r", batch_size=4)
    assert again.content["preprocessing"]["rule"] == then
    assert len(list((tmp_path / "r").glob("*.json"))) == 2


def test_tables_and_comparisons_tell_the_rules_apart(tmp_path):
    data = read_dataset(bapps(tmp_path / "b"), "2afc")
    _, metric = watched(CROPS)
    reports = [evaluate(metric, two_afc(data), output=tmp_path / "r", preprocess=how) for how in ("squash", "card")]
    (table,) = report_table(reports)
    assert [row[0] for row in table.rows] == ["watched, squash", "watched, card"]
    assert sum("resized whole" in note for note in table.notes) == 1
    (alone,) = report_table(reports[1:])
    assert alone.rows[0][0] == "watched"
    assert not any("resized whole" in note for note in alone.notes)
    assert {(one.a, one.b) for one in compare_reports(reports)} == {("watched, squash", "watched, card")}


def test_reports_of_older_versions_are_of_the_card(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 6)))
    report = evaluate(cropping(), task, output=tmp_path / "r")
    content = json.loads(report.path.read_text())
    del content["preprocessing"]
    report.path.write_text(json.dumps(content))
    old = load_report(report.path)
    assert old.preprocess == "card"
    assert report_table([old])[0].rows[0][0] == "small"


def test_what_is_no_rule_is_refused_before_anything_is_written(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 6)))
    with pytest.raises(InputError, match="preprocess='whole' is none of card, squash"):
        evaluate(cropping(), task, output=tmp_path / "r", preprocess="whole")
    assert not (tmp_path / "r").exists()


def test_in_the_terminal(tmp_path, run):
    folder = bapps(tmp_path / "b", 2)
    rules = {}
    for words in ((), ("--preprocess", "card"), ("--preprocess", "squash")):
        code, out, err = run("evaluate", "2afc", "--data", folder, "-m", "l2", *words, "-o", tmp_path / "r", "--json")
        assert code == 0, err
        (report,) = json.loads(out)
        rules[words] = report["preprocessing"]["rule"]
    assert list(rules.values()) == ["squash", "card", "squash"]
    assert len(list((tmp_path / "r").glob("*.json"))) == 2
    code, _, err = run("evaluate", "2afc", "--data", folder, "-m", "l2", "--preprocess", "crop", "-o", tmp_path / "r")
    assert code == 2
    assert "crop" in err
    code, out, _ = run("evaluate", "ladder", "--data", EXAMPLES, "--photographs", 1, "-m", "l2", "--preprocess",
                       "squash", "-o", tmp_path / "r")  # fmt: skip
    assert code == 0
    assert "resized whole" in out.replace("\n", " ")
