"""Processes of their own, and waiting for what they do: for an event, however long it takes, and never for a time.

pytest's own time limit (`timeout` in pyproject.toml) is the one against hangs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

# For the end of a job: it tells that it is there, and waits to be killed. So no job is done before, however fast.
GATE = """
def gate(path):
    import pathlib, time
    pathlib.Path(path).touch()
    while True:
        time.sleep(60)
"""


@contextmanager
def started(*words, **options):
    """Python with these words, in a process that does not outlive the test."""
    process = subprocess.Popen([sys.executable, *map(str, words)], **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition, running):
    """Wait until `condition()`; the process, of which `running()` tells whether it is there, must not end before."""
    while not condition():
        if not running():
            assert condition(), "the process ended before"
            return
        time.sleep(0.005)


def killed(server, code, begun, gate, moment):
    """Start code that ends at a gate, on a server of `tests.trainings`, and kill it a moment after `begun()`."""
    gate.unlink(missing_ok=True)
    child = server.start(code)
    # It may have come to its gate with nothing left to begin.
    until(lambda: begun() or gate.exists(), lambda: _runs(child))
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL


def _runs(child):
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return False
    return True


_FORKING = """
import os, sys, traceback
for name in NAMES:
    try:
        __import__(name)
    except ImportError:  # not here: tests of it are skipped
        pass
import torch
torch.set_num_threads(1)


def fork(code, environment, told):
    child = os.fork()
    if child:
        return child
    failed = 1
    try:
        with open(told, "w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        exec(code, {})
        failed = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(failed)


for line in sys.stdin:
    children = {fork(*one): place for place, one in enumerate(eval(line))}
    codes = [None] * len(children)
    while children:  # one that fails takes the others with it, which would wait for it
        child, status = os.wait()
        place = children.pop(child)
        codes[place] = os.waitstatus_to_exitcode(status)
        for other in children:
            if codes[place]:
                os.kill(other, 9)
    print(codes, flush=True)
os._exit(0)
"""


class Forks:
    """Runs pieces of code beside each other, each in a fork of a process that has done nothing but import."""

    def __init__(self, root, names):
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"NAMES = {names!r}\n{_FORKING}"], env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, folder, code, environments):
        """How they have ended, and what each has printed.

        Args:
            folder: where they run.
            code: what each of them runs.
            environments: what is added to the environment of each.
        """
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


@contextmanager
def two_ranks():
    """What `torchrun` would add to the environments of two processes; it keeps the store that they meet in."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    }  # fmt: skip
    yield [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    del store
