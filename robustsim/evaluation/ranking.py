"""How well a ranking finds what it should: the protocol of the revisited Oxford and Paris (Radenovic et al. 2018)."""

from collections.abc import Sequence

import numpy as np

from robustsim.evaluation.statistics import Array

#: Of precision at k.
KAPPAS = (1, 5, 10)


def ranks_of(distances: Array, positives: Sequence[int], ignored: Sequence[int] = ()) -> Array:
    """How many pictures come before each that is to be found, those passed over aside: (P,) int64, ascending.

    Of pictures at one distance, those that are not to be found come first: a metric that sees no difference gains
    nothing by the order of the files.

    Args:
        distances: (N,) of the database to the query.
        positives: places of what is to be found, each once.
        ignored: places that are neither right nor wrong; one that is to be found counts as that.
    """
    found = np.zeros(len(distances), dtype=bool)
    found[list(positives)] = True
    wrong = ~found
    wrong[list(ignored)] = False
    near = np.sort(distances[found])
    # Each wrong picture precedes all that are as far as it is or farther.
    before = np.bincount(np.searchsorted(near, distances[wrong], side="left"), minlength=len(near) + 1)
    return np.cumsum(before)[: len(near)] + np.arange(len(near))


def trapezoidal_precision(ranks: Array, count: int) -> float:
    """Average precision, the area below precision over recall by trapezoids, as the revisited benchmark computes it.

    Args:
        ranks: (P,) ascending, from 0 on.
        count: how many pictures were to be found, P or more.
    """
    found = np.arange(len(ranks))
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    return float(np.sum(before + (found + 1) / (ranks + 1)) / (2 * count))


def precision_at(ranks: Array, k: int, count: int | None = None) -> float:
    """The share of the first k pictures that are to be found; of fewer, where the last such one comes sooner.

    Args:
        ranks: (P,) ascending, from 0 on, at least one unless `count` is more.
        k: how many.
        count: how many pictures were to be found, P or more; P if not given. What is missing comes after all others.
    """
    depth = min(int(ranks[-1]) + 1, k) if count is None or count == len(ranks) else k
    return float((ranks < depth).sum() / depth)
