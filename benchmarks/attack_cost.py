"""What attacks cost beside the passes they need, as ratios of paired runs on the bundled encoder.

python benchmarks/attack_cost.py [--steps 100] [--images 8] [--runs 3] [--threads 2]
"""

import argparse

import torch
from pairs import ratio
from torch import Tensor

from robustsim import RobustSim
from robustsim.attacks import APGD, PGD, TwoAFC

EPS = {"linf": 4 / 255, "l2": 3.0, "l1": 100.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps, metric = options.steps, RobustSim.from_pretrained(device="cpu")
    generator = torch.Generator().manual_seed(0)
    size = metric.card.preprocessing.size
    reference, left, right = (
        torch.nn.functional.interpolate(
            torch.rand(options.images, 3, 16, 16, generator=generator), size=size, mode="bilinear"
        )
        for _ in range(3)
    )
    labels = metric.two_afc(reference, left, right).round().long()
    objective = TwoAFC(embed=metric.embed_pixels, reference=reference, left=left, right=right, labels=labels)

    def bare(passes: int, extra: int) -> None:
        """Forward and backward passes to the input, and forward passes, of the same objective."""
        x = reference.clone()
        for _ in range(passes):
            torch.autograd.grad(objective(x.requires_grad_()).sum(), x)
        with torch.no_grad():
            for _ in range(extra):
                objective(x)

    counts = {"forwards": 0, "backwards": 0}

    def embed(images: Tensor) -> Tensor:
        counts["forwards"] += 1
        z = metric.embed_pixels(images)
        if z.requires_grad:
            z.register_hook(lambda _: counts.update(backwards=counts["backwards"] + 1))
        return z

    counted = TwoAFC(embed=embed, reference=reference, left=left, right=right, labels=labels)
    for norm, eps in EPS.items():
        counts.update(forwards=0, backwards=0)
        APGD(norm=norm, eps=eps, steps=steps)(counted, reference)
        value = ratio(
            lambda norm=norm, eps=eps: APGD(norm=norm, eps=eps, steps=steps)(objective, reference),
            lambda: bare(steps, 1),
            options.runs,
        )
        print(
            f"{value:6.3f}  APGD {norm}, {steps} steps, {counts['forwards']} forwards, {counts['backwards']} backwards "
            f"/ {steps} bare forward-and-backward passes and a forward"
        )
    value = ratio(
        lambda: PGD(norm="linf", eps=EPS["linf"], steps=10, keep="last")(objective, reference),
        lambda: bare(10, 0),
        4 * options.runs,
    )
    print(f"{value:6.3f}  PGD linf, 10 steps as training takes them / 10 bare passes")

    common = {"norm": "linf", "eps": EPS["linf"], "steps": steps}
    value = ratio(
        lambda: APGD(**common, stop_on_success=True)(objective, reference),
        lambda: APGD(**common)(objective, reference),
        options.runs,
    )
    print(f"{value:6.3f}  APGD linf that stops at success / that sees the whole batch to the end; a non-robust model")


if __name__ == "__main__":
    main()
