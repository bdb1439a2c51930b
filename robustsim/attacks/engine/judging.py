"""What an objective says of images, checked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustsim.errors import InputError, ObjectiveError


def ask(objective: Any, points: Tensor, *, success: bool = True) -> tuple[Tensor, Tensor | None, int]:
    """Loss (n,), success (n,) or None, and the forward passes that they cost.

    Args:
        objective: see `robustsim.attacks.objectives.embeddings`.
        points: (n, ...).
        success: whether it is worth a pass of its own, where the objective does not tell both at once.

    Raises:
        InputError: the objective does not return one number for each image.
    """
    won, passes = None, 1
    if hasattr(objective, "evaluate"):
        loss, won = _untouched(objective.evaluate, points)
    else:
        loss = _untouched(objective, points)
        if success and hasattr(objective, "success"):
            won, passes = judge(objective, points), 2
    if not isinstance(loss, Tensor) or loss.shape != (len(points),):
        raise InputError(
            f"an objective returns one loss for each image, shape ({len(points)},) here, not {_seen(loss)}"
        )
    return loss.float(), None if won is None else _one_each(won, points), passes


def judge(objective: Any, points: Tensor) -> Tensor:
    """Success by the objective's own method, (n,) bool."""
    with torch.no_grad():
        return _one_each(_untouched(objective.success, points.detach()), points)


def _untouched(function: Callable[[Tensor], Any], points: Tensor) -> Any:
    """What the function says of the points, if it leaves them as they are."""
    version, told = points._version, "the objective changes the images it is given: look for inplace=True or x -= ..."
    try:
        said = function(points)
    except RuntimeError as error:
        if "in-place operation" in str(error):  # autograd was faster
            raise ObjectiveError(told) from error
        raise
    if points._version != version:
        raise ObjectiveError(told)
    return said


def _one_each(won: Any, points: Tensor) -> Tensor:
    if not isinstance(won, Tensor) or won.shape != (len(points),):
        raise InputError(f"success is one truth for each image, shape ({len(points)},) here, not {_seen(won)}")
    return won.bool()


def _seen(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def refuse_nan(name: str, loss: Tensor, places: Tensor | None) -> None:
    """Raise where a loss that is only computed at the end, or before an attack, is NaN."""
    rows = torch.nonzero(torch.isnan(loss)).squeeze(1)
    if len(rows):
        images = (rows if places is None else places[rows])[:10].tolist()
        raise ObjectiveError(
            f"{name}: the objective's loss is NaN at the adversarial images {', '.join(map(str, images))}"
            f"{', ...' if len(rows) > 10 else ''}"
        )
