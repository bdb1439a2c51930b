"""``robustsim compare``: distances of pairs, of one image to many, or of two folders."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output
from robustsim.errors import ImageError

if TYPE_CHECKING:
    from robustsim.metric import RobustSim

_CHUNK = 256


def compare(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [B2 ...]",
            help="Two files; one file and several, or a folder, to compare it with; or two folders, whose files "
            "are paired by their names.",
        ),
    ],
    model: output.ModelOption = output.DEFAULT_MODEL,
    device: output.DeviceOption = None,
    squared: output.SquaredOption = False,
    as_json: output.JsonOption = False,
    as_csv: output.CsvOption = False,
    strict: output.StrictOption = False,
) -> None:
    """How different do images look? 0 is identical."""
    output.check_format(as_json, as_csv)
    pairs, lenient = _pairs(images)
    metric = output.load_metric(model, device)
    rows, bad = [], 0
    for a, b, result in _distances(metric, pairs, squared):
        if isinstance(result, ImageError):
            if not lenient:
                raise result
            bad += 1
            output.report_bad(result)
        else:
            rows.append((a, b, *result))
    shown = dict.fromkeys(path for a, b, *_ in rows for path in (a, b))
    crops = metric.card.preprocessing.mode == "shortest"
    parts = [part for path in shown if (part := output.unseen(metric.card, path))] if crops else []
    if as_json:
        output.print_json(_document(metric, rows, parts, squared))
    elif as_csv:
        output.print_csv(("a", "b", "distance", "similarity"), rows)
    else:
        cells = [(str(a), str(b), f"{distance:.4f}", f"{similarity:.4f}") for a, b, distance, similarity in rows]
        output.print_table(("a", "b", "distance", "similarity"), cells, numbers=(2, 3))
        typer.echo(output.explain(metric.card, squared))
    if not as_json:
        for line in output.unseen_lines(parts):
            (output.note if as_csv else typer.echo)(line)
    output.finish(bad, len(rows), strict)


def _document(metric: "RobustSim", rows: list[Any], parts: list[Any], squared: bool) -> dict[str, Any]:
    return {
        "model": metric.card.name,
        "squared": squared,
        "pairs": [
            {"a": str(a), "b": str(b), "distance": distance, "similarity": similarity}
            for a, b, distance, similarity in rows
        ],
        "not_looked_at": parts,
    }


def _pairs(images: list[Path]) -> tuple[list[tuple[Path, Path]], bool]:
    """What is compared with what, and whether a bad file among it is skipped (folders) or fatal (named files)."""
    if len(images) < 2:
        raise typer.BadParameter("compare takes at least two files, or two folders")
    first, rest = images[0], images[1:]
    if first.is_dir():
        if len(rest) != 1 or not rest[0].is_dir():
            raise typer.BadParameter("a folder is compared with one other folder")
        return _matched(first, rest[0]), True
    if len(rest) == 1 and rest[0].is_dir():
        from robustsim.images import find_images

        many = [rest[0] / found for found in find_images(rest[0])]
        if not many:
            raise ImageError(f"the folder {str(rest[0])!r} holds no images")
        return [(first, path) for path in many], True
    if any(path.is_dir() for path in rest):
        raise typer.BadParameter("a folder cannot stand among several files")
    return [(first, path) for path in rest], False


def _matched(left: Path, right: Path) -> list[tuple[Path, Path]]:
    """Files of two folders with the same name; without its suffix, where that leaves no doubt."""
    from robustsim.images import find_images

    ours, theirs = list(find_images(left)), list(find_images(right))
    same = set(ours) & set(theirs)
    pairs = [(name, name) for name in same]
    stems = [_by_stem(names, same) for names in (ours, theirs)]
    pairs += [(stems[0][stem], stems[1][stem]) for stem in stems[0].keys() & stems[1].keys()]
    alone = len(ours) + len(theirs) - 2 * len(pairs)
    if alone:
        output.note(f"{alone} files have no partner of the same name in the other folder")
    if not pairs:
        raise ImageError(f"no image in {str(left)!r} has the name of one in {str(right)!r}")
    return [(left / a, right / b) for a, b in sorted(pairs)]


def _by_stem(names: list[Path], taken: set[Path]) -> dict[Path, Path]:
    found: dict[Path, list[Path]] = {}
    for name in names:
        if name not in taken:
            found.setdefault(name.with_suffix(""), []).append(name)
    return {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}


def _distances(
    metric: "RobustSim", pairs: list[tuple[Path, Path]], squared: bool
) -> "Iterator[tuple[Path, Path, tuple[float, float] | ImageError]]":
    for start in range(0, len(pairs), _CHUNK):
        chunk = pairs[start : start + _CHUNK]
        try:
            results: list[Any] = _chunk(metric, chunk, squared)
        except ImageError as error:
            if len(chunk) == 1:
                results = [error]
            else:  # find out which
                results = [result for pair in chunk for *_, result in _distances(metric, [pair], squared)]
        for (a, b), result in zip(chunk, results, strict=True):
            yield a, b, result


def _chunk(metric: "RobustSim", chunk: list[tuple[Path, Path]], squared: bool) -> list[tuple[float, float]]:
    left: list[Path] = [a for a, _ in chunk]
    one = len(set(left)) == 1
    squares = metric.distance(left[0] if one else left, [b for _, b in chunk], squared=True)
    distances = squares if squared else squares.sqrt()
    return list(zip(distances.tolist(), (1 - squares).tolist(), strict=True))
