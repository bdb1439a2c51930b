"""`robustsim check`: whether an index is what was written."""

from dataclasses import asdict

import typer

from robustsim.cli import output
from robustsim.cli.index import IndexArgument


def check(index: IndexArgument, as_json: output.JsonOption = False) -> None:
    """Read every byte of an index, and compare it with what was written; exit code 1 if anything is wrong."""
    from tqdm import tqdm

    from robustsim.search.storage.check import check_store
    from robustsim.search.storage.store import Store

    with tqdm(unit=" rows", disable=True if as_json else None) as bar:
        report = check_store(Store(index), progress=bar.update)
    if as_json:
        output.print_json({"index": str(index), "ok": report.ok, **asdict(report)})
    for problem in report.problems:
        output.note(f"damaged: {problem}")
    if not report.ok:
        raise typer.Exit(1)
    output.note(f"{report.rows} rows of version {report.version} in {index} are what was written")
