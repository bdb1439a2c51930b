"""What transformers spend their time with: products with weights, and attention."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robustsim.encoders.fast import onednn
from robustsim.encoders.fast.plain import is_dual, is_plain, is_plain_tensor, is_recorded
from robustsim.images.tracing import is_transformed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`, as `torch.nn.functional.linear`."""
    return onednn.linear(x, weight, bias) if onednn.applies(x, weight, bias) else F.linear(x, weight, bias)


def call(module: nn.Module, x: Tensor) -> Tensor:
    """A module's result; where it is a plain linear one, by `linear`."""
    if is_plain(module, nn.Linear) and is_plain_tensor(module.weight):
        return linear(x, module.weight, module.bias)  # type: ignore[arg-type]
    result: Tensor = module(x)
    return result


def self_attention(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, *, only_first: bool) -> Tensor:
    """Tokens mixed by attention to each other, before the output layer.

    Args:
        x: (N, L, C).
        weight: (3 * heads * D, C), that of queries, keys and values below one another.
        bias: (3 * heads * D,), or None.
        heads: how many.
        only_first: of the first token alone, whose query is the only one that is made.

    Returns:
        (N, L, heads * D), or (N, 1, heads * D).
    """
    if not only_first:
        return attention(linear(x, weight, bias), heads)
    width = weight.shape[0] // 3
    first, rest = (None, None) if bias is None else (bias[:width], bias[width:])
    q = linear(x[:, :1], weight[:width], first)
    return attention_of_first(q, linear(x, weight[width:], rest), heads)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Softmax attention of tokens to each other.

    Args:
        qkv: (N, L, 3 * heads * D): queries, keys and values, each of all heads.
        heads: how many.

    Returns:
        (N, L, heads * D).
    """
    count, length, width = qkv.shape
    q, k, v = qkv.view(count, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return _attend(q, k, v).transpose(1, 2).reshape(count, length, width // 3)


def attention_of_first(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """As `attention`, of the first token alone: (N, 1, heads * D) from (N, 1, heads * D) and (N, L, 2 * heads * D)."""
    count, length, width = kv.shape
    size = width // (2 * heads)
    k, v = kv.view(count, length, 2, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    q = q.view(count, 1, heads, size).transpose(1, 2)
    return _attend(q, k, v).transpose(1, 2).reshape(count, 1, heads * size)


def products(x: Tensor) -> AbstractContextManager[object]:
    """A block whose linear layers and attention, whosever modules are called in it, are those of this file.

    Args:
        x: what goes into the modules.
    """
    if is_recorded() or x.device.type != "cpu":
        return nullcontext()
    return _Products() if onednn.is_better_here() or _slow_backward(x) else nullcontext()


class _Products(TorchFunctionMode):
    """Brings the products of others' modules here, for the block and for this thread alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is F.linear and not options and 1 < len(args) < 4:
            x, weight, bias = (*args, None)[:3]
            if onednn.applies(x, weight, bias):
                return onednn.linear(x, weight, bias)
        if func is F.scaled_dot_product_attention and len(args) == 3 and _is_plain_attention(args, options):
            return _attend(*args)
        return func(*args, **options)


def _is_plain_attention(heads: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether nothing is masked, dropped or scaled otherwise; of four dimensions, as many heads everywhere."""
    others = [value for name, value in options.items() if name != "attn_mask"]
    return (
        options.get("attn_mask") is None
        and not any(others)
        and all(is_plain_tensor(one) and one.ndim == 4 for one in heads)
        and len({one.shape[:2] for one in heads}) == 1
        and not torch.is_autocast_enabled(heads[0].device.type)
    )


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by heads, (N, heads, L, D)."""
    if any(map(is_transformed, (q, k, v))):  # the fused kernel has no rules for torch.func
        mixed: Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
        return mixed
    differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if differentiated and not is_dual(q, k, v) and _slow_backward(q):
        out: Tensor = _Attention.apply(q, k, v)
        return out
    return F.scaled_dot_product_attention(q, k, v)


def _slow_backward(q: Tensor) -> bool:
    """Whether torch's fused kernel has a backward that loses against products: in 16 bits, where these are fast."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(q.dtype)
    supported: Any = getattr(torch.ops.mkldnn, name, None) if name else None  # not in each build of torch
    return supported is not None and bool(supported())


class _Attention(torch.autograd.Function):
    """torch's fused forward, the same numbers with and without gradients; and a backward made of whole products.

    With P the attention and O the result (FlashAttention, Dao et al. 2022, appendix B.4):
    dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO O)), dQ = scale dS K, dK = scale dS^T Q.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    # Whatever type the caller of the backward has chosen since.
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Contiguous heads: products of strided ones copy them each time.
        q, k, v, out, grad = (one.contiguous() for one in (*ctx.saved_tensors, *gradients))
        scale = q.shape[-1] ** -0.5
        p = ((q * scale) @ k.transpose(-1, -2)).softmax(-1)
        change = grad @ v.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True)
        ds = p * change * scale
        return ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ grad
