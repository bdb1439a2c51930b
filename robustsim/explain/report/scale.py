"""Distances on a line from 0 to the largest that there is, as SVG that is as wide as the page has room."""

from robustsim.encoders.calibration import Calibration

_MOST = 2**0.5
#: Between these shares of pairs of unrelated photographs lies the band.
BAND = (0.01, 0.99)
# In percent of the line: nearer to an end than this, a label begins or ends there; closer together, two would touch.
_EDGE, _APART = 12, 26


def unrelated_band(calibration: Calibration | None) -> "tuple[float, float] | None":
    """The distances between which 98 % of pairs of unrelated photographs lie; None if they were not measured."""
    if calibration is None or any(share not in calibration.shares for share in BAND):
        return None
    low, high = (calibration.distances[calibration.shares.index(share)] for share in BAND)
    return low, high


def scale(
    distance: float,
    *,
    what: str = "The pair",
    band: "tuple[float, float] | None" = None,
    reach: "tuple[float, float] | None" = None,
) -> str:
    """The line, with the pair on it.

    Args:
        distance: of the pair.
        what: that is, at the beginning of a sentence.
        band: of unrelated photographs.
        reach: the smallest and the largest distance that attacks found.
    """
    words = f"{what} is at {distance:.4f} on a line from 0 to 1.414."
    parts = ['<rect class="line" x="0" y="27" width="100%" height="6" rx="3"/>']
    if band is not None:
        parts.append(_rect("band", *band, 22, 16))
        words += f" 98 % of pairs of unrelated photographs lie from {band[0]:.4f} to {band[1]:.4f}."
    height = 58
    if reach is None:
        parts += [_label(0, "0", 54, "soft"), _label(_MOST, "1.414", 54, "soft")]
        if band is not None:
            parts.append(_label(sum(band) / 2, "unrelated", 54, "soft"))
    else:
        low, high = reach
        words += f" What the attacks found reaches from {low:.4f} to {high:.4f}."
        parts.append(_rect("reach", low, high, 27, 6))
        close = _percent(high - low) < _APART
        parts += [_end("near", low), _end("far", high)]
        parts += [_label(low, f"{low:.4f}", 54, "near"), _label(high, f"{high:.4f}", 72 if close else 54, "far")]
        height = 76 if close else 58
    parts += [
        f'<circle class="dot" cx="{_percent(distance):.2f}%" cy="30" r="7"/>',
        _label(distance, f"{distance:.4f}", 14, "now"),
    ]
    return f'<svg class="scale" role="img" aria-label="{words}" width="100%" height="{height}">{"".join(parts)}</svg>'


def _percent(distance: float) -> float:
    return min(100.0, 100 * distance / _MOST)


def _rect(kind: str, low: float, high: float, top: int, height: int) -> str:
    left, width = _percent(low), _percent(high - low)
    return f'<rect class="{kind}" x="{left:.2f}%" y="{top}" width="{width:.2f}%" height="{height}"/>'


def _end(kind: str, distance: float) -> str:
    at = f"{_percent(distance):.2f}%"
    return f'<line class="{kind}" x1="{at}" x2="{at}" y1="21" y2="39"/>'


def _label(distance: float, words: str, top: int, kind: str) -> str:
    at = _percent(distance)
    anchor = "start" if at < _EDGE else "end" if at > 100 - _EDGE else "middle"
    return f'<text class="{kind}" x="{at:.2f}%" y="{top}" text-anchor="{anchor}">{words}</text>'
