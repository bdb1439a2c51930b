"""Where two pictures differ in the eyes of a metric, which places look like a text, and what an embedding holds."""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.explain.attention import attention_map, soft_iou
    from robustsim.explain.differences import difference_map
    from robustsim.explain.drawing import draw_difference
    from robustsim.explain.inversion import Inversion, InversionStep, invert
    from robustsim.explain.masks import MaskScore, MaskScores, mask_scores

__all__ = [
    "Inversion",
    "InversionStep",
    "MaskScore",
    "MaskScores",
    "attention_map",
    "difference_map",
    "draw_difference",
    "invert",
    "mask_scores",
    "soft_iou",
]

# Loaded at first use: the terminal's help needs no torch.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Inversion": "inversion",
        "InversionStep": "inversion",
        "MaskScore": "masks",
        "MaskScores": "masks",
        "attention_map": "attention",
        "difference_map": "differences",
        "draw_difference": "drawing",
        "invert": "inversion",
        "mask_scores": "masks",
        "soft_iou": "attention",
    },
)
