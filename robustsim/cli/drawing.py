"""Pictures that commands draw, with Pillow alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

# Larger panels are reduced to this width and height; smaller ones enlarged by a whole factor, up to _SMALL.
_LARGEST = (768, 512)
_SMALL = 256
_MARGIN, _TEXT = 12, 16
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


def magnified(original: "NDArray[Any]", attacked: "NDArray[Any]") -> "tuple[NDArray[Any], float]":
    """`0.5 + factor * change` as 8-bit pixels, and the factor: the largest by which no change leaves the range.

    Args:
        original: (H, W, 3) uint8.
        attacked: likewise.

    Returns:
        (H, W, 3) uint8, and a whole number; one of two digits where that would be 0.
    """
    import numpy as np

    change = attacked.astype(np.int16) - original.astype(np.int16)
    fits = 127.5 / max(1, int(np.abs(change).max()))
    factor = float(int(fits)) if fits >= 1 else int(100 * fits) / 100
    return np.rint(127.5 + factor * change).clip(0, 255).astype(np.uint8), factor


def three_panels(original: "NDArray[Any]", attacked: "NDArray[Any]", caption: str) -> "Image.Image":
    """The original, what was changed and the attacked picture, side by side.

    Args:
        original: (H, W, 3) uint8.
        attacked: likewise.
        caption: of the attacked one.
    """
    from PIL import Image

    change, factor = magnified(original, attacked)
    text = f"change x {factor:g}" if (original != attacked).any() else "no change"
    smooth, exact = Image.Resampling.LANCZOS, Image.Resampling.NEAREST  # a mean of changes would be smaller than they
    panels = [(original, "original", smooth), (change, text, exact), (attacked, caption, smooth)]
    return _row([(_sized(Image.fromarray(pixels), how), words) for pixels, words, how in panels])


def _sized(image: "Image.Image", reduce_by: "Image.Resampling") -> "Image.Image":
    from PIL import Image

    width, height = image.size
    ratio = max(width / _LARGEST[0], height / _LARGEST[1])
    if ratio > 1:
        return image.resize((max(1, round(width / ratio)), max(1, round(height / ratio))), reduce_by)
    times = max(1, _SMALL // max(width, height))
    return image.resize((times * width, times * height), Image.Resampling.NEAREST)


def _row(panels: "Sequence[tuple[Image.Image, str]]") -> "Image.Image":
    """Pictures of one size in a row on white, each with its caption centred below."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_TEXT)
    cell = max(max(image.width, round(font.getlength(words))) for image, words in panels)
    height = panels[0][0].height
    size = (len(panels) * (cell + _MARGIN) + _MARGIN, height + 2 * _TEXT + 2 * _MARGIN)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (image, words) in enumerate(panels):
        left = _MARGIN + index * (cell + _MARGIN)
        canvas.paste(image, (left + (cell - image.width) // 2, _MARGIN))
        draw.text((left + cell / 2, height + _MARGIN + _TEXT), words, fill=_INK, font=font, anchor="mm")
    return canvas
