"""The store of an index: what counts, what is noticed, and what is left after an erasure."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robustsim.errors import InputError, OutputError, SearchError
from robustsim.search.scan.codes import unit
from robustsim.search.storage import store as stores
from robustsim.search.storage.check import check_store
from robustsim.search.storage.forget import forget
from robustsim.search.storage.loaded import Loaded
from robustsim.search.storage.rows import Entry, add_up, make_table
from robustsim.search.storage.seal import NAME, read_seal
from robustsim.search.storage.store import ROWS, Store

pytest.importorskip("lance")

DIM = 24


def vectors(count, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, DIM))).astype(np.float32)


def entries(first, count, **more):
    return [Entry(f"{n:064x}", f"/photos/{n}.jpg", 100 + n, 10**18 + n, **more) for n in range(first, first + count)]


def append(store, first, count, **more):
    with store.writing() as writer:
        like = writer.snapshot.dataset.schema
        writer.append(make_table(entries(first, count, **more), [vectors(count, first)], like))


def rows(store):
    """(Lance's number, id, digest) of each row."""
    for batch in store.read().batches(("id", "digest"), row_ids=True):
        yield from zip(*(batch.column(name).to_pylist() for name in ("_rowid", "id", "digest")), strict=True)


def delete(store, *numbers, erase=False):
    gone = [row for row in rows(store) if int(row[1], 16) in numbers]
    with store.writing() as writer:
        writer.delete([row[0] for row in gone], [row[2] for row in gone])
        if erase:
            writer.erase()


def ids(store):
    return [int(name, 16) for name in Loaded(store.read()).table.column("id").to_pylist()]


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "index", [DIM], {"made": "by a test"})
    append(store, 0, 30, label="a")
    append(store, 30, 20, tenant="b")
    delete(store, 3, 41)
    return store


def test_rows_come_back_as_they_were_put_in(store):
    snapshot = store.read()
    loaded = Loaded(snapshot)
    assert snapshot.header == {"made": "by a test"}
    assert (snapshot.count, snapshot.dims, loaded.line(0).codes.values.shape) == (48, [DIM], (48, DIM))
    assert ids(store) == [n for n in range(50) if n not in (3, 41)]
    table = loaded.table.slice(0, 1).to_pylist()[0]
    assert {name: table[name] for name in Entry._fields} == entries(0, 1, label="a")[0]._asdict()
    expected = np.concatenate((vectors(30, 0), vectors(20, 30))).astype(np.float16)
    np.testing.assert_array_equal(loaded.embeddings(np.array([0, 5, 47])), expected[[0, 6, 49]])
    assert loaded.allowed(None, None) is None
    assert len(loaded.allowed("a", None)) == 29
    np.testing.assert_array_equal(loaded.allowed(None, "b"), np.arange(29, 48))
    assert len(loaded.allowed("a", "b")) == 0
    assert check_store(store).ok


def test_what_was_not_sealed_does_not_count(store, monkeypatch):
    before = store.read().version

    class _KilledError(Exception):
        pass

    def killed(self):
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(stores.Writer, "seal", killed)
        with pytest.raises(_KilledError):
            append(store, 50, 10)
        with pytest.raises(_KilledError):
            delete(store, 0)
    assert store.read().version == before
    assert len(ids(store)) == 48
    assert check_store(store).ok
    append(store, 60, 2)
    assert ids(store)[-3:] == [49, 60, 61]
    assert 0 in ids(store)
    assert check_store(store).ok


@pytest.mark.parametrize("content", [b"", b"torn"])
def test_a_torn_manifest_that_was_not_sealed_is_removed(store, content):
    versions = store.folder / ROWS / "_versions"
    newest = min(versions.glob("*.manifest"))
    torn = versions / f"{int(newest.stem) - 1:020}.manifest"
    torn.write_bytes(content)
    (versions / f"{int(newest.stem) - 2:020}.manifest").write_bytes(content)
    assert check_store(store).ok
    append(store, 60, 2)
    delete(store, 0)
    assert ids(store)[-3:] == [49, 60, 61]
    torn.with_stem(f"{int(min(versions.glob('*.manifest')).stem) - 1:020}").write_bytes(content)
    delete(store, 7, erase=True)
    assert check_store(store).ok
    assert len(ids(store)) == 48


def test_an_error_in_between_takes_all_of_it_back(store):
    with pytest.raises(KeyError), store.writing() as writer:
        writer.append(make_table(entries(70, 2), [vectors(2)], writer.snapshot.dataset.schema))
        raise KeyError
    append(store, 80, 1)
    assert ids(store)[-2:] == [49, 80]


def test_readers_stay_at_their_version(store):
    snapshot = store.read()
    delete(store, 0, 1, 2)
    append(store, 90, 5)
    loaded = Loaded(snapshot)
    assert len(loaded.line(0).codes) == 48
    assert len(loaded.embeddings(np.arange(48))) == 48
    assert len(ids(store)) == 50


def test_erased_bytes_are_gone(store):
    victim = next(n for n, name in enumerate(ids(store)) if name == 7)
    loaded = Loaded(store.read())
    traces = [
        loaded.embeddings(np.array([victim])).tobytes(),
        loaded.line(0).codes.values[victim].tobytes(),
        b"/photos/7.jpg",
        f"{7:064x}".encode(),
        *(loaded.table.column(f"{name}_digest")[victim].as_py() for name in ("code", "embedding")),
        next(digest for _, name, digest in rows(store) if name == f"{7:064x}"),
    ]

    def traces_left():
        held = [path.read_bytes() for path in store.folder.rglob("*") if path.is_file()]
        return [any(trace in content for content in held) for trace in traces]

    assert all(traces_left())
    delete(store, 7, erase=True)
    assert not any(traces_left())
    assert len(ids(store)) == 47
    assert check_store(store).ok
    with pytest.raises(SearchError, match="Open it again"):
        loaded.embeddings(np.array([0]))
    append(store, 95, 1)
    assert len(ids(store)) == 48


def test_an_erasure_that_was_interrupted_is_told_and_finished(store, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lance.LanceDataset.cleanup_old_versions", lambda *words, **options: killed(None))
        with pytest.raises(KeyboardInterrupt):
            delete(store, 7, erase=True)
    assert 7 not in ids(store)
    assert "their files are still there" in check_store(store).problems[0]
    with store.writing():
        pass
    assert check_store(store).ok
    assert not any(b"/photos/7.jpg" in path.read_bytes() for path in store.folder.rglob("*") if path.is_file())


def test_many_small_files_become_few(store, monkeypatch):
    monkeypatch.setattr(stores, "_MOST", 5)
    monkeypatch.setattr(stores, "_LARGE", 40)
    for first in range(100, 110):
        append(store, first, 1)
    reader, before = store.read(), ids(store)
    files = len(reader.seal.files)
    store.tidy()
    assert len(store.read().seal.files) < files / 2
    assert ids(store) == before
    assert len(Loaded(reader).embeddings(np.arange(58))) == 58  # files that readers have open stay for a while
    assert check_store(store).ok
    version = store.read().version
    store.tidy()
    assert store.read().version == version
    delete(store, 105)
    assert 105 not in ids(store)


def test_readers_keep_their_version_for_an_hour_from_when_a_newer_one_came(store):
    def age(hours):
        """Let everything have been done that long ago."""
        for path in (store.folder / ROWS).rglob("*"):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600 * hours))

    left = store.folder / ROWS / "data" / "left.lance"  # by a process that was killed
    left.touch()
    age(100)
    reader, kept = store.read(), ids(store)
    its_own = [store.folder / ROWS / name for name in reader.seal.files if name.startswith("_")]
    append(store, 60, 1)  # from now on there is a newer one
    append(store, 61, 1)
    age(0.9)
    append(store, 62, 1)
    assert [int(name, 16) for name in Loaded(reader).table.column("id").to_pylist()] == kept
    assert all(path.exists() for path in its_own)
    age(0.2)
    append(store, 63, 1)
    assert not its_own[0].exists()
    assert ids(store) == [*kept, 60, 61, 62, 63]
    assert check_store(store).ok
    assert not left.exists()


def answers(store):
    """All that could be answered."""
    loaded = Loaded(store.read())
    told = [name for name in store.read().narrow if not name.endswith("digest")]
    return loaded.table.select(told).to_pylist(), loaded.embeddings(np.arange(len(loaded.table))).tobytes()


_FULL_DISK = """
import json, resource, shutil, signal, sys
from pathlib import Path
from robustsim.errors import OutputError
from robustsim.search.storage import store as stores
from robustsim.search.storage.check import check_store
from robustsim.search.storage.store import Store
from tests.test_index_store import append, delete, ids

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is an error then, as on a full disk
stores._MOST = 3
sound = Path(sys.argv[1])
before = ids(Store(sound))

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

for name, change in {
    "add": lambda store: append(store, 900, 300),
    "erase": lambda store: delete(store, 7, erase=True),
    "tidy": lambda store: store.tidy(),
}.items():
    whole = Path(shutil.copytree(sound, sound.with_name(name)))
    change(Store(whole))
    largest = max(path.stat().st_size for path in (whole / "rows.lance" / "data").iterdir())
    for short in (1, 2500):
        store, error = Store(shutil.copytree(sound, sound.with_name(f"{name}{short}"))), ""
        limit(largest - short)
        try:
            change(store)
        except OutputError as problem:
            error = str(problem)
        limit(resource.RLIM_INFINITY)
        kept = ids(store) == before and check_store(store).ok
        change(store)
        print(json.dumps([error, kept, ids(store) == ids(Store(whole)) and check_store(store).ok]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the size of files are those of Linux")
def test_a_disk_that_is_full_at_the_last_write_costs_nothing(tmp_path):
    """Lance takes a file that was cut off for good, and says nothing."""
    store = Store.create(tmp_path / "index", [DIM], {})
    for first in range(0, 200, 50):
        append(store, first, 50)
    run = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(store.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 6
    for error, kept, done in results:
        assert "what was in it stays" in error
        assert kept
        assert done


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "removed"])
def test_damage_is_found_or_refused(store, how, tmp_path):
    expected, sound = answers(store), tmp_path / "sound"
    shutil.copytree(store.folder, sound)
    sealed = {f"{ROWS}/{name}" for name in read_seal(store.folder).files} | {NAME}
    assert any(name.startswith(f"{ROWS}/data/") for name in sealed)
    assert any(name.startswith(f"{ROWS}/_deletions/") for name in sealed)
    for path in sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file()):
        content = (sound / path).read_bytes()
        for place in np.linspace(0, max(0, len(content) - 1), 12).astype(int):
            damaged = bytearray(content)
            if how == "flipped" and content:
                damaged[place] ^= 0x40
            (store.folder / path).write_bytes(damaged[:place] if how == "cut" else damaged if how == "flipped" else b"")
            if how == "removed":
                (store.folder / path).unlink()
            if path.as_posix() in sealed:
                with pytest.raises(SearchError):
                    if check_store(store).problems:
                        raise SearchError
            try:
                assert answers(store) == expected, (path, how, place)
            except SearchError:
                assert path.as_posix() in sealed
            if how in ("emptied", "removed"):
                break
        (store.folder / path).write_bytes(content)
    assert check_store(store).ok


def other_row(writer):
    """A sound row, from elsewhere, in place of one whose digest is not taken away."""
    table = make_table(entries(99, 1), [vectors(1)], writer.snapshot.dataset.schema)
    writer.append(table)
    writer.delete([0], [b"\0" * 16])
    return add_up(table.column("digest").to_pylist())


def test_another_row_in_place_of_one_is_not_sealed(store):
    seal = read_seal(store.folder)
    with pytest.raises(OutputError, match="it should hold 48 rows, and holds 48, or others"), store.writing() as writer:
        other_row(writer)
    assert read_seal(store.folder) == seal
    assert check_store(store).ok


def test_another_row_in_place_of_one_is_noticed(store, monkeypatch):
    """In a version that Lance takes for good."""
    version = read_seal(store.folder).version
    with monkeypatch.context() as patch, store.writing() as writer:
        digest = other_row(writer)
        patch.setattr(stores, "gained", lambda *versions: (0, digest))
        writer.seal()
    assert read_seal(store.folder).version != version
    with pytest.raises(SearchError, match="it should hold 48 rows, and holds 48, or others"):
        Loaded(store.read())
    assert not check_store(store).ok
    held = sorted(store.folder.rglob("*"))
    with pytest.raises(SearchError, match="it should hold 48 rows, and holds 48, or others"):
        forget(store, ["/photos/7.jpg"])  # which would leave nothing but that version
    assert sorted(store.folder.rglob("*")) == held


def test_an_empty_name_is_that_of_no_picture(store):
    """Pictures from memory have an empty path, and are none to be forgotten by it."""
    with store.writing() as writer:
        pictures = [entry._replace(path="") for entry in entries(60, 2)]
        writer.append(make_table(pictures, [vectors(2)], writer.snapshot.dataset.schema))
    for names in ([""], ["/photos/7.jpg", ""]):
        with pytest.raises(InputError, match="an empty name is that of no picture"):
            forget(store, names)
    assert len(ids(store)) == 50
    assert forget(store, [" ", ".", "~"]).forgotten == 0
    assert forget(store, [pictures[1].id]).forgotten == 1
    assert len(ids(store)) == 49


def test_names_of_what_is_forgotten(store, monkeypatch):
    """Ids; paths as they are typed; paths as a hit has them, which need not be those of the file."""
    with store.writing() as writer:
        odd = entries(60, 1)[0]._replace(path="/photos/caf\\xe9.jpg")
        writer.append(make_table([odd], [vectors(1)], writer.snapshot.dataset.schema))
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/photos")
    asked = [f"{5:064x}", "photos/6.jpg", "/photos/../photos/7.jpg", "~/8.jpg", odd.path, "6.jpg"]
    report = forget(store, asked)
    assert (report.forgotten, report.missing) == (5, ("6.jpg",))
    assert not {5, 6, 7, 8, 60} & set(ids(store))


def test_a_newer_format_is_refused(store):
    path = store.folder / NAME
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format_version": 3}))
    with pytest.raises(SearchError, match="has format 3, and this robustsim reads 2: upgrade robustsim"):
        store.read()
    path.write_text(json.dumps({**data, "format_version": "1"}))
    with pytest.raises(SearchError, match="does not match its checksum"):
        store.read()


def test_what_is_no_index(tmp_path, store):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(SearchError, match="is no index"):
            Store(folder).read()
    with pytest.raises(OutputError, match="is in use"):
        Store.create(store.folder, [DIM], {})
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter.txt").touch()
    with pytest.raises(OutputError, match="is in use"):
        Store.create(tmp_path / "precious", [DIM], {})
    assert [path.name for path in Path(tmp_path / "precious").iterdir() if path.name != "lock"] == ["letter.txt"]


def test_a_creation_that_was_interrupted_begins_anew(store, tmp_path):
    Store.create(tmp_path / "new", [DIM], {"made": "before"})
    # As it is when the process is killed while it writes the seal.
    (tmp_path / "new" / NAME).rename(tmp_path / "new" / f".{NAME}.123-0a1b2c3d.part")
    assert Store.create(tmp_path / "new", [DIM], {"made": "again"}).read().header == {"made": "again"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"lock", NAME, ROWS}
    (store.folder / NAME).unlink()  # which makes no empty one of an index that holds something
    with pytest.raises(OutputError, match="is in use"):
        Store.create(store.folder, [DIM], {})


def test_an_index_stays_where_it_was_opened(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    relative, at_home = Store("index"), Store("~/index")
    monkeypatch.chdir("/")
    append(relative, 60, 1)
    append(at_home, 61, 1)
    assert ids(store)[-2:] == [60, 61]
    monkeypatch.chdir(tmp_path)
    assert Store.create("~/other", [DIM], {}).folder == tmp_path / "other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other"]


def test_digests_add_up_in_any_order():
    made = [bytes([n]) * 16 for n in range(256)]
    assert add_up(made) == add_up(made[::-1]) == (add_up(made[:9]) + add_up(made[9:])) % (1 << 128)
    assert add_up([]) == 0
