"""The views of a picture as encoders look at them."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustsim.errors import ImageError
from robustsim.images.hashes import perceptual_hash
from robustsim.images.inputs import ImageSource, unit_range
from robustsim.images.preprocessing import Preprocessing
from robustsim.images.views.names import check_views
from robustsim.images.views.pictures import placed_views, single


class LoadedView(NamedTuple):
    """One view of a picture, ready for encoders.

    Attributes:
        name: "" for the whole picture, else such as "trim mirror"; see `robustsim.images.views.names`.
        width: of the view upright, in pixels, before any resize.
        height: likewise.
        squares: for each preprocessing, uint8 (S, S, 3), as `load_square` gives it of a file of that view; of a
            tensor, float32 (S, S, 3) in [0, 1]. `stack_squares` takes both. Equal preprocessings share one.
        hash: as `perceptual_hash` gives it of the view before any resize or crop; None also where none was asked for.
    """

    name: str
    width: int
    height: int
    squares: tuple[Tensor, ...]
    hash: bytes | None


def load_views(
    source: ImageSource,
    preprocessings: Sequence[Preprocessing],
    views: "str | Iterable[str]" = (),
    *,
    hashed: bool = False,
    input_range: tuple[float, float] = (0, 1),
) -> list[LoadedView]:
    """The views of a picture, which is decoded once; the first is the whole picture, bit for bit that of `load_square`.

    May be called by several threads at once.

    Args:
        source: a path, encoded bytes, a PIL image, an array or a tensor, of one picture; see `picture_views`.
        preprocessings: of the models, at least one. Tiles are at least of the first one's size.
        views: kinds of views, of `VIEWS`; "all" for all of them.
        hashed: whether to compute the perceptual hashes.
        input_range: of a tensor of floating-point values.

    Raises:
        ImageError: it cannot be read; or a frame or the thumbnail would take too much memory, or all frames too long;
            or a model cannot look at the whole picture. Other views that are too elongated for one are left out.
        InputError: there is no such kind of view, or it is not one picture.
        MissingDependencyError: hashes were asked for, and ImageHash is not installed.
    """
    picture, loaded = single(source), []
    for view, part in placed_views(picture, check_views(views), least=preprocessings[0].size, input_range=input_range):
        try:
            if isinstance(picture, Tensor):
                left, top, right, bottom = part.box
                pixels = unit_range(picture.detach(), input_range)[..., top:bottom, left:right]
                pixels = pixels.flip(-1) if part.mirrored else pixels
                made = {one: one.apply_tensor(pixels)[0].permute(1, 2, 0).cpu() for one in preprocessings}
            else:
                made = {one: torch.from_numpy(np.array(one.apply(view.image))) for one in preprocessings}
        except ImageError as error:
            if view.name:
                continue
            name = repr(os.fspath(picture)) + ": " if isinstance(picture, (str, os.PathLike)) else ""
            raise ImageError(f"{name}{error}") from None
        hashed_view = perceptual_hash(view.image) if hashed else None
        squares = tuple(made[one] for one in preprocessings)
        loaded.append(LoadedView(view.name, *view.image.size, squares, hashed_view))
    return loaded
