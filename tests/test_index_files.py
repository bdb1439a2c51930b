"""The index over folders: what it answers, what it keeps up with, and what a kill or another writer does to it."""

import io
import os
import random
import shutil
import sys
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim import RobustSim
from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.encoders.load import image_sha256
from robustsim.errors import ImageError, InputError, MissingDependencyError, OutputError, SearchError
from robustsim.images.files import from_printable
from robustsim.search import Index, stamps
from robustsim.search.index import update
from tests import trainings
from tests.conftest import EXAMPLES
from tests.processes import GATE, killed

pytest.importorskip("lance")
pytestmark = pytest.mark.usefixtures("one_thread")


def draw(path, seed):
    """A small picture, unlike others."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for seed in range(9):
        draw(root / f"{seed}.png", seed)
    draw(root / "ünder" / "9.png", 9)
    (root / "bad.png").write_bytes((root / "3.png").read_bytes()[:60])
    (root / "notes.txt").touch()
    return root


@pytest.fixture(scope="module")
def small():
    return RobustSim(trainings.encoder(), batch_size=4)


@pytest.fixture
def index(small, folder, tmp_path):
    index = Index.create(tmp_path / "index", small)
    index.add(folder)
    return index


def names(hits):
    return [os.path.basename(hit.path) for hit in hits]


def everything(index, query):
    return [(hit.path, hit.id, hit.label) for hit in index.search(query, 1000)[0]]


def test_answers_are_the_metrics(small, folder, index, tmp_path):
    bad, done = [], []
    report = Index.create(tmp_path / "other", small).add(folder, on_error=bad.append, progress=done.append)
    assert (report.added, report.failed, report.unchanged, report.passed_over) == (10, 1, 0, {".txt": 1})
    assert "bad.png" in str(bad[0])
    assert sum(done) == 11
    queries = [folder / "2.png", folder / "ünder" / "9.png"]
    files = sorted(path for path in folder.rglob("*.png") if path.name != "bad.png")
    expected = small.distance_matrix(queries, files)
    answer = index.search(queries, 4)
    assert (len(answer), answer.complete, answer.version) == (2, True, index.version)
    assert 0 < answer.bound < 0.1
    for hits, row in zip(answer, expected, strict=True):
        nearest = row.argsort()[:4]
        assert [hit.path for hit in hits] == [str(files[n]) for n in nearest]
        # float16 keeps 11 bits: a picture is some 1e-4 from itself.
        np.testing.assert_allclose([hit.distance for hit in hits], row[nearest], atol=5e-4)
    limit = float(expected[0].sort().values[3]) + 1e-3
    assert [hit.path for hit in index.within(queries[0], limit)[0]] == [hit.path for hit in answer[0]]
    z = small.embed(queries)
    assert index.search(z, 4).hits == index.search(queries, 4).hits
    assert len(index) == 10
    assert index.check().ok


def test_what_is_there_is_not_embedded_again(small, folder, index, monkeypatch):
    monkeypatch.setattr(RobustSim, "from_pretrained", None)
    version = index.version
    again = Index.open(index.path)
    for report in (again.add(folder), again.sync(folder)):
        assert (report.added, report.replaced, report.removed, report.unchanged, report.failed) == (0, 0, 0, 10, 1)
    assert again.version == version


def test_sync_follows_the_folder(small, folder, index):
    draw(folder / "new.png", 50)
    draw(folder / "1.png", 51)
    (folder / "0.png").unlink()
    os.utime(folder / "1.png", ns=(1, 1))
    shutil.copy(folder / "bad.png", folder / "2.png")
    query = small.embed(folder / "4.png")
    report = index.add(folder)
    assert (report.added, report.replaced, report.removed, report.unchanged, report.failed) == (1, 1, 0, 7, 2)
    assert {"0.png", "2.png", "new.png"} <= set(names(index.search(query, 100)[0]))
    report = index.sync(folder)
    assert (report.added, report.replaced, report.removed, report.unchanged, report.failed) == (0, 0, 2, 9, 2)
    expected = sorted(path.name for path in folder.rglob("*.png") if path.name not in ("bad.png", "2.png"))
    assert sorted(names(index.search(query, 100)[0])) == expected
    assert index.search(folder / "1.png", 1)[0][0].distance < 1e-3
    assert index.check().ok


def test_sync_keeps_to_its_folder_and_its_tenant(small, folder, index, tmp_path):
    beside = tmp_path / "photos-too"
    draw(beside / "beside.png", 60)
    index.add(beside)
    index.add(folder, tenant="b")
    shutil.rmtree(folder / "ünder")
    assert index.sync(folder).removed == 1
    assert len(index) == 10 + 1 + 9
    assert names(index.search(draw(tmp_path / "q.png", 9), 1, tenant="b")[0]) == ["9.png"]


def test_sync_removes_nothing_below_what_cannot_be_listed(folder, index, monkeypatch):
    scandir = os.scandir

    def failing(path):
        if os.path.basename(path) == "ünder":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    report = index.sync(folder)
    assert (report.removed, report.failed) == (0, 2)
    with pytest.raises(ImageError, match="is not a folder"):
        index.sync(folder / "nowhere")
    assert len(index) == 10


def test_sync_removes_only_what_is_not_there(small, folder, index, tmp_path):
    shutil.copy(folder / "1.png", folder / "evidence")
    shutil.copy(folder / "2.png", folder / ".hidden.png")
    assert index.add([folder / "evidence", folder / ".hidden.png"]).added == 2
    draw(tmp_path / "disk" / "a.png", 80)
    draw(tmp_path / "disk" / "b.png", 81)
    (folder / "link").symlink_to(tmp_path / "disk")
    assert index.add(folder, follow_links=True).added == 2
    assert index.sync(folder).removed == 0
    os.rename(tmp_path / "disk", tmp_path / "offline")
    for follow_links in (True, False):
        assert index.sync(folder, follow_links=follow_links).removed == 0
    os.rename(tmp_path / "offline", tmp_path / "disk")
    (tmp_path / "disk" / "b.png").unlink()
    (folder / "evidence").unlink()
    assert index.sync(folder).removed == 2
    assert len(index) == 12


def test_sync_removes_nothing_that_may_not_be_read(folder, index, monkeypatch):
    """As another user: a file that may not be read, and a folder that may be listed and not entered."""
    os.utime(folder / "5.png", ns=(1, 1))
    closed = str(folder / "5.png"), str(folder / "ünder") + "/"
    original = {name: getattr(os, name) for name in ("stat", "lstat")}

    def asked(name, path, *words, **options):
        if str(path).startswith(closed[1]):
            raise PermissionError(13, "Permission denied")
        return original[name](path, *words, **options)

    opened = io.open

    def closed_to(path, *words, **options):
        if str(path).startswith(closed):
            raise PermissionError(13, "Permission denied")
        return opened(path, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr("io.open", closed_to)
        patch.setattr("builtins.open", closed_to)
        for name in original:
            patch.setattr(os, name, partial(asked, name))
        told = []
        report = index.sync(folder, on_error=told.append)
        assert (report.removed, report.failed) == (0, 3)
        assert "Permission denied" in "".join(map(str, told))
        assert index.add(folder).failed == 3
    assert len(index) == 10


def test_sync_of_a_disk_that_is_not_there(folder, index, tmp_path):
    os.rename(folder, tmp_path / "away")
    folder.mkdir()
    with pytest.raises(InputError, match=r"all 10 rows would be removed.*remove_all=True"):
        index.sync(folder)
    assert len(index) == 10
    draw(folder / "new.png", 90)  # it is there
    assert index.sync(folder).removed == 10
    (folder / "new.png").unlink()
    assert index.sync(folder, remove_all=True).removed == 1
    assert len(index) == 0


def test_folders_and_files_together(small, folder, index, tmp_path):
    draw(tmp_path / "beside" / "a.png", 91)
    (tmp_path / "beside" / "b.txt").touch()
    loose = draw(tmp_path / "loose.png", 92)
    report = Index.create(tmp_path / "new", small).add([folder, folder / "ünder", loose, tmp_path / "beside"])
    assert (report.added, report.unchanged, report.failed, report.passed_over) == (12, 1, 1, {".txt": 2})


def test_labels_are_applied_and_kept(small, folder, index, tmp_path, monkeypatch):
    assert index.search(folder / "1.png", label="a")[0] == ()
    before = index.search(folder / "1.png", 99)[0]
    with monkeypatch.context() as patch:
        patch.setattr(Index, "metric", None)  # nothing is embedded
        for label, counts in (("a", (10, 0)), ("a", (0, 10)), (None, (0, 10)), ("b", (10, 0))):
            report = Index.open(index.path).add(folder, label=label)
            assert (report.relabelled, report.unchanged, report.added, report.replaced) == (*counts, 0, 0)
    index = Index.open(index.path, small)
    after = index.search(folder / "1.png", 99, label="b")[0]
    assert after == tuple(replace(hit, label="b") for hit in before)
    assert index.check().ok
    os.utime(folder / "1.png", ns=(1, 1))
    draw(folder / "new.png", 95)
    report = index.sync(folder)
    assert (report.replaced, report.added, report.relabelled) == (1, 1, 0)
    assert index.search(folder / "1.png", 1)[0][0].label == "b"
    assert index.search(folder / "new.png", 1)[0][0].label is None
    os.utime(folder / "1.png", ns=(2, 2))
    report = index.sync(folder, label="c")
    assert (report.replaced, report.relabelled, report.removed, len(index)) == (1, 10, 0, 11)
    assert len(index.search(folder / "1.png", 99, label="c")[0]) == 11


def test_labels_of_pictures_in_memory(small, tmp_path):
    index = Index.create(tmp_path / "index", small)
    pictures = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    index.add(pictures, label="a")
    assert index.add(pictures).unchanged == 3
    report = index.add(pictures[:2], label="b")
    assert (report.relabelled, report.replaced, report.unchanged, len(index)) == (2, 0, 0, 3)
    assert [len(index.search(pictures[0], label=label)[0]) for label in "ab"] == [1, 2]


def test_filters_apply_before_scoring(small, folder, index, tmp_path):
    query = folder / "5.png"
    for number in range(5):  # nearer than all of the others
        shutil.copy(query, folder / f"copy{number}.png")
    index.add([folder / f"copy{number}.png" for number in range(5)], label="decoy")
    index.add([folder / "1.png", folder / "2.png"], label="mine", tenant="t")
    assert names(index.search(query, 5)[0]) == ["5.png", *(f"copy{number}.png" for number in range(4))]
    assert sorted(names(index.search(query, 5, tenant="t")[0])) == ["1.png", "2.png"]
    assert sorted(names(index.search(query, 9, label="decoy")[0])) == [f"copy{number}.png" for number in range(5)]
    assert {hit.label for hit in index.search(query, 9, label="decoy")[0]} == {"decoy"}
    assert index.within(query, 2**0.5, label="decoy", tenant="t")[0] == ()
    assert index.search(query, label="none")[0] == ()
    assert [index.search(query, label=label).compared for label in (None, "decoy", "none")] == [17, 5, 0]


def test_equal_pictures_come_in_an_order_of_their_own(small, tmp_path):
    root = tmp_path / "equal"
    order = list("badc")
    for name in order:
        draw(root / f"{name}.png", 1)
    first = Index.create(tmp_path / "first", small)
    first.add([root / f"{name}.png" for name in order])
    second = Index.create(tmp_path / "second", small)
    second.add(root)
    assert names(first.search(root / "a.png", 3)[0]) == ["a.png", "b.png", "c.png"]
    assert everything(first, root / "a.png") == everything(second, root / "a.png")


def test_pictures_in_memory(small, tmp_path):
    index = Index.create(tmp_path / "index", small)
    pictures = torch.rand(7, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    report = index.add([*pictures, pictures[2]], label="tensor")
    assert (report.added, report.unchanged) == (7, 0)
    assert (index.add(pictures[:3]).unchanged, len(index)) == (3, 7)
    (hit,) = index.search(pictures[4].clone().requires_grad_(), 1)[0]
    assert (hit.path, hit.label, len(hit.id)) == ("", "tensor", 64)
    assert hit.distance < 1e-3
    with pytest.raises(InputError, match="cannot be added together"):
        index.add([pictures[0], "a.png"])
    assert index.forget(hit.id).forgotten == 1
    assert index.search(pictures[4], 1)[0][0].distance > 1e-3


def test_forget(small, folder, index):
    (hit,) = index.search(folder / "7.png", 1)[0]
    shutil.copy(folder / "7.png", folder / "again.png")
    index.add(folder)
    report = index.forget([hit.id, os.path.relpath(folder / "3.png"), folder / "3.png", folder / "none.png"])
    assert (report.forgotten, report.missing) == (3, (str(folder / "none.png"),))
    assert len(index) == 8
    held = b"".join(path.read_bytes() for path in (folder.parent / "index").rglob("*") if path.is_file())
    for trace in (b"again.png", b"/3.png", hit.id.encode(), small.embed(folder / "7.png").numpy().astype("<f2")):
        assert bytes(trace) not in held
    assert b"/4.png" in held
    assert index.check().ok


def test_an_index_of_nothing(small, folder, tmp_path):
    index = Index.create(tmp_path / "index", small)
    assert index.search([folder / "1.png", folder / "2.png"]).hits == ((), ())
    assert index.within(folder / "1.png", 1.0, label="any")[0] == ()
    assert index.check().ok
    assert index.sync(folder).added == 10
    assert index.forget([hit.id for hit in index.search(folder / "1.png", 99)[0]]).forgotten == 10
    assert index.search(folder / "1.png")[0] == ()
    assert index.check().ok
    assert index.add(folder / "1.png").added == 1
    assert names(index.search(folder / "1.png")[0]) == ["1.png"]


def test_another_model_is_refused(small, folder, index):
    other = RobustSim(trainings.encoder(seed=1))
    with pytest.raises(SearchError, match="made by 'small', and this 'small' has other weights"):
        Index.open(index.path, other)
    half = RobustSim(trainings.encoder()).to(dtype=torch.bfloat16)
    with pytest.raises(SearchError, match="other weights, or another type"):
        Index.open(index.path, half)
    assert len(Index.open(index.path, small)) == 10
    with pytest.raises(InputError, match="neither an image"):
        index.search(torch.nn.functional.normalize(torch.ones(1, 13)))


def test_the_model_is_loaded_by_its_name(metric, tmp_path):
    index = Index.create(tmp_path / "index", device="cpu")
    assert index.add(EXAMPLES, label="example").added == 4
    again = Index.open(tmp_path / "index", device="cpu")
    (hit,) = again.within(EXAMPLES / "chelsea.png", 0.44)[0]
    assert (os.path.basename(hit.path), hit.label) == ("chelsea.png", "example")
    assert image_sha256(again.metric.encoder) == image_sha256(metric.encoder)


def test_the_catalogue_wins_over_a_folder(metric, tmp_path, monkeypatch):
    clean = RobustSim.from_pretrained(f"{DEFAULT_MODEL}-clean", device="cpu")
    clean.save_pretrained(tmp_path / DEFAULT_MODEL)
    monkeypatch.chdir(tmp_path)
    Index.create("index", device="cpu")
    again = Index.open("index", device="cpu")
    assert image_sha256(again.metric.encoder) == image_sha256(metric.encoder)
    Index.create("other", f"./{DEFAULT_MODEL}", device="cpu")
    monkeypatch.chdir("/")
    again = Index.open(tmp_path / "other", device="cpu")
    assert image_sha256(again.metric.encoder) == image_sha256(clean.encoder)


def test_what_is_refused(small, index, tmp_path, folder, monkeypatch):
    for k in (0, 2.5, "3"):
        with pytest.raises(InputError, match=f"k must be at least 1, a whole number, not {k!r}"):
            index.search(folder / "1.png", k)
    for words in ({"label": "\udcff"}, {"tenant": "\udcff"}):
        for attempt in (index.search, index.add, index.sync, partial(index.within, distance=0.1)):
            with pytest.raises(InputError, match=f"the {next(iter(words))} is no text that UTF-8 can hold"):
                attempt(folder, **words)
    with pytest.raises(InputError, match=r"from 0 to 1.414, not -0.1"):
        index.within(folder / "1.png", -0.1)
    with pytest.raises(ImageError, match=r"bad\.png"):
        index.search(folder / "bad.png")
    with pytest.raises(ImageError, match="is neither a folder nor a file"):
        index.add(folder / "none")
    with pytest.raises(SearchError, match="is no index"):
        Index.open(folder)
    with pytest.raises(OutputError, match="is in use"):
        Index.create(index.path, small)
    monkeypatch.setitem(sys.modules, "lance", None)
    for attempt in (lambda: Index.open(index.path), lambda: Index.create(tmp_path / "new", small)):
        with pytest.raises(MissingDependencyError, match=r'pip install "robustsim\[search\]"'):
            attempt()
    assert not (tmp_path / "new").exists()


def test_rows_are_committed_some_at_a_time(small, folder, tmp_path, monkeypatch):
    made, original = [], update.make_table
    monkeypatch.setattr(
        update, "make_table", lambda entries, *rest: made.append(len(entries)) or original(entries, *rest)
    )
    monkeypatch.setattr(update, "_TOGETHER", 3)
    monkeypatch.setattr(update, "_COMPARED", 2)
    index = Index.create(tmp_path / "index", small)
    assert index.add(folder).added == 10
    assert made == [3, 3, 3, 1]
    assert sorted(names(index.search(folder / "0.png", 99)[0])) == sorted(f"{n}.png" for n in range(10))


def test_another_writer_in_the_midst(small, folder, tmp_path, monkeypatch):
    """It adds the same files, changes some, and erases: rows move, and none is lost or there twice."""
    index = Index.create(tmp_path / "index", small)
    index.add(folder)
    for seed in range(5):
        draw(folder / f"{seed}.png", 100 + seed)
        os.utime(folder / f"{seed}.png", ns=(seed, seed))
        draw(folder / f"x{seed}.png", 200 + seed)
    (folder / "8.png").unlink()
    (folder / "7.png").unlink()
    monkeypatch.setattr(update, "_TOGETHER", 4)
    others = []

    def progress(count):
        if len(others) == 5:
            other = Index.open(index.path, small)
            others.append(other.add([folder / "x3.png", folder / "x4.png", folder / "4.png"]))
            others.append(other.forget([folder / "6.png", folder / "7.png"]))
        else:
            others.append(None)

    report = index.sync(folder, progress=progress)
    assert report.removed == 1  # 8.png; the other writer forgot 7.png
    found = sorted(names(index.search(folder / "0.png", 99)[0]))
    expected = [path.name for path in folder.rglob("*.png") if path.name not in ("bad.png", "6.png")]
    assert found == sorted(expected)
    for name in expected:
        (path,) = folder.rglob(name)
        assert index.search(path, 1)[0][0].distance < 1e-3, name
    assert index.check().ok
    assert index.sync(folder).added == 1


def test_readers_see_one_version_throughout(small, folder, index, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "_TOGETHER", 2)
    query = small.embed(folder / "0.png")
    reader, before = Index.open(index.path, small), None
    seen, wrong, done = set(), [], threading.Event()

    def read():
        try:
            while not done.is_set():
                one = Index.open(index.path, small)
                answer = one.search(query, 1000)
                hits = answer[0]
                if len(hits) % 2 or len({hit.path for hit in hits}) != len(hits):
                    wrong.append(names(hits))
                seen.add((answer.version, len(hits)))
        except BaseException as error:
            wrong.append(error)

    before = everything(reader, query)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for seed in range(30):
            draw(tmp_path / "more" / f"{seed}.png", 300 + seed)
        index.add(tmp_path / "more")
        for seed in range(30):  # each change takes a row away and brings another one
            os.utime(tmp_path / "more" / f"{seed}.png", ns=(seed, seed))
        index.sync(tmp_path / "more")
    finally:
        done.set()
        thread.join()
    assert not wrong
    assert len(dict(seen)) == len(seen)  # a version is one set of rows
    assert everything(reader, query) == before
    assert len(index) == 40


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere take no such names")
def test_names_that_are_no_utf8(small, tmp_path):
    draw(tmp_path / "photos" / "a.png", 1)
    shutil.copy(tmp_path / "photos" / "a.png", os.fsencode(tmp_path) + b"/photos/caf\xe9.png")
    index = Index.create(tmp_path / "index", small)
    assert index.add(tmp_path / "photos").added == 2
    assert index.sync(tmp_path / "photos").unchanged == 2
    assert names(index.search(tmp_path / "photos" / "a.png")[0]) == ["a.png", "caf\\xe9.png"]
    assert index.forget(os.fsdecode(os.fsencode(tmp_path) + b"/photos/caf\xe9.png")).forgotten == 1


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere take no such names")
@pytest.mark.parametrize("together", [1, 512])
def test_names_that_look_alike(small, tmp_path, monkeypatch, together):
    monkeypatch.setattr(update, "_TOGETHER", together)
    root = os.fsencode(tmp_path / "photos")
    files = [os.fsdecode(root + name) for name in (b"/caf\xe9.png", rb"/caf\xe9.png", rb"/caf\\xe9.png", rb"/a\b.png")]
    for seed, path in enumerate(files):
        draw(tmp_path / "drawn.png", seed)
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "drawn.png", path)
    index = Index.create(tmp_path / "index", small)
    assert index.add(tmp_path / "photos").added == 4
    for path in files:
        (hit,) = index.search(path, 1)[0]
        assert hit.distance < 1e-3
        assert from_printable(hit.path) == path
    for path in files:
        os.utime(path, ns=(1, 1))
    report = index.sync(tmp_path / "photos")
    assert (report.replaced, report.removed, len(index)) == (4, 0, 4)
    os.unlink(files[1])
    assert index.sync(tmp_path / "photos").removed == 1


def test_times_that_64_bits_do_not_hold(small, folder, index, monkeypatch):
    original = os.stat
    far = {"time": 13_569_465_600 * 10**9}

    class Far:
        def __init__(self, found):
            self.found = found

        def __getattr__(self, name):
            return far["time"] if name == "st_mtime_ns" else getattr(self.found, name)

    monkeypatch.setattr(os, "stat", lambda path, **options: Far(original(path, **options)))
    assert index.add(folder).replaced == 10
    assert index.sync(folder).unchanged == 10
    far["time"] += 10**9
    assert index.sync(folder).replaced == 10
    assert index.check().ok


def test_a_file_that_is_not_there_when_it_is_hashed(folder, small, tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "content_sha256", lambda path: {"error": "Input/output error"})
    index = Index.create(tmp_path / "index", small)
    told = []
    assert index.add(folder, on_error=told.append).failed == 11
    assert any("cannot read" in str(error) and "Input/output error" in str(error) for error in told)
    assert len(index) == 0


def test_what_was_committed_is_seen_after_an_error(small, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "_TOGETHER", 3)
    index = Index.create(tmp_path / "index", small)
    assert len(index) == 0
    done = []

    def progress(count):
        done.append(count)
        if len(done) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(folder, progress=progress)
    assert len(index) == 6
    assert index.add(folder).added == 4


def test_an_erasure_elsewhere_is_told(small, folder, index):
    query = small.embed(folder / "1.png")
    one, other, later = (Index.open(index.path, small) for _ in range(3))
    one.search(query)
    assert later.version == one.version
    other.forget(folder / "2.png")
    for reader in (one, later):
        with pytest.raises(SearchError, match="Open it again"):
            reader.search(query)
    assert len(Index.open(index.path, small).search(query)[0]) == 9


def test_what_the_disk_refuses_changes_nothing(small, folder, index, tmp_path, monkeypatch):
    before = everything(index, folder / "1.png")
    draw(tmp_path / "more" / "a.png", 70)

    def full(*words, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lance.write_dataset", full)
        with pytest.raises(OutputError, match=r"what was in it stays .*No space left"):
            index.add(tmp_path / "more")
    assert everything(index, folder / "1.png") == before
    assert index.add(tmp_path / "more").added == 1


TWO = """
import sys
import torch
torch.set_num_threads(1)
from tests import trainings
from robustsim import RobustSim
from robustsim.search import Index
from robustsim.search.index import update
update._TOGETHER = 3
index = Index.open({index!r}, RobustSim(trainings.encoder(), batch_size=2))
for folder in {folders!r}[int(__import__("os").environ["WHICH"])]:
    index.sync(folder)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_two_processes_lose_no_rows(small, tmp_path, forks):
    for name in ("a", "b", "c"):
        for seed in range(12):
            draw(tmp_path / name / f"{name}{seed}.png", hash(name) % 1000 + seed)
    index = Index.create(tmp_path / "index", small)
    folders = [[str(tmp_path / "a"), str(tmp_path / "c")], [str(tmp_path / "c"), str(tmp_path / "b")]]
    code = TWO.format(index=index.path, folders=folders)
    (tmp_path / "told").mkdir()
    codes, told = forks.run(tmp_path / "told", code, [{"WHICH": "0"}, {"WHICH": "1"}])
    assert codes == [0, 0], told
    found = sorted(names(index.search(tmp_path / "a" / "a0.png", 99)[0]))
    assert found == sorted(path.name for path in tmp_path.rglob("*.png"))
    assert index.check().ok


JOB = """
import torch
torch.set_num_threads(1)
from tests import trainings
from robustsim import RobustSim
from robustsim.search import Index
from robustsim.search.index import update
from robustsim.search.storage import store
update._TOGETHER, store._MOST = 3, 4
index = Index.open({index!r}, RobustSim(trainings.encoder(), batch_size=2))
index.{call}
gate({gate!r})
"""


def grows(folder):
    """What tells whether there are other files in it than now."""
    before = sorted(folder.rglob("*"))
    return lambda: sorted(folder.rglob("*")) != before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("kind", ["add", "sync", "forget"])
def test_killed_at_random_moments(small, tmp_path, server, kind):
    """SIGKILL; the same call then ends with the answers of an undisturbed run."""
    root, gate, moments = tmp_path / "photos", tmp_path / "gate", random.Random(kind)
    for seed in range(24):
        draw(root / f"{seed}.png", seed)
    query = small.embed(root / "0.png")

    def prepare(path):
        index = Index.create(path, small)
        if kind != "add":
            index.add(root)
        return index

    disturbed, undisturbed = prepare(tmp_path / "index"), prepare(tmp_path / "whole")
    if kind == "sync":
        for seed in range(0, 24, 2):
            draw(root / f"{seed}.png", 500 + seed)
            os.utime(root / f"{seed}.png", ns=(seed, seed))
        for seed in range(1, 6, 2):
            (root / f"{seed}.png").unlink()
    forgotten = [str(root / f"{seed}.png") for seed in range(1, 24, 3)]
    call = {"add": f"add({str(root)!r})", "sync": f"sync({str(root)!r})", "forget": f"forget({forgotten!r})"}[kind]
    for _ in range(4):
        job = GATE + JOB.format(index=disturbed.path, call=call, gate=str(gate))
        # From the first file that it has written on.
        killed(server, job, grows(tmp_path / "index"), gate, moments.uniform(0, 0.1))
        again = Index.open(disturbed.path, small)  # whole, at whatever version
        hits = everything(again, query)
        assert len({path for path, *_ in hits}) == len(hits)
    for index in (disturbed, undisturbed):
        if kind == "forget":
            index.forget(forgotten)
        else:
            getattr(index, kind)(root)
    assert everything(disturbed, query) == everything(undisturbed, query)
    assert disturbed.check().ok
    if kind == "forget":
        held = b"".join(path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file())
        assert not any(name.encode() in held for name in forgotten)
        assert str(root / "0.png").encode() in held


def test_an_update_begins_anew_where_another_erases_as_it_begins(small, folder, index, monkeypatch):
    other, known = Index.open(index.path, small), update.Known

    def late(*words):
        monkeypatch.setattr(update, "Known", known)
        other.forget(folder / "2.png")  # after the snapshot was opened, and before it is read
        return known(*words)

    monkeypatch.setattr(update, "Known", late)
    report = index.add(folder)
    assert (report.added, report.unchanged) == (1, 9)
    assert index.check().ok
