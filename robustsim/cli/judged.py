"""What the commands of `robustsim evaluate` share: judges by name, tables, and what was skipped."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from robustsim.cli import output

if TYPE_CHECKING:
    import torch

    from robustsim.evaluation import Report
    from robustsim.evaluation.subjects import Subject

NormOption = Annotated[Literal["linf", "l2", "l1"], typer.Option(help="How the size of the change is measured.")]
PreprocessOption = Annotated[
    Literal["card", "squash"],
    typer.Option(help="How a picture becomes the metric's square: as its card says, or whole and bilinear."),
]
OutOption = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where reports are written.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Begin anew, whatever earlier runs have left.")]

# Items that were skipped and are named; the reports hold them all.
_MOST_SKIPPED = 20


def load_judges(models: Sequence[str], device: "str | torch.device | None") -> "list[Subject]":
    """Metrics by NAME[=FILE], all of them before any is asked: what cannot be loaded is told now."""
    from robustsim.evaluation import load_metric

    names = [_split(one) for one in models]
    if any(":" in name for name, _ in names):
        sys.path.insert(0, os.getcwd())  # where people keep the module they name
    return [load_metric(name, weights=weights, device=device) for name, weights in names]


def _split(model: str) -> tuple[str, str | None]:
    """NAME=FILE of a baseline; anything else is a name, a folder's too."""
    from robustsim.baselines import list_baselines

    name, _, weights = model.partition("=")
    if weights and (name in list_baselines() or not os.path.exists(model)):
        return name, weights
    return model, None


def show(table: Any) -> None:
    """A table with its title and notes."""
    typer.echo(table.title)
    output.print_table(table.header, table.rows, numbers=range(1, len(table.header)))
    for line in table.notes:
        typer.echo(line)
    typer.echo("")


def tell(reports: "Sequence[Report]", what: str, *, groups: bool, strict: bool, as_json: bool) -> None:
    """Reports of one evaluation, as tables with their files or as JSON; then `tell_skipped`."""
    if as_json:
        output.print_json(as_dicts(reports))
    else:
        tell_tables(reports, groups=groups)
    tell_skipped(reports, what, strict)


def as_dicts(reports: "Sequence[Report]") -> list[dict[str, Any]]:
    """For JSON: what is in each report, and where it is."""
    return [{"report": str(report.path), **report.content} for report in reports]


def tell_tables(reports: "Sequence[Report]", *, groups: bool) -> None:
    """Tables, one for each set, and the files of the reports."""
    from robustsim.evaluation import report_table

    for one in report_table(reports, groups=groups):
        show(one)
    for report in reports:
        typer.echo(f"{report.metric}: {report.path}")


def tell_skipped(reports: "Sequence[Report]", what: str, strict: bool) -> None:
    """Say on standard error what could not be read, each once; leave with 1 for it where that is wanted."""
    from robustsim.evaluation.reports.report import by_data

    sets = by_data(reports)
    # Each of them is told, before any ends the command.
    skipped = [_tell_skipped(one, what, f"{one[0].content['data']['name']}: " * (len(sets) > 1)) for one in sets]
    if strict and any(skipped):
        raise typer.Exit(1)


def _tell_skipped(reports: "Sequence[Report]", what: str, whose: str) -> bool:
    """Of reports on the same data; whether there was anything."""
    skipped = {one["id"]: one["error"] for report in reports for one in report.content["skipped"]}
    for name, error in list(skipped.items())[:_MOST_SKIPPED]:
        output.note(f"skipped {name}: {error}")
    if skipped:
        asked = reports[0].content["data"]["items"]
        output.note(f"{whose}{len(skipped)} of {asked} {what} were skipped, as a picture could not be read")
    # Of a database that is searched, which all reports share.
    unread = {one["id"]: one["error"] for report in reports for one in report.content.get("unread", ())}
    for name, error in list(unread.items())[:_MOST_SKIPPED]:
        output.note(f"cannot read {name} of the database: {error}")
    if unread:
        output.note(
            f"{len(unread)} of {reports[0].content['data']['database']} pictures of the database count as not found"
        )
    return bool(skipped or unread)
