"""Codes of unit rows in eight bits, and how far each is from the row that it stands for.

A row of the index is what it holds in float16, converted to float64 and divided by its length: call it x. Its code is
`c = round(127 x / max|x|)`, whole numbers from -127 to 127, and stands for `x' = scale * c` with `scale = 1 / |c|`, a
row of length 1. The residual is `|x - x'|`. A query q is coded in the same way.

For unit x, q and x':

    <q, x> - <q', x'> = <q, x - x'> + <q - q', x'>
    |<q, x> - <q', x'>| <= |q| |x - x'| + |q - q'| |x'| = |x - x'| + |q - q'|       (Cauchy and Schwarz)

So a row whose score over codes lies more than both residuals below a threshold lies below it, and need not be looked
at. What rounding adds:

- `<c_q, c_x>` is a whole number, and the kernels compute it without any rounding (`robustsim.search.scan.kernels`).
- x' is defined by the scale as it is stored, in float32, so the residual is that of the row which is scored. The length
  of x' is 1 to within the rounding of that number, 2**-24: the second term grows by as much, less than 1e-7.
- x and its residual are computed in float64: D + 3 roundings of 2**-53 each are less than 1e-9 for D up to a million.
  The residual is stored in float32, rounded up after 1e-9 is added.
- Two scales, the score and the sum of both residuals are multiplied and added in float64, and the sum of these is
  rounded to float32 once: less than 2.5e-7 for numbers below 2.

`ROUNDING`, 1e-6, is more than all of these together, and is part of every bound.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.pairs import unit_rows
from robustsim.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: More than all that rounding adds to a bound; see above.
ROUNDING = 1e-6

#: Values of a code: symmetric, and so that 1,024 products of two add up to less than 2**24.
LARGEST = 127

_OF_ROW = 1e-9


@dataclass(frozen=True)
class Codes:
    """Rows in eight bits.

    Attributes:
        values: (N, D) int8, from -127 to 127.
        scales: (N,) float32: `scale * values` is the row that is meant, of length 1.
        residuals: (N,) float32: no less than the distance between that row and the one that was coded.
    """

    values: "NDArray[np.int8]"
    scales: "NDArray[np.float32]"
    residuals: "NDArray[np.float32]"

    def __len__(self) -> int:
        return len(self.values)


def unit(rows: "NDArray[Any]") -> "NDArray[np.float64]":
    """Rows (N, D) of any floating type in float64, divided by their lengths.

    Raises:
        InputError: a row is not finite, or nothing but zeros.
    """
    return unit_rows(rows, InputError)


def encode(rows: "NDArray[Any]") -> Codes:
    """Code rows (N, D), as they are kept: float16 for those of an index, float32 for queries.

    Raises:
        InputError: a row is not finite, or nothing but zeros.
    """
    x = unit(rows)
    values = np.rint(x * (LARGEST / np.abs(x).max(1, keepdims=True))).astype(np.int8)
    wide = values.astype(np.float64)
    scales = (1 / np.sqrt(np.square(wide).sum(1))).astype(np.float32)
    return Codes(values, scales, residuals_of(x, values, scales))


def residuals_of(
    x: "NDArray[np.float64]", values: "NDArray[np.int8]", scales: "NDArray[np.float32]"
) -> "NDArray[np.float32]":
    """How far unit rows are from what stands for them, (N,) float32, rounded up."""
    away = x - values.astype(np.float64) * scales.astype(np.float64)[:, None]
    exact = np.sqrt(np.square(away).sum(1)) + _OF_ROW
    above: NDArray[np.float32] = np.nextafter(exact.astype(np.float32), np.float32(np.inf))
    return above


def distances(query: "NDArray[np.float64]", rows: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """What the index answers with: `|q - x| / sqrt(2)`, which is `sqrt(1 - <q, x>)`, of a query (D,) to rows (N, D).

    Both are of `unit`. Row by row, so that a distance depends on the two alone, and not on what was computed beside it:
    equal rows have equal distances, to the last bit.

    Returns:
        (N,) float64 in [0, sqrt(2)].
    """
    squares: NDArray[np.float64] = np.square(rows - query).sum(1)
    return np.minimum(np.sqrt(squares / 2), 2**0.5)  # which rounding may exceed by a digit
