"""What an inversion costs beside the passes it needs, as ratios of paired runs on the bundled encoder.

python benchmarks/inversion.py [--steps 500] [--images 4] [--runs 3] [--threads 2]
"""

import argparse

import torch
from pairs import ratio
from torch import Tensor

from robustsim import RobustSim
from robustsim.explain import invert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps, count, metric = options.steps, options.images, RobustSim.from_pretrained(device="cpu")
    size = metric.card.preprocessing.size
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    targets = metric.embed(torch.nn.functional.interpolate(noise, size=size, mode="bilinear"))

    def bare(goals: Tensor) -> None:
        """As many forward and backward passes to the picture, and a forward pass, of the cosine similarity alone."""
        x = torch.full((len(goals), 3, size, size), 0.5)
        for _ in range(steps):
            torch.autograd.grad((metric.embed_pixels(x.requires_grad_()) * goals).sum(), x)
        with torch.no_grad():
            metric.embed_pixels(x)

    for goals in (targets[:1], targets):
        value = ratio(
            lambda goals=goals: invert(metric, goals, steps=steps), lambda goals=goals: bare(goals), options.runs
        )
        print(f"{value:6.3f}  {len(goals)} at once, {steps} steps / as many bare forward and backward passes")
    value = ratio(
        lambda: invert(metric, targets, steps=steps),
        lambda: [invert(metric, one[None], steps=steps) for one in targets],
        options.runs,
    )
    print(f"{value:6.3f}  {count} at once / {count} one by one")


if __name__ == "__main__":
    main()
