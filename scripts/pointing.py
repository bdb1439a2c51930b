"""Where a map of two pictures points, when one has a patch of a third in it.

A case is two photographs: a rectangle of the second, a fifth to two fifths as wide and as high as the first, lies at a
random place of the first. Of each map of the pair it is asked:

- share of mass / share of area: how much of the map's sum (of sizes, where it has signs) lies in the rectangle, as a
  multiple of its share of the picture; 1 would be a map that knows nothing;
- the pointing game (Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016): whether the map's largest
  value lies in the rectangle, with no tolerance around it.

`pixels`, the sizes of the pixels' differences, is told beside the methods, as what needs no model at all: a map that is
0 wherever pixels are the same, as it is and integrated gradients are, wins by that alone.

python scripts/pointing.py --data DIR --cases 200 [--lpips FILE] [-o FILE.jsonl]
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch

from robustsim import RobustSim
from robustsim.baselines import load_baseline
from robustsim.evaluation.statistics import mean_interval
from robustsim.explain import difference_map
from robustsim.images import find_images, read_image
from robustsim.jsonl import parse_line

SIDES = (0.2, 0.4)


def make_case(files, number, seed):
    """The photograph, the same with a patch, and the patch's (left, top, right, bottom)."""
    rng = random.Random(f"{seed}-{number}")
    first, second = (read_image(files[place]) for place in rng.sample(range(len(files)), 2))
    width, height = first.size
    wide, high = (round(side * rng.uniform(*SIDES)) for side in first.size)
    left, top = rng.randrange(width - wide + 1), rng.randrange(height - high + 1)
    scale = max(1.0, wide / second.width, high / second.height)
    if scale > 1:
        second = second.resize((round(scale * second.width) + 1, round(scale * second.height) + 1))
    x, y = rng.randrange(second.width - wide + 1), rng.randrange(second.height - high + 1)
    changed = first.copy()
    changed.paste(second.crop((x, y, x + wide, y + high)), (left, top))
    return first, changed, (left, top, left + wide, top + high)


def judge(values, box):
    """(share of mass / share of area, whether the largest value is inside) of a map (H, W)."""
    left, top, right, bottom = box
    sizes = np.abs(values)
    share = (right - left) * (bottom - top) / sizes.size
    total = sizes.sum()
    row, column = divmod(int(values.argmax()), values.shape[1])
    won = top <= row < bottom and left <= column < right
    return [float(sizes[top:bottom, left:right].sum() / total / share) if total > 0 else 1.0, bool(won and total > 0)]


def pixels_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(255)


def methods(model, lpips):
    """Name and function of each map: two PIL images -> (H, W)."""
    metric = RobustSim.from_pretrained(model)
    made = {"pixels": lambda a, b: (pixels_of(a) - pixels_of(b)).abs().sum(1)[0]}
    for method in ("places", "features", "gradient"):
        made[f"{model} {method}"] = lambda a, b, m=method: difference_map(metric, a, b, method=m)[0]
    for method in ("places", "features"):
        made[f"{model} {method}, squared"] = lambda a, b, m=method: difference_map(
            metric, a, b, method=m, squared=True
        )[0]
    if lpips:
        library = load_baseline("lpips-alex", weights=lpips).library
        library.spatial = True
        made["lpips-alex spatial"] = lambda a, b: library(pixels_of(a), pixels_of(b), normalize=True)[0, 0]
    return made


def known(path, seed):
    """What an earlier run has found in the same folder: {(case, map): [ratio, won]}."""
    if path is None or not path.exists():
        return {}
    with path.open("rb") as lines:
        entries = [entry for entry in map(parse_line, lines) if entry and entry["seed"] == seed]
    return {(entry["case"], entry["map"]): entry["found"] for entry in entries}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of photographs")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--lpips", metavar="FILE", help="weights of the trunk and of the linear layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="keep each case here, and go on from there")
    options = parser.parse_args()
    files = sorted(Path(options.data) / name for name in find_images(options.data))
    found, made = known(options.output, options.seed), methods(options.model, options.lpips)
    log = options.output.open("ab") if options.output else None
    if log and log.tell():
        log.write(b"\n")  # after a line that an earlier run did not finish
    for number in range(options.cases):
        missing = [name for name in made if (number, name) not in found]
        if not missing:
            continue
        first, changed, box = make_case(files, number, options.seed)
        for name in missing:
            with torch.no_grad():
                values = made[name](changed, first).double().cpu().numpy()
            found[number, name] = judge(values, box)
            if log:
                line = {"seed": options.seed, "case": number, "map": name, "found": found[number, name]}
                log.write(json.dumps(line).encode() + b"\n")
                log.flush()
        if number % 20 == 19:
            print(f"{number + 1} of {options.cases}", file=sys.stderr)
    print(f"{options.cases} cases; 95 % intervals")
    for name in made:
        ratios, wins = (np.array([found[n, name][i] for n in range(options.cases)], float) for i in range(2))
        mass, won = mean_interval(ratios), mean_interval(wins)
        print(
            f"{name:24} mass / area {mass.value:5.2f} ({mass.low:.2f} to {mass.high:.2f}), median "
            f"{np.median(ratios):5.2f}; pointing game {won.value:6.1%} ({won.low:.1%} to {won.high:.1%})"
        )


if __name__ == "__main__":
    main()
