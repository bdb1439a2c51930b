"""Parts of a picture: what is left without its border, tiles, and their mirror images."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Left, top, right, bottom, in pixels.
Box: TypeAlias = tuple[int, int, int, int]

# A line belongs to a border if all its pixels but this share are this near to the border's colour, in each channel.
_TOLERANCE, _ODD = 16, 1 / 32
# A border of more colours, one in the other, and bars beside bars.
_ROUNDS = 3
# What is left of a picture, in pixels and of each side; less is no picture.
_LEAST, _LEAST_SHARE = 16, 1 / 16


class Part(NamedTuple):
    """A part of a picture.

    Attributes:
        name: of the view, "" for the whole.
        box: where it lies, in pixels.
        mirrored: whether left and right change sides.
    """

    name: str
    box: Box
    mirrored: bool = False

    def of(self, image: Image.Image) -> Image.Image:
        """The part cut out of the picture."""
        if self.box != (0, 0, *image.size):
            image = image.crop(self.box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else image


def parts(image: Image.Image, kinds: Collection[str], least: int, *, tiled: bool) -> Iterator[Part]:
    """The parts of an RGB picture that kinds of views ask for; the first is the whole.

    Args:
        image: the picture.
        kinds: of views; those of other modules are ignored.
        least: of width and height of a tile, in pixels.
        tiled: whether to give tiles, where they are asked for.
    """
    for part in _upright(image, kinds, least, tiled):
        yield part
        if "mirror" in kinds:
            yield Part(f"{part.name} mirror".lstrip(), part.box, mirrored=True)


def _upright(image: Image.Image, kinds: Collection[str], least: int, tiled: bool) -> Iterator[Part]:
    whole = Part("", (0, 0, *image.size))
    yield whole
    if "trim" in kinds and (box := trimmed(image)):
        whole = Part("trim", box)
        yield whole
    if tiled and "tiles" in kinds:
        for name, box in tiles(whole.box, least):
            yield Part(f"{whole.name} {name}".lstrip(), box)


def tiles(box: Box, least: int) -> Iterator[tuple[str, Box]]:
    """(name, place) of the tiles of a picture, or of a part of one.

    Nine of half its width and height, which overlap by half: "tile 0 0" (row, column) is in the upper left corner,
    "tile 1 1" in the middle. And its halves: "left", "right", "top", "bottom".

    Args:
        box: what is cut into tiles.
        least: of a tile's width and height, in pixels; smaller ones are not given.
    """
    left, top, right, bottom = box
    columns, rows = _thirds(left, right), _thirds(top, bottom)
    halves = {
        "left": (*columns[0], top, bottom),
        "right": (*columns[2], top, bottom),
        "top": (left, right, *rows[0]),
        "bottom": (left, right, *rows[2]),
    }
    quarters = {f"tile {y} {x}": (*columns[x], *rows[y]) for y in range(3) for x in range(3)}
    for name, (x0, x1, y0, y1) in (halves | quarters).items():
        if min(x1 - x0, y1 - y0) >= least:
            yield name, (x0, y0, x1, y1)


def _thirds(first: int, end: int) -> list[tuple[int, int]]:
    """The first, middle and last half of a line."""
    half, quarter = (end - first + 1) // 2, (end - first) // 4
    return [(first, first + half), (first + quarter, first + quarter + half), (end - half, end)]


def trimmed(image: Image.Image) -> Box | None:
    """Where an RGB picture lies in its border; None where it has none, or next to nothing would be left.

    A side's border is the lines from the edge on that have the colour of the outermost one (its median), but for
    noise: of a lossy format, or of an attack. Each side has its own colour, and there may be several borders, one in
    the other.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    box = left, top, right, bottom = 0, 0, width, height
    for _ in range(_ROUNDS):
        top += _border(pixels[top:bottom, left:right])
        bottom -= _border(pixels[top:bottom, left:right][::-1])
        left += _border(pixels[top:bottom, left:right].swapaxes(0, 1))
        right -= _border(pixels[top:bottom, left:right].swapaxes(0, 1)[::-1])
        if (left, top, right, bottom) == box:
            break
        box = left, top, right, bottom
    is_left = right - left >= max(_LEAST, width * _LEAST_SHARE) and bottom - top >= max(_LEAST, height * _LEAST_SHARE)
    return box if is_left and box != (0, 0, width, height) else None


def _border(lines: "NDArray[Any]") -> int:
    """How many of the first lines, (L, N, 3) uint8, have one colour."""
    if 0 in lines.shape:
        return 0
    colour = np.median(lines[0], axis=0)
    for count, line in enumerate(lines):
        if (np.abs(line - colour) > _TOLERANCE).any(axis=1).mean() > _ODD:
            return count
    return len(lines)
