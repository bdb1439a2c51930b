"""Embed at scale, and search: an index of pictures whose answers miss nothing.

The index needs Lance (`pip install "robustsim[search]"`); it is imported when an index is first opened.
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.search.duplicates.report import DuplicatesReport
    from robustsim.search.embedding import EmbedReport, embed_folder, embed_images
    from robustsim.search.index.answer import Answer, Evidence, Hit
    from robustsim.search.index.index import Index
    from robustsim.search.index.update import UpdateReport
    from robustsim.search.storage.check import CheckReport
    from robustsim.search.storage.forget import ForgetReport

__all__ = [
    "Answer",
    "CheckReport",
    "DuplicatesReport",
    "EmbedReport",
    "Evidence",
    "ForgetReport",
    "Hit",
    "Index",
    "UpdateReport",
    "embed_folder",
    "embed_images",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Answer": "index.answer",
        "CheckReport": "storage.check",
        "DuplicatesReport": "duplicates.report",
        "EmbedReport": "embedding",
        "Evidence": "index.answer",
        "ForgetReport": "storage.forget",
        "Hit": "index.answer",
        "Index": "index.index",
        "UpdateReport": "index.update",
        "embed_folder": "embedding",
        "embed_images": "embedding",
    },
)
