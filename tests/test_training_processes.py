"""Two processes that share a run, on CPUs: what they end with is what one would, but for rounding.

They are started as ``torchrun`` does, which ``accelerate launch`` does too on several GPUs; on CPUs it would want MPI.
"""

import json
import os
import subprocess
import sys

import pytest

from robustsim.errors import InputError
from robustsim.training import finetune, train
from robustsim.training.loop.log import read_log
from robustsim.training.loop.processes import Processes
from robustsim.training.loop.state import find_checkpoints, read_checkpoint
from tests import trainings
from tests.conftest import ROOT
from tests.judges import triplets
from tests.trainings import finetune_recipe, furthest, pictures, recipe, weights

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = {"cpu": True, "progress": False, "tensorboard": False}
PLAIN = {
    "optimizer": {"lr": 1e-2, "relative": True, "weight_decay": 1e-2, "warmup_steps": 2, "clip_norm": 1.0},
    "ema": 0.9, "accumulate": 2, "steps": 25, "validation": {"every": 6, "images": 5, "steps": 2},
}  # fmt: skip
LORA = {"adapter": {"name": "lora", "r": 2, "dropout": 0.0, "targets": ["last"]}}

# Every line of `told` is what one process has seen.
JOB = """
import json, os, signal, sys
from pathlib import Path
import torch
from torch import nn
from robustsim.errors import OutputError, TrainingError, InputError
from robustsim.training import Stopped, finetune, train
from robustsim.training.loop import loop as loops
from robustsim.training.loop.processes import Processes
from tests import trainings
from tests.test_training_processes import LORA, PLAIN, SHARED
from tests.trainings import finetune_recipe, recipe

torch.set_num_threads(1)
setattr(*trainings.use())
root, wanted = Path(sys.argv[1]), sys.argv[2]
processes = Processes(cpu=True)
told = (root / f"{wanted}-{processes.rank}-of-{processes.world}.jsonl").open("w")
tell = lambda name, value: print(json.dumps([name, value]), file=told, flush=True)
data = root / "data"


def refused(name, call, *kinds):
    try:
        call()
        tell(name, "went through")
    except kinds as error:
        tell(name, f"{type(error).__name__}: {error}")


def signalled(rank, step, call):
    # One process alone is sent a signal.
    usual = loops.Loop._step
    def one(self, batches, at):
        seen = usual(self, batches, at)
        if at + 1 == step and self.processes.rank == rank:
            signal.raise_signal(signal.SIGTERM)
        return seen
    loops.Loop._step = one
    try:
        call()
    except Stopped as stopped:
        return stopped.step
    finally:
        loops.Loop._step = usual


def spoilt(x):
    return x * float("nan") if processes.rank == 1 else x


class Spoiler(nn.Module):
    count = 0
    def __deepcopy__(self, memo):
        return nn.Identity()
    def forward(self, x):
        self.count += self.training
        return spoilt(x) if self.training and self.count == 8 else x


if wanted == "ddp":
    train(recipe(**PLAIN), data, root / "two", **SHARED)
    tell("stopped", signalled(1, 7, lambda: train(recipe(**PLAIN), data, root / "stopped", **SHARED)))
    finetune(finetune_recipe(), root / "triplets" / "triplets.csv", root / "mlp", **SHARED)
    refused("another recipe", lambda: train(recipe(), data, root / "two", **SHARED), OutputError)
    refused("batch", lambda: train(recipe(batch_size=5), data, root / "batch", **SHARED), InputError)
    setattr(*trainings.use(lambda: trainings.encoder(Spoiler())))
    refused("spoilt", lambda: train(recipe(validation={"images": 0}), data, root / "spoilt", **SHARED), TrainingError)

if wanted == "lora":
    finetune(finetune_recipe(**LORA), root / "triplets" / "triplets.csv", root / "lora", **SHARED)

if wanted == "fsdp":
    # Accelerate does not do it on CPUs by itself, but all of its parts do.
    from accelerate.utils import FullyShardedDataParallelPlugin
    state = processes.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    prepare = Processes.prepare
    def watched(self, module, optimizer):
        wrapped, inner = prepare(self, module, optimizer)
        tell("kinds", sorted({type(one).__name__ for one in wrapped.parameters()}))
        return wrapped, inner
    Processes.prepare = watched
    train(recipe(**PLAIN), data, root / "sharded", **SHARED)
    tell("stopped", signalled(1, 7, lambda: train(recipe(**PLAIN), data, root / "sharded-stopped", **SHARED)))
    train(recipe(**PLAIN), data, root / "sharded-stopped", **SHARED)
    refused("adapters", lambda: finetune(finetune_recipe(), root / "triplets" / "triplets.csv", root / "x", **SHARED),
            InputError)
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    refused("version", lambda: train(recipe(), data, root / "y", **SHARED), InputError)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with data, of which one image and one to judge on are damaged, and what one process makes of them."""
    root = tmp_path_factory.mktemp("processes")
    data = pictures(root / "data", 16)
    triplets(root / "triplets", 40, images=12)
    for name in ("003.png", "007.png"):
        (data / name).write_bytes(b"no picture")
    (root / "job.py").write_text(JOB)
    patch = pytest.MonkeyPatch()
    patch.setattr(*trainings.use())
    train(recipe(**PLAIN), data, root / "one", **SHARED)
    finetune(finetune_recipe(), root / "triplets" / "triplets.csv", root / "mlp-one", **SHARED)
    patch.undo()
    return root


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(*trainings.use())


def launch(root, wanted):
    """Run a part of the job in two processes; what each has told."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(root / "job.py"), str(root), wanted],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [root / f"{wanted}-{rank}-of-2.jsonl" for rank in (0, 1)]
    return [dict(map(json.loads, file.read_text().splitlines())) for file in files]


@pytest.fixture(scope="module")
def told(root):
    return launch(root, "ddp")


def lines(output, kind):
    free = ("seconds", "images_per_second", "triplets_per_second")
    return [
        {key: value for key, value in entry.items() if key not in free}
        for entry in read_log(output)
        if entry["kind"] == kind
    ]


def agree(a, b):
    """The same lines, but for rounding."""
    assert len(a) == len(b) > 0
    for one, other in zip(a, b, strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_two_processes_train_to_the_weights_of_one(root, told):
    assert 0 < furthest(weights(root / "one"), weights(root / "two")) < 1e-5


def test_they_judge_as_one_does(root, told):
    agree(lines(root / "one", "validation"), lines(root / "two", "validation"))
    agree(lines(root / "one", "train"), lines(root / "two", "train"))


def test_what_cannot_be_read_is_counted_once(root, told):
    skipped = [(root / name / "skipped.txt").read_text().splitlines() for name in ("one", "two")]
    assert sorted(skipped[0]) == sorted(skipped[1])
    assert len(skipped[0]) == len(set(skipped[0])) == lines(root / "two", "validation")[-1]["skipped"] == 2


def test_a_signal_to_one_of_them_ends_both_and_one_process_can_go_on(root, told, small):
    assert [one["stopped"] for one in told] == [7, 7]
    train(recipe(**PLAIN), root / "data", root / "stopped", **SHARED)
    assert 0 < furthest(weights(root / "one"), weights(root / "stopped")) < 1e-5
    assert [entry["step"] for entry in lines(root / "stopped", "train")] == [10, 20, 25]


def test_fine_tuning_a_head_is_shared_too(root, told):
    assert 0 < furthest(weights(root / "mlp-one"), weights(root / "mlp")) < 1e-5
    agree(lines(root / "mlp-one", "validation"), lines(root / "mlp", "validation"))


@pytest.mark.slow
def test_fine_tuning_adapters_is_shared_too(root, small):
    launch(root, "lora")
    finetune(finetune_recipe(**LORA), root / "triplets" / "triplets.csv", root / "lora-one", **SHARED)
    assert 0 < furthest(weights(root / "lora-one"), weights(root / "lora")) < 1e-5
    agree(lines(root / "lora-one", "validation"), lines(root / "lora", "validation"))


def test_what_ends_one_ends_the_other(root, told):
    assert told[0]["another recipe"].startswith("OutputError: ")
    assert "holds a run that differs: " in told[0]["another recipe"]
    assert told[1]["another recipe"] == "OutputError: the first process could not do its work, and has said why"
    assert {one["batch"] for one in told} == {
        "InputError: batch_size 5 cannot be shared by 2 processes in 1 parts each: change batch_size or accumulate"
    }
    # What all have together, after the loss of the other.
    assert "TrainingError: step 8: gradient_norm is not finite" in told[0]["spoilt"]
    assert "TrainingError: step 8: adversarial is not finite" in told[1]["spoilt"]
    assert read_checkpoint(find_checkpoints(root / "spoilt")[-1]).step == 5


@pytest.mark.slow
def test_sharded_weights_are_trained_to_the_same(root, small):
    """FSDP, with accelerate's own preparation: attacks, averages, checkpoints and judgements see whole weights."""
    told = launch(root, "fsdp")
    assert {tuple(one["kinds"]) for one in told} == {("DTensor",)}
    assert 0 < furthest(weights(root / "one"), weights(root / "sharded")) < 1e-5
    agree(lines(root / "one", "train"), lines(root / "sharded", "train"))
    agree(lines(root / "one", "validation"), lines(root / "sharded", "validation"))
    assert [one["stopped"] for one in told] == [7, 7]
    assert furthest(weights(root / "sharded"), weights(root / "sharded-stopped")) < 1e-6
    a, b = (read_checkpoint(find_checkpoints(root / name)[-1]).tensors for name in ("one", "sharded"))
    assert {name: value.shape for name, value in a.items()} == {name: value.shape for name, value in b.items()}
    assert furthest(a, b) < 1e-4
    assert "adapters are too small to be sharded" in told[0]["adapters"]
    assert "launch it with --multi_gpu, or with --use_fsdp --fsdp_version 2" in told[1]["version"]


def test_a_run_can_move_from_one_process_to_sharded_weights(root):
    """Their checkpoints are the same, so either goes on where the other was; the names above say so."""
    state = read_checkpoint(find_checkpoints(root / "one")[-1])
    assert all("_fsdp" not in name and "module." not in name for name in state.tensors)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM"])
def test_other_ways_of_accelerate_are_refused(monkeypatch, kind):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType[kind]))
    with pytest.raises(InputError, match=rf"accelerate was launched for {kind}: launch it with --multi_gpu"):
        Processes(cpu=True)
