"""From a recipe and opened data to a task: the encoder loaded, the classes embedded, samples held out, all checked."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, Union

import torch

from robustsim.data import find_layout, read_dataset
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.load import load_encoder
from robustsim.errors import DataError, InputError, WeightsError
from robustsim.images.preprocessing import Preprocessing
from robustsim.training.loop.processes import Processes
from robustsim.training.recipes.recipe import FinetuneRecipe, TrainRecipe
from robustsim.training.sources.base import Source
from robustsim.training.sources.stream import Shuffle
from robustsim.training.tasks.adversarial import Adversarial
from robustsim.training.tasks.classes import find_classes
from robustsim.training.tasks.perceptual import Perceptual, split_triplets

PathLike: TypeAlias = Union[str, "os.PathLike[str]"]


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
    by_text = method.labels and prototypes is None
    base = _load(recipe.encoder, text=by_text and recipe.original is None)
    original = None if recipe.original is None else _load(recipe.original, text=by_text)
    classes = find_classes(original or base, source.classes, options, prototypes) if method.labels else None
    if method.tokens and classes is not None and "negative_prompt" in options and classes.negatives is None:
        raise DataError(f"{method.title} needs `negatives` beside `prototypes` in {os.fspath(prototypes or '')!r}")
    # Texts are embedded once, and the tower that does it is put away.
    for one in (base, original):
        if one is not None:
            one.text = None
    base.card = dataclasses.replace(base.card, text=False)
    if recipe.preprocessing is not None:
        pre = recipe.preprocessing.of(base.card.preprocessing.size)
        base.card = dataclasses.replace(base.card, preprocessing=pre)
    _check_sizes(base, recipe)
    if method.tokens and base.card.architecture.options.get("grid", 1) > 1:
        raise InputError(
            f"{method.title} compares places with classes, and {base.card.name!r} embeds {base.card.embedding_dim} "
            "values for several places at once: take an encoder without a grid"
        )
    everything = range(len(source))
    if judged is not None:
        kept: Sequence[int] = everything
        # Drawn from all of them: the first ones may be of one class.
        order = Shuffle(range(len(judged)), recipe.seed + 1)
        some = min(len(judged), recipe.validation.images or len(judged))
        held_out: tuple[Any, Sequence[int]] = (judged, [order(place) for place in range(some)])
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
    task = Adversarial(
        recipe,
        base,
        source,
        kept,
        held_out,
        original=original,
        classes=classes,
        device=processes.device,
        report=report,
    )
    return task, base.card


def read_judgements(
    path: PathLike, split: str | None, report: Callable[[str], None] = lambda message: None, *, usual: str = "train"
) -> Any:
    """Triplets; a row that cannot be read is reported and left out.

    Args:
        path: any 2AFC data set.
        split: which one to take, where there are some.
        report: is told of rows that cannot be read.
        usual: the split of NIGHTS where none is given.

    Raises:
        DataError, InputError: no 2AFC data, or none that can be read.
    """
    if split is None and find_layout(path) == "nights":
        split = usual
    options = {} if split is None else {"split": split}
    return read_dataset(path, "2afc", on_error=lambda error: report(str(error)), **options)


def prepare_perceptual(
    recipe: FinetuneRecipe,
    triplets: Any,
    judged: Any,
    *,
    processes: Processes,
    report: Callable[[str], None],
) -> tuple[Perceptual, Any, int]:
    """The task of a recipe on triplets, the card of what it starts from, and how many it trains on.

    Raises:
        InputError, DataError: what is needed is not there.
    """
    if processes.sharded:
        raise InputError("adapters are too small to be sharded: launch without FSDP")
    kept, held_out = split_triplets(list(triplets), 0 if judged is not None else recipe.validation.images, recipe.seed)
    if judged is not None:
        held_out = [triplet for triplet in judged if triplet.right_share != 0.5]
    base = load_encoder(recipe.encoder)
    card = base.card
    if recipe.preprocessing is not None:
        pre = Preprocessing(size=card.preprocessing.size, mode=recipe.preprocessing)
        base.card = dataclasses.replace(card, preprocessing=pre)
    task = Perceptual(recipe, base, kept, held_out, device=processes.device, report=report)
    return task, card, len(kept)


def _load(name: str, *, text: bool) -> Encoder:
    """An encoder, with its text tower where that is wanted and there is one."""
    if text:
        try:
            return load_encoder(name, text=True)
        except (InputError, WeightsError):  # what it wants instead, find_classes says
            pass
    return load_encoder(name)


def _check_sizes(encoder: Encoder, recipe: TrainRecipe) -> None:
    """Refuse image sizes that the architecture cannot take, before anything runs."""
    for stage in recipe.stages:
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, 3, stage.size, stage.size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(
                f"{encoder.card.name!r} takes no images of {stage.size} x {stage.size} (stages): {error}"
            ) from None
