"""Scoring on ONNX Runtime against torch: CPU time of batches, of int8, and of `robustsim compare` from a cold start.

    python benchmarks/onnx_runtime.py [--runs 7] [--batch 8]

Of ViT-B/32 with random weights, the torch side is open_clip's own model. Each round runs every way once, in turn; the
figures are medians of the ratios within a round. One thread each: CPU time then is what a machine at rest would take.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from cold_start import CLI, COMMANDS, EXAMPLES, cpu_seconds

from robustsim import RobustSim, from_onnx
from robustsim.encoders import EncoderCard, export_encoder, load_card
from robustsim.encoders.encoder import build_encoder
from robustsim.onnx import bundled

VIT = "clip-vit-b-32"


def ratios(ways: dict[str, Callable[[], Any]], runs: int) -> None:
    for way in ways.values():
        way()
    rounds = []
    for _ in range(runs):
        times = {}
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name] = time.process_time() - start
        rounds.append(times)
    first = next(iter(ways))
    for name in ways:
        seconds = statistics.median(times[name] for times in rounds)
        faster = statistics.median(times[first] / times[name] for times in rounds)
        print(f"{1e3 * seconds:8.1f} ms CPU  {faster:5.2f} x  {name}", flush=True)


def random_vit(folder: Path) -> tuple[Any, EncoderCard, dict[str, Path]]:
    card = load_card(VIT)
    theirs = open_clip.create_model("ViT-B-32-quickgelu" if card.architecture.quick_gelu else "ViT-B-32").eval()
    encoder = build_encoder(card)
    from robustsim.encoders import clip

    visual = {key: value for key, value in theirs.state_dict().items() if key.startswith("visual.")}
    encoder.load_state_dict(clip.adopt(visual))
    files = {}
    for int8 in (False, True):
        files["int8" if int8 else "float32"] = path = folder / f"vit-{int8}.onnx"
        said = export_encoder(encoder, path, int8=int8)
        if said.int8 is not None:
            print(f"int8 of {VIT}, random weights: {dict(said.int8)}")
    return theirs, card, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pixels = torch.rand(arguments.batch, 3, 224, 224)
    array = pixels.numpy()

    metric, runner = RobustSim.from_pretrained("lite", device="cpu"), bundled("lite")
    with torch.inference_mode():
        print(f"lite, {arguments.batch} pictures")
        ways: dict[str, Callable[[], Any]] = {
            "torch": lambda: metric.embed_pixels(pixels),
            "onnx": lambda: runner.embed_pixels(array),
        }
        ratios(ways, arguments.runs)
    with tempfile.TemporaryDirectory() as folder:
        theirs, card, files = random_vit(Path(folder))
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
        loaded = {name: from_onnx(path) for name, path in files.items()}
        with torch.inference_mode():
            print(f"{VIT}, {arguments.batch} pictures")
            ways = {"open_clip": lambda: theirs.encode_image((pixels - mean) / std, normalize=True)}
            for name, one in loaded.items():
                ways[f"onnx, {name}"] = lambda one=one: one.embed_pixels(array)  # type: ignore[misc]
            ratios(ways, arguments.runs)

    floor = next(iter(COMMANDS.values()))
    compare = [*CLI, "compare", str(EXAMPLES / "chelsea.png"), str(EXAMPLES / "coffee.png")]
    commands = {
        "floor: import torch, numpy, PIL.Image": floor,
        "compare, torch": [*compare, "--engine", "torch"],
        "compare, onnx": [*compare, "--engine", "onnx"],
    }
    print("from a cold start")
    for command in commands.values():
        cpu_seconds(command)
    rounds = [{name: cpu_seconds(command) for name, command in commands.items()} for _ in range(arguments.runs)]
    for name in commands:
        seconds = statistics.median(times[name] for times in rounds)
        share = statistics.median(times[name] / next(iter(times.values())) for times in rounds)
        print(f"{seconds:8.2f} s CPU   {share:5.3f} x  {name}")


if __name__ == "__main__":
    sys.exit(main())
