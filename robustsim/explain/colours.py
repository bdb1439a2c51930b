"""Two colour scales whose lightness tells the value, so that they read without colours too.

Their colours were chosen in OKLab (Ottosson 2020), as strong as sRGB holds them: from dark violet over blue and green
to yellow, the lightness rising evenly from 0.22 to 0.94; and from blue over grey to brown, the lightness rising from
0.42 at the ends to 0.95 in the middle. Blue and brown are told apart with every common kind of colour blindness.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RISING = (
    (37, 0, 71), (35, 24, 126), (2, 72, 134), (1, 106, 139), (6, 139, 150), (4, 173, 154), (60, 207, 136),
    (162, 228, 115), (242, 244, 105),
)  # fmt: skip
_DIVERGING = (
    (0, 75, 150), (66, 116, 179), (122, 156, 200), (179, 197, 220), (238, 238, 238), (215, 189, 176), (190, 142, 115),
    (163, 94, 53), (123, 55, 2),
)  # fmt: skip


def colours(values: "NDArray[Any]", *, signed: bool) -> "NDArray[Any]":
    """Colours of values, sRGB of 8 bits.

    Args:
        values: in [0, 1], or in [-1, 1] if signed; what lies beyond is taken for the end.
        signed: whether 0 is in the middle.

    Returns:
        (..., 3) float32 in [0, 255].
    """
    import numpy as np

    table = np.array(_DIVERGING if signed else _RISING, np.float32)
    at = ((np.asarray(values, np.float32) + 1) / 2 if signed else np.asarray(values, np.float32)).clip(0, 1)
    places = np.linspace(0, 1, len(table))
    return np.stack([np.interp(at, places, channel) for channel in table.T], -1).astype(np.float32)
