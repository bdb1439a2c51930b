"""The views of a picture, one at a time."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from PIL import Image, ImageStat
from torch import Tensor

from robustsim.errors import InputError
from robustsim.images.inputs import ImageSource, split_images, to_picture, unit_range
from robustsim.images.views.layers import layers
from robustsim.images.views.names import FRAMES, check_views
from robustsim.images.views.parts import Part, parts

# A view whose 32 x 32 pixels have a smaller standard deviation than this, in each channel, shows nothing.
_GRID, _PLAIN = 32, 4


class View(NamedTuple):
    """One way to look at a picture.

    Attributes:
        name: "" for the whole picture, else such as "trim mirror"; see `robustsim.images.views.names`.
        image: what it shows, a PIL image in mode RGB, upright.
    """

    name: str
    image: Image.Image


def picture_views(
    source: ImageSource, views: "str | Iterable[str]", *, least: int = 224, frames: int = FRAMES
) -> Iterator[View]:
    """The views of a picture, made one at a time; the first is the whole picture, named "".

    Args:
        source: a path, encoded bytes, a PIL image, an array or a tensor in [0, 1], of one picture. Only files have
            frames to look at; of a PIL image, the one at which it stands is the whole picture. A tensor's values are
            rounded to 8 bits.
        views: kinds of views, of `VIEWS`; "all" for all of them.
        least: of a tile's width and height, in pixels: the side of the square that a model looks at.
        frames: most frames to look at, at least 2: all, or as many evenly spread, the first and the last included.

    Raises:
        ImageError: it cannot be read; or a frame or the thumbnail would take too much memory, or all frames too long.
        InputError: there is no such kind of view, or it is not one picture.
    """
    kinds = check_views(views)
    if frames < 2:
        raise InputError(f"frames={frames}: at least 2 are looked at, the first and the last")
    for view, _ in placed_views(single(source), kinds, least=least, frames=frames):
        yield view


def single(source: ImageSource) -> Any:
    """One picture as a path, bytes, a PIL image (not decoded yet), or a tensor (1, 3, H, W).

    Raises:
        InputError: it is none, or there are several.
    """
    if isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        return source
    found = split_images(source)
    count = sum(len(part) if isinstance(part, Tensor) else 1 for part in found)
    if count != 1:
        raise InputError(f"the views are those of one picture, and {count} were passed: pass them one by one")
    return found[0]


def placed_views(
    source: Any,
    kinds: tuple[str, ...],
    *,
    least: int,
    frames: int = FRAMES,
    input_range: tuple[float, float] = (0, 1),
) -> Iterator[tuple[View, Part]]:
    """`picture_views` of what `single` gives, with the part of its layer that each view is."""
    seen: set[tuple[tuple[int, int], bytes]] = set()
    if isinstance(source, Tensor):
        pictures = iter([("", _rounded(source, input_range))])
    else:
        pictures = layers(source, kinds, frames)
    for layer, image in pictures:
        for part in parts(image, kinds, least, tiled=not layer):
            shown = part.of(image)
            if kinds:
                pixels = shown.size, hashlib.sha256(shown.tobytes()).digest()
                if pixels in seen:
                    continue
                seen.add(pixels)
            name = f"{layer} {part.name}".strip()
            if not name or not _is_plain(shown):
                yield View(name, shown), part


def _is_plain(image: Image.Image) -> bool:
    """Whether there is next to nothing to be seen: such views of different pictures are alike."""
    small = image.resize((_GRID, _GRID), Image.Resampling.BOX)
    return max(ImageStat.Stat(small).stddev) < _PLAIN


def _rounded(tensor: Tensor, input_range: tuple[float, float]) -> Image.Image:
    return to_picture(unit_range(tensor.detach(), input_range)[0])
