"""open_clip's vision transformers with one contiguous product for queries, keys and values.

`nn.MultiheadAttention`, which open_clip uses, spends most of its time on a CPU with copies, in bfloat16 and where
gradients are wanted. Its parameters lie as one matrix already; what follows reads them where they are. Everything
around the blocks (class token, positions, pooling, projection) is open_clip's own code, and whatever is not as
open_clip built it (adapters, hooked or replaced modules) is called as it is.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.fast.plain import is_plain, is_plain_tensor, is_unwatched, why_not_now
from robustsim.encoders.fast.products import call, linear, products, self_attention


def why_not(visual: nn.Module) -> str | None:
    """Why an image tower is run by open_clip's own forward; None if it need not be."""
    from open_clip import transformer

    if type(visual) is not transformer.VisionTransformer:
        return f"{type(visual).__name__} is not open_clip's VisionTransformer"
    tower: Any = visual
    if type(tower.transformer) is not transformer.Transformer:
        return f"its layers are a {type(tower.transformer).__name__}"
    if tower.positional_embedding.device.type != "cpu":
        return f"on {tower.positional_embedding.device.type}, torch's own kernels are fast"
    if not all(map(is_unwatched, (tower, tower.transformer, tower.transformer.resblocks))):
        return "its forward is hooked or replaced"
    if tower.transformer.grad_checkpointing:
        return "it computes its layers anew in the backward (gradient checkpointing)"
    if not any(is_plain(block, transformer.ResidualAttentionBlock) for block in tower.transformer.resblocks):
        return "none of its layers is open_clip's ResidualAttentionBlock"
    return None


def exceptions(visual: nn.Module) -> str:
    """What of a tower that `why_not` has nothing against is called as a module all the same; empty if nothing is."""
    blocks: Any = visual.transformer.resblocks  # type: ignore[union-attr]
    others = sum(not _is_plain_block(block) for block in blocks)
    return f"{others} of {len(blocks)} layers hold replaced or hooked modules, which are called" if others else ""


def _is_plain_block(block: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock

    return is_plain(block, ResidualAttentionBlock) and all(
        is_unwatched(module) and type(module).__module__.startswith(("torch.nn.modules.", "open_clip."))
        for module in block.modules()
    )


def forward(visual: nn.Module, x: Tensor) -> Any:
    """`visual(x)`."""
    if why_not(visual) is not None or why_not_now(x) is not None:
        with products(x):
            return visual(x)
    return type(visual).forward(_Tower(visual, whole=False), x)


def forward_intermediates(visual: nn.Module, x: Tensor, **options: Any) -> dict[str, Any]:
    """`visual.forward_intermediates(x, **options)`."""
    tower: Any = visual
    if why_not(visual) is not None or why_not_now(x) is not None:
        with products(x):
            result: dict[str, Any] = tower.forward_intermediates(x, **options)
    else:
        result = type(tower).forward_intermediates(_Tower(visual, whole=True), x, **options)
    return result


class _Tower:
    """An image tower, for open_clip's own methods: they find their parts in it, and faster ones for two of these."""

    def __init__(self, visual: nn.Module, *, whole: bool) -> None:
        self.visual = visual
        self.transformer = _Layers(visual, only_first=not whole and _reads_the_class_token_alone(visual))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.visual, name)

    def _embeds(self, x: Tensor) -> Tensor:
        visual: Any = self.visual
        return type(visual)._embeds(_Patches(visual), x)  # type: ignore[no-any-return]


def _reads_the_class_token_alone(visual: Any) -> bool:
    """Whether nothing but the class token goes on from the last layer."""
    return (
        visual.pool_type == "tok"
        and visual.attn_pool is None
        and not visual.output_tokens
        and is_unwatched(visual.ln_post)
    )


class _Patches:
    """An image tower, for open_clip's `_embeds`: the convolution, whose patches do not overlap, is a product."""

    def __init__(self, visual: nn.Module) -> None:
        self.visual = visual

    def __getattr__(self, name: str) -> Any:
        return getattr(self.visual, name)

    def conv1(self, x: Tensor) -> Tensor:
        visual: Any = self.visual
        conv: nn.Conv2d = visual.conv1
        if not (is_plain(conv, nn.Conv2d) and is_plain_tensor(conv.weight) and _cuts_patches(conv, x)):
            result: Tensor = conv(x)
            return result
        count, channels, height, width = x.shape
        size = conv.kernel_size
        rows, columns = height // size[0], width // size[1]
        patches = x.reshape(count, channels, rows, size[0], columns, size[1]).permute(0, 2, 4, 1, 3, 5)
        out = linear(patches.reshape(count, rows * columns, -1), conv.weight.flatten(1), conv.bias)
        return out.transpose(1, 2).view(count, -1, rows, columns)


def _cuts_patches(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether each pixel belongs to one patch, and no border is cut off or added."""
    size = conv.kernel_size
    return (conv.stride, conv.padding, conv.dilation, conv.groups) == (size, (0, 0), (1, 1), 1) and not (
        x.shape[-2] % size[0] or x.shape[-1] % size[1]
    )


class _Layers:
    """open_clip's `Transformer`.

    Args:
        visual: the tower whose layers these are.
        only_first: compute nothing but the first token after the last layer: the others have no part in the embedding.
    """

    def __init__(self, visual: Any, *, only_first: bool) -> None:
        self.transformer = visual.transformer
        self.only_first = only_first

    def __call__(self, x: Tensor) -> Tensor:
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            x = run_block(block, x)
        return run_block(last, x, only_first=self.only_first)

    def forward_intermediates(self, x: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
        own: Any = self.transformer
        return type(own).forward_intermediates(_Blocks(own), x, **options)  # type: ignore[no-any-return]


class _Blocks:
    """open_clip's `Transformer`, for its own `forward_intermediates`: its blocks, as functions."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.resblocks = [_Block(block) for block in transformer.resblocks]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transformer, name)


class _Block:
    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, x: Tensor, attn_mask: None = None) -> Tensor:
        return run_block(self.block, x)


def run_block(block: Any, x: Tensor, *, only_first: bool = False) -> Tensor:
    """A residual block: (N, L, C) -> (N, L, C), or (N, 1, C) of the first token alone."""
    from open_clip.transformer import ResidualAttentionBlock

    if not is_plain(block, ResidualAttentionBlock):
        out: Tensor = block(x)
        return out[:, :1] if only_first else out
    mixed = _attention(block, block.ln_1(x), only_first=only_first)
    x = (x[:, :1] if only_first else x) + block.ls_1(mixed)
    changed: Tensor = x + block.ls_2(_mlp(block.mlp, block.ln_2(x)))
    return changed


def _attention(block: Any, x: Tensor, *, only_first: bool) -> Tensor:
    own: nn.MultiheadAttention = block.attn
    if not _is_plain_attention(own):
        out: Tensor = block.attention(x)
        return out[:, :1] if only_first else out
    mixed = self_attention(x, own.in_proj_weight, own.in_proj_bias, own.num_heads, only_first=only_first)
    return linear(mixed, own.out_proj.weight, own.out_proj.bias)


def _is_plain_attention(own: nn.MultiheadAttention) -> bool:
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    return (
        is_plain(own, nn.MultiheadAttention)
        and is_plain(own.out_proj, NonDynamicallyQuantizableLinear)
        and is_plain_tensor(own.in_proj_weight)  # None where keys are of another size than queries
        and is_plain_tensor(own.out_proj.weight)
        and own.batch_first
        and own.bias_k is None
        and not own.add_zero_attn
        and not (own.training and own.dropout)
    )


def _mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    from open_clip.transformer import QuickGELU

    if not is_plain(mlp, nn.Sequential):
        out: Tensor = mlp(x)
        return out
    for layer in mlp:  # type: ignore[attr-defined]
        x = _quick_gelu(x) if is_plain(layer, QuickGELU) else call(layer, x)
    return x


def _quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, in one pass less."""
    return F.silu(1.702 * x) * (1 / 1.702)
