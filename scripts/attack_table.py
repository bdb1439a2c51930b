"""Robust accuracies of a metric under the attacks of robustsim.attacks, and the gradient-masking report beside them.

Triplets of people's choices are drawn from the file test.csv of a folder, with the columns reference, left, right,
left_votes and right_votes (files below images/), such as material-2afc has; the reference is attacked. Each figure is
kept in a JSON file as soon as it is there, so an interrupted run continues where it was. Prints Markdown; --write puts
it between the markers of a page.

python scripts/attack_table.py material-2afc --write docs/attacks.md
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from pages import write_between
from torch import Tensor

from robustsim import RobustSim
from robustsim.attacks import (
    APGD,
    PGD,
    AutoAttack,
    RandomNoise,
    SquareAttack,
    TwoAFC,
    attack_in_batches,
    check_gradient_masking,
    parse_eps,
)
from robustsim.data import Triplet, read_triplets

THREATS = (("linf", "1/255"), ("linf", "4/255"), ("l2", "3"))
SETTING = ("triplets", "steps", "queries", "seed", "batch_size", "masking_norm", "masking_eps", "masking_queries")
COLUMNS = ("clean", "random noise", "PGD", "APGD", "Square", "AutoAttack")


def triplets(root: Path, count: int, seed: int) -> list[Triplet]:
    rows = read_triplets(root / "test.csv").items
    return random.Random(seed).sample(rows, min(count, len(rows)))


def problem(metric: RobustSim, rows: list[Triplet]) -> TwoAFC:
    files = sorted({file for row in rows for file in (row.reference, row.left, row.right)})
    pixels = torch.cat([metric.preprocess([file]) for file in files])
    embeddings = metric.embed_pixels(pixels)

    def pick(tensor: Tensor, side: str) -> Tensor:
        return tensor[[files.index(getattr(row, side)) for row in rows]]

    labels = torch.tensor([int(row.right_share > 0.5) for row in rows], device=metric.device)
    return TwoAFC(
        embed=metric.embed_pixels,
        reference=pick(pixels, "reference"),
        left=pick(embeddings, "left"),
        right=pick(embeddings, "right"),
        labels=labels,
    )


def attack(name: str, norm: str, eps: float, options: argparse.Namespace) -> Any:
    common: dict[str, Any] = {
        "norm": norm,
        "eps": 0.0 if name == "clean" else eps,
        "generator": torch.Generator().manual_seed(options.seed),
    }
    early = {**common, "stop_on_success": True}
    return {
        "clean": lambda: RandomNoise(**early, draws=1),
        "random noise": lambda: RandomNoise(**early, draws=10),
        "PGD": lambda: PGD(**early, steps=options.steps),
        "APGD": lambda: APGD(**early, steps=options.steps),
        "Square": lambda: SquareAttack(**early, queries=options.queries),
        "AutoAttack": lambda: AutoAttack(**common, steps=options.steps, queries=options.queries),
    }[name]()


def page(found: dict[str, Any], options: argparse.Namespace, model: str, count: int) -> str:
    flags = " ".join(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in SETTING)
    named = f" --model {options.model}" if options.model else ""
    command = f"python scripts/attack_table.py material-2afc{named} {flags} --write docs/attacks.md"
    lines = [
        f"`{model}`, {count} triplets of the test set of Lagunas et al. 2019, A Similarity Measure for Material "
        "Appearance (`material-2afc`), reference attacked: share of triplets that are right, in %; a triplet that is "
        "wrong without attack counts as lost.",
        "",
        f"| threat model | {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * len(COLUMNS)}",
    ]
    for norm, eps in THREATS:
        cells = [found.get(f"{name} {norm} {eps}") for name in COLUMNS]
        shown = ["" if cell is None else f"{100 * cell['accuracy']:.1f}" for cell in cells]
        lines.append(f"| {norm} {eps} | {' | '.join(shown)} |")
    lines += [
        "",
        f"Noise: the worst of 10 draws. PGD and APGD: {options.steps} steps. Square: {options.queries} queries, alone "
        "and as the last part of AutoAttack.",
    ]
    if "masking" in found:
        lines += [
            "",
            f"The gradient-masking report at {options.masking_norm} {options.masking_eps}, a radius small enough that "
            "something is left standing:",
            "",
            *(f"    {line}".rstrip() for line in found["masking"].splitlines()),
        ]
    return "\n".join([*lines, "", f"Made by `{command}`."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=None, help="the bundled default if not given")
    parser.add_argument("--triplets", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--masking-norm", default="linf")
    parser.add_argument("--masking-eps", default="0.25/255")
    parser.add_argument("--masking-queries", type=int, default=500)
    parser.add_argument("--results", type=Path, default=Path("attack_table.json"))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()

    metric = RobustSim.from_pretrained(options.model) if options.model else RobustSim.from_pretrained()
    rows = triplets(options.data, options.triplets, options.seed)
    objective = problem(metric, rows)
    setting = {name: getattr(options, name) for name in SETTING} | {
        "model": metric.card.name,
        "weights": metric.card.weights_sha256,
    }
    found: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    if found.setdefault("setting", setting) != setting:
        parser.error(f"{options.results} was made with {found['setting']}: remove it, or give another --results")

    def keep() -> None:
        part = options.results.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1))
        os.replace(part, options.results)

    with torch.no_grad():
        right = objective.select(torch.nonzero(~objective.success(objective.images)).squeeze(1))
    for name in COLUMNS:
        for norm, eps in THREATS:
            key = f"{name} {norm} {eps}"
            if key in found:
                continue
            start = time.perf_counter()
            one = attack(name, norm, parse_eps(eps, norm), options)  # type: ignore[arg-type]
            result = attack_in_batches(one, right, right.images, batch_size=options.batch_size)
            found[key] = {
                "accuracy": int((~result.success).sum()) / len(rows),
                "queries": result.queries.float().mean().item(),
                "seconds": round(time.perf_counter() - start),
            }
            print(f"{key}: {found[key]}", flush=True)
            keep()
    if "masking" not in found:
        report = check_gradient_masking(
            objective,
            objective.images,
            norm=options.masking_norm,
            eps=parse_eps(options.masking_eps, options.masking_norm),
            steps=options.steps,
            queries=options.masking_queries,
            batch_size=options.batch_size,
            generator=torch.Generator().manual_seed(options.seed),
        )
        found["masking"] = str(report)
        keep()
    text = page(found, options, metric.card.name, len(rows))
    print(text)
    if options.write:
        write_between(options.write, "attack table", text)


if __name__ == "__main__":
    main()
