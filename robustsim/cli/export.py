"""`robustsim export`: a model as one file that runs without this library."""

from pathlib import Path
from typing import Annotated

import typer

from robustsim.cli import output
from robustsim.encoders.export.files import ExportFormat


def export(
    model: Annotated[str, typer.Argument(help="A name of `robustsim models`, a Hub id or a folder.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    form: Annotated[
        ExportFormat, typer.Option("--format", help="onnx, or torch-export, a program that torch.export.load reads.")
    ] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Products of matrices in 8 bits; what it costs is told.")
    ] = False,
) -> None:
    """Write a model as ONNX or a program of torch.export: pixels in [0, 1] to unit embeddings, for any batch."""
    from robustsim.encoders import export_encoder, load_encoder

    if out.is_dir():
        raise typer.BadParameter(f"{str(out)!r} is a folder", param_hint="--output")
    said = export_encoder(load_encoder(model), out, form=form, int8=int8)
    size = said.card.preprocessing.size
    output.note(
        f"{out}: {said.card.name!r}, {out.stat().st_size / 1e6:.1f} MB, pixels (N, 3, {size}, {size}) in [0, 1] to "
        f"unit embeddings (N, {said.card.embedding_dim})"
    )
    if said.int8 is not None:
        output.note(
            f"8 bits moved the embeddings of {said.int8['pictures']:g} pictures of noise by up to "
            f"{said.int8['embedding_error']:g}, and distances between them by up to {said.int8['distance_error']:g}"
        )
