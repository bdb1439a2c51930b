"""What the metric adds to its encoder, as ratios of paired runs on the bundled encoder.

python benchmarks/api_overhead.py [--runs 15] [--threads 2]
"""

import argparse

import torch
from pairs import ratio
from torch import Tensor

from robustsim import RobustSim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs, metric = options.runs, RobustSim.from_pretrained(device="cpu")
    generator = torch.Generator().manual_seed(0)

    for count in (1, 8):
        a, b = (torch.rand(count, 3, 224, 224, generator=generator) for _ in range(2))
        most = 8 * runs // count  # short runs are noisy, and cheap
        value = ratio(lambda a=a, b=b: metric.distance(a, b), lambda a=a, b=b: metric.encoder(torch.cat((a, b))), most)
        print(f"{value:6.3f}  distance of {count} pair(s) / bare encoder on {2 * count} images")

    a, b = (torch.rand(8, 3, 224, 224, generator=generator) for _ in range(2))
    x = a.clone().requires_grad_()
    fixed = metric.embed(b)

    def step(reference: Tensor) -> None:
        metric(x, reference).sum().backward()

    y = b.clone().requires_grad_()
    value = ratio(lambda: step(fixed), lambda: step(y), runs)
    print(f"{value:6.3f}  loss step, reference embedded before / both sides encoded and differentiated")
    value = ratio(lambda: step(fixed), lambda: step(b), runs)
    print(f"{value:6.3f}  loss step, reference embedded before / reference encoded anew, not differentiated")

    one, many = a[:1], torch.rand(31, 3, 224, 224, generator=generator)
    bare = torch.cat((one, many))
    value = ratio(lambda: metric.distance(one, many), lambda: metric.encoder(bare), runs)
    print(f"{value:6.3f}  one image against 31 / bare encoder on 32 images")
    value = ratio(lambda: metric.distance_matrix(a, many), lambda: (metric.encoder(a), metric.encoder(many)), runs)
    print(f"{value:6.3f}  distance_matrix of 8 x 31 / bare encoder on 8 and 31 images")


if __name__ == "__main__":
    main()
