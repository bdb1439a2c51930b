"""`robustsim dedup`: pictures that look alike, and what becomes of them."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output
from robustsim.cli.engine import Engine, EngineOption, load_hybrid
from robustsim.cli.index import ByOption, LabelOption, RayOption, TenantOption, engine_on_ray, on_ray
from robustsim.errors import ImageError, SearchError
from robustsim.images.files import picture_suffixes, printable, suffix_of

if TYPE_CHECKING:
    from robustsim.search import DuplicatesReport, Index
    from robustsim.search.duplicates.act import Done

PHASH, ALL = "phash", "all"


def dedup(
    source: Annotated[Path, typer.Argument(metavar="INDEX|DIR", help="An index, or a folder of images.")],
    distance: Annotated[
        list[str] | None,
        typer.Option(
            "--distance",
            metavar="[LINE=]D",
            help="Up to which two pictures are alike, by the model or by a line; repeatable.",
        ),
    ] = None,
    false_positives: Annotated[
        float | None,
        typer.Option(
            "--false-positives",
            metavar="RATE",
            help="Or the share of pairs of different pictures that may be taken for alike; 1e-5 if nothing is given.",
        ),
    ] = None,
    by: ByOption = None,
    keep: Annotated[
        str, typer.Option("--keep", help="Which one of a group: largest, smallest, oldest, newest or medoid.")
    ] = "largest",
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A line of JSON for each group.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="A page that shows the groups.")] = None,
    move: Annotated[
        Path | None, typer.Option("--move", metavar="DIR", help="Move all but the kept ones to this folder.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete all but the kept ones.")] = False,
    index: Annotated[
        Path | None,
        typer.Option("--index", metavar="INDEX", help="Where the index of DIR is kept; in the cache if not given."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=f"What embeds the pictures of DIR; {output.DEFAULT_MODEL} if not given."),
    ] = None,
    device: output.DeviceOption = None,
    engine: EngineOption = None,
    ray: RayOption = None,
    label: LabelOption = None,
    tenant: TenantOption = None,
    follow_links: output.FollowLinksOption = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Find pictures that look alike, in groups each two of which do.

    Says what would be moved or deleted, and touches nothing unless --move or --delete is given; the last copy stays in
    any case. The index of a folder is kept, so that an interrupted run continues, and the next one is fast.
    """
    from functools import partial

    from tqdm import tqdm

    from robustsim.search.duplicates.page import write_page
    from robustsim.search.duplicates.report import KEEPS

    if move is not None and delete:
        raise typer.BadParameter("--move and --delete exclude each other")
    if delete and not distance and false_positives is None:
        raise typer.BadParameter(
            "--delete wants to be told what counts as alike: --distance or --false-positives. Look at the groups first "
            "(--html), or use --move, which can be taken back"
        )
    if distance and false_positives is not None:
        raise typer.BadParameter("--distance and --false-positives exclude each other")
    if keep not in KEEPS:
        raise typer.BadParameter(f"--keep {keep!r} is none of {', '.join(KEEPS)}")
    distances = _distances(distance or [], by)
    for option, path in (("--output", out), ("--html", page)):
        if path is not None and _is_picture(path):
            raise typer.BadParameter(
                f"{option} {printable(path)!r}: that is a picture, or its name, and not written to"
            )
    is_folder = not _is_index(source)
    if is_folder and (label is not None or tenant is not None):
        raise typer.BadParameter("--label and --tenant go with an index, and this is a folder of images")
    named = list(distances) if isinstance(distances, dict) else by or []
    lines = ALL if ALL in named else by
    total = _count(source, follow_links) if is_folder else 0
    if not is_folder and (index is not None or model is not None):
        raise typer.BadParameter("--index and --model go with a folder of images: this is an index")
    models = _models(model, named) if is_folder else []
    place = (index or _cache(source, models)) if is_folder else source
    kept = place if is_folder and index is None else None
    engine = engine_on_ray(engine, ray)
    with _cached(kept), on_ray(_opened(place, models, device, engine), ray) as opened:
        output.settle(opened.card)
        failed = 0
        find = partial(opened.duplicates, distances, false_positives, by=lines, keep=keep, label=label, tenant=tenant)
        if is_folder:
            if not len(opened):
                find()  # what cannot be told is told before anything is embedded
            failed = _sync(opened, source, total, follow_links, as_json)
        compared = len(named) if named and lines != ALL else 1 if distances else len(opened.lines)
        total = compared * len(opened) * (len(opened) - 1) // 2
        with tqdm(total=total, unit=" pairs", unit_scale=True, disable=True if as_json else None) as bar:
            report = find(progress=bar.update)
            bar.total = bar.n  # without copies of one content, and with views
    promises = [opened.lines[0]] if opened.card.method is not None else []
    if out is not None:
        report.save(out)
    if page is not None:
        with tqdm(total=len(report.groups), unit=" groups", disable=True if as_json else None) as bar:
            write_page(report, page, what=printable(source), promises=promises, progress=bar.update)
    if not as_json:
        _print(report)
    _tell(report, promises)
    done = _act(report, move, delete, source if is_folder else None)
    if as_json:
        _print_json(source, opened, report, done, acts=delete or move is not None)
    left = [one for one in done if one.left is not None]
    if delete or move is not None:
        _tell_done(done, left, move, opened, is_folder)
    if left:
        raise typer.Exit(1)
    output.finish(failed, 1, strict)


def _distances(words: Sequence[str], by: Sequence[str] | None) -> "dict[str, float] | float | None":
    """What `--distance` says: a number, or one for each line.

    Raises:
        BadParameter: it says neither, or does not fit `--by`.
    """
    try:
        if not words:
            return None
        if len(words) == 1 and "=" not in words[0]:
            if by and (len(by) > 1 or ALL in by):
                raise typer.BadParameter("a distance for each line of --by: --distance LINE=D")
            return float(words[0])
        pairs = [word.rpartition("=") for word in words]
        if by or not all(name for name, _, _ in pairs):
            raise typer.BadParameter("several distances are those of lines, and name them: --distance LINE=D, no --by")
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise typer.BadParameter("--distance names a line twice")
        return {name: float(value) for name, _, value in pairs}
    except ValueError:
        raise typer.BadParameter(f"--distance {' '.join(words)} is no number") from None


def _is_picture(path: Path) -> bool:
    """Whether a file that is to be written has the name of a picture, or is one."""
    from robustsim.images import read_image

    if suffix_of(path.name) in picture_suffixes():
        return True
    try:
        return os.path.isfile(path) and bool(read_image(path))
    except ImageError:
        return False


def _is_index(folder: Path) -> bool:
    """Whether a folder is an index: it has a seal and rows. Photos may have a file of the first name."""
    from robustsim.search.storage.seal import NAME
    from robustsim.search.storage.store import ROWS

    return all(os.path.exists(folder / name) for name in (NAME, ROWS))  # no error, however long the name


@contextmanager
def _cached(place: Path | None) -> Iterator[None]:
    """Say of a damaged index what may be done, where it is one that is kept in the cache."""
    try:
        yield
    except SearchError as error:
        if place is None:
            raise
        raise SearchError(
            f"{error}. It is one that dedup keeps in the cache: delete the folder {printable(place)!r}, and it is made "
            "anew"
        ) from error


def _opened(place: Path, models: Sequence[str], device: str | None, engine: Engine | None) -> "Index":
    """The index, made if it is not there and models for it are given."""
    from functools import partial

    from robustsim.errors import OutputError
    from robustsim.search import Index
    from robustsim.search.storage.seal import NAME

    load = partial(load_hybrid, device=device, engine=engine)
    if models and not os.path.exists(place / NAME):
        try:
            return Index.create(place, models[0], also=models[1:], load=load)
        except OutputError:
            if not os.path.exists(place / NAME):
                raise  # else another process was the first to make it
    return Index.open(place, load=load)


def _sync(index: "Index", folder: Path, total: int, follow_links: bool, as_json: bool) -> int:
    """Bring the index of a folder up to date; how many files could not be read."""
    from tqdm import tqdm

    output.note(f"the index of {folder} is {index.path}")
    output.tell_cropping(index.card)
    with tqdm(total=total, unit=" images", disable=True if as_json else None) as bar:
        report = index.sync(
            folder,
            follow_links=follow_links,
            remove_all=True,  # there are pictures, so the disk is there
            progress=bar.update,
            on_error=lambda error: bar.write(f"skipped: {error}", file=sys.stderr),
        )
    output.tell_passed_over(report.passed_over)
    return report.failed


def _count(folder: Path, follow_links: bool) -> int:
    """How many pictures a folder holds.

    Raises:
        ImageError: none, or there is no such folder.
    """
    from robustsim.images import find_images, tell_passed_over

    walk = find_images(folder, follow_links=follow_links)
    total = sum(1 for _ in walk)
    if not total:
        raise ImageError(
            f"the folder {str(folder)!r} holds no images; {tell_passed_over(walk.passed_over)}".rstrip("; ")
        )
    return total


def _models(model: str | None, named: Sequence[str]) -> list[str]:
    """What a folder's index is made with: the models that compare by themselves, and those that are named."""
    own = model or output.DEFAULT_MODEL
    others = [f"{output.DEFAULT_MODEL}-clean", *(line for line in named if line not in (PHASH, ALL))]
    return [own, *(other for other in dict.fromkeys(others) if other != own)]


def _cache(source: Path, models: Sequence[str]) -> Path:
    """Where the index of a folder is kept: one for each folder and what it is compared by."""
    from robustsim.search.duplicates.moving import cache_folder

    named = "\0".join((os.path.abspath(source), *models))
    return cache_folder() / hashlib.sha256(os.fsencode(named)).hexdigest()[:32]


def _act(report: "DuplicatesReport", move: Path | None, delete: bool, root: Path | None) -> "list[Done]":
    from robustsim.search.duplicates import act

    done: list[Done] = []
    if move is not None:
        act.move(report.groups, move, root=root, tell=done.append)
    elif delete:
        act.delete(report.groups, root=root, tell=done.append)
    return done


def _print(report: "DuplicatesReport") -> None:
    rows = [
        (
            str(number),
            "kept" if member is group.keep else "",
            member.path or member.id,
            "" if member is group.keep else ", ".join(_found_by(member)),
            "" if member.size is None else f"{member.size:,}",
        )
        for number, group in enumerate(report.groups, 1)
        for member in group.members
    ]
    if rows:
        output.print_table(("group", "", "picture", "found by, distance", "bytes"), rows, numbers=(0, 4))


def _found_by(member: Any) -> list[str]:
    return [f"{line} {member.distances[line]:.4f}" if line in member.distances else line for line in member.found_by]


def _tell(report: "DuplicatesReport", promises: Sequence[str]) -> None:
    from robustsim.search.duplicates.report import IDENTICAL

    others = [member for group in report.groups for member in group.others]
    output.note(
        f"{report.compared} pictures, {len(report.groups)} groups; {len(others)} files beside those that are kept "
        f"({report.keep}), {report.freed:,} bytes"
    )
    if others:
        identical = sum(IDENTICAL in member.found_by for member in others)
        robust = sum(bool(set(promises) & set(member.found_by)) for member in others)
        output.note(
            f"of these, {identical} have the same content as the kept one, {robust} were found by a line that was made "
            f"to hold under attack, and {len(others) - identical - robust} by others alone, which are no promise"
        )
    limits = ", ".join(f"{line} {away:.4f}" for line, away in report.thresholds.items())
    held = [line for line in report.thresholds if line in promises]
    output.note(
        f"alike: the same content, or within {limits}. Of these lines, {held[0] if held else 'none'} was made to hold "
        "under attack; what another one finds may have been made to look so"
    )
    if report.false_positives is not None:
        output.note(f"of pairs of different photographs, at most {report.false_positives:.2g} are alike by chance")


def _tell_done(
    done: "Sequence[Done]", left: "Sequence[Done]", move: Path | None, index: "Index", is_folder: bool
) -> None:
    for one in left:
        output.note(f"left alone: {one.path}: {one.left}")
    gone = len(done) - len(left)
    freed = sum(one.size for one in done if one.left is None)
    to = "deleted" if move is None else f"moved to {move}, which are listed in its moved.jsonl"
    output.note(f"{gone} files, {freed:,} bytes, were {to}; {len(left)} were left alone")
    if gone and not is_folder:
        output.note(f"they are in {index.path} still: `robustsim index --sync` of their folder removes them")


def _print_json(
    source: Path, index: "Index", report: "DuplicatesReport", done: "Sequence[Done]", *, acts: bool
) -> None:
    from dataclasses import asdict

    output.print_json(
        {
            "source": printable(source),
            "index": index.path,
            "version": report.version,
            "compared": report.compared,
            "thresholds": dict(report.thresholds),
            "false_positives": report.false_positives,
            "keep": report.keep,
            "freed": report.freed,
            "groups": [report.described(group) for group in report.groups],
            **({"done": [asdict(one) for one in done]} if acts else {}),
        }
    )
