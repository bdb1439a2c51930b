"""The index's codes and scans: bounds that hold, and answers that are those of a scan over everything."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robustsim.errors import InputError, MissingDependencyError
from robustsim.search.scan import exact as scan
from robustsim.search.scan.codes import LARGEST, ROUNDING, distances, encode, unit
from robustsim.search.scan.kernels import KERNELS, make_kernel

KINDS = ("random", "clustered", "duplicates", "halves", "spikes", "tiny")


def make_rows(kind, seed, count, dim):
    """Rows of length 1 in float16, and queries in float32, some of them rows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, dim))
    if kind == "clustered":
        x = rng.standard_normal((1, dim)) + 0.02 * x
    elif kind == "duplicates":
        x = x[rng.integers(0, max(1, count // 4), count)]
    elif kind == "halves":  # every value between two codes, as far from either as can be
        x = (rng.integers(-LARGEST, LARGEST, (count, dim)) + 0.5) * np.sign(rng.standard_normal((count, 1)))
        x[:, 0] = LARGEST
    elif kind == "spikes":  # one value that leaves the others few codes
        x *= 0.02
        x[np.arange(count), rng.integers(0, dim, count)] = 1
    elif kind == "tiny":  # of which float16 keeps little
        x = np.where(rng.random(x.shape) < 0.9, 1e-7 * x, x)
        x[:, 0] += 1
    x = unit(x).astype(np.float16)
    near = x[rng.integers(0, count, 3)] + 0.1 / dim**0.5 * rng.standard_normal((3, dim))
    return x, unit(np.concatenate((x[:1], near, rng.standard_normal((1, dim))))).astype(np.float32)


def rows_of(x):
    return scan.Rows(encode(x), lambda positions: x[positions], np.arange(len(x))[::-1].copy())


cases = st.tuples(
    st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from((2, 3, 16, 70, 1100))
)


@given(cases)
@settings(max_examples=200)
@example(("halves", 0, 100, 1100))
@example(("spikes", 1, 50, 3))
def test_no_exact_score_is_beyond_its_bound(case):
    x, q = make_rows(*case)
    codes, queries = encode(x), encode(q)
    exact = unit(q) @ unit(x).T
    coded = (queries.values.astype(np.int64) @ codes.values.astype(np.int64).T).astype(np.float64)
    coded *= np.float64(queries.scales)[:, None] * np.float64(codes.scales)
    bound = np.float64(queries.residuals)[:, None] + np.float64(codes.residuals) + ROUNDING
    assert (np.abs(exact - coded) <= bound).all()
    # What the scan makes of them.
    assert (exact <= scan._uppers(codes, queries, None, {})).all()
    assert codes.values.min() >= -LARGEST
    # The bound is one of rounding: a code that stood for something else would have a large one.
    assert codes.residuals.max() <= 0.5 * x.shape[1] ** 0.5 / LARGEST + 1e-3


def brute(x, q, order):
    """For each query, (positions, distances) of all rows by a scan over float32, the nearest first."""
    for query in unit(q):
        away = distances(query, unit(x.astype(np.float32)))
        ranked = np.lexsort((order, away))
        yield ranked, away[ranked]


@given(cases, st.integers(1, 40), st.sampled_from(KERNELS), st.booleans())
@settings(max_examples=150)
def test_the_scan_over_codes_is_the_scan_over_float32(case, k, kernel, filtered):
    x, q = make_rows(*case)
    rows = rows_of(x)
    allowed = None
    if filtered:
        allowed = np.flatnonzero(np.random.default_rng(case[1]).random(len(x)) < 0.4)
    counts = np.arange(len(x)) if allowed is None else allowed
    expected = [
        (ranked[np.isin(ranked, counts)], away[np.isin(ranked, counts)]) for ranked, away in brute(x, q, rows.order)
    ]
    found = scan.nearest(rows, q, k, allowed=allowed, name=kernel)
    for one, (ranked, away) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.positions, ranked[:k])
        np.testing.assert_array_equal(one.distances, away[:k])
    for (ranked, away), query in zip(expected, q, strict=True):
        # At a distance that occurs: it counts, and so do all that tie with it.
        for distance in (0.0, 0.44, *away[:1], *away[len(away) // 2 :][:1]):
            (one,) = scan.within(rows, query[None], distance, allowed=allowed, name=kernel)
            near = away <= distance
            np.testing.assert_array_equal(one.positions, ranked[near])
            np.testing.assert_array_equal(one.distances, away[near])


def test_distances_are_the_metrics_and_of_the_row_alone():
    x, q = make_rows("random", 5, 40, 70)
    reference = torch.cdist(torch.from_numpy(q), torch.from_numpy(unit(x)).float()) * 0.5**0.5
    alone = [[distances(query, unit(row[None]))[0] for row in x] for query in unit(q)]
    np.testing.assert_allclose(alone, reference, atol=1e-5)
    np.testing.assert_array_equal(alone, [distances(query, unit(x)) for query in unit(q)])


def test_the_largest_distance_is_the_largest():
    x = unit(np.random.default_rng(0).standard_normal((200, 30)))
    assert max(distances(-row, row[None])[0] for row in x) == 2**0.5


def test_most_rows_are_left_out():
    rng = np.random.default_rng(0)
    x = unit(rng.standard_normal((3000, 256)) * np.arange(1, 257) ** -0.3).astype(np.float16)
    (one,) = scan.nearest(rows_of(x), x[7:8].astype(np.float32), 5)
    assert one.positions[0] == 7
    assert one.measured < 150
    (one,) = scan.within(rows_of(x), x[7:8].astype(np.float32), 0.3)
    assert one.measured < 20


@pytest.mark.parametrize("queries", [1, 2, 17])
@pytest.mark.parametrize("dim", [1, 3, 1024, 1025, 5120])
def test_kernels_are_exact(queries, dim):
    rng = np.random.default_rng(0)
    q = rng.integers(-127, 128, (queries, dim), dtype=np.int8)
    rows = rng.integers(-127, 128, (9, dim), dtype=np.int8)
    q[0] = rows[0] = 127
    rows[1] = -127
    expected = rows.astype(np.int64) @ q.T.astype(np.int64)
    for name in KERNELS:
        np.testing.assert_array_equal(make_kernel(q, name)(rows), expected)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(make_kernel(q, "torch")(rows), expected)


def test_blocks_do_not_show(monkeypatch):
    x, q = make_rows("clustered", 3, 200, 16)
    whole = scan.nearest(rows_of(x), q, 70)
    monkeypatch.setattr(scan, "_BLOCK", 16 * 7)
    monkeypatch.setattr(scan, "_SCORES", 4 * 200 * 2)
    monkeypatch.setattr(scan, "_MEASURED", 3)
    for a, b in zip(whole, scan.nearest(rows_of(x), q, 70), strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.distances, b.distances)


def test_an_empty_index_has_no_neighbours():
    x = np.empty((0, 4), np.float16)
    rows = scan.Rows(_empty(4), lambda positions: x[positions], np.arange(0))
    for found in (*scan.nearest(rows, np.ones((2, 4)), 3), *scan.within(rows, np.ones((2, 4)), 1.0)):
        assert len(found.positions) == len(found.distances) == 0


def _empty(dim):
    from robustsim.search.scan.codes import Codes

    return Codes(np.empty((0, dim), np.int8), np.empty(0, np.float32), np.empty(0, np.float32))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_what_has_no_direction_is_refused(bad):
    with pytest.raises(InputError, match="not finite, or nothing but zeros"):
        encode(np.full((1, 4), bad))


def test_kernels_that_are_not_there(monkeypatch):
    q = np.ones((1, 4), np.int8)
    with pytest.raises(InputError, match="none of numkong, torch"):
        make_kernel(q, "faiss")
    monkeypatch.setitem(sys.modules, "numkong", None)
    np.testing.assert_array_equal(make_kernel(q)(q), [[4]])
    with pytest.raises(MissingDependencyError, match=r"robustsim\[search\]"):
        make_kernel(q, "numkong")


@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.integers(1, 40), st.booleans())
def test_the_largest_are_the_largest(seed, size, count, ties):
    rng = np.random.default_rng(seed)
    values = (rng.integers(0, 9, size) if ties else rng.random(size)).astype(np.float32)
    values[: size // 3] += rng.integers(0, 2)  # all of them beside one another
    places = scan._largest(values, count)
    assert (np.diff(places) > 0).all()
    np.testing.assert_array_equal(np.sort(values[places]), np.sort(values)[::-1][:count][::-1])
