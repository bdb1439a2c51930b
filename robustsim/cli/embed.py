"""`robustsim embed`: the embeddings of a folder's images into one file."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from robustsim.cli import output
from robustsim.cli.engine import EngineOption, load_scorer


def embed(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of images; folders in it count too.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write: .npz, .parquet or .safetensors.")
    ],
    model: output.ModelOption = output.DEFAULT_MODEL,
    device: output.DeviceOption = None,
    engine: EngineOption = None,
    decode: Annotated[
        Literal["exact", "fast"],
        typer.Option(
            help="How JPEG files become pixels: to the bit as the reference pipelines, or faster and near that."
        ),
    ] = "exact",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per encoding.")] = 32,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever an earlier run has left.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    follow_links: output.FollowLinksOption = False,
    strict: output.StrictOption = False,
) -> None:
    """Embed every image below a folder; an interrupted run is continued by the same command."""
    from robustsim.images import find_images
    from robustsim.search import embed_folder
    from robustsim.search.formats import FORMATS

    if out.suffix not in FORMATS:
        raise typer.BadParameter(f"{out.name!r} ends in none of {', '.join(FORMATS)}", param_hint="--output")
    total = sum(1 for _ in find_images(folder, follow_links=follow_links))
    metric = load_scorer(model, device, engine)
    metric.batch_size, metric.decode = batch_size, decode
    output.tell_cropping(metric.card)

    from tqdm import tqdm

    with tqdm(total=total, unit=" images", disable=None) as bar:
        report = embed_folder(
            metric,
            folder,
            out,
            restart=restart,
            overwrite=overwrite,
            follow_links=follow_links,
            progress=bar.update,
            on_error=lambda error: bar.write(f"skipped: {error}", file=sys.stderr),
        )
    resumed = f", {report.resumed} of them from an interrupted run" if report.resumed else ""
    output.tell_passed_over(report.passed_over)
    output.note(f"{report.embedded} embeddings of {metric.card.embedding_dim} values in {out}{resumed}")
    output.finish(report.failed, report.embedded, strict)
