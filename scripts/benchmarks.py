"""Judge the metrics of docs/benchmarks.md: triplets of people's choices, and the distortion ladder.

Both are evaluated without attack and with the reference attacked by APGD. What was done is kept below --reports, so an
interrupted run continues where it was. Prints Markdown; --write puts it between the markers of a page.

python scripts/benchmarks.py material-2afc/test.csv imagenet-sample --lpips lpips-alex.safetensors
"""

import argparse
import sys
from pathlib import Path

from pages import write_between

from robustsim.data import read_triplets
from robustsim.evaluation import (
    AttackPlan,
    Report,
    compare_reports,
    distortion_ladder,
    evaluate,
    load_metric,
    report_table,
    two_afc,
)

METRICS = ("l2", "ssim", "lpips-alex", "lite-clean")


def judge(options: argparse.Namespace) -> list[list[Report]]:
    plan = AttackPlan(norm=options.norm, eps=(options.eps,), steps=options.steps, attacked=options.attacked)
    tasks = [
        two_afc(read_triplets(options.triplets)),
        distortion_ladder(options.photographs, photographs=options.count, seed=options.seed),
    ]
    weights = {"lpips-alex": options.lpips}
    metrics = [load_metric(name, weights=weights.get(name)) for name in METRICS]
    return [
        [
            evaluate(
                metric,
                task,
                attack=plan,
                output=options.reports,
                seed=options.seed,
                progress=sys.stderr.isatty(),
            )
            for metric in metrics
        ]
        for task in tasks
    ]


def page(found: list[list[Report]], command: str) -> str:
    lines = [f"Made by `{command}`.", ""]
    for reports in found:
        (table,) = report_table(reports)
        lines += [table.markdown(), "", "Differences between metrics that are more than chance (p below 0.05 after "]
        lines[-1] += "Holm's correction, paired tests on the same items):"
        sure = [one for one in compare_reports(reports) if one.p_adjusted < 0.05]
        lines += ["", "| measure | better | worse | difference, points |", "|---|---|---|---:|"]
        for one in sure:
            gap = one.difference
            names, sign = ((one.a, one.b), 1) if gap.value > 0 else ((one.b, one.a), -1)
            low, high = sorted((100 * sign * gap.low, 100 * sign * gap.high))
            lines.append(
                f"| {one.measure} | {names[0]} | {names[1]} | {100 * sign * gap.value:.1f} [{low:.1f}, {high:.1f}] |"
            )
        lines.append("")
    ladder = found[-1]
    (groups,) = report_table(ladder, groups=True, interval=False)
    kinds = list(ladder[0].results["groups"])
    lines += ["By kind of distortion, without attack, in %:", "", f"| metric | {' | '.join(kinds)} |"]
    lines.append(f"|---|{'---:|' * len(kinds)}")
    for row in groups.rows:
        cells = dict(zip(groups.header, row, strict=True))
        lines.append(f"| {row[0]} | {' | '.join(cells[kind] for kind in kinds)} |")
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triplets", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--lpips", help="weights of LPIPS-Alex; the library's own download if not given")
    parser.add_argument("--count", type=int, default=200, help="photographs on the ladder")
    parser.add_argument("--attacked", type=int, default=200)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()

    names = ("count", "attacked", "norm", "eps", "steps", "seed")
    flags = " ".join(f"--{name} {getattr(options, name)}" for name in names)
    lpips = f" --lpips {Path(options.lpips).name}" if options.lpips else ""
    data = f"{options.triplets.parent.name}/{options.triplets.name} {options.photographs.name}"
    text = page(judge(options), f"python scripts/benchmarks.py {data}{lpips} {flags} --write docs/benchmarks.md")
    print(text)
    if options.write:
        write_between(options.write, "benchmarks", text)


if __name__ == "__main__":
    main()
