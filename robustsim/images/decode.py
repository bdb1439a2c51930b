"""Decode a picture and turn it into RGB, one rule for each kind of file; modes are known by their names.

| what the file holds | what becomes of it |
|---|---|
| several frames | the first one |
| EXIF orientation | applied, so that up is up |
| alpha, or a transparent colour | composited on white, premultiplied or not |
| palette, grey, 1 bit | expanded to RGB |
| 16 bits a channel | the high byte, as Pillow itself does for 16-bit RGB; a transparent colour likewise |
| 12 bits, in a TIFF | the upper eight of them |
| 32-bit integers | refused: they have no agreed range |
| float grey | values in [0, 1] scaled to 0..255; other ranges are refused |
| CMYK, YCbCr, HSV | Pillow's conversion; colour profiles are not applied, as in the reference pipelines |
| LAB | CIELAB under D50 to sRGB, by LittleCMS |
"""

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from robustsim.errors import ImageError

# One slash is what pathlib leaves of two.
_URL = re.compile(r"(?i)^(?:[a-z][a-z0-9+.-]+:/|data:)")
# What comes through a pipe is held in memory, and need not have an end.
_MOST_BYTES, _BLOCK = 2**30, 2**20

_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_PREMULTIPLIED = frozenset({"La", "RGBa"})
_BY_PILLOW = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBA"})
# Formats of at most 16 bits, whose grey values Pillow gives as 32-bit integers all the same: PNG did so before 11.3.
_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})
# EXIF's orientation tag, and its values that ask for a turn or a flip.
_ORIENTATION, _TURNED, _SIDEWAYS = 0x0112, range(2, 9), range(5, 9)
_AGAINST_LINES, _AGAINST_COLUMNS = frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
_WIDTH, _HEIGHT, _BITS = 0x0100, 0x0101, 0x0102  # TIFF's tags


def read_image(source: "str | os.PathLike[str] | bytes | Image.Image") -> Image.Image:
    """The picture behind a path, encoded `bytes` or a PIL image, as a PIL image in mode RGB.

    A path may be that of a pipe, which can be read once.

    Raises:
        ImageError: the file is missing, empty, truncated, too large (Pillow's `MAX_IMAGE_PIXELS`, at twice which
            it refuses), of no known format, or a URL. The message names the path.
    """
    with opened(source) as (image, what):
        return decoded(image, what)


@contextmanager
def opened(source: "str | os.PathLike[str] | bytes | Image.Image") -> Iterator[tuple[Image.Image, str]]:
    """The picture behind a source as Pillow opens it, before it is decoded, and what messages call it.

    What Pillow raises in the block is an `ImageError`.

    Raises:
        ImageError: as for `read_image`.
    """
    if isinstance(source, Image.Image):
        with _told("the PIL image"):
            yield source, "the PIL image"
        return
    if isinstance(source, bytes):
        if not source:
            raise ImageError("cannot read an image from 0 bytes: the data is empty")
        what = f"{len(source)} bytes starting with {source[:8]!r}"
        with _told(what), Image.open(io.BytesIO(source)) as image:
            yield image, what
        return
    name = os.fspath(source)
    if _URL.match(name):
        raise ImageError(
            f"{name[:200]!r} is a URL, and robustsim downloads no images: fetch it yourself "
            "(urllib.request.urlopen(url).read()) and pass the bytes or the path of the saved file"
        )
    with _opened_file(name) as stream, _told(repr(name)), Image.open(stream) as image:
        yield image, repr(name)


@contextmanager
def _opened_file(name: str) -> Iterator[BinaryIO]:
    try:
        stream = Path(name).open("rb")  # noqa: SIM115 - what the caller does with it raises errors of its own
    except IsADirectoryError:
        raise ImageError(f"{name!r} is a folder: pass the files in it, or use `robustsim embed` or `matrix`") from None
    except FileNotFoundError:
        raise ImageError(f"cannot read {name!r}: there is no such file (looked from {os.getcwd()!r})") from None
    except OSError as error:
        raise ImageError(f"cannot read {name!r}: {error.strerror or error}") from error
    except ValueError as error:  # a path with a null byte
        raise ImageError(f"cannot read {name!r}: {error}") from None
    with stream:
        there = os.fstat(stream.fileno())
        if stat.S_ISREG(there.st_mode):
            if there.st_size == 0:
                raise ImageError(f"cannot read {name!r}: the file is empty")
            yield stream
        else:
            yield held_stream(stream, repr(name))


def read_stream(stream: BinaryIO, what: str) -> Image.Image:
    """The picture that comes out of a pipe or another stream, read to its end, as a PIL image in mode RGB.

    Args:
        stream: of bytes; it need not be seekable.
        what: what messages call it.

    Raises:
        ImageError: nothing comes, more than 1 GiB comes, or it is no picture.
    """
    held = held_stream(stream, what)
    with _told(what), Image.open(held) as image:
        return decoded(image, what)


def held_stream(stream: BinaryIO, what: str) -> io.BytesIO:
    """What comes out of a stream, read to its end; arguments and errors as for `read_stream`."""
    held = io.BytesIO()
    try:
        while block := stream.read(_BLOCK):
            held.write(block)
            if held.tell() > _MOST_BYTES:
                raise ImageError(f"cannot read {what}: more than {_MOST_BYTES:,} bytes came; save them to a file first")
    except OSError as error:
        raise ImageError(f"cannot read {what}: {error.strerror or error}") from error
    if not held.tell():
        raise ImageError(f"cannot read {what}: nothing came out of it; what comes through a pipe can be read once")
    held.seek(0)
    return held


def loaded(image: Image.Image, *, as_rgb: bool = True) -> Image.Image:
    """A PIL image, decoded: Pillow's lazy loading must not happen in two threads at once.

    Args:
        image: of any mode.
        as_rgb: whether it is to be in mode RGB; else it comes back itself.

    Raises:
        ImageError: the file behind it is damaged, or its mode has no rule.
    """
    rgb = read_image(image)
    return rgb if as_rgb else image


def image_size(path: "str | os.PathLike[str] | BinaryIO") -> tuple[int, int]:
    """(width, height) of a file's picture as `read_image` gives it, upright; only its head is read."""
    with Image.open(path) as image:
        width, height = image.size
        # Some versions of Pillow give a TIFF's size upright already, some as it is stored: its tags say the latter.
        if tags := getattr(image, "tag_v2", None):
            width, height = tags[_WIDTH], tags[_HEIGHT]
        return (height, width) if is_sideways(image) else (width, height)


def mirrored_axes(image: Image.Image) -> tuple[bool, bool]:
    """Whether what is the end of a line, and of a column, as a picture is stored becomes the begin of one, upright.

    Returns:
        (of lines, of columns) of the upright picture, whether they run against the stored ones.
    """
    orientation = _orientation(image)
    return orientation in _AGAINST_LINES, orientation in _AGAINST_COLUMNS


def is_sideways(image: Image.Image) -> bool:
    """Whether a picture lies on its side as it is stored: EXIF asks for a quarter of a turn."""
    return _orientation(image) in _SIDEWAYS


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever goes wrong with a picture in the block, as an `ImageError` that names it."""
    # Decoders answer damage with a dozen kinds of exception, from SyntaxError to struct.error, and a
    # new format brings new ones; all of them mean that this picture cannot be read.
    try:
        yield
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


def decoded(image: Image.Image, what: str, background: int | None = 255) -> Image.Image:
    """What `opened` gives, as RGB.

    Args:
        image: the picture; of several frames, the one at which it stands.
        what: what messages call it.
        background: as for `to_rgb`.

    Raises:
        ImageError: there is no rule for it. Damage raises what Pillow raises, which `opened` turns into this error.
    """
    _tell_colour(image)
    image.load()
    try:
        if 0 in image.size:
            raise ImageError(f"it has {image.width} x {image.height} pixels")
        return to_rgb(image, background)
    except ImageError as error:
        raise ImageError(f"cannot use {what}: {error}") from None
    except Exception as error:  # as in _told
        raise ImageError(f"cannot use {what}: {error or type(error).__name__}") from error


class _HighBytes(tuple[int, ...]):
    """A transparent colour of 16 bits a channel, by its high bytes."""

    __slots__ = ()


def _tell_colour(image: Image.Image) -> None:
    """A transparent colour of 16-bit RGB by its high bytes, as the pixels will be; only the tiles tell the depth."""
    colour = image.info.get("transparency")
    if isinstance(colour, _HighBytes):  # told at an earlier frame
        return
    if isinstance(colour, tuple) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        image.info["transparency"] = _HighBytes(part >> 8 for part in colour)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block is no reason to refuse the pixels
        return 1


def to_rgb(image: Image.Image, background: int | None = 255) -> Image.Image:
    """A PIL image of any mode as RGB, by the rules in the head of this module; an RGB image may come back itself.

    Args:
        image: of any mode.
        background: grey level, 0..255, that what is transparent lies on; None for the colours that lie below it.

    Raises:
        ImageError: the mode has no such rule, its values have no agreed range, or a float image leaves [0, 1].
    """
    mode, bits = image.mode, _grey_bits(image)  # the file's facts are lost with the first operation
    if _orientation(image) in _TURNED:
        image = ImageOps.exif_transpose(image)
    if bits:
        image = _high_byte(image, bits, background)
    elif mode == "F":
        image = _from_float(image)
    elif mode == "LAB":
        return _from_lab(image)
    elif mode in _PREMULTIPLIED:
        return _from_premultiplied(image, background)
    elif mode == "I":
        raise ImageError(_no_range(image))
    elif mode not in _BY_PILLOW:
        raise ImageError(f"pictures of mode {mode!r} have no rule: convert it to RGB first, or to RGBA")
    if image.has_transparency_data:
        colour = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 0xFF:
            image = image.copy()  # the caller's stays as it is
            image.info["transparency"] = tuple(part >> 8 for part in colour)  # of 16 bits, as the pixels were
        rgba = image.convert("RGBA")
        if background is not None:
            rgba = Image.alpha_composite(Image.new("RGBA", rgba.size, (background,) * 3 + (255,)), rgba)
        return rgba.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_bits(image: Image.Image) -> int:
    """How many bits a value of an integer image has, of more than 8; 0 if it is none, or nobody knows."""
    if image.mode in _SIXTEEN_BIT:
        tags = getattr(image, "tag_v2", None)
        return 12 if tags and tags.get(_BITS) == (12,) else 16
    return 16 if image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS else 0


def _high_byte(image: Image.Image, bits: int, background: int | None) -> Image.Image:
    import numpy as np

    values = np.asarray(image)
    grey = (values >> (bits - 8)).astype(np.uint8)
    if background is not None and isinstance(colour := image.info.get("transparency"), int):
        grey[values == colour] = background
    return Image.fromarray(grey)


def _no_range(image: Image.Image) -> str:
    low, high = (int(value) for value in image.getextrema())  # type: ignore[arg-type]
    return (
        f"a 32-bit integer image (mode 'I') with values from {low} to {high} has no agreed range: "
        "scale it to 8 bits (mode 'L') or 16 bits (mode 'I;16') first"
    )


def _from_lab(image: Image.Image) -> Image.Image:
    try:
        return image.convert("RGB")
    except ImportError:
        raise ImageError(
            "a picture in CIELAB, for which this Pillow lacks LittleCMS: install Pillow from its wheel, or convert the "
            "picture to RGB first"
        ) from None


def _from_premultiplied(image: Image.Image, background: int | None) -> Image.Image:
    """Colours that are multiplied by alpha already: what alpha leaves free of the background is added."""
    if background is None:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    *colours, alpha = image.split()
    if background is not None:
        free = ImageChops.invert(alpha).point([round(level * background / 255) for level in range(256)])
        colours = [ImageChops.add(colour, free) for colour in colours]
    return Image.merge("RGB", colours * 3 if len(colours) == 1 else colours)


def _from_float(image: Image.Image) -> Image.Image:
    import numpy as np

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ImageError(f"a float image with values from {low:g} to {high:g}: scale it to [0, 1] first")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))
