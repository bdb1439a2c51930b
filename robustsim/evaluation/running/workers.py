"""The processes that share a run: one, or those that `accelerate launch` or `torchrun` has started."""

import os
from datetime import timedelta
from typing import Any

import torch

from robustsim.errors import InputError, MissingDependencyError


class Workers:
    """Which of the processes this is.

    Attributes:
        count: how many there are.
        number: this one's.
        device: where this one should work; None to choose freely.
    """

    def __init__(self) -> None:
        self.count, self.number, self.device = 1, 0, None
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise MissingDependencyError(
                    'several processes need accelerate: pip install "robustsim[evaluation]"'
                ) from error
            # They wait for each other at the end only, and one may have much more to do than another.
            self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))
            self.count, self.number = self._state.num_processes, self._state.process_index
            self.device = self._state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0

    def check(self, name: str, device: torch.device) -> None:
        """Refuse a metric that is elsewhere than this process should work.

        Raises:
            InputError: it is.
        """
        if self.device is not None and self.device.type == "cuda" and device != self.device:
            raise InputError(f"{name} is on {device}, and this process should work on {self.device}: load it there")

    def wait(self) -> None:
        """Until all are here."""
        if self._state is not None:
            self._state.wait_for_everyone()
