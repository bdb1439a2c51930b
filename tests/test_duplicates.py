"""Pairs within a distance, and groups bounded by their diameter."""

import json
import tempfile
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robustsim.errors import InputError, OutputError
from robustsim.search.duplicates import neighbours as on_disk
from robustsim.search.duplicates.find import Line, find_duplicates
from robustsim.search.duplicates.report import KEEPS, Member
from robustsim.search.scan import pairs as scan_pairs
from robustsim.search.scan.codes import distances, encode, unit
from robustsim.search.scan.exact import Rows
from robustsim.search.scan.kernels import KERNELS
from robustsim.search.scan.pairs import pairs_within
from tests.test_index import KINDS, make_rows


def rows_of(x):
    return Rows(encode(x), lambda positions: x[positions], np.arange(len(x)))


def every_pair(x):
    """(N, N) distances, by a scan over float64."""
    wide = unit(x.astype(np.float32))
    return np.stack([distances(row, wide) for row in wide])


def found_by_pairs(x, distance, **options):
    """{(first, second): distance}; each pair once, and the smaller position first."""
    found = {}
    for part in pairs_within(rows_of(x), distance, **options):
        for first, second, away in zip(*(one.tolist() for one in part), strict=True):
            assert first < second
            assert (first, second) not in found
            found[first, second] = away
    return found


cases = st.tuples(
    st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(1, 90), st.sampled_from((2, 3, 16, 70, 1100))
)


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
    """Several of them for few rows."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_DOWN", 8), ("_ACROSS", 20), ("_PACKED", 7), ("_TOGETHER", 50), ("_BYTES", 1)):
            patch.setattr(scan_pairs, name, value)
        patch.setattr(on_disk, "_CHUNK", 37)
        yield


@given(cases, st.sampled_from(KERNELS), st.booleans(), st.booleans())
@settings(max_examples=50)
@example(("halves", 0, 60, 1100), "numkong", False, False)
@example(("duplicates", 3, 60, 16), "torch", True, True)
def test_pairs_are_those_of_a_scan_over_everything(case, kernel, filtered, views):
    x, _ = make_rows(*case)
    rng = np.random.default_rng(case[1])
    away = every_pair(x)
    counts = np.triu(np.ones(away.shape, bool), 1)
    options = {"name": kernel, "threads": 2}
    if filtered:
        options["allowed"] = np.flatnonzero(rng.random(len(x)) < 0.6)
        inside = np.isin(np.arange(len(x)), options["allowed"])
        counts &= inside[:, None] & inside
    if views:
        options["pictures"] = pictures = rng.integers(0, max(1, len(x) // 3), len(x))
        counts &= pictures[:, None] != pictures
    some = away[counts]
    # At a distance that occurs: it counts, and so do all that tie with it.
    for distance in (0.0, 0.44, 2**0.5, *some[:1], *np.sort(some)[len(some) // 2 :][:1]):
        first, second = np.nonzero(counts & (away <= distance))
        expected = dict(zip(zip(first.tolist(), second.tolist(), strict=True), away[first, second], strict=True))
        assert found_by_pairs(x, distance, **options) == expected


def test_pairs_of_scales_far_apart():
    """Rows of one value beside rows of many: no tile's smallest product may be too large for one of them."""
    rng = np.random.default_rng(0)
    x = np.concatenate((np.eye(40, 64), rng.standard_normal((40, 64)), np.ones((3, 64)), -np.ones((3, 64))))
    x = unit(x[rng.permutation(len(x))]).astype(np.float16)
    away = every_pair(x)
    for distance in (0.0, 0.8, 0.95, 1.05, 1.2, 2**0.5):
        first, second = np.nonzero(np.triu(away <= distance, 1))
        assert set(found_by_pairs(x, distance)) == set(zip(first.tolist(), second.tolist(), strict=True))


def test_hashes_are_rows_too():
    """Bits as values of +-1/16: a distance is the root of how many differ, over 128, and has no rounding."""
    rng = np.random.default_rng(0)
    bits = rng.random((60, 256)) < 0.5
    bits[1:6] = bits[0]
    for n in range(1, 6):
        bits[n, : 8 * n] ^= True
    x = np.where(bits, 1 / 16, -1 / 16).astype(np.float16)
    assert encode(x).residuals.max() < 1e-8
    found = found_by_pairs(x, (16 / 128) ** 0.5)
    assert found == {(a, b): (8 * (b - a) / 128) ** 0.5 for a in range(6) for b in range(a + 1, 6) if b - a <= 2}


def test_progress_counts_every_pair_once():
    x, _ = make_rows("random", 0, 77, 16)
    done = []
    list(pairs_within(rows_of(x), 0.1, progress=done.append))
    assert sum(done) == 77 * 76 // 2
    assert len(done) > 10
    with pytest.raises(InputError, match="distance must be"):
        next(pairs_within(rows_of(x), 1.5))


def made_up(seed, count, copies=0, views=1):
    """Pictures of two lines, some near each other; rows of several views each; some files of the same content.

    Returns:
        The members, the picture of each row, and float16 rows for each line.
    """
    rng = np.random.default_rng(seed)
    ids = [f"{number:04x}" for number in rng.permutation(count)]
    ids += [ids[n] for n in rng.integers(0, count, copies)]
    members = [
        Member(f"/{n:03}.png", one, size=int(rng.integers(50)), mtime=int(rng.integers(9)), width=4, height=n % 5)
        for n, one in zip(rng.permutation(len(ids)).tolist(), ids, strict=True)
    ]
    pictures = np.repeat(np.arange(len(ids)), views)
    by_id = {one: place for place, one in reversed(list(enumerate(ids)))}
    same = np.array([by_id[one] for one in ids])
    lines = []
    for dim in (6, 12):
        centres = rng.standard_normal((max(1, count // 5), dim))
        x = centres[rng.integers(0, len(centres), count)] + 0.35 * rng.standard_normal((count, dim))
        x = np.concatenate((x, x[same[count:]]))[pictures]
        # Views in which another picture may be nearer.
        x += 0.3 * np.tile(np.arange(views) > 0, len(ids))[:, None] * np.random.default_rng(0).standard_normal(dim)
        lines.append(unit(x).astype(np.float16))
    return members, pictures, lines


def report_of(members, pictures, lines, distances=(0.2, 0.25), **options):
    found = [
        Line(name, partial(rows_of, x), pictures, away)
        for name, x, away in zip(("one", "two"), lines, distances, strict=True)
    ]
    return find_duplicates(found, members, threads=1, **options)


def expected_pairs(members, pictures, lines, distances=(0.2, 0.25)):
    """{ids: {line: distance}} by brute force."""
    pairs = {}
    for name, x, threshold in zip(("one", "two"), lines, distances, strict=True):
        away = every_pair(x)
        for a, b in np.argwhere(np.triu(away <= threshold, 1)).tolist():
            ids = tuple(sorted(members[pictures[row]].id for row in (a, b)))
            if ids[0] != ids[1]:
                known = pairs.setdefault(ids, {})
                known[name] = min(known.get(name, np.inf), away[a, b])
    return pairs


def described(report):
    return [report.described(group) for group in report.groups]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 10), st.integers(1, 3))
@settings(max_examples=60)
def test_groups(seed, count, copies, views):
    members, pictures, lines = made_up(seed, count, copies, views)
    report = report_of(members, pictures, lines)
    pairs = expected_pairs(members, pictures, lines)
    told = list(report.pairs())
    assert {pair.ids: pair.distances for pair in told} == pairs
    assert [pair.ids for pair in told] == sorted(pairs)

    def near(a, b):
        ids = tuple(sorted((a.id, b.id)))
        return 0 if a.id == b.id else min(d / {"one": 0.2, "two": 0.25}[line] for line, d in pairs[ids].items())

    group_of = {}
    for number, group in enumerate(report.groups):
        assert len(group) == len(group.others) + 1 >= 2
        sums = {}
        for one in group.members:
            assert (one.path, one.id) not in group_of
            group_of[one.path, one.id] = number
            sums[one.id] = sum(near(one, other) for other in group.members)  # none of which is no pair
        assert sums[group.medoid.id] == pytest.approx(min(sums.values()))
        assert group.medoid.distance == 0
        for one in group.others:
            ids = tuple(sorted((one.id, group.keep.id)))
            assert one.distances == pairs.get(ids, {})
            assert one.found_by == (tuple(pairs[ids]) if ids in pairs else ("identical",))
        to = {tuple(sorted((one.id, group.medoid.id))): one for one in group.members}
        assert all(one.distance == (next(iter(pairs[ids].values())) if ids in pairs else 0) for ids, one in to.items())
        also = {next(iter(set(ids) - sums.keys())) for ids in pairs if len(sums.keys() & set(ids)) == 1}
        assert {like.id for like in report.also_like(group)} == also
    by_id = {}
    for one in members:
        by_id.setdefault(one.id, []).append(one)
    assert all((one.path, one.id) in group_of for files in by_id.values() if len(files) > 1 for one in files)
    for pair in told:  # nobody is left out who had somewhere to go
        places = [group_of.get((by_id[name][0].path, name)) for name in pair.ids]
        assert pair.together == (places[0] is not None and places[0] == places[1])
        assert places != [None, None]
    assert report.compared == len(members)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 10), st.integers(1, 2))
@settings(max_examples=30)
def test_the_order_of_files_and_rows_does_not_matter(seed, count, copies, views):
    members, pictures, lines = made_up(seed, count, copies, views)
    report = report_of(members, pictures, lines)
    rng = np.random.default_rng(seed)
    files, rows = rng.permutation(len(members)), rng.permutation(len(pictures))
    places = np.argsort(files)
    again = report_of([members[n] for n in files], places[pictures[rows]], [x[rows] for x in lines])
    assert described(again) == described(report)
    assert list(again.pairs()) == list(report.pairs())


def test_a_chain_is_no_group():
    """Each is near the next, and the ends are not alike."""
    angles = np.arange(0, 30) * 0.1
    x = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float16)
    members = [Member(f"/{n}", f"{n:02}") for n in range(30)]
    report = find_duplicates([Line("one", partial(rows_of, x), np.arange(30), 0.16)], members)
    assert {len(group) for group in report.groups} <= {2, 3}
    assert sum(len(group) for group in report.groups) >= 20
    apart = [pair for pair in report.pairs() if not pair.together]
    assert apart
    assert any(like.id in apart[0].ids for group in report.groups for like in report.also_like(group))


def test_many_copies_make_no_pairs():
    count = 3000
    members = [Member(f"/{n:04}", "same" if n else "other", size=10) for n in range(count)]
    x = np.tile(unit(np.ones((1, 8))), (count, 1)).astype(np.float16)
    x[0, 0] += np.float16(0.1)
    line = Line("one", partial(rows_of, x), np.arange(count), 0.2)
    compared = []
    report = find_duplicates([line], members, progress=compared.append)
    assert sum(compared) == 1
    (group,) = report.groups
    assert len(group) == count
    assert len(list(report.pairs())) == 1
    assert group.keep.path == "/0000"
    assert group.others[0].found_by == ("one",)
    assert (group.medoid.id, group.freed, report.freed) == ("same", 10 * (count - 1), 10 * (count - 1))


def test_rows_that_belong_to_no_picture_do_not_count():
    members, pictures, lines = made_up(1, 30)
    report = report_of(members, np.where(pictures < 10, -1, pictures), lines)
    left = {one.id for one in members[10:]}
    ids = {name for pair in report.pairs() for name in pair.ids}
    assert ids
    assert ids <= left
    assert find_duplicates([], []).groups == ()


def test_what_is_kept():
    size, time = iter((5, 9, 9, 1, 3)), iter((3, 1, 2, 2, 9))
    shapes = iter(((4, 4), (8, 2), (2, 8), (1, 1), (None, None)))
    members = [
        Member(f"/{name}", f"{n}", size=next(size), mtime=next(time), width=w, height=h)
        for n, (name, (w, h)) in enumerate(zip("edcba", shapes, strict=True))
    ]
    members.append(Member("", "6", size=10**9, mtime=0, width=999, height=999))  # no file
    x = np.tile(unit(np.ones((1, 8))), (6, 1)).astype(np.float16)
    line = Line("one", partial(rows_of, x), np.arange(6), 0.2)
    kept = {keep: find_duplicates([line], members, keep=keep).groups[0].keep.path for keep in KEEPS}
    assert kept == {"largest": "/c", "smallest": "/b", "oldest": "/d", "newest": "/a", "medoid": "/e"}
    with pytest.raises(InputError, match="keep='best' is none of largest"):
        find_duplicates([line], members, keep="best")


def test_the_report_is_saved_as_a_whole(tmp_path, monkeypatch):
    report = report_of(*made_up(3, 40, 5))
    report.save(tmp_path / "groups.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "groups.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps(described(report)))
    assert lines[0].keys() == {"keep", "others", "medoid", "freed", "also_like"}
    monkeypatch.setattr("json.dumps", None)
    with pytest.raises(TypeError):
        report.save(tmp_path / "other.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["groups.jsonl"]


def test_the_pairs_are_on_the_disk_as_long_as_the_report_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    report = report_of(*made_up(3, 40))
    assert len(list(tmp_path.iterdir())) == 1
    assert list(report.pairs())
    del report
    assert not list(tmp_path.iterdir())

    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(on_disk, "_sort", full)
    with pytest.raises(OutputError, match=r"No space left on device.*TMPDIR"):
        report_of(*made_up(3, 40))
    assert not list(tmp_path.iterdir())
