"""`robustsim forget`: erase pictures from an index."""

from typing import Annotated

import typer

from robustsim.cli import output
from robustsim.cli.index import IndexArgument


def forget(
    index: IndexArgument,
    names: Annotated[
        list[str], typer.Argument(metavar="ID|PATH...", help="Ids, as `search --json` gives them, or files.")
    ],
    as_json: output.JsonOption = False,
) -> None:
    """Erase pictures from an index, so that no file of it holds anything of them; the pictures themselves stay.

    Exit code 1 if one of the names is not in the index.
    """
    from robustsim.search import Index

    report = Index.open(index).forget(names)
    if as_json:
        output.print_json({"index": str(index), "forgotten": report.forgotten, "missing": list(report.missing)})
    output.note(f"{report.forgotten} erased from {index}")
    for name in report.missing:
        output.note(f"not in the index: {name}")
    if report.missing:
        raise typer.Exit(1)
