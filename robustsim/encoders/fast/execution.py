"""How an encoder is run: by what code, where, in which type."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Execution:
    """How an encoder's images are computed, outside of compilers and exporters, which see its library's own modules.

    Attributes:
        architecture: as the card names it.
        path: `fast`, by this library's functions of the model's parameters, or the name of the library whose modules
            are called.
        reason: why it is not the fast path, or what of it is not; empty if there is nothing to say.
        dtype: of its parameters.
        device: where they are.
        memory_format: `channels_last` where convolutions have their channels innermost, else `contiguous`.
        compiled: whether `torch.compile` runs its library's own modules instead.
    """

    architecture: str
    path: Literal["fast", "open_clip", "timm"]
    reason: str
    dtype: torch.dtype
    device: torch.device
    memory_format: Literal["channels_last", "contiguous"]
    compiled: bool = False


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled where it stands, by `module.compile()`."""
    return getattr(module, "_compiled_call_impl", None) is not None


def memory_format(module: nn.Module) -> Literal["channels_last", "contiguous"]:
    """How the weights of a module's convolutions lie in memory; those of one value a channel tell nothing."""
    filters = [weight for weight in module.parameters() if weight.ndim == 4 and weight[0, 0].numel() > 1]
    last = [
        weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous() for weight in filters
    ]
    return "channels_last" if any(last) else "contiguous"
