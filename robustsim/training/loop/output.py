"""The folder of a run: taken by one run at a time, and by another recipe only where nothing is lost."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from robustsim.encoders.load import CONFIG, WEIGHTS
from robustsim.encoders.weights import whole_file
from robustsim.errors import OutputError
from robustsim.training.loop import log, state
from robustsim.training.loop.processes import Processes
from robustsim.training.recipes.files import Recipe, dump_recipe, load_recipe
from robustsim.training.recipes.recipe import TrainRecipe

RECIPE = "recipe.yaml"
README = "README.md"
_LOCK = ".lock"
_OURS = (log.FILE, log.SKIPPED, README, CONFIG, WEIGHTS)
# What may differ between two goes of one run: it does not change the weights.
_FREE = ("base", "checkpoints", "data", "description", "license", "name", "title", "validation.every")


@contextmanager
def held(output: Path, recipe: Recipe, data: str, processes: Processes, *, restart: bool) -> Iterator[None]:
    """The folder for this run alone.

    Args:
        output: the folder; made if it is not there.
        recipe: of the run.
        data: in words; a run does not go on with other data.
        processes: who shares the run.
        restart: forget what an earlier run has left there.

    Raises:
        OutputError: another process trains there; it holds another run, or something else; it cannot be written.
    """
    locks: list[Any] = []

    def take() -> None:
        locks.append(_lock(output))
        state.remove_unfinished(output, (RECIPE, *_OURS))
        _claim(output, recipe, data, restart)

    try:
        processes.on_main(take)
        yield
    finally:
        for lock in locks:
            lock.release()


def _lock(output: Path) -> Any:
    from filelock import FileLock, Timeout

    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / _LOCK, blocking=False)
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire()
    except Timeout:
        raise OutputError(
            f"another process trains into {os.fspath(output)!r}: wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write into {os.fspath(output)!r}: {error.strerror or error}") from error
    return lock


def _claim(output: Path, recipe: Recipe, data: str, restart: bool) -> None:
    """Write the resolved recipe, where the folder is free for it."""
    path, where = output / RECIPE, repr(os.fspath(output))
    there = [name for name in _OURS if (output / name).exists()]
    kept = state.find_checkpoints(output)
    if not path.exists():
        if there or kept:
            raise OutputError(
                f"{where} holds {(there or [state.FOLDER])[0]} and no {RECIPE}: it is no run's folder, choose another"
            )
    elif restart:
        _clear(output)
    elif kept or WEIGHTS in there:  # else nothing is lost
        before = path.read_text(encoding="utf-8")
        then, now = before.partition("\n")[0], _first_line(data)
        differing = _difference(load_recipe(path), recipe) or (f"data was {then!r}, is {now!r}" if then != now else "")
        if differing:
            raise OutputError(
                f"{where} holds a run that differs: {differing}. Choose another output folder, or begin anew with "
                "restart (--restart)"
            )
        if not kept:
            raise OutputError(
                f"{where} holds a result without the checkpoints that led to it, so there is nothing to go on from: "
                "choose another output folder, or begin anew with restart (--restart)"
            )
    with whole_file(path) as place:
        place.write_text(f"{_first_line(data)}\n{dump_recipe(recipe)}", encoding="utf-8")


def _first_line(data: str) -> str:
    return f"# data: {' '.join(data.split())}"


def _clear(output: Path) -> None:
    """Remove what an earlier run has left; nothing else."""
    state.remove_checkpoints(output)
    for name in _OURS:
        try:
            (output / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {os.fspath(output / name)!r}: {error.strerror or error}") from error
    with suppress(OSError):
        shutil.rmtree(output / log.BOARD)


def _difference(before: Recipe, now: Recipe) -> str:
    """The first value in which two recipes differ, among those that matter to the result."""
    a, b = _values(before), _values(now)
    for key in sorted({*a, *b}):
        free = any(key == name or key.startswith(f"{name}.") for name in _FREE)
        if not free and a.get(key) != b.get(key):
            return f"{key} was {a.get(key)!r}, is {b.get(key)!r}"
    return ""


def _values(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says, by key; of its method's options also those that it leaves as they are."""
    values = recipe.model_dump(mode="json")
    if isinstance(recipe, TrainRecipe):
        values["method"] = {**values["method"], **recipe.method.options}
    return _flat(values)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {key: value for name, inner in values.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}
