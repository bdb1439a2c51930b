"""BAPPS: patches of 64 x 64 pixels distorted in two ways, and the share of people who found the second one nearer.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from robustsim.data.items import DataSet, Triplet
from robustsim.data.numbered import numbered, require_splits
from robustsim.data.tables import OnError, require_items
from robustsim.errors import InputError

SPLITS = ("cnn", "color", "deblur", "frameinterp", "superres", "traditional")
ANSWERS = "judge"
BELOW = ("val", "2afc/val", "twoafc/val")


def read_bapps(
    root: "str | os.PathLike[str]", *, splits: Sequence[str] = SPLITS, on_error: OnError | None = None
) -> DataSet[Triplet]:
    """The 2AFC part of BAPPS: `val/{split}/{ref,p0,p1}/000003.png` and `val/{split}/judge/000003.npy`.

    `p0` is left and `p1` right; `judge` holds the share of people who preferred `p1`. Scored by share. Groups
    are the splits, ids are like `cnn/000003`. The set states `squash`: published figures are of whole patches,
    upsampled (R-CLIP paper, appendix: 64 to 224), and a card that crops would show a metric 77 % of each.

    Args:
        root: the folder that holds `val`, or `val` itself, or the one that holds `2afc/val`.
        splits: the kinds of distortion to take, in this order.
        on_error: takes each problem, whose item is skipped; without it the first one is raised.

    Raises:
        DataError: a folder or a counterpart is missing, an answer is no share, or nothing is left.
        InputError: no split is named.
    """
    splits = checked_splits(splits)
    folder = require_splits(Path(root), BELOW, splits, ANSWERS)
    items = tuple(
        Triplet(f"{split}/{number}", images[0], images[1], images[2], share, split)
        for split in splits
        for number, images, share in numbered(folder / split, ("ref", "p0", "p1"), ANSWERS, on_error)
    )
    require_items(items, folder)
    return DataSet("bapps", folder, items, "share", description=f"splits {', '.join(splits)}", preprocess="squash")


def checked_splits(splits: Sequence[str]) -> tuple[str, ...]:
    """The splits, each once; one name alone is a split too.

    Raises:
        InputError: none is named.
    """
    names = tuple(dict.fromkeys([splits] if isinstance(splits, str) else splits))
    if not names:
        raise InputError("splits is empty: name at least one")
    return names
