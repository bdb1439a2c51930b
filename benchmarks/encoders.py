"""Encoders against their libraries' own modules in float32, and losses and DreamSim against their packages.

python benchmarks/encoders.py [MODEL | loss | dreamsim ...] [--batch 8] [--runs 7] [--threads 1]

Random weights of the real architectures; one process, rounds in turn, medians of CPU seconds and of the clock's.

loss: a step to the pixels of a loss against a reference that does not change, embedded once, against LPIPS-VGG as its
package has it, and against the same loss with both sides encoded and differentiated; batches of two.
dreamsim: the ensemble through this package, adapters merged, against the package as its readme uses it.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from robustsim import RobustSim
from robustsim.baselines import DreamSim
from robustsim.encoders import load_encoder
from robustsim.encoders.fast import inverted
from robustsim.encoders.measuring import random_encoder

MODELS = ("clip-vit-b-32", "clip-vit-b-16", "clip-convnext-base", "dino-vit-b-16", "lite", "loss", "dreamsim")
LOSSES = ("clip-vit-b-32", "clip-vit-b-16", "lite")
# LPIPS-VGG takes eight times what ViT-B/32 takes: more pictures would only take longer.
LOSS_BATCH = 2


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
        if name == "loss":
            compare_losses(options.runs)
        elif name == "dreamsim":
            compare_dreamsim(options.batch, options.runs)
        else:
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
        times = interleaved(
            {way: lambda function=function, both=both: function(*both) for way, both in ways.items()}, runs
        )
        own = times["own"]
        print(f"  {what:14} own module, float32: {own[0]:.3f} s of CPU, {own[1]:.3f} s")
        for way in ("fast", "bfloat16"):
            told(f"{what:14} {way:8}", own, times[way], deviation(found[way], found["own"], what))


def compare_losses(runs: int) -> None:
    """Steps to the pixels against a fixed reference."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about how the package asks for weights
        vgg = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, LOSS_BATCH, 3, 224, 224, generator=generator).unbind(0)
    small = copy.deepcopy(vgg).bfloat16()
    ways = {
        "LPIPS-VGG, float32": step(lambda x: vgg(2 * x - 1, 2 * y - 1), x),
        "LPIPS-VGG, bfloat16": step(lambda x: small((2 * x - 1).bfloat16(), (2 * y - 1).bfloat16()), x),
    }
    for name in LOSSES:
        for dtype in (torch.float32, torch.bfloat16):
            encoder = load_encoder(name) if name.startswith("lite") else random_encoder(name)
            metric = RobustSim(encoder.to(dtype))
            z, kind = metric.embed(y), str(dtype).removeprefix("torch.")
            ways[f"{name}, {kind}"] = step(lambda x, metric=metric, z=z: metric(x, z), x)
            ways[f"{name}, {kind}, both sides"] = both_sides(metric, x, y)
    times = interleaved(ways, runs)
    print(f"loss against a fixed reference, {LOSS_BATCH} pictures")
    for name in ("LPIPS-VGG, float32", "LPIPS-VGG, bfloat16"):
        print(f"  {name}: {times[name][0]:.3f} s of CPU a step, {times[name][1]:.3f} s")
    for name in ways:
        if (both := f"{name}, both sides") in ways:
            for other in ("LPIPS-VGG, float32", "LPIPS-VGG, bfloat16", both):
                told(f"{name:24}", times[other], times[name], f"as {other}")


def step(loss: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Forward and backward to x."""

    def run() -> Tensor:
        pixels = x.detach().requires_grad_()
        return torch.autograd.grad(loss(pixels).float().sum(), pixels)[0]

    return run


def both_sides(metric: RobustSim, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """The loss of who embeds nothing before."""

    def run() -> Any:
        pixels, reference = x.detach().requires_grad_(), y.detach().requires_grad_()
        return torch.autograd.grad(metric(pixels, reference).sum(), (pixels, reference))

    return run


def compare_dreamsim(batch: int, runs: int) -> None:
    """The ensemble of three ViT-B/16."""
    import dreamsim
    from dreamsim.feature_extraction.load_clip_as_dino import vit_base

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.dreamsim_files import write_dreamsim

    with TemporaryDirectory() as folder:
        files = write_dreamsim(Path(folder) / "dreamsim", "dreamsim", vit_base)
        theirs, _ = dreamsim.dreamsim(pretrained=True, device="cpu", cache_dir=str(files))
        ours = DreamSim(weights=files)
    x = torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    print("DreamSim's ensemble")
    ways = {"own": (theirs.embed, x), "fast": (ours.embed, x)}
    for what, function in (("forward", forward), ("to the pixels", gradient)):
        found = {way: function(*both) for way, both in ways.items()}
        times = interleaved(
            {way: lambda function=function, both=both: function(*both) for way, both in ways.items()}, runs
        )
        print(f"  {what:14} the package: {times['own'][0]:.3f} s of CPU, {times['own'][1]:.3f} s")
        told(f"{what:14} fast    ", times["own"], times["fast"], deviation(found["fast"], found["own"], what))


def interleaved(ways: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, tuple[float, float]]:
    """Medians of CPU seconds and of the clock's of each way, rounds in turn, after one call of each."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for one in ways.values():
        one()
    for _ in range(runs):
        for way, one in ways.items():
            cpu, clock = time.process_time(), time.perf_counter()
            one()
            times[way].append((time.process_time() - cpu, time.perf_counter() - clock))
    medians = {}
    for way, values in times.items():
        cpus, clocks = zip(*values, strict=True)
        medians[way] = (statistics.median(cpus), statistics.median(clocks))
    return medians


def told(what: str, own: tuple[float, float], ours: tuple[float, float], rest: str) -> None:
    """A line: how many times as fast."""
    print(f"  {what} {own[0] / ours[0]:5.2f} times by CPU, {own[1] / ours[1]:5.2f} by the clock; {rest}")


def own_module(trunk: Any) -> Callable[[Tensor], Tensor]:
    """The library's module, past this package's trunk."""
    module: nn.Module | None = getattr(trunk, "visual", getattr(trunk, "model", None))
    if module is not None:
        return module

    def as_a_graph(x: Tensor) -> Tensor:
        fast = inverted.run
        inverted.run = lambda blocks, x, *kinds: blocks(x)
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
    z = torch.nn.functional.normalize(function(x).float())
    # The sum alone would not do: that of DreamSim's values is always 0.
    direction = torch.randn(z.shape[1], generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((z * direction).sum(), x)[0]


def deviation(found: Tensor, expected: Tensor, what: str) -> str:
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    if what == "forward":
        return f"cosine distance up to {float((1 - torch.cosine_similarity(found, expected)).max()):.1e}"
    return f"relative error {float((found - expected).norm() / expected.norm()):.1e}"


if __name__ == "__main__":
    main()
