"""What a training would take, from a few real steps on a few images: nothing is written."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustsim.errors import InputError
from robustsim.training.loop.processes import Processes
from robustsim.training.recipes.files import Recipe, dump_recipe, load_recipe
from robustsim.training.recipes.recipe import FinetuneRecipe, TrainRecipe
from robustsim.training.sources.open import open_source, tell_left_out
from robustsim.training.tasks.prepare import prepare_adversarial, prepare_perceptual, read_judgements

# Images of a step that is measured: the smaller number tells what the memory needs whatever the batch.
_FEW, _MORE = 2, 8


@dataclass(frozen=True)
class Estimate:
    """What a run would be.

    Attributes:
        samples: images or triplets to train on.
        held_out: and to judge on.
        steps: updates.
        parameters: values that are trained.
        device: where.
        processes: how many share it.
        seconds: of training on this machine, without validation.
        memory: bytes at the peak, of the device or, on a CPU, of the process; None where it cannot be measured.
    """

    samples: int
    held_out: int
    steps: int
    parameters: int
    device: str
    processes: int
    seconds: float
    memory: int | None


def rehearse_train(
    recipe: str,
    data: "str | Sequence[str]",
    *,
    changes: Sequence[str] = (),
    validation: str | None = None,
    prototypes: Path | None = None,
    class_names: Path | None = None,
    split: str | None = None,
    follow_links: bool = False,
    cpu: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[str, Estimate]:
    """The resolved recipe as YAML, and what `train` with these arguments would take.

    Raises:
        RobustSimError: as for `robustsim.training.train`, before anything runs.
    """
    chosen = load_recipe(recipe, changes)
    if not isinstance(chosen, TrainRecipe):
        raise InputError(f"the recipe {chosen.name!r} is of kind {chosen.kind!r}: it goes with `finetune`")
    source = open_source(data, split=split, classes=class_names, follow_links=follow_links)
    judged = None if validation is None else open_source(validation, classes=class_names, follow_links=follow_links)
    processes = Processes(cpu=cpu)
    if processes.is_main:
        tell_left_out((source, judged), tell)
    task, _ = prepare_adversarial(
        chosen, source, judged, prototypes=prototypes, processes=processes, report=lambda message: None
    )
    return dump_recipe(chosen), measure(chosen, task, len(task.held_out[1]), processes)


def rehearse_finetune(
    recipe: str,
    data: str,
    *,
    changes: Sequence[str] = (),
    validation: str | None = None,
    split: str | None = None,
    cpu: bool = False,
) -> tuple[str, Estimate]:
    """The resolved recipe as YAML, and what `finetune` with these arguments would take.

    Raises:
        RobustSimError: as for `robustsim.training.finetune`, before anything runs.
    """
    chosen = load_recipe(recipe, changes)
    if not isinstance(chosen, FinetuneRecipe):
        raise InputError(f"the recipe {chosen.name!r} is of kind {chosen.kind!r}: it goes with `train`")
    triplets = read_judgements(data, split)
    judged = None if validation is None else read_judgements(validation, None, usual="val")
    processes = Processes(cpu=cpu)
    task, _, _ = prepare_perceptual(chosen, triplets, judged, processes=processes, report=lambda message: None)
    return dump_recipe(chosen), measure(chosen, task, len(task.held_out), processes)


def measure(recipe: Recipe, task: Any, held_out: int, processes: Processes) -> Estimate:
    """Measure steps of a task on few images, and scale them up.

    Args:
        recipe: the task's.
        task: such as `Adversarial`; its gradients are gone afterwards.
        held_out: how many samples are kept to judge on.
        processes: who would share the run.
    """
    part = recipe.batch_size // (processes.world * recipe.accumulate)
    few, more = min(_FEW, part), min(_MORE, part)
    trained = [one for one in task.module.parameters() if one.requires_grad]
    task.module.train()
    stages = _stages(recipe, task.total)
    _step(recipe, task, _batch(recipe, task, few, stages[0][0]), stages[0][0])  # what is done once only
    base = _peak(task.device)
    slope = 0.0
    seconds = 0.0
    for first, count in stages:
        # Read before: in a training that goes on meanwhile.
        batch = _batch(recipe, task, more, first)
        began = time.monotonic()
        _step(recipe, task, batch, first)
        took = (time.monotonic() - began) / more
        seconds += took * part * recipe.accumulate * count
        peak = _peak(task.device)
        if base is not None and peak is not None and more > few:
            slope = max(slope, (peak - base) / (more - few))
    copies = {"adamw": 2, "adam": 2, "sgd": 1 if recipe.optimizer.momentum else 0}[recipe.optimizer.name]
    copies += recipe.ema is not None
    kept = copies * sum(one.numel() * one.element_size() for one in trained)
    memory = None if base is None else int(base + slope * (part - few) + kept)
    for one in trained:
        one.grad = None
    return Estimate(
        samples=task.samples,
        held_out=held_out,
        steps=task.total,
        parameters=sum(one.numel() for one in trained),
        device=str(task.device),
        processes=processes.world,
        seconds=seconds,
        memory=memory,
    )


def _stages(recipe: Recipe, total: int) -> list[tuple[int, int]]:
    """The first step of each stretch of one image size, and how many steps that has."""
    starts = [0]
    if isinstance(recipe, TrainRecipe):
        starts += [step for stage in recipe.stages[1:] if 0 < (step := _first(recipe, stage.at, total)) < total]
    ends = [*starts[1:], total]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _first(recipe: TrainRecipe, at: float, total: int) -> int:
    """The first step of which the share `at` is over."""
    step = int(at * total)
    return step if step / total >= at else step + 1


def _batch(recipe: Recipe, task: Any, images: int, step: int) -> Any:
    """Some of a step's images."""
    first = step * recipe.batch_size
    return next(task.batches(iter([range(first, first + images)])))


def _step(recipe: Recipe, task: Any, batch: Any, step: int) -> None:
    """A step's work on few images."""
    precision = torch.autocast(task.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    with precision:
        terms = task.terms(task.module, task.module, batch, step)
        loss = torch.stack(list(terms.values())).sum()
    torch.autograd.backward(loss)
    if task.device.type == "cuda":
        torch.cuda.synchronize(task.device)


def _peak(device: torch.device) -> int | None:
    """The most memory that was in use so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or os.name != "posix":
        return None
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
