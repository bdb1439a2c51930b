"""Embedding folders: the formats, interruption at any moment, and changes in between."""

import json
import os
import random
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from robustsim import RobustSim
from robustsim.errors import ImageError, InputError, MissingDependencyError, OutputError
from robustsim.images import find_images
from robustsim.search import embed_folder, embed_images
from tests.conftest import EXAMPLES
from tests.processes import GATE, killed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "ünder").mkdir(parents=True)
    for index in range(9):
        shutil.copy(EXAMPLES / "rocket.jpg", root / f"{index}.jpg")
    shutil.copy(EXAMPLES / "chelsea.png", root / "ünder" / "chelsea.png")
    (root / "3.jpg").write_bytes((root / "3.jpg").read_bytes()[:3000])
    return root


@pytest.fixture(scope="module")
def small(published):
    return RobustSim(RobustSim.from_pretrained(published["dino"][0], device="cpu").encoder, batch_size=4)


def read(path):
    """(names, embeddings) of any format."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as data:
            return data["files"].tolist(), data["embeddings"]
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            return json.loads(file.metadata()["files"]), file.get_tensor("embeddings")
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return table["file"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".safetensors"])
def test_formats(small, folder, tmp_path, suffix):
    bad = []
    out = tmp_path / "deep" / f"out{suffix}"
    report = embed_folder(small, folder, out, on_error=bad.append)
    names, embeddings = read(out)
    assert (report.embedded, report.failed, report.resumed) == (9, 1, 0)
    assert names == [path.as_posix() for path in find_images(folder) if path.name != "3.jpg"]
    expected = small.embed([folder / name for name in names])
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert embeddings.dtype == np.float32
    assert len(bad) == 1
    assert "3.jpg" in str(bad[0])
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_model_is_named_in_the_file(small, folder, tmp_path):
    import pyarrow.parquet as pq

    for suffix in (".npz", ".safetensors", ".parquet"):
        embed_folder(small, folder, tmp_path / f"out{suffix}")
    assert str(np.load(tmp_path / "out.npz")["model"]) == small.card.name
    assert safe_open(tmp_path / "out.safetensors", framework="np").metadata()["model"] == small.card.name
    assert pq.read_schema(tmp_path / "out.parquet").metadata[b"model"].decode() == small.card.name


def test_embed_images_reports_in_the_order_of_the_walk(small, folder):
    found = list(embed_images(small, folder))
    assert [path for path, _ in found] == list(find_images(folder))
    assert [isinstance(result, ImageError) for _, result in found] == [path.name == "3.jpg" for path, _ in found]
    rest = list(embed_images(small, folder, skip=4))
    torch.testing.assert_close(rest[0][1], found[4][1])


class _StopError(Exception):
    pass


def interrupt(metric, folder, out, after, **options):
    done = 0

    def progress(count):
        nonlocal done
        done += count
        if done >= after:
            raise _StopError

    with pytest.raises(_StopError):
        embed_folder(metric, folder, out, progress=progress, **options)
    assert not out.exists()


@pytest.mark.parametrize("after", [1, 4, 6, 9])
def test_an_interrupted_run_continues(small, folder, tmp_path, after):
    whole = tmp_path / "whole.npz"
    embed_folder(small, folder, whole)
    out = tmp_path / "out.npz"
    interrupt(small, folder, out, after)
    steps = []
    report = embed_folder(small, folder, out, progress=steps.append)
    assert report.resumed == steps[0] == after
    assert sum(steps) == 10
    assert (report.embedded, report.failed) == (9, 1)
    assert read(out)[0] == read(whole)[0]
    np.testing.assert_allclose(read(out)[1], read(whole)[1], atol=1e-5)


@pytest.mark.parametrize("lost", ["line", "row", "half a line", "half a row", "identity", "lines"])
def test_what_a_crash_can_leave_behind(small, folder, tmp_path, lost):
    out = tmp_path / "out.npz"
    interrupt(small, folder, out, 6)
    partial = tmp_path / "out.partial"
    lines, rows = partial / "files.jsonl", partial / "embeddings.f32"
    match lost:
        case "line":
            lines.write_bytes(b"".join(lines.read_bytes().splitlines(keepends=True)[:-1]))
        case "row":
            os.truncate(rows, rows.stat().st_size - 4 * 48)
        case "half a line":
            os.truncate(lines, lines.stat().st_size - 7)
        case "half a row":
            os.truncate(rows, rows.stat().st_size - 10)
        case "identity":
            (partial / "run.json").unlink()
        case "lines":
            lines.unlink()
    report = embed_folder(small, folder, out)
    assert report.resumed == {"identity": 0, "lines": 0}.get(lost, 5)
    names, embeddings = read(out)
    np.testing.assert_allclose(embeddings, small.embed([folder / name for name in names]), atol=1e-5)
    assert len(names) == 9


def test_changes_between_two_runs_are_noticed(small, metric, folder, tmp_path):
    out = tmp_path / "out.npz"
    interrupt(small, folder, out, 6)
    with pytest.raises(OutputError, match=r"begun with another folder or model.*--restart"):
        embed_folder(metric, folder, out)
    other = RobustSim(small.encoder, batch_size=4)
    shutil.copy(EXAMPLES / "coffee.png", folder / "1.jpg")
    with pytest.raises(
        OutputError, match=r"changed since the interrupted run \('1.jpg' is not what it was\).*--restart"
    ):
        embed_folder(other, folder, out)
    shutil.copy(EXAMPLES / "coffee.png", folder / "0a.png")
    with pytest.raises(OutputError, match="changed since the interrupted run"):
        embed_folder(small, folder, out)
    report = embed_folder(small, folder, out, restart=True)
    assert (report.embedded, report.failed, report.resumed) == (10, 1, 0)


def test_other_weights_under_the_same_card_are_noticed(small, folder, tmp_path):
    import copy

    out = tmp_path / "out.npz"
    interrupt(small, folder, out, 6)
    other = copy.deepcopy(small)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(OutputError, match="another folder or model"):
        embed_folder(other, folder, out)


def test_what_is_refused_before_any_work(small, folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"ends in none of .npz, .parquet, .safetensors"):
        embed_folder(small, folder, tmp_path / "out.csv")
    (tmp_path / "there.npz").touch()
    with pytest.raises(OutputError, match="is there already"):
        embed_folder(small, folder, tmp_path / "there.npz")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'robustsim\[parquet\]'"):
        embed_folder(small, folder, tmp_path / "out.parquet")
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="holds no readable images"):
        embed_folder(small, tmp_path / "none", tmp_path / "out.npz")
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(OutputError, match="cannot write"):
        embed_folder(small, folder, tmp_path / "there.npz" / "out.npz")


def test_two_runs_on_one_output_do_not_mix(small, folder, tmp_path):
    def second(count):
        embed_folder(small, folder, tmp_path / "out.npz")

    with pytest.raises(OutputError, match="another run is writing"):
        embed_folder(small, folder, tmp_path / "out.npz", progress=second)


# The real command, which never gets to writing the file.
HELD = """
import sys
from robustsim.cli import main
from robustsim.search import embedding
embedding._Journal.copy_to = lambda *arguments: gate({gate!r})
sys.argv = {words!r}
main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_killed_at_random_moments(folder, tmp_path, metric, run, server):
    """SIGKILL, three times, on the real command; the end is the same as of an undisturbed run."""
    for index in range(50):
        shutil.copy(EXAMPLES / "rocket.jpg", folder / f"more-{index}.jpg")
    out, gate = tmp_path / "out.npz", tmp_path / "gate"
    words = ["embed", str(folder), "-o", str(out), "--batch-size", "4"]
    journal = tmp_path / "out.partial" / "files.jsonl"
    moments, kept = random.Random(7), [0]
    for _ in range(3):
        held = GATE + HELD.format(gate=str(gate), words=["robustsim", *words])
        # From the first line that this process itself has kept on.
        killed(server, held, lambda: size(journal) > kept[-1], gate, moments.uniform(0, 0.15))
        kept.append(size(journal))
        assert not out.exists()
    assert 0 < kept[1] <= kept[2] <= kept[3]
    code, _, err = run(*words)
    assert code == 0
    assert "from an interrupted run" in err
    names, embeddings = read(out)
    assert names == [path.as_posix() for path in find_images(folder) if path.name != "3.jpg"]
    expected = metric.embed([folder / name for name in names])
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def size(path):
    return path.stat().st_size if path.exists() else 0


def test_long_names_of_many_scripts_survive(small, tmp_path):
    root = tmp_path / "names"
    root.mkdir()
    names = sorted(["a" * 200 + ".jpg", "日本語.jpg", 'with, comma "and" quotes.jpg', "emoji 🐈.jpg"])
    for name in names:
        shutil.copy(EXAMPLES / "rocket.jpg", root / name)
    for suffix in (".npz", ".parquet", ".safetensors"):
        embed_folder(small, root, tmp_path / f"out{suffix}")
        assert read(tmp_path / f"out{suffix}")[0] == names


def test_folders_that_are_not_ours_are_left_alone(small, folder, tmp_path):
    mine = tmp_path / "out.partial"
    mine.mkdir()
    (mine / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.partial.*in use for something else"):
        embed_folder(small, folder, tmp_path / "out.npz")
    assert (mine / "precious.txt").read_text() == "mine"
    photos = folder.rename(tmp_path / "photos.partial")
    count = len(list(find_images(photos)))
    with pytest.raises(OutputError, match="in use for something else"):
        embed_folder(small, photos, tmp_path / "photos.npz")
    assert len(list(find_images(photos))) == count
    (tmp_path / "file.partial").touch()
    with pytest.raises(OutputError, match="in use for something else"):
        embed_folder(small, photos, tmp_path / "file.npz")


def test_half_written_files_of_a_killed_run_are_swept(small, folder, tmp_path):
    out = tmp_path / "out.npz"
    interrupt(small, folder, out, 6)
    (tmp_path / "out.partial" / ".run.json.123-abcd.part").touch()
    (tmp_path / ".out.npz.123-abcd.part").touch()
    (tmp_path / ".other.npz.123-abcd.part").touch()
    assert embed_folder(small, folder, out).resumed == 6
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_file() or path.suffix == ".partial")
    assert left == [".other.npz.123-abcd.part", "out.npz"]


def test_bad_files_hold_no_memory_and_do_not_wait(small, tmp_path):
    root = tmp_path / "bad"
    root.mkdir()
    for index in range(40):
        (root / f"{index:02}.png").write_bytes((EXAMPLES / "chelsea.png").read_bytes()[:9000])
    found = embed_images(small, root)
    _, error = next(found)
    assert isinstance(error, ImageError)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_reading_ahead_is_bounded(small, tmp_path, monkeypatch):
    from robustsim.search import embedding

    root = tmp_path / "many"
    root.mkdir()
    for index in range(60):
        shutil.copy(EXAMPLES / "rocket.jpg", root / f"{index:02}.jpg")
    read = []
    original = embedding.read_square
    monkeypatch.setattr(embedding, "read_square", lambda path, *how: read.append(path) or original(path, *how))
    found = embed_images(small, root)
    next(found)
    assert len(read) <= 3 * small.batch_size + 1
    assert len(list(found)) == 59
    assert len(read) == 60


def test_a_file_that_vanishes_is_skipped(small, folder, tmp_path):
    gone = []

    def progress(count):
        if count and not gone:
            gone.append((folder / "a9.jpg").unlink())  # listed by now, and not read yet

    for index in range(40):
        shutil.copy(EXAMPLES / "rocket.jpg", folder / f"a{index}.jpg")
    report = embed_folder(small, folder, tmp_path / "out.npz", progress=progress)
    assert (report.embedded, report.failed) == (48, 2)


def test_names_that_are_no_utf8(small, tmp_path):
    root = tmp_path / "names"
    root.mkdir()
    name = os.fsencode(root) + b"/caf\xe9.jpg"
    shutil.copy(os.fsencode(EXAMPLES / "rocket.jpg"), name)
    for suffix in (".npz", ".parquet", ".safetensors"):
        embed_folder(small, root, tmp_path / f"out{suffix}")
        assert read(tmp_path / f"out{suffix}")[0] == ["caf\\xe9.jpg"]
