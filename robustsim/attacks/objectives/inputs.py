"""What objectives are given, and what the functions in them return: one row for each image, or an error that says so.

A single label or clean image would be spread over a batch by torch without a word, and the robust accuracy be that of
another question.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsim.errors import InputError

# Where models that return more than one thing keep what an attack is about.
_NAMES = ("logits", "image_embeds", "pooler_output", "last_hidden_state")


def detached(tensor: Tensor) -> Tensor:
    """A tensor that stays as it is; one of inference mode could not be part of a graph."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()


def numbers(name: str, values: Any) -> Tensor:
    """A tensor as it is, a list or an array of numbers as one.

    Raises:
        InputError: something else.
    """
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        # A copy in the machine's own order, whatever view or order of bytes it came in.
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name} must be numbers (N,), a tensor, list or array, not {_seen(values)}") from None


def integers(name: str, values: Any) -> Tensor:
    """Class numbers, (N,) int64, of a tensor, a list or an array of integers.

    Raises:
        InputError: anything else, or a number below 0.
    """
    values = numbers(name, values)
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise InputError(f"{name} must be integers (N,), not {values.dtype} {tuple(values.shape)}")
    return detached(values).long()


def within(name: str, values: Tensor) -> int:
    """The largest of the class numbers, -1 where there are none; one look at the device for all the steps to come.

    Raises:
        InputError: a number below 0.
    """
    if not len(values):
        return -1
    low, high = (int(value) for value in torch.aminmax(values))
    if low < 0:
        raise InputError(f"{name} from {low} to {high}: classes are counted from 0")
    return high


def pictures(name: str, value: Any, *, embedded: bool = False, sets: bool = False) -> Tensor:
    """Images (N, C, H, W), with `embedded` or embeddings (N, D), with `sets` or a set of these for each, (N, M, D).

    Raises:
        InputError: anything else, or numbers that are no floating point.
    """
    wanted = "images (N, C, H, W)"
    if embedded:
        wanted += ", or embeddings (N, D)" + (" or (N, M, D)" if sets else "")
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a tensor, {wanted}, not {_seen(value)}")
    if value.ndim not in ((4, 2, 3) if sets else (4, 2) if embedded else (4,)):
        raise InputError(f"{name} must be {wanted}, not {tuple(value.shape)}")
    if not value.is_floating_point():
        raise InputError(f"{name} must be floating point, not {value.dtype}: use images.float() / 255 for 8 bits")
    return value


def as_many(**given: Tensor) -> None:
    """Refuse what has not one row for each image in all of its parts."""
    if len({len(value) for value in given.values()}) > 1:
        counts = ", ".join(f"{len(value)} {name}" for name, value in given.items())
        raise InputError(f"{counts}: they must be as many")


def function(name: str, value: Any) -> Callable[..., Any]:
    """Refuse what cannot be called."""
    if not callable(value):
        raise InputError(f"{name} must be a function of images, not {_seen(value)}")
    return value  # type: ignore[no-any-return]


def returned(name: str, value: Any, count: int, form: str) -> Tensor:
    """What a function made of so many images, one row for each.

    Args:
        name: what the function is called, for the message.
        value: what it returned.
        count: how many images, N.
        form: `(N,)`, or with a row of numbers for each `(N, D)` or `(N, K)`.

    Raises:
        InputError: no tensor, or one of another shape.
    """
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must return a tensor {form}, not {_seen(value)}{_advice(value)}")
    if value.ndim != form.count(",") + (form != "(N,)") or len(value) != count or value.is_complex():
        raise InputError(f"{name} must return {form}, real numbers for {count} images, not {_seen(value)}")
    return value


def _seen(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _advice(value: Any) -> str:
    """How to get at the tensor of what a model returned."""
    if isinstance(value, (tuple, list)):
        return ": pass lambda images: model(images)[0], or whichever it is"
    names = [name for name in _NAMES if isinstance(getattr(value, name, None), Tensor)]
    if names:
        return f": pass lambda images: model(images).{names[0]}"
    if isinstance(value, Mapping) and value:
        return f": pass lambda images: model(images)[...], one of {', '.join(map(repr, list(value)[:5]))}"
    return ""
