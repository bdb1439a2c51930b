"""Processes of their own, and waiting for what they do: for an event, however long it takes, and never for a time.

pytest's own time limit (`timeout` in pyproject.toml) is the one against hangs.
"""

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
