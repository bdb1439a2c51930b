"""`robustsim invert`: files and their names, what is there already, what was killed, and what is refused."""

import json
import os
import shutil
import signal

import pytest
from PIL import Image

from robustsim import RobustSim, explain
from robustsim.cli import output
from robustsim.errors import ModelNotFoundError
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
    return sorted(path.name for path in folder.iterdir() if path.name != ".invert.lock")


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
    # A GIF cannot be added: the picture would be made once more.
    before = files(out)
    code, _, said = run("invert", cats[0], "-m", "one", "--gif", *common)
    assert code == 1
    assert "without its GIF: choose another folder" in said
    assert files(out) == before


def test_a_picture_does_not_depend_on_what_is_made_beside_it(run, small, cats, tmp_path):
    words = ("invert", "-m", "one", "--steps", 8, "-o")
    assert run(*words, tmp_path / "alone", cats[0])[0] == 0
    assert run(*words, tmp_path / "alone", cats[0], "--seeds", 3)[0] == 0
    assert run(*words, tmp_path / "beside", *cats, "-m", "three", "--seeds", 3, "--gif")[0] == 0
    for seed in range(3):
        name = f"cat.one.{seed}.png"
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "beside" / name).read_bytes()


def test_the_sheet_shows_all_that_is_there(run, small, cats, tmp_path):
    out = tmp_path / "out"
    words = ("invert", cats[0], "--steps", 2, "-o", out)
    assert run(*words, "-m", "one", "-m", "three", "--seeds", 2)[0] == 0
    sheet = (out / "cat.sheet.png").read_bytes()
    assert run(*words, "-m", "one")[0] == 0
    assert (out / "cat.sheet.png").read_bytes() == sheet
    with Image.open(out / "cat.sheet.png") as image:
        before = image.size
    assert run(*words, "-m", "fourteen")[0] == 0
    with Image.open(out / "cat.sheet.png") as image:
        assert image.width >= before[0]
        assert image.height == before[1] * 3 // 2


def test_a_run_that_made_nothing_claims_nothing(run, cats, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def some(name, device, *, text=False):
        if name == "typo":
            raise ModelNotFoundError("no such model")
        return loader(name, device)

    monkeypatch.setattr(output, "load_metric", some)
    code, _, said = run("invert", cats[0], "-m", "one", "-m", "typo", "--steps", 3, "-o", out)
    assert code == 1
    assert "no such model" in said
    assert not out.exists()
    # Nor does one that ended in its first search.
    monkeypatch.setattr(explain, "invert", None)
    with pytest.raises(TypeError):
        run("invert", cats[0], "-m", "one", "--steps", 3, "-o", out)
    assert files(out) == []
    monkeypatch.undo()
    monkeypatch.setattr(output, "load_metric", loader)
    assert run("invert", cats[0], "-m", "one", "--steps", 4, "-o", out)[0] == 0
    # A record without pictures is as none.
    record = json.loads((out / "cat.json").read_text())
    for path in out.glob("cat.*"):
        path.unlink()
    (out / "cat.json").write_text(json.dumps({**record, "inversions": []}, indent=2))
    assert run("invert", cats[0], "-m", "one", "--steps", 5, "-o", out)[0] == 0
    assert json.loads((out / "cat.json").read_text())["steps"] == 5


def test_other_parameters_are_refused(run, small, cats, tmp_path, monkeypatch):
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
        assert "hoose another folder with -o" in said
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
    assert run(*words, "--steps", 4, "--restart")[0] == 2  # there is no such option: nothing is deleted


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


def test_pictures_in_the_way_stay(run, small, cats, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "cat.one.0.png").write_bytes(b"mine")
    words = ("invert", cats[0], "--steps", 2, "-o", out)
    assert run(*words, "-m", "one")[0] == 0
    assert (out / "cat.one.0.png").read_bytes() == b"mine"
    (out / "cat.one.0.png").unlink()
    assert run(*words, "-m", "one")[0] == 0
    assert files(out) == ["cat-2.json", "cat-2.one.0.png", "cat-2.sheet.png"]  # the name is kept
    for name in ("cat-2.one.1.gif", "cat-2.three.0.png"):
        (out / name).write_bytes(b"mine")
        before = files(out)
        code, _, said = run(*words, *(("-m", "one", "--seeds", 2) if "gif" in name else ("-m", "three")))
        assert code == 1
        assert name in said
        assert "not made by this command" in said
        assert files(out) == before
        assert (out / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["cat.one.0.png", "cat.one.0.gif", "cat.sheet.png", "cat.json"])
@pytest.mark.parametrize("way", ["other name", "linked folder", "link"])
def test_what_is_read_is_never_written_over(run, small, cats, tmp_path, name, way):
    """Under whatever name it is read."""
    out = tmp_path / "out"
    assert run("invert", cats[0], "-m", "one", "--steps", 2, "--gif", "-o", out)[0] == 0
    shutil.copy(cats[1], out / name)
    if name != "cat.json":
        (out / "cat.json").unlink()
    (tmp_path / "linked").symlink_to(out)
    (tmp_path / "link.png").symlink_to(out / name)
    source = {
        "other name": tmp_path / "a" / ".." / "out" / name,
        "linked folder": tmp_path / "linked" / name,
        "link": tmp_path / "link.png",
    }[way]
    assert run("invert", cats[0], source, "-m", "one", "--seeds", 2, "--steps", 2, "--gif", "-o", out)[0] in (0, 1)
    assert (out / name).read_bytes() == cats[1].read_bytes()


@pytest.mark.parametrize("name", ["cat.one.0.png", "cat.one.0.gif", "cat.sheet.png"])
def test_what_is_ours_and_read_is_refused(run, small, cats, tmp_path, name):
    out = tmp_path / "out"
    assert run("invert", cats[0], "-m", "one", "--steps", 2, "--gif", "-o", out)[0] == 0
    (tmp_path / "linked").symlink_to(out)
    before = {one: (out / one).read_bytes() for one in files(out)}
    source = tmp_path / "linked" / name
    code, _, said = run("invert", cats[0], source, "-m", "one", "--seeds", 2, "--steps", 2, "--gif", "-o", out)
    assert code == 1
    assert "would be overwritten" in said
    assert {one: (out / one).read_bytes() for one in files(out)} == before


def test_what_is_damaged_is_named(run, small, cats, tmp_path):
    out = tmp_path / "out"
    words = ("invert", cats[0], "-m", "one", "--steps", 2, "-o", out)
    assert run(*words)[0] == 0
    whole = (out / "cat.one.0.png").read_bytes()
    (out / "cat.one.0.png").write_bytes(whole[:100])
    code, _, said = run(*words)
    assert code == 1
    assert "cat.one.0.png' cannot be read" in said
    (out / "cat.one.0.png").unlink()
    assert run(*words)[0] == 0
    assert (out / "cat.one.0.png").read_bytes() == whole
    text = (out / "cat.json").read_text()
    record = json.loads(text)
    elsewhere = [{**record["inversions"][0], "file": "../a/cat.png"}]
    for damaged in (
        text[:100],
        json.dumps({key: value for key, value in record.items() if key != "inversions"}),
        json.dumps({**record, "inversions": [{"model": "one"}]}),
        json.dumps({**record, "inversions": elsewhere}),
    ):
        (out / "cat.json").write_text(damaged)
        code, _, said = run(*words)
        assert code == 1
        assert "cat.json' is damaged" in said
        assert (out / "cat.json").read_text() == damaged


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
        if (out / entry["file"]).exists()
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
    monkeypatch.setattr(output, "load_metric", loader)
    file = tmp_path / "file"
    file.touch()
    for where in (file, file / "below"):
        code, _, said = run("invert", cats[0], "-o", where)
        assert code == 1
        assert "cannot write" in said
    assert run("invert", tmp_path / "none.png", "-m", "one", "-o", out)[0] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(run, small, cats, tmp_path):
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
