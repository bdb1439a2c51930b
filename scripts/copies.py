"""Which copies are found: after edits, and after attacks on the query. Tables for docs/search.md.

Lines are the distances that an index can search by: those of `lite`, of `lite-clean`, and of the perceptual hash; their
fusion finds what any of them finds. A line's threshold is what its rate of false positives allows among all pairs of
the photographs given: look at the nearest of them, which are printed. If some are copies of each other, move one out.

python scripts/copies.py --data nips17=DIR imagenet-sample=DIR --work measured/copies --docs docs/search.md

Each part that is done is kept in the folder of --work, and the same command goes on from there; with a larger --edited
or --attacked it does what is missing. --do edits --worker 0 and --do attacks --worker 1 may run side by side. --check
says whether the page has what the folder of --work says.
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from copies_attack import HASH, Escape, attack, hash_vectors, mirrored_and_trimmed, pictures
from copies_page import alike, page, thresholds_of
from pages import write_between

from robustsim import RobustSim
from robustsim.encoders.load import image_sha256
from robustsim.encoders.weights import whole_file
from robustsim.errors import ImageError, InputError
from robustsim.evaluation.calibration import draw_photographs
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.tasks.distortions import change, seed_of
from robustsim.images import read_image
from robustsim.images.files import printable
from robustsim.images.inputs import stack_squares
from robustsim.search.rates import known_tails

MODELS = ("lite", "lite-clean")
LINES = (*MODELS, HASH)
EDITS: tuple[tuple[str, str, float], ...] = (
    ("mirrored", "mirror", 1),
    ("border of 8 % on each side", "border", 0.08),
    ("blur, radius 2", "blur", 2),
    ("crop to half of the area", "crop", 0.5**0.5),
    ("JPEG, quality 20", "jpeg", 20),
    ("resize to a quarter and back", "resize", 0.25),
    ("rotation by 5 degrees", "rotation", 5),
    ("brightness x 1.5", "brightness", 1.5),
    ("contrast x 0.5", "contrast", 0.5),
    ("grey", "grey", 1),
    ("caption on 15 % of the height", "caption", 0.15),
    ("noise of 0.1", "noise", 0.1),
    ("crop to half of the sides", "crop", 0.5),
    ("half the size, JPEG 70, and back", "repost", 0.5),
)
# Those that the views of a query are for.
VIEWED = ("mirror", "border")
RADII = (4, 8)
ATTACKS: dict[str, tuple[str, ...]] = {
    "none": (),
    "lite": ("lite",),
    "lite-clean": ("lite-clean",),
    HASH: (HASH,),
    "joint": LINES,
}
CHUNK, ATTACKED_CHUNK = 16, 8

Arrays = dict[str, Any]


class Copies:
    """The photographs, the lines, and what is known so far.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, Path(options.work)
        self.roots = {name: Path(folder) for name, _, folder in (one.partition("=") for one in options.data)}
        self.files = {
            name: draw_photographs(root, options.photographs, options.seed) for name, root in self.roots.items()
        }
        self.metrics = {name: RobustSim.from_pretrained(name, device="cpu") for name in MODELS}
        self.preprocessing = self.metrics[MODELS[0]].card.preprocessing
        if any(metric.card.preprocessing != self.preprocessing for metric in self.metrics.values()):
            raise SystemExit("the models look at different squares: one attacked picture cannot be for all of them")
        listed = "\n".join(f"{name} {printable(file)}" for name, files in self.files.items() for file in files)
        self.identity = {
            "files": hashlib.sha256(listed.encode()).hexdigest(),
            "weights": {name: image_sha256(metric.encoder) for name, metric in self.metrics.items()},
            "edits": [list(row) for row in EDITS],
            "steps": options.steps,
            "seed": options.seed,
        }

    def vectors(self, loaded: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Unit vectors of loaded views, (N, D) by line."""
        pixels = stack_squares([one.squares[0] for one in loaded], torch.device("cpu"))
        with torch.no_grad():
            found = {name: metric.embed_pixels(pixels) for name, metric in self.metrics.items()}
        return {**found, HASH: hash_vectors([one.hash for one in loaded])}

    def originals(self, name: str) -> Arrays:
        """What a set's photographs are by each line, with the mirror images and trimmed forms of them."""
        parts = []
        for start in range(0, len(self.files[name]), 10 * CHUNK):
            path = self.work / f"originals-{name}-{start}.npz"
            if not path.exists():
                part = self._originals(name, self.files[name][start : start + 10 * CHUNK])
                with whole_file(path) as temporary, temporary.open("wb") as stream:
                    np.savez(stream, **part)
            with np.load(path) as part:
                parts.append(dict(part))
        before = np.cumsum([0, *(len(part["names"]) for part in parts)])
        for part, first in zip(parts, before, strict=False):
            part["view_of"] = part["view_of"] + first
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _originals(self, name: str, files: Sequence[Path]) -> Arrays:
        names, squares, whole, views, of = [], [], [], [], []
        for file in files:
            try:
                first, *others = mirrored_and_trimmed(self.roots[name] / file, self.preprocessing)
            except ImageError as error:
                print(error, flush=True)
                continue
            of += [len(names)] * len(others)
            names.append(printable(file))
            squares.append(first.squares[0].numpy())
            whole.append(first)
            views += others
        found: Arrays = {"names": np.array(names), "squares": np.stack(squares), "view_of": np.array(of)}
        found |= {line: rows.numpy() for line, rows in self.vectors(whole).items()}
        return found | {f"views of {line}": rows.numpy() for line, rows in self.vectors(views).items()}

    # -- edits

    def edit(self, journal: Journal, sets: Mapping[str, Arrays]) -> None:
        most = max(len(known["names"]) for known in sets.values())
        for chunk, start in enumerate(range(0, min(most, self.options.edited), CHUNK)):
            for name, known in sets.items():
                rows = np.arange(start, min(start + CHUNK, len(known["names"]), self.options.edited))
                names = known["names"][rows].tolist()
                if not names or journal.done.get((chunk, f"edits {name}"), {}).get("names") == names:
                    continue
                found = {words: self._edited(name, known, rows, kind, amount) for words, kind, amount in EDITS}
                journal.add(chunk, f"edits {name}", {"names": names, "distances": found})
                print(f"{name}: edits of {rows[-1] + 1}", flush=True)

    def _edited(self, name: str, known: Arrays, rows: Any, kind: str, amount: float) -> dict[str, Any]:
        """Distances by line, and where views of the query are taken, the nearest of these."""
        loaded, of = [], []
        for place, row in enumerate(rows):
            file = known["names"][row]
            image = change(read_image(self.roots[name] / file), kind, amount, seed_of(file, self.options.seed))
            views = mirrored_and_trimmed(image, self.preprocessing, taken=kind in VIEWED)
            loaded += views
            of += [place] * len(views)
        places, found = np.array(of), {}
        firsts = np.unique(places, return_index=True)[1]
        for line, vectors in self.vectors(loaded).items():
            far = distances(vectors.numpy(), known[line][rows][places])
            found[line] = [round(float(value), 6) for value in far[firsts]]
            if kind in VIEWED:
                nearest = [far[places == place].min() for place in range(len(rows))]
                found[f"{line} + views"] = [round(float(value), 6) for value in nearest]
        return found

    # -- attacks

    def attack(self, journal: Journal, sets: Mapping[str, Arrays], thresholds: Mapping[str, float]) -> None:
        everything = {line: np.concatenate([known[line] for known in sets.values()]) for line in LINES}
        before = dict(zip(sets, np.cumsum([0, *(len(known["names"]) for known in sets.values())]), strict=False))
        for chunk, name, aim, radius in self._planned(sets):
            known = sets[name]
            rows = np.arange(chunk * ATTACKED_CHUNK, (chunk + 1) * ATTACKED_CHUNK)
            rows = rows[rows < min(len(known["names"]), self.options.attacked)]
            part, names = f"{name} {aim} {radius}", known["names"][rows].tolist()
            done = journal.done.get((chunk, part), {})
            if not names or (done.get("names") == names and alike(done["thresholds"], thresholds)):
                continue
            found = self._attacked(known, rows, ATTACKS[aim], radius, thresholds, chunk)
            own = np.arange(len(everything[HASH]))[before[name] + rows]
            result: dict[str, Any] = {"names": names, "thresholds": dict(thresholds), "distances": {}, "first": {}}
            for line, vectors in found.items():
                far = 1 - vectors @ everything[line].T
                mine = far[np.arange(len(rows)), own].copy()
                far[np.arange(len(rows)), own] = np.inf
                result["distances"][line] = [round(float(value), 6) for value in np.sqrt(np.maximum(mine, 0))]
                result["first"][line] = (mine < far.min(1)).tolist()
            journal.add(chunk, part, result)
            print(f"{part}: {rows[-1] + 1}", flush=True)

    def _planned(self, sets: Mapping[str, Arrays]) -> Iterator[tuple[int, str, str, int]]:
        for chunk in range(-(-self.options.attacked // ATTACKED_CHUNK)):
            for radius in RADII:
                for aim in ATTACKS:
                    for name in sets:
                        if aim != "none" or radius == RADII[0]:
                            yield chunk, name, aim, radius if aim != "none" else 0

    def _attacked(
        self, known: Arrays, rows: Any, aims: Sequence[str], radius: int, thresholds: Mapping[str, float], chunk: int
    ) -> dict[str, Any]:
        """What the attacked pictures are by each line."""
        levels = torch.from_numpy(known["squares"][rows])
        if aims:
            own = {line: torch.from_numpy(known[line][rows]) for line in aims}
            objective = Escape(self.metrics, own, thresholds, aims, levels.shape[1])
            images = levels.permute(0, 3, 1, 2).float().div(255).contiguous()
            seed = seed_of(f"{chunk}", self.options.seed)
            levels = attack(objective, images, eps=radius, steps=self.options.steps, seed=seed)
        images = levels.permute(0, 3, 1, 2).float().div(255)
        loaded = [mirrored_and_trimmed(one, self.preprocessing, taken=False)[0] for one in pictures(images)]
        return {line: vectors.numpy() for line, vectors in self.vectors(loaded).items()}


def distances(a: Any, b: Any) -> Any:
    """Of unit vectors, row by row."""
    return np.sqrt(np.maximum(1 - (a * b).sum(1), 0))


def asked_for(done: Mapping[tuple[int, str], dict[str, Any]], options: argparse.Namespace) -> dict[Any, Any]:
    """What belongs to so many photographs, where more are done."""

    def belongs(chunk: int, part: str) -> bool:
        is_edit = part.startswith("edits ")
        return chunk * (CHUNK if is_edit else ATTACKED_CHUNK) < (options.edited if is_edit else options.attacked)

    return {key: found for key, found in done.items() if belongs(*key)}


def stated_thresholds(metrics: Mapping[str, RobustSim], rate: float) -> dict[str, float] | None:
    """The distances that the cards state for the rate; None where they cannot say so small a one."""
    tails = known_tails({name: metric.card for name, metric in metrics.items()})
    try:
        return {line: tails[line].threshold(rate) for line in LINES}
    except InputError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--docs", type=Path, metavar="PAGE")
    parser.add_argument("--check", action="store_true", help="compare with PAGE, and write nothing")
    parser.add_argument("--photographs", type=int, default=1000, help="of each set")
    parser.add_argument("--edited", type=int, default=1000, help="of them")
    parser.add_argument("--attacked", type=int, default=100, help="of them")
    parser.add_argument("--steps", type=int, default=50, help="of each attack")
    parser.add_argument("--rate", type=float, default=1e-5, help="of false positives, for each line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--do", choices=("edits", "attacks", "page"), help="this alone")
    parser.add_argument("--worker", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)
    copies = Copies(options)
    with Journal(copies.work, copies.identity, worker=options.worker) as journal:
        sets = {name: copies.originals(name) for name in copies.roots}
        thresholds, told = thresholds_of(sets, LINES, options.rate)
        if options.do in (None, "edits"):
            copies.edit(journal, sets)
        if options.do in (None, "attacks"):
            copies.attack(journal, sets, thresholds)
        journal.read_all()
        if options.do in ("edits", "attacks"):
            return
        stated = stated_thresholds(copies.metrics, options.rate)
        text = page(
            asked_for(journal.done, options), sets, thresholds, told, options, (EDITS, VIEWED, ATTACKS, RADII), stated
        )
    print(text)
    if options.check and options.docs:
        if text not in options.docs.read_text():
            raise SystemExit(f"{options.docs} has other tables")
    elif options.docs:
        write_between(options.docs, "edits and attacks", text)


if __name__ == "__main__":
    main()
