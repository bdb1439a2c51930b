"""Whether a module is what its library made it, so that a function of its parameters may stand in for it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules

from robustsim.images.tracing import is_transformed


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this kind and no subclass of it, and nobody listens to it or has replaced its forward.

    Adapters (PEFT's LoRA), parametrisations and what shards or quantises modules change their class; weight norms,
    profilers and whoever reads features hook them; accelerate replaces `forward`.
    """
    return type(module) is kind and is_unwatched(module)


def is_unwatched(module: nn.Module) -> bool:
    """Whether nothing happens at a call of the module but its class's forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain_tensor(value: object) -> bool:
    """Whether this is a tensor as torch has them: no subclass that computes in its own way, nor a missing one."""
    return type(value) in (Tensor, nn.Parameter)


def is_dual(*tensors: Tensor | None) -> bool:
    """Whether forward-mode differentiation is at work on one of them, of which functions written here know nothing."""
    unpack: Any = forward_ad.unpack_dual
    return any(one is not None and unpack(one).tangent is not None for one in tensors)


def is_batched(gradient: Tensor) -> bool:
    """Whether several gradients are asked for at once (`is_grads_batched`, `torch.func`), for which not every operator
    has a rule.
    """
    return is_transformed(gradient) or torch._C._functorch.is_legacy_batchedtensor(gradient)


def is_recorded() -> bool:
    """Whether a compiler or an exporter watches what is computed."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def why_not_now(x: Tensor) -> str | None:
    """What about this call asks for the library's own module; None if nothing does.

    A compiler or an exporter sees through the library's module as well, and chooses its own kernels for it.
    """
    hooked: Any = modules._has_any_global_hook()  # type: ignore[no-untyped-call]
    if hooked:
        return "somebody listens to all modules"
    if is_recorded():
        return "the program is being traced"
    if not is_plain_tensor(x):
        return f"the input is a {type(x).__name__}"
    return None
