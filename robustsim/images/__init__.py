"""The one door for pictures: anything that shows something becomes RGB in [0, 1].

An image is a path, `bytes`, a PIL image, a NumPy array `(H, W, 3)`, `(H, W)` or `(N, H, W, 3)`, a tensor
`(3, H, W)` or `(N, 3, H, W)`, or a list of those, of any sizes.
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.images.decode import read_image, to_rgb
    from robustsim.images.files import FoundImages, find_images, picture_suffixes, prefetch, tell_passed_over
    from robustsim.images.hashes import hash_rows, perceptual_hash
    from robustsim.images.inputs import ImageInput, ImageSource, split_images, stream_pixels
    from robustsim.images.preprocessing import Preprocessing
    from robustsim.images.views.load import LoadedView, load_views
    from robustsim.images.views.names import check_views
    from robustsim.images.views.pictures import View, picture_views

__all__ = [
    "FoundImages",
    "ImageInput",
    "ImageSource",
    "LoadedView",
    "Preprocessing",
    "View",
    "check_views",
    "find_images",
    "hash_rows",
    "load_views",
    "perceptual_hash",
    "picture_suffixes",
    "picture_views",
    "prefetch",
    "read_image",
    "split_images",
    "stream_pixels",
    "tell_passed_over",
    "to_rgb",
]

# Loaded at first use: cards need `Preprocessing` alone, and the terminal's help needs neither Pillow nor torch.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FoundImages": "files",
        "ImageInput": "inputs",
        "ImageSource": "inputs",
        "LoadedView": "views.load",
        "Preprocessing": "preprocessing",
        "View": "views.pictures",
        "check_views": "views.names",
        "find_images": "files",
        "hash_rows": "hashes",
        "load_views": "views.load",
        "perceptual_hash": "hashes",
        "picture_suffixes": "files",
        "picture_views": "views.pictures",
        "prefetch": "files",
        "read_image": "decode",
        "split_images": "inputs",
        "stream_pixels": "inputs",
        "tell_passed_over": "files",
        "to_rgb": "decode",
    },
)
