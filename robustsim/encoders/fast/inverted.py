"""Inverted residual blocks whose weights are frozen: a forward and a backward for the pixels alone."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.fast.plain import is_batched, is_dual, is_plain, is_plain_tensor, is_unwatched, why_not_now
from robustsim.images.tracing import is_transformed

_TOP = 6.0  # where ReLU6 ends


def run(blocks: nn.Sequential, x: Tensor, kind: type[nn.Module], conv: type[nn.Conv2d]) -> Tensor:
    """`blocks(x)`; where gradients of `x` alone are wanted on a CPU, by functions of the blocks' parameters.

    Args:
        blocks: each with `expand` (or None), `depthwise`, `project` and `residual`.
        x: (N, C, H, W).
        kind: of each block; anything else that may stand there, such as an adapter, is called.
        conv: of their convolutions, likewise.
    """
    wanted = torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu" and x.numel() > 0
    if (
        not wanted
        or why_not_now(x) is not None
        or is_transformed(x)
        or is_dual(x)
        or torch.is_autocast_enabled("cpu")
        or any(parameter.requires_grad or not is_plain_tensor(parameter) for parameter in blocks.parameters())
        or not (is_plain(blocks, nn.Sequential) and all(_is_plain_block(block, kind, conv) for block in blocks))
    ):
        result: Tensor = blocks(x)
        return result
    for block in blocks:
        x = _Block.apply(x, block)
    return x


def _is_plain_block(block: Any, kind: type[nn.Module], conv: type[nn.Conv2d]) -> bool:
    if not is_plain(block, kind):
        return False
    own = [one for one in (block.expand, block.depthwise, block.project) if one is not None]
    return all(is_plain(one, conv) for one in own) and all(map(is_unwatched, block.modules()))


def _weights(block: Any) -> list[Tensor]:
    return [one.weight for one in (block.expand, block.depthwise, block.project) if one is not None]


class _Block(torch.autograd.Function):
    """What autograd does of a block, with products for the convolutions of one pixel, and in buffers that nobody else
    has: widened ones are six times as large as what comes in, and clamped where they lie.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, block: Any) -> Tensor:
        wide = x if block.expand is None else _widened(x, block)  # without, the stride is 1: there is no border
        filtered = _filter(wide, block.depthwise).clamp_(0, _TOP)
        out = _pointwise(filtered, block.project)
        ctx.block = block
        # The weights are saved for torch to tell if somebody changes them before the backward.
        ctx.save_for_backward(x, wide, filtered, *_weights(block))
        return out.add_(x) if block.residual else out

    @staticmethod
    # Whatever type the caller of the backward has chosen since.
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grad,), (x, wide, filtered, *_), block = gradients, ctx.saved_tensors, ctx.block
        again = torch.is_grad_enabled()  # somebody wants to differentiate this once more
        if again or is_batched(grad):
            with torch.enable_grad():
                return torch.autograd.grad(block(x), x, grad, create_graph=again)[0], None
        inner = _back(grad, block.project)
        inner = _filter_back(_masked(inner, filtered, inner), wide, block.depthwise)
        if block.expand is not None:
            top, left = block.depthwise.border(x)[2], block.depthwise.border(x)[0]
            inside = (..., slice(top, top + x.shape[2]), slice(left, left + x.shape[3]))
            place = inner if inner.shape[2:] == x.shape[2:] else _empty(inner[inside].shape, inner)
            inner = _back(_masked(inner[inside], wide[inside], place), block.expand)
        return inner.add_(grad) if block.residual else inner, None


def _widened(x: Tensor, block: Any) -> Tensor:
    """The block's widened and clamped map, with the zeros around it that its convolution wants."""
    wide = _pointwise(x, block.expand)
    left, right, top, bottom = border = block.depthwise.border(x)
    if not any(border):
        return wide.clamp_(0, _TOP)
    height, width = x.shape[2:]
    padded = _empty((*wide.shape[:2], height + top + bottom, width + left + right), wide)
    inside = padded[..., top : top + height, left : left + width]
    torch.clamp(wide, 0, _TOP, out=inside)
    for edge in (padded[:, :, :top], padded[:, :, top + height :], padded[..., :left], padded[..., left + width :]):
        edge.zero_()
    return padded


def _rows(x: Tensor) -> Tensor:
    """Places with their channels, (N * H * W, C), of a map whose channels are innermost."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(like.shape[0], *like.shape[2:], -1).permute(0, 3, 1, 2)


def _pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return _as_map(F.linear(_rows(x), conv.weight.flatten(1), conv.bias), x)


def _back(grad: Tensor, conv: nn.Conv2d) -> Tensor:
    return _as_map(_rows(grad) @ conv.weight.flatten(1), grad)


def _masked(grad: Tensor, clamped: Tensor, place: Tensor) -> Tensor:
    """The gradient before ReLU6 from that after it, and what ReLU6 gave; written to `place`."""
    masked: Tensor = torch.ops.aten.hardtanh_backward.grad_input(grad, clamped, 0, _TOP, grad_input=place)
    return masked


def _empty(shape: Any, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _padding(conv: Any) -> tuple[int, int]:
    """What torch adds around the input: nothing where the input has its border already."""
    return conv.padding if conv.stride == (1, 1) else (0, 0)


def _filter(x: Tensor, conv: Any) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, _padding(conv), conv.dilation, conv.groups)


def _filter_back(grad: Tensor, x: Tensor, conv: Any) -> Tensor:
    """The gradient before a convolution of each channel by itself; of `x`, the shape alone is read."""
    options = (conv.stride, _padding(conv), conv.dilation, False, (0, 0), conv.groups)
    found: Tensor = torch.ops.aten.convolution_backward(grad, x, conv.weight, None, *options, (True, False, False))[0]
    return found
