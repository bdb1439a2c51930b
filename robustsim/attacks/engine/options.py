"""How attacks read their options: whole numbers, other numbers, lengths of steps, and points to begin at."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustsim.attacks.engine.threat import read_eps
from robustsim.errors import InputError


def whole(name: str, value: Any, least: int = 1) -> int:
    """A count, of any library.

    Raises:
        InputError: no whole number (a bool is none), or one below the least.
    """
    try:
        count = least - 1 if _is_bool(value) else operator.index(value)
    except TypeError:
        count = least - 1
    if count < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return count


def number(name: str, value: Any, told: str, fits: Callable[[float], bool]) -> float:
    """A number in the range that `told` says and `fits` tests.

    Raises:
        InputError: no number (text and bools are none), or one that does not fit.
    """
    try:
        read = math.nan if _is_bool(value) or isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        read = math.nan
    if not fits(read):
        raise InputError(f"{name} must be {told}, not {value!r}")
    return read


def length(name: str, value: Any, *, zero: bool = False) -> float | None:
    """The length of a step, a number or text such as `2/255`, read as radii are; None stays None.

    Args:
        name: of the option.
        value: what was given.
        zero: whether 0 will do.

    Raises:
        InputError: no number, several, or one that is not finite or too small.
    """
    if value is None:
        return None
    try:
        read = read_eps(value, "l2", (0.0, 1.0))  # in linf, a step may be longer than a radius
        size = math.nan if isinstance(read, Tensor) and read.ndim else float(read)
    except InputError:
        size = math.nan
    if not (0 < size < math.inf or (zero and size == 0)):
        least = "at least 0" if zero else "above 0"
        raise InputError(f"{name} must be {least} and finite, a number or text such as 2/255, not {value!r}")
    return size


def check_start(start: Any) -> None:
    """Refuse what no attack can begin at, whatever its images; None is no wish.

    Raises:
        InputError: no tensor of floating point, or one that is not finite.
    """
    if start is None:
        return
    if not isinstance(start, Tensor):
        raise InputError(f"start must be a tensor like the images, not {type(start).__name__}")
    if not start.is_floating_point():
        fix = "start.float() / 255" if start.dtype == torch.uint8 else "start.float()"
        raise InputError(f"start must be of floating point like the images, not {start.dtype}: use {fix}")
    if not bool(torch.isfinite(start).all()):
        raise InputError("start must be finite, and holds NaN or infinity")


def _is_bool(value: Any) -> bool:
    """Whether it is a truth value, of Python, torch or NumPy."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
