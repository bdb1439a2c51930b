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
    pairs_of: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="How many more are compared, so that smaller rates of false positives can be told: 14000 for 1e-7.",
        ),
    ] = 0,
    same: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A CSV with the columns file and same_as: copies of one photograph, which are no pair."
        ),
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
    from robustsim.encoders.card import list_models
    from robustsim.encoders.load import save_calibration

    folder = None if model in list_models() else Path(model).expanduser()
    target = _target(model, folder, out)
    in_place = folder is not None and _same(folder, target)
    metric = output.load_metric(model, device)
    metric.batch_size = batch_size
    if not in_place and metric.card.architecture.library == "open_clip":
        output.note(f"{model} is written without its text tower: images need none")

    def save(calibration: "Calibration") -> None:
        if in_place:
            save_calibration(target, calibration, metric.encoder)
        else:
            metric.encoder.card = dataclasses.replace(metric.card, calibration=calibration)
            metric.save_pretrained(target)

    from tqdm import tqdm

    from robustsim.evaluation.calibration import calibrate as measure

    with tqdm(total=None, unit=" photographs", disable=None) as bar:
        found = measure(
            metric,
            data,
            target.resolve().with_name(f"{target.resolve().name}.calibration.partial"),
            photographs=photographs,
            changed=changed,
            pairs_of=pairs_of,
            same=same,
            labels=labels,
            label_column=label_column,
            about=about,
            seed=seed,
            restart=restart,
            follow_links=follow_links,
            save=save,
            progress=bar.update,
            on_error=lambda error: bar.write(f"skipped: {error}", file=sys.stderr),
            tell=output.note,
        )
    calibration = found.calibration
    if as_json:
        output.print_json(
            {
                **dataclasses.asdict(calibration),
                "nearest_pairs": found.nearest,
                "nearest_different": found.nearest_different,
                "failed": found.failed,
            }
        )
    else:
        _show(calibration)
        output.note("the nearest pairs that counted as unrelated; label them (--labels) if they show one thing:")
        for a, b, distance in found.nearest:
            output.note(f"  {distance:.4f}  {a}  {b}")
        output.note("the nearest pairs that counted as different pictures; name copies of one photograph in --same:")
        for a, b, distance in found.nearest_different:
            output.note(f"  {distance:.4f}  {a}  {b}")
    resumed = f", {found.resumed} of them from an interrupted run" if found.resumed else ""
    related = f"those of one of {found.kinds:,} kinds are related" if found.kinds else "nothing says which are related"
    output.note(
        f"{os.fspath(target)}: measured on {calibration.photographs:,} photographs{resumed}, and {calibration.pairs:,} "
        f"pairs of unrelated ones ({related})"
    )
    if calibration.tail is not None:
        tail = calibration.tail
        output.note(
            f"{tail.pairs:,} pairs of {tail.pictures:,} different pictures: the smallest rate of false positives that "
            f"they can say is {tail.smallest_rate():g}"
        )
    output.finish(found.failed, calibration.photographs, strict)


def _target(model: str, folder: Path | None, out: Path | None) -> Path:
    """Where to write.

    Raises:
        BadParameter: it is not said, or somebody else's.
    """
    from robustsim.encoders.load import has_own_card

    own = folder is not None and has_own_card(folder)
    if out is None:
        if folder is not None and own:
            return folder
        hint = f", or ./{model} for the folder of that name" if folder is None and Path(model).is_dir() else ""
        raise typer.BadParameter(
            f"{model!r} is no folder with a card of robustsim's to write into: say where to write the model with "
            f"-o{hint}"
        )
    target = out.expanduser()
    if folder is not None and _same(folder, target) and own:
        return target
    if (target / "config.json").exists() and not has_own_card(target):
        raise typer.BadParameter(
            f"{os.fspath(target)!r} holds a config.json that is not robustsim's: choose another folder",
            param_hint="-o",
        )
    if target.exists() and not target.is_dir():
        raise typer.BadParameter(f"{os.fspath(target)!r} is a file: -o takes a folder", param_hint="-o")
    return target


def _same(folder: Path, target: Path) -> bool:
    return folder.is_dir() and folder.resolve() == target.resolve()


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
