"""What an attack returns, and what it tells while it runs."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttackResult:
    """The outcome, image by image.

    Attributes:
        images: adversarial images, of the shape that was passed: of all points that were tried, the best successful
            one, or the best where none was. (An objective that tells success and loss apart is asked for success at
            each step with `stop_on_success` only; without, the best is that of the largest loss.)
        success: (N,) bool, None if the objective has no notion of it.
        loss: (N,) float32, the objective's value there.
        distance: (N,), the size of the perturbation in the attack's norm.
        queries: (N,) int64, forward passes that each image took part in.
        gradients: (N,) int64, gradients that were computed of each image.
    """

    images: Tensor
    success: Tensor | None
    loss: Tensor
    distance: Tensor
    queries: Tensor
    gradients: Tensor


@dataclass(frozen=True, eq=False)
class AttackStep:
    """What a callback is told after each step.

    Attributes:
        attack: the name of the attack; of an ensemble, of the part that runs.
        step: how many are done, of this attack; an evaluation each.
        steps: how many there are at most.
        indices: (M,) the places in the batch of the images that are still attacked.
        loss: (M,) the loss of their best points within the budget so far, -inf before there are any. It is the loss
            that the attack works with: in Square, FAB and targeted APGD not that of the objective.
        success: (M,) bool, None if the objective has no notion of it.
        images: (M, ...) these points, the images as they were before there are any; a copy, to be kept or changed.
    """

    attack: str
    step: int
    steps: int
    indices: Tensor
    loss: Tensor
    success: Tensor | None
    images: Tensor
