"""Attacks on a picture's own pixels, through the resize of a metric, and what they changed."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustsim.attacks import APGD
from robustsim.attacks.rounding import Norm, whole_levels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robustsim.attacks import AttackResult, Objective
    from robustsim.metric import RobustSim


def embedder(metric: "RobustSim") -> Callable[[Tensor], Tensor]:
    """Pixels of pictures, (N, 3, H, W) in [0, 1], to their embeddings, (N, D); differentiable, unchecked."""
    preprocessing = metric.card.preprocessing
    return lambda images: metric.embed_pixels(preprocessing.apply_tensor(images))


def to_pixels(metric: "RobustSim", picture: "NDArray[Any]") -> Tensor:
    """A picture, (H, W, 3) uint8, as what is attacked: (1, 3, H, W) on the metric's device."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].to(metric.device).float().div(255)


def tamper(
    metric: "RobustSim",
    objective: "Objective",
    images: Tensor,
    *,
    norm: Norm,
    eps: float,
    steps: int,
    seed: int,
    progress: bool = False,
    callback: Any = None,
) -> "AttackResult":
    """What Auto-PGD finds for one picture; what the metric does not look at stays as it is.

    Args:
        metric: which looks.
        objective: on what `embedder` gives.
        images: of `to_pixels`.
        norm: of the budget.
        eps: the budget; in linf, of it the whole grey levels that a file of 8 bits can hold.
        steps: of the attack.
        seed: of its start.
        progress: as for `APGD`.
        callback: likewise.
    """
    reachable = min(eps, whole_levels(eps) / 255) if norm == "linf" else eps
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"progress": progress, "callback": callback}
    result = APGD(norm=norm, eps=reachable, steps=steps, generator=generator, **options)(objective, images)
    # The random start has changed what the model does not look at, too. A grey picture tells: nothing is clipped there.
    with torch.inference_mode(False), torch.enable_grad():
        grey = torch.full_like(images, 0.5, requires_grad=True)
        slope = torch.autograd.grad(metric.card.preprocessing.apply_tensor(grey).sum(), grey)[0]
    return replace(result, images=torch.where(slope != 0, result.images, images))


def magnified(original: "NDArray[Any]", attacked: "NDArray[Any]") -> "tuple[NDArray[Any], float]":
    """`0.5 + factor * change` as 8-bit pixels, and the factor: the largest by which no change leaves the range.

    Args:
        original: (H, W, 3) uint8.
        attacked: likewise.

    Returns:
        (H, W, 3) uint8, and a whole number; one of two digits where that would be 0.
    """
    import numpy as np

    change = attacked.astype(np.int16) - original.astype(np.int16)
    fits = 127.5 / max(1, int(np.abs(change).max()))
    factor = float(int(fits)) if fits >= 1 else int(100 * fits) / 100
    return np.rint(127.5 + factor * change).clip(0, 255).astype(np.uint8), factor


def downsized(image: Any, most: int | None) -> Any:
    """A PIL picture, or a copy whose longer side has `most` pixels."""
    from PIL import Image

    longer = max(image.size)
    if most is None or longer <= most:
        return image
    width, height = (max(1, round(side * most / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
