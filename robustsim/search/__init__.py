"""Embed at scale, and search: an index of pictures whose answers miss nothing.

The index needs Lance (`pip install "robustsim[search]"`); it is imported when an index is first opened.
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.search.detection.apply import Applied, apply_decisions, list_kept
    from robustsim.search.detection.banks import open_banks
    from robustsim.search.detection.decisions import FilterReport, judge_folders
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
    "Applied",
    "CheckReport",
    "Decision",
    "Detector",
    "DuplicatesReport",
    "EmbedReport",
    "Evidence",
    "FilterReport",
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
    "apply_decisions",
    "decide_embeddings",
    "embed_folder",
    "embed_images",
    "judge_folders",
    "list_kept",
    "open_banks",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Answer": "index.answer",
        "Applied": "detection.apply",
        "CheckReport": "storage.check",
        "Decision": "detection.rule",
        "Detector": "detection.detector",
        "DuplicatesReport": "duplicates.report",
        "EmbedReport": "embedding",
        "Evidence": "index.answer",
        "FilterReport": "detection.decisions",
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
        "apply_decisions": "detection.apply",
        "decide_embeddings": "detection.rule",
        "embed_folder": "embedding",
        "embed_images": "embedding",
        "judge_folders": "detection.decisions",
        "list_kept": "detection.apply",
        "open_banks": "detection.banks",
    },
)
