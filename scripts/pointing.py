"""Where a map of two pictures points, when one has a patch of a third in it, and which of two changes it weighs more.

A case is two photographs. A rectangle of the second, a fifth to two fifths as wide and as high as the first, lies at a
random place of the first. Of each map of the pair it is asked:

- share of mass / share of area: how much of the map's sum (of sizes, where it has signs) lies in the rectangle, as a
  multiple of its share of the picture; 1 would be a map that knows nothing;
- the pointing game (Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016): whether the map's largest
  value lies in the rectangle, with no tolerance around it.

Then two rectangles of one size, side by side or one above the other, are changed in two of nine ways (noise, blur,
light, contrast, colours, JPEG, a shift by 1 to 8 pixels, mirrored, coarse pixels). The metric tells how far each change
alone takes the picture, and it is asked:

- which counts more: whether the map of both changes has more of its sum in the one that the metric finds larger; where
  the two distances differ by less than a quarter, the case is not asked.

`pixels`, the sizes of the pixels' differences, is told beside the methods, as what needs no model at all: a map that is
0 wherever pixels are the same, as it is and integrated gradients are, wins by that alone.

python scripts/pointing.py --data DIR --cases 200 [--lpips FILE] [-o FILE.jsonl]
"""

import argparse
import io
import json
import random
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from robustsim import RobustSim
from robustsim.baselines import load_baseline
from robustsim.evaluation.statistics import mean_interval
from robustsim.explain import difference_map
from robustsim.explain.methods import MapMethod
from robustsim.images import find_images, read_image
from robustsim.jsonl import parse_line

SIDES = (0.2, 0.4)
# By how much the distances of two changes differ at least, where it is asked which of them counts more.
CLEAR = 1.25


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


def _noise(part, rng):
    size, generator = rng.choice((4, 10, 25, 60)), np.random.default_rng(rng.randrange(2**32))
    pixels = np.asarray(part) + generator.normal(0, size, (part.height, part.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _jpeg(part, rng):
    file = io.BytesIO()
    part.save(file, "JPEG", quality=rng.choice((5, 10, 30, 60)))
    return Image.open(file).convert("RGB")


def _coarse(part, rng):
    times = rng.choice((2, 4, 8))
    small = part.resize((max(1, part.width // times), max(1, part.height // times)))
    return small.resize(part.size, Image.Resampling.NEAREST)


CHANGES = (
    _noise,
    _jpeg,
    _coarse,
    lambda part, rng: part.filter(ImageFilter.GaussianBlur(rng.choice((0.7, 1.5, 3, 6)))),
    lambda part, rng: ImageEnhance.Brightness(part).enhance(rng.choice((0.6, 0.85, 1.15, 1.5))),
    lambda part, rng: ImageEnhance.Contrast(part).enhance(rng.choice((0.4, 0.7, 1.4))),
    lambda part, rng: ImageEnhance.Color(part).enhance(rng.choice((0, 0.5, 2))),
    lambda part, rng: Image.fromarray(np.roll(np.asarray(part), rng.choice((1, 2, 4, 8)), 1)),
    lambda part, rng: part.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
)


def make_changes(files, number, seed):
    """The photograph, the same with either of two changes and with both, and the boxes of the changes."""
    rng = random.Random(f"two-{seed}-{number}")
    photo = read_image(rng.choice(files))
    wide, high = (round(side * rng.uniform(0.25, 0.4)) for side in photo.size)
    boxes = []
    beside = rng.random() < 0.5
    for place in range(2):
        # Each in a half of its own, with a gap in between.
        width, height = (photo.width // 2, photo.height) if beside else (photo.width, photo.height // 2)
        left = rng.randrange(width - wide + 1) + place * beside * (photo.width - width)
        top = rng.randrange(height - high + 1) + place * (not beside) * (photo.height - height)
        boxes.append((left, top, left + wide, top + high))
    ways = rng.sample(CHANGES, 2)
    parts = [way(photo.crop(box), rng) for way, box in zip(ways, boxes, strict=True)]
    changed = []
    for these in ((0,), (1,), (0, 1)):
        changed.append(photo.copy())
        for place in these:
            changed[-1].paste(parts[place], boxes[place][:2])
    return photo, changed, boxes


def weighed(values, boxes):
    """How much of the sum of a map (H, W) lies in the first of two boxes, and how much in the second."""
    return [float(np.abs(values)[top:bottom, left:right].sum()) for left, top, right, bottom in boxes]


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


def methods(metric, model, lpips):
    """Name and function of each map: two PIL images -> (H, W)."""
    made = {"pixels": lambda a, b: (pixels_of(a) - pixels_of(b)).abs().sum(1)[0]}
    for method in get_args(MapMethod):
        made[f"{model} {method}"] = lambda a, b, m=method: difference_map(metric, a, b, method=m)[0]
    made[f"{model} features, squared"] = lambda a, b: difference_map(metric, a, b, method="features", squared=True)[0]
    if lpips:
        library = load_baseline("lpips-alex", weights=lpips).library
        library.spatial = True
        made["lpips-alex spatial"] = lambda a, b: library(pixels_of(a), pixels_of(b), normalize=True)[0, 0]
    return made


def known(path, seed):
    """What an earlier run has found in the same folder: {(case, map): [ratio, won, agreed]}."""
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
    parser.add_argument("--map", action="append", help="one of the maps, by its name here; all if not given")
    parser.add_argument("-o", "--output", type=Path, help="keep each case here, and go on from there")
    options = parser.parse_args()
    files = sorted(Path(options.data) / name for name in find_images(options.data))
    metric = RobustSim.from_pretrained(options.model)
    made = methods(metric, options.model, options.lpips)
    if options.map:
        made = {name: made[name] for name in options.map}
    found = known(options.output, options.seed)
    log = options.output.open("ab") if options.output else None
    if log and log.tell():
        log.write(b"\n")  # after a line that an earlier run did not finish
    for number in range(options.cases):
        missing = [name for name in made if (number, name) not in found]
        if not missing:
            continue
        first, changed, box = make_case(files, number, options.seed)
        photo, (*each, both), boxes = make_changes(files, number, options.seed)
        one, other = metric.distance(photo, each).tolist()
        asked = max(one, other) >= CLEAR * min(one, other) > 0
        for name in missing:
            with torch.no_grad():
                values = made[name](changed, first).double().cpu().numpy()
                sums = weighed(made[name](both, photo).double().cpu().numpy(), boxes)
            agreed = (sums[0] > sums[1]) == (one > other) if asked else None
            found[number, name] = [*judge(values, box), agreed]
            if log:
                line = {"seed": options.seed, "case": number, "map": name, "found": found[number, name]}
                log.write(json.dumps(line).encode() + b"\n")
                log.flush()
        if number % 20 == 19:
            print(f"{number + 1} of {options.cases}", file=sys.stderr)
    print(f"{options.cases} cases; 95 % intervals")
    for name in made:
        ratios, wins = (np.array([found[n, name][i] for n in range(options.cases)], float) for i in range(2))
        told = [found[n, name][2] for n in range(options.cases)]
        agreed = np.array([one for one in told if one is not None], float)
        mass, won, same = mean_interval(ratios), mean_interval(wins), mean_interval(agreed)
        print(
            f"{name:24} mass / area {mass.value:5.2f} ({mass.low:.2f} to {mass.high:.2f}), median "
            f"{np.median(ratios):5.2f}; pointing game {won.value:6.1%} ({won.low:.1%} to {won.high:.1%}); which counts "
            f"more {same.value:6.1%} ({same.low:.1%} to {same.high:.1%}) of {len(agreed)}"
        )


if __name__ == "__main__":
    main()
