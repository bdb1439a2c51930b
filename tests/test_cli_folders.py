"""The terminal: pipes and standard input, what folders hold besides pictures, names, and values that are not finite."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustsim import RobustSim
from robustsim.cli import output
from robustsim.errors import EncodingError, OutputError
from robustsim.search import embed_folder, embed_images
from tests.conftest import EXAMPLES

CHELSEA, COFFEE, ROCKET = (str(EXAMPLES / name) for name in ("chelsea.png", "coffee.png", "rocket.jpg"))

pytestmark = pytest.mark.usefixtures("one_thread")
needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")


@pytest.fixture
def stdin(monkeypatch):
    """Put bytes on standard input."""

    def put(data, terminal=False):
        stream = io.TextIOWrapper(io.BytesIO(data))
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stream)

    return put


@contextmanager
def piped(path, source):
    """A FIFO out of which a file comes, once."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(Path(source).read_bytes(),), daemon=True)
    writer.start()
    yield str(path)
    writer.join(10)


@pytest.fixture(scope="module")
def cropping(published):
    return str(published["vit"][0])


# -- pipes


def test_compare_reads_standard_input(run, stdin):
    for words in ((CHELSEA, "-"), ("-", CHELSEA), ("-", CHELSEA, COFFEE), ("-", "-")):
        stdin(Path(CHELSEA).read_bytes())
        code, out, err = run("compare", "--json", *words)
        assert (code, err) == (0, "")
        pairs = json.loads(out)["pairs"]
        assert [(pair["a"], pair["b"]) for pair in pairs] == [(words[0], other) for other in words[1:]]
        assert pairs[0]["distance"] == 0
        assert all((pair["distance"] > 0.1) == (pair["b"] == COFFEE) for pair in pairs)


@needs_fifo
@pytest.mark.timeout(60)
def test_compare_reads_pipes_and_tells_what_it_did_not_look_at(run, tmp_path, cropping):
    expected = json.loads(run("compare", "--json", "-m", cropping, CHELSEA, COFFEE)[1])
    with piped(tmp_path / "a", CHELSEA) as a, piped(tmp_path / "b", COFFEE) as b:
        code, out, err = run("compare", "--json", "-m", cropping, a, b)
    assert (code, err) == (0, "")
    got = json.loads(out.replace(a, CHELSEA).replace(b, COFFEE))
    assert got == expected


@needs_fifo
@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_process_substitution():
    command = f"{sys.executable} -m robustsim compare --json <(cat {CHELSEA}) {CHELSEA} - < <(cat {COFFEE})"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    same, other = json.loads(done.stdout)["pairs"]
    assert (same["distance"], other["b"]) == (0, "-")
    assert other["distance"] > 0.1


@needs_fifo
@pytest.mark.timeout(60)
def test_a_pipe_beside_a_folder_with_a_pipe_in_it(run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(ROCKET, folder / "a.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    os.mkfifo(folder / "b.png")
    with piped(tmp_path / "pipe", ROCKET) as pipe:
        code, out, err = run("compare", "--json", pipe, folder)
    assert code == 0
    document = json.loads(out)
    assert [(pair["b"], pair["distance"]) for pair in document["pairs"]] == [(str(folder / "a.jpg"), 0)]
    assert document["passed_over"] == {"pipe": 1}
    assert "passed over: 1 pipe" in err
    assert "broken.png" in err


@pytest.mark.parametrize(
    ("data", "terminal", "message"),
    [
        (b"no picture", False, "cannot read standard input: it is not an image in a known format"),
        (b"", False, "cannot read standard input: nothing came out of it"),
        (b"", True, "'-' stands for standard input, which is the terminal here"),
    ],
)
def test_bad_standard_input_is_named(run, stdin, data, terminal, message):
    stdin(data, terminal)
    code, out, err = run("compare", CHELSEA, "-")
    assert (code, out) == (1, "")
    assert message in err


def test_standard_input_that_is_closed(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, out, err = run("compare", CHELSEA, "-")
    assert (code, out) == (1, "")
    assert "'-' stands for standard input, which is closed here" in err


# -- folders


@pytest.fixture
def mixed(tmp_path):
    """Two pictures in formats that are less usual, things besides, and a linked folder."""
    root, outside = tmp_path / "photos", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    with Image.open(CHELSEA) as image:
        image.save(root / "a.ppm")
        image.resize((90, 60)).save(root / "b.jfif", "JPEG")
    (root / "notes.txt").touch()
    (root / "film.mp4").touch()
    shutil.copy(ROCKET, outside / "c.jpg")
    (root / "linked").symlink_to(outside)
    return root


PASSED = {".txt": 1, ".mp4": 1, "linked folder": 1}
TOLD = "passed over: 1 .mp4, 1 .txt, 1 linked folder (follow_links, --follow-links, walks them)"


def test_compare_with_a_folder_counts_what_it_passes_over(run, mixed):
    code, out, err = run("compare", "--json", CHELSEA, mixed)
    document = json.loads(out)
    assert [os.path.basename(pair["b"]) for pair in document["pairs"]] == ["a.ppm", "b.jfif"]
    assert (code, document["passed_over"], err) == (0, PASSED, f"{TOLD}\n")
    code, out, err = run("compare", "--csv", "--follow-links", CHELSEA, mixed)
    assert [row["b"] for row in csv.DictReader(io.StringIO(out))][-1] == str(mixed / "linked" / "c.jpg")
    assert err == "passed over: 1 .mp4, 1 .txt\n"


def test_compare_of_folders_counts_what_it_passes_over(run, mixed):
    document = json.loads(run("compare", "--json", mixed, mixed)[1])
    assert (len(document["pairs"]), document["passed_over"]) == (2, dict.fromkeys(PASSED, 2))
    document = json.loads(run("compare", "--json", "--follow-links", mixed, mixed)[1])
    assert (len(document["pairs"]), document["passed_over"]) == (3, {".txt": 2, ".mp4": 2})


def test_matrix_counts_what_it_passes_over(run, mixed):
    _, out, err = run("matrix", "--json", mixed)
    document = json.loads(out)
    assert (document["files"], document["passed_over"], err) == (["a.ppm", "b.jfif"], PASSED, f"{TOLD}\n")
    document = json.loads(run("matrix", "--json", "--follow-links", mixed)[1])
    assert document["files"] == ["a.ppm", "b.jfif", "linked/c.jpg"]


def test_embed_counts_what_it_passes_over(run, mixed, tmp_path):
    code, _, err = run("embed", mixed, "-o", tmp_path / "a.npz")
    assert code == 0
    assert TOLD in err.splitlines()
    code, _, err = run("embed", mixed, "-o", tmp_path / "b.npz", "--follow-links")
    assert code == 0
    assert "linked" not in err
    with np.load(tmp_path / "b.npz") as data:
        assert data["files"].tolist() == ["a.ppm", "b.jfif", "linked/c.jpg"]


def test_the_report_of_embed_folder_counts_too(metric, mixed, tmp_path):
    report = embed_folder(metric, mixed, tmp_path / "a.npz")
    assert (report.embedded, report.passed_over) == (2, PASSED)
    report = embed_folder(metric, mixed, tmp_path / "b.npz", follow_links=True)
    assert (report.embedded, report.passed_over) == (3, {".txt": 1, ".mp4": 1})
    assert len(list(embed_images(metric, mixed, follow_links=True))) == 3


def test_a_run_is_not_continued_with_other_links(metric, mixed, tmp_path):
    def stop(count):
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_folder(metric, mixed, tmp_path / "a.npz", progress=stop)
    with pytest.raises(OutputError, match=r"without its links or with them.*--restart"):
        embed_folder(metric, mixed, tmp_path / "a.npz", follow_links=True)
    assert embed_folder(metric, mixed, tmp_path / "a.npz").embedded == 2


@pytest.mark.parametrize(
    "words", [("matrix", "DIR"), ("embed", "DIR", "-o", "OUT"), ("compare", CHELSEA, "DIR"), ("compare", "DIR", "DIR"),
              ("evaluate", "ladder", "--data", "DIR"), ("train", "fare-lite", "--data", "DIR", "-o", "OUT")],
    ids=lambda words: " ".join(words[:2] if words[0] == "evaluate" else words[:1]),
)  # fmt: skip
def test_a_folder_without_pictures_says_what_it_holds(run, tmp_path, words):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.mp4"):
        (folder / name).touch()
    (folder / "linked").symlink_to(EXAMPLES)
    names = {"DIR": folder, "OUT": tmp_path / "out.npz"}
    code, out, err = run(*(names.get(word, word) for word in words))
    assert (code, out) == (1, "")
    assert "image" in err
    twice = words == ("compare", "DIR", "DIR")
    assert ("4 .txt, 2 .mp4, 2 linked folders" if twice else "2 .txt, 1 .mp4, 1 linked folder") in err
    assert not (tmp_path / "out.npz").exists()


def test_training_and_ladder_count_what_they_pass_over(run, mixed, tmp_path):
    small = ["--dry-run", "--cpu", "--set", "batch_size=2", "--set", "stages=[{at: 0, size: 32}]"]
    small += ["--set", "attack.steps=1", "--set", "steps=1", "--set", "validation.images=0"]
    for links, images, told in (
        ((), 2, f"photos: {TOLD}"),
        (("--follow-links",), 3, "photos: passed over: 1 .mp4, 1 .txt"),
    ):
        code, out, err = run("train", "fare-lite", "--data", mixed, "-o", tmp_path / "out", *small, *links)
        assert code == 0
        assert f"{images} to train on" in out
        assert told in err.splitlines()
    code, out, err = run(
        "evaluate", "ladder", "--data", mixed, "-o", tmp_path / "reports", "-m", "ssim", "--follow-links", "--json"
    )
    assert code == 0
    assert json.loads(out)[0]["passed_over"] == {".txt": 1, ".mp4": 1}
    assert "passed over: 1 .mp4, 1 .txt" in err.splitlines()


def test_a_training_tells_what_it_passes_over(run, mixed, tmp_path):
    small = ["--cpu", "--no-tensorboard", "--set", "batch_size=2", "--set", "stages=[{at: 0, size: 32}]"]
    small += ["--set", "attack.steps=1", "--set", "steps=1", "--set", "validation.images=0"]
    code, _, err = run("train", "fare-lite", "--data", mixed, "-o", tmp_path / "out", *small)
    assert code == 0
    assert err.splitlines().count(f"photos: {TOLD}") == 1


# -- names of files


@pytest.fixture
def accents(tmp_path):
    """Two folders whose names look alike and are written in two ways, as macOS and others do."""
    left, right = tmp_path / "left", tmp_path / "right"
    for folder, form in ((left, "NFC"), (right, "NFD")):
        (folder / unicodedata.normalize(form, "bêtes")).mkdir(parents=True)
        shutil.copy(ROCKET, folder / unicodedata.normalize(form, "bêtes") / unicodedata.normalize(form, "épée.jpg"))
        shutil.copy(COFFEE, folder / unicodedata.normalize(form, "café.png"))
    return left, right


def test_names_that_look_alike_are_paired(run, accents):
    code, out, err = run("compare", "--json", *accents)
    document = json.loads(out)
    assert (code, err, document["without_partner"]) == (0, "", [])
    assert [pair["distance"] for pair in document["pairs"]] == [0, 0]


def test_names_that_look_alike_are_paired_with_another_suffix(run, accents):
    left, right = accents
    (right / unicodedata.normalize("NFD", "café.png")).unlink()
    with Image.open(COFFEE) as image:
        image.save(right / unicodedata.normalize("NFD", "café.bmp"))
    document = json.loads(run("compare", "--json", left, right)[1])
    assert (len(document["pairs"]), document["without_partner"]) == (2, [])


def test_two_files_of_one_look_in_one_folder(run, accents):
    left, right = accents
    composed, split = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))
    shutil.copy(CHELSEA, left / split)  # which is the name in the other folder, to the letter
    document = json.loads(run("compare", "--json", left, right)[1])
    assert document["without_partner"] == [str(left / composed)]
    found = {pair["a"]: pair["b"] for pair in document["pairs"]}
    assert found[str(left / split)] == str(right / split)
    # Where none is the other's to the letter, both have a claim, and none is chosen.
    (right / split).rename(right / "cafe\u0301.PNG")
    document = json.loads(run("compare", "--json", left, right)[1])
    assert len(document["pairs"]) == 1
    assert document["without_partner"] == [str(left / split), str(left / composed), str(right / "cafe\u0301.PNG")]


def test_files_without_a_partner_are_named(run, accents):
    left, right = accents
    for number in range(7):
        shutil.copy(ROCKET, left / f"{number}.jpg")
    _, out, err = run("compare", "--json", left, right)
    first = ", ".join(repr(str(left / f"{number}.jpg")) for number in range(5))
    assert err == f"7 files have no partner of the same name in the other folder: {first} and 2 more\n"
    assert len(json.loads(out)["without_partner"]) == 7


# -- values that are not finite


@pytest.fixture
def spoil(monkeypatch):
    """Every model gives NaN, infinity or zeros, as one whose weights are damaged."""
    real = RobustSim.embed_pixels

    def spoil(factor):
        monkeypatch.setattr(RobustSim, "embed_pixels", lambda self, pixels: real(self, pixels) * factor)

    return spoil


@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)], ids=str)
@pytest.mark.parametrize("words", [("compare", CHELSEA, COFFEE), ("matrix", str(EXAMPLES))], ids=lambda words: words[0])
@pytest.mark.parametrize("factor", [math.nan, math.inf, 0])
def test_values_that_are_not_finite_are_an_error(run, spoil, words, form, factor):
    spoil(factor)
    code, out, err = run(*words, *form)
    assert (code, out) == (1, "")
    assert "values that are not finite, or nothing but zeros" in err
    assert "float32" in err


@pytest.mark.parametrize("factor", [math.nan, math.inf, 0])
def test_embeddings_that_are_not_finite_are_not_written(run, spoil, tmp_path, factor):
    spoil(factor)
    for ending in (".npz", ".safetensors"):
        code, out, err = run("embed", EXAMPLES, "-o", tmp_path / f"out{ending}")
        assert (code, out) == (1, "")
        assert "gives values that are not finite" in err
        assert "the embedding of" in err
        assert str(EXAMPLES) in err
        assert not (tmp_path / f"out{ending}").exists()
    assert run("matrix", "--json", EXAMPLES)[:2] == (1, "")


def test_what_an_earlier_version_has_left_is_looked_at(metric, tmp_path):
    def stop(count):
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_folder(metric, EXAMPLES, tmp_path / "out.npz", progress=stop)
    rows = tmp_path / "out.partial" / "embeddings.f32"
    values = np.fromfile(rows, "<f4")
    values[0] = np.nan
    values.tofile(rows)
    with pytest.raises(EncodingError, match=r"interrupted run has left.*--restart"):
        embed_folder(metric, EXAMPLES, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
    assert embed_folder(metric, EXAMPLES, tmp_path / "out.npz", restart=True).embedded == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_holds_finite_numbers_only(capsys, value):
    with pytest.raises(OutputError, match=r"as it holds rows\.1\.distance = (nan|inf|-inf), which is not finite"):
        output.print_json({"name": "x", "rows": [{"distance": 1.0}, {"distance": value}]})
    assert capsys.readouterr().out == ""


def test_one_door_for_json():
    import ast

    from tests.test_structure import PACKAGE

    for path in (PACKAGE / "cli").glob("*.py"):
        tree = ast.parse(path.read_text())
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert path.name == "output.py" or not called & {"dumps", "dump"}, path
