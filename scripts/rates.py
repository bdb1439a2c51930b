"""How often different photographs come near each other: the tails that ship, and the tables of docs/rates.md.

A collection is a folder NAME=DIR; what a line makes of it is kept in --work, in files NAME-LINE.npz.

python scripts/rates.py measure caltech101=DIR --work W     # the tails, into the bundled cards and the package
python scripts/rates.py cost                                  # what 1e8 pairs cost
python scripts/rates.py tables caltech101=DIR OTHER=DIR ... --work W --write docs/rates.md

Photographs that scripts/caltech101_copies.csv names are copies of each other, and no pair. They were found by looking
at pairs beside one another: the 150 nearest of each line, and of the 700 nearest of lite and of lite-clean and the
260 nearest of the hash those that could be laid over each other, scaled, moved or mirrored, at a correlation above
0.9 (but for pairs of drawings, and of things photographed before white, where all could). Copies farther apart count
as different. Taken out was what shows one photograph or drawing: saved again, scaled, cropped, mirrored, in other
tones, on another background or with something written on it; not what shows one thing twice, and no frames of one
animation or drawings that differ in a line. `python scripts/rates.py show caltech101=DIR --work W -o sheet.png` draws
the pairs left.
"""

import argparse
import csv
import dataclasses
import time
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from pages import write_between
from PIL import Image, ImageDraw

from robustsim import RobustSim
from robustsim.encoders import Calibration, Tail, load_encoder
from robustsim.encoders.binomial import upper_bound
from robustsim.encoders.load import save_calibration
from robustsim.encoders.pairs import NearPairs, effect, make_tail, near_pairs
from robustsim.images import read_image
from robustsim.images.files import list_images
from robustsim.images.hashes import hash_rows, perceptual_hash
from robustsim.search import embed_images

LINES = ("lite", "lite-clean", "phash")
COPIES = Path(__file__).with_name("caltech101_copies.csv")
BUNDLED = Path(__file__).parents[1] / "robustsim" / "encoders" / "bundled"
HASHES = Path(__file__).parents[1] / "robustsim" / "search" / "data" / "phash.json"
ABOUT = "{:,} pictures of Caltech-101 (Caltech, CC BY 4.0), copies of one picture counted once"
RATES = (1e-4, 1e-5, 1e-6)
DRAWN, DRAWS = 500, 300
# Categories of Caltech-101 that are characters of comics and signs.
DRAWINGS = ("garfield_", "snoopy_", "stop_sign_", "yin_yang_")


@dataclasses.dataclass
class Collection:
    """What a line makes of a folder."""

    name: str
    files: list[str]
    rows: Any
    pictures: Any

    def near(self) -> NearPairs:
        return near_pairs(lambda places: self.rows[places], self.pictures)


def load(spec: str, line: str, work: Path) -> Collection:
    name, _, folder = spec.partition("=")
    root, kept = Path(folder), work / f"{name}-{line}.npz"
    if not kept.exists():
        work.mkdir(parents=True, exist_ok=True)
        found = dict(hashed(root) if line == "phash" else embedded(root, line))
        np.savez(kept, files=np.array(sorted(found)), rows=np.stack([found[file] for file in sorted(found)]))
    with np.load(kept) as data:
        files, rows = data["files"].tolist(), data["rows"]
    return Collection(name, files, rows, pictures_of(files))


def hashed(root: Path) -> Any:
    for file in list_images(root)[0]:
        if (bits := perceptual_hash(read_image(root / file))) is not None:
            yield str(file), hash_rows([bits])[0]


def embedded(root: Path, model: str) -> Any:
    for file, row in embed_images(RobustSim.from_pretrained(model, device="cpu"), root):
        yield str(file), row.numpy()


def pictures_of(files: list[str]) -> Any:
    """The number of a picture that each file is of: copies have one."""
    own = {file: file for file in files}

    def first(file: str) -> str:
        while own[file] != file:
            file = own[file]
        return file

    with COPIES.open(newline="") as source:
        for row in csv.DictReader(source):
            if row["file"] in own and row["same_as"] in own:
                own[first(row["file"])] = first(row["same_as"])
    return np.unique([first(file) for file in files], return_inverse=True)[1]


def calibration_of(model: str) -> Calibration:
    found = load_encoder(model).card.calibration
    if found is None:
        raise SystemExit(f"{model} has no calibration")
    return found


def measure(spec: str, work: Path) -> None:
    for line in LINES:
        own = load(spec, line, work)
        tail = make_tail(own.near(), ABOUT.format(len(own.files)))
        if line == "phash":
            HASHES.parent.mkdir(exist_ok=True)
            HASHES.write_text(tail.to_json() + "\n")
        else:
            encoder = load_encoder(line)
            save_calibration(BUNDLED / line, dataclasses.replace(calibration_of(line), tail=tail), encoder)
        print(f"{line}: {tail.pairs:,} pairs of {tail.pictures:,} pictures, {tail.smallest_rate():g} at least")


def tail_of(line: str) -> Tail:
    tail = Tail.from_json(HASHES.read_text()) if line == "phash" else calibration_of(line).tail
    if tail is None:
        raise SystemExit(f"{line} has no tail")
    return tail


def thresholds(spec: str, work: Path) -> str:
    """The distances of rates; in brackets what they would be without the categories of drawings."""
    others, drawings = {}, 0
    for line in LINES:
        own = load(spec, line, work)
        left = np.array([not file.startswith(DRAWINGS) for file in own.files])
        drawings = int((~left).sum())
        places = np.flatnonzero(left)
        others[line] = make_tail(
            dataclasses.replace(own, rows=own.rows[left], pictures=own.pictures[places]).near(), ""
        )
    rows = ["| rate | " + " | ".join(LINES) + " |", "|---:|" + "---:|" * len(LINES)]
    for rate in (3e-7, *reversed(RATES), 1e-3):
        cells = [f"{tail_of(line).threshold(rate):.3f} ({others[line].threshold(rate):.3f})" for line in LINES]
        rows.append(f"| {rate:g} | {' | '.join(cells)} |")
    least = [f"{tail_of(line).smallest_rate():g}" for line in LINES]
    told = f"In brackets: without {drawings} drawings ({', '.join(name.rstrip('_') for name in DRAWINGS)})."
    return "\n".join([*rows, f"| the smallest rate that can be said | {' | '.join(least)} |", "", told])


def elsewhere(specs: list[str], work: Path) -> str:
    """False matches on other collections and between collections, at the thresholds of the tails; the worst first."""
    found: dict[tuple[str, float], dict[str, tuple[int, float]]] = {}
    for line in LINES:
        own = [load(spec, line, work) for spec in specs]
        for place, one in enumerate(own):
            for other in own[place:]:
                if one is other is own[0]:
                    continue
                if one is other:
                    near, pairs, title = one.near().distances, len(one.files) * (len(one.files) - 1) // 2, one.name
                else:
                    u, v = (c.rows / np.linalg.norm(c.rows.astype(float), axis=1, keepdims=True) for c in (one, other))
                    near = np.sqrt(np.maximum(0, 1 - u.astype(np.float64) @ v.T.astype(np.float64))).ravel()
                    pairs, title = near.size, f"{one.name} x {other.name}"
                for rate in RATES:
                    count = int((near <= tail_of(line).threshold(rate)).sum())
                    found.setdefault((line, rate), {})[f"{title}, {pairs:,} pairs"] = count, count / pairs / rate
    titles = list(next(iter(found.values())))
    rows = ["| line | rate | " + " | ".join(titles) + " |", "|---|---:|" + "---:|" * len(titles)]
    for (line, rate), cells in sorted(found.items(), key=lambda item: -max(share for _, share in item[1].values())):
        told = [
            f"**{count} ({share:.2f})**" if share > 1 else f"{count} ({share:.2f})" for count, share in cells.values()
        ]
        rows.append(f"| {line} | {rate:g} | {' | '.join(told)} |")
    return "\n".join(rows)


def dependence(spec: str, work: Path) -> str:
    """How much more counts vary than those of independent pairs, and how often the bounds hold in smaller samples."""
    rows = [
        "| line | pairs within | bootstrap over pictures | `effects` | bootstrap over categories | bounds that hold, "
        "pairs taken as independent | as robustsim computes them |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line in LINES:
        own = load(spec, line, work)
        near, count = own.near(), len(own.files)
        kinds = np.unique([file.rsplit("_image_", 1)[0] for file in own.files], return_inverse=True)[1]
        levels = [level for level in (10, 100, 1000, 10_000) if level < len(near.distances)]
        spreads = [spread(near, units, levels) for units in (np.arange(count), kinds)]
        for place, level in enumerate(levels):
            held = ["", ""]
            if level >= 1000:
                held = [f"{100 * share:.0f} %" for share in coverage(near, count, level)]
            cells = [f"{spreads[0][place]:.1f}", f"{effect(near, level):.1f}", f"{spreads[1][place]:.0f}", *held]
            rows.append(f"| {line} | {level:,} | {' | '.join(cells)} |")
    return "\n".join(rows)


def spread(near: NearPairs, units: Any, levels: list[int]) -> Any:
    """The variance of counts over that of independent pairs, where units are drawn anew."""
    generator, most = np.random.default_rng(0), units.max() + 1
    sums = []
    for _ in range(DRAWS):
        times = np.bincount(generator.integers(0, most, most), minlength=most)[units]
        sums.append(np.cumsum(times[near.left] * times[near.right])[np.array(levels) - 1])
    return np.var(sums, axis=0) / levels


def coverage(near: NearPairs, count: int, level: int) -> tuple[float, float]:
    """How often a bound from a few of the pictures is above the share in all of them."""
    generator, share, distance = np.random.default_rng(0), level / near.pairs, near.distances[level - 1]
    plain = own = 0
    pairs = DRAWN * (DRAWN - 1) // 2
    for _ in range(DRAWS):
        taken = np.zeros(count, bool)
        taken[generator.choice(count, DRAWN, replace=False)] = True
        both, place = taken[near.left] & taken[near.right], np.cumsum(taken) - 1
        some = NearPairs(
            place[near.left[both]], place[near.right[both]], near.distances[both], near.below, pairs, np.arange(DRAWN)
        )
        seen = int((some.distances <= distance).sum())
        most = max(effect(some, at) for at in {seen, *range(0, seen, max(1, seen // 8))})
        plain += upper_bound(seen, pairs) >= share
        own += upper_bound(ceil(seen / most), floor(pairs / most)) >= share
    return plain / DRAWS, own / DRAWS


def show(spec: str, work: Path, output: Path, count: int) -> None:
    """A sheet of the nearest pairs of each line."""
    side, across = 120, 7
    root = Path(spec.partition("=")[2])
    pairs = {}
    for line in LINES:
        own = load(spec, line, work)
        near = own.near()
        for i, j, d in zip(near.left[:count], near.right[:count], near.distances[:count], strict=True):
            pairs.setdefault((own.files[i], own.files[j]), f"{line} {d:.3f}")
    sheet = Image.new("RGB", (across * (2 * side + 12), -(-len(pairs) // across) * (side + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (names, text) in enumerate(pairs.items()):
        x, y = place % across * (2 * side + 12), place // across * (side + 14)
        draw.text((x, y), text, fill="black")
        for at, name in enumerate(names):
            picture = read_image(root / name)
            picture.thumbnail((side, side))
            sheet.paste(picture, (x + at * (side + 2), y + 13))
    sheet.save(output)


def cost() -> None:
    """CPU time of all pairs of 15,000 random rows, as an index measures its own."""
    generator, count = np.random.default_rng(0), 15_000
    rows = np.empty((count, 5120), np.float16)
    for start in range(0, count, 500):
        rows[start : start + 500] = generator.normal(size=(500, 5120))
    began = time.process_time()
    found = near_pairs(lambda places: rows[places], np.arange(count))
    print(f"{found.pairs:,} pairs of {count:,} x 5,120: {time.process_time() - began:.0f} s of CPU time")
    print(f"the smallest rate that they can say: {make_tail(found, 'random').smallest_rate():g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "tables", "show", "cost"))
    parser.add_argument("collections", nargs="*", metavar="NAME=DIR")
    parser.add_argument("--work", type=Path, default=Path("rates"))
    parser.add_argument("-o", "--output", type=Path, default=Path("sheet.png"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    if given.what == "cost":
        cost()
    elif given.what == "measure":
        measure(given.collections[0], given.work)
    elif given.what == "show":
        show(given.collections[0], given.work, given.output, given.count)
    else:
        parts = {
            "thresholds": thresholds(given.collections[0], given.work),
            "rates elsewhere": elsewhere(given.collections, given.work),
            "dependence of pairs": dependence(given.collections[0], given.work),
        }
        for name, text in parts.items():
            print(text, end="\n\n")
            if given.write:
                write_between(given.write, name, text)


if __name__ == "__main__":
    main()
