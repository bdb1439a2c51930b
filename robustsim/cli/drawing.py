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


def three_panels(original: "NDArray[Any]", attacked: "NDArray[Any]", caption: str) -> "Image.Image":
    """The original, what was changed and the attacked picture, side by side.

    Args:
        original: (H, W, 3) uint8.
        attacked: likewise.
        caption: of the attacked one.
    """
    from PIL import Image

    from robustsim.explain.panels import row, sized
    from robustsim.explain.report.tampering import magnified

    change, factor = magnified(original, attacked)
    text = f"change x {factor:g}" if (original != attacked).any() else "no change"
    smooth, exact = Image.Resampling.LANCZOS, Image.Resampling.NEAREST  # a mean of changes would be smaller than they
    panels = [(original, "original", smooth), (change, text, exact), (attacked, caption, smooth)]
    return row([(sized(Image.fromarray(pixels), how), words) for pixels, words, how in panels])


def check_png(path: Path, option: str, others: Sequence[str]) -> None:
    """As `check_file`, of a PNG."""
    check_file(path, option, others, suffixes=(".png",), why="which keeps every pixel")


def check_file(path: Path, option: str, others: Sequence[str], *, suffixes: Sequence[str], why: str) -> None:
    """Say now what could not be written later, and replace no file that is read.

    Args:
        path: of the file to write.
        option: that named it.
        others: files that must stay.
        suffixes: of which its name has one.
        why: it has to.

    Raises:
        OutputError: nothing can be written there.
    """
    if path.suffix.lower() not in suffixes:
        raise typer.BadParameter(f"{path.name!r} does not end in {suffixes[0]}, {why}", param_hint=option)
    folder = path.parent
    for wrong, told in (
        (not folder.is_dir(), f"there is no folder {str(folder)!r}"),
        (not os.access(folder, os.W_OK), f"nothing may be written into {str(folder)!r}"),
        (path.is_dir(), "it is a folder"),
    ):
        if wrong:
            raise OutputError(f"cannot write {str(path)!r}: {told}")
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
