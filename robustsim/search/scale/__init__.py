"""An index on many machines: Ray, or whatever maps functions over work (extra `ray`)."""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.search.scale.cluster import RayRunner
    from robustsim.search.scale.embedding import embed_batch, write_fragment
    from robustsim.search.scale.scanning import Part, Request, Scanned, merge, parts_of, scan_fragment
    from robustsim.search.scale.spread import MapRunner, SpreadIndex, commit_fragments

__all__ = [
    "MapRunner",
    "Part",
    "RayRunner",
    "Request",
    "Scanned",
    "SpreadIndex",
    "commit_fragments",
    "embed_batch",
    "merge",
    "parts_of",
    "scan_fragment",
    "write_fragment",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MapRunner": "spread",
        "Part": "scanning",
        "RayRunner": "cluster",
        "Request": "scanning",
        "Scanned": "scanning",
        "SpreadIndex": "spread",
        "commit_fragments": "spread",
        "embed_batch": "embedding",
        "merge": "scanning",
        "parts_of": "scanning",
        "scan_fragment": "scanning",
        "write_fragment": "embedding",
    },
)
