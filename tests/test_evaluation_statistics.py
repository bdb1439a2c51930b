"""Intervals, average precision, correlations and paired tests, against what they are defined by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustsim.errors import InputError
from robustsim.evaluation import statistics

SHARES = st.lists(st.floats(0, 1, width=16), min_size=2, max_size=30)


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(0), 0
    for seed in range(200):
        scores = (generator.random(150) < 0.7).astype(float)
        found = statistics.mean_interval(scores, seed=seed)
        hits += found.low <= 0.7 <= found.high
    assert 180 <= hits <= 199  # 190 are expected


def test_the_interval_is_that_of_the_normal_approximation_where_that_holds():
    scores = np.random.default_rng(1).random(2000)
    found = statistics.mean_interval(scores)
    error = 1.96 * scores.std() / np.sqrt(2000)
    assert found.value == scores.mean()
    assert found.n == 2000
    assert found.low == pytest.approx(scores.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(scores.mean() + error, abs=0.1 * error)


def test_questions_of_one_cluster_are_drawn_together():
    scores = np.repeat((np.random.default_rng(2).random(50) < 0.5).astype(float), 20)
    alone, together = (
        statistics.mean_interval(scores, clusters=clusters) for clusters in (None, np.repeat(np.arange(50), 20))
    )
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert 3.5 < ratio < 5.5  # sqrt(20)


@pytest.mark.parametrize(("score", "expected"), [(0.0, (0, 0.0362)), (1.0, (0.9638, 1))])
def test_scores_that_are_all_alike_leave_room_for_doubt(score, expected):
    found = statistics.mean_interval(np.full(100, score))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-4)
    exact = stats.binomtest(int(100 * score), 100).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_the_mean_of_groups_counts_each_group_once():
    scores = np.array([1.0] * 90 + [0.0, 1.0] * 5)
    groups = np.array(["a"] * 90 + ["b"] * 10)
    found = statistics.mean_of_groups(scores, groups)
    assert found.value == pytest.approx(0.75)
    assert found.low < 0.65 < 0.85 < found.high  # the small group's doubt


def voc(distances, same):
    """Average precision as PASCAL VOC writes it: recalls and precisions with sentinels, monotone from behind."""
    order = np.argsort(distances)
    hits, misses = np.cumsum(same[order]), np.cumsum(1 - same[order])
    recall, precision = hits / same.sum(), hits / (hits + misses)
    recall, precision = np.concatenate(([0], recall, [1])), np.concatenate(([0], precision, [0]))
    for place in range(len(precision) - 1, 0, -1):
        precision[place - 1] = max(precision[place - 1], precision[place])
    steps = np.where(recall[1:] != recall[:-1])[0]
    return ((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum()


@given(SHARES, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_average_precision_is_that_of_pascal_voc(shares, seed):
    same = np.array(shares)
    distances = np.random.default_rng(seed).permutation(len(same)).astype(float)
    found = statistics.average_precision(distances, same)
    if same.sum() == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(voc(distances, same))


def test_average_precision_does_not_depend_on_the_order_within_a_tie():
    same = np.array([1.0, 0, 1, 0, 0, 1])
    distances = np.array([1.0, 1, 1, 2, 2, 2])
    orders = np.random.default_rng(0)
    found = {
        round(statistics.average_precision(distances[rows], same[rows]), 12)
        for rows in (orders.permutation(6) for _ in range(20))
    }
    assert len(found) == 1
    assert statistics.average_precision(np.zeros(6), same) == pytest.approx(0.5)  # a metric that knows nothing


@given(SHARES, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rank_correlations_are_those_of_scipy(shares, seed):
    quality = np.array(shares)
    distances = np.random.default_rng(seed).integers(0, 6, len(quality)).astype(float)
    if np.ptp(quality) == 0 or np.ptp(distances) == 0:
        assert np.isnan(statistics.spearman(distances, quality))
        assert np.isnan(statistics.kendall(distances, quality))
        return
    assert statistics.spearman(distances, quality) == pytest.approx(stats.spearmanr(-distances, quality).statistic)
    assert statistics.kendall(distances, quality) == pytest.approx(stats.kendalltau(-distances, quality).statistic)


def test_the_logistic_fit_makes_a_curve_straight():
    d = np.linspace(0, 1, 200)
    quality = 20 + 60 / (1 + np.exp(12 * (d - 0.5))) + np.random.default_rng(0).normal(0, 0.5, 200)
    assert abs(np.corrcoef(d, quality)[0, 1]) < 0.97
    assert statistics.pearson_after_logistic(d, quality) > 0.999
    # Whatever the scale of the distances, and whether they fall or rise.
    assert statistics.pearson_after_logistic(1e-4 * d + 5, quality) > 0.999
    # A metric that is wrong way round is not helped by it.
    assert statistics.pearson_after_logistic(1 - d, quality) < -0.9
    # Four parameters fit anything.
    assert np.isnan(statistics.pearson_after_logistic(d[:9], quality[:9]))


def test_a_statistic_by_groups():
    generator = np.random.default_rng(0)
    columns = (generator.random(120), generator.random(120))
    groups, clusters = np.repeat(["a", "b", "c"], 40), np.arange(120)
    found = statistics.by_group(statistics.spearman, columns, groups, clusters)
    parts = [statistics.spearman(*(column[groups == name] for column in columns)) for name in "abc"]
    assert [one["value"] for one in found["groups"].values()] == pytest.approx(parts)
    assert found["mean_of_groups"]["value"] == pytest.approx(np.mean(parts))
    assert found["value"] == pytest.approx(statistics.spearman(*columns))
    for one in (found, found["mean_of_groups"], *found["groups"].values()):
        assert one["low"] < one["value"] < one["high"]


def test_ratings_of_one_reference_are_drawn_together():
    generator = np.random.default_rng(1)
    shared = np.repeat(generator.random((2, 15)), 20, axis=1)
    columns = tuple(shared + 0.01 * generator.random(shared.shape))
    alone, together = (
        statistics.by_group(statistics.spearman, columns, np.full(300, ""), clusters)
        for clusters in (np.arange(300), np.repeat(np.arange(15), 20))
    )
    assert together["high"] - together["low"] > 3 * (alone["high"] - alone["low"])


def test_groups_that_share_clusters_are_drawn_together():
    """Nine kinds of distortion of thirty photographs that succeed or fail as one: the mean of the kinds is no surer."""
    per_photograph = (np.random.default_rng(2).random(30) < 0.4).astype(float)
    scores, clusters = np.tile(per_photograph, 9)[:-1], np.tile(np.arange(30), 9)[:-1]
    groups = np.repeat([f"kind{index}" for index in range(9)], 30)[:-1]
    whole = statistics.mean_interval(scores, clusters=clusters)
    mean = statistics.mean_of_groups(scores, groups, clusters=clusters)
    assert mean.high - mean.low == pytest.approx(whole.high - whole.low, rel=0.1)
    columns = (np.tile(np.arange(30.0), 9)[:-1], np.tile(np.random.default_rng(3).random(30), 9)[:-1])
    found = statistics.by_group(statistics.spearman, columns, groups, clusters)
    width = found["high"] - found["low"]
    assert found["mean_of_groups"]["high"] - found["mean_of_groups"]["low"] == pytest.approx(width, rel=0.1)


def test_a_handful_of_clusters_tells_no_interval():
    scores = np.array([0.9, 0.8, 0.7, 0.9])
    found = statistics.mean_interval(scores)
    assert np.isnan(found.low)
    assert found.to_dict() == {"value": pytest.approx(0.825), "low": None, "high": None, "n": 4}
    one = statistics.by_group(statistics.spearman, (scores, scores), np.full(4, ""), np.zeros(4))
    assert one["value"] == pytest.approx(-1)
    assert one["low"] is None


def test_equal_metrics_differ_by_chance_about_as_often_as_p_says():
    generator, small = np.random.default_rng(3), 0
    for seed in range(100):
        a, b = (generator.random((2, 80)) < 0.7).astype(float)
        small += statistics.paired_difference(a, b, seed=seed).p < 0.05
    assert small <= 12


def test_a_difference_is_found_and_told_with_its_sign():
    generator = np.random.default_rng(4)
    b = (generator.random(400) < 0.6).astype(float)
    a = np.maximum(b, generator.random(400) < 0.2)
    found = statistics.paired_difference(a, b)
    assert found.p < 0.001
    assert 0 < found.interval.low < found.interval.value == pytest.approx(a.mean() - b.mean())
    back = statistics.paired_difference(b, a)
    assert back.interval.value == -found.interval.value
    assert statistics.paired_difference(a, a).p == 1
    with pytest.raises(InputError, match="400 scores against 399"):
        statistics.paired_difference(a, b[1:])


def test_exchange_knows_gaps_from_the_last_digits_of_sums():
    assert statistics.exchange_p(np.full(20, 1e-17)) == 1
    generator = np.random.default_rng(26)
    clusters, shares = generator.integers(0, 12, 40), generator.integers(0, 6, 40) / 5
    a, b = (np.where(generator.random(40) < 0.5, shares, 1 - shares) for _ in range(2))
    by_item = np.bincount(clusters, weights=a - b)
    by_sums = np.bincount(clusters, weights=a) - np.bincount(clusters, weights=b)
    of_means = by_sums / (10**6 * len(a))
    noise = np.append(by_sums, [0.1 + 0.2 - 0.3])
    assert {statistics.exchange_p(gaps) for gaps in (by_sums, of_means, noise)} == {statistics.exchange_p(by_item)}


def test_the_permutation_test_is_the_exact_one():
    # Seven items, all in favour of a: of 2^7 ways to exchange, two are as extreme.
    found = statistics.paired_difference(np.ones(7), np.zeros(7))
    assert found.p == pytest.approx(2 / 2**7, abs=0.004)
