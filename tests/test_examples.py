"""The training examples, in two processes each: they learn, agree, and go on after an interruption.

They are started as `torchrun` does, and so does `accelerate launch` on several GPUs; on CPUs it would want MPI.
"""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from tests.conftest import EXAMPLES, ROOT

# Photographs are read twice an epoch to train and twice to judge: it is interrupted in the third.
EPOCHS, READS = 4, 10

JOB = f"""
import hashlib, importlib, json, os, sys, warnings
from pathlib import Path

name, root, words, ignored = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
warnings.simplefilter("error")
for message in ignored:
    warnings.filterwarnings("ignore", message)
sys.path.insert(0, {str(EXAMPLES)!r})

import torch
import torch.distributed as dist
import autoencoder

torch.set_num_threads(1)
main = importlib.import_module(name).main
words = ["--data", {str(EXAMPLES)!r}, "--batch-size", "1", "--size", "32", "--epochs", "{EPOCHS}", *words]


class Interrupted(Exception):
    pass


def run(output):
    model = main([*words, "--output", str(root / output)])
    return {{key: value.cpu() for key, value in model.state_dict().items()}}


usual, reads = autoencoder.Photographs.__getitem__, 0
def limited(self, index):
    global reads
    reads += 1
    if reads == {READS}:
        raise Interrupted
    return usual(self, index)


whole = run("whole")
autoencoder.Photographs.__getitem__ = limited
try:
    run("parts")
    sys.exit("it was not interrupted")
except Interrupted:
    autoencoder.Photographs.__getitem__ = usual
print("interrupted", flush=True)
if name == "train_accelerate":
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(True)  # as in a new process
if dist.is_initialized() and name != "train_lightning":  # which goes on with the same group
    dist.destroy_process_group()
parts = run("parts")
torch.save({{"whole": whole, "parts": parts}}, root / f"{{os.environ['RANK']}}.pt")
"""

# What Lightning tells its users, and is meant so.
LIGHTNING = [
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Found 1 module\(s\) in eval mode at the start of training",  # the metric
    r"Checkpoint directory .* exists and is not empty",
]
EXAMPLE = {
    "train_torch": ([], []),
    "train_lightning": (["--devices", "2"], LIGHTNING),
    "train_accelerate": (["--cpu"], []),
}


@pytest.fixture(scope="module", params=EXAMPLE)
def ran(request, tmp_path_factory):
    """An example's name, its folder, what its first process has printed, and the weights that both ended with."""
    name = request.param
    words, ignored = EXAMPLE[name]
    if name != "train_torch":
        pytest.importorskip(name.removeprefix("train_"))
    root = tmp_path_factory.mktemp(name)
    (root / "job.py").write_text(JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(root / "job.py"), name, str(root), json.dumps(words), json.dumps(ignored)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = [torch.load(root / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return name, root, done.stdout, weights


def test_it_learns(ran):
    name, root, printed, _ = ran
    if name == "train_lightning":
        rows = list(csv.DictReader((root / "whole" / "log" / "version_0" / "metrics.csv").open()))
        losses, distances = ([float(row[key]) for row in rows if row[key]] for key in ("loss", "distance"))
    else:
        told = re.findall(r"^epoch (\d): loss (\S+), distance (\S+)$", printed.partition("interrupted")[0], re.M)
        assert [int(epoch) for epoch, _, _ in told] == [1, 2, 3, 4]
        losses, distances = zip(*((float(loss), float(distance)) for _, loss, distance in told), strict=True)
    assert len(losses) == len(distances) == EPOCHS
    assert losses[-1] < losses[0] - 0.01
    assert distances[-1] < distances[0] - 0.01


def test_both_processes_have_the_same_weights(ran):
    first, second = ran[-1]
    assert first["whole"].keys() == second["whole"].keys()
    assert all(torch.equal(value, second["whole"][key]) for key, value in first["whole"].items())


def test_an_interrupted_run_ends_with_the_same_weights(ran):
    for told in ran[-1]:
        assert all(torch.equal(value, told["parts"][key]) for key, value in told["whole"].items())


def test_checkpoints_hold_nothing_of_the_metric(ran):
    _, root, _, weights = ran
    trained = sum(value.numel() * value.element_size() for value in weights[0]["whole"].values())
    files = [path for path in (root / "whole").rglob("*") if path.suffix in (".pt", ".ckpt", ".safetensors", ".bin")]
    assert files
    for path in files:
        assert path.stat().st_size < 3.5 * trained, path  # the weights, and two averages of the optimiser


def test_it_runs_as_a_script(tmp_path):
    words = [EXAMPLES / "train_torch.py", "--data", EXAMPLES, "--output", tmp_path, "--epochs", "1", "--size", "32"]
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"epoch 1: loss \S+, distance \S+\n", done.stdout)
