"""`robustsim invert`: files and their names, what is there already, what was killed, and what is refused."""

import json
import os
import shutil
import signal

import pytest
from PIL import Image

from robustsim import RobustSim
from robustsim.cli import output
from tests import trainings
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = trainings.SIDE


def loader(name, device, *, text=False):
    """Small models, told apart by their names: `one`, `two`."""
    encoder = trainings.encoder(seed=len(name))
    object.__setattr__(encoder.card, "name", name)
    return RobustSim(encoder)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(output, "load_metric", loader)


@pytest.fixture
def cats(tmp_path):
    """Two pictures of one name."""
    found = []
    for folder, name in (("a", "chelsea.png"), ("b", "coffee.png")):
        (tmp_path / folder).mkdir()
        found.append(tmp_path / folder / "cat.png")
        shutil.copy(EXAMPLES / name, found[-1])
    return found


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_pictures_sheets_and_json(run, small, cats, tmp_path):
    out = tmp_path / "out"
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    words = ("invert", *cats, bad, "-m", "one", "-m", "three", "--seeds", 2, "--steps", 6, "--gif", "-o", out)
    code, shown, told = run(*words)
    assert code == 0
    assert "bad.jpg" in told
    assert "1 file could not be read and was skipped" in told
    assert "cat-2.sheet.png" in shown
    kinds = [f"{model}.{seed}.{kind}" for model in ("one", "three") for seed in (0, 1) for kind in ("gif", "png")]
    assert files(out) == sorted(f"{name}.{kind}" for name in ("cat", "cat-2") for kind in (*kinds, "json", "sheet.png"))
    with Image.open(out / "cat.one.0.png") as image:
        assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
    with Image.open(out / "cat.one.0.gif") as moving:
        assert moving.n_frames > 2
        moving.seek(moving.n_frames - 1)
        assert moving.info["duration"] >= 2000
    with Image.open(out / "cat.sheet.png") as sheet:
        assert sheet.height > 2 * SIDE

    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    code, shown, _ = run(*words, "--json")  # all of it is there
    assert code == 0
    found = json.loads(shown)
    assert (found["method"], found["steps"], found["models"]) == ("apgd", 6, ["one", "three"])
    assert [entry["file"] for entry in found["failed"]] == [str(bad)]
    assert len(found["inversions"]) == 8
    assert {entry["image"] for entry in found["inversions"]} == set(map(str, cats))
    assert all(-1 <= entry["similarity"] <= 1 for entry in found["inversions"])
    assert {name: (out / name).stat().st_mtime_ns for name in files(out)} == before
    # What the JSON says is what the picture has, but for 8 bits.
    metric = loader("one", None)
    first = found["inversions"][0]
    assert float(metric.similarity(first["file"], str(cats[0]))) == pytest.approx(first["similarity"], abs=0.02)
    assert run(*words, "--strict")[0] == 1


def test_more_seeds_models_and_pictures_are_added(run, small, cats, tmp_path):
    out = tmp_path / "out"
    common = ("--steps", 3, "-o", out)
    assert run("invert", cats[0], "-m", "one", *common)[0] == 0
    times = [(out / name).stat().st_mtime_ns for name in ("cat.one.0.png", "cat.sheet.png")]
    # The other cat comes first now; the names stay.
    assert run("invert", cats[1], cats[0], "-m", "one", "-m", "three", "--seeds", 2, *common)[0] == 0
    assert json.loads((out / "cat.json").read_text())["image"] == str(cats[0])
    assert json.loads((out / "cat-2.json").read_text())["image"] == str(cats[1])
    assert (out / "cat.one.0.png").stat().st_mtime_ns == times[0]
    assert (out / "cat.sheet.png").stat().st_mtime_ns != times[1]
    assert len([name for name in files(out) if name.endswith("png")]) == 2 * (2 * 2 + 1)
    # A GIF that is wanted now is made, by the same search.
    pixels = (out / "cat.one.0.png").read_bytes()
    assert run("invert", cats[0], "-m", "one", "--gif", *common)[0] == 0
    assert (out / "cat.one.0.gif").exists()
    assert (out / "cat.one.0.png").read_bytes() == pixels


def test_other_parameters_are_refused_or_made_anew(run, small, cats, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = ("invert", cats[0], "-m", "one", "-o", out)
    assert run(*words, "--steps", 3, "--seeds", 2)[0] == 0
    kept = (out / "cat.one.0.png").read_bytes()
    for changed, told in (
        (("--steps", 4), "steps was 3"),
        (("--steps", 3, "--method", "multiview"), "method was 'apgd'"),
    ):
        code, _, said = run(*words, *changed)
        assert code == 1
        assert told in said
        assert "--restart" in said
    monkeypatch.setattr(output, "load_metric", lambda name, device, text=False: loader(name + "xx", device))
    # Another model is another file; another one of the same name is refused.
    assert run(*words, "--steps", 3)[0] == 0
    other = loader("three", None)
    object.__setattr__(other.card, "name", "one")
    monkeypatch.setattr(output, "load_metric", lambda name, device, text=False: other)
    code, _, said = run(*words, "--steps", 3)
    assert code == 1
    assert "other weights of 'one'" in said
    monkeypatch.setattr(output, "load_metric", loader)
    shutil.copy(EXAMPLES / "rocket.jpg", cats[0])
    code, _, said = run(*words, "--steps", 3)
    assert code == 1
    assert "its file was another one" in said
    assert (out / "cat.one.0.png").read_bytes() == kept
    assert run(*words, "--steps", 4, "--restart")[0] == 0
    assert (out / "cat.one.0.png").read_bytes() != kept
    assert not (out / "cat.one.1.png").exists()  # of the earlier ones none is left


def test_other_peoples_files_stay(run, small, cats, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "cat.json").write_text('{"mine": 1}')
    (out / "cat-2.sheet.png").write_bytes(b"mine")
    assert run("invert", cats[0], "-m", "one", "--steps", 2, "-o", out)[0] == 0
    assert (out / "cat.json").read_text() == '{"mine": 1}'
    assert (out / "cat-2.sheet.png").read_bytes() == b"mine"
    assert (out / "cat-3.one.0.png").exists()
    # Nor is what is read written over.
    source = out / "cat-3.one.0.png"
    before = source.read_bytes()
    code, _, said = run("invert", cats[0], source, "-m", "one", "--steps", 2, "-o", out)
    assert code == 1
    assert "would be overwritten" in said
    assert source.read_bytes() == before


_JOB = """
import os, signal
import robustsim.cli
from robustsim.cli import output
from tests import test_cli_invert
output.load_metric = test_cli_invert.loader
calls, replace = [], os.replace
def dying(*paths):
    calls.append(paths)
    if len(calls) == {moment}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = dying
import sys
sys.argv = {words!r}
sys.stdout = sys.stderr
robustsim.cli.main()
"""


@pytest.mark.parametrize("moment", [2, 3, 4, 6, 9])
def test_what_was_killed_continues(run, small, cats, tmp_path, server, moment):
    """Killed before the n-th file appears: the same command makes the rest, and the same pictures."""
    words = ["invert", *map(str, cats), "-m", "one", "-m", "three", "--seeds", "2", "--steps", "3", "--gif", "-o"]
    assert run(*words, tmp_path / "whole")[0] == 0
    out = tmp_path / "out"
    assert server.run(_JOB.format(moment=moment, words=["robustsim", *words, str(out)])) == -signal.SIGKILL
    done = {
        name: (out / name).stat().st_mtime_ns
        for record in out.glob("*.json")
        for entry in json.loads(record.read_text())["inversions"]
        for name in (entry["file"], entry["gif"])
    }
    assert run(*words, out)[0] == 0
    ours = [name for name in files(out) if not name.endswith(".part")]
    assert ours == files(tmp_path / "whole")
    for name in ours:
        if not name.endswith(".json"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert all((out / name).stat().st_mtime_ns == time for name, time in done.items())


def test_texts(run, published, tmp_path):
    folder = published["vit"][0]
    words = ("invert", "--text", "a cat", "--text", "Ein Hund?", "-m", folder, "--steps", 2, "-o", tmp_path / "out")
    code, shown, _ = run(*words, "--json")
    assert code == 0
    found = json.loads(shown)["inversions"]
    assert [entry["text"] for entry in found] == ["a cat", "Ein Hund?"]
    names = [entry["file"].rsplit("/", 1)[1] for entry in found]
    assert [name.split(".")[0] for name in names] == ["a-cat", "Ein-Hund"]
    assert (tmp_path / "out" / "a-cat.sheet.png").exists()


def test_what_cannot_be_done_is_said_at_once(run, cats, tmp_path, published, monkeypatch):
    out = tmp_path / "out"
    code, _, said = run("invert", cats[0], "--text", "a cat", "-o", out)
    assert code == 1
    assert "'lite' has no text tower" in said
    code, _, said = run("invert", "--text", "a cat", "-m", published["dino"][0], "-o", out)
    assert code == 1
    assert "has no text tower" in said
    assert run("invert", "-o", out)[0] == 2
    assert run("invert", "--text", " ", "-m", "x", "-o", out)[0] == 2
    monkeypatch.setattr(output, "load_metric", None)  # no model is loaded for these
    file = tmp_path / "file"
    file.touch()
    for where in (file, file / "below"):
        code, _, said = run("invert", cats[0], "-o", where)
        assert code == 1
        assert "cannot write" in said
    monkeypatch.setattr(output, "load_metric", loader)
    assert run("invert", tmp_path / "none.png", "-m", "one", "-o", out)[0] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(run, cats, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "load_metric", None)
    (tmp_path / "out").mkdir(mode=0o500)
    code, _, said = run("invert", cats[0], "-o", tmp_path / "out")
    assert code == 1
    assert "cannot write" in said


def test_two_runs_at_once(run, small, cats, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".invert.lock"):
        code, _, said = run("invert", cats[0], "-m", "one", "-o", tmp_path / "out")
    assert code == 1
    assert "another run is writing" in said
