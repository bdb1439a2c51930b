"""What pages of HTML have in common: text from strangers that stays text, and pictures inside the page."""

import base64
import html
import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

# What would not be seen, would turn what is around it, or is no text: control characters, marks of direction, blanks of
# no width (not the joiners, which some scripts need) and bytes of names that are no UTF-8.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def text(words: str) -> str:
    """Text as it stands in HTML, in attributes too; what would not be seen is written as Python has it."""
    return html.escape(_UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), words))


def named(path: str) -> str:
    """A path, which may be broken where folders end, and whose direction is its own affair."""
    return f"<bdi>{text(path).replace('/', '/<wbr>')}</bdi>"


def in_bytes(count: int) -> str:
    """`1.2 MB`."""
    value, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def data_uri(image: "Image.Image", kind: str, **options: Any) -> str:
    """A picture as the address of itself, without what else its file held: comments, places, profiles.

    Args:
        image: RGB.
        kind: `PNG` or `JPEG`.
        options: as Pillow's `save` takes them.
    """
    held, bare = io.BytesIO(), image.copy()
    bare.info = {}  # Pillow writes some of it into the new file
    bare.save(held, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"
