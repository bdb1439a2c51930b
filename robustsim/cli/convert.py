"""`robustsim convert`: published checkpoint files into a folder that `--model` takes."""

from pathlib import Path
from typing import Annotated

import typer

from robustsim.cli import output


def convert(
    source: Annotated[
        Path, typer.Argument(help="A bare vision .pt, an MLP .pt, or a folder with adapters of PEFT (LoRA).")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write.")],
    base: Annotated[
        str, typer.Option("--base", help="The model it belongs to: a catalogue name, a Hub id or a folder.")
    ],
    name: Annotated[str | None, typer.Option(help="Name on the card; the folder's if not given.")] = None,
    method: Annotated[str | None, typer.Option(help="How it was trained against tampering, such as FARE.")] = None,
    threat: Annotated[str | None, typer.Option(help="What it withstands, such as 'linf 4/255'.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="Licence of these weights.")] = None,
) -> None:
    """Turn a published checkpoint into a folder that every command and `from_pretrained` reads."""
    from robustsim.encoders import convert as run

    card = run(source, out, base=base, name=name, method=method, threat=threat, license=licence)
    output.note(
        f"{out}: {card.name!r}, {card.architecture.name}, head {card.head.kind}, "
        f"preprocessing {card.preprocessing.mode} to {card.preprocessing.size}"
    )
