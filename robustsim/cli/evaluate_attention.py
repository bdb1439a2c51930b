"""`robustsim evaluate attention`: does the attention to a text find what the text names?"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from robustsim.cli import judged, output

Form = Literal["paper", "published"]


def attention(
    *,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Pictures: a folder for each class.")],
    masks: Annotated[
        Path,
        typer.Option(metavar="DIR", help="class/name.png for each picture, of its size: 0 where the object is not."),
    ],
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help="A CLIP model: a name, a Hub id or a folder. May be repeated."),
    ],
    form: Annotated[Form, typer.Option(help="The paper's formula, or that of its published code.")] = "paper",
    eps: Annotated[
        list[str] | None,
        typer.Option(metavar="RADIUS", help="Adversarial examples too, in linf: 1/255, 4/255, ...; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of PGD, which makes them.")] = 20,
    prompt: Annotated[str, typer.Option(help="What is looked for; {} is the class.")] = "This is a photo of a {}",
    against: Annotated[str, typer.Option(help="What is not.")] = "This is not a photo of a {}",
    out: judged.OutOption = Path("reports"),
    device: output.DeviceOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of attacks and resampling.")] = 0,
    restart: judged.RestartOption = False,
    groups: Annotated[bool, typer.Option("--groups", help="A column for each class, too.")] = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Does text-guided attention find the object? Soft IoU with masks, clean and under attack, of CLIP models."""
    from robustsim.evaluation import evaluate_attention

    # All of them before any: what cannot be loaded is told now.
    metrics = [output.load_metric(name, device, text=True) for name in dict.fromkeys(model)]
    reports = [
        evaluate_attention(
            metric,
            data,
            masks,
            output=out,
            eps=tuple(eps or ()),
            steps=steps,
            prompt=prompt,
            against=against,
            form=form,
            seed=seed,
            restart=restart,
            progress=sys.stderr.isatty(),
        )
        for metric in metrics
    ]
    judged.tell(reports, "pictures", groups=groups, strict=strict, as_json=as_json)
