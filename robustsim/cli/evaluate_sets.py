"""`robustsim evaluate` on sets of human judgements: which there are, of what kinds, and one table over many."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from robustsim.cli import judged, output
from robustsim.cli.judging import Attacks, Run, judge, plan_of

if TYPE_CHECKING:
    from robustsim.data.items import DataSet
    from robustsim.data.layouts import Found
    from robustsim.data.layouts import Task as Kind
    from robustsim.evaluation.tasks.choices import Task

#: Of `evaluate sets`.
KINDS: "tuple[Kind, ...]" = ("2afc", "odd-one-out", "jnd", "quality")

SetsOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="[NAME=]PATH",
        help="The data: a folder or a CSV. Repeat it for several sets, each with a name: rocks=rocks/ratings.csv.",
    ),
]
SplitOption = Annotated[str | None, typer.Option(help="Of NIGHTS: train, val, test or all.")]
ScoringOption = Annotated[
    Literal["majority", "share"] | None, typer.Option(help="Of a CSV with votes: by the majority, or by its share.")
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        metavar="DIFFERENCE",
        help="Of ratings: ask which of two pictures is nearer to the reference, where ratings differ by so much.",
    ),
]
ItemsOption = Annotated[
    int | None, typer.Option("--items", min=1, help="Ask so many items of each set, drawn at random.")
]


def judge_sets(
    data: Sequence[str],
    kinds: "Sequence[Kind]",
    attacks: Attacks,
    run: Run,
    *,
    margin: float | None = None,
    items: int | None = None,
    over: bool = False,
    **options: Any,
) -> None:
    """Read every set, judge every metric on each, and tell what was found.

    Args:
        data: PATH, or NAME=PATH for each of several sets.
        kinds: what the sets may be.
        attacks: the command's options.
        run: those of every command.
        margin: of questions that are made of ratings; None for none.
        items: so many of each set.
        over: end with one table over all sets.
        options: of readers; each goes to the sets whose reader takes it, None to none.

    Raises:
        BadParameter: options that do not fit the data, or each other.
    """
    plan = plan_of(attacks)
    given = {name: value for name, value in options.items() if value is not None}
    tasks = list(_tasks(_sets(data, kinds, margin, given, plan is not None), kinds, margin, items, run.seed))
    reports = judge(tasks, plan, run)
    if not reports:
        return
    if not over:
        judged.tell(reports, "items", groups=run.groups, strict=run.strict, as_json=run.as_json)
        return
    from robustsim.evaluation import over_sets

    if run.as_json:
        found = over_sets(reports, seed=run.seed).to_dict()
        output.print_json({"reports": judged.as_dicts(reports), "over_sets": found})
    else:
        judged.tell_tables(reports, groups=run.groups)
        typer.echo("")
        for table in over_sets(reports, seed=run.seed).tables():
            judged.show(table)
    judged.tell_skipped(reports, "items", run.strict)


def named_paths(data: Sequence[str]) -> list[tuple[str | None, Path]]:
    """Names and paths: what exists as it is written is a path, whatever signs are in it.

    Raises:
        BadParameter: one of several has no name, or a name or a path comes twice.
    """
    found: list[tuple[str | None, Path]] = []
    for word in data:
        name, equals, path = word.partition("=")
        if not equals or os.path.exists(word):
            if len(data) > 1:
                raise typer.BadParameter(f"{word!r} is one of several: write NAME={word}", param_hint="--data")
            found.append((None, Path(word)))
        elif not name or not path:
            raise typer.BadParameter(f"{word!r}: write NAME=PATH", param_hint="--data")
        elif any(name == known for known, _ in found):
            raise typer.BadParameter(f"{name!r} names two sets", param_hint="--data")
        elif any(os.path.realpath(path) == os.path.realpath(known) for _, known in found):
            raise typer.BadParameter(f"{path!r} has two names", param_hint="--data")
        else:
            found.append((name, Path(path)))
    return found


def _sets(
    data: Sequence[str], kinds: "Sequence[Kind]", margin: float | None, options: dict[str, Any], attacked: bool
) -> "list[tuple[Found, DataSet[Any]]]":
    """Every set that is asked for, read; all of them are found before any is read."""
    from robustsim.data.layouts import TASKS, find_fitting, find_layouts, options_of, read_layout

    found: list[tuple[str | None, Found]] = []
    for name, path in named_paths(data):
        if "quality" not in kinds and "2afc" in kinds:
            layouts = [one.layout for one in find_layouts(path)]
            if layouts == ["ratings"] and margin is None:
                raise typer.BadParameter(
                    f"{path} holds ratings: say by how much they must differ to make a question", param_hint="--margin"
                )
        rated: tuple[Kind, ...] = () if margin is None else ("quality",)
        of_kind: dict[Kind, Found] = {}  # both parts of BAPPS may lie in one folder
        for one in find_fitting(path, *dict.fromkeys((*kinds, *rated))):
            # Also a table and the folder that holds nothing else.
            if any(os.path.realpath(one.path) == os.path.realpath(other.path) for _, other in found):
                raise typer.BadParameter(f"{str(path)!r} has two names", param_hint="--data")
            of_kind.setdefault(TASKS[one.layout], one)
        found += [(name, one) for one in of_kind.values()]
    ratings = any(one.layout == "ratings" for _, one in found)
    if margin is not None and not ratings:
        raise typer.BadParameter("it makes questions of ratings, and no set holds ratings", param_hint="--margin")
    if attacked and ratings and margin is None:
        raise typer.BadParameter(
            "ratings have no decisions that an attack could turn: --margin makes questions of them, which have",
            param_hint="--attack",
        )
    known = {option for _, one in found for option in options_of(one.layout)}
    read = []
    for name, one in found:
        # What no reader takes is handed over, to be refused.
        own = {key: value for key, value in options.items() if key not in known or key in options_of(one.layout)}
        judgements = read_layout(one, **own)
        read.append((one, judgements if name is None else replace(judgements, name=name)))
    return read


def _tasks(
    sets: "Iterable[tuple[Found, DataSet[Any]]]",
    kinds: "Sequence[Kind]",
    margin: float | None,
    items: int | None,
    seed: int,
) -> "Iterable[Task]":
    """What is asked about each set; of ratings both their correlations and the questions that are made of them."""
    from robustsim import evaluation
    from robustsim.data import rating_triplets
    from robustsim.data.layouts import TASKS

    makers: dict[str, Callable[[Any], Task]] = {
        "2afc": evaluation.two_afc,
        "odd-one-out": evaluation.odd_one_out,
        "jnd": evaluation.just_noticeable,
        "quality": evaluation.quality,
    }

    def drawn(data: "DataSet[Any]") -> "DataSet[Any]":
        return data if items is None else data.sample(items, seed=seed)

    for found, data in sets:
        kind = TASKS[found.layout]
        if kind in kinds:
            yield makers[kind](drawn(data))
        if kind == "quality" and margin is not None:
            yield evaluation.two_afc(drawn(rating_triplets(data, margin)))
