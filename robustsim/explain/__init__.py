"""Where two pictures differ in the eyes of a metric, which places look like a text, what an embedding holds; a page."""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.explain.attention import attention_map, soft_iou
    from robustsim.explain.differences import difference_map
    from robustsim.explain.drawing import draw_difference
    from robustsim.explain.inversion import Inversion, InversionStep, invert
    from robustsim.explain.masks import MaskScore, MaskScores, mask_scores
    from robustsim.explain.report.explanation import Explanation, Reach, Side
    from robustsim.explain.report.page import write_page
    from robustsim.explain.report.pair import explain_pair

__all__ = [
    "Explanation",
    "Inversion",
    "InversionStep",
    "MaskScore",
    "MaskScores",
    "Reach",
    "Side",
    "attention_map",
    "difference_map",
    "draw_difference",
    "explain_pair",
    "invert",
    "mask_scores",
    "soft_iou",
    "write_page",
]

# Loaded at first use: the terminal's help needs no torch.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Explanation": "report.explanation",
        "Inversion": "inversion",
        "InversionStep": "inversion",
        "MaskScore": "masks",
        "MaskScores": "masks",
        "Reach": "report.explanation",
        "Side": "report.explanation",
        "attention_map": "attention",
        "difference_map": "differences",
        "draw_difference": "drawing",
        "explain_pair": "report.pair",
        "invert": "inversion",
        "mask_scores": "masks",
        "soft_iou": "attention",
        "write_page": "report.page",
    },
)
