"""Encode, APGD and a FARE step on a GPU, against open_clip's modules in float32, as research code calls them.

python benchmarks/gpu.py [MODEL ...] [--batch 64] [--steps 10] [--runs 5] [--device cuda] [--no-compile]

Random weights of the real architectures; rounds in turn in one process, medians of the clock's seconds with the device
waited for, and the largest memory of a round. Without a GPU, `--device cpu --batch 2 --steps 2 --runs 1` shows that it
runs, and measures nothing that matters.
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.attacks import APGD, Untargeted
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.measuring import own_modules, random_encoder

MODELS = ("clip-vit-b-32", "clip-vit-l-14", "clip-convnext-base")
EPS = 4 / 255
Function = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{card}; torch {torch.__version__}; batch {options.batch}, {options.steps} steps")
    for name in options.models:
        measure(name, options, device)


def measure(name: str, options: Any, device: torch.device) -> None:
    """A table of one model: seconds, ratio to the first way, and memory."""
    encoder = random_encoder(name).to(device).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    size = encoder.card.preprocessing.size
    squares = torch.randint(0, 256, (options.batch, size, size, 3), dtype=torch.uint8, generator=generator)
    pixels = squares.permute(0, 3, 1, 2).to(device).float().div(255).contiguous()
    pinned = squares.pin_memory() if device.type == "cuda" else squares
    ways = variants(encoder, compiled=not options.no_compile)
    print(name)
    table("encode", {way: encoding(function, pixels) for way, function in ways.items()}, options.runs, device)
    table(
        "encode, from bytes in the host's memory",
        {
            "open_clip, float32": from_host(ways["open_clip, float32"], squares, device),
            **{way: from_host(function, pinned, device) for way, function in ways.items() if "open_clip" not in way},
        },
        options.runs,
        device,
    )
    table("APGD", {way: apgd(function, pixels, options.steps) for way, function in ways.items()}, options.runs, device)
    table("FARE step", fare_steps(encoder, pixels, options), options.runs, device)


def variants(encoder: Encoder, *, compiled: bool) -> dict[str, Function]:
    """Ways to run an encoder, pixels to unit embeddings in float32; the first is what the others are held against."""
    ways: dict[str, Function] = {"open_clip, float32": unit(own_modules(encoder)), "float32": unit(encoder)}
    small = copy.deepcopy(encoder).bfloat16()
    ways["bfloat16"] = unit(small)
    if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in encoder.modules()):
        ways["bfloat16, channels last"] = unit(copy.deepcopy(small).to(memory_format=torch.channels_last))
    if compiled:
        ways["bfloat16, compiled"] = unit(torch.compile(copy.deepcopy(small)))
    return ways


def unit(function: Any) -> Function:
    return lambda pixels: F.normalize(function(pixels).float(), dim=1)


def encoding(function: Function, pixels: Tensor) -> Callable[[], Any]:
    def run() -> Tensor:
        with torch.no_grad():
            return function(pixels)

    return run


def from_host(function: Function, squares: Tensor, device: torch.device) -> Callable[[], Any]:
    """As pictures come from files; those in pinned memory travel while the device computes."""

    def run() -> Tensor:
        with torch.no_grad():
            rows = [
                function(part.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div(255))
                for part in squares.chunk(4)
            ]
            return torch.cat(rows).cpu()

    return run


def apgd(function: Function, pixels: Tensor, steps: int) -> Callable[[], Any]:
    with torch.no_grad():
        objective = Untargeted(function, function(pixels))
    attack = APGD(norm="linf", eps=EPS, steps=steps)
    return lambda: attack(objective, pixels)


def fare_steps(encoder: Encoder, pixels: Tensor, options: Any) -> dict[str, Callable[[], Any]]:
    """PGD on the embedding, a step of AdamW on what it found; in float32, and under autocast as training does it."""
    steps: dict[str, Callable[[], Any]] = {}
    for way, automatic, compiled in (
        ("open_clip, float32", False, False),
        ("float32", False, False),
        ("autocast to bfloat16", True, False),
        ("autocast to bfloat16, compiled", True, True),
    ):
        if compiled and options.no_compile:
            continue
        student = copy.deepcopy(encoder).requires_grad_(True)
        through: Any = own_modules(student) if "open_clip" in way else torch.compile(student) if compiled else student
        original = own_modules(encoder) if "open_clip" in way else encoder
        steps[way] = fare(student, through, original, pixels, options.steps, automatic)
    return steps


def fare(
    student: Encoder, through: Any, original: Any, pixels: Tensor, inner: int, automatic: bool
) -> Callable[[], Any]:
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)

    def run() -> None:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=automatic):
            with torch.no_grad():
                anchor = original(pixels).float()
            delta = torch.zeros_like(pixels)
            student.requires_grad_(False)
            for _ in range(inner):
                x = (pixels + delta).requires_grad_()
                (slope,) = torch.autograd.grad((through(x).float() - anchor).square().sum(), x)
                delta = (delta + EPS / 4 * slope.sign()).clamp(-EPS, EPS)
                delta = (pixels + delta).clamp(0, 1) - pixels
            student.requires_grad_(True)
            loss = (through(pixels + delta).float() - anchor).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def table(what: str, ways: dict[str, Callable[[], Any]], runs: int, device: torch.device) -> None:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, int] = {}
    problems: dict[str, str] = {}
    for turn in range(runs + 2):  # two for compilers and caches
        for way, run in ways.items():
            if way in problems:
                continue
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            try:
                run()
            except Exception as error:  # no memory, no compiler: one way less
                problems[way] = str(error).partition("\n")[0][:100]
                continue
            if device.type == "cuda":
                torch.cuda.synchronize()
                memory[way] = torch.cuda.max_memory_allocated()
            if turn > 1:
                seconds[way].append(time.perf_counter() - start)
    print(f"  {what}")
    first = next(iter(ways))
    for way in ways:
        if way in problems:
            print(f"    {way:32} {problems[way]}")
            continue
        middle = statistics.median(seconds[way])
        faster = statistics.median(seconds[first]) / middle if first not in problems else float("nan")
        held = f", {memory[way] / 2**30:.2f} GiB" if way in memory else ""
        print(f"    {way:32} {faster:5.2f} times, {1e3 * middle:8.1f} ms{held}")


if __name__ == "__main__":
    main()
