"""Does a model's calibration hold on other photographs? Tables for docs/calibration.md.

Each collection is measured first, which goes on where it stopped:

robustsim calibrate lite --data DIR -o measured/NAME --photographs 1000 --changed 300

and then compared with what the model's card says:

python scripts/calibration.py lite "NAME=measured/NAME" ... --write docs/calibration.md

A figure holds where it differs from the card's by no more than the card states together with its own sampling error.

`python scripts/calibration.py --rest DIR FOLDER` makes a folder of links to the photographs of DIR that a calibration
with 1,000 photographs and seed 0 did not draw; `--caltech TABLE LABELS` makes labels of Caltech-101's table of files
and categories, in which categories that show the same thing are one.
"""

import argparse
import csv
import os
from math import sqrt
from pathlib import Path

from pages import write_between

from robustsim.encoders import Calibration, load_encoder
from robustsim.evaluation.calibration import draw_photographs

SHARES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
TWO_SIDED = 1.96
# Categories of Caltech-101 that show what another one shows.
SAME = {
    "cougar_face": "cougar_body",
    "crocodile_head": "crocodile",
    "flamingo_head": "flamingo",
    "schooner": "ketch",
    "water_lilly": "lotus",
    "windsor_chair": "chair",
}


def rest(source: Path, folder: Path) -> None:
    drawn = set(draw_photographs(source, 1000, 0))
    folder.mkdir(parents=True)
    for file in draw_photographs(source, 2**62, 0):
        if file not in drawn:
            place = folder / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.abspath(source / file))


def caltech(table: Path, labels: Path) -> None:
    with table.open(newline="") as source, labels.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("file", "label"))
        for row in csv.DictReader(source):
            writer.writerow((row["file"], SAME.get(row["category"], row["category"])))


def calibration_of(model: str) -> Calibration:
    found = load_encoder(model).card.calibration
    if found is None:
        raise SystemExit(f"{model} has no calibration")
    return found


def cell(found: float, stated: float, error: float) -> tuple[str, bool]:
    holds = abs(found - stated) <= TWO_SIDED * error
    return f"{found:.3f}" if holds else f"**{found:.3f}**", holds


def head(first: str, others: dict[str, Calibration]) -> list[str]:
    return [f"| {first} | card | ± | {' | '.join(others)} |", "|---|---|---|" + "---|" * len(others)]


def unrelated(card: Calibration, others: dict[str, Calibration]) -> tuple[str, dict[str, list[bool]]]:
    lines = [
        "| pairs that are nearer | card | ± | " + " | ".join(others) + " |",
        "|---|---|---|" + "---|" * len(others),
    ]
    held: dict[str, list[bool]] = {name: [] for name in others}
    for share in SHARES:
        place = card.shares.index(share)
        stated, own = card.distances[place], sqrt(card.errors[place] ** 2 + card.between**2)
        cells = []
        for name, other in others.items():
            if share not in other.shares:
                cells.append("")
                continue
            there = other.shares.index(share)
            text, holds = cell(other.distances[there], stated, sqrt(own**2 + other.errors[there] ** 2))
            cells.append(text)
            held[name].append(holds)
        lines.append(f"| {100 * share:g} % | {stated:.3f} | {TWO_SIDED * own:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines), held


def changed(card: Calibration, others: dict[str, Calibration]) -> tuple[str, dict[str, list[bool]]]:
    lines = head("change", others)
    held: dict[str, list[bool]] = {name: [] for name in others}
    for change in card.known_changes:
        own = card.error_of(change)
        cells = []
        for name, other in others.items():
            there = other.find_change(change.kind, change.amount)
            text, holds = cell(there.median, change.median, sqrt(own**2 + there.error**2))
            cells.append(text)
            held[name].append(holds)
        lines.append(f"| {change.words} | {change.median:.3f} | {TWO_SIDED * own:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines), held


def count(held: list[bool]) -> str:
    return f"{sum(held)} of {len(held)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="lite")
    parser.add_argument("collections", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--rest", nargs=2, type=Path, metavar=("DIR", "FOLDER"))
    parser.add_argument("--caltech", nargs=2, type=Path, metavar=("TABLE", "LABELS"))
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    if given.rest:
        rest(*given.rest)
        return
    if given.caltech:
        caltech(*given.caltech)
        return
    card = calibration_of(given.model)
    others = {name: calibration_of(folder) for name, _, folder in (one.partition("=") for one in given.collections)}
    pairs, held_pairs = unrelated(card, others)
    changes, held_changes = changed(card, others)
    told = [
        f"- {name}, {other.photographs:,} photographs: within what is stated are {count(held_pairs[name])} distances "
        f"of unrelated photographs, and {count(held_changes[name])} of changes"
        for name, other in others.items()
    ]
    text = "\n\n".join(("\n".join(told), pairs, changes))
    print(text)
    if given.write:
        write_between(given.write, f"calibration of {given.model}", text)


if __name__ == "__main__":
    main()
