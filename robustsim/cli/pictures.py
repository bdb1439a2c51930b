"""Pictures that are named in the terminal: files, pipes, and `-` for standard input."""

import os
import stat
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias, Union

from robustsim.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

STANDARD_INPUT = "-"

Picture: TypeAlias = Union[str, "Image.Image"]


def open_pictures(names: Iterable[str]) -> dict[str, Picture]:
    """What each name stands for: a path as it is, or the picture itself where it can be read only once.

    Args:
        names: paths, or `-`, each as often as it may be.

    Raises:
        ImageError: what came out of a pipe, or of standard input, is no picture.
    """
    return {name: _opened(name) for name in dict.fromkeys(names)}


def _opened(name: str) -> Picture:
    from robustsim.images.decode import read_image, read_stream

    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise ImageError("'-' stands for standard input, which is closed here")
        if sys.stdin.isatty():
            raise ImageError("'-' stands for standard input, which is the terminal here: send a picture through a pipe")
        return read_stream(sys.stdin.buffer, "standard input")
    return read_image(name) if _is_pipe(name) else name


def _is_pipe(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):  # whoever reads it tells why
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
