"""`robustsim search`: the pictures of an index that look like these."""

import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from robustsim.cli import output
from robustsim.cli.index import IndexArgument, LabelOption, TenantOption
from robustsim.errors import RobustSimError

if TYPE_CHECKING:
    from robustsim.search import Answer, Index


def search(
    index: IndexArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="What is looked for; - for standard input.")],
    count: Annotated[
        int | None, typer.Option("-k", min=1, help="The nearest pictures, so many; 10 if not given.")
    ] = None,
    within: Annotated[
        float | None,
        typer.Option("--within", min=0, metavar="DISTANCE", help="All pictures at most so far away, and an exit code."),
    ] = None,
    label: LabelOption = None,
    tenant: TenantOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model that made the index, where it is not found by its name."),
    ] = None,
    device: output.DeviceOption = None,
    as_json: output.JsonOption = False,
) -> None:
    """Find the pictures of an index that look like these; none is missed.

    With --within, the exit code is the decision: 0 for no match, 1 for at least one, 2 for an error.
    """
    if count is not None and within is not None:
        raise typer.BadParameter("-k and --within exclude each other")
    try:
        from robustsim.search import Index

        opened = Index.open(index, output.load_metric(model, device) if model else None, device=device)
        output.settle(opened.card)
        answer = _search(opened, images, count or 10, within, label, tenant)
        _print(str(index), images, answer, as_json)
        if not answer.compared:
            _tell_nothing_compared(label, tenant)
        sys.stdout.flush()  # what cannot be written is an error too, and None where it is closed
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if within is None:
            raise
        _tell_error(error)
        raise typer.Exit(2) from None  # and not 1, which is a match
    if within is not None and any(answer):
        raise typer.Exit(1)


def _search(
    index: "Index", images: list[str], count: int, within: float | None, label: str | None, tenant: str | None
) -> "Answer":
    from robustsim.cli.pictures import open_pictures

    opened = open_pictures(images)
    output.tell_unseen(output.unseen(index.card, opened, opened), aside=True)
    queries = [opened[name] for name in images]
    if within is None:
        return index.search(queries, count, label=label, tenant=tenant)
    return index.within(queries, within, label=label, tenant=tenant)


def _tell_error(error: BaseException) -> None:
    with suppress(OSError, AttributeError):  # standard error may be closed too
        if isinstance(error, RobustSimError):
            output.note(f"robustsim: {error}")
        elif isinstance(error, OSError):
            output.note(f"robustsim: cannot write the output: {error.strerror or error}")
        else:
            output.note("".join(traceback.format_exception(error)))
    if not isinstance(error, RobustSimError):
        output.drop_output()


def _tell_nothing_compared(label: str | None, tenant: str | None) -> None:
    named = [f"{name} {value!r}" for name, value in (("label", label), ("tenant", tenant)) if value is not None]
    output.note(
        f"no picture of the index has the {' and the '.join(named)}" if named else "the index holds no pictures"
    )


def _print(path: str, images: list[str], answer: "Answer", as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "index": path,
                "version": answer.version,
                "complete": answer.complete,
                "bound": answer.bound,
                "compared": answer.compared,
                "queries": [
                    {"query": name, "hits": [asdict(hit) for hit in hits]}
                    for name, hits in zip(images, answer, strict=True)
                ],
            }
        )
        return
    rows = [
        (name, f"{hit.distance:.4f}", hit.path or hit.id, hit.label or "")
        for name, hits in zip(images, answer, strict=True)
        for hit in hits
    ]
    if rows:
        output.print_table(("query", "distance", "picture", "label"), rows, numbers=(1,))
    if none := [name for name, hits in zip(images, answer, strict=True) if not hits]:
        output.note(f"nothing found for {', '.join(none)}")
