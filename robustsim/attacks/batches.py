"""More images than fit into memory at once."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustsim.attacks.engine.base import Attack, eagerly
from robustsim.attacks.engine.options import whole
from robustsim.attacks.engine.result import AttackResult
from robustsim.attacks.methods.ensemble import EnsembleAttack, Stop, clean, watched
from robustsim.errors import InputError


def attack_in_batches(
    attack: "Attack | EnsembleAttack", objective: Any, images: Tensor, *, batch_size: int
) -> AttackResult:
    """Attack many images, so many at a time; the result is that of one call.

    When a callback stops the attack, the batches after that come back as they are.

    Args:
        attack: any attack.
        objective: one that offers `select`, for all images.
        images: (N, C, H, W).
        batch_size: images at a time.

    Raises:
        InputError: the objective cannot be split; else as for the attack.
    """
    batch_size = whole("batch_size", batch_size)
    if not hasattr(objective, "select"):
        raise InputError("to attack in batches, the objective must offer select(indices), as those here do")
    return eagerly(partial(_in_batches, attack, batch_size), objective, images)


def _in_batches(attack: "Attack | EnsembleAttack", batch_size: int, objective: Any, images: Tensor) -> AttackResult:
    check_count(objective, images)
    for one in attack.attacks if isinstance(attack, EnsembleAttack) else (attack,):
        one.around(images)  # as many radii and beginnings as images, among other things
    stop, parts = Stop(), []
    for rows in torch.split(torch.arange(len(images), device=images.device), batch_size):
        part = objective.select(rows)
        if stop.asked:
            parts.append(clean(part, images[rows], rows))
        else:
            parts.append(watched(attack, stop).for_images(rows).on(part, images[rows], rows))
    names = AttackResult.__dataclass_fields__
    return AttackResult(**{name: _joined([getattr(part, name) for part in parts]) for name in names})


def check_count(objective: Any, images: Tensor) -> None:
    """Refuse an objective for more images, of which a selection would take the first, or for fewer."""
    if hasattr(objective, "check_count"):
        objective.check_count(images)


def _joined(parts: "list[Tensor | None]") -> Any:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if len(tensors) == len(parts) else None
