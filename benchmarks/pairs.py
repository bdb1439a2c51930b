"""Ratios of paired runs, which a drifting clock and a busy neighbour hurt least."""

import statistics
import time
from collections.abc import Callable


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratio(numerator: Callable[[], object], denominator: Callable[[], object], runs: int) -> float:
    numerator(), denominator()
    pairs = []
    for index in range(runs):
        # Alternate who goes first, so that drift of the clock favours nobody.
        if index % 2:
            below, above = seconds(denominator), seconds(numerator)
        else:
            above, below = seconds(numerator), seconds(denominator)
        pairs.append(above / below)
    return statistics.median(pairs)
