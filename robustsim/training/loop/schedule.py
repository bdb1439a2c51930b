"""What changes along a training, as functions of the step alone: nothing of it has to be stored."""

import math


def learning_rate(step: int, total: int, *, lr: float, warmup_steps: int = 0, schedule: str = "cosine") -> float:
    """The learning rate of a step, from 0 to `total - 1`.

    It grows linearly over the warm-up, reaches `lr` and then falls to 0 along half a cosine, or stays.

    Args:
        step: which one.
        total: how many there are.
        lr: the rate after the warm-up.
        warmup_steps: how many steps that takes.
        schedule: `cosine` or `constant`.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    done = (step - warmup_steps) / max(1, total - warmup_steps)
    return lr * 0.5 * (1 + math.cos(math.pi * done))


def averaging(step: int, decay: float) -> float:
    """The decay of the average of weights after a step: short at first, so that the beginning is forgotten."""
    return min(decay, (1 + step) / (10 + step))
