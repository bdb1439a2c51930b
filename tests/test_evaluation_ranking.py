"""The revisited benchmark's protocol, against a transcription of its code and cases worked out by hand."""

import numpy as np
import pytest

from robustsim.evaluation.ranking import precision_at, ranks_of, trapezoidal_precision


def published(ranks, positives, junk, kappas):
    """`compute_map` of the revisited Oxford and Paris for one query, step by step: (ap, precision at each kappa)."""
    positions = np.arange(len(ranks))[np.isin(ranks, positives)]
    passed = np.arange(len(ranks))[np.isin(ranks, junk)]
    k = ij = 0
    for ip in range(len(positions)):
        while ij < len(passed) and positions[ip] > passed[ij]:
            k += 1
            ij += 1
        positions[ip] -= k
    ap, step = 0.0, 1.0 / len(positives)
    for j, rank in enumerate(positions):
        precision_0 = 1.0 if rank == 0 else float(j) / rank
        precision_1 = float(j + 1) / (rank + 1)
        ap += (precision_0 + precision_1) * step / 2.0
    positions = positions + 1
    precisions = []
    for kappa in kappas:
        kq = min(max(positions), kappa)
        precisions.append((positions <= kq).sum() / kq)
    return ap, precisions


@pytest.mark.parametrize("seed", range(20))
def test_as_published(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(5, 60))
    distances = random.permutation(count) / 7
    chosen = random.permutation(count)[: int(random.integers(2, count))]
    split = int(random.integers(1, len(chosen)))
    positives, junk = chosen[:split], chosen[split:]
    ap, precisions = published(np.argsort(distances), positives, junk, (1, 5, 10))
    ranks = ranks_of(distances, positives.tolist(), junk.tolist())
    assert trapezoidal_precision(ranks, split) == pytest.approx(ap, abs=1e-12)
    assert [precision_at(ranks, k) for k in (1, 5, 10)] == pytest.approx(precisions, abs=1e-12)


def test_by_hand():
    # In order: junk, wrong, right, junk, right.
    distances = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    ranks = ranks_of(distances, [2, 4], [0, 3])
    assert ranks.tolist() == [1, 2]
    # Recall grows by a half each time: from 0 of 1 to 1 of 2, from 1 of 2 to 2 of 3.
    assert trapezoidal_precision(ranks, 2) == pytest.approx(((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert [precision_at(ranks, k) for k in (1, 2, 5)] == [0, 1 / 2, 2 / 3]  # of three, where the last one is


def test_a_perfect_ranking_and_the_worst():
    assert trapezoidal_precision(ranks_of(np.arange(9.0), [0, 1, 2]), 3) == 1
    assert trapezoidal_precision(ranks_of(np.arange(9.0)[::-1], [0]), 1) == pytest.approx(1 / 9 / 2)
    # Ten asked for and three there: precision is of those three.
    assert precision_at(ranks_of(np.arange(9.0), [0, 1, 2]), 10) == 1


def test_what_is_missing_from_the_database_is_not_found():
    assert trapezoidal_precision(ranks_of(np.arange(4.0), [0]), 2) == 0.5


def test_ties_are_no_use():
    """A metric that sees no difference has the worst figures, in whatever order the files are."""
    for place in range(5):
        assert ranks_of(np.zeros(5), [place]).tolist() == [4]
    assert ranks_of(np.zeros(5), [0, 3]).tolist() == [3, 4]
    assert ranks_of(np.array([0.0, 1, 1, 2]), [0, 2]).tolist() == [0, 2]
    assert ranks_of(np.zeros(5), [1], [0, 2, 3]).tolist() == [1]  # what is passed over does not count


def test_what_is_to_be_found_may_be_named_among_what_is_passed_over():
    assert ranks_of(np.arange(3.0), [1], [1]).tolist() == [1]
    assert ranks_of(np.arange(3.0), [1], [0, 0, 1]).tolist() == [0]
