"""The drop-ins against the metric called directly, and beside the packages whose places they take.

python benchmarks/drop_in.py [--count 4] [--size 256] [--rounds 9] [--threads 2] [--device cpu] [--alone]

In each round every contender runs once, in another order; what is printed are medians of ratios within a round. The
other packages, and our larger models, have random weights, so that nothing is downloaded: a time does not depend on
them. They do unlike work: LPIPS looks at pictures as large as they are, our models and DreamSim at 224 x 224. What is
not installed is left out, and said.
"""

import argparse
import random
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pairs import ratio, seconds
from torch import Tensor, nn

from robustsim import RobustSim
from robustsim.compat import dreamsim, lpips
from robustsim.encoders import load_card
from robustsim.encoders.encoder import build_encoder

Call = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4, help="pairs in a call")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--alone", action="store_true", help="not beside other packages")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # of packages about their own insides
    device = torch.device(options.device)
    metric = RobustSim.from_pretrained(device=device)
    compare_with_direct(metric, options.count, options.size, 30 * options.rounds, device)
    if not options.alone:
        compare_with_others(metric, options.count, options.size, options.rounds, device)


def compare_with_direct(metric: RobustSim, count: int, size: int, runs: int, device: torch.device) -> None:
    # What one pair takes is short, and noisy.
    ours, (perceptual, _) = lpips.LPIPS(model=metric), dreamsim(model=metric)
    for name, drop_in, direct, side, low in (
        ("lpips.LPIPS", ours, lambda a, b: metric(a, b, squared=True, input_range=(-1, 1)), size, -1),
        ("dreamsim", perceptual, lambda a, b: metric(a, b, squared=True), 224, 0),
    ):
        for pairs in (1, count):
            a, b = pictures(pairs, side, low, device)
            for what, step in (("forward", forward), ("forward and backward", backward)):
                value = ratio(lambda: step(drop_in, a, b), lambda: step(direct, a, b), runs // pairs)  # noqa: B023
                print(f"{value:7.3f}  robustsim.compat {name} / the metric itself, {pairs} pair(s) at {side}, {what}")


def compare_with_others(metric: RobustSim, count: int, size: int, rounds: int, device: torch.device) -> None:
    contenders: dict[str, tuple[Call, int, int]] = {}
    for name, side, low, make in (
        ("robustsim, lite", size, -1, lambda: lpips.LPIPS(model=metric)),
        ("robustsim, rclip-f-vit-b-32", size, -1, lambda: lpips.LPIPS(model=drawn("rclip-f-vit-b-32"))),
        ("robustsim, rclip-f-convnext-base", size, -1, lambda: lpips.LPIPS(model=drawn("rclip-f-convnext-base"))),
        ("lpips.LPIPS, alex", size, -1, lambda: their_lpips("alex")),
        ("lpips.LPIPS, vgg", size, -1, lambda: their_lpips("vgg")),
        ("torchmetrics LPIPS, alex", size, -1, their_torchmetrics),
        ("piq.LPIPS, vgg", size, 0, their_piq),
        ("pyiqa lpips, alex", size, 0, their_pyiqa),
        ("dreamsim clip_vitb32, adapter merged, at 224", 224, 0, their_dreamsim),
    ):  # fmt: skip
        try:
            made = make()
        except ImportError as error:
            print(f"left out: {name} ({error})")
            continue
        contenders[name] = (made.to(device) if isinstance(made, nn.Module) else made), side, low
    ranges = {(side, low): pictures(count, side, low, device) for _, side, low in contenders.values()}
    order = list(contenders)
    for what, step in (("forward", forward), ("forward and backward", backward)):
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(rounds + 1):
            random.Random(turn).shuffle(order)
            for name in order:
                call, side, low = contenders[name]
                once = seconds(lambda: step(call, *ranges[side, low]))  # noqa: B023
                if turn:  # the first warms up
                    taken[name].append(once)
        first = taken[next(iter(contenders))]
        print(f"{what}, {count} pairs, {size} x {size}: seconds, and times the first")
        for name, times in taken.items():
            relative = statistics.median(one / base for one, base in zip(times, first, strict=True))
            print(f"{statistics.median(times):8.4f} {relative:6.2f}  {name}")


def pictures(count: int, size: int, low: int, device: torch.device) -> tuple[Tensor, Tensor]:
    a, b = torch.rand(2, count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device) * (1 - low) + low
    return a, b


def forward(call: Call, a: Tensor, b: Tensor) -> None:
    with torch.no_grad():
        finish(call(a, b))


def backward(call: Call, a: Tensor, b: Tensor) -> None:
    x = a.clone().requires_grad_()
    call(x, b).sum().backward()
    assert x.grad is not None
    finish(x.grad)


def finish(result: Tensor) -> None:
    if result.device.type == "cuda":
        torch.cuda.synchronize()


def draw(module: nn.Module) -> nn.Module:
    """Random weights that keep the size of what passes through."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(float(name.endswith("weight")))
    return module


def drawn(name: str) -> RobustSim:
    encoder = build_encoder(load_card(name))
    draw(encoder)
    return RobustSim(encoder)


def their_lpips(net: str) -> nn.Module:
    from lpips import LPIPS

    return LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False)


def their_torchmetrics() -> Call:
    import torchmetrics.functional.image.lpips as home
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    untrained = home._get_tv_model_features
    with patch.object(home, "_get_tv_model_features", lambda net, pretrained=False: untrained(net)):
        return LearnedPerceptualImagePatchSimilarity(net_type="alex").requires_grad_(False)


def their_piq() -> nn.Module:
    import torchvision
    from piq import perceptual

    layers = [torch.rand(1, channels, 1, 1) for channels in (64, 128, 256, 512, 512)]
    network = torchvision.models.vgg16(weights=None)
    with (
        patch.object(perceptual, "vgg16", lambda **_: network),
        patch.object(torch.hub, "load_state_dict_from_url", lambda *_, **__: layers),
    ):
        return perceptual.LPIPS()


def their_pyiqa() -> Call:
    import pyiqa
    import torchvision

    network = torchvision.models.alexnet(weights=None)
    with patch.object(torchvision.models, "alexnet", lambda **_: network):  # it asks for weights whatever it is told
        measure = pyiqa.create_metric("lpips", as_loss=True, device="cpu", pretrained=False, pnet_rand=True)
    return measure.requires_grad_(False)


def their_dreamsim() -> Any:
    from dreamsim import PerceptualModel
    from dreamsim.feature_extraction.load_clip_as_dino import vit_base

    network = vit_base(patch_size=32)
    network.pos_drop = nn.LayerNorm(network.embed_dim)
    state = {**draw(network).state_dict(), "proj": torch.randn(network.embed_dim, 512)}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"state_dict": state}, Path(folder) / "clip_vitb32_pretrain.pth.tar")
        model = PerceptualModel("clip_vitb32", "embedding", "32", lora=True, load_dir=folder, device="cpu")
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
