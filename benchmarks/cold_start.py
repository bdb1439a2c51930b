"""CPU time of short-lived processes, against the import of what they cannot do without.

    python benchmarks/cold_start.py [--runs 7]

Each round runs every command once, in turn; the figures are medians of the ratios within a round. `compare` runs on
torch; what it takes on ONNX Runtime, `onnx_runtime.py` measures.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
CLI = [sys.executable, "-m", "robustsim"]
COMMANDS = {
    "floor: import torch, numpy, PIL.Image": [sys.executable, "-c", "import torch, numpy, PIL.Image"],
    "compare two files": [*CLI, "compare", str(EXAMPLES / "chelsea.png"), str(EXAMPLES / "coffee.png")],
    "--help": [*CLI, "--help"],
    "import robustsim": [sys.executable, "-c", "import robustsim"],
}


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "ROBUSTSIM_ENGINE": "torch"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    for command in COMMANDS.values():  # warm the disk's cache
        cpu_seconds(command)
    rounds = [{name: cpu_seconds(command) for name, command in COMMANDS.items()} for _ in range(runs)]
    floor, compare, *_ = COMMANDS
    for name in COMMANDS:
        print(f"{statistics.median(times[name] for times in rounds):6.2f} s CPU  {name}")
    ratio = statistics.median(times[compare] / times[floor] for times in rounds)
    print(f"{ratio:6.3f} x        {compare} / {floor}")


if __name__ == "__main__":
    main()
