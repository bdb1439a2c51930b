"""The commands train, finetune and recipes."""

import json
import os
import signal
import subprocess

import pytest

from tests import judges
from tests.conftest import EXAMPLES
from tests.processes import started, until

SMALL = [
    "--set",
    "batch_size=2",
    "--set",
    "stages=[{at: 0, size: 32}]",
    "--set",
    "attack.steps=1",
    "--no-tensorboard",
    "--cpu",
]
NONE_HELD = ["--set", "validation.images=0"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """All of these are small."""


def test_train_makes_a_metric_that_compare_takes(run, tmp_path):
    out = tmp_path / "mine"
    words = ("train", "fare-lite", "--data", EXAMPLES, "-o", out, "--set", "steps=2", *SMALL, *NONE_HELD)
    code, stdout, _ = run(*words)
    assert code == 0
    assert f"robustsim compare --model {out}" in stdout
    code, stdout, _ = run("compare", "--model", out, EXAMPLES / "chelsea.png", EXAMPLES / "coffee.png", "--json")
    assert code == 0
    assert json.loads(stdout)["model"] == "mine"
    code, stdout, _ = run("info", "--json")
    assert code == 0


def test_several_sets_of_images_are_trained_on_together(run, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for name, where in (("chelsea.png", "one"), ("coffee.png", "two")):
        (tmp_path / where / name).write_bytes((EXAMPLES / name).read_bytes())
    data = ["--data", tmp_path / "one", "--data", tmp_path / "two"]
    out = tmp_path / "mine"
    assert run("train", "fare-lite", *data, "-o", out, "--set", "steps=1", *SMALL, *NONE_HELD)[0] == 0
    assert json.loads((out / "config.json").read_text())["data"].endswith("one and two (2 images)")
    assert run("train", "fare-lite", *data, "-o", out, "--dry-run", *SMALL, *NONE_HELD)[0] == 0


def test_the_same_command_again_is_done_at_once_and_another_recipe_is_refused(run, tmp_path):
    out = tmp_path / "mine"
    words = ["train", "fare-lite", "--data", EXAMPLES, "-o", out, "--set", "steps=1", *SMALL, *NONE_HELD]
    assert run(*words)[0] == 0
    before = (out / "model.safetensors").read_bytes()
    assert run(*words)[0] == 0
    assert (out / "model.safetensors").read_bytes() == before
    code, _, err = run(*words, "--set", "optimizer.lr=0.1")
    assert code == 1
    assert "optimizer.lr was 0.0004, is 0.1" in err
    assert "--restart" in err
    assert run(*words, "--set", "optimizer.lr=0.001", "--restart")[0] == 0


def test_dry_run_says_what_would_run_and_writes_nothing(run, tmp_path):
    out = tmp_path / "mine"
    code, stdout, _ = run(
        "train", "fare-lite", "--data", EXAMPLES, "-o", out, "--dry-run", "--set", "steps=500", *SMALL, *NONE_HELD
    )
    assert code == 0
    for words in (
        "steps: 500",
        "encoder: lite-clean",
        "4 to train on, 0 to judge on",
        "3,350,000 values",
        "GiB",
        "min",
    ):
        assert words in stdout, words
    assert not out.exists()


def test_dry_run_of_finetune(run, tmp_path):
    data = judges.triplets(tmp_path / "data", 12)
    out = tmp_path / "mine"
    options = ("--set", "encoder=lite-clean", "--set", "batch_size=4", "--set", "validation.images=2", "--cpu")
    code, stdout, _ = run("finetune", "mlp-2afc", "--data", data, "-o", out, "--dry-run", *options)
    assert code == 0
    assert "10 to train on, 2 to judge on" in stdout
    assert not out.exists()


def test_finetune_makes_a_metric(run, tmp_path):
    data = judges.triplets(tmp_path / "data", 12)
    out = tmp_path / "nearer"
    options = (
        "--set",
        "encoder=lite-clean",
        "--set",
        "steps=2",
        "--set",
        "batch_size=4",
        "--set",
        "validation.images=2",
    )
    code, stdout, _ = run("finetune", "mlp-2afc", "--data", data, "-o", out, *options, "--no-tensorboard", "--cpu")
    assert code == 0, stdout
    assert json.loads((out / "config.json").read_text())["head"]["kind"] == "mlp"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "fare-lit"), "no recipe is called 'fare-lit'; did you mean 'fare-lite'"),
        (("train", "mlp-2afc"), "it goes with `finetune`"),
        (("finetune", "fare-lite"), "it goes with `train`"),
        (("train", "fare-lite", "--set", "attack.epz=1"), "unknown key 'attack.epz'; did you mean 'eps'"),
        (("train", "fare-lite", "--set", "steps"), "--set wants key=value"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry"])
def test_what_does_not_fit_is_refused_before_anything_runs(run, tmp_path, words, message, dry):
    code, _, err = run(*words, "--data", EXAMPLES, "-o", tmp_path / "x", "--cpu", *dry)
    assert code == 1
    assert message in err
    assert not (tmp_path / "x").exists()


def test_recipes_are_listed_and_printed(run, tmp_path):
    from robustsim.training import list_recipes, load_recipe

    code, stdout, _ = run("recipes", "--json")
    assert code == 0
    assert [entry["name"] for entry in json.loads(stdout)] == list_recipes()
    assert "fare4-convnext-base" in run("recipes")[1]
    code, stdout, _ = run("recipes", "tecoa4-vit-b-16")
    (tmp_path / "printed.yaml").write_text(stdout)
    printed, bundled = load_recipe(tmp_path / "printed.yaml"), load_recipe("tecoa4-vit-b-16")
    assert printed.model_dump(exclude={"base"}) == bundled.model_dump(exclude={"base"})


def test_sigterm_saves_and_the_exit_code_says_so(tmp_path):
    out = tmp_path / "mine"
    words = ["train", "fare-lite", "--data", EXAMPLES, "-o", out, "--set", "steps=100000", *SMALL, *NONE_HELD]
    log, environment = out / "log.jsonl", {**os.environ, "OMP_NUM_THREADS": "1"}
    with started("-m", "robustsim", *words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        until(lambda: log.exists() and log.stat().st_size, lambda: process.poll() is None)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "the same command goes on" in err
    assert list((out / "checkpoints").glob("step-*.safetensors"))
