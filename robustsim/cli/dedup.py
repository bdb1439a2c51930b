"""`robustsim dedup`: pictures that look alike, and what becomes of them."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output
from robustsim.cli.index import LabelOption, TenantOption
from robustsim.errors import ImageError

if TYPE_CHECKING:
    from robustsim.search import DuplicatesReport, Index
    from robustsim.search.duplicates.act import Done

PHASH = "phash"


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
            help="Or the share of pairs of different pictures that may be taken for alike; 1e-6 if nothing is given.",
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="LINE", help="What compares: models, phash; repeatable, any of them finds."),
    ] = None,
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
    from tqdm import tqdm

    from robustsim.search.duplicates.page import write_page
    from robustsim.search.duplicates.report import KEEPS

    if move is not None and delete:
        raise typer.BadParameter("--move and --delete exclude each other")
    if distance and false_positives is not None:
        raise typer.BadParameter("--distance and --false-positives exclude each other")
    if keep not in KEEPS:
        raise typer.BadParameter(f"--keep {keep!r} is none of {', '.join(KEEPS)}")
    distances = _distances(distance or [], by)
    opened, failed, is_folder = _opened(source, index, model, by, device, follow_links, as_json)
    lines = by or opened.lines
    total = len(lines) * len(opened) * (len(opened) - 1) // 2
    with tqdm(total=total, unit=" pairs", unit_scale=True, disable=True if as_json else None) as bar:
        report = opened.duplicates(
            distances, false_positives, by=by, keep=keep, label=label, tenant=tenant, progress=bar.update
        )
        bar.total = bar.n  # without copies of one content, and with views
    promises = [opened.lines[0]] if opened.card.method is not None else []
    if out is not None:
        report.save(out)
    if page is not None:
        with tqdm(total=len(report.groups), unit=" groups", disable=True if as_json else None) as bar:
            write_page(report, page, what=str(source), promises=promises, progress=bar.update)
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
        BadParameter: it says neither.
    """
    try:
        if not words:
            return None
        if len(words) == 1 and "=" not in words[0]:
            if by and len(by) > 1:
                raise typer.BadParameter("a distance for each line of --by: --distance LINE=D")
            return {by[0]: float(words[0])} if by else float(words[0])
        pairs = [word.rpartition("=") for word in words]
        if any(not name for name, _, _ in pairs):
            raise typer.BadParameter("several distances are those of lines: --distance LINE=D")
        return {name: float(value) for name, _, value in pairs}
    except ValueError:
        raise typer.BadParameter(f"--distance {' '.join(words)} is no number") from None


def _opened(
    source: Path,
    index: Path | None,
    model: str | None,
    by: Sequence[str] | None,
    device: str | None,
    follow_links: bool,
    as_json: bool,
) -> "tuple[Index, int, bool]":
    """The index, how many files of a folder could not be read, and whether it is that of a folder."""
    from tqdm import tqdm

    from robustsim.images import find_images, tell_passed_over
    from robustsim.search import Index
    from robustsim.search.storage.seal import NAME

    if (source / NAME).exists():
        if index is not None or model is not None:
            raise typer.BadParameter("--index and --model go with a folder of images: this is an index")
        return Index.open(source, device=device), 0, False
    walk = find_images(source, follow_links=follow_links)
    total = sum(1 for _ in walk)
    if not total:
        raise ImageError(f"the folder {str(source)!r} holds no images: {tell_passed_over(walk.passed_over)}")
    models = _models(model, by)
    place = index or _cache(source, models)
    output.note(f"the index of {source} is {place}")
    if (place / NAME).exists():
        opened = Index.open(place, device=device)
    else:
        opened = Index.create(place, models[0], also=models[1:], device=device)
    output.tell_cropping(opened.card)
    with tqdm(total=total, unit=" images", disable=True if as_json else None) as bar:
        update = opened.sync(
            source,
            follow_links=follow_links,
            remove_all=True,  # there are pictures, so the disk is there
            progress=bar.update,
            on_error=lambda error: bar.write(f"skipped: {error}", file=sys.stderr),
        )
    output.tell_passed_over(update.passed_over)
    return opened, update.failed, True


def _models(model: str | None, by: Sequence[str] | None) -> list[str]:
    """What a folder's index is made with: its own model, and those that else compare."""
    own = model or output.DEFAULT_MODEL
    others = [f"{output.DEFAULT_MODEL}-clean"] if by is None else [line for line in by if line != PHASH]
    return [own, *(other for other in dict.fromkeys(others) if other != own)]


def _cache(source: Path, models: Sequence[str]) -> Path:
    """Where the index of a folder is kept: one for each folder and what it is compared by."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    named = "\0".join((os.path.abspath(source), *models))
    return base / "robustsim" / "dedup" / hashlib.sha256(os.fsencode(named)).hexdigest()[:32]


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
    others = sum(len(group.others) for group in report.groups)
    output.note(
        f"{report.compared} pictures, {len(report.groups)} groups; {others} files beside those that are kept "
        f"({report.keep}), {report.freed:,} bytes"
    )
    limits = ", ".join(f"{line} {away:.4f}" for line, away in report.thresholds.items())
    held = [line for line in report.thresholds if line in promises]
    output.note(
        f"alike: identical content, or within {limits}. Of these lines, {held[0] if held else 'none'} was made to hold "
        "against tampering; what another one finds may have been made to look so."
    )


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
            "source": str(source),
            "index": index.path,
            "version": report.version,
            "compared": report.compared,
            "thresholds": dict(report.thresholds),
            "keep": report.keep,
            "freed": report.freed,
            "groups": [report.described(group) for group in report.groups],
            **({"done": [asdict(one) for one in done]} if acts else {}),
        }
    )
