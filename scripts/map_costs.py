"""What maps of a pair cost, and what integrated gradients leave of a distance before it is shared out.

Costs are the processor's seconds of one thread, as multiples of one forward pass of both pictures. What is left is
told of pairs of a photograph with itself under noise, with a patch of another one in it, and with that other one.

python scripts/map_costs.py --data DIR --pairs 20
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from robustsim import RobustSim
from robustsim.explain import difference_map
from robustsim.explain.gradients import integrated_gradients
from robustsim.explain.methods import MapMethod
from robustsim.images import find_images

STEPS = (6, 12, 24)
NOISE = 8 / 255


def seconds(call):
    began = time.process_time()
    call()
    return time.process_time() - began


def costs(metric, pair, rounds=15):
    """Medians over rounds in which each is timed: what else the machine does meets all of them."""
    both = torch.cat(pair)
    calls = {method: lambda m=method: difference_map(metric, *pair, method=m) for method in get_args(MapMethod)}
    taken = {method: [] for method in calls}
    with torch.no_grad():
        for number in range(rounds + 1):
            whole = seconds(lambda: metric.embed_pixels(both))
            for method, call in calls.items():
                share = seconds(call) / whole
                if number:  # the first is slow
                    taken[method].append(share)
    for method, shares in taken.items():
        print(f"{method:9} {statistics.median(shares):5.2f} forward passes of both pictures")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of photographs")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--model", default="lite")
    options = parser.parse_args()
    metric = RobustSim.from_pretrained(options.model)
    files = sorted(Path(options.data) / name for name in find_images(options.data))
    generator = torch.Generator().manual_seed(0)
    torch.set_num_threads(1)
    costs(metric, [metric.preprocess(file) for file in files[:2]])
    left = {}
    for number in range(options.pairs):
        x, other = (metric.preprocess(files[2 * number + place]) for place in (0, 1))
        noise = (2 * torch.rand(x.shape, generator=generator) - 1).to(x.device)
        patch, third = x.clone(), x.shape[-1] // 3
        patch[..., third : 2 * third, third : 2 * third] = other[..., third : 2 * third, third : 2 * third]
        pairs = {"noise of 8/255": (x + NOISE * noise).clamp(0, 1), "a patch": patch, "another photograph": other}
        for kind, y in pairs.items():
            d = metric.distance(x, y).item()
            for steps in STEPS:
                found = integrated_gradients(metric, x, y, steps=steps, squared=False, closed=False)
                left.setdefault((kind, steps), []).append(abs(found.sum().item() / d - 1))
    print(f"{options.model}, {options.pairs} pairs of each kind: what is left, in shares of the distance")
    for (kind, steps), shares in left.items():
        print(f"{kind:20} {steps:3} steps: median {np.median(shares):6.2%}, at most {max(shares):6.2%}")


if __name__ == "__main__":
    main()
