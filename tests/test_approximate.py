"""The approximate index: what it finds is exact, what it misses is told, and it is of one version alone."""

import shutil
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from robustsim.errors import OutputError, SearchError
from robustsim.search.scan import approximate, exact
from robustsim.search.scan.codes import distances, unit
from robustsim.search.storage import approximate as cache
from robustsim.search.storage import caches
from robustsim.search.storage import store as stores
from robustsim.search.storage.approximate import Approximate
from robustsim.search.storage.caches import FOLDER, cleared
from robustsim.search.storage.forget import forget
from robustsim.search.storage.loaded import Loaded
from robustsim.search.storage.rows import Entry, make_table
from robustsim.search.storage.store import Store

pytest.importorskip("lance")

DIMS, COUNT = (32, 12), 1500


def clear(folder):
    with cleared(folder):
        pass


def vectors(dim, count=COUNT, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((20, dim))[rng.integers(0, 20, count)] + 0.7 * rng.standard_normal((count, dim)))


def append(store, first, count):
    with store.writing() as writer:
        entries = [Entry(f"{n:064x}", f"/{n}.jpg", label=f"it's {n % 3}") for n in range(first, first + count)]
        rows = [vectors(dim)[first : first + count].astype(np.float32) for dim in DIMS]
        writer.append(make_table(entries, rows, writer.snapshot.dataset.schema))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of 1,499 rows in three files, of which one is deleted, at no simple name, and what was made for it."""
    store = Store.create(tmp_path_factory.mktemp("made") / "an index, 50%20 #ü", DIMS, {})
    for first in range(0, COUNT, COUNT // 3):
        append(store, first, COUNT // 3)
    with store.writing() as writer:
        row = next(writer.snapshot.batches(["digest"], row_ids=True)).to_pylist()[7]
        writer.delete([row["_rowid"]], [row["digest"]])
    loaded = Loaded(store.read())
    for model in range(2):
        Approximate.of(loaded, model)
    return store


@pytest.fixture
def store(made, tmp_path):
    """At the same place each time, as the rows are known by where they are."""
    shutil.copytree(made.folder, tmp_path / "kept")
    yield made
    shutil.rmtree(made.folder)
    shutil.copytree(tmp_path / "kept", made.folder)


def asked(store, model=0, count=20):
    """(approximate, rows, what the functions of the scan take, queries near the last rows)."""
    loaded = Loaded(store.read())
    found = Approximate.of(loaded, model)
    rows = loaded.line(model)
    last = np.arange(len(rows.codes) - count, len(rows.codes))
    queries = approximate.near_duplicates(rows.read(last), 0.97, seed=9)
    return found, rows, {"candidates": found.candidates, "read": rows.read, "order": rows.order}, queries


def names(folder):
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


@pytest.mark.parametrize("model", [0, 1])
def test_what_is_found_is_exact_and_most_is_found(made, model):
    found, rows, arguments, queries = asked(made, model)
    assert (found.planted, found.version) == (1000, made.read().version)
    answers, right = approximate.nearest(queries, 10, **arguments), 0
    for one, complete, query in zip(answers, exact.nearest(rows, queries, 10), unit(queries), strict=True):
        assert len(one.positions) == 10
        np.testing.assert_array_equal(one.distances, distances(query, unit(rows.read(one.positions))))
        assert (np.diff(one.distances) >= 0).all()
        assert one.distances[9] >= complete.distances[9]
        right += len(np.intersect1d(one.positions, complete.positions))
    assert right > 0.9 * 10 * len(queries)


@pytest.mark.parametrize("distance", [0.2, 0.9])  # one row or none, and more than are asked for at first
def test_what_is_within_a_distance(made, distance):
    _, rows, arguments, queries = asked(made)
    total = known = 0
    answers = approximate.within(queries, distance, **arguments)
    for one, complete in zip(answers, exact.within(rows, queries, distance), strict=True):
        assert set(one.positions) <= set(complete.positions)
        kept = np.isin(complete.positions, one.positions)
        np.testing.assert_array_equal(one.positions, complete.positions[kept])
        np.testing.assert_array_equal(one.distances, complete.distances[kept])
        total, known = total + len(complete.positions), known + len(one.positions)
    assert 0.9 * total < known
    assert total > (len(queries) * 100 if distance > 0.5 else len(queries) * 0.9)
    assert approximate.within(queries[:0], distance, **arguments) == []


def test_rows_at_the_same_distance_come_in_the_order_of_the_index():
    x = np.repeat(vectors(16, 4), 3, 0).astype(np.float16)
    order = np.arange(12)[::-1].copy()
    (one,) = approximate.nearest(
        x[:1], 3, candidates=lambda queries, count: [np.array([5, 2, 0, 1])], read=lambda at: x[at], order=order
    )
    assert one.positions.tolist() == [2, 1, 0]


def test_recall_is_what_others_find_too(made):
    found, rows, _, _ = asked(made)
    some = np.arange(0, 1499, 3)
    queries = approximate.near_duplicates(rows.read(some), cache.SIMILARITY, seed=77)
    np.testing.assert_allclose((unit(queries) * unit(rows.read(some))).sum(1), cache.SIMILARITY, atol=1e-6)
    share = np.mean([row in one for row, one in zip(some, found.candidates(queries, 64), strict=True)])
    assert abs(share - found.recall) < 0.03


def test_recall_is_measured(store, monkeypatch):
    clear(store.folder)
    monkeypatch.setattr(cache, "FEWEST", 1)
    monkeypatch.setattr(cache, "near_duplicates", lambda rows, similarity, seed: -rows.astype(np.float32))
    found = Approximate.of(Loaded(store.read()))
    assert (found.recall, found.planted) == (0, 1000)


def test_filters_apply_before_anything_is_scored(made):
    found, rows, _, queries = asked(made)
    labels = Loaded(made.read()).table.column("label").to_pylist()
    for one in found.candidates(queries, 40, {"label": "it's 1", "tenant": None}):
        assert len(one) == 40
        assert {labels[at] for at in one} == {"it's 1"}
    assert [len(one) for one in found.candidates(queries, 9, {"label": "it's 1", "tenant": "nobody"})] == [0] * 20
    assert [len(one) for one in found.candidates(queries, 9, {"label": "' OR path <> '"})] == [0] * 20
    assert {len(one) for one in found.candidates(queries, 9999)} == {len(rows.codes)}


def test_another_version_is_not_answered_from(store):
    old = Loaded(store.read())
    with store.writing() as writer:
        rows = [-vectors(dim)[:1].astype(np.float32) for dim in DIMS]
        writer.append(make_table([Entry("f" * 64, "/new.jpg")], rows, writer.snapshot.dataset.schema))
    new = Loaded(store.read())
    (nearest,) = Approximate.of(new).candidates(-vectors(DIMS[0])[:1], 1)
    assert nearest.tolist() == [1499]
    assert Approximate.of(old).version < Approximate.of(new).version
    assert names(store.folder / FOLDER) == [f"{old.snapshot.version}-{n}" for n in (0, 1)] + [
        f"{new.snapshot.version}-0"
    ]


def test_those_of_versions_that_are_gone_are_removed(store, monkeypatch):
    monkeypatch.setattr(stores, "_KEPT", timedelta(0))
    append(store, 0, 3)
    version = Approximate.of(Loaded(store.read())).version
    assert names(store.folder / FOLDER) == [f"{version}-0"]


def test_what_was_made_from_other_rows_is_made_anew(store, tmp_path):
    """A copy whose original goes on; another index of the same number of versions in the same place."""
    made = time_of_making(store.folder)
    copy = Store(shutil.copytree(store.folder, tmp_path / "copy"))
    append(store, 0, 3)
    (nearest,) = asked(copy)[0].candidates(vectors(DIMS[0])[-1:], 1)
    assert nearest.tolist() == [1498]
    assert time_of_making(copy.folder) != made
    shutil.rmtree(copy.folder / "rows.lance")
    (copy.folder / "seal.json").unlink()
    Store.create(tmp_path / "new", DIMS, {})
    other = Store(tmp_path / "new")
    for first in (500, 0, 999):
        append(other, first, 500)
    append(other, 0, 1)
    shutil.copytree(other.folder, copy.folder, dirs_exist_ok=True)
    assert copy.read().version == made_version(copy)
    (nearest,) = asked(copy)[0].candidates(vectors(DIMS[0])[600:601], 1)
    assert nearest.tolist() == [100]


def time_of_making(folder):
    return [path.stat().st_mtime_ns for path in sorted(folder.glob(f"{FOLDER}/*-0/made.json"))]


def made_version(store):
    (name,) = {name.split("-")[0] for name in names(store.folder / FOLDER)}
    return int(name)


@pytest.mark.parametrize("how", ["cut", "flipped", "missing"])
def test_damage_is_noticed_and_it_is_made_anew(store, how, monkeypatch):
    monkeypatch.setattr(cache, "_PLANTED", 20)
    _, _, arguments, queries = asked(store)
    expected = approximate.nearest(queries, 3, **arguments)
    folder = store.folder / FOLDER / f"{store.read().version}-0"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) >= 4
    for path in files:
        if not path.exists():  # made anew, its name is another
            path = next(path for path in folder.rglob("*") if path.suffix == Path(path).suffix and path.is_file())
        before, made = path.read_bytes(), time_of_making(store.folder)
        content = {"cut": before[:-1], "flipped": bytes([before[0] ^ 1]) + before[1:]}.get(how)
        path.unlink() if content is None else path.write_bytes(content)
        _, _, arguments, _ = asked(store)
        assert time_of_making(store.folder) != made
        for one, other in zip(approximate.nearest(queries, 3, **arguments), expected, strict=True):
            np.testing.assert_array_equal(one.positions, other.positions)
            np.testing.assert_array_equal(one.distances, other.distances)


def test_rows_that_the_index_does_not_have_are_refused(made, monkeypatch):
    found, _, _, queries = asked(made)
    found._row_ids = found._row_ids[:-1]
    with pytest.raises(SearchError, match="knows rows that the index does not have"):
        found.candidates(queries[-1:], 3)


def test_what_is_cleared_is_gone_and_is_not_made_meanwhile(store, monkeypatch):
    old = Loaded(store.read())
    with cleared(store.folder):
        assert not (store.folder / FOLDER).exists()
        making = threading.Thread(target=Approximate.of, args=(old,))
        making.start()
        making.join(0.3)
        assert making.is_alive()
        assert not (store.folder / FOLDER).exists()
    making.join()
    found = Approximate.of(old)
    clear(store.folder)
    clear(store.folder)
    with pytest.raises(SearchError, match="Open it again"):
        found.candidates(vectors(DIMS[0])[:1], 3)
    assert not (store.folder / FOLDER).exists()
    # A reader of what is erased by then makes none of it.
    forget(store, ["/9.jpg"])
    with pytest.raises(SearchError, match="was erased since it was opened: open it again"):
        Approximate.of(old)
    assert not (store.folder / FOLDER).exists()
    assert Approximate.of(Loaded(store.read())).planted == 1000


def test_an_erasure_that_was_interrupted_clears_again(store, monkeypatch):
    """A reader of the version before may have made one between the seal and the removal of older files."""
    old = Loaded(store.read())

    def killed(self):
        monkeypatch.undo()
        self._seal = replace(self._seal, erasing=True)
        self.seal()
        raise KeyboardInterrupt

    monkeypatch.setattr(stores.Writer, "_erase", killed)
    with pytest.raises(KeyboardInterrupt):
        forget(store, ["/9.jpg"])
    assert not (store.folder / FOLDER).exists()
    assert Approximate.of(old).planted == 1000
    append(store, 0, 3)
    assert not (store.folder / FOLDER).exists()


def test_who_erases_does_not_wait_for_ever(store, monkeypatch):
    monkeypatch.setattr(caches, "_PATIENCE", 0.1)
    with caches.making(store.folder, 1), pytest.raises(OutputError, match="has been making an approximate index"):
        clear(store.folder)
    assert len(names(store.folder / FOLDER)) == 2


def test_a_making_that_fails_leaves_nothing(store, monkeypatch):
    clear(store.folder)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_recall", stop)
        with pytest.raises(KeyboardInterrupt):
            Approximate.of(Loaded(store.read()))
    assert names(store.folder / FOLDER) == []
    # As a killed process leaves it: without what is written last.
    Approximate.of(Loaded(store.read()))
    next(store.folder.glob(f"{FOLDER}/*/made.json")).unlink()
    assert Approximate.of(Loaded(store.read())).recall > 0.9


def test_few_rows_have_none(tmp_path):
    store = Store.create(tmp_path / "index", DIMS, {})
    append(store, 0, cache.SMALLEST - 1)
    assert Approximate.of(Loaded(store.read())) is None
    assert not (store.folder / FOLDER).exists()
