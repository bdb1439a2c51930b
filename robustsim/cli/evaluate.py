"""`robustsim evaluate`: how well do metrics agree with people, clean and under attack?"""

import gc
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from robustsim.cli import (
    evaluate_attention,
    evaluate_copies,
    evaluate_detection,
    evaluate_inversion,
    evaluate_retrieval,
    judged,
    output,
)

if TYPE_CHECKING:
    from robustsim.evaluation import AttackPlan, Report
    from robustsim.evaluation.tasks.choices import Task

app = typer.Typer(
    help="Judge metrics: agreement with people, clean and under attack, with error bars.", no_args_is_help=True
)

Norm = Literal["linf", "l2", "l1"]
Scoring = Literal["majority", "share"]
Preprocess = Literal["card", "squash"]
Style = Literal["terminal", "markdown", "latex"]

DataOption = Annotated[Path, typer.Option("--data", metavar="PATH", help="The data: a folder or a CSV.")]
ItemsOption = Annotated[int | None, typer.Option("--items", min=1, help="Ask so many items, drawn at random.")]
GroupsOption = Annotated[bool, typer.Option("--groups", help="A column for each group of the data, too.")]


@dataclass(kw_only=True)
class Run:
    """The options of every command that judges."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME[=FILE]",
            help="A baseline (lpips-alex, ssim, ...), a name of `robustsim models`, a Hub id, a folder, or "
            "package.module:name; =FILE gives a baseline its weights. May be repeated.",
        ),
    ] = None
    out: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where reports are written.")] = Path(
        "reports"
    )
    device: output.DeviceOption = None
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per encoding, and items per attack.")] = 32
    seed: Annotated[int, typer.Option(min=0, help="Of draws, attacks and resampling.")] = 0
    preprocess: Annotated[
        Preprocess | None,
        typer.Option(
            help="How a picture becomes the metric's square: as its card says, or squash, whole and bilinear. If not "
            "given, what the data state: squash for BAPPS, card for all else."
        ),
    ] = None
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever earlier runs have left.")] = False
    groups: GroupsOption = False
    strict: output.StrictOption = False
    as_json: output.JsonOption = False


@dataclass(kw_only=True)
class Attacks:
    """The options of commands whose decisions can be attacked."""

    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Attack the right decisions by apgd, pgd, square, fab, autoattack, autoattack-plus, autoattack-rand "
            "or noise. May be repeated: any of them may succeed.",
        ),
    ] = None
    norm: Annotated[Norm, typer.Option(help="How the size of the change is measured.")] = "linf"
    eps: Annotated[
        list[str] | None,
        typer.Option(metavar="RADIUS", help="4/255, 3, ...; repeat for several. Usual: 4/255 in linf, 3 in l2."),
    ] = None
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient attacks.")] = 100
    queries: Annotated[int, typer.Option(min=1, help="Queries of Square.")] = 5000
    perturb: Annotated[
        str | None,
        typer.Option(metavar="PICTURE", help="reference (usual), left, right or all; of three: odd (usual) or all."),
    ] = None
    loss: Annotated[Literal["ce", "margin"], typer.Option(help="What attacks maximise.")] = "ce"
    attacked: Annotated[
        int | None, typer.Option(min=1, help="Attack so many items, drawn at random; all if not given.")
    ] = None


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of the types above are spread out into their options."""
    own: dict[str, inspect.Parameter] = {}
    groups: dict[str, type[Any]] = {}
    for one in inspect.signature(command).parameters.values():
        if one.annotation in (Run, Attacks):
            groups[one.name] = one.annotation
        else:
            own[one.name] = one
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hint)
        for group in groups.values()
        for one, hint in zip(fields(group), get_type_hints(group, include_extras=True).values(), strict=True)
    ]

    @wraps(command)
    def call(**given: Any) -> None:
        made = {name: group(**{one.name: given[one.name] for one in fields(group)}) for name, group in groups.items()}
        command(**{name: given[name] for name in own}, **made)

    call.__signature__ = inspect.Signature([*own.values(), *shared])  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in (*own.values(), *shared)}
    return call


@app.command("2afc")
@_with_options
def two_afc(
    *,
    data: DataOption,
    split: Annotated[str | None, typer.Option(help="Of NIGHTS: train, val, test or all.")] = None,
    scoring: Annotated[Scoring | None, typer.Option(help="Of a CSV: by the majority, or by its share.")] = None,
    items: ItemsOption = None,
    attacks: Attacks,
    run: Run,
) -> None:
    """Which of two looks more like the reference? Triplets of NIGHTS, BAPPS or a CSV."""
    plan = _plan(attacks)
    _judge(_read(data, "2afc", items, run.seed, split=split, scoring=scoring), plan, run)


@app.command("odd-one-out")
@_with_options
def odd_one_out(*, data: DataOption, items: ItemsOption = None, attacks: Attacks, run: Run) -> None:
    """Which of three is the odd one? Triplets of THINGS."""
    plan = _plan(attacks)
    _judge(_read(data, "odd-one-out", items, run.seed), plan, run)


@app.command("jnd")
@_with_options
def jnd(*, data: DataOption, items: ItemsOption = None, run: Run) -> None:
    """Just-noticeable differences: average precision, on BAPPS's pairs or a CSV."""
    _judge(_read(data, "jnd", items, run.seed), None, run)


@app.command("quality")
@_with_options
def quality(*, data: DataOption, items: ItemsOption = None, run: Run) -> None:
    """Correlation with opinion scores: a CSV with reference, image and mos or dmos."""
    _judge(_read(data, "quality", items, run.seed), None, run)


@app.command("ladder")
@_with_options
def ladder(
    *,
    data: DataOption,
    photographs: Annotated[int | None, typer.Option(min=1, help="So many, drawn at random; all if not given.")] = None,
    follow_links: output.FollowLinksOption = False,
    attacks: Attacks,
    run: Run,
) -> None:
    """Order distortions of photographs by their strength: any folder of images, nobody has to label."""
    plan = _plan(attacks)
    from robustsim.evaluation import distortion_ladder

    options: dict[str, Any] = {"photographs": photographs, "follow_links": follow_links}
    if os.environ.get("RANK", "0") == "0":  # of several processes one tells it
        options["tell"] = output.note
    _judge(distortion_ladder(data, seed=run.seed, **options), plan, run)


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

    found = compare_reports([load_report(path) for path in runs])
    if as_json:
        output.print_json([one.to_dict() for one in found])
        return
    rows = [
        (
            one.measure,
            one.a,
            f"{100 * one.value_a:.1f}",
            one.b,
            f"{100 * one.value_b:.1f}",
            f"{100 * one.difference.value:+.1f} [{100 * one.difference.low:+.1f}, {100 * one.difference.high:+.1f}]",
            f"{one.p:.4f}",
            f"{one.p_adjusted:.4f}",
        )
        for one in found
    ]
    header = ("measure", "A", "A, %", "B", "B, %", "A - B, 95 %", "p", "p (Holm)")
    output.print_table(header, rows, numbers=(2, 4, 5, 6, 7))
    typer.echo(
        "Paired bootstrap intervals; p of no difference: permutation test for shares, bootstrap for correlations and "
        "average precision. Holm's correction is for all comparisons of this table."
    )


@app.command("table")
def table(
    runs: ReportsArgument,
    style: Annotated[Style, typer.Option("--format", help="terminal, markdown or latex.")] = "terminal",
    groups: GroupsOption = False,
    intervals: Annotated[bool, typer.Option("--intervals/--no-intervals", help="95 % intervals.")] = True,
) -> None:
    """Reports as one table."""
    from robustsim.evaluation import load_report, report_table

    for one in report_table([load_report(path) for path in runs], groups=groups, interval=intervals):
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


def _plan(options: Attacks) -> "AttackPlan | None":
    """What the options ask for, refused now if it makes no sense."""
    if not options.attack:
        for name in ("eps", "perturb", "attacked"):
            if getattr(options, name):
                raise typer.BadParameter("it says how to attack, and there is no --attack", param_hint=f"--{name}")
        return None
    from robustsim.errors import InputError
    from robustsim.evaluation import AttackPlan
    from robustsim.evaluation.running.plan import USUAL_EPS

    if not options.eps and options.norm not in USUAL_EPS:
        raise typer.BadParameter(f"{options.norm} has no usual radius: give one", param_hint="--eps")
    try:
        return AttackPlan(
            attacks=tuple(dict.fromkeys(options.attack)),
            norm=options.norm,
            eps=tuple(dict.fromkeys(options.eps or [USUAL_EPS[options.norm]])),
            steps=options.steps,
            queries=options.queries,
            perturb=options.perturb,
            loss=options.loss,
            attacked=options.attacked,
        )
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def _read(data: Path, kind: Any, items: int | None, seed: int, **options: Any) -> "Task":
    from robustsim import evaluation
    from robustsim.data import read_dataset

    makers: dict[str, Callable[[Any], Task]] = {
        "2afc": evaluation.two_afc,
        "odd-one-out": evaluation.odd_one_out,
        "jnd": evaluation.just_noticeable,
        "quality": evaluation.quality,
    }
    found = read_dataset(data, kind, **{name: value for name, value in options.items() if value is not None})
    return makers[kind](found if items is None else found.sample(items, seed=seed))


def _judge(task: "Task", plan: "AttackPlan | None", options: Run) -> None:
    from robustsim.evaluation import evaluate, report_table
    from robustsim.evaluation.running.workers import Workers

    gc.enable()  # the command's start has switched it off
    workers = Workers()
    device = workers.device if options.device is None else options.device
    reports: list[Report] = []
    with redirect_stdout(sys.stderr):  # whatever somebody's metric prints
        # All of them before any: what cannot be loaded is told now.
        metrics = judged.load_judges(options.model or [output.DEFAULT_MODEL], device)
        for number, metric in enumerate(metrics, 1):
            if workers.is_main and len(metrics) > 1:
                output.note(f"{metric.name} ({number} of {len(metrics)})")
            reports.append(
                evaluate(
                    metric,
                    task,
                    output=options.out,
                    attack=plan,
                    seed=options.seed,
                    batch_size=options.batch_size,
                    preprocess=options.preprocess,
                    restart=options.restart,
                    progress=sys.stderr.isatty(),
                )
            )
    if not workers.is_main:
        return
    if options.as_json:
        output.print_json([{"report": str(report.path), **report.content} for report in reports])
    else:
        for one in report_table(reports, groups=options.groups):
            judged.show(one)
        for report in reports:
            typer.echo(f"{report.metric}: {report.path}")
    judged.tell_skipped(reports, "items", options.strict)
