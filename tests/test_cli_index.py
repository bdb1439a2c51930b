"""`robustsim index`, `search`, `forget` and `check`."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageOps

from robustsim import RobustSim
from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.search import Index
from tests.conftest import EXAMPLES

pytest.importorskip("lance")
pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("astronaut.png", "chelsea.png", "coffee.png")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for name in NAMES:
        shutil.copy(EXAMPLES / name, root / name)
    (root / "bad.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture
def index(run, folder, tmp_path):
    code, out, err = run("index", tmp_path / "index", folder, "--label", "mine")
    assert (code, out) == (0, "")
    assert "3 added, 0 replaced, 0 unchanged, 0 removed" in err
    assert "skipped" in err
    assert "bad.jpg" in err
    assert "1 file could not be read and was skipped" in err
    return tmp_path / "index"


def test_the_same_command_brings_it_up_to_date(run, folder, index, monkeypatch):
    monkeypatch.setattr("robustsim.metric.RobustSim.from_pretrained", None)  # nothing to embed, no model
    code, out, _ = run("index", index, folder, "--json")
    found = json.loads(out)
    assert code == 0
    assert {name: found[name] for name in ("added", "unchanged", "failed")} == {"added": 0, "unchanged": 3, "failed": 1}
    assert found["folders"][0]["folder"] == str(folder)
    (folder / "coffee.png").unlink()
    assert "0 added, 0 replaced, 2 unchanged, 1 removed" in run("index", index, folder, "--sync")[2]
    assert run("index", index, folder, "--strict")[0] == 1


def test_two_first_runs_at_once(run, folder, tmp_path, monkeypatch):
    """The one that finds the index made when it has loaded its model goes on with that one."""
    create = Index.create

    def second(path, *words, **options):
        create(path, *words, **options)  # by another process
        return create(path, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "create", second)
        code, _, err = run("index", tmp_path / "index", folder)
        assert code == 0
        assert "3 added" in err
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").touch()
    code, _, err = run("index", tmp_path / "used", folder)
    assert code == 1
    assert "is in use" in err


def test_an_emptied_folder(run, folder, index):
    for path in folder.iterdir():
        path.unlink()
    code, _, err = run("index", index, folder, "--sync")
    assert code == 1
    assert "all 3 rows would be removed" in err
    assert run("index", index, folder, "--remove-all")[0] == 2
    code, _, err = run("index", index, folder, "--sync", "--remove-all")
    assert code == 0
    assert "3 removed" in err


def test_the_nearest(run, folder, index):
    code, out, _ = run("search", index, folder / "chelsea.png", "-k", "2")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if str(folder) in line]
    assert 0 <= float(lines[0][1]) < 0.0005  # rows are kept in float16
    assert [os.path.basename(line[2]) for line in lines][:1] == ["chelsea.png"]
    assert len(lines) == 2
    assert lines[0][3] == "mine"
    found = json.loads(run("search", index, folder / "chelsea.png", folder / "coffee.png", "--json")[1])
    assert found["complete"] is True
    assert [query["query"] for query in found["queries"]] == [str(folder / "chelsea.png"), str(folder / "coffee.png")]
    assert [len(query["hits"]) for query in found["queries"]] == [3, 3]
    assert set(found["queries"][0]["hits"][0]) == {"path", "id", "distance", "label", "found_by"}


def test_the_exit_code_is_the_decision(run, folder, index, tmp_path):
    assert run("search", index, folder / "coffee.png", "--within", "0.44")[0] == 1
    code, out, err = run("search", index, EXAMPLES / "rocket.jpg", "--within", "0.44")
    assert (code, out) == (0, "")
    assert "nothing found for" in err
    assert run("search", index, folder / "coffee.png", "--within", "0.44", "--label", "other")[0] == 0
    code, out, err = run("search", index, folder / "bad.jpg", "--within", "0.44")
    assert (code, out) == (2, "")
    assert "bad.jpg" in err
    assert run("search", tmp_path / "none", folder / "coffee.png", "--within", "0.44")[0] == 2
    assert run("search", index, folder / "coffee.png", "--within", "3")[0] == 2
    assert run("search", tmp_path / "none", folder / "coffee.png")[0] == 1
    assert run("search", index, folder / "coffee.png", "--within", "0.44", "-k", "3")[0] == 2


def test_another_model_is_refused(run, folder, index):
    assert run("index", index, folder, "--model", DEFAULT_MODEL)[0] == 0
    code, _, err = run("index", index, folder, "--model", f"{DEFAULT_MODEL}-clean")
    assert code == 1
    assert f"was made by '{DEFAULT_MODEL}'" in err


def test_what_is_no_decision(run, folder, index, monkeypatch):
    """Neither a match nor none, whatever went wrong."""
    query = "search", index, folder / "coffee.png", "--within", "0.44"
    code, _, err = run(*query, "--label", "\udcff")
    assert code == 2
    assert "the label is no text" in err
    for error in (ValueError("strange"), KeyboardInterrupt(), SystemExit(1), MemoryError()):
        with monkeypatch.context() as patch:
            patch.setattr("robustsim.search.Index.within", lambda *words, error=error, **options: raises(error))
            code, _, err = run(*query)
        assert code == 2
        assert type(error).__name__ in err
    code, out, err = run(*query, "--label", "mien", "--tenant", "t")
    assert (code, out) == (0, "")
    assert "no picture of the index has the label 'mien' and the tenant 't'" in err
    assert "no picture" not in run(*query)[2]


def raises(error):
    raise error


@pytest.mark.skipif(not hasattr(os, "fork"), reason="pipes and devices are others here")
@pytest.mark.parametrize("kind", ["full", "pipe", "closed"])
def test_an_answer_that_cannot_be_printed(folder, index, kind):
    """By the command itself, as Python writes once more at its end."""
    words = ["--json"] if kind == "full" else []
    call = [sys.executable, "-m", "robustsim", "search", index, folder / "coffee.png", "--within", "0.44", *words]
    if kind == "closed":
        call = ["sh", "-c", 'exec "$@" >&-', "sh", *call]
    if kind == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("there is no full device here")
        goes = os.open("/dev/full", os.O_WRONLY)
    else:
        reads, goes = os.pipe()
        os.close(reads)
    try:
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
        assert subprocess.run(call, stdout=goes, stderr=subprocess.DEVNULL, env=buffered).returncode == 2
    finally:
        os.close(goes)


def test_a_model_of_ones_own(run, folder, tmp_path, monkeypatch):
    """By a folder, from wherever the commands are called; also if it is moved."""
    RobustSim.from_pretrained().save_pretrained(tmp_path / "own")
    config = tmp_path / "own" / "config.json"
    config.write_text(config.read_text().replace(f'"{DEFAULT_MODEL}"', '"mine"'))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("index", tmp_path / "index", folder, "--model", "own")[0] == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("search", tmp_path / "index", folder / "coffee.png", "--within", "0.01")[0] == 1
    assert run("index", tmp_path / "index", folder)[0] == 0
    os.rename(tmp_path / "own", tmp_path / "moved")
    code, _, err = run("search", tmp_path / "index", folder / "coffee.png")
    assert code == 1
    assert "--model" in err
    query = tmp_path / "index", folder / "coffee.png", "--within", "0.01", "--model"
    assert run("search", *query, tmp_path / "moved")[0] == 1
    assert run("search", *query, f"{DEFAULT_MODEL}-clean")[0] == 2


def test_forget(run, folder, index):
    (hit,) = json.loads(run("search", index, folder / "coffee.png", "-k", "1", "--json")[1])["queries"][0]["hits"]
    code, out, _ = run("forget", index, hit["id"], folder / "chelsea.png", "--json")
    assert code == 0
    assert json.loads(out) == {"index": str(index), "forgotten": 2, "missing": []}
    code, _, err = run("forget", index, folder / "chelsea.png")
    assert code == 1
    assert "not in the index" in err
    assert len(json.loads(run("search", index, folder / "coffee.png", "--json")[1])["queries"][0]["hits"]) == 1


def test_check(run, index):
    code, out, err = run("check", index)
    assert (code, out) == (0, "")
    assert "3 rows" in err
    path = next((index / "rows.lance" / "data").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, out, err = run("check", index, "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False
    assert "does not match its checksum" in err
    assert run("check", index.parent)[0] == 1


def test_without_the_extra(run, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    code, _, err = run("index", tmp_path / "index", folder)
    assert code == 1
    assert 'pip install "robustsim[search]"' in err


@pytest.fixture
def wide(run, folder, tmp_path):
    """An index of two models, with the mirror image of each picture."""
    made = run("index", tmp_path / "wide", folder, "--also", f"{DEFAULT_MODEL}-clean", "--views", "mirror")
    assert made[0] == 0, made[2]
    return tmp_path / "wide"


def test_lines_and_views(run, folder, wide, tmp_path, monkeypatch):
    mirrored = tmp_path / "mirrored.png"
    with Image.open(folder / "chelsea.png") as picture:
        ImageOps.mirror(picture).save(mirrored)
    for line in (DEFAULT_MODEL, f"{DEFAULT_MODEL}-clean", "phash"):
        code, out, _ = run("search", wide, mirrored, "--within", "0.05", "--by", line)
        assert code == 1
        assert f"{line} (mirror of the picture)" in out
    assert run("search", wide, mirrored, "--within", "0.05", "--by", "phash", "--by", DEFAULT_MODEL)[0] == 2
    code, out, _ = run("search", wide, mirrored, "--within", "0.05", "--by", "phash", "--json")
    found = json.loads(out)
    assert (code, found["queries"][0]["thresholds"], found["false_positives"]) == (1, {"phash": 0.05}, None)
    ((evidence,),) = (hit["found_by"] for hit in found["queries"][0]["hits"])
    assert (evidence["line"], evidence["query_view"], evidence["view"]) == ("phash", "", "mirror")
    # What a pipe brings is looked at with all its frames.
    with Image.open(folder / "coffee.png") as picture, Image.open(folder / "astronaut.png") as other:
        small = [one.convert("RGB").resize((160, 120)) for one in (other, picture)]
    held = io.BytesIO()
    small[0].save(held, "png", save_all=True, append_images=small[1:])
    found = {}
    for views in ("", "frames"):
        held.seek(0)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(held.getvalue())))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
        out = run("search", wide, "-", "--within", "0.2", "--json", "--views", views)[1]
        found[views] = {os.path.basename(hit["path"]) for hit in json.loads(out)["queries"][0]["hits"]}
    assert found == {"": {"astronaut.png"}, "frames": {"astronaut.png", "coffee.png"}}


def test_what_an_index_is_made_with_stays(run, folder, index, wide):
    for made in (index, wide):
        code, _, err = run("index", made, folder, "--views", "tiles")
        assert code == 1
        assert "--views is for a new index" in err
    code, _, err = run("index", index, folder, "--also", f"{DEFAULT_MODEL}-clean")
    assert code == 1
    assert "further ones are named when an index is made (also, --also)" in err
    code, _, err = run("index", wide, folder, "--also", DEFAULT_MODEL)
    assert code == 1
    assert f"was made by '{DEFAULT_MODEL}-clean', and this '{DEFAULT_MODEL}'" in err
    assert run("index", wide, folder, "--also", f"{DEFAULT_MODEL}-clean", "--views", "mirror")[0] == 0
    assert run("search", index, folder / "coffee.png", "--by", "phash")[0] == 2
    assert run("search", index, folder / "coffee.png", "--within", "0.1", "--false-positives", "1e-5")[0] == 2
    code, _, err = run("search", index, folder / "coffee.png", "--views", "upside")
    assert code == 1
    assert "no kind of view is called 'upside'" in err


def test_rates(run, folder, index):
    query = "search", index, folder / "coffee.png", "--false-positives"
    assert run(*query, "3", "--by", "all")[0] == 2
    code, _, err = run(*query, "1e-5")
    assert code == 1
    assert "Caltech-101" in err
    found = json.loads(run("rates", index, "--json")[1])
    assert found["lines"][DEFAULT_MODEL]["pairs"] == 3
    code, out, err = run("rates", index)
    assert code == 0
    assert DEFAULT_MODEL in out
    assert "3 pictures of the index" in err
    code, _, err = run(*query, "1e-5")  # by three pairs nothing can be said of that
    assert code == 2
    assert "3 pairs of different pictures" in err
    found = json.loads(run(*query, "0.9", "--json")[1])
    assert "3 pictures of the index" in found["measured_on"][DEFAULT_MODEL]
