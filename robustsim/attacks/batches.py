"""More images than fit into memory at once."""

from typing import Any

import torch
from torch import Tensor

from robustsim.attacks.base import Attack, alone, at_least
from robustsim.attacks.ensemble import EnsembleAttack
from robustsim.attacks.result import AttackResult
from robustsim.errors import InputError


def attack_in_batches(
    attack: "Attack | EnsembleAttack", objective: Any, images: Tensor, *, batch_size: int
) -> AttackResult:
    """Attack many images, so many at a time; the result is that of one call.

    Args:
        attack: any attack.
        objective: one that offers ``select``, for all images.
        images: (N, C, H, W).
        batch_size: images at a time.

    Raises:
        InputError: the objective cannot be split; else as for the attack.
    """
    at_least("batch_size", batch_size, 1)
    if not hasattr(objective, "select"):
        raise InputError("to attack in batches, the objective must offer select(indices), as those here do")
    places = torch.arange(len(images), device=images.device)
    parts = []
    with alone(objective):
        for rows in torch.split(places, batch_size):
            part = images[rows]
            one = attack.for_images(rows) if isinstance(attack, Attack) else attack
            parts.append(one.on(objective.select(rows), part.clone() if part.is_inference() else part.detach(), rows))
    return AttackResult(
        *(_joined([getattr(part, name) for part in parts]) for name in AttackResult.__dataclass_fields__)  # type: ignore[arg-type]
    )


def _joined(parts: "list[Tensor | None]") -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if len(tensors) == len(parts) else None
