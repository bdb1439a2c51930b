"""The pictures that one file holds: its frames, what lies below its alpha, its thumbnail."""

import io
import os
from collections.abc import Collection, Iterator

from PIL import ExifTags, Image

from robustsim.errors import ImageError
from robustsim.images.decode import decoded, opened

# A frame of these is decoded after all before it.
_IN_ORDER = frozenset({"GIF", "PNG", "WEBP", "AVIF", "FLI"})
# Of all frames together. An animation of a hundred kilobytes may have more than fit into a day.
_MOST_PIXELS = 2**32
# EXIF's tags of where a thumbnail lies.
_OFFSET, _LENGTH = 0x0201, 0x0202
_PREFIX = b"Exif\0\0"


def layers(
    source: "str | os.PathLike[str] | bytes | Image.Image", kinds: Collection[str], frames: int
) -> Iterator[tuple[str, Image.Image]]:
    """(name, RGB picture) of each picture that the source holds, one at a time; the first is the whole one, "".

    Damaged frames and thumbnails are left out: what else the file holds can be looked at.

    Args:
        source: a path, encoded bytes or a PIL image. Of the latter the frame at which it stands is the only one: it
            may have been changed, which going to another one would undo.
        kinds: of views; those of other modules are ignored.
        frames: most frames to look at, the first one included.

    Raises:
        ImageError: it cannot be read; or a frame or the thumbnail would take too much memory, or all frames too long.
    """
    with opened(source) as (image, what):
        whole = decoded(image, what)
        # An RGB picture comes back itself, and would become the next frame.
        yield "", whole.copy() if whole is image and "frames" in kinds else whole
        del whole
        if "alpha" in kinds and image.has_transparency_data:
            yield "black", decoded(image, what, background=0)
            yield "opaque", decoded(image, what, background=None)
        if "thumbnail" in kinds and (small := _thumbnail(image, what)):
            yield "thumbnail", small
        if "frames" in kinds and image is not source:
            yield from _frames(image, what, frames)


def sampled(count: int, most: int) -> list[int]:
    """Which of `count` frames to look at: all, or `most` (at least 2) that are evenly spread, first and last included.

    In order, from 0.
    """
    if count <= most:
        return list(range(count))
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]


def _frames(image: Image.Image, what: str, most: int) -> Iterator[tuple[str, Image.Image]]:
    try:
        count = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError:
        raise
    except Exception:  # nobody can say how many there are
        return
    if image.format in _IN_ORDER and count * image.width * image.height > _MOST_PIXELS:
        raise ImageError(
            f"cannot use {what}: {count:,} frames of {image.width} x {image.height} pixels take too long to decode; "
            "leave its frames out, or store fewer of them"
        )
    for number in sampled(count, most)[1:]:
        try:
            image.seek(number)
            _check_size(image)
            frame = decoded(image, what)
            frame = frame.copy() if frame is image else frame
        except Image.DecompressionBombError:
            raise
        except Exception:  # damage, for which decoders have a dozen kinds
            continue
        yield f"frame {number}", frame


def _check_size(image: Image.Image) -> None:
    """Pillow's own rule for a picture that is opened, which some versions leave out for its later frames."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > 2 * limit:
        raise Image.DecompressionBombError(
            f"Image size ({image.width * image.height} pixels) of frame {image.tell()} exceeds limit of {2 * limit} "
            "pixels, could be decompression bomb DOS attack."
        )


def _thumbnail(image: Image.Image, what: str) -> Image.Image | None:
    """The EXIF thumbnail, turned as the picture is; None if there is none that can be decoded."""
    try:
        block, exif = image.info["exif"], Image.Exif()
        exif.load(block)  # anew: another thread may be reading that of the same picture in memory
        place = exif.get_ifd(ExifTags.IFD.IFD1)
        start, length = int(place[_OFFSET]), int(place[_LENGTH])
        data = block.removeprefix(_PREFIX)[start : start + length]
        with Image.open(io.BytesIO(data)) as small:
            own = small.getexif()
            if ExifTags.Base.Orientation not in own:
                for tags in (place, exif):
                    if turned := tags.get(ExifTags.Base.Orientation):
                        own[ExifTags.Base.Orientation] = turned
                        break
            return decoded(small, f"the thumbnail of {what}")
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"its EXIF thumbnail: {error}") from None
    except Exception:  # damage, or a head without the tags
        return None
