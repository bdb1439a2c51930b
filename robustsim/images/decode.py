"""Decode a picture and turn it into RGB, one rule for each kind of file.

=====================  ==================================================================================
what the file holds    what becomes of it
=====================  ==================================================================================
several frames         the first one
EXIF orientation       applied, so that up is up
alpha, or a            composited on white
transparent colour
palette, grey, 1 bit   expanded to RGB
16 bits a channel      the high byte, as Pillow itself does for 16-bit RGB; a transparent colour likewise
float grey             values in [0, 1] scaled to 0..255; other ranges are refused
CMYK, YCbCr            Pillow's conversion; colour profiles are not applied, as in the reference pipelines
=====================  ==================================================================================
"""

import io
import os
import re
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from robustsim.errors import ImageError

# One slash is what pathlib leaves of two.
_URL = re.compile(r"(?i)^(?:[a-z][a-z0-9+.-]+:/|data:)")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# EXIF's orientation tag, and its values that ask for a turn or a flip.
_ORIENTATION, _TURNED, _SIDEWAYS = 0x0112, range(2, 9), range(5, 9)
_WIDTH, _HEIGHT = 0x0100, 0x0101  # TIFF's tags


def read_image(source: "str | os.PathLike[str] | bytes | Image.Image") -> Image.Image:
    """The picture behind a path, encoded ``bytes`` or a PIL image, as a PIL image in mode RGB.

    Raises:
        ImageError: the file is missing, empty, truncated, too large (Pillow's ``MAX_IMAGE_PIXELS``, at twice which
            it refuses), of no known format, or a URL. The message names the path.
    """
    if isinstance(source, Image.Image):
        return loaded(source)
    if isinstance(source, bytes):
        if not source:
            raise ImageError("cannot read an image from 0 bytes: the data is empty")
        return _decode(io.BytesIO(source), f"{len(source)} bytes starting with {source[:8]!r}")
    name = os.fspath(source)
    if _URL.match(name):
        raise ImageError(
            f"{name[:200]!r} is a URL, and robustsim downloads no images: fetch it yourself "
            "(urllib.request.urlopen(url).read()) and pass the bytes or the path of the saved file"
        )
    path = Path(name)
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise ImageError(f"cannot read {name!r}: the file is empty")
            return _decode(stream, repr(name))
    except IsADirectoryError:
        raise ImageError(f"{name!r} is a folder: pass the files in it, or use `robustsim embed` or `matrix`") from None
    except FileNotFoundError:
        raise ImageError(f"cannot read {name!r}: there is no such file (looked from {os.getcwd()!r})") from None
    except OSError as error:
        raise ImageError(f"cannot read {name!r}: {error.strerror or error}") from error
    except ValueError as error:  # a path with a null byte
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"cannot read {name!r}: {error}") from None


def loaded(image: Image.Image) -> Image.Image:
    """A PIL image in mode RGB, decoded: Pillow's lazy loading must not happen in two threads at once.

    Raises:
        ImageError: the file behind it is damaged, or its mode has no rule.
    """
    return _convert(image, "the PIL image")


def image_size(path: "str | os.PathLike[str]") -> tuple[int, int]:
    """(width, height) of a picture as :func:`read_image` gives it, upright; only its head is read."""
    with Image.open(path) as image:
        width, height = image.size
        # Some versions of Pillow give a TIFF's size upright already, some as it is stored: its tags say the latter.
        if tags := getattr(image, "tag_v2", None):
            width, height = tags[_WIDTH], tags[_HEIGHT]
        return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def _decode(stream: "io.BufferedReader | io.BytesIO", what: str) -> Image.Image:
    # Decoders answer damage with a dozen kinds of exception, from SyntaxError to struct.error, and a
    # new format brings new ones; all of them mean that this picture cannot be read.
    try:
        with Image.open(stream) as image:
            image.load()
            return _convert(image, what)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"cannot read {what}: it is not an image in a known format, or its head is damaged") from None
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"cannot read {what}: {error} If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS first"
        ) from None
    except Exception as error:
        raise ImageError(f"cannot read {what}: {error or type(error).__name__}; the file is damaged") from error


def _convert(image: Image.Image, what: str) -> Image.Image:
    try:
        image.load()
        if 0 in image.size:
            raise ImageError(f"it has {image.width} x {image.height} pixels")
        return to_rgb(image)
    except ImageError as error:
        raise ImageError(f"cannot use {what}: {error}") from None
    except Exception as error:  # as in _decode
        raise ImageError(f"cannot use {what}: {error or type(error).__name__}") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block is no reason to refuse the pixels
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as RGB, by the rules in the head of this module; an RGB image may come back itself.

    Raises:
        ImageError: the mode has no such rule, or a float image leaves [0, 1].
    """
    if _orientation(image) in _TURNED:
        image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        image = _high_byte(image)
    elif image.mode == "F":
        image = _from_float(image)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        colour = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 0xFF:
            image = image.copy()  # the caller's stays as it is
            image.info["transparency"] = tuple(part >> 8 for part in colour)  # of 16 bits, as the pixels were
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    import numpy as np

    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError(
            f"a 32-bit integer image with values from {values.min()} to {values.max()}: "
            "only 0..65535 has an agreed meaning, so scale it to 8 or 16 bits first"
        )
    grey = (values >> 8).astype(np.uint8)
    if isinstance(colour := image.info.get("transparency"), int):
        grey[values == colour] = 255
    return Image.fromarray(grey)


def _from_float(image: Image.Image) -> Image.Image:
    import numpy as np

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ImageError(f"a float image with values from {low:g} to {high:g}: scale it to [0, 1] first")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))
