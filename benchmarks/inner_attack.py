"""How much loss the inner attack of FARE finds, by momentum and step rule, on an encoder before its training.

python benchmarks/inner_attack.py PHOTOGRAPHS [--encoder lite-clean] [--count 32] [--steps 10] [--step-size 1/255]
    [--eps 4/255] [--norm linf] [--seed 0] [--threads 2]
"""

import argparse
from itertools import islice
from pathlib import Path

import torch

from robustsim import RobustSim
from robustsim.attacks import PGD, parse_eps
from robustsim.images import find_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--encoder", action="append", help="may be repeated; lite-clean and lite if not given")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--step-size", default="1/255")
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = [options.photographs / name for name in islice(find_images(options.photographs), options.count)]
    eps, length = (parse_eps(value, options.norm) for value in (options.eps, options.step_size))
    for name in options.encoder or ("lite-clean", "lite"):
        metric = RobustSim.from_pretrained(name, device="cpu")
        pixels = metric.preprocess([str(path) for path in paths])
        print(f"{name}, {len(pixels)} photographs: mean of |phi(x + delta) - phi(x)|^2 at the last point")
        plain = 0.0
        for rule in ("constant", "cosine", "linear"):
            for momentum in (0.0, 0.5, 0.75, 0.9):
                attack = PGD(
                    norm=options.norm, eps=eps, steps=options.steps, step_size=length, step_rule=rule,
                    momentum=momentum, keep="last", generator=torch.Generator().manual_seed(options.seed),
                )  # fmt: skip
                found = mean_loss(metric.encoder, pixels, attack)
                plain = plain or found
                print(f"  {rule:8}  momentum {momentum:4}: {found:9.3f}  {100 * (found / plain - 1):+6.1f} %")


def mean_loss(encoder: torch.nn.Module, pixels: torch.Tensor, attack: PGD) -> float:
    losses = []
    for part in pixels.split(16):
        with torch.no_grad():
            anchor = encoder(part)

        def objective(x: torch.Tensor, anchor: torch.Tensor = anchor) -> torch.Tensor:
            return (encoder(x) - anchor).square().sum(1)

        found = attack(objective, part).images
        with torch.no_grad():
            losses.append(objective(found))
    return float(torch.cat(losses).mean())


if __name__ == "__main__":
    main()
