"""Pictures that are named in the terminal: files, pipes, and `-` for standard input."""

import os
import stat
import sys
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from robustsim.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

STANDARD_INPUT = "-"

Picture: TypeAlias = Union[str, bytes, "Image.Image"]


def open_pictures(names: Iterable[str], *, encoded: bool = False) -> dict[str, Picture]:
    """What each name stands for: a path as it is, or the picture itself where it can be read only once.

    Args:
        names: paths, or `-`, each as often as it may be.
        encoded: give such a picture as bytes: there may be more in it than its first frame.

    Raises:
        ImageError: what came out of a pipe, or of standard input, is no picture.
    """
    return {name: _opened(name, encoded) for name in dict.fromkeys(names)}


def _opened(name: str, encoded: bool) -> Picture:
    from robustsim.images.decode import held_stream, read_image, read_stream

    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise ImageError("'-' stands for standard input, which is closed here")
        if sys.stdin.isatty():
            raise ImageError("'-' stands for standard input, which is the terminal here: send a picture through a pipe")
        read = held_stream if encoded else read_stream
        found = read(sys.stdin.buffer, "standard input")
        return found.getvalue() if isinstance(found, BytesIO) else found
    if not _is_pipe(name):
        return name
    if not encoded:
        return read_image(name)
    with Path(name).open("rb") as stream:
        return held_stream(stream, repr(name)).getvalue()


def _is_pipe(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):  # whoever reads it tells why
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
