"""The training examples, in two processes each: they learn, agree, and go on after an interruption.

The processes find what `torchrun` tells those that it starts, as `accelerate launch` does too on several GPUs. They are
forks of one that has done nothing but import, so that each library is imported once.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch.distributed import TCPStore

from tests.conftest import EXAMPLES, ROOT

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
EPOCHS, READS = 3, 6

SERVER = f"""
import os, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import torch
import autoencoder
for name in {list(EXTRA)!r}:
    try:
        __import__(name)
    except ImportError:  # of a library that is not here: its test is skipped
        pass
torch.set_num_threads(1)


def fork(code, environment, told):
    child = os.fork()
    if child:
        return child
    code_at_end = 1
    try:
        with open(told, "w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.environ.update(environment)
            exec(code, {{}})
        code_at_end = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code_at_end)


for line in sys.stdin:
    children = {{fork(*one) for one in eval(line)}}
    codes = []
    while children:  # one that fails takes the others with it, which would wait for it
        child, status = os.wait()
        children.discard(child)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1]:
            for other in children:
                os.kill(other, 9)
    print(codes, flush=True)
"""

JOB = f"""
import importlib, os, signal, warnings
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
words = ["--batch-size", "1", "--size", "32", "--epochs", "{EPOCHS}", "--lr", "5e-3", "--output", OUTPUT]
model = importlib.import_module(NAME).main(["--data", {str(EXAMPLES)!r}, *words, *WORDS])
torch.save({{key: value.cpu() for key, value in model.state_dict().items()}}, OUTPUT + os.environ["RANK"] + ".pt")
"""

SCRIPT = """
import runpy, sys, warnings
warnings.simplefilter("error")
sys.argv = ["train_torch.py", "--data", DATA, "--output", "run", "--epochs", "1", "--size", "32"]
runpy.run_path(DATA + "/train_torch.py", run_name="__main__")
"""


class Server:
    """Runs pieces of code beside each other, each in a process of its own."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, folder, code, environments):
        """How they have ended, and what each has printed."""
        told = [folder / f"{number}.txt" for number in range(len(environments))]
        code = f"import os; os.chdir({str(folder)!r})\n{code}"
        jobs = [(code, environment, str(file)) for environment, file in zip(environments, told, strict=True)]
        self.process.stdin.write(f"{jobs!r}\n")
        codes = json.loads(self.process.stdout.readline())
        return codes, [file.read_text() for file in told]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def in_two(server, folder, name, output, limit=0):
    """An example in two processes, to its end or until each has read so many photographs; as `Server.run`."""
    words, ignored = EXTRA[name]
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    }  # fmt: skip
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    given = {"NAME": name, "WORDS": words, "IGNORED": ignored, "OUTPUT": output, "LIMIT": limit}
    return server.run(folder, f"globals().update({given!r})\n{JOB}", ranks)


def weights(folder, output):
    """What both processes ended with."""
    return [torch.load(folder / f"{output}{rank}.pt", weights_only=True) for rank in (0, 1)]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def course(folder, printed):
    """Loss and distance after each epoch."""
    log = folder / "whole" / "log" / "version_0" / "metrics.csv"
    if log.exists():
        rows = list(csv.DictReader(log.read_text().splitlines()))
        return [[float(row[key]) for row in rows if row[key]] for key in ("loss", "distance")]
    told = re.findall(r"^epoch (\d): loss (\S+), distance (\S+)$", printed, re.M)
    assert [int(epoch) for epoch, _, _ in told] == list(range(1, EPOCHS + 1))
    return [[float(line[place]) for line in told] for place in (1, 2)]


@pytest.mark.parametrize("name", EXTRA)
def test_it_learns_agrees_and_goes_on(server, name, tmp_path):
    if name != "train_torch":
        pytest.importorskip(name.removeprefix("train_"))
    codes, printed = in_two(server, tmp_path, name, "whole")
    assert codes == [0, 0], "\n".join(printed)
    for values in course(tmp_path, printed[0]):
        assert len(values) == EPOCHS
        assert values[-1] < values[0] - 0.01
    first, second = weights(tmp_path, "whole")
    assert same(first, second)

    # Killed in the second epoch and started again, it ends with the same weights, bit for bit.
    codes, printed = in_two(server, tmp_path, name, "parts", READS)
    assert codes == [-signal.SIGKILL] * 2, "\n".join(printed)
    codes, printed = in_two(server, tmp_path, name, "parts")
    assert codes == [0, 0], "\n".join(printed)
    assert all(same(first, other) for other in weights(tmp_path, "parts"))

    # A checkpoint is the weights and two averages of them, and nothing of the metric.
    trained = sum(value.numel() * value.element_size() for value in first.values())
    for folder in ("whole", "parts"):
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert max(path.stat().st_size for path in files) > trained
        assert all(path.stat().st_size < 3.5 * trained for path in files)


def test_it_runs_as_a_script(server, tmp_path):
    codes, [printed] = server.run(tmp_path, f"DATA = {str(EXAMPLES)!r}\n{SCRIPT}", [{}])
    assert codes == [0], printed
    assert re.fullmatch(r"epoch 1: loss \S+, distance \S+\n", printed)
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
