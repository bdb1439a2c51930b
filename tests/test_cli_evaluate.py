"""``robustsim evaluate``."""

import csv
import json
import sys

import pytest

from tests.conftest import EXAMPLES
from tests.judges import pictures, triplets

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = "tests.judges:small"


@pytest.fixture
def data(tmp_path):
    return triplets(tmp_path / "data", 12)


def test_several_metrics_make_one_table(run, data, tmp_path):
    code, out, err = run("evaluate", "2afc", "--data", data, "-m", SMALL, "-m", "l2", "-o", tmp_path / "r")
    assert code == 0
    assert "small (1 of 2)" in err
    assert "clean" in out
    rows = [line.split() for line in out.splitlines() if line.startswith((" small", " l2"))]
    assert [row[0] for row in rows] == ["small", "l2"]
    reports = sorted((tmp_path / "r").glob("*.json"))
    assert len(reports) == 2
    assert all(str(path) in out.replace("\n", "") for path in reports)


def test_attacks_radii_and_json(run, data, tmp_path):
    words = ("--attack", "pgd", "--attack", "noise", "--eps", "1/255", "--eps", "32/255", "--steps", 4, "--attacked", 8)
    code, out, _ = run("evaluate", "2afc", "--data", data, "-m", SMALL, *words, "-o", tmp_path / "r", "--json")
    assert code == 0
    (report,) = json.loads(out)
    assert [one["eps"] for one in report["results"]["robust"]] == ["1/255", "32/255"]
    assert report["attack"]["attacks"] == ["pgd", "noise"]
    assert report["attack"]["perturb"] == "reference"
    assert report["results"]["robust"][0]["n"] == 8
    code, again, _ = run("evaluate", "2afc", "--data", data, "-m", SMALL, *words, "-o", tmp_path / "r", "--json")
    assert again == out


def test_the_other_tasks(run, tmp_path):
    folder = pictures(tmp_path / "p", 12)
    names = [f"{index:02}.png" for index in range(12)]
    with (folder / "jnd.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "same"), *((names[0], name, i % 2) for i, name in enumerate(names[1:]))])
    with (folder / "mos.csv").open("w", newline="") as file:
        rows = [(names[0], name, i * i % 7) for i, name in enumerate(names[1:])]
        csv.writer(file).writerows([("reference", "image", "mos"), *rows])
    things = tmp_path / "things"
    pictures(things, 6)
    (things / "images.txt").write_text("".join(f"{index:02}.png\n" for index in range(6)))
    (things / "validationset.txt").write_text("0 1 2\n3 4 5\n0 2 4\n")
    out = tmp_path / "r"
    for kind, data, label in (
        ("jnd", folder / "jnd.csv", "average precision"),
        ("quality", folder / "mos.csv", "Spearman"),
        ("odd-one-out", things, "clean"),
    ):
        code, text, err = run("evaluate", kind, "--data", data, "-m", SMALL, "-o", out)
        assert code == 0, err
        assert label in text
    code, text, _ = run(
        "evaluate", "ladder", "--data", EXAMPLES, "--photographs", 1, "-m", SMALL, "-o", out, "--groups"
    )
    assert code == 0
    assert "pixelation" in text


def test_table_compare_and_plot(run, data, tmp_path):
    words = ("--attack", "pgd", "--eps", "8/255", "--steps", 3)
    run("evaluate", "2afc", "--data", data, "-m", SMALL, "-m", "l2", *words, "-o", tmp_path / "r")
    reports = sorted((tmp_path / "r").glob("*.json"))
    code, out, _ = run("evaluate", "table", *reports, "--format", "markdown", "--no-intervals")
    assert code == 0
    assert "| metric | clean | before attack | linf 8/255 |" in out
    code, out, _ = run("evaluate", "table", *reports, "--format", "latex")
    assert r"\toprule" in out
    code, out, _ = run("evaluate", "compare", *reports)
    assert code == 0
    assert "p (Holm)" in out
    code, out, _ = run("evaluate", "compare", *reports, "--json")
    assert [one["measure"] for one in json.loads(out)] == ["clean", "linf 8/255"]
    for against in ("radius", "iterations"):
        picture = tmp_path / f"{against}.svg"
        code, _, _ = run("evaluate", "plot", *reports, "-o", picture, "--against", against)
        assert code == 0
        assert "<svg" in picture.read_text()


def test_bad_pictures_are_named(run, data, tmp_path):
    (data.parent / "04.png").write_bytes(b"")
    words = ("evaluate", "2afc", "--data", data, "-m", SMALL, "-o", tmp_path / "r")
    code, _, err = run(*words)
    assert code == 0
    assert "04.png" in err
    assert "items were skipped" in err
    assert run(*words, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--eps", "4/255"), 2, "there is no --attack"),
        (("--attack", "apdg"), 2, "none of the attacks"),
        (("--attack", "pgd", "--norm", "l1"), 2, "no usual radius"),
        (("--attack", "pgd", "--eps", "9"), 2, "did you mean 9/255"),
        (("--attack", "pgd", "--perturb", "odd"), 1, "none of reference, left, right, all"),
        (("-m", "lpips-alec"), 1, "lpips-alex"),
        (("-m", "lipsim"), 1, "SaraGhazanfari/lipsim"),
        (("-m", "l2=weights.pt"), 1, "has no weights"),
        (("--split", "val"), 1, "takes no option split"),
    ],
)
def test_mistakes_are_told(run, data, tmp_path, words, code, message):
    found, _, err = run("evaluate", "2afc", "--data", data, "-o", tmp_path / "r", *words)
    assert found == code
    assert message in " ".join(err.replace("│", " ").split())


def test_a_folder_may_have_any_name(run, data, tmp_path):
    folder = tmp_path / "C:models=mine"
    code, _, err = run("evaluate", "2afc", "--data", data, "-o", tmp_path / "r", "-m", "lite-clean=x.pt")
    assert code == 1
    assert "takes no weights" in err
    folder.mkdir()
    code, _, err = run("evaluate", "2afc", "--data", data, "-o", tmp_path / "r", "-m", folder)
    assert code == 1
    assert "config.json" in err  # it was looked into


def test_what_a_metric_prints_does_not_spoil_the_json(run, data, tmp_path, monkeypatch):
    text = "print('hello')\ndef metric(a, b):\n    print('again')\n    return (a - b).abs().mean((1, 2, 3))\n"
    (tmp_path / "talks.py").write_text(text)
    monkeypatch.chdir(tmp_path)  # where a module of one's own is looked for
    monkeypatch.setattr("sys.path", [*sys.path])
    code, out, err = run("evaluate", "2afc", "--data", data, "-o", tmp_path / "r", "-m", "talks:metric", "--json")
    assert code == 0
    assert json.loads(out)[0]["metric"]["name"] == "talks:metric"
    assert "hello" in err
