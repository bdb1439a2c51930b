"""Soft IoU of text-guided attention with masks (CTGA paper, Table A1), with 95 % intervals.

IMAGES holds a folder for each class, MASKS the same files as PNG, 0 where the object is not:

python scripts/attention_iou.py IMAGES MASKS --model clip-vit-b-32
"""

import argparse
import sys

import numpy as np

from robustsim import RobustSim
from robustsim.evaluation.statistics import mean_interval
from robustsim.explain import mask_scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("masks")
    parser.add_argument("--model", default="clip-vit-b-32")
    parser.add_argument("--form", choices=["paper", "published"], default="paper")
    options = parser.parse_args()
    metric = RobustSim.from_pretrained(options.model, text=True)
    found = mask_scores(metric, options.images, options.masks, form=options.form)
    for line in found.skipped:
        print(f"skipped: {line}", file=sys.stderr)
    print(f"{options.model}, {len(found.rows):,} pictures of {len({row.label for row in found.rows}):,} classes")
    for name, values in (
        ("TGA", [row.tga for row in found.rows]),
        ("Comp-TGA", [row.comp_tga for row in found.rows]),
    ):
        mean = mean_interval(np.array(values))
        print(f"{name:9} soft IoU {mean.value:.4f} ({mean.low:.4f} to {mean.high:.4f})")


if __name__ == "__main__":
    main()
