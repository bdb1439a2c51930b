"""The state of a run on the disk: whole checkpoints, and nothing that a loader would have to trust.

A checkpoint is one safetensors file: the trained weights, their average, and what the optimiser remembers of each of
them, with the step and the rest in the file's own header.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustsim.encoders.weights import whole_file
from robustsim.errors import CorruptFileError, OutputError

FOLDER = "checkpoints"
_NAME = re.compile(r"^step-(\d{9})\.safetensors$")
_DAMAGED = ".damaged"
# What safetensors calls a file until it is whole.
_UNFINISHED = re.compile(r"^\.tmp[A-Za-z0-9]{6}$")


@dataclass(frozen=True)
class Checkpoint:
    """What a run knows at the end of a step.

    Attributes:
        step: updates done.
        tensors: by name: `model/...`, `average/...`, `optimizer/<parameter>/<entry>`.
        notes: plain data beside them.
    """

    step: int
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, without it."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def write_checkpoint(output: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint whole or not at all, and remove all but the newest `keep`.

    Raises:
        OutputError: it cannot be written; older ones are still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = output / FOLDER / f"step-{checkpoint.step:09}.safetensors"
    header = {"step": str(checkpoint.step), "notes": json.dumps(checkpoint.notes)}
    with whole_file(path) as place:
        try:
            tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.tensors.items()}
            save_file(tensors, place, metadata=header)
        except SafetensorError as error:  # what an OSError becomes on its way through Rust
            raise OutputError(f"cannot write {os.fspath(path)!r}: {error}; older checkpoints are kept") from error
    for old in find_checkpoints(output)[:-keep]:
        with suppress(OSError):
            old.unlink()
    return path


def find_checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    folder = output / FOLDER
    return sorted(path for path in folder.iterdir() if _NAME.match(path.name)) if folder.is_dir() else []


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint, on the CPU.

    Raises:
        CorruptFileError: it is damaged.
        OutputError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            return Checkpoint(int(header["step"]), tensors, json.loads(header["notes"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{os.fspath(path)!r} is no whole checkpoint ({error})") from error
    except OSError as error:
        raise OutputError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from error


def set_aside(paths: Iterable[Path]) -> None:
    """Give damaged checkpoints another name, so that they are not taken for checkpoints any more."""
    for path in paths:
        with suppress(OSError):
            path.replace(path.with_name(path.name + _DAMAGED))


def remove_checkpoints(output: Path) -> None:
    """Remove all checkpoints of a run, and the damaged ones.

    Raises:
        OutputError: one cannot be removed.
    """
    folder = output / FOLDER
    try:
        for path in [*find_checkpoints(output), *folder.glob(f"step-*{_DAMAGED}")]:
            path.unlink()
    except OSError as error:
        raise OutputError(f"cannot remove {os.fspath(path)!r}: {error.strerror or error}") from error


def remove_unfinished(output: Path, names: Sequence[str]) -> None:
    """Remove what was being written when a run was killed; nobody else may be writing there.

    Args:
        output: the run's folder.
        names: of its files, beside the checkpoints.
    """
    found = [path for name in names for path in output.glob(f".{name}.*.part")]
    found += (output / FOLDER).glob(".step-*.part")
    found += [
        path for path in (*output.glob(".tmp*"), *(output / FOLDER).glob(".tmp*")) if _UNFINISHED.match(path.name)
    ]
    for path in found:
        with suppress(OSError):
            path.unlink()


def finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no value is NaN or infinite."""
    return all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())
