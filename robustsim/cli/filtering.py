"""`robustsim filter`: which pictures of folders to keep, by the pictures that they are near to."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import banks, output
from robustsim.cli.index import ViewsOption, kinds

if TYPE_CHECKING:
    from robustsim.search import Applied, FilterReport
    from robustsim.search.duplicates.act import Done


def filter_folders(
    out: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="A line of JSON for each picture: the decision, and why."),
    ],
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Folders of images; folders in them count too.")
    ] = None,
    bank: banks.BanksOption = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="NAME", help="A class that is kept; safe if not given; repeatable."),
    ] = None,
    within: banks.WithinOption = None,
    false_positives: banks.RateOption = None,
    votes: banks.VotesOption = 1,
    allow: banks.AllowOption = None,
    deny: banks.DenyOption = None,
    unknown: banks.UnknownOption = None,
    detector: banks.DetectorOption = None,
    laion_head: banks.LaionOption = None,
    laion_model: banks.LaionModelOption = None,
    views: ViewsOption = None,
    model: banks.ModelOption = None,
    device: output.DeviceOption = None,
    names: Annotated[
        Path | None, typer.Option("--list", metavar="FILE", help="Write the names of what is kept, a line each.")
    ] = None,
    move: Annotated[
        Path | None, typer.Option("--move", metavar="DIR", help="Move what is kept to this folder.")
    ] = None,
    copy: Annotated[Path | None, typer.Option("--copy", metavar="DIR", help="Copy it there.")] = None,
    decided: Annotated[
        bool, typer.Option("--decided", help="Take the decisions that FILE of -o holds; no DIR and no --bank then.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted run has done.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE, and that of --list, if it is there.")
    ] = False,
    follow_links: output.FollowLinksOption = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Judge the pictures of folders, and list, move or copy what is not flagged.

    Says what would be kept, and touches no picture unless --move or --copy is given. The same command goes on with an
    interrupted run. Exit code 1 if something that was to be moved or copied was left alone.
    """
    from tqdm import tqdm

    from robustsim.images import find_images
    from robustsim.search import apply_decisions, judge_folders, list_kept
    from robustsim.search.detection.apply import check_list
    from robustsim.search.detection.decisions import forget_run

    if move is not None and copy is not None:
        raise typer.BadParameter("--move and --copy exclude each other")
    wanted = banks.Wanted(
        bank or (), keep, within, false_positives, votes, allow or (), deny or (), unknown, detector or (), laion_head,
        laion_model, kinds(views), model, device,
    )  # fmt: skip
    if decided and (folders or bank or restart or (overwrite and names is None)):
        raise typer.BadParameter(
            "--decided takes the decisions of FILE: no DIR, --bank or --restart with it, and --overwrite for --list"
        )
    if not decided and not (folders and bank):
        raise typer.BadParameter("filter takes folders of images, and banks to judge them by (--bank NAME=INDEX)")
    wanted.check()
    if names is not None:
        check_list(out, names, overwrite=overwrite)
    report = None
    if not decided:
        total = sum(1 for folder in folders or () for _ in find_images(folder, follow_links=follow_links))
        made = wanted.make()
        with tqdm(total=total, unit=" images", disable=True if as_json else None) as bar:
            report = judge_folders(
                made,
                folders or (),
                out,
                restart=restart,
                overwrite=overwrite,
                follow_links=follow_links,
                progress=bar.update,
                keep_state=move is not None or copy is not None,
                on_error=lambda error: bar.write(f"skipped: {error}", file=sys.stderr),
            )
        output.tell_passed_over(report.passed_over)
        _tell(report, out)
    told: dict[str, Any] = {}
    place, applied = move or copy, None
    if place is not None:
        with tqdm(unit=" decisions", disable=True if as_json else None) as bar:
            applied = apply_decisions(
                out, place, move=move is not None, tell=lambda done: _tell_left(done), progress=bar.update
            )
        _tell_applied(applied, place, move is not None)
    if names is not None:  # last, so that the same command goes on with an interrupted move
        told["listed"] = list_kept(out, names, overwrite=overwrite)
        output.note(f"{told['listed']} names are in {names}")
    if place is not None:
        forget_run(out)
    if as_json:
        output.print_json(_as_json(out, report, applied, told))
    if applied is not None and applied.left:
        raise typer.Exit(1)
    if report is not None:
        output.finish(report.failed, 1, strict)


def _tell(report: "FilterReport", out: Path) -> None:
    classes = ", ".join(f"{count:,} {name}" for name, count in sorted(report.classes.items()))
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.reasons.items()))
    output.note(
        f"{report.kept:,} kept, {report.flagged:,} flagged{f' ({reasons})' if reasons else ''}, {report.failed:,} "
        f"could not be read; classes: {classes or 'none'}; why is in {out}"
    )
    if report.changed:
        files = "1 file is" if report.changed == 1 else f"{report.changed:,} files are"
        output.note(
            f"{files} new or changed since, and not judged: -o another file, or --overwrite, judges anew; without "
            "either the command goes on with what was decided"
        )


def _tell_left(done: "Done") -> None:
    if done.left is not None:
        output.note(f"left alone: {done.path}: {done.left}")


def _tell_applied(applied: "Applied", place: Path, moved: bool) -> None:
    word, were = "moved" if moved else "copied", "file was" if applied.done == 1 else "files were"
    before = f", {applied.before:,} had been {word} before" if applied.before else ""
    listed = ", which are listed in its moved.jsonl" if moved else ""
    output.note(f"{applied.done:,} {were} {word} to {place}{listed}{before}; {applied.left:,} were left alone")


def _as_json(
    out: Path, report: "FilterReport | None", applied: "Applied | None", told: "dict[str, Any]"
) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "decisions": str(out),
        **(asdict(report) if report is not None else {}),
        **told,
        **({"applied": asdict(applied)} if applied is not None else {}),
    }
