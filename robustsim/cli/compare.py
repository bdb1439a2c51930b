"""``robustsim compare``: distances of pairs, of one image to many, or of two folders."""

import os
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
        list[str],  # not Path, which would make a URL look like a file
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
    pairs, named = _pairs(images)
    metric = output.load_metric(model, device)
    rows, bad = [], 0
    for start in range(0, len(pairs), _CHUNK):
        chunk = pairs[start : start + _CHUNK]
        try:
            rows += _distances(metric, chunk, squared)
        except ImageError:
            broken = _broken(metric, chunk)
            for path, error in broken.items():
                if path in named:
                    raise error from None
                output.report_bad(error)
            bad += len(broken)
            rows += _distances(metric, [pair for pair in chunk if not broken.keys() & set(pair)], squared)
    parts = output.unseen(metric.card, dict.fromkeys(path for a, b, *_ in rows for path in (a, b)))
    if as_json:
        output.print_json(_document(metric, rows, parts, squared))
    elif as_csv:
        output.print_csv(("a", "b", "distance", "similarity"), rows)
    else:
        cells = [(a, b, f"{distance:.4f}", f"{similarity:.4f}") for a, b, distance, similarity in rows]
        output.print_table(("a", "b", "distance", "similarity"), cells, numbers=(2, 3))
        typer.echo(output.explain(metric.card, squared))
    if not as_json:
        output.tell_unseen(parts, aside=as_csv)
    output.finish(bad, len(rows), strict)


def _document(metric: "RobustSim", rows: list[Any], parts: list[Any], squared: bool) -> dict[str, Any]:
    return {
        "model": metric.card.name,
        "squared": squared,
        "pairs": [
            {"a": a, "b": b, "distance": distance, "similarity": similarity} for a, b, distance, similarity in rows
        ],
        "not_looked_at": parts,
    }


def _pairs(images: list[str]) -> tuple[list[tuple[str, str]], set[str]]:
    """What is compared with what, and the files that were named, which must not be bad; those of folders may."""
    if len(images) < 2:
        raise typer.BadParameter("compare takes at least two files, or two folders")
    first, rest = images[0], images[1:]
    if os.path.isdir(first):
        if len(rest) != 1 or not os.path.isdir(rest[0]):
            raise typer.BadParameter("a folder is compared with one other folder")
        return _matched(Path(first), Path(rest[0])), set()
    if len(rest) == 1 and os.path.isdir(rest[0]):
        from robustsim.images import find_images

        many = [os.path.join(rest[0], found) for found in find_images(rest[0])]
        if not many:
            raise ImageError(f"the folder {rest[0]!r} holds no images")
        return [(first, path) for path in many], {first}
    if any(os.path.isdir(path) for path in rest):
        raise typer.BadParameter("a folder cannot stand among several files")
    return [(first, path) for path in rest], set(images)


def _matched(left: Path, right: Path) -> list[tuple[str, str]]:
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
    return [(str(left / a), str(right / b)) for a, b in sorted(pairs)]


def _by_stem(names: list[Path], taken: set[Path]) -> dict[Path, Path]:
    found: dict[Path, list[Path]] = {}
    for name in names:
        if name not in taken:
            found.setdefault(name.with_suffix(""), []).append(name)
    return {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}


def _distances(metric: "RobustSim", pairs: list[tuple[str, str]], squared: bool) -> list[tuple[str, str, float, float]]:
    """(a, b, distance, similarity) of each pair; what is the same in all of them is encoded once."""
    if not pairs:
        return []
    left = [a for a, _ in pairs]
    squares = metric.distance(left[0] if len(set(left)) == 1 else left, [b for _, b in pairs], squared=True)
    distances = squares if squared else squares.sqrt()
    values = zip(pairs, distances.tolist(), (1 - squares).tolist(), strict=True)
    return [(a, b, distance, similarity) for (a, b), distance, similarity in values]


def _broken(metric: "RobustSim", pairs: list[tuple[str, str]]) -> dict[str, ImageError]:
    """Which files cannot be read, and why."""
    from robustsim.images.files import prefetch
    from robustsim.images.inputs import load_square

    def check(path: str) -> ImageError | None:
        try:
            load_square(path, metric.card.preprocessing)
        except ImageError as error:
            return ImageError(str(error))
        return None

    paths = list(dict.fromkeys(path for pair in pairs for path in pair))
    return {path: error for path, error in zip(paths, prefetch(check, paths), strict=True) if error is not None}
