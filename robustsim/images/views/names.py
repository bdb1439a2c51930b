"""The kinds of views, what each is against, and what it costs.

| kind | against | names of its views | embeddings more, at most |
|---|---|---|---|
| `trim` | a border, or bars | "trim" | as many again as there are pictures with a border |
| `frames` | a later frame of an animation, a later page of a TIFF | "frame 1", ... ("" is frame 0) | `FRAMES` - 1 |
| `alpha` | what shows on black only, or lies below full transparency | "black", "opaque" | 2, where there is alpha |
| `thumbnail` | the EXIF thumbnail | "thumbnail" | 1, where there is one |
| `tiles` | one part of a large picture | "tile 0 0" to "tile 2 2", "left", "right", "top", "bottom" | 13 |
| `mirror` | a mirrored copy | "mirror" | as many again as there are of all others |

They are combined, and so are their names, in the order in which they are made: a frame, a layer or the thumbnail; its
border trimmed; a tile of that; the mirror image of that: "frame 3 trim mirror". Tiles are those of the whole picture
alone, or of its trimmed form where it has a border. The whole picture, named "", is always the first, and a view that
shows the same pixels as one before it is left out. So is one that shows next to nothing, such as a tile of white paper
or a black frame: it would be like that of any other picture.
"""

from collections.abc import Iterable

from robustsim.errors import InputError

#: All kinds of views, sorted by how often they cost something.
VIEWS = ("mirror", "trim", "frames", "alpha", "thumbnail", "tiles")

#: Most frames of an animation that are looked at, the first one included.
FRAMES = 16

_ALL = "all"


def check_views(names: "str | Iterable[str]") -> tuple[str, ...]:
    """The kinds of views that are named, each once, in the order of `VIEWS`; "all" stands for all of them.

    Args:
        names: one name, or several.

    Raises:
        InputError: a name is none of them.
    """
    asked = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in asked if name != _ALL and name not in VIEWS]:
        raise InputError(f"no kind of view is called {unknown[0]!r}: there are {', '.join(VIEWS)}, or {_ALL!r}")
    return VIEWS if _ALL in asked else tuple(name for name in VIEWS if name in asked)
