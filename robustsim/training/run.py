"""Runs from beginning to end: a recipe and data go in, a folder that ``RobustSim.from_pretrained`` reads comes out."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, Union

from robustsim import __version__
from robustsim.data import read_dataset
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.load import CONFIG, WEIGHTS, load_encoder, save_encoder
from robustsim.encoders.weights import whole_file
from robustsim.errors import DataError, InputError, OutputError
from robustsim.images.preprocessing import Preprocessing
from robustsim.training import state
from robustsim.training.adversarial import Adversarial
from robustsim.training.classes import find_classes
from robustsim.training.log import FILE as LOG
from robustsim.training.log import SKIPPED
from robustsim.training.loop import Loop, Processes, Task
from robustsim.training.perceptual import Perceptual, split_triplets
from robustsim.training.recipe import FinetuneRecipe, TrainRecipe
from robustsim.training.recipe_files import Recipe, dump_recipe, load_recipe
from robustsim.training.sources import Source, open_source
from robustsim.training.stream import Shuffle

PathLike: TypeAlias = Union[str, "os.PathLike[str]"]
RECIPE = "recipe.yaml"
README = "README.md"
_OURS = (LOG, SKIPPED, RECIPE, README, CONFIG, WEIGHTS)
# What may differ between two goes of one run: it does not change the result.
_FREE = ("checkpoints", "description", "validation.every")


def train(
    recipe: "TrainRecipe | PathLike",
    data: PathLike,
    output: PathLike,
    *,
    changes: Sequence[str] = (),
    validation: PathLike | None = None,
    prototypes: PathLike | None = None,
    class_names: PathLike | None = None,
    split: str | None = None,
    restart: bool = False,
    cpu: bool = False,
    tensorboard: bool = True,
    progress: bool = True,
) -> Path:
    """Fine-tune an encoder adversarially; the same call goes on with a run that was stopped.

    Under ``accelerate launch`` or ``torchrun`` all processes share the run.

    Args:
        recipe: a bundled recipe's name, a YAML file, or a recipe.
        data: images to train on: a folder, tar shards, or ``hf:NAME``; see :mod:`robustsim.training.sources`.
        output: the run's folder, and the result's.
        changes: ``key=value`` for recipes from files.
        validation: images to judge on meanwhile; without them some of ``data`` are held out.
        prototypes: a safetensors file with a row for each class, for encoders without a text tower.
        class_names: a file with the classes' names in the order of labels.
        split: of a Hugging Face data set.
        restart: begin anew, whatever an earlier run has left in the folder.
        cpu: work on the CPU even where there is a GPU.
        tensorboard: write event files.
        progress: show a bar.

    Returns:
        The output folder.

    Raises:
        RecipeError, InputError, DataError: what does not fit, before anything runs.
        OutputError: the folder holds another run, or cannot be written.
        TrainingError: the loss is not finite any more.
        Stopped: a signal; the state is saved.
    """
    chosen = _recipe(recipe, changes, TrainRecipe)
    source = open_source(data, split=split, classes=None if class_names is None else Path(class_names))
    judged = None if validation is None else open_source(validation)
    skipped: dict[str, None] = dict.fromkeys(source.problems)

    def make(processes: Processes) -> tuple[Task, EncoderMaker]:
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
                method=method.title if threat else None,
            )

        return task, finish

    return _run(
        chosen, make, Path(output), f"{source.name}, {len(source)} images", skipped, restart, cpu, tensorboard, progress
    )


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
        data: any 2AFC data set that :func:`robustsim.data.read_dataset` reads.
        output: the run's folder, and the result's.
        changes: as for :func:`train`.
        validation: triplets to judge on meanwhile; without them some of ``data`` are held out.
        split: of NIGHTS; ``train`` if not given, and ``val`` to judge on.
        restart: as for :func:`train`.
        cpu: as for :func:`train`.
        tensorboard: as for :func:`train`.
        progress: as for :func:`train`.

    Returns:
        The output folder.

    Raises:
        as for :func:`train`.
    """
    chosen = _recipe(recipe, changes, FinetuneRecipe)
    skipped: dict[str, None] = {}

    def read(path: PathLike, part: str | None) -> Any:
        options = {} if part is None else {"split": part}
        return read_dataset(path, "2afc", on_error=lambda error: skipped.setdefault(str(error)), **options)

    triplets = read(data, split)
    judged = None if validation is None else read(validation, None)

    def make(processes: Processes) -> tuple[Task, EncoderMaker]:
        if processes.sharded:
            raise InputError("adapters are too small to be sharded: launch without FSDP")
        kept, held_out = split_triplets(
            list(triplets), 0 if judged is not None else chosen.validation.images, chosen.seed
        )
        if judged is not None:
            held_out = [triplet for triplet in judged if triplet.right_share != 0.5]
        base = load_encoder(chosen.encoder)
        card = base.card
        if chosen.preprocessing is not None:
            pre = Preprocessing(size=card.preprocessing.size, mode=chosen.preprocessing)
            base.card = dataclasses.replace(card, preprocessing=pre)
        task = Perceptual(chosen, base, kept, held_out, device=processes.device, report=_reporter(skipped))
        added = chosen.data or f"{triplets.name} ({len(kept):,} triplets)"
        said = f"{card.data}; {added}" if card.data else added

        def finish(encoder: Encoder) -> Encoder:
            return _carded(encoder, card, chosen, task.total, output, data=said, threat=card.threat, method=card.method)

        return task, finish

    what = f"{triplets.name}, {len(triplets)} triplets"
    return _run(chosen, make, Path(output), what, skipped, restart, cpu, tensorboard, progress)


EncoderMaker: TypeAlias = Callable[[Encoder], Encoder]


def prepare_adversarial(
    recipe: TrainRecipe,
    source: Source,
    judged: Source | None,
    *,
    prototypes: PathLike | None,
    processes: Processes,
    report: Callable[[str], None],
) -> tuple[Adversarial, Any]:
    """The task of a recipe on opened data, and the card of what it starts from.

    Raises:
        InputError, DataError: what the method needs is not there.
    """
    method, options = recipe.method.method, recipe.method.options
    # Texts are embedded once, and the tower that does it is put away.
    by_text = method.labels and prototypes is None
    base = load_encoder(recipe.encoder, text=by_text and _speaks(recipe.encoder))
    classes = find_classes(base, source.classes, options, prototypes) if method.labels else None
    if method.tokens and classes is not None and "negative_prompt" in options and classes.negatives is None:
        raise DataError(f"{method.title} needs `negatives` beside `prototypes` in {os.fspath(prototypes or '')!r}")
    base.text = None
    base.card = dataclasses.replace(base.card, text=False)
    _check_sizes(base, recipe)
    everything = range(len(source))
    if judged is not None:
        kept: Sequence[int] = everything
        held_out: tuple[Any, Sequence[int]] = (judged, range(min(len(judged), recipe.validation.images or len(judged))))
    else:
        count = recipe.validation.images
        if count >= len(source):
            raise InputError(
                f"{count} images cannot be held out of {len(source)}: set validation.images lower (--set "
                "validation.images=0)"
            )
        order = Shuffle(everything, recipe.seed + 1)
        drawn = [order(place) for place in range(count)]
        out = set(drawn)
        kept = everything if not out else [index for index in everything if index not in out]
        held_out = (source, drawn)
    task = Adversarial(recipe, base, source, kept, held_out, classes=classes, device=processes.device, report=report)
    return task, base.card


def _speaks(name: str) -> bool:
    """Whether a model may have a text tower, as far as its name tells."""
    from robustsim.encoders.card import list_models, load_card

    return name not in list_models() or load_card(name).architecture.library == "open_clip"


def _check_sizes(encoder: Encoder, recipe: TrainRecipe) -> None:
    """Refuse image sizes that the architecture cannot take, before anything runs."""
    import torch

    for stage in recipe.stages:
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, 3, stage.size, stage.size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(
                f"{encoder.card.name!r} takes no images of {stage.size} x {stage.size} (stages): {error}"
            ) from None


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
    with _held(output, processes):
        if processes.is_main:
            if restart:
                _clear(output)
            _claim(output, recipe, data)
        processes.wait()
        task, finish = make(processes)
        loop = Loop(task, recipe, output, processes, skipped=skipped, tensorboard=tensorboard, progress=progress)
        loop.run()
        weights = loop.result()
        if processes.is_main:
            encoder = finish(task.encoder(weights))
            save_encoder(encoder, output)
            with whole_file(output / README) as place:
                place.write_text(encoder.card.to_readme(encoder.card.name), encoding="utf-8")
        processes.wait()
    return output


@contextmanager
def _held(output: Path, processes: Processes) -> Any:
    """The folder for this run alone."""
    if not processes.is_main:
        yield
        return
    from filelock import FileLock, Timeout

    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock", blocking=False)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"another process trains into {os.fspath(output)!r}: wait for it, or choose another"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write into {os.fspath(output)!r}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _clear(output: Path) -> None:
    """Remove what an earlier run has left; nothing else."""
    for name in _OURS:
        (output / name).unlink(missing_ok=True)
    for path in state.find_checkpoints(output):
        path.unlink()
    with suppress(OSError):
        shutil.rmtree(output / "tensorboard")


def _claim(output: Path, recipe: Recipe, data: str) -> None:
    """Write the resolved recipe, or hold it against that of the run which the folder holds.

    Raises:
        OutputError: they differ.
    """
    path = output / RECIPE
    text = f"# data: {data}\n{dump_recipe(recipe)}"
    if path.exists():
        before = path.read_text(encoding="utf-8")
        then, now = before.splitlines()[0], text.splitlines()[0]
        differing = _difference(load_recipe(path), recipe) or (f"data was {then!r}, is {now!r}" if then != now else "")
        if differing:
            raise OutputError(
                f"{os.fspath(output)!r} holds a run that differs: {differing}. Choose another output folder, or begin "
                "anew with restart (--restart)"
            )
    elif state.find_checkpoints(output):
        raise OutputError(f"{os.fspath(output)!r} holds checkpoints without their {RECIPE}: choose another folder")
    with whole_file(path) as place:
        place.write_text(text, encoding="utf-8")


def _difference(before: Recipe, now: Recipe) -> str:
    """The first value in which two recipes differ, among those that matter to the result."""
    a, b = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    for key in sorted({*a, *b}):
        free = any(key == name or key.startswith(f"{name}.") for name in (*_FREE, "base", "name"))
        if not free and a.get(key) != b.get(key):
            return f"{key} was {a.get(key)!r}, is {b.get(key)!r}"
    return ""


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {key: value for name, inner in values.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


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
        training={"recipe": recipe.name, "seed": recipe.seed, "steps": steps, "began_as": base.name},
    )
    return encoder
