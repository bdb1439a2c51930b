"""`robustsim evaluate copies`: which edited and attacked copies of photographs does a metric find?"""

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from robustsim.cli import judged, output


def copies(
    *,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Photographs: any folder of images.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME[=FILE]",
            help="A name of `robustsim models`, a Hub id, a folder, a baseline (phash, dreamsim, lpips-alex, ...) or "
            "package.module:name. May be repeated.",
        ),
    ] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[=AMOUNT,...]",
            help="An edit, as jpeg or jpeg=50,20; may be repeated, also of one kind. Twelve if not given.",
        ),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Of false positives; may be repeated. 1e-4 and 1e-5 if not given."),
    ] = None,
    photographs: Annotated[int | None, typer.Option(min=1, help="So many, drawn at random; all if not given.")] = None,
    pairs: Annotated[
        int, typer.Option(min=1, help="Pairs of different photographs that a metric without embeddings compares.")
    ] = 100_000,
    same: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Copies in the folder, a CSV with file,same_as: they are no pair."),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(metavar="RADIUS", help="Attack the copies, too: 4/255, ...; may be repeated."),
    ] = None,
    norm: judged.NormOption = "linf",
    steps: Annotated[int, typer.Option(min=1, help="Steps of APGD.")] = 100,
    attacked: Annotated[
        int, typer.Option(min=1, help="Attack the copies of so many photographs, drawn at random.")
    ] = 100,
    preprocess: judged.PreprocessOption = "card",
    follow_links: output.FollowLinksOption = False,
    out: judged.OutOption = Path("reports"),
    device: output.DeviceOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per encoding and attack.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of draws, edits, attacks and resampling.")] = 0,
    restart: judged.RestartOption = False,
    groups: Annotated[bool, typer.Option("--groups", help="A column for each edit and amount, too.")] = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Which copies of photographs are found, at a rate of false positives? After edits, and under attack."""
    chosen = [_edit(one) for one in edit or ()]
    from robustsim.evaluation import evaluate_copies
    from robustsim.evaluation.copies import EDITS, RATES
    from robustsim.evaluation.running.workers import Workers

    edits: dict[str, tuple[float, ...]] = {}
    for kind, amounts in chosen:
        if not amounts and kind not in EDITS:
            raise typer.BadParameter(f"{kind!r} is none of {', '.join(EDITS)}", param_hint="--edit")
        edits[kind] = tuple(dict.fromkeys((*edits.get(kind, ()), *(amounts or EDITS[kind]))))
    workers = Workers()
    place: Any = workers.device if device is None else device
    tell: dict[str, Any] = {"tell": output.note} if os.environ.get("RANK", "0") == "0" else {}
    with redirect_stdout(sys.stderr):  # whatever somebody's metric prints
        # All of them before any: what cannot be loaded is told now.
        reports = [
            evaluate_copies(
                metric,
                data,
                output=out,
                edits=edits or EDITS,
                rates=tuple(dict.fromkeys(rate or RATES)),
                photographs=photographs,
                pairs=pairs,
                same=same,
                eps=tuple(eps or ()),
                norm=norm,
                steps=steps,
                attacked=attacked,
                preprocess=preprocess,
                seed=seed,
                batch_size=batch_size,
                follow_links=follow_links,
                restart=restart,
                progress=sys.stderr.isatty(),
                **(tell if number == 0 else {}),
            )
            for number, metric in enumerate(
                judged.load_judges(list(dict.fromkeys(model or [output.DEFAULT_MODEL])), place)
            )
        ]
    if not workers.is_main:
        return
    judged.tell(reports, "photographs", groups=groups, strict=strict, as_json=as_json)


def _edit(text: str) -> tuple[str, tuple[float, ...]]:
    """KIND or KIND=AMOUNT,..."""
    kind, equals, named = text.partition("=")
    try:
        amounts = tuple(float(amount) for amount in named.split(",") if amount)
    except ValueError:
        amounts = ()
    if equals and not amounts:
        raise typer.BadParameter(f"{text!r}: amounts are numbers with commas between them", param_hint="--edit")
    return kind, amounts
