"""`robustsim explain`: a page about a pair of pictures, to be sent or kept."""

import os
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output, pictures
from robustsim.cli.attack import radius_of
from robustsim.cli.drawing import check_file
from robustsim.cli.invert import check_text
from robustsim.errors import InputError
from robustsim.explain.methods import MapMethod

if TYPE_CHECKING:
    from robustsim.explain import Explanation, Reach

_SUFFIXES = (".html", ".htm")


def explain(
    a: Annotated[str, typer.Argument(metavar="A", help="A file, which is attacked. - is standard input.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The file it is compared with, which stays as it is.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write, .html.")],
    model: output.ModelOption = output.DEFAULT_MODEL,
    device: output.DeviceOption = None,
    map_method: Annotated[
        MapMethod | None, typer.Option(help="How the map is made, as for compare; the default of maps if not given.")
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(metavar="RADIUS", help="The largest change of a channel, in [0, 1]; 4/255 if not given."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each of the two attacks.")] = 50,
    max_side: Annotated[
        int,
        typer.Option(
            "--max-side",
            min=16,
            metavar="PIXELS",
            help="A copy of A whose longer side is no more than this is attacked.",
        ),
    ] = 512,
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Show which places look like it, too; of CLIP models.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the random starts.")] = 0,
    as_json: output.JsonOption = False,
) -> None:
    """Write a page about two pictures: their distance, where they differ, and what invisible changes make of it."""
    check_file(out, "--output", [a, b], suffixes=_SUFFIXES, why="so that whoever gets it can open it")
    radius, today = radius_of(eps, "linf"), _today()
    if text is not None:
        check_text([model], [text])

    from robustsim.explain import explain_pair, write_page

    opened = pictures.open_pictures([a, b], encoded=True)
    metric = output.load_metric(model, device, text=text is not None)
    found = explain_pair(
        metric,
        opened[a],
        opened[b],
        names=(a, b),
        map_method=map_method,
        eps=radius,
        steps=steps,
        max_side=max_side,
        seed=seed,
        text=text,
        progress=sys.stderr.isatty(),
    )
    write_page(found, out, command=_command(a, b), date=today)
    parts = output.unseen(metric.card, dict.fromkeys([a, b]), opened)
    if as_json:
        output.print_json({**_document(found, a, b), "page": str(out), "not_looked_at": parts})
        return
    typer.echo(f"{out}: {os.path.getsize(out) / 1e6:.1f} MB")
    rows = [
        ("as they are", found.distance),
        *([(f"a copy of A of {' x '.join(map(str, found.attacked.size))}", found.start)] if found.is_copy else []),
        ("A changed, as near as was found", found.nearest.distance),
        ("A changed, as far as was found", found.farthest.distance),
    ]
    output.print_table(("pair", "distance"), [(words, f"{value:.4f}") for words, value in rows], numbers=(1,))
    typer.echo(output.without_calibration(metric.card) if found.meaning is None else f"{found.meaning}.")
    typer.echo(output.explain(metric.card, squared=False))
    output.tell_unseen(parts, aside=False)


def _command(a: str, b: str) -> str:
    """What was typed, without folders, which are nobody's business; nothing where it cannot be typed again."""
    if pictures.STANDARD_INPUT in (a, b):
        return ""
    words = [os.path.basename(word) if os.path.isdir(os.path.dirname(word)) else word for word in sys.argv[1:]]
    return shlex.join(["robustsim", *words])


def _today() -> str:
    """The date, or the one that is to be taken for it, as reproducible builds have it.

    Raises:
        InputError: there is one, and it is none.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
    try:
        return f"{datetime.fromtimestamp(int(given), tz=timezone.utc):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        raise InputError(f"SOURCE_DATE_EPOCH is {given!r}: it is a date in seconds since 1970, or not set") from None


def _document(found: "Explanation", a: str, b: str) -> dict[str, Any]:
    def reached(reach: "Reach") -> dict[str, Any]:
        return {"distance": reach.distance, "size": reach.size, "changed": reach.changed}

    known = found.card.calibration
    return {
        "model": found.card.name,
        "weights": found.weights,
        "a": a,
        "b": b,
        "distance": found.distance,
        "similarity": found.similarity,
        "meaning": known.to_meaning(found.distance) if known else None,
        "map": found.method,
        "attack": {
            "norm": "linf",
            "eps": found.eps,
            "steps": found.steps,
            "seed": found.seed,
            "image_size": list(found.a.picture.size),
            "attacked_size": list(found.attacked.size),
            "start": found.start,
            "nearest": reached(found.nearest),
            "farthest": reached(found.farthest),
        },
    }
