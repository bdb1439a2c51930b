"""`robustsim detect` and `robustsim filter`: decisions, exit codes, and what becomes of files."""

import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from robustsim import RobustSim
from robustsim.errors import DataError, InputError, OutputError
from robustsim.search import Detector, Index, apply_decisions, judge_folders, list_kept, open_banks
from robustsim.search.duplicates import moving
from tests import trainings
from tests.conftest import EXAMPLES

pytest.importorskip("lance")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small():
    return RobustSim(trainings.encoder())


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """Two pictures, and a bank of each."""
    root = tmp_path_factory.mktemp("banks")
    for name, picture in (("unsafe", "rocket.jpg"), ("safe", "chelsea.png")):
        with Image.open(EXAMPLES / picture) as image:
            image.convert("RGB").resize((60, 40)).save(root / f"{name}.png")
        Index.create(root / f"{name}.index", small).add(root / f"{name}.png")
    return root


@pytest.fixture(autouse=True)
def _ours(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where the lock is
    monkeypatch.setattr(RobustSim, "from_pretrained", lambda name, **options: small)


@pytest.fixture
def banks(made):
    return ["--bank", f"unsafe={made / 'unsafe.index'}", "--bank", f"safe={made / 'safe.index'}"]


def test_the_exit_code_is_the_decision(run, made, banks, tmp_path):
    code, out, err = run("detect", made / "safe.png", *banks)
    assert (code, err) == (0, "")
    assert "passes" in out
    assert "nearest safe" in out
    code, out, _ = run("detect", made / "safe.png", made / "unsafe.png", *banks, "--json")
    safe, unsafe = map(json.loads, out.splitlines())
    assert code == 1
    assert (safe["flagged"], unsafe["flagged"], unsafe["class"]) == (False, True, "unsafe")
    assert unsafe["evidence"]["unsafe"][0]["path"] == str(made / "unsafe.png")
    assert run("detect", made / "unsafe.png", *banks, "--safe", "safe", "--safe", "unsafe", "--within", "1.4")[0] == 0
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, out, err = run("detect", tmp_path / "bad.png", made / "safe.png", *banks, "--json")
    assert code == 2  # nobody may take it for one that passes
    assert ["error" in json.loads(line) for line in out.splitlines()] == [True, False]
    assert "1 of 2 pictures could not be read" in err
    code, _, err = run("detect", made / "safe.png", "--bank", f"unsafe={tmp_path}", "--bank", f"safe={made}")
    assert code == 2
    assert "robustsim: " in err
    assert run("detect", made / "safe.png", *banks[:2])[0] == 2  # what would flag everything


def test_standard_input(run, made, banks, monkeypatch):
    stream = io.BytesIO((made / "unsafe.png").read_bytes())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream, isatty=lambda: False))
    code, out, _ = run("detect", "-", *banks, "--json", "--views", "mirror")
    assert (code, json.loads(out)["picture"]) == (1, "-")


@pytest.mark.parametrize(
    "words",
    [
        ["--within", "0.1", "--false-positives", "0.1"],
        ["--unknown", "perhaps"],
        ["--allow", "nobody=0.1"],
        ["--deny", "unsafe=near"],
        ["--deny", "unsafe=0.3", "--deny", "unsafe=0.01"],
        ["--detector", "nothing"],
        ["--laion-model", "clip-vit-l-14"],
        ["--bank", "unsafe"],
        ["--bank", "unsafe=again"],
    ],
)
def test_wrong_words(run, made, banks, words):
    assert run("detect", made / "safe.png", *banks, *words)[0] == 2


def test_lists_votes_and_detectors(run, made, banks, tmp_path, monkeypatch):
    known = ["--bank", f"known={made / 'unsafe.index'}"]
    code, out, _ = run("detect", made / "unsafe.png", *known, "--deny", "known=0.01", "--json")
    assert (code, json.loads(out)["reasons"]) == (1, [{"kind": "deny", "names": ["known"]}])
    assert run("detect", made / "safe.png", *known, "--deny", "known", "--within", "0.01")[0] == 0
    assert run("detect", made / "unsafe.png", *banks, *known, "--allow", "known=0.01", "--votes", "2")[0] == 0
    assert run("detect", made / "safe.png", *banks, "--within", "0", "--unknown", "pass")[0] == 0
    (tmp_path / "judges.py").write_text(
        "def light(pixels):\n    return pixels.mean((1, 2, 3))\n\n\ndef broken(embeddings):\n    raise KeyError('x')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = run("detect", made / "safe.png", *banks, "--detector", "judges:light=0", "--json")
    assert (code, json.loads(out)["reasons"][0]["names"]) == (1, ["judges:light"])
    code, _, err = run("detect", made / "safe.png", *banks, "--detector", "judges:broken")
    assert code == 2
    assert "the detector 'judges:broken' failed: KeyError" in err
    assert "names no detector" in run("detect", made / "safe.png", *banks, "--detector", ":light")[2]


@pytest.fixture
def photos(made, tmp_path):
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    shutil.copy(made / "safe.png", root / "a.png")
    shutil.copy(made / "unsafe.png", root / "b.png")
    shutil.copy(made / "safe.png", root / "sub" / "c.png")
    (root / "bad.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("x")
    return root


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


ALL = ["a.png", "b.png", "bad.png", "notes.txt", "sub/c.png"]


def test_a_filter_touches_nothing_unless_it_is_told(run, photos, banks, tmp_path):
    out = tmp_path / "decisions.jsonl"
    code, told, err = run("filter", photos, *banks, "-o", out, "--list", tmp_path / "kept.txt", "--json")
    assert code == 0
    found = json.loads(told)
    assert {key: found[key] for key in ("kept", "flagged", "failed", "listed")} == {
        "kept": 2, "flagged": 1, "failed": 1, "listed": 2,
    }  # fmt: skip
    assert found["passed_over"] == {".txt": 1}
    assert "skipped: " in err
    assert names(photos) == ALL
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a.png", "b.png", "bad.png", "sub/c.png"]
    assert [line.get("class", "bad") for line in lines] == ["safe", "unsafe", "bad", "safe"]
    assert lines[0]["evidence"]["safe"][0]["distance"] < 0.001
    assert (tmp_path / "kept.txt").read_text().splitlines() == [str(photos / "a.png"), str(photos / "sub" / "c.png")]
    code, _, err = run("filter", photos, *banks, "-o", out)
    assert code == 1
    assert "is there already" in err
    assert run("filter", photos, *banks, "-o", out, "--overwrite", "--strict")[0] == 1
    # What was looked at is what is acted on.
    assert run("filter", "--decided", "-o", out, "--copy", tmp_path / "copies")[0] == 0
    assert names(tmp_path / "copies") == ["a.png", "sub/c.png"]
    assert names(photos) == ALL
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache", "copies", "decisions.jsonl", "kept.txt", "photos",
    ]  # fmt: skip


def test_what_is_kept_is_moved(run, photos, banks, tmp_path):
    code, _, err = run(
        "filter", photos, *banks, "-o", tmp_path / "d.jsonl", "--keep", "unsafe", "--move", tmp_path / "to"
    )
    assert code == 0
    assert "1 file was moved" in err
    assert names(tmp_path / "to") == ["b.png", "moved.jsonl"]
    assert names(photos) == [name for name in ALL if name != "b.png"]
    assert not (tmp_path / "d.jsonl.partial").exists()


@pytest.mark.parametrize(
    "words",
    [["--move", "a", "--copy", "b"], ["--decided", "--overwrite"], ["--list", "x"]],
    ids=["both", "decided", "none"],
)
def test_wrong_words_of_filter(run, words, tmp_path):
    assert run("filter", "-o", tmp_path / "d.jsonl", *words)[0] == 2


class Killed(BaseException):
    """What nobody catches."""


def detector(made):
    return Detector(open_banks({name: made / f"{name}.index" for name in ("unsafe", "safe")}))


def stops(after):
    done = 0

    def progress(count):
        nonlocal done
        done += count
        if done >= after:
            raise Killed

    return progress


@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_filter_goes_on(made, photos, tmp_path, after):
    whole = judge_folders(detector(made), [photos], tmp_path / "whole.jsonl")
    out = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        judge_folders(detector(made), [photos], out, progress=stops(after))
    assert not out.exists()
    with (tmp_path / "out.jsonl.partial" / "decisions.jsonl").open("a") as file:
        file.write('{"folder": "cut o')
    report = judge_folders(detector(made), [photos], out)
    assert (report.resumed, report.kept, report.flagged, report.failed) == (after, 2, 1, 1)
    assert report.classes == whole.classes
    ours, theirs = (
        [json.loads(one) for one in path.read_text().splitlines()] for path in (out, tmp_path / "whole.jsonl")
    )
    assert [(one["file"], one.get("flagged"), one.get("id")) for one in ours] == [
        (one["file"], one.get("flagged"), one.get("id")) for one in theirs
    ]
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_run_that_was_begun_otherwise_does_not_go_on(made, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        judge_folders(detector(made), [photos], out, progress=stops(1))
    other = Detector(detector(made).banks, views=["mirror"])
    with pytest.raises(OutputError, match="begun with other folders, banks, detectors or another rule"):
        judge_folders(other, [photos], out)
    os.utime(photos / "a.png")
    with pytest.raises(OutputError, match="changed since the interrupted run"):
        judge_folders(detector(made), [photos], out)
    assert judge_folders(detector(made), [photos], out, restart=True).resumed == 0


@pytest.mark.parametrize("step", ["journal", "link", "unlink"])
def test_an_interrupted_move_goes_on_by_the_same_command(run, photos, banks, tmp_path, monkeypatch, step):
    words = ["filter", photos, *banks, "-o", tmp_path / "d.jsonl", "--move", tmp_path / "to"]
    contents = {name: (photos / name).read_bytes() for name in ALL}
    unlink, seen = os.unlink, []

    def second(function):
        def replacement(*words, **options):
            seen.append(1)
            if len(seen) == 2:
                raise Killed
            return function(*words, **options)

        return replacement

    def unlinks(path, **options):
        if photos in Path(path).parents:
            seen.append(1)
            if len(seen) == 2:
                raise Killed
        return unlink(path, **options)

    steps = {
        "journal": (moving.Target, "_write", second(moving.Target._write)),
        "link": (moving, "_remove", second(moving._remove)),
        "unlink": (os, "unlink", unlinks),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*steps[step])
        with pytest.raises(Killed):
            run(*words)
    there = {name: [root / name for root in (photos, tmp_path / "to") if (root / name).exists()] for name in ALL}
    assert all(there.values())
    code, _, err = run(*words)
    assert code == 0
    assert "1 file was moved" in err
    assert "1 had been moved before" in err
    assert names(photos) == ["b.png", "bad.png", "notes.txt"]
    assert names(tmp_path / "to") == ["a.png", "moved.jsonl", "sub/c.png"]
    assert all((tmp_path / "to" / name).read_bytes() == contents[name] for name in ("a.png", "sub/c.png"))
    assert not (tmp_path / "d.jsonl.partial").exists()


def test_what_is_not_what_was_judged_stays(made, photos, tmp_path):
    out = tmp_path / "d.jsonl"
    judge_folders(detector(made), [photos], out)
    shutil.copy(made / "unsafe.png", photos / "a.png")  # in the place of one that was safe
    then = os.stat(photos / "sub" / "c.png")
    (photos / "sub" / "c.png").write_bytes(b"x" * then.st_size)
    os.utime(photos / "sub" / "c.png", ns=(then.st_atime_ns, then.st_mtime_ns))  # nothing but the content tells
    for move in (False, True):
        told = []
        found = apply_decisions(out, tmp_path / "to", move=move, tell=told.append)
        assert (found.done, found.left) == (0, 2)
        assert "has changed" in told[0].left
    assert names(photos) == ALL
    assert [name for name in names(tmp_path / "to") if name != "moved.jsonl"] == []


def test_nothing_is_overwritten(made, photos, tmp_path):
    out, to = tmp_path / "d.jsonl", tmp_path / "to"
    judge_folders(detector(made), [photos], out)
    to.mkdir()
    (to / "a.png").write_bytes(b"another one")
    for move in (False, True):
        found = apply_decisions(out, to, move=move)
        assert found.left >= 1
        assert (to / "a.png").read_bytes() == b"another one"
        assert (photos / "a.png").exists()


def test_places_that_do_not_fit(made, photos, tmp_path):
    judge_folders(detector(made), [photos], tmp_path / "d.jsonl")
    for to in (photos / "to", tmp_path):
        with pytest.raises(InputError, match="lie in one another"):
            apply_decisions(tmp_path / "d.jsonl", to, move=True)
    with pytest.raises(InputError, match="would be judged twice"):
        judge_folders(detector(made), [photos, photos / "sub"], tmp_path / "e.jsonl")
    (tmp_path / "other" / "photos").mkdir(parents=True)
    with pytest.raises(InputError, match="two folders have the name 'photos'"):
        judge_folders(detector(made), [photos, tmp_path / "other" / "photos"], tmp_path / "e.jsonl")
    line = json.loads((tmp_path / "d.jsonl").read_text().splitlines()[0])
    for wrong in ({**line, "file": "../../etc/passwd"}, {**line, "flagged": "no"}, {}):
        (tmp_path / "wrong.jsonl").write_text(json.dumps(wrong) + "\n")
        with pytest.raises(DataError):
            apply_decisions(tmp_path / "wrong.jsonl", tmp_path / "to", move=True)


@pytest.mark.skipif(os.name == "nt", reason="such names are none there")
def test_a_name_adds_no_line_to_the_list(made, photos, tmp_path):
    shutil.copy(made / "safe.png", photos / "x\n.png")
    judge_folders(detector(made), [photos], tmp_path / "d.jsonl")
    assert list_kept(tmp_path / "d.jsonl", tmp_path / "list") == 3
    lines = (tmp_path / "list").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2]) == str(photos / "x\n.png")


def test_several_folders_go_to_places_of_their_own(run, made, banks, photos, tmp_path):
    other = tmp_path / "more"
    other.mkdir()
    shutil.copy(made / "safe.png", other / "a.png")
    assert run("filter", photos, other, *banks, "-o", tmp_path / "d.jsonl", "--copy", tmp_path / "to")[0] == 0
    assert names(tmp_path / "to") == ["more/a.png", "photos/a.png", "photos/sub/c.png"]
    assert run("filter", "--decided", "-o", tmp_path / "d.jsonl", "--copy", tmp_path / "to", "--json")[0] == 0


def test_an_unfinished_run_is_known_by_the_whole_name_of_its_file(run, made, banks, photos, tmp_path, monkeypatch):
    words = ["filter", photos, *banks, "--copy", tmp_path / "to", "-o"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("robustsim.search.detection.apply.copy", lambda *words: stops(0)(1))
        run(*words, tmp_path / "a.jsonl")
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "a.txt")
    assert "is there already" in run(*words, tmp_path / "a.txt")[2]
    # What another rule decided in that file is not acted on, and is no reason to forget the run.
    lines = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(lines.replace('"flagged": true', '"flagged": false'))
    assert "is there already" in run(*words, tmp_path / "a.jsonl")[2]
    assert run("filter", "--decided", "-o", tmp_path / "a.jsonl", "--copy", tmp_path / "other")[0] == 0
    assert (tmp_path / "a.jsonl.partial").exists()
    (tmp_path / "a.jsonl").write_text(lines)
    shutil.copy(made / "unsafe.png", photos / "a.png")
    shutil.copy(made / "safe.png", photos / "new.png")
    code, _, err = run(*words, tmp_path / "a.jsonl")
    assert code == 1
    assert "2 files are new or changed since" in err
    assert names(tmp_path / "to") == ["sub/c.png"]
    assert not (tmp_path / "a.jsonl.partial").exists()


def test_acting_on_decisions_keeps_the_judging_that_goes_on(run, made, banks, photos, tmp_path):
    out = tmp_path / "d.jsonl"
    judge_folders(detector(made), [photos], out)
    with pytest.raises(Killed):
        judge_folders(detector(made), [photos], out, overwrite=True, progress=stops(1))
    assert run("filter", "--decided", "-o", out, "--copy", tmp_path / "to")[0] == 0
    assert (tmp_path / "d.jsonl.partial" / "decisions.jsonl").exists()


def test_a_list_replaces_nothing(run, made, banks, photos, tmp_path):
    out, there = tmp_path / "d.jsonl", tmp_path / "there.txt"
    there.write_text("mine")
    for place, why in ((out, "would replace the decisions"), (there, "is there already")):
        code, _, err = run("filter", photos, *banks, "-o", out, "--list", place)
        assert code != 0
        assert why in err
        assert not out.exists()
    assert there.read_text() == "mine"
    judge_folders(detector(made), [photos], out)
    assert run("filter", "--decided", "-o", out, "--list", there)[0] == 1
    assert run("filter", "--decided", "-o", out, "--list", there, "--overwrite")[0] == 0
    assert there.read_text().splitlines() == [str(photos / "a.png"), str(photos / "sub" / "c.png")]


def test_places_do_not_depend_on_which_folders_have_pictures(made, photos, tmp_path):
    (tmp_path / "none").mkdir()
    judge_folders(detector(made), [photos, tmp_path / "none"], tmp_path / "d.jsonl")
    apply_decisions(tmp_path / "d.jsonl", tmp_path / "to", move=False)
    assert names(tmp_path / "to") == ["photos/a.png", "photos/sub/c.png"]
