"""Many sets in one run, questions made of ratings under attack, and the table over sets."""

import csv
import json
import re
from dataclasses import replace
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest

from robustsim.data import rating_triplets, read_jnd, read_odd_one_out, read_ratings, read_triplets
from robustsim.errors import InputError
from robustsim.evaluation import (
    AttackPlan,
    compare_reports,
    evaluate,
    just_noticeable,
    load_report,
    odd_one_out,
    over_sets,
    quality,
    statistics,
    two_afc,
)
from robustsim.evaluation.reports.blocks import Block, Column, mean_ranks
from robustsim.evaluation.subjects import subject
from tests.judges import pairs, pictures, small, threes, triplets

pytestmark = pytest.mark.usefixtures("one_thread", "few_draws")

SMALL = "tests.judges:small"
ATTACK = ("--attack", "pgd", "--eps", "16/255", "--steps", 3)


@pytest.fixture(scope="module")
def few_draws():
    """The curves that are fitted for each draw take most of the time, and no test here looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "STATISTIC_DRAWS", 40)
        yield


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def ratings(folder, count=7, seed=0):
    """Every pair of a few pictures once."""
    generator = np.random.default_rng(seed)
    pictures(folder, count, seed=seed)
    rows = [(f"{a:02}.png", f"{b:02}.png", generator.integers(1, 9)) for a, b in combinations(range(count), 2)]
    return table(folder / "ratings.csv", ("reference", "image", "mos"), rows)


def same_or_not(folder, images=8):
    pictures(folder, images)
    rows = [("00.png", f"{index:02}.png", index % 2) for index in range(1, images)]
    return table(folder / "jnd.csv", ("a", "b", "same"), rows)


@pytest.fixture
def data(tmp_path):
    """Sets of three kinds, as words of a command."""
    return {
        "rocks": ratings(tmp_path / "rocks"),
        "letters": threes(tmp_path / "letters"),
        "material": triplets(tmp_path / "material", 12),
    }


def words(data):
    return [word for name, path in data.items() for word in ("--data", f"{name}={path}")]


def told(err):
    return " ".join(err.replace("│", " ").split())


# -- ratings under attack


def test_quality_with_a_margin_asks_questions_too(run, data, tmp_path):
    common = ("-m", SMALL, "-o", tmp_path / "r", "--json")
    code, out, err = run(
        "evaluate", "quality", "--data", data["rocks"], "--margin", 2, *ATTACK, "--attacked", 9, *common
    )
    assert code == 0, err
    correlations, questions = json.loads(out)
    assert (correlations["task"], correlations["attack"], correlations["data"]["items"]) == ("quality", None, 21)
    assert (questions["task"], questions["data"]["margin"]) == ("2afc", 2.0)
    made = rating_triplets(read_ratings(data["rocks"]), 2)
    assert questions["data"]["items"] == len(made) > 9
    assert questions["results"]["robust"][0]["n"] == questions["attacked"] == 9
    # The same questions alone, and the same ratings alone: nothing is done again.
    code, out, _ = run("evaluate", "2afc", "--data", data["rocks"], "--margin", 2, *ATTACK, "--attacked", 9, *common)
    assert json.loads(out) == [questions]
    code, out, _ = run("evaluate", "quality", "--data", data["rocks"], *common)
    assert json.loads(out) == [correlations]
    code, out, _ = run("evaluate", "2afc", "--data", data["rocks"], "--margin", 2, "--items", 5, *common)
    (few,) = json.loads(out)
    loaded = load_report(few["report"])
    assert loaded.items["id"].tolist() == [item.id for item in made.sample(5, seed=0)]


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("quality", (*ATTACK,), "--margin makes questions of them, which have"),
        ("sets", (*ATTACK,), "--margin makes questions of them, which have"),
        ("2afc", (), "holds ratings: say by how much they must differ"),
        ("2afc", ("--margin", 9), "no two ratings of one reference differ by 9 or more"),
        ("odd-one-out", (), "holds ratings (quality), nothing for the task 'odd-one-out'"),
        ("quality", ("--margin", 1, *ATTACK, "--perturb", "odd"), "none of reference, left, right, all"),
    ],
)
def test_ratings_that_are_asked_wrongly_are_refused(run, data, tmp_path, kind, more, message):
    code, _, err = run("evaluate", kind, "--data", data["rocks"], "-m", SMALL, "-o", tmp_path / "r", *more)
    assert code
    assert message in told(err)
    assert not (tmp_path / "r").exists()


def test_a_margin_without_ratings_is_refused(run, data, tmp_path):
    code, _, err = run("evaluate", "2afc", "--data", data["material"], "--margin", 1, "-o", tmp_path / "r")
    assert code == 2
    assert "no set holds ratings" in told(err)


# -- several sets


def test_sets_are_judged_one_after_the_other(run, data, tmp_path, monkeypatch):
    from robustsim.cli import judged

    loaded, load = [], judged.load_judges
    monkeypatch.setattr(judged, "load_judges", lambda models, device: loaded.append(models) or load(models, device))
    other = triplets(tmp_path / "other", 9, seed=3)
    out = tmp_path / "r"
    code, text, err = run(
        "evaluate", "2afc", *words({"one": data["material"], "two": other, "rocks": data["rocks"]}), "--margin", 3,
        "-m", SMALL, "-m", "l2", "-o", out,
    )  # fmt: skip
    assert code == 0, err
    assert "one, 2afc: small (1 of 6)" in err
    assert loaded == [[SMALL, "l2"]]
    titles = [line for line in text.splitlines() if line.startswith("2afc, ")]
    assert [title.partition(":")[0] for title in titles] == ["2afc, one", "2afc, two", "2afc, rocks"]
    # Each as it is judged by itself.
    code, alone, _ = run(
        "evaluate", "2afc", "--data", f"one={data['material']}", "-m", SMALL, "-o", tmp_path / "a", "--json"
    )
    (alone,) = json.loads(alone)
    (path,) = out.glob("2afc-one-small-*.json")
    assert load_report(path).results == alone["results"]
    assert path.name == alone["report"].rpartition("/")[2]
    code, text, err = run(
        "evaluate", "odd-one-out", *words({"a": data["letters"], "b": threes(tmp_path / "b", 9, seed=2)}),
        "--scoring", "share", "-m", SMALL, "-o", out, "--json",
    )  # fmt: skip
    assert [(one["data"]["name"], one["data"]["scoring"]) for one in json.loads(text)] == [
        ("a", "share"),
        ("b", "share"),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{material}", "b={material}"], "is one of several: write NAME="),
        (["a={material}", "a={letters}"], "'a' names two sets"),
        (["={material}"], "write NAME=PATH"),
        (["a="], "write NAME=PATH"),
        (["a={material}", "b={material}"], "has two names"),
        (["a={material}", "b={material.parent}"], "has two names"),  # which holds nothing else
        (["a=gone.csv"], "'gone.csv' is no file and no folder"),
        (["a={material}", "b={letters}"], "nothing for the task '2afc'"),
    ],
)
def test_sets_that_are_named_wrongly_are_refused(run, data, tmp_path, given, message):
    options = [word for one in given for word in ("--data", one.format(**data))]
    code, _, err = run("evaluate", "2afc", *options, "-m", SMALL, "-o", tmp_path / "r")
    assert code
    assert message in told(err)
    assert not (tmp_path / "r").exists()


def test_a_path_may_hold_the_sign_of_a_name(run, data, tmp_path, monkeypatch):
    path = data["material"].with_name("seed=1.csv")
    data["material"].rename(path)
    monkeypatch.chdir(path.parent)
    for given, name in (("seed=1.csv", "material/seed=1"), (path, "material/seed=1"), (f"own={path}", "own")):
        code, out, err = run("evaluate", "2afc", "--data", given, "-m", SMALL, "-o", tmp_path / "r", "--json")
        assert code == 0, err
        assert json.loads(out)[0]["data"]["name"] == name


def test_options_go_to_the_sets_that_take_them(run, data, tmp_path):
    common = ("-m", SMALL, "-o", tmp_path / "r", "--json")
    code, out, err = run("evaluate", "sets", *words(data), "--scoring", "share", *common)
    assert code == 0, err
    scoring = {one["data"]["name"]: one["data"]["scoring"] for one in json.loads(out)["reports"]}
    assert scoring == {"rocks": "majority", "letters": "share", "material": "share"}
    code, _, err = run("evaluate", "sets", *words(data), "--split", "val", *common)
    assert code == 1
    assert "takes no option split" in err


def test_what_is_skipped_is_told_set_by_set(run, data, tmp_path):
    (data["letters"].parent / "03.png").write_bytes(b"")
    (data["material"].parent / "04.png").write_bytes(b"")
    command = ("evaluate", "sets", *words(data), "-m", SMALL, "-m", "l2", "-o", tmp_path / "r")
    code, out, err = run(*command)
    assert code == 0
    assert "letters: " in err
    assert "material: " in err
    assert "of 15 items were skipped" in err
    assert "of 12 items were skipped" in err
    assert "small, letters, odd-one-out %:" in told(out)
    code, _, err = run(*command, "--strict")
    assert code == 1
    assert "of 12 items were skipped" in err  # the last set is told, too


# -- sets of several kinds


def test_kinds_are_found_and_one_table_is_the_end(run, data, tmp_path):
    data["same"] = same_or_not(tmp_path / "same")
    command = (
        "evaluate", "sets", *words(data), "--margin", 2, *ATTACK, "--attacked", 8, "-m", SMALL, "-m", "l2",
        "-o", tmp_path / "r",
    )  # fmt: skip
    code, out, err = run(*command, "--json")
    assert code == 0, err
    assert "same: jnd has no decisions that an attack could turn" in err
    found = json.loads(out)
    asked = [(one["data"]["name"], one["task"], one["metric"]["name"]) for one in found["reports"]]
    of = [("rocks", "quality"), ("rocks", "2afc"), ("letters", "odd-one-out"), ("material", "2afc"), ("same", "jnd")]
    assert asked == [(*one, metric) for one in of for metric in ("small", "l2")]
    clean, attacked = found["over_sets"]["blocks"]
    assert [(one["name"], one["counted"]) for one in clean["columns"]] == [
        ("rocks, Spearman x 100", False),
        ("rocks, 2AFC %", True),
        ("letters, odd-one-out %", True),
        ("material, 2AFC %", True),
        ("same, average precision x 100", True),
    ]
    assert attacked["measure"] == "linf 16/255"
    assert [one["set"] for one in attacked["columns"]] == ["rocks", "letters", "material"]
    by_name = {(one["data"]["name"], one["task"], one["metric"]["name"]): one["results"] for one in found["reports"]}
    row = clean["rows"][1]
    assert row["metric"] == "l2"
    assert row["figures"][0]["value"] == by_name["rocks", "quality", "l2"]["spearman"]["value"]
    assert row["figures"][2] == by_name["letters", "odd-one-out", "l2"]["accuracy"]
    assert attacked["rows"][0]["figures"][0] == by_name["rocks", "2afc", "small"]["robust"][0]["accuracy"]
    # The command again, for people: nothing is done again, and the table is that of the reports.
    code, out, _ = run(*command)
    assert "Differences of means over sets" in out
    reports = sorted((tmp_path / "r").glob("*.json"))
    assert len(reports) == 10
    code, again, _ = run("evaluate", "table", "--over-sets", *reports, "--json")
    rows = {row["metric"]: row["mean_rank"] for row in json.loads(again)["blocks"][0]["rows"]}
    assert rows == {row["metric"]: row["mean_rank"] for row in clean["rows"]}
    for style, sign in (("terminal", "mean rank"), ("markdown", "| metric | "), ("latex", r"\toprule")):
        code, out, _ = run("evaluate", "table", "--over-sets", *reports, "--format", style, "--no-intervals")
        assert code == 0
        assert sign in out
    code, out, _ = run("evaluate", "table", *reports, "--json")
    assert {one["title"].partition(":")[0] for one in json.loads(out)} >= {"2afc, rocks", "quality, rocks"}
    for wrong in (("--groups",), ("--json", "--format", "latex"), ("--json", "--no-intervals")):
        assert run("evaluate", "table", "--over-sets", *wrong, *reports)[0] == 2


def test_of_several_processes_one_tells_what_is_not_attacked(monkeypatch, tmp_path):
    from robustsim.cli import judging, output

    told = []
    monkeypatch.setattr(output, "note", told.append)
    monkeypatch.setattr(judging.judged, "load_judges", lambda models, device: [])
    task, plan = just_noticeable(read_jnd(same_or_not(tmp_path / "same"))), AttackPlan(attacks="pgd", eps=("8/255",))
    for main in (True, False):
        workers = SimpleNamespace(is_main=main, device="cpu")
        monkeypatch.setattr("robustsim.evaluation.running.workers.Workers", lambda workers=workers: workers)
        assert judging.judge([task], plan, judging.Run()) == []
    (line,) = told
    assert line.startswith("same/jnd: jnd has no decisions")


def test_an_interrupted_run_over_sets_ends_with_the_same_reports(run, data, tmp_path, monkeypatch):
    from robustsim.evaluation import run as running

    command = ["evaluate", "sets", *words(data), "--margin", 2, *ATTACK, "-m", SMALL, "--json", "-o"]
    code, whole, _ = run(*command, tmp_path / "whole")
    assert code == 0
    written, write = [], running.write_report

    def stop_at_the_third(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[0])
        return write(*arguments)

    monkeypatch.setattr(running, "write_report", stop_at_the_third)
    run(*command, tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("*.json"))) == 2
    (journal,) = (tmp_path / "cut").glob("odd-one-out-letters-*.partial/journal-0.jsonl")
    kept = journal.read_bytes()
    journal.write_bytes(kept[: len(kept) * 2 // 3])
    written.clear()
    monkeypatch.setattr(running, "write_report", lambda *arguments: written.append(arguments[0]) or write(*arguments))
    code, again, _ = run(*command, tmp_path / "cut")
    assert code == 0
    assert [path.name.rpartition("-")[0] for path in written] == ["odd-one-out-letters-small", "2afc-material-small"]
    one, other = (json.loads(text) for text in (whole, again))
    assert one["over_sets"] == other["over_sets"]
    for report in (*one["reports"], *other["reports"]):
        report.pop("times")
        report.pop("report")
    assert one == other


# -- the table over sets


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few_draws):
    """Two metrics on four sets, of which the first two were attacked, and a third metric on the last three."""
    root = tmp_path_factory.mktemp("sets")
    plan = AttackPlan(attacks="pgd", eps=("8/255",), steps=2)
    metrics = {"one": small(), "two": small(seed=5), "three": pairs()}
    metrics = {name: subject(metric, name=name) for name, metric in metrics.items()}
    tasks = [
        (two_afc(read_triplets(triplets(root / "a", 40))), plan, "one two"),
        (odd_one_out(read_odd_one_out(threes(root / "b", 30))), plan, "one two three"),
        (quality(read_ratings(ratings(root / "c"))), None, "one two three"),
        (just_noticeable(read_jnd(same_or_not(root / "d"))), None, "one two three"),
    ]
    return [
        evaluate(metrics[name], task, output=root / "r", attack=attack)
        for task, attack, names in tasks
        for name in names.split()
    ]


def test_what_is_missing_is_shown_and_counts_for_nobody(runs):
    clean, attacked = over_sets(runs).blocks
    assert clean.metrics == ("one", "two", "three")
    assert [column.set for column in clean.columns] == ["a/triplets", "b/odd", "c/ratings", "d/jnd"]
    assert clean.counted == (1, 2, 3)
    shown = clean.table(interval=False)
    assert shown.header[1:] == (
        "a/triplets, 2AFC %", "b/odd, odd-one-out %", "c/ratings, Spearman x 100", "d/jnd, average precision x 100",
        "mean", "mean rank",
    )  # fmt: skip
    assert shown.rows[2][1] == "-"
    three = [clean.figures[2][place]["value"] for place in (1, 2, 3)]
    assert shown.rows[2][-2] == f"{100 * np.mean(three):.1f}"
    notes = " ".join(shown.notes)
    assert "over 3 of 4 columns: b/odd, odd-one-out %; c/ratings" in notes
    assert "not every metric has a figure: a/triplets, 2AFC %." in notes
    assert "scores of several kinds" in notes
    assert attacked.counted == (1,)
    assert attacked.metrics == ("one", "two", "three")
    # A metric that was never attacked is no row of what the attack left.
    some = [report for report in runs if not (report.metric == "three" and report.task == "odd-one-out")]
    clean, attacked = over_sets(some).blocks
    assert (clean.counted, attacked.metrics, attacked.counted) == ((2, 3), ("one", "two"), (0, 1))
    with_none = over_sets([runs[0], runs[3]])
    assert (with_none.blocks[0].counted, with_none.comparisons) == ((), ())
    assert with_none.blocks[0].table().rows[0][-2:] == ("-", "-")
    assert "no set that every metric has" in " ".join(with_none.blocks[0].table().notes)
    assert json.dumps(with_none.to_dict(), allow_nan=False)


def ranks_by_hand(column):
    """From 1 for the best; those that are equal get the mean of the places that they take together."""
    places = {}
    for place, value in enumerate(sorted(column, reverse=True), 1):
        places.setdefault(value, []).append(place)
    return [sum(places[value]) / len(places[value]) for value in column]


def test_mean_ranks_are_those_by_hand():
    values = np.random.default_rng(0).integers(0, 4, (6, 9)) / 3
    by_hand = np.mean([ranks_by_hand(column) for column in values.T.tolist()], 0)
    assert mean_ranks(values).tolist() == pytest.approx(by_hand.tolist())
    assert mean_ranks([[0.5, 0.1], [0.5, 0.3], [0.2, 0.2]]).tolist() == [(1.5 + 3) / 2, (1.5 + 1) / 2, (3 + 2) / 2]
    figure = {"value": 0.5, "low": None, "high": None, "n": 3}
    column = Column("x", "x", "2afc", "x", 3)
    block = Block("clean", ("a", "b"), (column, column), ((figure, {**figure, "value": 0.6}), (figure, None)))
    assert (block.counted, block.mean_ranks, block.means) == ((0,), [1.5, 1.5], [0.5, 0.5])


def test_over_one_set_the_test_is_that_of_two_reports(runs):
    (found, attacked) = over_sets(runs[:2]).comparisons
    alone, broken = compare_reports(runs[:2])
    for one, other in ((found, alone), (attacked, broken)):
        assert (one.a, one.b, one.p, one.p_adjusted) == (other.a, other.b, other.p, other.p_adjusted)
        assert one.difference.value == pytest.approx(other.difference.value)
        assert one.difference.low == pytest.approx(other.difference.low, abs=0.06)  # of 40 items: 0.025 each
        assert one.difference.high == pytest.approx(other.difference.high, abs=0.06)
    assert over_sets(runs[:1]).comparisons == ()
    # A correlation, too, whose p is drawn.
    correlated = [report for report in runs if report.task == "quality"][:2]
    (found,) = over_sets(correlated).comparisons
    assert found == replace(compare_reports(correlated)[0], measure="clean", p_adjusted=found.p_adjusted)


def test_the_interval_is_the_paired_bootstrap_within_each_set(runs, monkeypatch):
    """As the docstring says it, drawn once more by hand with other random numbers."""
    monkeypatch.setattr(statistics, "STATISTIC_DRAWS", 1000)
    both = [report for report in runs if report.metric != "three" and report.task != "jnd"]
    found = next(one for one in over_sets(both).comparisons if one.measure == "clean")

    def score(task, items, rows):
        if task == "quality":
            return statistics.spearman(items["distance"][rows], items["answer"][rows])
        return items["score"][rows].mean()

    generator, gaps, draws = np.random.default_rng(99), [], []
    for one, other in zip(both[::2], both[1::2], strict=True):
        task, a, b = one.task, one.items, other.items
        assert (other.task, other.metric) == (task, "two")
        gaps.append(score(task, a, slice(None)) - score(task, b, slice(None)))
        names = np.unique(a["cluster"].astype(str))
        members = [np.flatnonzero(a["cluster"] == name) for name in names]
        assert len(names) >= 5
        drawn = [
            np.concatenate([members[n] for n in generator.integers(0, len(names), len(names))]) for _ in range(1000)
        ]
        draws.append([score(task, a, rows) - score(task, b, rows) for rows in drawn])
    assert found.difference.value == pytest.approx(np.mean(gaps))
    assert found.difference.n == 40 + 30 + 21
    draws = np.nanmean(draws, 0)
    low, high = np.quantile(draws, (0.025, 0.975))
    assert found.difference.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.difference.high == pytest.approx(high, abs=0.15 * (high - low))
    # With a correlation among the scores p is the bootstrap's: twice the share of draws beyond 0.
    assert found.p == pytest.approx(2 * min((draws <= 0).mean(), (draws >= 0).mean()), abs=0.08)


def by_enumeration(gaps):
    """The permutation test over every way to exchange the metrics in clusters, not over some."""
    signs = np.array(list(product((1, -1), repeat=len(gaps))))
    return (np.abs(signs @ gaps) >= abs(np.sum(gaps)) - 1e-9).mean()


def test_p_of_shares_is_by_exchange_in_the_clusters_of_every_set(tmp_path):
    """Each set weighs the same however many questions it has, and only items count that both have."""
    sizes, metrics = (5, 25), [subject(small(), name="one"), subject(small(seed=5), name="two")]
    plan = AttackPlan(attacks="pgd", eps=("8/255",), steps=2, attacked=12)
    reports = []
    for place, count in enumerate(sizes):
        data = read_triplets(triplets(tmp_path / str(place), count, images=7, seed=place))
        reports += [evaluate(metric, two_afc(data), output=tmp_path / "r", attack=plan) for metric in metrics]
    # A large difference in the small set: it would be nothing if questions weighed the same.
    reports[0].items["score"][:], reports[1].items["score"][:] = 1, 0
    clean, attacked = over_sets(reports).comparisons
    for found, column in ((clean, "score"), (attacked, "holds 8/255")):
        gaps, means, alike = [], [], []
        for a, b in ((one.items, other.items) for one, other in (reports[:2], reports[2:])):
            rows = np.ones(len(a["id"]), dtype=bool) if column == "score" else a["attacked"].astype(bool)
            scores = [np.array([float(one or 0) for one in items[column][rows]]) for items in (a, b)]
            gap, names = scores[0] - scores[1], a["cluster"][rows]
            gaps += [gap[names == name].sum() / len(gap) / len(sizes) for name in dict.fromkeys(names)]
            alike += [gap[names == name].sum() for name in dict.fromkeys(names)]
            means.append(gap.mean())
        assert found.difference.value == pytest.approx(np.mean(means))
        assert found.difference.n == (sum(sizes) if column == "score" else 5 + 12)
        assert found.p == pytest.approx(by_enumeration(np.array(gaps)), abs=0.02)
        assert column != "score" or abs(found.p - by_enumeration(np.array(alike))) > 0.2


def test_items_that_one_metric_lacks_count_for_neither(runs):
    """In whichever report they are missing."""
    one, two = runs[:2]
    error = np.array([None] * 35 + ["gone"] * 5, dtype=object)
    lacking = []
    for report in (one, two):
        lacking.append(replace(report))
        lacking[-1].__dict__["items"] = {**report.items, "error": error}
    found = [over_sets(pair).comparisons[0] for pair in ([one, lacking[1]], [lacking[0], two], lacking)]
    assert found[0].difference.n == 35
    assert found[0] == found[1] == found[2]


def test_sets_are_drawn_independently(runs, monkeypatch):
    """Two sets that differ in nothing but their names: the interval is that of twice as many clusters."""
    a, b = runs[:2]
    content = {**a.content, "data": {**a.content["data"], "items_sha256": "f" * 64}}
    twin = [
        replace(one, path=one.path.with_name(f"twin-{one.path.name}"), content={**one.content, "data": content["data"]})
        for one in (a, b)
    ]
    for made, one in zip(twin, (a, b), strict=True):
        made.__dict__["items"] = one.items
    alone, both = (over_sets(reports).comparisons[0].difference for reports in ([a, b], [a, b, *twin]))
    assert both.value == pytest.approx(alone.value)
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2**0.5, rel=0.1)


def test_where_nothing_can_be_resampled_nothing_is_said(runs):
    few = [report for report in runs if report.task == "jnd"]  # pairs of one reference
    for one in over_sets(few).comparisons:
        assert one.p == 1
        assert one.to_dict()["difference"]["low"] is None
    cells = over_sets(few).tables()[-1].rows[0]
    assert re.fullmatch(r"[+-]\d+\.\d", cells[5]), cells


def test_holm_is_for_all_measures_together(runs):
    found = over_sets(runs).comparisons
    assert [one.measure for one in found] == ["clean"] * 3 + ["linf 8/255"] * 3
    ordered = sorted(found, key=lambda one: one.p)
    assert ordered[0].p_adjusted == pytest.approx(min(1, 6 * ordered[0].p))
    assert all(one.p <= one.p_adjusted <= 1 for one in found)


def test_columns_of_one_name_are_told_apart(runs, tmp_path):
    data = read_triplets(triplets(tmp_path / "a", 12))
    first = evaluate(small(), two_afc(data), output=tmp_path / "r", attack=AttackPlan(attacks="noise", eps="8/255"))
    other = evaluate(
        small(), two_afc(data), output=tmp_path / "r", attack=AttackPlan(attacks="pgd", eps="8/255", steps=1)
    )
    squashed = evaluate(small(), two_afc(data), output=tmp_path / "r", preprocess="squash")
    clean, attacked = over_sets([first, other, squashed]).blocks
    assert [column.name for column in clean.columns] == ["a/triplets, 2AFC % (card)", "a/triplets, 2AFC % (squash)"]
    assert clean.counted == (0,)  # the same judgements once
    assert [column.name for column in attacked.columns] == [
        "a/triplets, 2AFC % (noise)",
        "a/triplets, 2AFC % (pgd, 1 steps)",
    ]
    rated = read_ratings(ratings(tmp_path / "c"))
    made = [evaluate(small(), two_afc(rating_triplets(rated, m)), output=tmp_path / "r") for m in (1, 2)]
    correlated = evaluate(small(), quality(rated), output=tmp_path / "r")
    (block,) = over_sets([correlated, *made]).blocks
    assert [column.name for column in block.columns][1:] == [
        "c/ratings, 2AFC % (margin 1)",
        "c/ratings, 2AFC % (margin 2)",
    ]
    assert block.counted == (1,)
    assert "the same judgements are counted already: c/ratings, Spearman" in " ".join(block.table().notes)


def test_what_is_not_defined_is_shown_as_missing(runs, tmp_path):
    pictures(tmp_path / "e", 6)
    rows = [("00.png", f"{index:02}.png", 3) for index in range(1, 6)]
    constant = quality(read_ratings(table(tmp_path / "e" / "even.csv", ("reference", "image", "mos"), rows)))
    metrics = [subject(small(), name="one"), subject(small(seed=5), name="two")]
    undefined = [evaluate(metric, constant, output=tmp_path / "r") for metric in metrics]
    clean, _ = over_sets([*undefined, *runs[:2]]).blocks
    assert [column.set for column in clean.columns] == ["e/even", "a/triplets"]
    assert clean.counted == (1,)
    shown = clean.table()
    assert [row[1] for row in shown.rows] == ["-", "-"]
    assert "not every metric has a figure: e/even, Spearman x 100." in " ".join(shown.notes)
    # A metric without any figure is named, and the others count.
    clean, _ = over_sets([undefined[0], runs[1]]).blocks
    assert (clean.metrics, clean.counted) == (("two",), (1,))
    assert "Without any figure, and left out: one." in clean.notes
    (clean,) = over_sets(undefined).blocks
    assert (clean.metrics, clean.counted, clean.means) == (("one", "two"), (), [None, None])
    assert json.dumps(over_sets(undefined).to_dict(), allow_nan=False)


def test_columns_are_never_called_alike(tmp_path):
    data = read_triplets(triplets(tmp_path / "a", 12))

    def made(data, **options):
        return evaluate(small(), two_afc(data), output=tmp_path / "r", **options)

    first, few, squashed = made(data), made(data.sample(6)), made(data, preprocess="squash")
    pictures(tmp_path / "a", 10, size=40, seed=9)  # under the old names
    for reports in ([first, made(data)], [first, few, squashed], [first, few, squashed, made(data)]):
        names = [column.name for column in over_sets(reports).blocks[0].columns]
        assert len(set(names)) == len(reports), names


def test_reports_that_make_no_table_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="at least one report"):
        over_sets([])
    with pytest.raises(InputError, match="is on inversion: a table over sets is of 2afc, odd-one-out, jnd, quality"):
        over_sets([replace(runs[0], content={**runs[0].content, "task": "inversion"})])
    results = {"accuracy": {**runs[0].results["accuracy"], "value": 0.123}}
    unlike = replace(runs[0], path=tmp_path / "other.json", content={**runs[0].content, "results": results})
    with pytest.raises(InputError, match=r"give one unlike figures for the same \(clean\): pass one of them"):
        over_sets([runs[0], unlike])
    assert over_sets([runs[0], runs[0], runs[1]]).blocks == over_sets(runs[:2]).blocks
