"""What the commands share: options, tables for people, JSON and CSV for machines."""

import csv
import gc
import io
import json
import math
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.encoders.card import DEFAULT_MODEL, EncoderCard
from robustsim.encoders.meaning import explain, without_calibration
from robustsim.errors import ImageError, OutputError, RobustSimError

if TYPE_CHECKING:
    from robustsim.cli.pictures import Picture
    from robustsim.metric import RobustSim

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A name of `robustsim models`, a Hub id (org/repo[@revision]) or a folder.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; the best there is if not given.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV, and nothing else, on standard output.")]
SquaredOption = Annotated[
    bool, typer.Option("--squared", help="Give 1 - similarity, DreamSim's distance, instead of its root.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 1 if any file could not be read.")]
FollowLinksOption = Annotated[bool, typer.Option("--follow-links", help="Walk folders that are linked, too.")]

__all__ = [
    "DEFAULT_MODEL",
    "CsvOption",
    "DeviceOption",
    "FollowLinksOption",
    "JsonOption",
    "ModelOption",
    "SquaredOption",
    "StrictOption",
    "check_format",
    "drop_output",
    "explain",
    "finish",
    "load_metric",
    "note",
    "print_csv",
    "print_json",
    "print_table",
    "report_bad",
    "settle",
    "tell_cropping",
    "tell_error",
    "tell_passed_over",
    "tell_unseen",
    "unseen",
    "without_calibration",
]


def note(text: str) -> None:
    """A line for people, on standard error."""
    sys.stderr.write(f"{text}\n")


def drop_output() -> None:
    """Standard output goes nowhere from here on: it cannot be written, and Python would try once more at its end."""
    if sys.stdout is None:  # it was closed from the beginning
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell_error(error: BaseException) -> None:
    """Say what ended a command whose exit code is a decision, and an error another one."""
    with suppress(OSError, AttributeError):  # standard error may be closed too
        if isinstance(error, RobustSimError):
            note(f"robustsim: {error}")
        elif isinstance(error, OSError):
            note(f"robustsim: cannot write the output: {error.strerror or error}")
        else:
            note("".join(traceback.format_exception(error)))
    if not isinstance(error, RobustSimError):
        drop_output()


def check_format(as_json: bool, as_csv: bool) -> None:
    """Refuse two machine formats at once."""
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")


def load_metric(model: str, device: str | None, *, text: bool = False) -> "RobustSim":
    """The metric a command works with; `text` for its text tower too."""
    from robustsim.metric import RobustSim

    metric = RobustSim.from_pretrained(model, device=device, text=text)
    settle(metric.card)
    return metric


def settle(card: EncoderCard) -> None:
    """What comes after the imports: garbage is collected from here on."""
    if card.architecture.library == "robustsim":
        # What was imported stays to the end, and searching it for garbage there costs a fifth of a short run. Only
        # where torch alone was imported: triton, which the other libraries bring, complains at the exit.
        gc.freeze()
    gc.enable()


def print_json(value: Any, *, line: bool = False) -> None:
    """One JSON document on standard output: the only door for it, as JSON has neither NaN nor infinity.

    Args:
        value: what it holds.
        line: in one line, of many.

    Raises:
        OutputError: a value is one of these; nothing is printed.
    """
    try:
        text = json.dumps(value, indent=None if line else 2, allow_nan=False)
    except ValueError as error:
        raise OutputError(
            f"no JSON can be printed, as it holds {_where(value)}, which is not finite: the weights or the data that "
            "it comes of are damaged"
        ) from error
    sys.stdout.write(text + "\n")


def _where(value: Any, place: str = "") -> str:
    """The first value that is not finite, and its place; "" if there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{place} = {value}"
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    return next(filter(None, (_where(part, f"{place}.{key}".lstrip(".")) for key, part in parts)), "")


def print_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """CSV with a header on standard output."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> None:
    """A table for people on standard output; columns named in `numbers` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # names are text, never markup
    # A pipe has no width: let no column be squeezed there.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def unseen(
    card: EncoderCard, paths: Iterable["str | Path"], opened: "Mapping[str, Picture] | None" = None
) -> list[dict[str, Any]]:
    """Which part of each picture the model's preprocessing leaves out: box and share; nothing where it sees all.

    Args:
        card: the model's.
        paths: names of the pictures.
        opened: what the names stand for, where that is no file.
    """
    if card.preprocessing.seen(3, 2) == (0, 0, 3, 2):
        return []
    from robustsim.images.decode import image_size

    parts = []
    for path in paths:
        picture = (opened or {}).get(str(path), path)
        held = io.BytesIO(picture) if isinstance(picture, bytes) else picture
        width, height = held.size if hasattr(held, "size") else image_size(held)
        left, top, right, bottom = card.preprocessing.seen(width, height)
        share = card.preprocessing.share_unseen(width, height)
        if share > 0:
            parts.append(
                {
                    "file": str(path),
                    "size": [width, height],
                    "looked_at": [round(value, 1) for value in (left, top, right, bottom)],
                    "share_not_looked_at": round(share, 4),
                }
            )
    return parts


def tell_unseen(parts: Sequence[dict[str, Any]], *, aside: bool) -> None:
    """The same for people, a line each; `aside` where standard output is for a machine."""
    for part in parts:
        (width, height), (left, top, right, bottom) = part["size"], part["looked_at"]
        (note if aside else typer.echo)(
            f"{part['file']}: {part['share_not_looked_at']:.0%} was not looked at; of {width} x {height} pixels the "
            f"model saw columns {left:g} to {right:g} and rows {top:g} to {bottom:g}."
        )


def tell_cropping(card: EncoderCard) -> None:
    """What a cropping model leaves out of any picture, where there are too many to go through one by one."""
    pre = card.preprocessing
    if pre.seen(3, 2) != (0, 0, 3, 2):
        side = "short side" if pre.mode == "shortest" else "picture"
        note(
            f"{card.name!r} resizes the {side} to {pre.resize or pre.size} and looks at the {pre.size} x {pre.size} "
            "pixels in the middle: what lies outside them is in no embedding"
        )


def tell_passed_over(kinds: Mapping[str, int]) -> None:
    """What a walk through a folder has left out; nothing where it left out nothing."""
    from robustsim.images import tell_passed_over as tell

    if kinds:
        note(tell(kinds))


def report_bad(error: ImageError) -> None:
    """A file that is skipped."""
    note(f"skipped: {error}")


def finish(bad: int, good: int, strict: bool) -> None:
    """Say how many files were skipped, and leave with the exit code for it."""
    if bad:
        note(f"{bad} {'file' if bad == 1 else 'files'} could not be read and {'was' if bad == 1 else 'were'} skipped")
    if (bad and strict) or not good:
        raise typer.Exit(1)
