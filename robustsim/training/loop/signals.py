"""SIGTERM and Ctrl-C: noted, so that a run can end where its state is whole."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):  # noqa: N818 - no error
    """A signal asked the run to end; its state is saved.

    Attributes:
        step: updates done.
        signal: its number.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on")
        self.step, self.signal = step, number


class Signals:
    """Notes SIGTERM and the first SIGINT while it is open; only the main thread hears of them.

    Signals that the process ignores stay ignored, as SIGINT is behind `nohup` and in the background of a script.

    Attributes:
        number: of the signal that has come, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.getsignal(number)
                if before is not None and before != signal.SIG_IGN:  # None: set by other means than Python's
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if number == signal.SIGINT:  # who presses it twice means it
            signal.signal(number, self._before[number])
