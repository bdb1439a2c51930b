"""`robustsim evaluate`: how well do metrics agree with people, clean and under attack?"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from robustsim.cli import (
    evaluate_attention,
    evaluate_copies,
    evaluate_detection,
    evaluate_inversion,
    evaluate_retrieval,
    evaluate_sets,
    judged,
    output,
)
from robustsim.cli.evaluate_sets import ItemsOption, MarginOption, ScoringOption, SetsOption, SplitOption
from robustsim.cli.judging import Attacks, GroupsOption, Run, judge, plan_of, with_options

app = typer.Typer(
    help="Judge metrics: agreement with people, clean and under attack, with error bars.", no_args_is_help=True
)

Style = Literal["terminal", "markdown", "latex"]


@app.command("2afc")
@with_options
def two_afc(
    *,
    data: SetsOption,
    split: SplitOption = None,
    scoring: ScoringOption = None,
    margin: MarginOption = None,
    items: ItemsOption = None,
    attacks: Attacks,
    run: Run,
) -> None:
    """Which of two looks more like the reference? Triplets of NIGHTS, BAPPS, a CSV, or made of a CSV of ratings."""
    evaluate_sets.judge_sets(data, ("2afc",), attacks, run, margin=margin, items=items, split=split, scoring=scoring)


@app.command("odd-one-out")
@with_options
def odd_one_out(
    *, data: SetsOption, scoring: ScoringOption = None, items: ItemsOption = None, attacks: Attacks, run: Run
) -> None:
    """Which of three is the odd one? THINGS, or a CSV with a, b, c and the votes odd_a, odd_b, odd_c."""
    evaluate_sets.judge_sets(data, ("odd-one-out",), attacks, run, items=items, scoring=scoring)


@app.command("jnd")
@with_options
def jnd(*, data: SetsOption, items: ItemsOption = None, run: Run) -> None:
    """Just-noticeable differences: average precision, on BAPPS's pairs or a CSV."""
    evaluate_sets.judge_sets(data, ("jnd",), Attacks(), run, items=items)


@app.command("quality")
@with_options
def quality(
    *, data: SetsOption, margin: MarginOption = None, items: ItemsOption = None, attacks: Attacks, run: Run
) -> None:
    """Correlation with opinion scores, a CSV with reference, image and mos or dmos; with --margin questions, too."""
    evaluate_sets.judge_sets(data, ("quality",), attacks, run, margin=margin, items=items)


@app.command("sets")
@with_options
def sets(
    *,
    data: SetsOption,
    split: SplitOption = None,
    scoring: ScoringOption = None,
    margin: MarginOption = None,
    items: ItemsOption = None,
    attacks: Attacks,
    run: Run,
) -> None:
    """Many sets of any of these kinds, which their columns and layouts tell, and one table over all of them."""
    evaluate_sets.judge_sets(
        data, evaluate_sets.KINDS, attacks, run, margin=margin, items=items, over=True, split=split, scoring=scoring
    )


@app.command("ladder")
@with_options
def ladder(
    *,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="A folder of photographs.")],
    photographs: Annotated[int | None, typer.Option(min=1, help="So many, drawn at random; all if not given.")] = None,
    follow_links: output.FollowLinksOption = False,
    attacks: Attacks,
    run: Run,
) -> None:
    """Order distortions of photographs by their strength: any folder of images, nobody has to label."""
    plan = plan_of(attacks)
    from robustsim.evaluation import distortion_ladder

    options: dict[str, Any] = {"photographs": photographs, "follow_links": follow_links}
    if os.environ.get("RANK", "0") == "0":  # of several processes one tells it
        options["tell"] = output.note
    reports = judge([distortion_ladder(data, seed=run.seed, **options)], plan, run)
    if reports:
        judged.tell(reports, "items", groups=run.groups, strict=run.strict, as_json=run.as_json)


app.command("inversion")(evaluate_inversion.inversion)
app.command("attention")(evaluate_attention.attention)
app.command("copies")(evaluate_copies.copies)
app.command("retrieval")(evaluate_retrieval.retrieval)
app.command("detection")(evaluate_detection.detection)


ReportsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Reports of `robustsim evaluate`.")]


@app.command("compare")
def compare(runs: ReportsArgument, as_json: output.JsonOption = False) -> None:
    """Is the difference between metrics more than chance? Paired tests on the same items."""
    from robustsim.evaluation import compare_reports, load_report
    from robustsim.evaluation.reports.comparison import COMPARED, compared

    found = compare_reports([load_report(path) for path in runs])
    if as_json:
        output.print_json([one.to_dict() for one in found])
        return
    output.print_table(COMPARED, [compared(one) for one in found], numbers=(2, 4, 5, 6, 7))
    typer.echo(
        "Paired bootstrap intervals; p of no difference: permutation test for shares, bootstrap for correlations and "
        "average precision. Holm's correction is for all comparisons of this table."
    )


@app.command("table")
def table(
    runs: ReportsArgument,
    style: Annotated[Style, typer.Option("--format", help="terminal, markdown or latex.")] = "terminal",
    over: Annotated[
        bool,
        typer.Option(
            "--over-sets", help="Metrics by sets of human judgements: means, mean ranks, and tests of the differences."
        ),
    ] = False,
    groups: GroupsOption = False,
    intervals: Annotated[bool, typer.Option("--intervals/--no-intervals", help="95 % intervals.")] = True,
    as_json: output.JsonOption = False,
) -> None:
    """Reports as tables, one for each data set; or as one over many sets."""
    from robustsim.evaluation import load_report, over_sets, report_table

    if over and groups:
        raise typer.BadParameter("a table over sets has no groups", param_hint="--groups")
    if as_json and style != "terminal":
        raise typer.BadParameter("JSON is a format of its own: leave one of the two out", param_hint="--format")
    if as_json and over and not intervals:
        raise typer.BadParameter("the JSON over sets has all figures with their intervals", param_hint="--intervals")
    reports = [load_report(path) for path in runs]
    content: Any
    if over:
        found = over_sets(reports)
        tables, content = found.tables(interval=intervals), found.to_dict()
    else:
        tables = report_table(reports, groups=groups, interval=intervals)
        content = [asdict(one) for one in tables]
    if as_json:
        output.print_json(content)
        return
    for one in tables:
        if style == "terminal":
            judged.show(one)
        else:
            typer.echo((one.markdown() if style == "markdown" else one.latex()) + "\n")


@app.command("plot")
def plot(
    runs: ReportsArgument,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A .png, .pdf or .svg.")],
    against: Annotated[
        Literal["radius", "iterations"], typer.Option(help="What is on the horizontal axis.")
    ] = "radius",
) -> None:
    """Robust accuracy as a curve."""
    from robustsim.evaluation import load_report, plot_iterations, plot_radii

    draw = plot_radii if against == "radius" else plot_iterations
    draw([load_report(path) for path in runs], out)
    output.note(f"drawn into {out}")
