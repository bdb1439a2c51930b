"""A rate of false positives as a distance: bounds, counts of pairs by blocks, and thresholds of lines."""

import dataclasses
import json
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from robustsim.encoders import EncoderCard, Tail, load_card
from robustsim.encoders.binomial import upper_bound
from robustsim.encoders.pairs import NearPairs, effect, make_tail, near_pairs
from robustsim.errors import CardError, EncodingError, InputError, SearchError
from robustsim.search.rates import (
    NAME,
    keep_tails,
    known_tails,
    measure_rows,
    phash_tail,
    read_tails,
    thresholds_for,
)

KNOWN = Tail(
    data="somebody's photographs",
    pictures=5000,
    pairs=12_000_000,
    distances=(0.1, 0.2, 0.3, 0.4, 0.5),
    counts=(0, 3, 40, 900, 30_000),
    effects=(1.0, 1.0, 1.5, 6.0, 30.0),
)


@given(
    st.integers(1, 10**7).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))),
    st.sampled_from([0.5, 0.9, 0.95, 0.999]),
)
def test_the_bound_is_clopper_and_pearsons(seen, confidence):
    count, trials = seen
    expected = beta.ppf(confidence, count + 1, trials - count) if count < trials else 1.0
    bound = upper_bound(count, trials, confidence)
    assert bound == pytest.approx(expected, rel=1e-7)
    assert bound >= expected * (1 - 1e-9)


@given(st.integers(1, 80).flatmap(lambda trials: st.tuples(st.integers(0, trials - 1), st.just(trials))))
def test_the_bound_is_never_below_the_exact_one(seen):
    """At the bound, so few events or fewer have a probability of at most 5 %, in whole numbers."""
    count, trials = seen
    share = Fraction(upper_bound(count, trials))
    terms = (math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(count + 1))
    assert Fraction(1, 20) * Fraction(99_999, 100_000) <= sum(terms) <= Fraction(1, 20)


@pytest.mark.parametrize("trials", [10**8, 10**10])
@pytest.mark.parametrize("count", [0, 1, 20, 1000, 10**6])
def test_the_bound_of_rare_events_is_that_of_poissons(trials, count):
    """scipy's own beta distribution is off by some per cent there; that of Poisson's bound is exact, and larger."""
    from scipy.special import gammaincinv

    poisson = gammaincinv(count + 1, 0.95) / trials
    assert poisson * (1 - 2 * (count + 10) / trials - 1e-8) <= upper_bound(count, trials) <= poisson * (1 + 1e-8)


@given(st.integers(1, 10**6), st.data())
def test_the_bound_grows_with_the_count_and_falls_with_the_trials(trials, data):
    count = data.draw(st.integers(0, trials - 1))
    assert upper_bound(count, trials) < upper_bound(count + 1, trials)
    assert upper_bound(count, trials) > upper_bound(count, trials + 1 + trials // 10)
    assert upper_bound(count, trials, 0.99) > upper_bound(count, trials) > count / trials


@pytest.mark.parametrize(
    ("count", "trials", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 1.0), (1, 5, 0.4)]
)
def test_what_has_no_bound(count, trials, confidence):
    with pytest.raises(InputError):
        upper_bound(count, trials, confidence)


def test_a_threshold_and_its_bound():
    assert KNOWN.threshold(1e-6) == 0.2
    assert KNOWN.rate_bound(0.2) == pytest.approx(upper_bound(3, 12_000_000))
    assert KNOWN.rate_bound(0.15) == KNOWN.rate_bound(0.2) > KNOWN.rate_bound(0.1)
    assert KNOWN.rate_bound(0.51) == 1
    assert KNOWN.threshold(0.5) == 0.5  # nothing is known beyond it
    # Pairs that depend on each other count as fewer.
    assert KNOWN.rate_bound(0.4) == pytest.approx(upper_bound(150, 2_000_000))
    assert KNOWN.rate_bound(0.4) > upper_bound(900, 12_000_000)
    assert KNOWN.threshold(1e-6, confidence=0.9999) == 0.1
    for distance in (-0.1, math.nan):
        with pytest.raises(InputError, match="a distance is"):
            KNOWN.rate_bound(distance)


def test_a_rate_that_so_few_pairs_cannot_say():
    assert KNOWN.smallest_rate() == 2.5e-7  # some 3 / 12,000,000
    assert KNOWN.threshold(KNOWN.smallest_rate()) == 0.1
    with pytest.raises(
        InputError,
        match=r"12,000,000 pairs of different pictures \(somebody's photographs\) cannot say a rate of 1e-07: the "
        r"smallest that they can is 2.5e-07",
    ):
        KNOWN.threshold(1e-7)
    for rate in (0, 1, -1e-6, math.nan):
        with pytest.raises(InputError, match="lies between 0 and 1"):
            KNOWN.threshold(rate)


@given(st.floats(2.6e-7, 0.9), st.floats(2.6e-7, 0.9))
def test_a_threshold_is_never_above_its_rate(first, second):
    low, high = sorted((first, second))
    assert KNOWN.threshold(low) <= KNOWN.threshold(high)
    assert KNOWN.rate_bound(KNOWN.threshold(low)) <= low


def test_a_bound_never_falls_with_the_distance():
    odd = dataclasses.replace(KNOWN, counts=(0, 900, 900, 900, 30_000), effects=(1.0, 30.0, 1.0, 1.0, 1.0))
    bounds = [odd.rate_bound(distance) for distance in odd.distances]
    assert bounds == sorted(bounds)
    assert odd.threshold(1.1 * upper_bound(900, 12_000_000)) == 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": (0, 3, 40, 900)},
        {"distances": (), "counts": (), "effects": ()},
        {"distances": (0.1, 0.2, 0.2, 0.4, 0.5)},
        {"distances": (-0.1, 0.2, 0.3, 0.4, 0.5)},
        {"distances": (0.1, 0.2, 0.3, 0.4, math.inf)},
        {"counts": (0, 40, 3, 900, 30_000)},
        {"counts": (-1, 3, 40, 900, 30_000)},
        {"pairs": 29_999},
        {"pictures": 1},
        {"effects": (0.9, 1, 1, 1, 1)},
        {"comparisons": 0},
        {"effects": (1, 1, 1, 1, math.nan)},
    ],
)
def test_a_tail_that_contradicts_itself(wrong):
    with pytest.raises(CardError, match="tail"):
        dataclasses.replace(KNOWN, **wrong)


def test_a_tail_as_json():
    assert Tail.from_json(KNOWN.to_json()) == KNOWN
    for text in ("{", "[]", "{}", '"text"', json.dumps({**dataclasses.asdict(KNOWN), "more": 1})):
        with pytest.raises(CardError):
            Tail.from_json(text)


def test_a_card_keeps_it():
    card = load_card("lite")
    assert EncoderCard.from_json(card.to_json()) == card
    assert card.calibration.tail.pairs > 1e7
    data = json.loads(card.to_json())
    for before in ({}, {"tail": None}):  # cards of before
        data["calibration"] = {key: value for key, value in data["calibration"].items() if key != "tail"} | before
        assert EncoderCard.from_json(json.dumps(data)).calibration.tail is None
    data["calibration"]["tail"] = {**dataclasses.asdict(KNOWN), "counts": ["many"] * 5}
    with pytest.raises(CardError, match="counts cannot be"):
        EncoderCard.from_json(json.dumps(data))


def test_what_ships_has_tails():
    tails = known_tails({name: load_card(name) for name in ("lite", "lite-clean", "clip-vit-b-32")})
    assert set(tails) == {"lite", "lite-clean", "phash"}
    assert tails["phash"] == phash_tail()
    for tail in tails.values():
        assert "CC BY" in tail.data
        assert tail.pairs > 1e7
        assert tail.threshold(1e-6) < tail.threshold(1e-5) < tail.threshold(1e-4) < 0.9


def made(count=60, dim=8, seed=0):
    """Rows in clumps, so that some are near each other, and what each is a picture of."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(1, count // 5), dim))
    rows = centres[generator.integers(0, len(centres), count)] + 0.2 * generator.normal(size=(count, dim))
    rows[: count // 10] = rows[count // 2 : count // 2 + count // 10]  # and some the same
    return rows.astype(np.float32), generator.integers(0, max(2, count // 2), count)


def brute(rows, pictures):
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    pairs = [
        (float(np.linalg.norm(unit[i] - unit[j]) / math.sqrt(2)), i, j)
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
        if pictures[i] != pictures[j]
    ]
    return sorted(pairs)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(1, 23), st.integers(1, 400), st.integers(0, 1000))
def test_counted_by_blocks_as_one_by_one(count, block, kept, seed):
    rows, pictures = made(count, seed=seed)
    pictures[0] = pictures.max() + 1
    expected = brute(rows, pictures)
    asked = []

    def read(places):
        asked.append(len(places))
        return rows[places]

    compared = []
    found = near_pairs(read, pictures, kept=kept, block=block, progress=compared.append)
    assert max(asked) <= block
    assert (found.pairs, sum(compared)) == (len(expected), count * (count - 1) // 2)
    distances = [pair[0] for pair in expected]
    assert found.distances == pytest.approx(distances[: len(found.distances)], abs=1e-6)
    assert len(found.distances) == sum(distance < found.below for distance in found.distances)
    # Nothing nearer than `below` is missing, and no pair is twice.
    assert {(i, j) for d, i, j in expected if d < found.below - 1e-6} <= set(
        zip(found.left.tolist(), found.right.tolist(), strict=True)
    )
    assert len(set(zip(found.left.tolist(), found.right.tolist(), strict=True))) == len(found.left)
    if found.below == 0:  # more are equal than were kept
        with pytest.raises(InputError, match="are equal"):
            make_tail(found, "made up")
        return
    tail = make_tail(found, "made up")
    assert list(tail.distances) == [round(distance, 4) for distance in tail.distances]
    for distance, counted in zip(tail.distances, tail.counts, strict=True):  # no pair is left out, whatever rounds
        assert sum(d <= distance for d in distances) <= counted <= sum(d <= distance + 1e-6 for d in distances)


def test_rows_of_one_picture_are_no_pair():
    rows, _ = made()
    alone = near_pairs(lambda places: rows[places], np.arange(60))
    two = near_pairs(lambda places: rows[places], [f"name {number // 2}" for number in range(60)])
    assert (alone.pairs, two.pairs) == (60 * 59 // 2, 60 * 59 // 2 - 30)
    assert not any(a // 2 == b // 2 for a, b in zip(two.left, two.right, strict=True))
    assert make_tail(two, "").pictures == 30
    with pytest.raises(InputError, match="60 rows, and all are of one picture"):
        near_pairs(lambda places: rows[places], [7] * 60)


def test_rows_that_are_none():
    rows = np.zeros((3, 4), np.float32)
    with pytest.raises(EncodingError, match="nothing but zeros"):
        near_pairs(lambda places: rows[places], range(3))
    with pytest.raises(InputError, match="are equal"):
        make_tail(near_pairs(lambda places: np.ones((len(places), 4)), range(20), kept=10), "")


def test_hashes_lie_on_few_distances():
    bits = np.random.default_rng(0).integers(0, 2, (40, 32)).repeat(8, axis=1) * 2 - 1
    found = near_pairs(lambda places: bits[places].astype(np.int8), range(40), kept=50)
    assert found.distances**2 * 128 == pytest.approx(np.round(found.distances**2 * 128), abs=1e-6)
    tail = make_tail(found, "")
    for distance, count in zip(tail.distances, tail.counts, strict=True):
        if distance < found.below:
            assert count == (found.distances <= distance).sum()


def test_the_effect_is_the_variance_of_counts():
    """Of pictures drawn anew: hubs, which are near many, make counts vary more than those of independent pairs."""
    generator = np.random.default_rng(1)

    def draw():
        hub = generator.random(150) < 0.1
        rows = generator.normal(size=(150, 6))
        rows[hub] = rows[hub] * 0.6 + np.array([3, 0, 0, 0, 0, 0])
        found = near_pairs(lambda places: rows[places], range(150))
        return found, int((found.distances <= 0.2).sum())

    drawn = [draw() for _ in range(250)]
    counts = [count for _, count in drawn]
    told = np.mean([effect(found, count) for found, count in drawn if count])
    assert told == pytest.approx(np.var(counts) / np.mean(counts), rel=0.25)
    assert told > 1.5
    apart = generator.normal(size=(200, 64))
    found = near_pairs(lambda places: apart[places], range(200))
    assert effect(found, 100) < 2


def test_the_effect_counts_rows_of_two_pictures_once():
    """Ten pairs of pictures, four pairs of rows each, which come and go together."""
    rows = np.arange(40)
    found = NearPairs(
        4 * (rows // 4) + rows % 2,
        4 * (rows // 4) + 2 + rows // 2 % 2,
        np.full(40, 0.1),
        0.2,
        10**6,
        np.arange(2000) // 2,
    )
    assert effect(found, 40) == pytest.approx(4, rel=0.05)


def test_each_line_gets_its_part_of_the_rate():
    other = dataclasses.replace(KNOWN, data="others", distances=(0.2, 0.3, 0.4, 0.5, 0.6))
    tails = {"lite": KNOWN, "phash": other}
    alone = thresholds_for(["lite"], 1e-6, tails)
    assert (alone["lite"].distance, alone["lite"].pairs, alone["lite"].data) == (0.2, 12_000_000, KNOWN.data)
    both = thresholds_for(["lite", "phash"], 1e-6, tails)
    assert {line: found.distance for line, found in both.items()} == {"lite": 0.1, "phash": 0.2}
    assert sum(found.rate_bound for found in both.values()) <= 1e-6
    assert thresholds_for(["lite"], 4e-6, tails, comparisons=4)["lite"].distance == 0.2
    views = {"lite": dataclasses.replace(KNOWN, comparisons=4)}  # as they were measured: nothing to share
    assert thresholds_for(["lite"], 1e-6, views, comparisons=4)["lite"].distance == 0.2
    assert thresholds_for(["lite"], 2e-6, views, comparisons=5) == thresholds_for(["lite"], 1e-6, views)
    with pytest.raises(InputError, match=r"'dino' has no distances of different pictures.*robustsim calibrate dino"):
        thresholds_for(["lite", "dino"], 1e-6, tails)
    with pytest.raises(
        InputError, match=r"'lite': 12,000,000 pairs .* say a rate of 4e-07, of which each of 2 .*: ask for 5e-07"
    ):
        thresholds_for(["lite", "phash"], 4e-7, tails)
    with pytest.raises(InputError, match="one line at least"):
        thresholds_for([], 1e-6, tails)


def test_the_rows_of_an_index():
    rows, pictures = made(90)
    halves = rows.astype(np.float16)
    index = SimpleNamespace(read=lambda places: halves[places])
    tail = measure_rows(index.read, pictures.astype(str), "an index")
    pairs = brute(halves, pictures)
    nearest = {}  # of each two pictures: a query with views of its own is compared like this
    for distance, i, j in pairs:
        nearest.setdefault(tuple(sorted((pictures[i], pictures[j]))), distance)
    expected = list(nearest.values())
    assert len(expected) < len(pairs)
    assert tail.pairs == len(expected)
    assert tail.comparisons == int((90 / tail.pictures) ** 2) > 1
    for distance, count in zip(tail.distances, tail.counts, strict=True):
        assert count == pytest.approx(sum(one <= distance for one in expected), abs=0)
    some = measure_rows(index.read, pictures, "an index", most=40)
    assert some.pictures == tail.pictures * 40 // 90
    assert some.data == f"an index, {some.pictures} of {tail.pictures} pictures drawn at random"
    assert some == measure_rows(index.read, pictures, "an index", most=40)


def test_tails_are_kept_with_an_index(tmp_path):
    assert read_tails(tmp_path) == {}
    keep_tails(tmp_path, {"lite": KNOWN, "org/repo": dataclasses.replace(KNOWN, data="x")})
    assert read_tails(tmp_path) == {"lite": KNOWN, "org/repo": dataclasses.replace(KNOWN, data="x")}
    keep_tails(tmp_path, {"lite": KNOWN})
    assert set(read_tails(tmp_path)) == {"lite"}
    whole = (tmp_path / NAME).read_text()
    for damaged in (whole[:-9], "[]", '{"tails": {}}', whole.replace('"pairs": 12', '"pairs": 13'), "\ud800"):
        (tmp_path / NAME).write_text(damaged, errors="surrogatepass")
        with pytest.raises(SearchError, match="are damaged: measure them again"):
            read_tails(tmp_path)
