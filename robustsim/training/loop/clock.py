"""How long a run takes, over all its goes, and how fast it is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of a run, and steps in a second.

    Args:
        seconds: of earlier goes.
        step: where this one begins.
    """

    def __init__(self, seconds: float, step: int) -> None:
        now = time.monotonic()
        self._began, self._saved = now - seconds, now
        self._since, self._step, self._pause = now, step, 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        return time.monotonic() - self._began

    @property
    def since_save(self) -> float:
        """Since the last checkpoint of this go."""
        return time.monotonic() - self._saved

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens here is no step."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._pause += time.monotonic() - began

    def rate(self, done: int) -> float:
        """Steps in a second since this was last asked.

        Args:
            done: steps in all, by now.
        """
        now = time.monotonic()
        rate = (done - self._step) / max(now - self._since - self._pause, 1e-9)
        self._since, self._step, self._pause = now, done, 0.0
        return rate
