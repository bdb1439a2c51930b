"""What an evaluation costs beside its encodings and its attacks, as ratios of paired runs on the bundled encoder.

python benchmarks/evaluation_cost.py triplets.csv [--attacked 16] [--steps 20] [--runs 3] [--threads 2]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from pairs import ratio

from robustsim import RobustSim
from robustsim.attacks import APGD, Targeted, TwoAFC, parse_eps
from robustsim.data import read_triplets
from robustsim.data.detection import DetectionSet
from robustsim.evaluation import AttackPlan, evaluate, evaluate_detection, two_afc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triplets", type=Path)
    parser.add_argument("--attacked", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--eps", default="0.02/255", help="so small that attacks go on to their end")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    metric, data = RobustSim.from_pretrained(device="cpu"), read_triplets(options.triplets)
    task, plan = two_afc(data), AttackPlan(eps=(options.eps,), steps=options.steps)

    def run(questions: int | None, attack: AttackPlan | None) -> None:
        asked = task if questions is None else two_afc(part)
        with tempfile.TemporaryDirectory() as folder:
            evaluate(metric, asked, output=folder, attack=attack, batch_size=options.attacked)

    paths = list(dict.fromkeys(path for item in data for path in (item.reference, item.left, item.right)))
    value = ratio(lambda: run(None, None), lambda: metric.embed(list(map(str, paths))), options.runs)
    print(f"{value:6.3f}  {len(data)} triplets without attack / embedding their {len(paths)} pictures")

    # Items that are right without attack, so that all are attacked.
    choices = metric.two_afc(*([str(getattr(item, side)) for item in data.items[:200]] for side in SIDES)).tolist()
    right = [item for item, choice in zip(data.items, choices, strict=False) if choice == (item.right_share > 0.5)]
    part = type(data)(name="part", root=data.root, items=tuple(right[: options.attacked]))
    pixels = [metric.preprocess([str(getattr(item, side)) for item in part]) for side in SIDES]
    labels = torch.tensor([int(item.right_share > 0.5) for item in part])
    embedded = [metric.embed_pixels(side) for side in pixels[1:]]
    objective = TwoAFC(
        embed=metric.embed_pixels, reference=pixels[0], left=embedded[0], right=embedded[1], labels=labels
    )
    one = plan.make("apgd", options.eps, seed=0)
    assert isinstance(one, APGD)
    value = ratio(lambda: run(len(part), plan), lambda: one(objective, objective.images), options.runs)
    print(f"{value:6.3f}  robust evaluation of {len(part)} triplets / its attack alone, APGD of {options.steps} steps")

    detection(metric, paths, options)


def detection(metric: RobustSim, paths: list[Path], options: argparse.Namespace) -> None:
    """Detection, with the pictures halved into two classes, against its encodings and its attacks alone."""
    many = options.attacked // 2
    middle = len(paths) // 2
    halves = {"safe": tuple(paths[:middle]), "unsafe": tuple(paths[middle:])}
    queries, targets, bank = (
        {kind: files[start:end] for kind, files in halves.items()}
        for start, end in ((0, many), (many, many + 4), (many + 4, None))
    )
    data = DetectionSet("halves", paths[0].parent, bank, queries, targets)
    squares = {kind: metric.preprocess(list(map(str, files))) for kind, files in queries.items()}
    attack = APGD(norm="linf", eps=parse_eps(options.eps), steps=options.steps)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            evaluate_detection(
                metric, data, output=folder, eps=(options.eps,), steps=options.steps, targets=4, batch_size=many
            )

    def bare() -> None:
        metric.embed([str(path) for files in halves.values() for path in files])
        for kind, other in (("safe", "unsafe"), ("unsafe", "safe")):
            toward = metric.embed(list(map(str, targets[other])))
            attack(Targeted(metric.embed_pixels, toward), squares[kind])

    value = ratio(whole, bare, options.runs)
    print(f"{value:6.3f}  detection of {2 * many} queries among {len(paths)} / its encodings and its attacks alone")


SIDES = ("reference", "left", "right")


if __name__ == "__main__":
    main()
