"""Embedding a folder, against the slower of decoding alone and encoding alone; and its memory as the folder grows.

    python benchmarks/embed_folder.py [--folder DIR] [--count 1000] [--runs 3] [--threads 2] [--memory]

Without a folder, photographs of 500 x 375 pixels are cut from those in examples/ and saved as JPEG.
"""

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from robustsim import RobustSim
from robustsim.images import find_images, prefetch
from robustsim.images.inputs import load_square, stack_squares
from robustsim.search import embed_images

EXAMPLES = Path(__file__).parents[1] / "examples"
PEAK = """
import resource, sys
from robustsim import RobustSim
from robustsim.search import embed_folder
embed_folder(RobustSim.from_pretrained(device="cpu"), sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def make_photographs(folder: Path, count: int) -> None:
    rng = random.Random(0)
    originals = []
    for path in sorted(EXAMPLES.iterdir()):
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                originals.append(image.convert("RGB"))
    for index in range(count):
        image = originals[index % len(originals)]
        width = rng.randint(image.width // 2, image.width)
        height = min(image.height, width * 3 // 4)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        crop = image.crop((left, top, left + width, top + height)).resize((500, 375))
        crop.save(folder / f"{index:05}.jpg", quality=90)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def drain(iterator: object) -> None:
    for _ in iterator:  # type: ignore[attr-defined]
        pass


def speed(folder: Path, count: int, runs: int) -> None:
    metric = RobustSim.from_pretrained(device="cpu")
    files = [folder / path for path in islice(find_images(folder), count)]
    decode = partial(load_square, preprocessing=metric.card.preprocessing)
    squares = list(prefetch(decode, files))
    size = metric.batch_size
    batches = [squares[start : start + size] for start in range(0, len(squares), size)]

    def encode() -> None:
        for batch in batches:
            metric.embed_pixels(stack_squares(batch, metric.device))

    jobs = {
        "decoding alone": lambda: drain(prefetch(decode, files, ahead=2 * size)),
        "encoding alone": encode,
        "embed": lambda: drain(islice(embed_images(metric, folder), count)),
    }
    encode()
    rounds = []
    for index in range(runs):
        names = list(jobs) if index % 2 else list(reversed(jobs))
        rounds.append({name: seconds(jobs[name]) for name in names})
    for name in jobs:
        print(f"{statistics.median(times[name] for times in rounds):6.2f} s     {name}, {len(files)} photographs")
    ratio = statistics.median(
        times["embed"] / max(times["decoding alone"], times["encoding alone"]) for times in rounds
    )
    print(f"{ratio:6.3f}       embed / the slower of the two")


def memory(folder: Path) -> None:
    files = [folder / path for path in find_images(folder)]
    for copies in (1, 4):
        with tempfile.TemporaryDirectory() as root:
            for index in range(copies):
                for path in files:
                    shutil.copy(path, Path(root) / f"{index}-{path.name}")
            command = [sys.executable, "-c", PEAK, root, str(Path(root) / "out.npz")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{done.stdout.strip():>6} MB    peak memory of embedding {copies * len(files)} photographs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder
        if folder is None:
            folder = Path(made)
            make_photographs(folder, options.count)
        (memory(folder) if options.memory else speed(folder, options.count, options.runs))


if __name__ == "__main__":
    main()
