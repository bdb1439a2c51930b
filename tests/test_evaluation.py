"""Judging a metric: scores of each task, attacks on its decisions, what it costs, and what reports hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim.baselines import from_callable
from robustsim.data import DataSet, OddOneOut, Pair, Rating, Triplet, read_triplets
from robustsim.errors import ImageError, InputError, MissingDependencyError, ObjectiveError, OutputError
from robustsim.evaluation import (
    AttackPlan,
    compare_reports,
    evaluate,
    just_noticeable,
    load_metric,
    load_report,
    odd_one_out,
    plot_iterations,
    plot_radii,
    quality,
    report_table,
    two_afc,
)
from robustsim.evaluation.subjects import subject
from robustsim.images import Preprocessing
from robustsim.metric import RobustSim
from tests.judges import SIZE, Small, pairs, pictures, small, triplets

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = AttackPlan(eps=("8/255",), steps=5)


def shades(folder, **greys):
    """Plain grey pictures by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, grey in greys.items():
        Image.new("RGB", (SIZE, SIZE), (grey,) * 3).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in greys}


def brightness():
    """The difference of two greys in levels: easy to reckon with."""
    return pairs(lambda a, b: (a * 255 - b * 255)[:, 0, 0, 0].round().abs(), "brightness")


def data(root, *items, **options):
    return DataSet(name="own", root=root, items=items, **options)


# -- scores


def test_forced_choice_scores_right_wrong_and_ties(tmp_path):
    p = shades(tmp_path, a=100, b=110, c=140, d=90)
    found = data(
        tmp_path,
        Triplet("right", p["a"], p["b"], p["c"], 0.0),
        Triplet("wrong", p["a"], p["b"], p["c"], 0.9),
        Triplet("tie", p["a"], p["b"], p["d"], 1.0),
    )
    report = evaluate(brightness(), two_afc(found), output=tmp_path / "r")
    assert report.items["score"].tolist() == [1.0, 0.0, 0.5]
    assert report.results["accuracy"]["value"] == 0.5
    assert report.items["distance_left"].tolist() == [10, 10, 10]
    shared = evaluate(
        brightness(), two_afc(replace(found, scoring="share")), output=tmp_path / "r"
    )  # as BAPPS scores: what share of people gave this answer
    assert shared.items["score"].tolist() == pytest.approx([1.0, 0.1, 0.5])


def test_pictures_of_equal_pixels_tie_wherever_they_are_encoded(tmp_path):
    pictures(tmp_path, 9)
    for name in ("copy", "again"):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "08.png").read_bytes())
    one, copy, again = (tmp_path / f"{name}.png" for name in ("00", "copy", "again"))
    items = [Triplet(str(n), one, tmp_path / f"{n:02}.png", copy, 1.0) for n in range(1, 9)]
    found = data(tmp_path, *items, Triplet("tie", one, copy, again, 1.0), Triplet("self", one, one, copy, 0.0))
    report = evaluate(small(), two_afc(found), output=tmp_path / "r", batch_size=3)
    assert report.items["score"][-2] == 0.5
    assert report.items["distance_left"][-1] == 0


def test_odd_one_out_is_the_one_outside_the_nearest_pair(tmp_path):
    p = shades(tmp_path, a=100, b=104, c=200, d=150)
    found = data(
        tmp_path,
        OddOneOut("right", (p["a"], p["b"], p["c"]), 2),
        OddOneOut("first", (p["c"], p["b"], p["a"]), 0),
        OddOneOut("wrong", (p["a"], p["b"], p["c"]), 1),
        OddOneOut("tie", (p["a"], p["d"], p["c"]), 0),  # 100, 150, 200: the outer two are as odd as each other
    )
    report = evaluate(brightness(), odd_one_out(found), output=tmp_path / "r")
    assert report.items["score"].tolist() == [1, 1, 0, 0.5]


def test_odd_one_out_with_votes_is_scored_as_triplets_are(tmp_path):
    p = shades(tmp_path, a=100, b=104, c=200, d=150)
    found = data(
        tmp_path,
        OddOneOut("most", (p["a"], p["b"], p["c"]), 2, "x", (0.1, 0.2, 0.7)),
        OddOneOut("few", (p["a"], p["b"], p["c"]), 1, "y", (0.0, 0.6, 0.4)),
        OddOneOut("metric ties", (p["a"], p["d"], p["c"]), 0, "y", (0.5, 0.3, 0.2)),
        OddOneOut("people tie", (p["a"], p["b"], p["c"]), 0, "y", (0.4, 0.2, 0.4)),
    )
    plan = replace(QUICK, eps=("64/255",), perturb="odd")
    shared = evaluate(
        brightness(), odd_one_out(replace(found, scoring="share")), output=tmp_path / "r", attack=replace(plan, steps=1)
    )
    assert shared.items["score"].tolist() == pytest.approx([0.7, 0.4, (0.5 + 0.2) / 2, 0.4])
    assert shared.items["attacked"].tolist() == [True, True, True, False]
    assert shared.threats[0]["clean"]["value"] == pytest.approx(1 / 3)  # strictly: a tie is not right
    assert {name: one["n"] for name, one in shared.results["groups"].items()} == {"x": 1, "y": 3}
    majority = evaluate(brightness(), odd_one_out(replace(found, items=found.items[:3])), output=tmp_path / "r")
    assert majority.items["score"].tolist() == [1, 0, 0.5]
    no_votes = data(tmp_path, *(replace(item, shares=None) for item in found.items[:3]), scoring="share")
    assert evaluate(brightness(), odd_one_out(no_votes), output=tmp_path / "r").items["score"].tolist() == [1, 0, 0.5]
    # Other shares are other questions.
    other = replace(found.items[0], shares=(0.2, 0.2, 0.6))
    assert not majority.same_data(
        evaluate(brightness(), odd_one_out(data(tmp_path, other, *found.items[1:3])), output=tmp_path / "r")
    )


def test_just_noticeable_differences_and_quality(tmp_path):
    p = shades(tmp_path, a=100, b=101, c=120, d=180, e=250)
    near_first = [
        Pair(str(i), p["a"], p[name], share) for i, (name, share) in enumerate(zip("bcde", (1, 1, 0, 0), strict=True))
    ]
    report = evaluate(brightness(), just_noticeable(data(tmp_path, *near_first)), output=tmp_path / "r")
    assert report.results["average_precision"]["value"] == 1
    ratings = [Rating(str(i), p["a"], p[name], 5.0 - i, "xy"[i % 2]) for i, name in enumerate("bcde")]
    report = evaluate(brightness(), quality(data(tmp_path, *ratings)), output=tmp_path / "r")
    assert report.results["spearman"]["value"] == report.results["kendall"]["value"] == pytest.approx(1)
    assert report.results["spearman"]["groups"]["x"]["value"] == pytest.approx(1)
    assert json.dumps(report.content, allow_nan=False)
    with pytest.raises(InputError, match="jnd has no decisions"):
        evaluate(brightness(), just_noticeable(data(tmp_path, *near_first)), output=tmp_path / "r", attack=QUICK)


def test_groups_are_told_apart(tmp_path):
    report = evaluate(small(), two_afc(read_triplets(triplets(tmp_path, 30, groups=True))), output=tmp_path / "r")
    scores, groups = report.items["score"], report.items["group"]
    assert report.results["groups"]["a"]["value"] == pytest.approx(scores[groups == "a"].mean())
    means = [one["value"] for one in report.results["groups"].values()]
    assert report.results["mean_of_groups"]["value"] == pytest.approx(np.mean(means))
    (table,) = report_table([report], groups=True)
    assert table.header == ("metric", "clean", "mean of groups", "b", "a")


# -- what it costs


def counted():
    """A metric, known as such already, and the module that counts what it embeds from now on."""
    module = Small()
    metric = subject(from_callable(module, name="small", preprocessing=Preprocessing(size=SIZE)))
    module.images = 0
    return module, metric


def test_each_picture_is_encoded_once(tmp_path):
    module, metric = counted()
    task = two_afc(read_triplets(triplets(tmp_path, 200, images=25)))
    evaluate(metric, task, output=tmp_path / "r", batch_size=8)
    assert module.images == 25


def test_the_material_triplets_take_a_hundred_encodings(shared, tmp_path, monkeypatch):
    metric = RobustSim.from_pretrained("lite-clean", device="cpu")
    seen, embed = [], metric.embed_pixels
    monkeypatch.setattr(metric, "embed_pixels", lambda pixels: seen.append(len(pixels)) or embed(pixels))
    task = two_afc(read_triplets(shared / "material-2afc" / "test.csv"))
    report = evaluate(metric, task, output=tmp_path)
    assert sum(seen) == 100
    assert report.results["accuracy"]["value"] == pytest.approx(0.7955, abs=1e-4)
    assert report.results["accuracy"]["n"] == 1369
    # The metric itself says the same of each.
    items = list(read_triplets(shared / "material-2afc" / "test.csv"))[:40]
    columns = ([str(getattr(item, side)) for item in items] for side in ("reference", "left", "right"))
    choice = metric.two_afc(*columns)
    expected = [float(answer == (item.right_share > 0.5)) for answer, item in zip(choice.tolist(), items, strict=True)]
    assert report.items["score"][:40].tolist() == expected


def test_a_robust_evaluation_costs_little_more_than_its_attacks(tmp_path):
    module, metric = counted()
    task = two_afc(read_triplets(triplets(tmp_path, 60, images=25)))
    report = evaluate(metric, task, output=tmp_path / "r", attack=AttackPlan(eps=("1/255", "2/255"), steps=20))
    queries = sum(sum(q or 0 for q in report.items[f"queries {eps}"]) for eps in ("1/255", "2/255"))
    assert queries <= module.images <= 1.1 * queries


def test_pictures_are_let_go_after_their_last_use(tmp_path):
    from robustsim.evaluation.tasks.pictures import Gallery, Photo

    pictures(tmp_path, 40)
    photos = [Photo(tmp_path / f"{index:02}.png") for index in range(40)]
    questions = [(photos[i], photos[(i + 1) % 40], photos[0]) for i in range(40)]
    gallery = Gallery(subject(small()), questions, range(40), batch_size=4)
    held = []
    for place in range(40):
        gallery.take(place)
        held.append(len(gallery._held))
    assert max(held) <= 6
    assert held[-1] == 0
    assert gallery.encoded == 40


def test_an_interrupted_gallery_gives_the_same_embeddings(tmp_path):
    from robustsim.evaluation.tasks.pictures import Gallery, Photo

    pictures(tmp_path, 20)
    photos = [Photo(tmp_path / f"{index:02}.png") for index in range(20)]
    questions = [(photos[i], photos[(3 * i) % 20], photos[(7 * i) % 20]) for i in range(20)]
    metric = subject(small())
    whole = Gallery(metric, questions, range(20), batch_size=6)
    taken = [[one.code for one in whole.take(place)] for place in range(20)]
    late = Gallery(metric, questions, [13, 14, 19], batch_size=6)
    for place in (13, 14, 19):
        for a, b in zip(late.take(place), taken[place], strict=True):
            assert torch.equal(a.code, b)


# -- attacks


@pytest.mark.parametrize("perturb", ["reference", "left", "right", "all"])
@pytest.mark.parametrize("embeds", [True, False])
def test_attacks_turn_decisions(tmp_path, perturb, embeds):
    task = two_afc(read_triplets(triplets(tmp_path, 24)))
    metric = small() if embeds else pairs()
    plan = replace(QUICK, eps=("0.01/255", "64/255"), perturb=perturb)
    report = evaluate(metric, task, output=tmp_path / "r", attack=plan)
    weak, strong = report.threats
    # A hundredth of a grey level turns next to nothing, a quarter of the range everything that was right.
    assert weak["clean"]["value"] == strong["clean"]["value"] == np.mean(report.items["score"] == 1)
    assert weak["accuracy"]["value"] >= weak["clean"]["value"] - 0.05
    assert strong["accuracy"]["value"] <= 0.2
    assert strong["broken_by"]["apgd"] == round(24 * (strong["clean"]["value"] - strong["accuracy"]["value"]))
    for score, held in zip(report.items["score"], report.items["holds 64/255"], strict=True):
        assert (held is None) == (score != 1)  # what is wrong without attack is not attacked, and counts as lost


def test_a_decision_is_lost_when_any_attack_turns_it(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 24)))
    one = AttackPlan(attacks=("noise",), eps=("96/255",), steps=5)
    both = replace(one, attacks=("noise", "pgd", "square"), queries=20)
    noise, several = (evaluate(small(), task, output=tmp_path / "r", attack=plan).threats[0] for plan in (one, both))
    assert several["accuracy"]["value"] < noise["accuracy"]["value"]
    assert several["broken_by"]["noise"] == noise["broken_by"]["noise"]
    assert several["broken_by"]["pgd"] > 0
    report = evaluate(small(), task, output=tmp_path / "r", attack=both)
    names = set(report.items["broken_by 96/255"].tolist())
    assert {"noise", "pgd"} <= names <= {None, "noise", "pgd", "square"}


@pytest.mark.parametrize("perturb", ["odd", "all"])
def test_odd_one_out_under_attack(tmp_path, perturb):
    pictures(tmp_path, 10)
    generator = np.random.default_rng(0)
    items = []
    for index in range(12):
        chosen = [tmp_path / f"{one:02}.png" for one in generator.choice(10, 3, replace=False)]
        items.append(OddOneOut(str(index), tuple(chosen), index % 3))
    task = odd_one_out(data(tmp_path, *items))
    plan = replace(QUICK, eps=("64/255",), perturb=perturb)
    (threat,) = evaluate(small(), task, output=tmp_path / "r", attack=plan).threats
    assert threat["clean"]["value"] > 0
    assert threat["accuracy"]["value"] < threat["clean"]["value"]


def test_only_some_are_attacked_and_all_are_asked(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 50)))
    report = evaluate(small(), task, output=tmp_path / "r", attack=replace(QUICK, attacked=9))
    assert report.threats[0]["n"] == sum(report.items["attacked"]) == 9
    assert report.results["accuracy"]["n"] == 50
    again = evaluate(small(), task, output=tmp_path / "r", attack=replace(QUICK, attacked=9), seed=1)
    assert again.items["attacked"].tolist() != report.items["attacked"].tolist()
    clean = evaluate(small(), task, output=tmp_path / "r")
    assert clean.items["distance_left"] == pytest.approx(report.items["distance_left"], rel=1e-5)


def test_tied_votes_are_not_attacked(tmp_path):
    p = shades(tmp_path, a=100, b=110, c=140)
    found = data(tmp_path, *(Triplet(str(i), p["a"], p["b"], p["c"], i / 2) for i in range(3)), scoring="share")
    report = evaluate(brightness(), two_afc(found), output=tmp_path / "r", attack=QUICK)
    assert report.items["attacked"].tolist() == [True, False, True]
    assert report.items["score"].tolist() == [1, 0.5, 0]


def test_near_ties_fall(tmp_path):
    """Questions whose answers hardly differ are the easiest to turn: an attack must not lose its gradient there."""
    noise, items = np.random.default_rng(0), []
    for index in range(12):
        reference = noise.integers(80, 180, (SIZE, SIZE, 3))
        away = noise.integers(-30, 31, reference.shape)
        elsewhere = noise.permutation(away.ravel()).reshape(away.shape)  # as far away, to the last digit
        elsewhere[0, 0, 0] += 1 if elsewhere[0, 0, 0] >= 0 else -1  # and now a little farther
        paths = [tmp_path / f"{name}{index}.png" for name in ("reference", "near", "far")]
        for path, pixels in zip(paths, (reference, reference + away, reference + elsewhere), strict=True):
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        items.append(Triplet(str(index), *paths, 0.0))
    plan = replace(QUICK, eps=("4/255",), steps=20)
    for batch_size in (1, 4, 32):
        task = two_afc(data(tmp_path, *items))
        report = evaluate(pairs(), task, output=tmp_path / "r", attack=plan, batch_size=batch_size)
        assert report.threats[0]["clean"]["value"] == 1
        assert report.threats[0]["accuracy"]["value"] == 0


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_the_unit_of_a_metric_does_not_matter(tmp_path, loss):
    """Cross-entropy on distances of a million has no gradient in float32, and on those of a millionth no digits."""
    task = two_afc(read_triplets(triplets(tmp_path, 24)))
    held = []
    for unit in (1e-6, 1.0, 1e6):
        metric = pairs(lambda a, b, unit=unit: unit * (a - b).square().mean((1, 2, 3)), f"unit{unit:g}")
        plan = replace(QUICK, eps=("24/255",), loss=loss)
        held.append(evaluate(metric, task, output=tmp_path / "r", attack=plan).threats[0]["accuracy"]["value"])
    assert held[0] == held[1] == held[2] < np.mean([0.5])


def test_no_gradient_is_told(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 24)))
    steps = pairs(lambda a, b: ((a * 255).round() - (b * 255).round()).square().mean((1, 2, 3)), "steps")
    report = evaluate(steps, task, output=tmp_path / "r", attack=replace(QUICK, eps=("16/255",)))
    (threat,) = report.threats
    assert threat["no_gradient"] == sum(one is True for one in report.items["holds 16/255"]) > 0
    assert "gave the attack no gradient" in " ".join(report_table([report])[0].notes)
    whole = evaluate(small(), task, output=tmp_path / "r", attack=replace(QUICK, eps=("0.1/255",)))
    assert whole.threats[0]["no_gradient"] == 0


def test_the_metric_is_left_as_it_was(tmp_path):
    module = Small().train()
    metric = from_callable(lambda a, b: (module.embed(a) - module.embed(b)).square().sum(1), name="hers",
                           preprocessing=Preprocessing(size=SIZE))  # fmt: skip
    state, random = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    evaluate(metric, two_afc(read_triplets(triplets(tmp_path, 6))), output=tmp_path / "r", attack=QUICK)
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ("apdg",)}, "'apdg' is none of the attacks noise, pgd, apgd"),
        ({"norm": "l3"}, "'l3' is none of the norms"),
        ({"eps": ("4",)}, "did you mean 4/255"),
        ({"eps": ()}, "at least one attack and one radius"),
        ({"eps": ("4/255", "4/255")}, "named twice"),
        ({"eps": ("0.5", 0.5)}, "named twice"),
        ({"loss": "dlr"}, "neither ce nor margin"),
        ({"attacked": 0}, "at least 1"),
    ],
)
def test_plans_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AttackPlan(**options)


def test_radii_are_written_alike():
    assert AttackPlan(norm="l2", eps=("3", 1.0, "2.50")).radii == ("3", "1", "2.5")
    assert AttackPlan(attacks="apgd", eps=4 / 255).radii == (repr(4 / 255),)
    assert AttackPlan(eps="8/255").to_dict()["eps"] == ["8/255"]


def test_what_cannot_be_perturbed_is_refused(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 3)))
    with pytest.raises(InputError, match="'odd' is none of reference, left, right, all"):
        evaluate(small(), task, output=tmp_path / "r", attack=replace(QUICK, perturb="odd"))


# -- reports


def test_a_report_says_what_was_done(tmp_path, metric):
    task = two_afc(read_triplets(triplets(tmp_path, 5)))
    report = evaluate(metric, task, output=tmp_path / "r", seed=3)
    content = json.loads(report.path.read_text())
    assert content["metric"]["card"]["name"] == metric.card.name
    assert len(content["metric"]["weights_sha256"]) == 64
    assert content["data"]["name"].endswith("triplets")
    assert content["data"]["items"] == 5
    assert content["attack"] is None
    assert content["seed"] == 3
    assert {"robustsim", "torch", "python"} <= set(content["versions"])
    assert content["items"]["rows"] == 5
    assert not list((tmp_path / "r").glob("*.partial"))
    loaded = load_report(report.path)
    assert loaded.items["id"].tolist() == [question.id for question in task.questions]
    (tmp_path / "r" / content["items"]["file"]).write_bytes(b"other")
    with pytest.raises(InputError, match="is not the one that"):
        _ = load_report(report.path).items
    (tmp_path / "r" / content["items"]["file"]).unlink()
    assert len(evaluate(metric, task, output=tmp_path / "r", seed=3).items["id"]) == 5  # made again


def test_a_run_that_is_done_is_not_done_again(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 8)))
    first = evaluate(small(), task, output=tmp_path / "r")
    module, again = counted()
    assert evaluate(again, task, output=tmp_path / "r").content == first.content
    assert module.images == 0
    evaluate(again, task, output=tmp_path / "r", restart=True)
    assert module.images > 0
    # Other weights, another seed, other data: another run.
    evaluate(small(seed=1), task, output=tmp_path / "r")
    evaluate(small(), task, output=tmp_path / "r", seed=1)
    swap(tmp_path / "00.png", tmp_path / "01.png")
    evaluate(small(), task, output=tmp_path / "r")
    assert len(list((tmp_path / "r").glob("*.json"))) == 4


def swap(a, b):
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)


def test_what_was_changed_is_asked_anew(tmp_path):
    """Columns the other way round, pictures of the same size, a metric that only acts otherwise: other reports."""
    path = triplets(tmp_path, 40)

    def run(metric):
        report = evaluate(metric, two_afc(read_triplets(path)), output=tmp_path / "r")
        fresh = evaluate(metric, two_afc(read_triplets(path)), output=tmp_path / "fresh", restart=True)
        assert report.results == fresh.results
        return report

    first = run(small())
    path.write_text(path.read_text().replace("reference,left,right", "reference,right,left"))
    turned = run(small())
    assert turned.results["accuracy"]["value"] == pytest.approx(1 - first.results["accuracy"]["value"])
    for sign in (1, -1):
        run(pairs(lambda a, b, sign=sign: sign * (a - b).square().mean((1, 2, 3))))

    class Holder:
        def __init__(self, seed):
            self.network = Small(seed=seed)

        def embed(self, images):
            return self.network.embed(images)

    for seed in (0, 1):
        run(from_callable(Holder(seed), name="holder", preprocessing=Preprocessing(size=SIZE)))
    assert len(list((tmp_path / "r").glob("*.json"))) == 6
    with pytest.raises(InputError, match="not on the same items"):
        compare_reports([first, turned])


def test_the_spelling_of_a_path_does_not_matter(tmp_path, monkeypatch):
    path = triplets(tmp_path / "d", 8)
    monkeypatch.chdir(tmp_path)
    reports = [
        evaluate(small(), two_afc(read_triplets(spelt)), output=tmp_path / "r")
        for spelt in (path, "d/triplets.csv", "d/../d/triplets.csv")
    ]
    assert len({report.path for report in reports}) == 1
    share = evaluate(small(), two_afc(read_triplets(path, scoring="share")), output=tmp_path / "r")
    with pytest.raises(InputError, match="not on the same items"):
        compare_reports([reports[0], share])


def test_a_metric_that_is_not_sure_of_itself_is_refused(tmp_path):
    with pytest.raises(InputError, match="other distances at each call"):
        subject(pairs(lambda a, b: torch.rand(len(a)), "dice"))


def test_unreadable_pictures_are_skipped_and_told(tmp_path):
    path = triplets(tmp_path, 20)
    (tmp_path / "03.png").write_bytes(b"no picture")
    task = two_afc(read_triplets(path))
    report = evaluate(small(), task, output=tmp_path / "r", attack=QUICK)
    hit = [q.id for q in task.questions if any(p.path.name == "03.png" for p in q.pictures)]
    assert [one["id"] for one in report.content["skipped"]] == hit
    assert "03.png" in report.content["skipped"][0]["error"]
    assert report.results["accuracy"]["n"] == 20 - len(hit)
    assert report.threats[0]["n"] == 20 - len(hit)
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="not a single item could be read"):
        evaluate(small(), task, output=tmp_path / "r2")


def test_metrics_that_give_no_numbers_are_told(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 4)))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ObjectiveError, match=f"holes gives {value} for the item 'row 2'"):
            evaluate(pairs(lambda a, b, v=value: torch.full((len(a),), v), "holes"), task, output=tmp_path / "r")
    with pytest.raises(InputError, match="a str is no metric here"):
        evaluate("lpips", task, output=tmp_path / "r")


def test_two_processes_do_not_mix(tmp_path):
    from filelock import FileLock

    task = two_afc(read_triplets(triplets(tmp_path, 4)))
    done = evaluate(small(), task, output=tmp_path / "r")
    done.path.unlink()
    partial = done.path.with_suffix(".partial")
    partial.mkdir()
    with FileLock(partial / "lock-0"), pytest.raises(OutputError, match="another process is at work"):
        evaluate(small(), task, output=tmp_path / "r")
    (partial / "run.json").write_text('{"task": "another"}')
    with pytest.raises(OutputError, match="was begun as another run"):
        evaluate(small(), task, output=tmp_path / "r")
    assert evaluate(small(), task, output=tmp_path / "r", restart=True).content["results"] == done.content["results"]


def test_without_pyarrow_it_is_said_at_the_start(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    task = two_afc(read_triplets(triplets(tmp_path, 4)))
    with pytest.raises(MissingDependencyError, match=r"robustsim\[evaluation\]"):
        evaluate(small(), task, output=tmp_path / "r")
    assert not (tmp_path / "r").exists()


# -- tables, comparisons, plots


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    task = two_afc(read_triplets(triplets(root, 60)))
    plan = AttackPlan(eps=("0.5/255", "32/255"), steps=5)
    metrics = (small(), small(seed=5), pairs())
    names = ("small", "other", "pairs")
    return [
        evaluate(subject(metric, name=name), task, output=root / "r", attack=plan)
        for metric, name in zip(metrics, names, strict=True)
    ]


def test_tables(runs):
    (table,) = report_table(runs)
    assert table.header == ("metric", "clean", "before attack", "linf 0.5/255", "linf 32/255")
    assert [row[0] for row in table.rows] == ["small", "other", "pairs"]
    value = 100 * runs[0].results["accuracy"]["value"]
    assert table.rows[0][1].startswith(f"{value:.1f} [")
    markdown = table.markdown().splitlines()
    assert markdown[2] == "| metric | clean | before attack | linf 0.5/255 | linf 32/255 |"
    assert all(line.count("|") == 6 for line in markdown[2:7])
    latex = table.latex()
    assert latex.count(r"\\") == 4
    assert r"95 \% bootstrap" in latex
    (plain,) = report_table(runs, interval=False)
    assert plain.rows[0][1] == f"{value:.1f}"
    assert len(report_table([*runs, runs[0]])[0].rows) == 3


def test_unlike_runs_are_told_apart(runs, tmp_path):
    """Another attack has columns and lines of its own, another metric of the same name rows and lines."""
    task = two_afc(read_triplets(runs[0].path.parents[1] / "triplets.csv"))
    noise = AttackPlan(attacks="noise", eps=("0.5/255", "32/255"))
    weaker = evaluate(small(), task, output=tmp_path / "r", attack=noise)
    (table,) = report_table([runs[0], weaker])
    (row,) = table.rows
    cells = dict(zip(table.header, row, strict=True))
    for report, name in ((runs[0], "apgd, 5 steps, 60 items"), (weaker, "noise")):
        key = next(key for key in cells if key.startswith("linf 32/255 (") and name.split(",")[0] in key)
        assert cells[key].startswith(f"{100 * report.threats[1]['accuracy']['value']:.1f} ")
    namesake = evaluate(subject(small(seed=9), name="small"), task, output=tmp_path / "r")
    names = [row[0] for row in report_table([runs[0], namesake])[0].rows]
    assert len(set(names)) == 2
    assert all(name.startswith("small (") for name in names)
    drawn = lines(monkeypatch=pytest.MonkeyPatch(), draw=lambda: plot_radii([runs[0], weaker], tmp_path / "x.png"))
    assert len(drawn) == 2


def lines(monkeypatch, draw):
    """What is plotted: {label: (x, y)}."""
    from matplotlib.axes import Axes

    drawn, original = {}, Axes.plot

    def plot(self, x, y, *args, **kwargs):
        drawn[kwargs["label"]] = (list(x), list(y))
        return original(self, x, y, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Axes, "plot", plot)
        draw()
    return drawn


def test_comparisons(runs):
    found = compare_reports(runs)
    assert [(one.measure, one.a, one.b) for one in found[:3]] == [
        ("clean", "small", "other"),
        ("linf 0.5/255", "small", "other"),
        ("linf 32/255", "small", "other"),
    ]
    assert len(found) == 9
    for one in found:
        assert one.difference.value == pytest.approx(one.value_a - one.value_b)
        assert one.difference.low <= one.difference.value <= one.difference.high
        assert 0 < one.p <= one.p_adjusted <= 1
    scores = [report.items["score"] for report in runs]
    assert found[0].difference.value == pytest.approx((scores[0] - scores[1]).mean())
    # Holm: the smallest p of nine counts nine times.
    least = min(found, key=lambda one: one.p)
    assert least.p_adjusted == pytest.approx(min(1, 9 * least.p))
    same = compare_reports([runs[0], runs[0]])
    assert all(one.difference.value == 0 and one.p == 1 for one in same)
    with pytest.raises(InputError, match="at least two"):
        compare_reports(runs[:1])


def test_what_was_asked_other_questions_is_not_compared(runs, tmp_path):
    other = evaluate(small(), two_afc(read_triplets(triplets(tmp_path, 20))), output=tmp_path / "r")
    with pytest.raises(InputError, match="not on the same items"):
        compare_reports([runs[0], other])
    assert len(report_table([runs[0], other])) == 2


def test_correlations_are_compared_by_the_bootstrap(tmp_path, monkeypatch):
    monkeypatch.setattr("robustsim.evaluation.statistics.STATISTIC_DRAWS", 200)
    p = pictures(tmp_path, 30)
    files = sorted(p.glob("*.png"))
    first = np.asarray(Image.open(files[0]), float)
    alike = [tmp_path / f"reference{index}.png" for index in range(6)]
    for path in alike:
        path.write_bytes(files[0].read_bytes())
    near = [-np.abs(np.asarray(Image.open(file), float) - first).mean() for file in files]
    # Six references that look alike, so that there is something to resample by.
    task = quality(data(tmp_path, *(Rating(str(i), alike[i % 6], file, near[i]) for i, file in enumerate(files))))
    good = evaluate(pairs(lambda a, b: (a - b).abs().mean((1, 2, 3)), "good"), task, output=tmp_path / "r")
    blind = evaluate(pairs(lambda a, b: (a - b)[:, 0, 0, 0].abs(), "blind"), task, output=tmp_path / "r")
    found = {one.measure: one for one in compare_reports([good, blind])}
    assert set(found) == {"Spearman", "Pearson after logistic fit", "Kendall"}
    assert found["Spearman"].value_a == pytest.approx(1)
    assert found["Kendall"].difference.low > 0
    assert found["Kendall"].p < 0.02


def test_plots_show_the_figures(runs, tmp_path, monkeypatch):
    for suffix in ("png", "pdf", "svg"):
        path = plot_radii(runs, tmp_path / f"radii.{suffix}")
        assert path.stat().st_size > 2000
    with Image.open(tmp_path / "radii.png") as image:
        assert image.width > 500
    threats = runs[0].threats
    drawn = lines(monkeypatch, lambda: plot_radii(runs, tmp_path / "radii.png"))
    assert drawn["small"][0] == pytest.approx([0, 0.5, 32])
    assert drawn["small"][1] == pytest.approx(
        [100 * threats[0]["clean"]["value"], *(100 * one["accuracy"]["value"] for one in threats)]
    )
    x, y = lines(monkeypatch, lambda: plot_iterations(runs[:1], tmp_path / "iterations.png"))["small, linf 32/255"]
    assert y[0] == pytest.approx(100 * threats[1]["clean"]["value"])
    assert y[-1] == pytest.approx(100 * threats[1]["accuracy"]["value"])
    assert x[-1] <= 6
    assert sorted(y, reverse=True) == y
    with pytest.raises(InputError, match=r"none of \.png"):
        plot_radii(runs, tmp_path / "radii.gif")
    clean = replace(runs[0], content={**runs[0].content, "results": {"accuracy": {}}})
    with pytest.raises(InputError, match="none of these runs has an attack"):
        plot_radii([clean], tmp_path / "radii.png")


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other"}'])
def test_other_files_are_no_reports(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match="is no report"):
        load_report(tmp_path / "x.json")
    with pytest.raises(InputError, match="cannot read the report"):
        load_report(tmp_path / "nothing.json")


# -- metrics by name


def test_metrics_by_name(monkeypatch):
    assert load_metric("l2").name == "l2"
    assert load_metric("lite-clean").about["card"]["name"] == "lite-clean"
    own = load_metric("tests.judges:Small")
    assert own.name == "tests.judges:Small"
    assert own.embed is not None
    with pytest.raises(InputError, match="takes no weights"):
        load_metric("lite-clean", weights="x.pt")
    with pytest.raises(LookupError, match=r"(?s)lite-clean.*baselines: .*lpips-alex"):
        load_metric("lite-claen")
    with pytest.raises(InputError, match="cannot be imported"):
        load_metric("nowhere.at_all:metric")


def test_a_metric_of_ones_own_is_found_where_it_lies(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("def metric(a, b):\n    return (a - b).abs().mean((1, 2, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = load_metric("mine:metric")
    x = torch.rand(2, 3, 8, 8)
    assert found.distance(x, x).tolist() == [0, 0]
    # Changed, it is another metric, whose report is not there yet.
    file.write_text(file.read_text() + "# changed\n")
    assert load_metric("mine:metric").about["source"] != found.about["source"]


# -- odds and ends that would spoil a long run


def test_embeddings_that_would_not_fit_are_made_when_they_are_asked_for(tmp_path, monkeypatch):
    task = two_afc(read_triplets(triplets(tmp_path, 40, images=20)))
    usual = evaluate(small(), task, output=tmp_path / "r", attack=QUICK)
    monkeypatch.setattr("robustsim.evaluation.tasks.pictures.MOST_HELD", 5 * 12 * 4)  # bytes, of five pictures
    module, metric = counted()
    late = evaluate(metric, task, output=tmp_path / "late", attack=QUICK)
    assert module.images > 120
    assert late.items["distance_left"] == pytest.approx(usual.items["distance_left"], rel=1e-5)
    assert late.results["accuracy"] == usual.results["accuracy"]


def test_a_network_behind_a_plain_object_is_frozen_and_in_eval_mode(tmp_path):
    class Holder:
        def __init__(self):
            self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5)).train()

        def embed(self, images):
            return self.network(images)

    def run(name):
        holder = Holder()
        metric = from_callable(holder, name="holder", preprocessing=Preprocessing(size=SIZE))
        report = evaluate(metric, task, output=tmp_path / name, attack=QUICK)
        assert holder.network.training
        return report.content["results"]

    task = two_afc(read_triplets(triplets(tmp_path, 12)))
    assert run("a") == run("b")


def test_names_that_utf8_cannot_hold(tmp_path):
    import os

    pictures(tmp_path, 3)
    try:
        os.rename(tmp_path / "02.png", os.fsencode(tmp_path) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system holds UTF-8 alone")
    from robustsim.evaluation import distortion_ladder

    report = evaluate(pairs(), distortion_ladder(tmp_path, distortions=["blur"]), output=tmp_path / "r")
    assert report.items["id"].tolist() == ["00.png blur", "01.png blur", "\\xff.png blur"]
    long = evaluate(
        subject(pairs(), name="é/" * 150), distortion_ladder(tmp_path, distortions=["blur"]), output=tmp_path / "r"
    )
    assert long.path.exists()


def test_curves_leave_out_what_could_not_be_read(tmp_path, monkeypatch):
    path = triplets(tmp_path, 40)
    (tmp_path / "03.png").write_bytes(b"no picture")
    report = evaluate(small(), two_afc(read_triplets(path)), output=tmp_path / "r", attack=QUICK)
    _, y = lines(monkeypatch, lambda: plot_iterations([report], tmp_path / "x.svg"))["small, linf 8/255"]
    assert y[0] == pytest.approx(100 * report.threats[0]["clean"]["value"])
    assert y[-1] == pytest.approx(100 * report.threats[0]["accuracy"]["value"])


def test_what_a_killed_run_left_after_its_report_is_removed(tmp_path):
    task = two_afc(read_triplets(triplets(tmp_path, 4)))
    report = evaluate(small(), task, output=tmp_path / "r")
    left = report.path.with_suffix(".partial")
    left.mkdir()
    (left / "run.json").write_text("{}")
    evaluate(small(), task, output=tmp_path / "r")
    assert not left.exists()
