"""`robustsim search`: the pictures of an index that look like these."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output
from robustsim.cli.engine import EngineOption
from robustsim.cli.index import ByOption, IndexArgument, LabelOption, TenantOption, ViewsOption, kinds, open_index

if TYPE_CHECKING:
    from collections.abc import Mapping

    from robustsim.cli.pictures import Picture
    from robustsim.search import Answer, Hit, Index


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
    false_positives: Annotated[
        float | None,
        typer.Option(
            "--false-positives",
            metavar="RATE",
            help="All that match where such a share of pairs of different pictures may, as 1e-5; and an exit code.",
        ),
    ] = None,
    by: ByOption = None,
    views: ViewsOption = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Look at a part of the pictures; says what share it finds.")
    ] = False,
    label: LabelOption = None,
    tenant: TenantOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model that made the index, where it is not found by its name."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="MODEL", help="Likewise for its further models, in their order; repeatable."),
    ] = None,
    device: output.DeviceOption = None,
    engine: EngineOption = None,
    as_json: output.JsonOption = False,
) -> None:
    """Find the pictures of an index that look like these; none is missed, unless --approximate is given.

    With --within or --false-positives, the exit code is the decision: 0 for no match, 1 for at least one, 2 for an
    error.
    """
    decides = within is not None or false_positives is not None
    if (count is not None) + (within is not None) + (false_positives is not None) > 1:
        raise typer.BadParameter("-k, --within and --false-positives exclude each other")
    if by and not decides:
        raise typer.BadParameter("--by goes with --within or --false-positives: the nearest are those of the own model")
    try:
        opened = open_index(index, model, also, device, engine)
        output.settle(opened.card)
        wanted: dict[str, Any] = {"views": kinds(views), "label": label, "tenant": tenant, "approximate": approximate}
        pictures = _pictures(opened, images, kinds(views))
        if decides:
            lines = by and ("all" if "all" in by else by)
            wanted |= {"distance": within, "false_positives": false_positives, "by": lines}
            answer = opened.within(pictures, **wanted)
        else:
            answer = opened.search(pictures, count or 10, **wanted)
        _print(str(index), images, answer, as_json)
        if not answer.compared:
            _tell_nothing_compared(label, tenant)
        sys.stdout.flush()  # what cannot be written is an error too, and None where it is closed
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if not decides:
            raise
        output.tell_error(error)
        raise typer.Exit(2) from None  # and not 1, which is a match
    if decides and any(answer):
        raise typer.Exit(1)


def _pictures(index: "Index", images: list[str], views: list[str]) -> "list[Picture]":
    from robustsim.cli.pictures import open_pictures

    opened = open_pictures(images, encoded=bool(views))
    output.tell_unseen(output.unseen(index.card, opened, opened), aside=True)
    return [opened[name] for name in images]


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
                "recall": answer.recall,
                "bound": answer.bound,
                "compared": answer.compared,
                "false_positives": answer.false_positives,
                "measured_on": dict(answer.measured_on),
                "queries": [
                    {"query": name, "thresholds": dict(limits), "hits": [_as_json(hit) for hit in hits]}
                    for name, hits, limits in zip(images, answer, answer.thresholds or [{}] * len(answer), strict=True)
                ],
            }
        )
        return
    rows = [
        (name, f"{hit.distance:.4f}", hit.path or hit.id, hit.label or "", _found_by(hit))
        for name, hits in zip(images, answer, strict=True)
        for hit in hits
    ]
    if rows:
        output.print_table(("query", "distance", "picture", "label", "found by"), rows, numbers=(1,))
    if answer.recall is not None:
        output.note(f"not complete: an approximate search finds {answer.recall:.1%} of planted near-duplicates here")
    if none := [name for name, hits in zip(images, answer, strict=True) if not hits]:
        output.note(f"nothing found for {', '.join(none)}")
    if answer.false_positives is not None:
        for limits in {tuple(one.items()): one for one in answer.thresholds}.values():
            output.note("within " + ", ".join(f"{line} {distance:.4f}" for line, distance in limits.items()))
        output.note(f"of pairs of different pictures, at most {answer.false_positives:.2g} match by chance, as far as")
        for data, lines in _by_data(answer.measured_on).items():
            output.note(f"  {data} can say for {', '.join(lines)}")


def _by_data(measured_on: "Mapping[str, str]") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line, data in measured_on.items():
        found.setdefault(data, []).append(line)
    return found


def _as_json(hit: "Hit") -> dict[str, Any]:
    return {**vars(hit), "found_by": [evidence._asdict() for evidence in hit.found_by]}


def _found_by(hit: "Hit") -> str:
    """The lines, with the views where these are not the wholes: `lite (mirror of the query), phash`."""
    parts = []
    for line, _, query_view, view in hit.found_by:
        views = [f"{view} of {whose}" for view, whose in ((query_view, "the query"), (view, "the picture")) if view]
        parts.append(f"{line} ({', '.join(views)})" if views else line)
    return ", ".join(parts)
