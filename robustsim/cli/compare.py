"""`robustsim compare`: distances of pairs, of one image to many, or of two folders."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from robustsim.cli import output, pictures
from robustsim.cli.drawing import check_png, write_png
from robustsim.cli.engine import EngineOption, Scorer, load_scorer
from robustsim.errors import EncodingError, ImageError, RobustSimError
from robustsim.explain.methods import METHOD, MapMethod

if TYPE_CHECKING:
    from torch import Tensor

    from robustsim.cli.pictures import Picture
    from robustsim.explain.drawing import Overlay
    from robustsim.metric import RobustSim

_CHUNK, _MOST_TOLD, _MOST_MEANT = 256, 5, 10


@dataclass
class _Job:
    """What is compared with what.

    Attributes:
        pairs: of names.
        opened: what the names stand for that were given; these must not be bad, and those of folders may.
        passed_over: what the walks through folders left out.
        alone: files of two folders that have no partner.
    """

    pairs: list[tuple[str, str]]
    opened: "dict[str, Picture]" = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    alone: list[str] = field(default_factory=list)


@dataclass
class _Map:
    """A map that is wanted beside the distance.

    Attributes:
        file: where it is drawn.
        method: how it is made.
        found: what was made.
        error: why nothing was.
    """

    file: Path
    method: MapMethod
    found: "Overlay | None" = None
    error: RobustSimError | None = None


def compare(
    images: Annotated[
        list[str],  # not Path, which would make a URL look like a file
        typer.Argument(
            metavar="A B [B2 ...]",
            help="Two files; one file and several, or a folder, to compare it with; or two folders, whose files "
            "are paired by their names. - is standard input.",
        ),
    ],
    model: output.ModelOption = output.DEFAULT_MODEL,
    device: output.DeviceOption = None,
    engine: EngineOption = None,
    squared: output.SquaredOption = False,
    follow_links: output.FollowLinksOption = False,
    as_json: output.JsonOption = False,
    as_csv: output.CsvOption = False,
    strict: output.StrictOption = False,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="Draw both pictures and where they differ into this PNG."),
    ] = None,
    map_method: Annotated[
        MapMethod | None,
        typer.Option(
            help="What --map draws: how the distance is shared out by several layers (layers, if nothing is said), "
            "the last layer's differences, or what each pixel adds to the distance."
        ),
    ] = None,
) -> None:
    """How different do images look? 0 is identical."""
    output.check_format(as_json, as_csv)
    if map_file is None and map_method is not None:
        raise typer.BadParameter("--map-method goes with --map")
    map_ = _Map(map_file, map_method or METHOD) if map_file is not None else None
    if map_ is not None:
        check_png(map_.file, "--map", images)
    job = _job(images, follow_links)
    if map_ is not None:
        _check_map(map_.file, job)
    output.tell_passed_over(job.passed_over)
    _tell_alone(job.alone)
    metric = load_scorer(model, device, engine, torch_for="--map" if map_file is not None else None)
    rows, bad = [], 0
    for start in range(0, len(job.pairs), _CHUNK):
        chunk = job.pairs[start : start + _CHUNK]
        try:
            rows += _distances(metric, chunk, job, squared, map_)
        except ImageError:
            broken = _broken(metric, chunk, job)
            for path, error in broken.items():
                if path in job.opened:
                    raise error from None
                output.report_bad(error)
            bad += len(broken)
            rows += _distances(metric, [pair for pair in chunk if not broken.keys() & set(pair)], job, squared, map_)
    parts = output.unseen(metric.card, dict.fromkeys(path for a, b, *_ in rows for path in (a, b)), job.opened)
    if as_json:
        drawn = {"file": str(map_.file), "method": map_.method} if map_ is not None and rows else None
        output.print_json({**_document(metric, rows, parts, job, squared), "map": drawn})
    elif as_csv:
        known = metric.card.calibration
        meant = ([*row, known.describe(row[2], squared=squared) if known else ""] for row in rows)
        output.print_csv(("a", "b", "distance", "similarity", "meaning"), meant)
    else:
        cells = [(a, b, f"{distance:.4f}", f"{similarity:.4f}") for a, b, distance, similarity in rows]
        output.print_table(("a", "b", "distance", "similarity"), cells, numbers=(2, 3))
        _tell_meaning(metric, rows, squared)
        typer.echo(output.explain(metric.card, squared))
    if not as_json:
        output.tell_unseen(parts, aside=as_csv)
    if map_ is not None and rows:  # last: what goes wrong with it takes no number with it
        _draw_map(job, map_)
        if not (as_json or as_csv):
            typer.echo(f"{map_.file}: where they differ, by the method {map_.method!r}.")
    output.finish(bad, len(rows), strict)


def _check_map(path: Path, job: _Job) -> None:
    if len(job.pairs) > 1:
        raise typer.BadParameter(f"it draws one pair, and here are {len(job.pairs):,}", param_hint="--map")
    check_png(path, "--map", job.pairs[0])  # files of folders were not among the words


def _draw_map(job: _Job, map_: _Map) -> None:
    from robustsim.explain.drawing import draw_overlay

    if map_.found is None:
        raise map_.error or RuntimeError("the pair that is drawn was not encoded")
    a, b = job.pairs[0]
    pictures = (job.opened.get(name, name) for name in (a, b))
    write_png(draw_overlay(map_.found, *pictures, names=(a, b)), map_.file)


def _tell_meaning(metric: Scorer, rows: list[Any], squared: bool) -> None:
    """What the numbers mean, a line for each, as long as they are few."""
    known = metric.card.calibration
    if known is None:
        typer.echo(output.without_calibration(metric.card))
        return
    one_left = len({a for a, *_ in rows}) == 1
    for a, b, distance, _ in rows[:_MOST_MEANT]:
        pair = "" if len(rows) == 1 else f"{b}: " if one_left else f"{a}, {b}: "
        typer.echo(f"{pair}{known.describe(distance, squared=squared)}.")
    if len(rows) > _MOST_MEANT:
        typer.echo(f"--json and --csv say it of all {len(rows):,} pairs.")


def _document(metric: Scorer, rows: list[Any], parts: list[Any], job: _Job, squared: bool) -> dict[str, Any]:
    known = metric.card.calibration
    return {
        "model": metric.card.name,
        "squared": squared,
        "pairs": [
            {
                "a": a,
                "b": b,
                "distance": distance,
                "similarity": similarity,
                "meaning": known.to_meaning(distance, squared=squared) if known else None,
            }
            for a, b, distance, similarity in rows
        ],
        "not_looked_at": parts,
        "passed_over": dict(job.passed_over),
        "without_partner": job.alone,
    }


def _job(images: list[str], follow_links: bool) -> _Job:
    if len(images) < 2:
        raise typer.BadParameter("compare takes at least two files, or two folders")
    first, rest = images[0], images[1:]
    if _is_folder(first):
        if len(rest) != 1 or not _is_folder(rest[0]):
            raise typer.BadParameter("a folder is compared with one other folder")
        return _matched(Path(first), Path(rest[0]), follow_links)
    if len(rest) == 1 and _is_folder(rest[0]):
        from robustsim.images.files import find_images, what_is_there

        walk = find_images(rest[0], follow_links=follow_links)
        many = [os.path.join(rest[0], found) for found in walk]
        if not many:
            raise ImageError(f"the folder {rest[0]!r} holds no images: {what_is_there(walk.passed_over)}")
        return _Job([(first, path) for path in many], pictures.open_pictures([first]), walk.passed_over)
    if any(map(_is_folder, rest)):
        raise typer.BadParameter("a folder cannot stand among several files")
    return _Job([(first, path) for path in rest], pictures.open_pictures(images))


def _is_folder(name: str) -> bool:
    return name != pictures.STANDARD_INPUT and os.path.isdir(name)


def _matched(left: Path, right: Path, follow_links: bool) -> _Job:
    """Files of two folders with the same name: letter by letter, else to the eye, else without the suffix."""
    from robustsim.images.files import find_images, tell_passed_over

    walks = [find_images(folder, follow_links=follow_links) for folder in (left, right)]
    ours, theirs = (list(walk) for walk in walks)
    pairs: list[tuple[Path, Path]] = []
    for key in (Path.as_posix, _composed, lambda path: _composed(path.with_suffix(""))):
        found = [_single(names, key) for names in (ours, theirs)]
        pairs += [(found[0][name], found[1][name]) for name in found[0].keys() & found[1].keys()]
        taken = [{pair[side] for pair in pairs} for side in (0, 1)]
        ours, theirs = ([path for path in names if path not in taken[side]] for side, names in ((0, ours), (1, theirs)))
    passed_over = walks[0].passed_over + walks[1].passed_over
    if not pairs:
        passed = tell_passed_over(passed_over)
        seen = (f"{str(folder)!r} ({len(names)} images)" for folder, names in ((left, ours), (right, theirs)))
        raise ImageError("; ".join(filter(None, (f"no image in {' has the name of one in '.join(seen)}", passed))))
    alone = [str(folder / path) for folder, names in ((left, ours), (right, theirs)) for path in names]
    named = [(str(left / a), str(right / b)) for a, b in sorted(pairs)]
    return _Job(named, passed_over=passed_over, alone=alone)


def _composed(path: Path) -> str:
    """A name with its accents composed (NFC): macOS writes "e" and an accent (NFD) where others write one letter."""
    return unicodedata.normalize("NFC", path.as_posix())


def _single(names: list[Path], key: Callable[[Path], Hashable]) -> dict[Hashable, Path]:
    """Files by their keys; where two have the same one, neither: it leaves a doubt."""
    counts = Counter(map(key, names))
    return {key(name): name for name in names if counts[key(name)] == 1}


def _tell_alone(alone: list[str]) -> None:
    if not alone:
        return
    more = f" and {len(alone) - _MOST_TOLD:,} more" if len(alone) > _MOST_TOLD else ""
    have = "file has" if len(alone) == 1 else "files have"
    output.note(
        f"{len(alone):,} {have} no partner of the same name in the other folder: "
        f"{', '.join(map(repr, alone[:_MOST_TOLD]))}{more}"
    )


def _distances(
    metric: Scorer, pairs: list[tuple[str, str]], job: _Job, squared: bool, map_: _Map | None
) -> list[tuple[str, str, float, float]]:
    """(a, b, distance, similarity) of each pair; what is the same in all of them is encoded once."""
    if not pairs:
        return []
    left = [job.opened.get(a, a) for a, _ in pairs]
    right = [job.opened.get(b, b) for _, b in pairs]
    squares: Any
    if map_ is not None:
        squares = _squares_with_map(cast("RobustSim", metric), left[0], right[0], map_)  # torch was asked for
    else:
        is_one = len({a for a, _ in pairs}) == 1
        squares = metric.distance(left[0] if is_one else left, right, squared=True)
    distances = (squares if squared else squares**0.5).tolist()
    values = zip(pairs, distances, (1 - squares).tolist(), strict=True)
    return [(a, b, distance, similarity) for (a, b), distance, similarity in values]


def _squares_with_map(metric: "RobustSim", a: Any, b: Any, map_: _Map) -> "Tensor":
    """The squared distance of the pair that is drawn, (1,), of the pass that makes its map."""
    import torch

    from robustsim.explain.drawing import overlay

    try:
        map_.found = overlay(metric, a, b, method=map_.method)
    except (EncodingError, ImageError):  # neither is there a distance
        raise
    except RobustSimError as error:  # told after the numbers
        map_.error = error
        return metric.distance(a, b, squared=True)
    return torch.tensor([map_.found.squared_distance])


def _broken(metric: Scorer, pairs: list[tuple[str, str]], job: _Job) -> dict[str, ImageError]:
    """Which files cannot be read, and why."""
    from robustsim.images.arrays import read_square
    from robustsim.images.files import prefetch

    def check(path: str) -> ImageError | None:
        try:
            read_square(job.opened.get(path, path), metric.card.preprocessing)
        except ImageError as error:
            return ImageError(str(error))
        return None

    paths = list(dict.fromkeys(path for pair in pairs for path in pair))
    return {path: error for path, error in zip(paths, prefetch(check, paths), strict=True) if error is not None}
