"""What a training step costs beside its passes through the encoder, as a ratio of paired runs on the bundled encoder.

python benchmarks/training_cost.py [--inner 10] [--batch 8] [--size 224] [--runs 5] [--threads 2] [--photographs DIR]

On a CPU, set the allocator as docs/training.md says, or its cost is in the ratio.
"""

import argparse
from pathlib import Path

import torch
from pairs import ratio

from robustsim.training import load_recipe, open_source
from robustsim.training.loop.processes import Processes
from robustsim.training.loop.trained import Trained
from robustsim.training.tasks.prepare import prepare_adversarial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inner", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--photographs", type=Path, default=Path(__file__).parents[1] / "examples")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    changes = [
        f"attack.steps={options.inner}",
        "attack.warmup=0",
        f"batch_size={options.batch}",
        f"stages=[{{at: 0, size: {options.size}}}]",
        "validation.images=0",
    ]
    recipe, source = load_recipe("fare-lite", changes), open_source(options.photographs)
    processes = Processes()
    task, _ = prepare_adversarial(recipe, source, None, prototypes=None, processes=processes, report=print)
    trained = Trained(task.module, recipe, processes)
    batches = task.batches(iter([range(options.batch)] * (options.runs + 2)))
    student, original = task.module.student, task.module.original
    pixels = torch.rand(options.batch, 3, options.size, options.size, device=processes.device)

    def synchronize() -> None:
        if processes.device.type == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        trained.begin(1e-6)
        terms = task.terms(trained.module, trained.through, next(batches), 0)
        torch.stack(list(terms.values())).sum().backward()
        trained.clip(100.0)
        trained.update(0)
        synchronize()

    def floor() -> None:
        with torch.no_grad():
            anchor = original(pixels)
        student.eval().requires_grad_(False)
        for _ in range(options.inner):
            x = pixels.clone().requires_grad_()
            torch.autograd.grad((student(x) - anchor).square().sum(), x)
        student.train().requires_grad_(True)
        (student(pixels) - anchor).square().sum(1).mean().backward()
        student.zero_grad()
        synchronize()

    value = ratio(step, floor, options.runs)
    batches.close()
    print(
        f"{value:6.3f}  FARE step with {options.inner} inner steps, {options.batch} images of {options.size} pixels, "
        f"decoding and optimiser included / {options.inner} forwards and backwards to the input, one to the weights, "
        "one forward"
    )


if __name__ == "__main__":
    main()
