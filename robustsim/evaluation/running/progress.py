"""How far a run has come, on standard error."""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm


class Bars:
    """One bar for what is attacked and one for the rest, as they take unlike times.

    The estimate comes from all that this process has done, not from the last piece alone.

    Args:
        pieces: (attacked, items, done already) of each piece of work that is this process's.
        share: how many processes there are.
    """

    def __init__(self, pieces: "Sequence[tuple[bool, int, bool]]", share: int) -> None:
        self._bars: dict[bool, Any] = {}
        for attacked, label in ((True, "attack"), (False, "clean")):
            sizes = [(size, done) for kind, size, done in pieces if kind is attacked]
            if sizes:
                self._bars[attacked] = tqdm(
                    total=sum(size for size, _ in sizes),
                    initial=sum(size for size, done in sizes if done),
                    desc=label if share == 1 else f"{label}, 1 of {share} processes",
                    unit="item",
                    smoothing=0,
                    position=len(self._bars),
                )

    def update(self, attacked: bool, count: int) -> None:
        """So many items are done once more."""
        self._bars[attacked].update(count)

    def close(self) -> None:
        """Leave them as they are."""
        for bar in self._bars.values():
            bar.close()
