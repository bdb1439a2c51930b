"""What adds up between two lines of the log, over the steps and over the processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustsim.training.loop.processes import Processes


class Tally:
    """Sums of the numbers of each step since the last line.

    Args:
        processes: who shares the run.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._bad = torch.full((), -1, dtype=torch.int64, device=processes.device)

    def add(self, seen: Mapping[str, Tensor], step: int) -> None:
        """The numbers of a step, ()."""
        for name, value in seen.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        # On the device: to ask a GPU for a number is to wait for it.
        fine = torch.isfinite(torch.stack(list(seen.values()))).all()
        self._bad = torch.where((self._bad < 0) & ~fine, step, self._bad)

    @property
    def bad(self) -> int:
        """The first step of which a number was not finite; -1 for none."""
        return int(self._bad)

    @property
    def bad_names(self) -> list[str]:
        """Which numbers they were, as far as this process knows."""
        return [name for name, value in self._sums.items() if not bool(torch.isfinite(value))]

    def means(self) -> dict[str, float]:
        """Of all steps and processes since the last line; a new one begins."""
        means = {name: value / self._count for name, value in self._summed().items()}
        self._sums, self._count = {}, 0
        return means

    def notes(self) -> dict[str, Any]:
        """As plain data; `resume` reads it."""
        return {"count": self._count, "sums": self._summed()}

    def resume(self, notes: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        device = self._processes.device
        self._count = notes.get("count", 0)
        self._sums = {name: torch.tensor(value, device=device) for name, value in notes.get("sums", {}).items()}

    def _summed(self) -> dict[str, float]:
        totals = self._processes.sum([float(value) for value in self._sums.values()])
        return {name: value / self._processes.world for name, value in zip(self._sums, totals, strict=True)}


class Skipped:
    """What could not be read, each message once.

    Args:
        messages: in the order in which they came; the readers add to them.
        processes: who shares the run.
    """

    def __init__(self, messages: dict[str, None], processes: Processes) -> None:
        self._messages, self._processes = messages, processes
        self._shared = 0

    def share(self) -> list[str]:
        """Tell all processes what each has met; everything that any of them could not read so far."""
        for line in self._processes.gather(list(self._messages)[self._shared :]):
            self._messages[line] = None
        self._shared = len(self._messages)
        return list(self._messages)

    def resume(self, messages: list[str]) -> None:
        """Go on where a checkpoint was written."""
        self._messages.update(dict.fromkeys(messages))
