r"""Judge metrics on sets of people's judgements, and put the tables into docs/benchmarks.md.

Every metric on every set, clean and with the reference (of three pictures: the odd one) attacked by APGD. What was done
is kept below --reports, so an interrupted run continues where it was. Prints Markdown; --write puts it between the
markers of a page.

python scripts/benchmarks.py --data rocks=rocks30/ratings.csv --data materials=material-2afc/test.csv \
    --lpips lpips-alex.safetensors --write docs/benchmarks.md
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pages import write_between

from robustsim.cli.evaluate_sets import named_paths
from robustsim.data import rating_triplets
from robustsim.data.layouts import TASKS, find_fitting, read_layout
from robustsim.evaluation import (
    AttackPlan,
    OverSets,
    Report,
    evaluate,
    load_metric,
    odd_one_out,
    over_sets,
    quality,
    two_afc,
)
from robustsim.evaluation.tasks.choices import Task

#: The worst come first in what is said of them; `phash` has no gradient, and is judged clean alone.
METRICS = ("l2", "psnr", "ssim", "ms-ssim", "phash", "lpips-alex", "lite-clean", "lite")


def tasks(options: argparse.Namespace) -> list[Task]:
    def some(judgements: Any) -> Any:
        return judgements if options.items is None else judgements.sample(options.items, seed=options.seed)

    found: list[Task] = []
    for name, path in named_paths(options.data):
        if name is None:
            raise SystemExit(f"--data {path}: write NAME={path}")
        layout = find_fitting(path, "2afc", "odd-one-out", "quality")[0]
        kind, judgements = TASKS[layout.layout], replace(read_layout(layout), name=name)
        if kind == "quality":
            found += [quality(judgements), two_afc(some(rating_triplets(judgements, options.margin)))]
        else:
            found.append((two_afc if kind == "2afc" else odd_one_out)(some(judgements)))
    return found


def judge(options: argparse.Namespace) -> OverSets:
    plans = [AttackPlan(norm="linf", eps=("2/255", "4/255"), steps=options.steps, attacked=options.attacked)]
    if options.l2:
        plans.append(AttackPlan(norm="l2", eps=("3",), steps=options.steps, attacked=options.attacked))
    asked = tasks(options)
    reports: list[Report] = []
    for name in options.model or METRICS:
        metric = load_metric(name, weights=options.lpips if name == "lpips-alex" else None)
        for task in asked:
            for plan in plans if task.name != "quality" else [None]:
                words = {"output": options.reports, "seed": options.seed, "batch_size": options.batch_size}
                reports.append(evaluate(metric, task, attack=plan, progress=sys.stderr.isatty(), **words))
                print(f"{name}: {reports[-1].path}", file=sys.stderr, flush=True)
    return over_sets(reports, seed=options.seed)


def page(found: OverSets, command: str) -> str:
    tables = found.tables(interval=False)
    lines = [f"Made by `{command}`.", ""]
    for table in tables[: len(found.blocks)]:
        lines += [table.markdown(), ""]
    if not found.comparisons:
        return "\n".join(lines).rstrip()
    differences = tables[-1]
    last = found.blocks[0].metrics[-1]
    rows = [row for one, row in zip(found.comparisons, differences.rows, strict=True) if last in (one.a, one.b)]
    lines += [f"`{last}` against each of the others:", "", f"| {' | '.join(differences.header)} |"]
    lines += [f"|{'---|' * len(differences.header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", *differences.notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--model", action="append", help=f"instead of {', '.join(METRICS)}")
    parser.add_argument("--lpips", help="weights of LPIPS-Alex; the library's own download if not given")
    parser.add_argument("--margin", type=float, default=1.0, help="of questions that are made of ratings")
    parser.add_argument("--items", type=int, help="so many of each set's choices, drawn at random; all if not given")
    parser.add_argument("--attacked", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--l2", action="store_true", help="l2 of 3, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()

    data = " ".join(f"--data {name}={path.parent.name}/{path.name}" for name, path in named_paths(options.data))
    lpips = f" --lpips {Path(options.lpips).name}" if options.lpips else ""
    flags = " ".join(f"--{name} {getattr(options, name)}" for name in ("margin", "attacked", "steps", "seed"))
    models = "".join(f" --model {name}" for name in options.model or ())
    items = "" if options.items is None else f" --items {options.items}"
    command = f"python scripts/benchmarks.py {data}{lpips}{models}{items} {flags}{' --l2' if options.l2 else ''}"
    text = page(judge(options), f"{command} --write docs/benchmarks.md")
    print(text)
    if options.write:
        write_between(options.write, "benchmarks", text)


if __name__ == "__main__":
    main()
