"""`robustsim train`, `finetune` and `recipes`: make encoders robust, or nearer to people's judgement."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output

if TYPE_CHECKING:
    from robustsim.training.estimate import Estimate

RecipeArgument = Annotated[str, typer.Argument(help="A name of `robustsim recipes`, or a YAML file.")]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="The run's folder; the result is read from there by name.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the recipe: attack.eps=2/255, steps=1000. May be repeated."
    ),
]
SplitOption = Annotated[str | None, typer.Option(help="The split of the data, where they have some.")]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Begin anew; without it, the same command goes on with a run that stopped.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would run, and estimate time and memory; nothing is written.")
]
CpuOption = Annotated[bool, typer.Option("--cpu", help="Work on the CPU even where there is a GPU.")]
TensorboardOption = Annotated[bool, typer.Option("--tensorboard/--no-tensorboard", help="Write TensorBoard's files.")]


def train(
    recipe: RecipeArgument,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="PATH",
            help="Images: a folder, tar shards (folder, file, or a-{000..009}.tar), hf:NAME. Repeat for several.",
        ),
    ],
    out: OutputOption,
    changes: SetOption = None,
    validation: Annotated[
        str | None, typer.Option(metavar="PATH", help="Images to judge on; else some of the data are held out.")
    ] = None,
    prototypes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A safetensors file with a row for each class, where there is no text tower."
        ),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes in the order of labels, .json or .txt.")
    ] = None,
    split: SplitOption = None,
    follow_links: output.FollowLinksOption = False,
    dry_run: DryRunOption = False,
    restart: RestartOption = False,
    cpu: CpuOption = False,
    tensorboard: TensorboardOption = True,
) -> None:
    """Fine-tune an encoder adversarially, so that its distances hold when pixels are tampered with."""
    from robustsim.training import estimate, run

    gc.enable()
    options: dict[str, Any] = {
        "changes": changes or (),
        "validation": validation,
        "prototypes": prototypes,
        "class_names": class_names,
        "split": split,
        "follow_links": follow_links,
        "cpu": cpu,
        "tell": output.note,
    }
    if dry_run:
        _show(*estimate.rehearse_train(recipe, data, **options))
        return
    _finish(lambda: run.train(recipe, data, out, restart=restart, tensorboard=tensorboard, **options))


def finetune(
    recipe: RecipeArgument,
    data: Annotated[str, typer.Option("--data", metavar="PATH", help="Judgements (2AFC): a folder or a CSV.")],
    out: OutputOption,
    changes: SetOption = None,
    validation: Annotated[
        str | None, typer.Option(metavar="PATH", help="Judgements to measure on; else some of the data are held out.")
    ] = None,
    split: SplitOption = None,
    dry_run: DryRunOption = False,
    restart: RestartOption = False,
    cpu: CpuOption = False,
    tensorboard: TensorboardOption = True,
) -> None:
    """Fine-tune an encoder on human judgements, by LoRA or an MLP that end up in its weights."""
    from robustsim.training import estimate, run

    gc.enable()
    options: dict[str, Any] = {"changes": changes or (), "validation": validation, "split": split, "cpu": cpu}
    if dry_run:
        _show(*estimate.rehearse_finetune(recipe, data, **options))
        return
    _finish(lambda: run.finetune(recipe, data, out, restart=restart, tensorboard=tensorboard, **options))


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one as YAML, to be changed and trained by.")] = None,
    as_json: output.JsonOption = False,
) -> None:
    """List the recipes of train and finetune, or print one in full."""
    from robustsim.training.recipes.files import dump_recipe, list_recipes, load_recipe

    gc.enable()
    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            output.print_json(recipe.model_dump(mode="json", exclude_none=True))
        else:
            typer.echo(dump_recipe(recipe), nl=False)
        return
    found = [load_recipe(one) for one in list_recipes()]
    if as_json:
        output.print_json([{"name": one.name, "kind": one.kind, "description": one.description} for one in found])
        return
    commands = {"adversarial": "train", "2afc": "finetune"}
    output.print_table(("recipe", "command", ""), [(one.name, commands[one.kind], one.description) for one in found])


def _finish(job: Any) -> None:
    """Run to the end, or to a signal."""
    from robustsim.training import Stopped

    try:
        folder = job()
    except Stopped as stopped:
        output.note(str(stopped))
        raise typer.Exit(128 + stopped.signal) from None
    if folder is None:  # another process than the first one
        return
    typer.echo(f"the result is in {folder}: robustsim compare --model {folder} A B")


def _show(yaml: str, estimate: "Estimate") -> None:
    typer.echo(yaml)
    hours, minutes = divmod(round(estimate.seconds / 60), 60)
    memory = "not measured" if estimate.memory is None else f"{estimate.memory / 2**30:.1f} GiB"
    processes = "" if estimate.processes == 1 else f" x {estimate.processes}"
    rows = [
        ("samples", f"{estimate.samples:,} to train on, {estimate.held_out:,} to judge on"),
        ("trained", f"{estimate.parameters:,} values"),
        ("steps", f"{estimate.steps:,}"),
        ("device", f"{estimate.device}{processes}"),
        ("time", f"{hours} h {minutes:02} min without validation, by a few steps on this machine"),
        ("memory", f"{memory} at the peak"),
    ]
    output.print_table(("dry run", ""), rows)
