"""The options of commands that put questions to metrics, and the judging itself: sets and metrics, each once."""

import gc
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from robustsim.cli import judged, output

if TYPE_CHECKING:
    from robustsim.evaluation import AttackPlan, Report
    from robustsim.evaluation.tasks.choices import Task

Norm = Literal["linf", "l2", "l1"]
Preprocess = Literal["card", "squash"]

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


def with_options(command: Callable[..., None]) -> Callable[..., None]:
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


def plan_of(options: Attacks) -> "AttackPlan | None":
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


def judge(tasks: "Sequence[Task]", plan: "AttackPlan | None", options: Run) -> "list[Report]":
    """Put each task to each metric, which is loaded once; the plan is for tasks whose decisions can be attacked.

    Returns:
        Reports, by task and then by metric; none where another process of those that share the work tells them.

    Raises:
        RobustSimError: as `evaluate` raises.
    """
    from robustsim.evaluation import evaluate
    from robustsim.evaluation.running.workers import Workers

    gc.enable()  # the command's start has switched it off
    if plan is not None:
        for task in tasks:  # now, and not after hours of work on the others
            if task.perturbable:
                task.check_attack(plan.perturb)
    workers = Workers()
    if plan is not None and workers.is_main:
        for task in tasks:
            if task.name == "jnd":
                output.note(f"{task.data['name']}: jnd has no decisions that an attack could turn, and is not attacked")
    device = workers.device if options.device is None else options.device
    reports: list[Report] = []
    with redirect_stdout(sys.stderr):  # whatever somebody's metric prints
        # All of them before any: what cannot be loaded is told now.
        metrics = judged.load_judges(options.model or [output.DEFAULT_MODEL], device)
        runs = [(task, metric) for task in tasks for metric in metrics]
        for number, (task, metric) in enumerate(runs, 1):
            if workers.is_main and len(runs) > 1:
                of = f"{task.data.get('name')}, {task.name}: " if len(tasks) > 1 else ""
                output.note(f"{of}{metric.name} ({number} of {len(runs)})")
            reports.append(
                evaluate(
                    metric,
                    task,
                    output=options.out,
                    attack=plan if task.perturbable else None,
                    seed=options.seed,
                    batch_size=options.batch_size,
                    preprocess=options.preprocess,
                    restart=options.restart,
                    progress=sys.stderr.isatty(),
                )
            )
    return reports if workers.is_main else []
