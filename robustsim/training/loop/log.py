"""What a run tells: lines of JSON, TensorBoard, and a bar for people."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from robustsim.encoders.weights import whole_file
from robustsim.errors import MissingDependencyError, OutputError, RobustSimError
from robustsim.jsonl import parse_line

FILE = "log.jsonl"
SKIPPED = "skipped.txt"
BOARD = "tensorboard"


class Log:
    """Where numbers go; processes other than the first have one that keeps silent.

    Attributes:
        validated: the last step with a validation that is kept from before, or 0.

    Args:
        output: the run's folder.
        step: where the run goes on; what an earlier go has told of later steps is forgotten.
        total: steps in all.
        batch_size: images in a step.
        unit: what they are called.
        active: whether this process tells anything.
        tensorboard: write event files beside the lines.
        progress: show a bar on standard error.

    Raises:
        OutputError: the folder cannot be written to.
        MissingDependencyError: TensorBoard is not installed.
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
        self._path, self._batch_size, self.validated = output / FILE, batch_size, 0
        self._bar: Any = None
        self._board: Any = None
        self._file: Any = None
        self._writer: Any = None
        if not active:
            return
        kept = _forget_after(self._path, step)
        self.validated = max((entry["step"] for entry in kept if entry["kind"] == "validation"), default=0)
        # Its file is begun with the first number: a run that is finished already has none to add. And curves that an
        # earlier go has drawn beyond this step are taken back.
        self._writer = partial(_writer(), os.fspath(output / BOARD), purge_step=step + 1) if tensorboard else None
        with _writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        if progress:
            from tqdm import tqdm

            self._bar = tqdm(total=total * batch_size, initial=step * batch_size, unit=f" {unit}s", smoothing=0.05)

    def advance(self) -> None:
        """A step is done."""
        if self._bar is not None:
            self._bar.update(self._batch_size)

    def show(self, values: Mapping[str, float]) -> None:
        """Numbers beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix({key: f"{value:.4g}" for key, value in values.items()}, refresh=False)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """A line, and a point in each of TensorBoard's curves.

        Raises:
            OutputError: it cannot be written.
        """
        if self._file is None:
            return
        self._line({"kind": kind, "step": step, **{key: _short(value) for key, value in values.items()}})
        if self._writer is not None:
            with _writing(self._path.parent):
                self._board = self._board or self._writer()
                for key, value in values.items():
                    self._board.add_scalar(f"{kind}/{key}", value, step)

    def note(self, step: int, text: str) -> None:
        """A line in words, which people see above the bar.

        Raises:
            OutputError: it cannot be written.
        """
        if self._file is not None:
            self._line({"kind": "note", "step": step, "text": text})
            self.say(text)

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Put everything away."""
        for part in (self._bar, self._file, self._board):
            # Lines are written out already; what a full disk keeps back had its error then.
            with suppress(OSError):
                if part is not None:
                    part.close()

    def _line(self, entry: Mapping[str, Any]) -> None:
        with _writing(self._path):
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, RobustSimError):
            raise
        raise OutputError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error


def read_log(output: "str | os.PathLike[str]") -> list[dict[str, Any]]:
    """The lines that a run has written; a last one that is not whole is left out."""
    path = Path(output) / FILE
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [entry for line in file if (entry := parse_line(line)) is not None]


def _forget_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines of steps that are going to be done again; those that are kept."""
    found = read_log(path.parent)
    kept = [entry for entry in found if entry["step"] <= step]
    text = "".join(json.dumps(entry) + "\n" for entry in kept)
    if path.exists() and text.encode() != path.read_bytes():
        with whole_file(path) as place:
            place.write_text(text, encoding="utf-8")
    return kept


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            'TensorBoard is not installed: pip install "robustsim[training]", or leave it out with --no-tensorboard'
        ) from error
    return SummaryWriter


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.7g}")
