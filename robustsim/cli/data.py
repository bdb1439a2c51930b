"""`robustsim data`: look at data sets of human judgements."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output

if TYPE_CHECKING:
    from robustsim.data.items import DataSet
    from robustsim.data.layouts import Found

app = typer.Typer(
    name="data",
    help="Data sets of human judgements.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

_SHOWN = 20
_WHY_LEFT_OUT = {"nights": "fewer than 6 votes", "triplets": "tied votes", "odd-one-out": "tied votes"}


@app.callback()
def _data() -> None:
    """Data sets of human judgements."""


@app.command("check")
def check(
    path: Annotated[Path, typer.Argument(help="A data set: its folder, or a CSV.")],
    images: Annotated[bool, typer.Option("--images/--no-images", help="Decode every image as well.")] = True,
    as_json: output.JsonOption = False,
) -> None:
    """Tell which data set this is, read all of it, and list every problem; exit with 1 if there is any."""
    from robustsim.data.layouts import find_layouts

    sets: list[dict[str, Any]] = []
    problems: list[str] = []
    paths: dict[Path, None] = {}
    for found in find_layouts(path):
        data = _read(found, problems)
        if data is not None:
            sets.append(_summary(found, data))
            paths.update(dict.fromkeys(data.paths))
    if images:
        problems += _damaged(list(paths))
    if as_json:
        output.print_json({"path": str(path), "sets": sets, "images_decoded": images, "problems": problems})
    else:
        for one in sets:
            _print_summary(one)
        _print_problems(problems, len(paths) if images else 0)
    if problems:
        raise typer.Exit(1)


def _read(found: "Found", problems: list[str]) -> "DataSet[Any] | None":
    from robustsim.data.layouts import read_layout
    from robustsim.errors import DataError

    options = {"split": "all"} if found.layout == "nights" else {}
    try:
        return read_layout(found, on_error=lambda error: problems.append(str(error)), **options)
    except DataError as error:  # nothing can be read, or nothing is left
        problems.append(str(error))
        return None


def _summary(found: "Found", data: "DataSet[Any]") -> dict[str, Any]:
    from robustsim.data.layouts import TASKS

    return {
        "layout": found.layout,
        "task": TASKS[found.layout],
        "name": data.name,
        "root": str(data.root),
        "description": data.description,
        "scoring": data.scoring,
        "items": len(data),
        "groups": {name: count for name, count in data.groups.items() if name},
        "splits": _splits(found, data),
        "images": len(data.paths),
        "left_out": data.left_out,
        "left_out_because": _WHY_LEFT_OUT[found.layout] if data.left_out else None,
    }


def _splits(found: "Found", data: "DataSet[Any]") -> dict[str, dict[str, int]]:
    """How many items of each group every split of NIGHTS has; nothing elsewhere."""
    if found.layout != "nights":
        return {}
    from robustsim.data.nights import splits_by_id

    split_of = splits_by_id(found.path)
    counts: dict[str, Counter[str]] = {}
    for item in data:
        counts.setdefault(split_of[item.id], Counter())[item.group] += 1
    return {split: dict(groups) for split, groups in counts.items()}


def _damaged(paths: list[Path]) -> list[str]:
    from tqdm import tqdm

    from robustsim.images import prefetch

    with tqdm(total=len(paths), unit=" images", disable=None) as bar:
        problems = []
        for problem in prefetch(_decode, paths):
            bar.update()
            if problem:
                problems.append(problem)
    return problems


def _decode(path: Path) -> str:
    """What is wrong with an image; nothing of it is kept."""
    from robustsim.errors import ImageError
    from robustsim.images import read_image

    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return ""


def _print_summary(one: dict[str, Any]) -> None:
    typer.echo(f"{one['name']}: layout {one['layout']} ({one['task']}), {one['description']}")
    typer.echo(f"  {one['items']:,} items, {one['images']:,} distinct images")
    for split, groups in one["splits"].items():
        typer.echo(f"  split {split}: {sum(groups.values()):,} items ({_counts(groups)})")
    if one["groups"]:
        typer.echo(f"  groups: {_counts(one['groups'])}")
    if one["left_out"]:
        typer.echo(f"  left out: {one['left_out']:,} ({one['left_out_because']})")


def _counts(groups: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in groups.items())


def _print_problems(problems: list[str], decoded: int) -> None:
    looked = f"{decoded:,} images decoded" if decoded else "no image was decoded"
    if not problems:
        typer.echo(f"no problems; {looked}")
        return
    typer.echo(f"{len(problems):,} {'problem' if len(problems) == 1 else 'problems'}; {looked}")
    for problem in problems[:_SHOWN]:
        typer.echo(f"  {problem}")
    if len(problems) > _SHOWN:
        typer.echo(f"  and {len(problems) - _SHOWN:,} more; --json lists all")
