"""Embed at scale, and search: an index of pictures whose answers miss nothing.

The index needs Lance (`pip install "robustsim[search]"`); it is imported when an index is first opened.
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.search.detection.banks import open_banks
    from robustsim.search.detection.detector import Detector
    from robustsim.search.detection.laion import LaionHead
    from robustsim.search.detection.rule import Decision, Reason, Rule, decide_embeddings
    from robustsim.search.detection.scores import ScoreDetector
    from robustsim.search.detection.verdict import Neighbour, Verdict
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
    "Decision",
    "Detector",
    "DuplicatesReport",
    "EmbedReport",
    "Evidence",
    "ForgetReport",
    "Hit",
    "Index",
    "LaionHead",
    "Neighbour",
    "Reason",
    "Rule",
    "ScoreDetector",
    "UpdateReport",
    "Verdict",
    "decide_embeddings",
    "embed_folder",
    "embed_images",
    "open_banks",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Answer": "index.answer",
        "CheckReport": "storage.check",
        "Decision": "detection.rule",
        "Detector": "detection.detector",
        "DuplicatesReport": "duplicates.report",
        "EmbedReport": "embedding",
        "Evidence": "index.answer",
        "ForgetReport": "storage.forget",
        "Hit": "index.answer",
        "Index": "index.index",
        "LaionHead": "detection.laion",
        "Neighbour": "detection.verdict",
        "Reason": "detection.rule",
        "Rule": "detection.rule",
        "ScoreDetector": "detection.scores",
        "UpdateReport": "index.update",
        "Verdict": "detection.verdict",
        "decide_embeddings": "detection.rule",
        "embed_folder": "embedding",
        "embed_images": "embedding",
        "open_banks": "detection.banks",
    },
)
