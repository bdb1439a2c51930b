"""What a run tells: lines of JSON, TensorBoard, and a bar for people."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustsim.encoders.weights import whole_file
from robustsim.errors import MissingDependencyError
from robustsim.jsonl import parse_line

FILE = "log.jsonl"
SKIPPED = "skipped.txt"


class Log:
    """Where numbers go; processes other than the first have one that keeps silent.

    Args:
        output: the run's folder.
        step: where the run goes on; what an earlier go has told of later steps is forgotten.
        total: steps in all.
        batch_size: images in a step.
        unit: what they are called.
        active: whether this process tells anything.
        tensorboard: write event files beside the lines.
        progress: show a bar on standard error.
    """

    def __init__(
        self,
        output: Path,
        step: int,
        total: int,
        batch_size: int,
        unit: str,
        *,
        active: bool = True,
        tensorboard: bool = True,
        progress: bool = True,
    ) -> None:
        self._path, self._bar, self._board, self._file = output / FILE, None, None, None
        if not active:
            return
        _forget_after(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        if tensorboard:
            self._board = _board(output / "tensorboard", step)
        if progress:
            from tqdm import tqdm

            self._bar = tqdm(total=total * batch_size, initial=step * batch_size, unit=f" {unit}s", smoothing=0.05)
        self._batch_size = batch_size

    def advance(self) -> None:
        """A step is done."""
        if self._bar is not None:
            self._bar.update(self._batch_size)

    def show(self, values: Mapping[str, float]) -> None:
        """Numbers beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix({key: f"{value:.4g}" for key, value in values.items()}, refresh=False)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """A line, and a point in each of TensorBoard's curves."""
        if self._file is None:
            return
        entry = {"kind": kind, "step": step, **{key: _short(value) for key, value in values.items()}}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(f"{kind}/{key}", value, step)

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        if self._bar is not None:
            self._bar.write(text)

    def close(self) -> None:
        """Put everything away."""
        for part in (self._bar, self._board, self._file):
            if part is not None:
                part.close()


def read_log(output: "str | os.PathLike[str]") -> list[dict[str, Any]]:
    """The lines that a run has written; a last one that is not whole is left out."""
    path = Path(output) / FILE
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [entry for line in file if (entry := parse_line(line)) is not None]


def _forget_after(path: Path, step: int) -> None:
    """Remove the lines of steps that are going to be done again."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    kept = [entry for entry in read_log(path.parent) if entry["step"] <= step]
    with whole_file(path) as place:
        place.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            'TensorBoard is not installed: pip install "robustsim[training]", or leave it out with --no-tensorboard'
        ) from error
    writer: Any = SummaryWriter(os.fspath(folder), purge_step=step or None)
    return writer


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.7g}")
