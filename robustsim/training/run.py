"""Runs from beginning to end: a recipe and data go in, a folder that `RobustSim.from_pretrained` reads comes out."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, Union

import torch

from robustsim import __version__
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.load import save_encoder
from robustsim.encoders.weights import sha256, whole_file
from robustsim.errors import DataError, InputError
from robustsim.training.loop.loop import Loop, Task
from robustsim.training.loop.output import README, held
from robustsim.training.loop.processes import Processes
from robustsim.training.recipes.files import Recipe, load_recipe
from robustsim.training.recipes.recipe import FinetuneRecipe, TrainRecipe
from robustsim.training.sources.open import open_source, tell_left_out
from robustsim.training.tasks.prepare import prepare_adversarial, prepare_perceptual, read_judgements

PathLike: TypeAlias = Union[str, "os.PathLike[str]"]


def train(
    recipe: "TrainRecipe | PathLike",
    data: "PathLike | Sequence[PathLike]",
    output: PathLike,
    *,
    changes: Sequence[str] = (),
    validation: PathLike | None = None,
    prototypes: PathLike | None = None,
    class_names: PathLike | None = None,
    split: str | None = None,
    follow_links: bool = False,
    restart: bool = False,
    cpu: bool = False,
    tensorboard: bool = True,
    progress: bool = True,
    tell: Callable[[str], object] = lambda text: None,
) -> Path:
    """Fine-tune an encoder adversarially; the same call goes on with a run that was stopped.

    Under `accelerate launch` or `torchrun` all processes share the run.

    Args:
        recipe: a bundled recipe's name, a YAML file, or a recipe.
        data: images to train on: a folder, tar shards, or `hf:NAME`, or several of these; see
            `robustsim.training.sources.open`.
        output: the run's folder, and the result's.
        changes: `key=value` for recipes from files.
        validation: images to judge on meanwhile; without them some of `data` are held out.
        prototypes: a safetensors file with a row for each class, for encoders without a text tower.
        class_names: a file with the classes' names in the order of labels.
        split: of a Hugging Face data set.
        follow_links: walk linked folders too, where images lie in folders.
        restart: begin anew, whatever an earlier run has left in the folder.
        cpu: work on the CPU even where there is a GPU.
        tensorboard: write event files.
        progress: show a bar.
        tell: called, in the first process, with lines for people: which files of the folders are passed over.

    Returns:
        The output folder.

    Raises:
        RecipeError, InputError, DataError: what does not fit, before anything runs.
        OutputError: the folder holds another run, or something else, or cannot be written.
        CorruptFileError: no checkpoint of the run is whole.
        TrainingError: the loss is not finite any more.
        Stopped: a signal; the state is saved.
    """
    chosen = _recipe(recipe, changes, TrainRecipe)
    source = open_source(data, split=split, classes=class_names, follow_links=follow_links)
    judged = None if validation is None else open_source(validation, classes=class_names, follow_links=follow_links)
    if chosen.method.method.labels and judged is not None and judged.classes != source.classes:
        raise DataError(
            f"the images to judge on, {judged.name}, have {_named(judged.classes)}, and those to train on, "
            f"{source.name}, have {_named(source.classes)}: their labels would stand for something else"
        )
    skipped: dict[str, None] = dict.fromkeys([*source.problems, *(() if judged is None else judged.problems)])

    def make(processes: Processes) -> tuple[Task, EncoderMaker]:
        if processes.is_main:
            tell_left_out((source, judged), tell)
        task, base = prepare_adversarial(
            chosen, source, judged, prototypes=prototypes, processes=processes, report=_reporter(skipped)
        )
        method, said = chosen.method.method, chosen.data or f"{source.name} ({len(source):,} images)"
        threat = None if method.attack is None else _threat(chosen)

        def finish(encoder: Encoder) -> Encoder:
            return _carded(
                encoder,
                base,
                chosen,
                task.total,
                output,
                data=said,
                threat=threat,
                method=chosen.method.title if threat else None,
            )

        return task, finish

    what = f"{source.name}, {len(source)} images"
    if chosen.method.method.labels:
        what += f", {_named(source.classes)}{_fingerprint(prototypes)}"
    if judged is not None:
        what += f"; judged on {judged.name}, {len(judged)} images"
    return _run(chosen, make, Path(output), what, skipped, restart, cpu, tensorboard, progress)


def finetune(
    recipe: "FinetuneRecipe | PathLike",
    data: PathLike,
    output: PathLike,
    *,
    changes: Sequence[str] = (),
    validation: PathLike | None = None,
    split: str | None = None,
    restart: bool = False,
    cpu: bool = False,
    tensorboard: bool = True,
    progress: bool = True,
) -> Path:
    """Fine-tune an encoder on human judgements (2AFC triplets), by LoRA or an MLP, merged into the result.

    Args:
        recipe: a bundled recipe's name, a YAML file, or a recipe.
        data: any 2AFC data set that [`read_dataset`][robustsim.data.read_dataset] reads.
        output: the run's folder, and the result's.
        changes: as for [`train`][robustsim.training.train].
        validation: triplets to judge on meanwhile; without them some of `data` are held out.
        split: of NIGHTS; `train` if not given. `validation` is read with `val`.
        restart: as for [`train`][robustsim.training.train].
        cpu: as for [`train`][robustsim.training.train].
        tensorboard: as for [`train`][robustsim.training.train].
        progress: as for [`train`][robustsim.training.train].

    Returns:
        The output folder.

    Raises:
        RobustSimError: as for [`train`][robustsim.training.train].
    """
    chosen = _recipe(recipe, changes, FinetuneRecipe)
    skipped: dict[str, None] = {}

    triplets = read_judgements(data, split, report=_reporter(skipped))
    judged = None if validation is None else read_judgements(validation, None, _reporter(skipped), usual="val")

    def make(processes: Processes) -> tuple[Task, EncoderMaker]:
        task, card, count = prepare_perceptual(chosen, triplets, judged, processes=processes, report=_reporter(skipped))
        added = chosen.data or f"{triplets.name} ({count:,} triplets)"
        said = f"{card.data}; {added}" if card.data else added

        def finish(encoder: Encoder) -> Encoder:
            return _carded(encoder, card, chosen, task.total, output, data=said, threat=card.threat, method=card.method)

        return task, finish

    what = f"{triplets.name}, {len(triplets)} triplets" + ("" if split is None else f", split {split}")
    if judged is not None:
        what += f"; judged on {judged.name}, {len(judged)} triplets"
    return _run(chosen, make, Path(output), what, skipped, restart, cpu, tensorboard, progress)


EncoderMaker: TypeAlias = Callable[[Encoder], Encoder]


def _recipe(recipe: Any, changes: Sequence[str], kind: Any) -> Any:
    if isinstance(recipe, (str, os.PathLike)):
        recipe = load_recipe(recipe, changes)
    elif changes:
        raise InputError("changes go with a recipe's name or file; this one is an object: use recipe.model_copy")
    if not isinstance(recipe, kind):
        other = "finetune" if isinstance(recipe, FinetuneRecipe) else "train"
        raise InputError(f"the recipe {recipe.name!r} is of kind {recipe.kind!r}: it goes with `{other}`")
    return recipe


def _reporter(skipped: dict[str, None]) -> Callable[[str], None]:
    def report(message: str) -> None:
        skipped[message] = None

    return report


def _run(
    recipe: Recipe,
    make: Callable[[Processes], tuple[Task, EncoderMaker]],
    output: Path,
    data: str,
    skipped: dict[str, None],
    restart: bool,
    cpu: bool,
    tensorboard: bool,
    progress: bool,
) -> Path:
    processes = Processes(cpu=cpu)
    # Whatever the caller is differentiating, or not.
    with torch.inference_mode(False), torch.enable_grad(), held(output, recipe, data, processes, restart=restart):
        task, finish = make(processes)
        loop = Loop(task, recipe, output, processes, skipped=skipped, tensorboard=tensorboard, progress=progress)
        weights = loop.run()

        def write() -> None:
            encoder = finish(task.encoder(weights))
            save_encoder(encoder, output)
            with whole_file(output / README) as place:
                place.write_text(encoder.card.to_readme(encoder.card.name), encoding="utf-8")

        processes.on_main(write)
    return output


def _named(classes: Sequence[str] | None) -> str:
    """Classes in a word, which tells others from these."""
    if classes is None:
        return "no classes"
    return f"{len(classes)} classes {hashlib.sha256(repr(list(classes)).encode()).hexdigest()[:8]}"


def _fingerprint(prototypes: PathLike | None) -> str:
    if prototypes is None or not Path(prototypes).is_file():  # which is refused later, in other words
        return ""
    return f", prototypes {sha256(Path(prototypes))[:8]}"


def _threat(recipe: TrainRecipe) -> str:
    levels = recipe.attack.eps * 255
    near = round(levels * 2) / 2
    size = f"{near:g}/255" if recipe.attack.norm == "linf" and abs(levels - near) < 1e-6 else f"{recipe.attack.eps:g}"
    return f"{recipe.attack.norm} {size}"


def _carded(
    encoder: Encoder,
    base: Any,
    recipe: Recipe,
    steps: int,
    output: PathLike,
    *,
    data: str,
    threat: str | None,
    method: str | None,
) -> Encoder:
    """The result with its own card: what it was, what was done to it, on what, and under which licence."""
    encoder.card = dataclasses.replace(
        encoder.card,
        name=recipe.title or Path(output).resolve().name,
        source=None,
        weights_sha256=None,
        parameters=sum(one.numel() for one in encoder.parameters()),
        method=method,
        threat=threat,
        data=data,
        license=recipe.license or base.license,
        origin=f"{base.name}, fine-tuned with robustsim {__version__}",
        scores={},
        calibration=None,
        training={"recipe": recipe.name, "seed": recipe.seed, "steps": steps, "began_as": base.name},
    )
    return encoder
