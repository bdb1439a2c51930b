"""`robustsim evaluate retrieval`: does a search find what it should, also by queries that were tampered with?"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from robustsim.cli import drawing, judged, output


def retrieval(
    *,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE",
            help="gnd_roxford5k.pkl, gnd_rparis6k.pkl, JSON of that layout, or a CSV of query,relevant[,junk].",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The pictures, if not in jpg beside the ground truth or beside the CSV."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME[=FILE]",
            help="A metric with embeddings: a name of `robustsim models`, a Hub id, a folder, dreamsim, "
            "package.module:name. May be repeated.",
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(metavar="RADIUS", help="Attack the queries, too: 4/255, ...; may be repeated."),
    ] = None,
    norm: judged.NormOption = "linf",
    steps: Annotated[int, typer.Option(min=1, help="Steps of APGD.")] = 100,
    preprocess: judged.PreprocessOption = "card",
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw queries with what is nearest to them, clean and attacked: a PNG."),
    ] = None,
    sheet_queries: Annotated[int, typer.Option(min=1, help="So many queries are drawn.")] = 5,
    follow_links: output.FollowLinksOption = False,
    out: judged.OutOption = Path("reports"),
    device: output.DeviceOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per encoding, and queries per attack.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of attacks and resampling.")] = 0,
    restart: judged.RestartOption = False,
    groups: Annotated[bool, typer.Option("--groups", help="Columns for precision at 1, 5 and 10, too.")] = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Does a search find what it should? Revisited Oxford and Paris or a CSV, also with queries under attack."""
    if sheet is not None:
        drawing.check_png(sheet, "--sheet", [str(data)])
    from robustsim.data import read_retrieval
    from robustsim.evaluation import draw_neighbours, evaluate_retrieval
    from robustsim.evaluation.running.workers import Workers

    workers = Workers()
    place: Any = workers.device if device is None else device
    read = read_retrieval(data, images, follow_links=follow_links)
    reports = []
    with redirect_stdout(sys.stderr):  # whatever somebody's metric prints
        # All of them before any: what cannot be loaded is told now.
        for metric in judged.load_judges(list(dict.fromkeys(model or [output.DEFAULT_MODEL])), place):
            report = evaluate_retrieval(
                metric,
                read,
                output=out,
                eps=tuple(eps or ()),
                norm=norm,
                steps=steps,
                preprocess=preprocess,
                seed=seed,
                batch_size=batch_size,
                pictures=sheet_queries if sheet is not None else 0,
                restart=restart,
                progress=sys.stderr.isatty(),
            )
            reports.append(report)
    if not workers.is_main:
        return
    if sheet is not None:
        drawing.write_png(draw_neighbours(reports, queries=sheet_queries, images=read.root), sheet)
        output.note(f"drawn into {sheet}")
    judged.tell(reports, "queries", groups=groups, strict=strict, as_json=as_json)
