"""The training examples, in two processes each: they learn, agree, and go on after an interruption.

The processes find what `torchrun` tells those that it starts, as `accelerate launch` does too on several GPUs.
"""

import csv
import re
import signal
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.conftest import EXAMPLES
from tests.processes import two_ranks

# What Lightning tells its users, and is meant so.
LIGHTNING = [
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Found 1 module\(s\) in eval mode at the start of training",  # the metric
    r"Checkpoint directory .* exists and is not empty",
]
# Each example's words beyond those of all, and the warnings of its library that are let pass.
EXTRA = {
    "train_torch": ([], []),
    "train_lightning": (["--devices", "2"], LIGHTNING),
    "train_accelerate": (["--cpu"], []),
}
# With two processes, each reads two photographs an epoch to train, and two to judge: the second epoch is cut short.
EPOCHS, READS = 2, 6

JOB = f"""
import importlib, os, signal, sys, warnings
sys.path.insert(0, {str(EXAMPLES)!r})
import autoencoder
import torch

warnings.simplefilter("error")
for message in IGNORED:
    warnings.filterwarnings("ignore", message)
usual, reads = autoencoder.Photographs.__getitem__, 0


def limited(self, index):
    global reads
    reads += 1
    if reads == LIMIT:
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(self, index)


autoencoder.Photographs.__getitem__ = limited
words = ["--batch-size", "1", "--size", "32", "--epochs", "{EPOCHS}", "--lr", LR, "--output", OUTPUT]
model = importlib.import_module(NAME).main(["--data", {str(EXAMPLES)!r}, *words, *WORDS])
rank = os.environ.get("RANK", "0")
torch.save({{key: value.cpu() for key, value in model.state_dict().items()}}, OUTPUT + rank + ".pt")
"""

SCRIPT = """
import runpy, sys, warnings
sys.path.insert(0, DATA)  # as for a script that is there
warnings.simplefilter("error")
sys.argv = ["train_torch.py", "--data", DATA, "--output", "run", "--epochs", "1", "--size", "32"]
runpy.run_path(DATA + "/train_torch.py", run_name="__main__")
"""


def job(name, output, limit=0, words=None, lr="5e-3"):
    usual, ignored = EXTRA[name]
    words = usual if words is None else words
    given = {"NAME": name, "WORDS": words, "IGNORED": ignored, "OUTPUT": output, "LIMIT": limit, "LR": lr}
    return f"globals().update({given!r})\n{JOB}"


def in_two(forks, folder, name, output, limit=0):
    """An example in two processes, to its end or until each has read so many photographs; as `Forks.run`."""
    with two_ranks() as ranks:
        return forks.run(folder, job(name, output, limit), ranks)


def weights(folder, output):
    """What both processes ended with."""
    return [torch.load(folder / f"{output}{rank}.pt", weights_only=True) for rank in (0, 1)]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def course(folder, printed):
    """(epoch, loss, distance) after each epoch of the last run."""
    logs = sorted(folder.glob("log/version_*/metrics.csv"))
    if not logs:
        told = re.findall(r"^epoch (\d): loss (\S+), distance (\S+)$", printed, re.M)
        return [(int(epoch), float(loss), float(distance)) for epoch, loss, distance in told]
    rows = list(csv.DictReader(logs[-1].read_text().splitlines()))
    columns = [[float(row[key]) for row in rows if row[key]] for key in ("loss", "distance")]
    return list(zip(sorted({int(row["epoch"]) + 1 for row in rows}), *columns, strict=True))


@pytest.mark.parametrize("name", EXTRA)
def test_it_learns_agrees_and_goes_on(forks, name, tmp_path):
    if name != "train_torch":
        pytest.importorskip(name.removeprefix("train_"))
    codes, printed = in_two(forks, tmp_path, name, "whole")
    assert codes == [0, 0], "\n".join(printed)
    begin, end = course(tmp_path / "whole", printed[0])
    assert (begin[0], end[0]) == (1, 2)
    assert end[1] < begin[1] - 0.01
    assert end[2] < begin[2] - 0.005
    first, second = weights(tmp_path, "whole")
    assert same(first, second)

    # Killed in the second epoch and started again, it ends with the same weights, bit for bit.
    codes, printed = in_two(forks, tmp_path, name, "parts", READS)
    assert -signal.SIGKILL in codes, "\n".join(printed)
    assert 0 not in codes
    codes, printed = in_two(forks, tmp_path, name, "parts")
    assert codes == [0, 0], "\n".join(printed)
    assert course(tmp_path / "parts", printed[0]) == [end]
    assert all(same(first, other) for other in weights(tmp_path, "parts"))

    # A checkpoint is the weights and two averages of them, and nothing of the metric.
    trained = sum(value.numel() * value.element_size() for value in first.values())
    for folder in ("whole", "parts"):
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert max(path.stat().st_size for path in files) > trained
        assert all(path.stat().st_size < 3.5 * trained for path in files)


def test_lightning_goes_on_in_one_process_too(forks, tmp_path):
    pytest.importorskip("lightning")

    def alone(output, limit=0, lr="5e-3"):
        return forks.run(tmp_path, job("train_lightning", output, limit, ["--devices", "1"], lr), [{}])

    assert alone("whole")[0] == [0]
    assert alone("parts", 2 * READS - 2)[0] == [-signal.SIGKILL]
    codes, printed = alone("parts")
    assert codes == [0], "\n".join(printed)
    ends = [torch.load(tmp_path / f"{output}0.pt", weights_only=True) for output in ("whole", "parts")]
    assert same(*ends)
    # Where no epoch is better than the first, it goes on after the last of them all the same.
    assert alone("still", lr="0")[0] == [0]
    assert torch.load(tmp_path / "still" / "last.ckpt", weights_only=False)["epoch"] == EPOCHS - 1


def test_it_runs_as_a_script(forks, tmp_path):
    codes, [printed] = forks.run(tmp_path, f"DATA = {str(EXAMPLES)!r}\n{SCRIPT}", [{}])
    assert codes == [0], printed
    assert re.fullmatch(r"epoch 1: loss \S+, distance \S+\n", printed)
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


def kept_and_gradient(function, images):
    """Bytes that a graph keeps for the way back, and the gradient to the images."""
    images = images.clone().requires_grad_()
    kept = []

    def count(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = function(images).sum()
    loss.backward()
    return sum(kept), images.grad


def test_the_autoencoder_keeps_little_of_what_is_inside_it(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setitem(sys.modules, "autoencoder", None)
    monkeypatch.delitem(sys.modules, "autoencoder")  # what is imported here does not outlive the test
    import autoencoder

    model = autoencoder.Autoencoder().train()
    images = torch.rand(2, 3, 32, 32)
    kept, gradient = kept_and_gradient(model, images)
    monkeypatch.setattr(autoencoder, "checkpoint", lambda block, x, **_: block(x))
    without, expected = kept_and_gradient(model, images)
    assert kept < without / 2
    torch.testing.assert_close(gradient, expected)


def test_the_metric_can_be_checkpointed_too(metric):
    images, reference = torch.rand(2, 3, 32, 32), metric.embed(torch.rand(2, 3, 32, 32))
    kept, gradient = kept_and_gradient(lambda x: checkpoint(metric, x, reference, use_reentrant=False), images)
    without, expected = kept_and_gradient(lambda x: metric(x, reference), images)
    assert kept < without / 10
    assert torch.equal(gradient, expected)
