"""`robustsim calibrate`: measure what a model's distances mean, and write it into its card."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output

if TYPE_CHECKING:
    from robustsim.encoders.calibration import Calibration

_SHOWN = (0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 1)


def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, whose card is written; or any other model, with -o.")
    ],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Photographs that the model was not trained on.")],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write the model there, with its new card.")
    ] = None,
    photographs: Annotated[int, typer.Option(min=20, help="How many, drawn at random.")] = 1000,
    changed: Annotated[
        int | None, typer.Option(min=20, help="How many of them are changed, too: most of the work; all if not given.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A CSV with the columns file and label: photographs of one label are related, and no pair. Without "
            "it, those of one folder are, where there are several.",
        ),
    ] = None,
    label_column: Annotated[str, typer.Option(metavar="NAME", help="The column of labels.")] = "label",
    about: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The photographs and their licence in words, for the card.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw, the noise and the bootstrap.")] = 0,
    device: output.DeviceOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per encoding.")] = 32,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever an earlier run has left.")] = False,
    follow_links: output.FollowLinksOption = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Measure what distances mean: unrelated photographs, and known changes. An interrupted run goes on."""
    from robustsim.encoders.load import has_own_card, save_calibration

    in_place = out is None
    target = Path(model).expanduser() if out is None else out
    if in_place and not has_own_card(target):
        raise typer.BadParameter(
            f"{model!r} is no folder with a card of robustsim's to write into: say where to write the model with -o"
        )
    metric = output.load_metric(model, device)
    metric.batch_size = batch_size

    from tqdm import tqdm

    from robustsim.evaluation.calibration import calibrate as measure

    with tqdm(total=None, unit=" photographs", disable=None) as bar:
        found = measure(
            metric,
            data,
            target.resolve().with_name(f"{target.resolve().name}.calibration.partial"),
            photographs=photographs,
            changed=changed,
            labels=labels,
            label_column=label_column,
            about=about,
            seed=seed,
            restart=restart,
            follow_links=follow_links,
            progress=bar.update,
            on_error=lambda error: bar.write(f"skipped: {error}", file=sys.stderr),
            tell=output.note,
        )
    calibration = found.calibration
    if in_place:
        save_calibration(target, calibration)
    else:
        metric.encoder.card = dataclasses.replace(metric.card, calibration=calibration)
        metric.save_pretrained(target)
    if as_json:
        output.print_json({**dataclasses.asdict(calibration), "nearest_pairs": found.nearest, "failed": found.failed})
    else:
        _show(calibration)
        output.note("the nearest pairs that counted as unrelated; label them (--labels) if they show one thing:")
        for a, b, distance in found.nearest:
            output.note(f"  {distance:.4f}  {a}  {b}")
    resumed = f", {found.resumed} of them from an interrupted run" if found.resumed else ""
    output.note(f"{os.fspath(target)}: measured on {calibration.photographs:,} photographs{resumed}")
    output.finish(found.failed, calibration.photographs, strict)


def _show(calibration: "Calibration") -> None:
    rows: list[tuple[Any, ...]] = []
    for share, distance, error in zip(calibration.shares, calibration.distances, calibration.errors, strict=True):
        if share in _SHOWN:
            words = "nearest" if share == 0 else "farthest" if share == 1 else f"{100 * share:g} % are nearer"
            rows.append((f"unrelated photographs: {words}", f"{distance:.4f}", f"{error:.4f}", ""))
    for change in calibration.known_changes:
        rows.append(
            (change.words, f"{change.median:.4f}", f"{change.error:.4f}", f"{change.low:.4f} to {change.high:.4f}")
        )
    output.print_table(("", "distance", "standard error", "of 80 % of photographs"), rows, numbers=(1, 2, 3))
