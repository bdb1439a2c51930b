"""What an attack found in floating point as the pixels of an 8-bit file, within the budget whatever rounding does."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

Norm = Literal["linf", "l2", "l1"]

# In grey levels: what a radius may lack by its own rounding. 4/255 means 4 levels.
_SLACK = 1e-6
# How much a change may grow to make up for what rounding takes, and how closely that is solved for.
_MOST_SCALE, _CLOSE = 8.0, 1e-7
# Values whose rounding is tried at once: few enough for the processor's own memory.
_BLOCK = 2**16


def to_8_bits(original: "NDArray[Any]", attacked: "NDArray[Any]", norm: Norm, eps: float) -> "NDArray[Any]":
    """Attacked pixels as those of an 8-bit file, within the budget whatever rounding does.

    In linf each change is rounded to the nearest grey level and clamped. In l2 and l1 the change is scaled by the
    largest factor in [0, 8] for which, rounded, it is within the budget and not larger than it was: where the attack
    stopped short of the budget, it had found its best point there.

    Args:
        original: uint8, of any shape.
        attacked: floating point in [0, 1], of the same shape.
        norm: of the budget.
        eps: the radius for pixels in [0, 1].

    Returns:
        uint8. A change that is in whole levels and within the budget stays as it is.
    """
    import numpy as np

    base = original.astype(np.int16)
    change = 255 * attacked.astype(np.float64) - base

    def levels(factor: float) -> "NDArray[Any]":
        return np.rint(base + factor * change).clip(0, 255).astype(np.int16) - base

    def length(factor: float) -> float:  # of these, without having them all at once: it is asked for many times
        flat, moved = base.reshape(-1), change.reshape(-1)
        total = 0.0
        for first in range(0, len(flat), _BLOCK):
            part = slice(first, first + _BLOCK)
            step = np.rint(flat[part] + factor * moved[part]).clip(0, 255) - flat[part]
            total += float(np.abs(step).sum() if norm == "l1" else step @ step)
        return total if norm == "l1" else math.sqrt(total)

    if norm == "linf":
        kept = levels(1).clip(-whole_levels(eps), whole_levels(eps))
    else:
        budget = min(255 * eps + _SLACK, max(_length(change, norm), length(1)))
        kept = levels(_largest_scale(lambda factor: length(factor) <= budget))
    pixels: NDArray[Any] = (base + kept).astype(np.uint8)
    return pixels


def _largest_scale(fits: Callable[[float], bool]) -> float:
    """The largest factor that fits, of a change that grows with it; 0 always does."""
    low, high = (1.0, _MOST_SCALE) if fits(1) else (0.0, 1.0)
    if fits(high):
        return high
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def change_size(original: "NDArray[Any]", changed: "NDArray[Any]", norm: Norm) -> float:
    """The norm of the difference of two 8-bit pictures, for pixels in [0, 1]."""
    import numpy as np

    return _length(changed.astype(np.int16) - original, norm) / 255


def _length(change: "NDArray[Any]", norm: Norm) -> float:
    import numpy as np

    if norm == "linf":
        return float(np.abs(change).max())
    exact = change.astype(np.float64)  # whole numbers have whole sums
    return float(np.abs(exact).sum()) if norm == "l1" else math.sqrt(float(np.square(exact).sum()))


def whole_levels(eps: float) -> int:
    """How many grey levels of 8 bits a radius is."""
    return math.floor(min(255.0, 255 * eps + _SLACK))
