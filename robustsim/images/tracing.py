"""What may be done with a tensor while torch traces or transforms a program: read its values, or not."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def is_transformed(tensor: "Tensor") -> bool:
    """Whether a transform of `torch.func` (vmap, grad) is at work on the tensor, and not the compiler."""
    import torch

    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_traced(tensor: "Tensor") -> bool:
    """Whether `torch.compile`, `torch.export` or a transform of `torch.func` is at work on the tensor."""
    import torch

    return torch.compiler.is_compiling() or is_transformed(tensor)


def concrete(tensor: "Tensor") -> "Tensor":
    """The tensor below the wrappers of `torch.func`, with all that vmap goes over: its values can be read."""
    import torch

    while is_transformed(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.detach()
