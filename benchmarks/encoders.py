"""Encoders against their libraries' own modules in float32: how many times as fast, forward and to the pixels.

python benchmarks/encoders.py [MODEL ...] [--batch 8] [--runs 7] [--threads 1]

Random weights of the real architectures; one process, rounds in turn, medians of CPU seconds and of the clock's.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustsim.encoders import load_encoder
from robustsim.encoders.fast import inverted
from robustsim.encoders.measuring import random_encoder

MODELS = ("clip-vit-b-32", "clip-vit-b-16", "clip-convnext-base", "dino-vit-b-16", "lite")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} threads")
    for name in options.models:
        compare(name, options.batch, options.runs)


def compare(name: str, batch: int, runs: int) -> None:
    """One model: the library's own module in float32, and this package's ways, in one process."""
    encoder = load_encoder(name) if name.startswith("lite") else random_encoder(name)
    trunk: Any = encoder.requires_grad_(False).trunk
    small: Any = copy.deepcopy(trunk).bfloat16()
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ways: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "own": (own_module(trunk), x), "fast": (trunk, x), "bfloat16": (small, x.bfloat16()),
    }  # fmt: skip
    described = encoder.describe()
    print(f"{name}: path {described.path}{described.reason and f' ({described.reason})'}")
    for what, function in (("forward", forward), ("to the pixels", gradient)):
        found = {way: function(*arguments) for way, arguments in ways.items()}
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, arguments in ways.items():
                cpu, clock = time.process_time(), time.perf_counter()
                function(*arguments)
                times[way].append((time.process_time() - cpu, time.perf_counter() - clock))
        own = [statistics.median(values) for values in zip(*times["own"], strict=True)]
        print(f"  {what:14} own module, float32: {own[0]:.3f} s of CPU, {own[1]:.3f} s")
        for way in ("fast", "bfloat16"):
            cpu, clock = (statistics.median(values) for values in zip(*times[way], strict=True))
            print(
                f"  {what:14} {way:8} {own[0] / cpu:5.2f} times by CPU, {own[1] / clock:5.2f} by the clock; "
                f"{deviation(found[way], found['own'], what)}"
            )


def own_module(trunk: Any) -> Callable[[Tensor], Tensor]:
    """The library's module, past this package's trunk."""
    module: nn.Module | None = getattr(trunk, "visual", getattr(trunk, "model", None))
    if module is not None:
        return module

    def as_a_graph(x: Tensor) -> Tensor:
        fast = inverted.run
        inverted.run = lambda blocks, x: blocks(x)
        try:
            result: Tensor = trunk(x)
            return result
        finally:
            inverted.run = fast

    return as_a_graph


def forward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return function(x)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(torch.nn.functional.normalize(function(x).float()).sum(), x)[0]


def deviation(found: Tensor, expected: Tensor, what: str) -> str:
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    if what == "forward":
        return f"cosine distance up to {float((1 - torch.cosine_similarity(found, expected)).max()):.1e}"
    return f"relative error {float((found - expected).norm() / expected.norm()):.1e}"


if __name__ == "__main__":
    main()
