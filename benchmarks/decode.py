"""Decoding files exactly and by `decode="fast"`: CPU time, and how far the pixels and the embeddings are apart.

    python benchmarks/decode.py [FOLDER] [--count 200] [--runs 5]

Without a folder, photographs of 341 x 255, 1,600 x 1,200 and 4,000 x 3,000 pixels are made of those in examples/,
enlarged where they must be, with the noise of a sensor, and saved as JPEG.
"""

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robustsim import RobustSim
from robustsim.images import find_images
from robustsim.images.inputs import load_square, stack_squares

EXAMPLES = Path(__file__).parents[1] / "examples"
WAYS = ("exact", "fast")


def make_photographs(folder: Path, long: int, count: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    originals = [path for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".png", ".jpg")]
    for index in range(count):
        with Image.open(originals[index % len(originals)]) as opened:
            image = opened.convert("RGB")
        share = rng.uniform(0.8, 1)
        width, height = round(image.width * share), round(image.width * share * 3 / 4)
        height = min(height, image.height)
        left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((long, long * 3 // 4), Image.Resampling.LANCZOS)
        pixels = np.asarray(crop) + rng.normal(0, 4, (crop.height, crop.width, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:05}.jpg", quality=90)


def measure(metric: RobustSim, folder: Path, what: str, count: int, runs: int) -> None:
    files = [folder / path for path in islice(find_images(folder), count)]
    seen = metric.card.preprocessing
    squares = {way: [load_square(file, seen, way) for file in files] for way in WAYS}
    ratios = []
    for index in range(runs):
        spent = {}
        for way in WAYS if index % 2 else reversed(WAYS):
            start = time.process_time()
            for file in files:
                load_square(file, seen, way)
            spent[way] = time.process_time() - start
        ratios.append(spent["exact"] / spent["fast"])
    errors = [(a.int() - b.int()).abs() for a, b in zip(*squares.values(), strict=True)]
    means, most = [float(error.float().mean()) for error in errors], [int(error.max()) for error in errors]
    apart = []
    for start in range(0, len(files), metric.batch_size):
        z = [
            metric.embed_pixels(stack_squares(squares[way][start : start + metric.batch_size], metric.device))
            for way in WAYS
        ]
        apart += metric.distance(*z).tolist()
    print(f"{what}: {len(files)} files, {sum(not mean for mean in means)} of them the same to the bit")
    rounds = f"rounds from {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{statistics.median(ratios):8.2f}            CPU time, exact / fast; {rounds}")
    for name, values in (("mean error, in 1/255", means), ("largest error, in 1/255", most)):
        print(f"{statistics.median(values):8.2f}  {max(values):8.2f}  {name}: median and worst file")
    print(f"{statistics.median(apart):8.4f}  {max(apart):8.4f}  distance of the two embeddings: median and worst file")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    metric = RobustSim.from_pretrained("lite", device="cpu")
    if options.folder is not None:
        measure(metric, options.folder, str(options.folder), options.count, options.runs)
        return
    with tempfile.TemporaryDirectory() as made:
        for long, count in ((341, 40), (1600, 12), (4000, 4)):
            folder = Path(made) / str(long)
            make_photographs(folder, long, min(count, options.count))
            measure(metric, folder, f"made, {long} x {long * 3 // 4}", options.count, options.runs)


if __name__ == "__main__":
    main()
