"""DINO's transformer blocks, as its repository and the package `dreamsim` write them, with fused attention.

Their attention matrix is made, kept and returned, for nobody. What follows computes the same from the same modules.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from robustsim.encoders.fast.products import call, self_attention

# As a share of the largest value: how far rounding goes.
_ROUNDING = 1e-5
_PARTS = {"norm1", "attn", "norm2", "mlp"}


def fuse_blocks(blocks: nn.ModuleList, *, only_first: bool) -> int:
    """Put faster blocks in the places of those that can be computed so, of the same parameters under the same names.

    Whether a block can is found by its parts, and then by its results: blocks of this shape that compute something else
    stay.

    Args:
        blocks: of DINO, frozen, in float32 on the CPU.
        only_first: the last block gives nothing but the first token.

    Returns:
        How many were replaced.
    """
    replaced = 0
    for place, block in enumerate(blocks):
        first = only_first and place == len(blocks) - 1
        if (faster := _faster(block, only_first=first)) is not None:
            blocks[place] = faster
            replaced += 1
    return replaced


def _faster(block: Any, *, only_first: bool) -> "_Block | None":
    own: Any = getattr(block, "attn", None)
    parts = {name for name, _ in block.named_children()}
    if (
        not parts >= _PARTS
        or not all(isinstance(getattr(own, name, None), nn.Linear) for name in ("qkv", "proj"))
        or not all(isinstance(getattr(block.mlp, name, None), nn.Linear) for name in ("fc1", "fc2"))
        or not isinstance(getattr(own, "num_heads", None), int)
        or not isinstance(getattr(block.mlp, "act", None), nn.Module)
        or block.training
    ):
        return None
    faster = _Block(block, only_first=only_first)
    width = own.qkv.in_features
    x = torch.arange(2 * 5 * width, dtype=torch.float32, device=own.qkv.weight.device).mul(0.7).sin().view(2, 5, width)
    # Whatever the caller computes in meanwhile: it is not what the blocks will be called with.
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        expected = block(x)
        if only_first:
            expected = expected[:, :1]
        largest = float(expected.abs().max())
        is_same = math.isfinite(largest) and torch.allclose(faster(x), expected, rtol=0, atol=_ROUNDING * largest)
    return faster if is_same else None


class _Block(nn.Module):
    """A block of DINO: (N, L, C) -> (N, L, C), or (N, 1, C) of the first token alone."""

    def __init__(self, block: nn.Module, *, only_first: bool) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.only_first = only_first
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        parts: Any = self
        own, qkv = parts.attn, parts.attn.qkv
        mixed = self_attention(parts.norm1(x), qkv.weight, qkv.bias, own.num_heads, only_first=self.only_first)
        x = (x[:, :1] if self.only_first else x) + call(own.proj, mixed)
        mlp = parts.mlp
        changed: Tensor = x + call(mlp.fc2, mlp.act(call(mlp.fc1, parts.norm2(x))))
        return changed
