"""Questions about tensors whose answers are fetched from their device together."""

from collections.abc import Callable

import torch
from torch import Tensor


class Checks:
    """What is to be known of tensors before work is spent on them: asked one by one, and fetched in one wait."""

    def __init__(self) -> None:
        self._asked: list[tuple[Tensor, Callable[[list[float]], object]]] = []

    def ask(self, answers: Tensor, judge: Callable[[list[float]], object]) -> None:
        """Ask for values, (N,) float32 and outside of any transform, which `judge` gets when they are fetched."""
        self._asked.append((answers, judge))

    def settle(self) -> None:
        """Fetch what was asked since the last time, and have it judged in that order.

        Raises:
            InputError: whatever the first judge that finds fault says.
        """
        asked, self._asked = self._asked, []
        if not asked:
            return
        device = asked[-1][0].device
        values = torch.cat([answers.to(device) for answers, _ in asked]).tolist()
        for answers, judge in asked:
            judge(values[: len(answers)])
            values = values[len(answers) :]
