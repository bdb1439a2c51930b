"""Random noise, the weakest of all attacks: what it breaks needs no attacker."""

from dataclasses import dataclass

from robustsim.attacks.engine.base import IterativeAttack
from robustsim.attacks.engine.run import Run


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomNoise(IterativeAttack):
    """The best of some random points: uniform in the linf ball, on the l2 sphere, sparse in the l1 ball.

    Attributes:
        draws: points that are tried for each image.
    """

    draws: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._read_counts("draws")

    def search(self, run: Run) -> None:
        run.begin()
        for _ in range(self.draws):
            run.evaluate(run.region.random_start(run.generator))
            run.tick(self.draws)
