"""What can follow, or change, a trunk: a residual MLP, or low-rank adapters merged into its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.finite import refuse_non_finite
from robustsim.errors import WeightsError

#: Adapters lie in a weights file as `lora.<parameter>.a` (r, in) and `lora.<parameter>.b` (out, r).
LORA_PREFIX = "lora."


class ResidualMLP(nn.Module):
    """`x + fc2(relu(fc1(x)))` on the embedding, as the NIGHTS-tuned MLP checkpoints have it."""

    def __init__(self, dim: int, hidden: int = 512) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.fc2(F.relu(self.fc1(x)))
        return x + change


def merge_lora(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights with their adapters added in: `W + scale * B A` (Hu et al., LoRA, 2021, Eq. 3).

    Args:
        weights: a state dict that holds adapters under `lora.`, which the result no longer has.
        scale: `lora_alpha / r`.

    Raises:
        WeightsError: an adapter without its other half or its parameter, of a shape that does not fit, or with values
            that are not finite.
    """
    merged = {key: value for key, value in weights.items() if not key.startswith(LORA_PREFIX)}
    adapters = {key.removeprefix(LORA_PREFIX): value for key, value in weights.items() if key.startswith(LORA_PREFIX)}
    names = sorted({key.rpartition(".")[0] for key in adapters})
    if not names:
        raise WeightsError("the card speaks of LoRA adapters, and the weights hold none")
    refuse_non_finite(adapters, "the LoRA adapters")
    for name in names:
        down, up, base = adapters.get(f"{name}.a"), adapters.get(f"{name}.b"), merged.get(name)
        if down is None or up is None or base is None:
            raise WeightsError(f"the LoRA adapter of {name!r} lacks one of its matrices or its parameter")
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise WeightsError(
                f"the LoRA adapter of {name!r} is no pair of matrices (out, r) and (r, in): they have the shapes "
                f"{tuple(up.shape)} and {tuple(down.shape)}"
            )
        if (up.shape[0], down.shape[1]) != tuple(base.shape[:2]) or base[0, 0].numel() != 1:
            raise WeightsError(
                f"the LoRA adapter of {name!r} is for a {up.shape[0]} x {down.shape[1]} matrix, "
                f"the parameter has the shape {tuple(base.shape)}"
            )
        delta = scale * (up.to(torch.float32) @ down.to(torch.float32))
        merged[name] = (base.to(torch.float32) + delta.reshape(base.shape)).to(base.dtype)
    refuse_non_finite({name: merged[name] for name in names}, "the weights, with the LoRA adapters added,")
    return merged
