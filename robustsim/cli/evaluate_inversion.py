"""`robustsim evaluate inversion`: what the embeddings of models hold, judged by every model."""

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from robustsim.cli import judged, output


def inversion(
    *,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Photographs: any folder of images.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model that rebuilds, and judges: a name of `robustsim models`, a Hub id or a folder. May be "
            f"repeated; {output.DEFAULT_MODEL} if not given.",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FILE]",
            help="A metric that judges only: a model tells a similarity, a baseline (lpips-alex, ssim, ...) a "
            "distance. May be repeated.",
        ),
    ] = None,
    photographs: Annotated[int, typer.Option(min=1, help="So many, drawn at random; all if there are fewer.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each inversion.")] = 500,
    radius: Annotated[float, typer.Option(help="How far from grey a picture may be, in l2.")] = 100.0,
    follow_links: output.FollowLinksOption = False,
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the report and the pictures are written.")
    ] = Path("reports"),
    device: output.DeviceOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are judged together.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of draws, of the start and of resampling.")] = 0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever earlier runs have left, their pictures included.")
    ] = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """What does each model give back of photographs, from its embeddings alone? Judged by every model."""
    from robustsim.baselines import list_baselines
    from robustsim.evaluation import evaluate_inversion, report_table
    from robustsim.evaluation.running.workers import Workers

    names = list(dict.fromkeys(model or [output.DEFAULT_MODEL]))
    if baselines := [name for name in names if name.partition("=")[0] in list_baselines()]:
        raise typer.BadParameter(
            f"{baselines[0]} is a baseline, which can judge but not rebuild: name it with --judge", param_hint="--model"
        )
    workers = Workers()
    place: Any = workers.device if device is None else device
    tell: dict[str, Any] = {"tell": output.note} if os.environ.get("RANK", "0") == "0" else {}
    with redirect_stdout(sys.stderr):  # whatever somebody's metric prints
        judges = judged.load_judges(list(dict.fromkeys(judge or [])), place)
        report = evaluate_inversion(
            [output.load_metric(name, place) for name in names],
            data,
            judges=judges,
            output=out,
            photographs=photographs,
            steps=steps,
            radius=radius,
            seed=seed,
            batch_size=batch_size,
            follow_links=follow_links,
            restart=restart,
            progress=sys.stderr.isatty(),
            **tell,
        )
    if not workers.is_main:
        return
    if as_json:
        output.print_json({"report": str(report.path), **report.content})
    else:
        for one in report_table([report]):
            judged.show(one)
        typer.echo(f"{report.metric}: {report.path}")
    judged.tell_skipped([report], "photographs", strict)
