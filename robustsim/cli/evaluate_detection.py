"""`robustsim evaluate detection`: which class do the nearest pictures give, also to queries that were tampered with?"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import banks, judged, output

if TYPE_CHECKING:
    from robustsim.data import DetectionSet


def detection(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME[=FILE]",
            help="A metric with embeddings: a name of `robustsim models`, a Hub id, a folder, phash, lpips-alex, "
            "dreamsim, package.module:name. May be repeated.",
        ),
    ] = None,
    bank: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Pictures that queries are compared with, a folder for each class."),
    ] = None,
    queries: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="Pictures whose class is asked for; repeatable.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Pictures that attacks lead to, which are in no bank; repeatable."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="In place of folders, a CSV of file,class[,part]: bank, query or target. Without part each class is "
            "divided at random.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Where the CSV's files are, if not beside it.")
    ] = None,
    bank_only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A class that is not asked for, where classes are divided; repeatable."),
    ] = None,
    safe: banks.SafeOption = None,
    votes: banks.VotesOption = 1,
    eps: Annotated[
        list[str] | None,
        typer.Option(metavar="RADIUS", help="8/255 if not given, none for no attack; may be repeated."),
    ] = None,
    norm: judged.NormOption = "linf",
    steps: Annotated[int, typer.Option(min=1, help="Steps of APGD.")] = 200,
    targets_count: Annotated[
        int, typer.Option("--targets-drawn", min=1, help="Pictures that each attack leads to, drawn at random.")
    ] = 16,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A=B",
            help="Lead queries of A to B; repeatable. If not given, each class to every other that has targets.",
        ),
    ] = None,
    attacked: Annotated[
        int | None, typer.Option(min=1, help="Attack so many queries of each class, drawn at random; all if not given.")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME[=T]", help="A differentiable function that flags, too, from T on, 0.5."),
    ] = None,
    laion_head: banks.LaionOption = None,
    laion_model: banks.LaionModelOption = None,
    preprocess: judged.PreprocessOption = "card",
    follow_links: output.FollowLinksOption = False,
    out: judged.OutOption = Path("reports"),
    device: output.DeviceOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per encoding and attack.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of draws, attacks and resampling.")] = 0,
    restart: judged.RestartOption = False,
    groups: Annotated[bool, typer.Option("--groups", help="A column for each class that queries get, too.")] = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Which class do the nearest pictures give to a query, clean and led to another class by an attack?"""
    if detector is not None and laion_head is not None:
        raise typer.BadParameter("--detector and --laion-head are one detector each: take one")
    banks.check_detectors([] if detector is None else [detector], laion_head, laion_model)
    radii = () if eps == ["none"] else tuple(eps or ("8/255",))
    pairs = None if pair is None else [_pair("--pair", one, "A=B") for one in pair]
    read = _read(classes, data, bank, queries, targets, bank_only, seed, follow_links)
    from robustsim.evaluation import evaluate_detection
    from robustsim.evaluation.running.workers import Workers

    workers = Workers()
    place: Any = workers.device if device is None else device
    reports = []
    with redirect_stdout(sys.stderr):  # whatever somebody's metric prints
        # All of them before any: what cannot be loaded is told now.
        metrics = judged.load_judges(list(dict.fromkeys(model or [output.DEFAULT_MODEL])), place)
        for metric in metrics:
            other = banks.one_detector(detector, laion_head, laion_model, metric.name, place)
            report = evaluate_detection(
                metric,
                read,
                output=out,
                safe=tuple(safe or ("safe",)),
                votes=votes,
                eps=radii,
                norm=norm,
                steps=steps,
                targets=targets_count,
                pairs=pairs,
                attacked=attacked,
                detector=other,
                preprocess=preprocess,
                seed=seed,
                batch_size=batch_size,
                restart=restart,
                progress=sys.stderr.isatty(),
            )
            reports.append(report)
    if not workers.is_main:
        return
    judged.tell(reports, "queries", groups=groups, strict=strict, as_json=as_json)


def _read(
    classes: Path | None,
    data: Path | None,
    bank: list[str] | None,
    queries: list[str] | None,
    targets: list[str] | None,
    bank_only: list[str] | None,
    seed: int,
    follow_links: bool,
) -> "DetectionSet":
    """The pictures, from a table or from folders."""
    folders = {"--bank": bank, "--queries": queries, "--targets": targets}
    if classes is not None and any(folders.values()):
        raise typer.BadParameter("--classes names banks, queries and targets: leave the folders out")
    if classes is None and (data is not None or bank_only):
        raise typer.BadParameter("--data and --bank-only go with --classes")
    if classes is None and not (bank and queries):
        raise typer.BadParameter("give --bank and --queries for each class, or --classes")
    named = {option: dict(_pair(option, word, "NAME=DIR") for word in words or ()) for option, words in folders.items()}
    for option, words in folders.items():
        if len(named[option]) < len(words or ()):
            raise typer.BadParameter(f"{option} names a class twice")
    from robustsim.data import detection_folders, read_detection

    if classes is not None:
        return read_detection(classes, data, seed=seed, bank_only=bank_only or ())
    return detection_folders(named["--bank"], named["--queries"], named["--targets"], follow_links=follow_links)


def _pair(option: str, word: str, form: str) -> tuple[str, str]:
    name, equals, other = word.partition("=")
    if not (name and equals and other):
        raise typer.BadParameter(f"{option} {word!r}: write {form}")
    return name, other
