"""Pictures in a row on white, each with its caption below."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

# Larger panels are reduced to this width and height; smaller ones enlarged by a whole factor, up to _SMALL.
_LARGEST = (768, 512)
_SMALL = 256
MARGIN, TEXT = 12, 16
INK, PAPER = (32, 32, 32), (255, 255, 255)


def sized(image: "Image.Image", reduce_by: "Image.Resampling") -> "Image.Image":
    """A picture of the size of a panel; small ones are enlarged pixel by pixel."""
    from PIL import Image

    width, height = image.size
    ratio = max(width / _LARGEST[0], height / _LARGEST[1])
    if ratio > 1:
        return image.resize((max(1, round(width / ratio)), max(1, round(height / ratio))), reduce_by)
    times = max(1, _SMALL // max(width, height))
    return image.resize((times * width, times * height), Image.Resampling.NEAREST)


def row(panels: "Sequence[tuple[Image.Image, str]]") -> "Image.Image":
    """Pictures in a row on white, each with its caption centred below; all cells are as wide as the widest."""
    from PIL import Image, ImageDraw

    words_in = font()
    cell = max(max(image.width, round(words_in.getlength(words))) for image, words in panels)
    height = max(image.height for image, _ in panels)
    size = (len(panels) * (cell + MARGIN) + MARGIN, height + 2 * TEXT + 2 * MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (image, words) in enumerate(panels):
        left = MARGIN + index * (cell + MARGIN)
        canvas.paste(image, (left + (cell - image.width) // 2, MARGIN + (height - image.height) // 2))
        draw.text((left + cell / 2, height + MARGIN + TEXT), words, fill=INK, font=words_in, anchor="mm")
    return canvas


def font(size: int = TEXT) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Pillow's own, in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def shortened(words: str, width: float) -> str:
    """The words, or their ends with dots between them, no wider than so many pixels where that can be."""
    measure = font().getlength
    if measure(words) <= width:
        return words
    for kept in range(len(words) - 1, 1, -1):
        short = f"{words[: kept // 2]}...{words[-(kept - kept // 2) :]}"
        if measure(short) <= width:
            return short
    return words[:1]


def rows(panels: "Sequence[Sequence[tuple[Image.Image, str]]]", title: str = "") -> "Image.Image":
    """Rows of pictures, those of a row of one size, below a title if there is one.

    Args:
        panels: pictures with their captions.
        title: text of any length; of what does not fit, its ends.
    """
    from PIL import Image, ImageDraw

    drawn = [row(one) for one in panels]
    head = 2 * TEXT if title else 0
    canvas = Image.new("RGB", (max(one.width for one in drawn), head + sum(one.height for one in drawn)), PAPER)
    if title:
        words, place = shortened(title, canvas.width - 2 * MARGIN), (canvas.width / 2, MARGIN + TEXT / 2)
        ImageDraw.Draw(canvas).text(place, words, fill=INK, font=font(), anchor="mm")
    top = head
    for one in drawn:
        canvas.paste(one, (0, top))
        top += one.height
    return canvas
