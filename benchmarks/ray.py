"""An index on Ray against a single process, which has one core, as each worker has.

    python benchmarks/ray.py [--folder DIR] [--count 512] [--runs 3] [--model lite]

Without a folder, photographs of 500 x 375 pixels are cut from those in examples/ and saved as JPEG. What is timed is
the way from a quarter of the pictures to all of them, embedded and sealed: without the starts of processes, which have
loaded their models by then. The whole time, with the starts, is told beside it.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.pop(0)  # this folder, in which `ray` is this file
sys.path.insert(0, os.fspath(Path(__file__).parents[1]))

import torch

from benchmarks.embed_folder import make_photographs
from robustsim.search import Index
from robustsim.search.scale import RayRunner, SpreadIndex


def seconds(index: Index, folder: Path, count: int) -> tuple[float, float]:
    """For each picture after the first quarter, and for all of them with the start."""
    done, begin, first = 0, time.perf_counter(), (0, 0.0)

    def progress(more: int) -> None:
        nonlocal done, first
        done += more
        if done >= count // 4 and not first[0]:
            first = done, time.perf_counter()

    report = index.add(folder, progress=progress)
    end = time.perf_counter()
    assert report.added == count
    return (end - first[1]) / (count - first[0]), end - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="lite")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # that of the single process; 15 is usual
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = given.folder or root / "photos"
        if given.folder is None:
            folder.mkdir()
            make_photographs(folder, given.count)
        count = sum(1 for path in folder.rglob("*") if path.is_file())
        made: dict[str, list[tuple[float, float]]] = {"alone": [], "one worker": [], "two workers": []}
        for run in range(given.runs):
            for name, times in made.items():
                place = root / f"{name}-{run}"
                index = Index.create(place, given.model, device="cpu")
                if name == "alone":
                    os.sched_setaffinity(0, cores[:1])
                    times.append(seconds(index, folder, count))
                    os.sched_setaffinity(0, cores)
                else:
                    workers = 1 if name == "one worker" else 2
                    with RayRunner(
                        "local", workers=workers, num_cpus=workers, object_store_memory=200_000_000
                    ) as runner:
                        times.append(seconds(SpreadIndex(index, runner), folder, count))
                shutil.rmtree(place)
    rates = {name: statistics.median(one for one, _ in times) for name, times in made.items()}
    for name, times in made.items():
        whole = statistics.median(one for _, one in times)
        print(f"{name:12} {1000 * rates[name]:7.1f} ms a picture; {whole:6.1f} s for {count} with the start")
    print(f"two workers are {rates['alone'] / rates['two workers']:.2f} times as fast as one process")
    print(f"one worker takes {rates['one worker'] / rates['alone']:.2f} times as long as one process")


if __name__ == "__main__":
    main()
