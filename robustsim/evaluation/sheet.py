"""What a search finds by queries as they are and as they were attacked, in one picture (R-CLIP paper, Figure 3)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from robustsim.errors import ImageError, InputError
from robustsim.evaluation.reports.report import Report, metric_names
from robustsim.evaluation.tasks.pictures import Part
from robustsim.explain.panels import PAPER, rows, shortened
from robustsim.images.files import from_printable

#: Neighbours of each query that a report names.
NEAREST = 10
_SIDE = 160


def shown_queries(count: int, wanted: int) -> frozenset[int]:
    """Places of so many queries at even distances: those of one place often follow each other."""
    return frozenset(np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist())


def picture_of(folder: Path, place: int, norm: str, eps: str) -> Path:
    """Where the attacked picture of a query is kept."""
    return folder / f"attacked-{place:05d}-{norm}-{eps.replace('/', '_')}.png"


def draw_neighbours(
    reports: "Report | Sequence[Report]",
    *,
    queries: int = 5,
    neighbours: int = 5,
    images: "str | os.PathLike[str] | None" = None,
) -> Image.Image:
    """Queries and what is nearest to them, a row as they are and one for each attack, drawn with Pillow.

    The attacked picture is the square that the metric looks at. A neighbour that one of the query's lists holds is
    called by it: `relevant`; `easy`, `hard` or `junk` of the revisited benchmark.

    Args:
        reports: of [`evaluate_retrieval`][robustsim.evaluation.evaluate_retrieval], made with `pictures` of at least as
            many queries where there was an attack; one block of rows for each.
        queries: how many, at even distances in the list.
        neighbours: how many of each, up to 10.
        images: folder of the pictures, where it is no longer the one that the report names.

    Returns:
        RGB.

    Raises:
        InputError: a report of another task, counts that do not fit, or pictures of attacked queries that are missing.
    """
    given = [reports] if isinstance(reports, Report) else list(reports)
    if not given or any(report.task != "retrieval" for report in given):
        raise InputError("neighbours are drawn of reports of retrieval, at least one")
    if queries < 1 or not 1 <= neighbours <= NEAREST:
        raise InputError(f"queries must be at least 1, neighbours 1 to {NEAREST}, not {queries} and {neighbours}")
    blocks = [
        _block(report, name, queries, neighbours, Path(images or report.content["data"]["root"]))
        for report, name in zip(given, metric_names(given), strict=True)
    ]
    sheet = Image.new("RGB", (max(one.width for one in blocks), sum(one.height for one in blocks)), PAPER)
    top = 0
    for one in blocks:
        sheet.paste(one, (0, top))
        top += one.height
    return sheet


def _block(report: Report, metric: str, queries: int, neighbours: int, root: Path) -> Image.Image:
    items, panels = report.items, []
    for place in sorted(shown_queries(len(items["id"]), queries)):
        if items["error"][place] is not None:
            continue
        box = items["box"][place]
        query = Part(root / from_printable(items["file"][place]), None if box is None else tuple(json.loads(box)))
        drawn = [(_tile(query), items["id"][place], "")]
        for attack in report.results["adversarial"]:
            norm, eps = attack["norm"], attack["eps"]
            path = picture_of(report.path.with_suffix(".pictures"), place, norm, eps)
            if not path.is_file():
                raise InputError(
                    f"{str(path)!r} is not there: evaluate_retrieval(..., pictures={queries}) of the same run keeps it"
                )
            drawn.append((_tile(Part(path)), f"{norm} {eps}", f" {eps}"))
        for tile, words, aside in drawn:
            near = json.loads(items[f"nearest{aside}"][place])[:neighbours]
            found = [
                (_tile(Part(root / from_printable(name))), f"{number}: {kind or 'other'}")
                for number, (name, kind) in enumerate(near, 1)
            ]
            panels.append([(tile, shortened(words, _SIDE)), *found])
    if not panels:
        raise InputError(f"{report.path.name}: none of the queries that would be shown could be read")
    return rows(panels, metric)


def _tile(picture: Part) -> Image.Image:
    """A picture on a white square; the square alone where it is gone."""
    try:
        image = picture.read()
    except ImageError:
        return Image.new("RGB", (_SIDE, _SIDE), PAPER)
    return ImageOps.pad(image, (_SIDE, _SIDE), Image.Resampling.LANCZOS, color=PAPER)
