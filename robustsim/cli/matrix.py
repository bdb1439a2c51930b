"""`robustsim matrix`: the distance of every image of a folder to every other."""

from pathlib import Path
from typing import Annotated

import typer

from robustsim.cli import output
from robustsim.cli.engine import EngineOption, load_scorer
from robustsim.errors import ImageError

_MOST_SHOWN = 12


def matrix(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of images; folders in it count too.")],
    model: output.ModelOption = output.DEFAULT_MODEL,
    device: output.DeviceOption = None,
    engine: EngineOption = None,
    squared: output.SquaredOption = False,
    follow_links: output.FollowLinksOption = False,
    as_json: output.JsonOption = False,
    as_csv: output.CsvOption = False,
    strict: output.StrictOption = False,
) -> None:
    """The distance of every image in a folder to every other; each is encoded once."""
    import numpy as np

    from robustsim.images.files import find_images, what_is_there
    from robustsim.search import embed_images

    output.check_format(as_json, as_csv)
    walk = find_images(folder, follow_links=follow_links)
    count = sum(1 for _ in walk)
    if count > _MOST_SHOWN and not (as_json or as_csv):
        raise typer.BadParameter(f"{count} images make a table too wide to read: use --csv or --json")
    if not count:
        raise ImageError(f"the folder {str(folder)!r} holds no readable images: {what_is_there(walk.passed_over)}")
    output.tell_passed_over(walk.passed_over)
    metric = load_scorer(model, device, engine)
    names, rows, bad = [], [], 0
    for found, result in embed_images(metric, folder, follow_links=follow_links):
        if isinstance(result, ImageError):
            bad += 1
            output.report_bad(result)
        else:
            names.append(str(found))
            rows.append(np.asarray(result))
    if not rows:
        held = what_is_there(walk.passed_over, unreadable=bad)
        raise ImageError(f"the folder {str(folder)!r} holds no readable images: {held}")
    parts = output.unseen(metric.card, (folder / name for name in names))
    distances = metric.distance_matrix(np.stack(rows), squared=squared).tolist()
    if as_json:
        output.print_json(
            {
                "model": metric.card.name,
                "squared": squared,
                "files": names,
                "distances": distances,
                "not_looked_at": parts,
                "passed_over": dict(walk.passed_over),
            }
        )
    elif as_csv:
        output.print_csv(("file", *names), ((name, *row) for name, row in zip(names, distances, strict=True)))
    else:
        short = [str(number) for number in range(1, len(names) + 1)]
        cells = [
            (number, name, *(f"{value:.4f}" for value in row))
            for number, name, row in zip(short, names, distances, strict=True)
        ]
        output.print_table(("", "file", *short), cells, numbers=range(2, len(names) + 2))
        typer.echo(output.explain(metric.card, squared))
    if not as_json:
        output.tell_unseen(parts, aside=as_csv)
    output.finish(bad, len(rows), strict)
