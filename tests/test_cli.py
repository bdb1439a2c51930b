"""The terminal: what goes to which stream, in which form, with which exit code."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from robustsim import RobustSim, list_models
from robustsim.encoders.card import DEFAULT_MODEL
from tests.conftest import EXAMPLES

CHELSEA, COFFEE, ROCKET = (str(EXAMPLES / name) for name in ("chelsea.png", "coffee.png", "rocket.jpg"))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    shutil.copy(CHELSEA, root / "chelsea.png")
    shutil.copy(COFFEE, root / "below" / "coffee.png")
    shutil.copy(ROCKET, root / "rocket.jpg")
    return root


@pytest.fixture
def bad_folder(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def cropping(published):
    return str(published["vit"][0])


def test_compare_two_files(run, metric):
    code, out, err = run("compare", CHELSEA, COFFEE)
    distance = metric.distance(CHELSEA, COFFEE).item()
    assert code == 0
    assert err == ""
    assert f"{distance:.4f}" in out
    assert f"{1 - distance**2:.4f}" in out
    assert "0 is identical" in out
    _, out, _ = run("compare", CHELSEA, COFFEE, "--model", "lite-clean")
    assert "names no training against tampering" in out.replace("\n", " ")


def test_compare_one_against_many_as_json(run, metric):
    code, out, err = run("compare", "--json", CHELSEA, COFFEE, ROCKET, CHELSEA)
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["model"] == DEFAULT_MODEL
    assert [pair["b"] for pair in document["pairs"]] == [COFFEE, ROCKET, CHELSEA]
    expected = metric.distance(CHELSEA, [COFFEE, ROCKET, CHELSEA]).tolist()
    assert [pair["distance"] for pair in document["pairs"]] == pytest.approx(expected, abs=1e-6)
    assert document["pairs"][2]["distance"] == 0
    assert document["not_looked_at"] == []


def test_compare_csv_and_squared(run, metric):
    code, out, _ = run("compare", "--csv", "--squared", CHELSEA, COFFEE)
    header, row = csv.reader(io.StringIO(out))
    assert header == ["a", "b", "distance", "similarity", "meaning"]
    assert float(row[2]) == pytest.approx(metric.distance(CHELSEA, COFFEE, squared=True).item(), abs=1e-6)
    assert float(row[2]) + float(row[3]) == pytest.approx(1)
    assert code == 0


def test_compare_folders_by_name(run, folder, tmp_path, metric):
    other = tmp_path / "other"
    (other / "below").mkdir(parents=True)
    shutil.copy(ROCKET, other / "rocket.jpg")
    Image.open(CHELSEA).save(other / "chelsea.bmp")  # the same name with another suffix
    shutil.copy(CHELSEA, other / "below" / "coffee.png")
    shutil.copy(CHELSEA, other / "alone.png")
    code, out, err = run("compare", "--json", folder, other)
    pairs = {os.path.basename(pair["a"]): pair["distance"] for pair in json.loads(out)["pairs"]}
    assert pairs["rocket.jpg"] == pairs["chelsea.png"] == 0
    assert pairs["coffee.png"] == pytest.approx(metric.distance(CHELSEA, COFFEE).item(), abs=1e-5)
    assert f"1 file has no partner of the same name in the other folder: {str(other / 'alone.png')!r}" in err
    assert code == 0
    shutil.rmtree(other)
    other.mkdir()
    code, out, err = run("compare", folder, other)
    assert (code, out) == (1, "")
    assert "no image in" in err


def test_compare_a_file_with_a_folder(run, folder):
    code, out, _ = run("compare", "--csv", CHELSEA, folder)
    assert code == 0
    assert [row["b"] for row in csv.DictReader(io.StringIO(out))] == [
        str(folder / name) for name in ("below/coffee.png", "chelsea.png", "rocket.jpg")
    ]


def test_bad_files_of_a_folder_are_skipped(run, bad_folder):
    for options, expected in (((), 0), (("--strict",), 1)):
        code, out, err = run("compare", "--json", CHELSEA, bad_folder, *options)
        assert code == expected
        assert len(json.loads(out)["pairs"]) == 3
        assert re.search(r"skipped: cannot read .*broken\.png", err)
        assert "2 files could not be read and were skipped" in err


def test_a_bad_file_that_was_named_fails(run, bad_folder):
    code, out, err = run("compare", CHELSEA, bad_folder / "broken.png")
    assert (code, out) == (1, "")
    assert err.startswith("robustsim: cannot read")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ("compare", CHELSEA),
        ("compare",),
        ("compare", "--json", "--csv", CHELSEA, COFFEE),
        ("compare", str(EXAMPLES), CHELSEA),
        ("compare", CHELSEA, COFFEE, str(EXAMPLES)),
        ("compare", "--nonsense"),
        ("embed", str(EXAMPLES), "-o", "out.txt"),
        ("nonsense",),
        ("convert", "x.pt"),
    ],
)
def test_wrong_usage_exits_with_2(run, words):
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert "Error" in err


def test_unknown_model_fails_with_a_hint(run):
    code, out, err = run("compare", "-m", "lite-clea", CHELSEA, COFFEE)
    assert (code, out) == (1, "")
    assert "did you mean 'lite-clean'" in err


def test_what_was_not_looked_at_is_said(run, cropping):
    code, out, _ = run("compare", "-m", cropping, CHELSEA, COFFEE)
    assert code == 0
    assert "chelsea.png: 33% was not looked at; of 451 x 300 pixels the model saw columns 7" in out.replace("\n", " ")
    _, out, _ = run("compare", "--json", "-m", cropping, CHELSEA, COFFEE)
    part = json.loads(out)["not_looked_at"][0]
    assert part["size"] == [451, 300]
    assert part["looked_at"][1::2] == [0, 300]
    assert part["share_not_looked_at"] == pytest.approx(1 - 300 / 451, abs=0.01)
    code, out, err = run("compare", "--csv", "-m", cropping, CHELSEA, COFFEE)
    assert "looked at" in err
    assert "looked at" not in out


def test_matrix_and_embed_say_what_was_not_looked_at(run, folder, cropping, tmp_path):
    code, out, _ = run("matrix", "-m", cropping, folder)
    assert code == 0
    assert "33% was not looked at" in out.replace("\n", " ")
    parts = json.loads(run("matrix", "--json", "-m", cropping, folder)[1])["not_looked_at"]
    assert [os.path.basename(part["file"]) for part in parts] == ["coffee.png", "chelsea.png", "rocket.jpg"]
    code, out, err = run("embed", "-m", cropping, folder, "-o", tmp_path / "out.npz")
    assert (code, out) == (0, "")
    assert "looks at the 64 x 64 pixels in the middle" in err


def test_matrix(run, folder, metric):
    code, out, err = run("matrix", folder)
    assert (code, err) == (0, "")
    assert out.count("0.0000") == 3
    code, out, _ = run("matrix", "--json", folder)
    document = json.loads(out)
    assert document["files"] == ["below/coffee.png", "chelsea.png", "rocket.jpg"]
    expected = metric.distance_matrix([folder / name for name in document["files"]])
    np.testing.assert_allclose(document["distances"], expected, atol=1e-5)
    code, out, _ = run("matrix", "--csv", "--squared", folder)
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["file", *document["files"]]
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in rows[1:]], expected.square(), atol=1e-5)


def test_matrix_of_bad_many_and_none(run, bad_folder, tmp_path):
    code, out, err = run("matrix", "--strict", "--json", bad_folder)
    assert code == 1
    assert len(json.loads(out)["files"]) == 3
    assert "2 files could not be read" in err
    for index in range(20):
        shutil.copy(ROCKET, bad_folder / f"{index}.jpg")
    code, out, err = run("matrix", bad_folder)
    assert (code, out) == (2, "")
    assert "use --csv or --json" in err.replace("\n", " ")
    assert "skipped" not in err  # said before any work
    (tmp_path / "none").mkdir()
    code, out, err = run("matrix", tmp_path / "none")
    assert (code, out) == (1, "")
    assert "holds no readable images: it holds no files" in err
    assert run("matrix", tmp_path / "nowhere")[0] == 1


def test_embed(run, bad_folder, tmp_path, metric):
    code, out, err = run("embed", bad_folder, "-o", tmp_path / "out.npz")
    assert (code, out) == (0, "")
    assert "3 embeddings of 1280 values" in err
    assert "2 files could not be read and were skipped" in err
    assert "broken.png" in err
    with np.load(tmp_path / "out.npz") as data:
        assert data["files"].tolist() == ["below/coffee.png", "chelsea.png", "rocket.jpg"]
        expected = metric.embed([bad_folder / name for name in data["files"]])
        np.testing.assert_allclose(data["embeddings"], expected, atol=1e-5)
    code, _, err = run("embed", bad_folder, "-o", tmp_path / "out.npz")
    assert code == 1
    assert "is there already" in err
    assert run("embed", bad_folder, "-o", tmp_path / "out.npz", "--overwrite", "--strict")[0] == 1


def test_models(run):
    code, out, _ = run("models")
    assert code == 0
    assert all(name in out for name in list_models())
    assert "90.6 / 74.3 / 66.1" in out
    assert re.search(rf"{DEFAULT_MODEL} \(default\).*bundled", out)
    rows = json.loads(run("models", "--json", "rclip-*")[1])
    assert [row["name"] for row in rows] == list_models("rclip-*")
    assert {row["weights"] for row in rows} <= {"cached", "on the Hub"}


def test_models_say_what_is_cached(run, hub, published, monkeypatch, tmp_path):
    import huggingface_hub.constants

    hub.add("timm/vit_base_patch16_224.dino", published["dino"][0])
    from huggingface_hub import hf_hub_download

    hf_hub_download("timm/vit_base_patch16_224.dino", "model.safetensors", cache_dir=hub.cache, endpoint=hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub.cache))
    import importlib

    monkeypatch.setattr(
        importlib.import_module("huggingface_hub.file_download"), "HF_HUB_CACHE", str(hub.cache), raising=False
    )
    weights = {row["name"]: row["weights"] for row in json.loads(run("models", "--json")[1])}
    assert weights["dino-vit-b-16"] == "cached"
    assert weights["dinov2-vit-b-14"] == "on the Hub"


def test_info(run):
    facts = json.loads(run("info", "--json")[1])
    assert {"robustsim", "torch", "timm", "device", "cache", "default model"} <= facts.keys()
    assert facts["default model"] == DEFAULT_MODEL
    assert facts["torch"] in run("info")[1]


def test_convert(run, published, tmp_path):
    import torch

    folder, model = published["vit"]
    torch.save(model.visual.state_dict(), tmp_path / "bare.pt")
    code, out, err = run("convert", tmp_path / "bare.pt", "-o", tmp_path / "out", "--base", folder, "--name", "mine")
    assert (code, out) == (0, "")
    assert "'mine'" in err
    assert RobustSim.from_pretrained(tmp_path / "out", device="cpu").card.name == "mine"
    code, _, err = run("convert", tmp_path / "none.pt", "-o", tmp_path / "out2", "--base", folder)
    assert code == 1
    assert "there is no file" in err


def test_a_closed_pipe_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)  # before it begins: who is first must not matter
    command = [sys.executable, "-m", "robustsim", "models", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_disk_is_no_traceback():
    command = f"{sys.executable} -m robustsim models --json > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "robustsim: cannot write the output: No space left on device\n"


def test_names_that_the_terminal_cannot_show(tmp_path):
    name = os.fsencode(tmp_path) + "/日本".encode() + b"\xff.jpg"
    shutil.copy(os.fsencode(ROCKET), name)
    command = [sys.executable, "-m", "robustsim", "compare", "--csv", ROCKET, os.fsdecode(name)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, check=True)
    assert b"\\u65e5" in done.stdout


def test_a_url_is_refused_with_a_hint(run):
    code, out, err = run("compare", "https://example.org/a.png", COFFEE)
    assert (code, out) == (1, "")
    assert "'https://example.org/a.png' is a URL" in err


def test_a_bad_file_that_was_named_is_fatal_beside_a_folder(run, bad_folder):
    code, out, err = run("compare", "--json", bad_folder / "broken.png", bad_folder)
    assert (code, out) == (1, "")
    assert "broken.png" in err
    assert "skipped" not in err


def test_names_are_never_markup(run, tmp_path):
    name = tmp_path / "[red]a[bold].jpg"
    shutil.copy(ROCKET, name)
    assert "[red]a[bold].jpg" in run("compare", ROCKET, name)[1].replace("\n", "")
