"""Pictures that commands draw, with Pillow alone."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robustsim.errors import OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


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

    from robustsim.explain.panels import row, sized

    change, factor = magnified(original, attacked)
    text = f"change x {factor:g}" if (original != attacked).any() else "no change"
    smooth, exact = Image.Resampling.LANCZOS, Image.Resampling.NEAREST  # a mean of changes would be smaller than they
    panels = [(original, "original", smooth), (change, text, exact), (attacked, caption, smooth)]
    return row([(sized(Image.fromarray(pixels), how), words) for pixels, words, how in panels])


def check_png(path: Path, option: str, others: Sequence[str]) -> None:
    """Say now what could not be written later, and replace no file that is read.

    Args:
        path: of the picture to write.
        option: that named it.
        others: files that must stay.

    Raises:
        OutputError: nothing can be written there.
    """
    if path.suffix.lower() != ".png":
        raise typer.BadParameter(f"{path.name!r} does not end in .png, which keeps every pixel", param_hint=option)
    folder = path.parent
    for wrong, why in (
        (not folder.is_dir(), f"there is no folder {str(folder)!r}"),
        (not os.access(folder, os.W_OK), f"nothing may be written into {str(folder)!r}"),
        (path.is_dir(), "it is a folder"),
    ):
        if wrong:
            raise OutputError(f"cannot write {str(path)!r}: {why}")
    for other in others:
        both = path.exists() and os.path.exists(other)
        if path.samefile(other) if both else path.resolve() == Path(other).resolve():
            raise typer.BadParameter(f"{str(path)!r} is {other!r} and would be overwritten", param_hint=option)


def write_png(picture: "NDArray[Any] | Image.Image", path: Path) -> None:
    """The whole file or none.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    from PIL import Image

    from robustsim.encoders.weights import whole_file

    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")
