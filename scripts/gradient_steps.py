"""What integrated gradients leave of a distance, before it is shared out, for a few numbers of steps.

Pairs of a photograph with itself under noise, with a patch of another one in it, and with that other one:

python scripts/gradient_steps.py --data DIR --pairs 30
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from robustsim import RobustSim
from robustsim.explain.gradients import integrated_gradients
from robustsim.images import find_images

STEPS = (6, 12, 24)
NOISE = 8 / 255


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of photographs")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--model", default="lite")
    options = parser.parse_args()
    metric = RobustSim.from_pretrained(options.model)
    files = sorted(Path(options.data) / name for name in find_images(options.data))
    generator = torch.Generator().manual_seed(0)
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
