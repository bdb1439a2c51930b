"""Linear layers in float32 by oneDNN, on processors where the library that torch asks for them is at half its speed.

That library is MKL, which keeps its AVX-512 kernels for Intel's processors. torch comes with oneDNN too, and reaches it
by a flag of the whole process (`torch.backends.mkldnn.matmul.fp32_precision`), which nobody may turn who is called by
others; the operator below is what that flag leads to, for one call. Whether it is asked depends on the processor and
on a measured error, never on a measured time: the same machine gives the same numbers, however busy it is.
"""

import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustsim.encoders.fast.plain import is_batched, is_dual, is_plain_tensor, is_recorded
from robustsim.images.tracing import is_transformed

# The largest error, as a share of the result's length, that is float32's: about 3e-7; bfloat16 has 3e-3.
_ERROR = 2e-6
# The backward turns the weights round at each call, which only many rows are worth.
_ROWS = 256

_LINEAR: Any = torch.ops.mkldnn._linear_pointwise if hasattr(torch.ops.mkldnn, "_linear_pointwise") else None


def applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this linear layer is computed by oneDNN."""
    return (
        not is_recorded()
        and is_better_here()
        and all(is_plain_tensor(one) and one.dtype == torch.float32 for one in (x, weight))
        and (bias is None or (is_plain_tensor(bias) and bias.dtype == torch.float32))
        and x.device.type == weight.device.type == "cpu"
        and weight.ndim == 2
        and x.numel() > 0
        and not any(map(is_transformed, (x, weight)))
        and not is_dual(x, weight, bias)
        and not torch.is_autocast_enabled("cpu")
        and _flags_are_untouched()
        and _is_exact_here()  # last: measured where nothing asks for less
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` by oneDNN, with gradients; where `applies`."""
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


@lru_cache(maxsize=1)
def is_better_here() -> bool:
    """Whether this processor has instructions for float32 products that oneDNN uses, and MKL does not."""
    mkl: Any = torch.backends.mkl
    return (
        _LINEAR is not None
        and mkl.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and _maker() != "GenuineIntel"
    )


@lru_cache(maxsize=1)
def _is_exact_here() -> bool:
    return measured_error() < _ERROR


def measured_error() -> float:
    """How far oneDNN's product is from the exact one here, as a share of its length; on numbers that are always the
    same, as many as a transformer's layer adds up.
    """
    x, weight = (
        torch.arange(rows * 768, dtype=torch.float32, device="cpu").mul(step).sin().view(rows, 768)
        for rows, step in ((64, 0.7), (96, 1.3))
    )
    exact = x.double() @ weight.double().T
    with torch.inference_mode():
        return float((_product(x, weight, None).double() - exact).norm() / exact.norm())


def _flags_are_untouched() -> bool:
    """Whether nobody has turned oneDNN off, or asked for less precision: then torch decides."""
    flags: Any = torch.backends.mkldnn
    return bool(flags.enabled) and flags.matmul.fp32_precision in ("none", "ieee")


def _maker() -> str:
    """Who made the processor, in the words of its CPUID; empty if the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        named = platform.processor()
    return next((one for one in ("GenuineIntel", "AuthenticAMD") if one in named), named)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = _LINEAR(x, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """The operator, which has no gradients of its own."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    # Whatever type the caller of the backward has chosen since.
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (x, weight) = gradients, ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            few = len(rows) < _ROWS or is_batched(grad)
            to_x = grad @ weight if few else _Linear.apply(grad, weight.t().contiguous(), None)
        if ctx.needs_input_grad[1]:
            to_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_x, to_weight, to_bias
