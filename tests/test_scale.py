"""An index whose work is spread: the same rows to the bit, the same answers and evidence, nothing lost by a kill."""

import json
import sys
import tarfile

import numpy as np
import pytest

from robustsim import RobustSim
from robustsim.errors import InputError, MissingDependencyError, SearchError
from robustsim.search import Index
from tests import trainings
from tests.test_index_files import draw

pytest.importorskip("lance")

from robustsim.search.scale import (
    MapRunner,
    RayRunner,
    Request,
    SpreadIndex,
    commit_fragments,
    embed_batch,
    merge,
    parts_of,
    scan_fragment,
    write_fragment,
)
from robustsim.search.scale import spread as spreading
from robustsim.search.storage.fragments import waiting

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 41  # more than a batch of 32


@pytest.fixture(scope="module")
def model():
    """A small one; whoever loads the model of an index by its name gets it."""
    small = RobustSim(trainings.encoder())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RobustSim, "from_pretrained", lambda *words, **options: small)
        yield small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for seed in range(COUNT):
        draw(root / f"{seed:02}.png", seed % 37)  # some are alike
    (root / "bad.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def alone(model, folder, tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("alone") / "index", model, device="cpu", views=["mirror"])
    index.add(folder)
    return index


def spread(index, workers=3):
    return SpreadIndex(index, MapRunner(workers=workers, threads=1, device="cpu"))


def empty(alone, model, path):
    return Index.create(path, model, device="cpu", views=alone.views)


def rows(index):
    """All that is kept, in an order that does not depend on who wrote first."""
    table = index._store.read().dataset.to_table()
    return table.sort_by([(name, "ascending") for name in ("path", "tenant", "view")]).to_pylist()


def test_it_gives_the_same_rows_to_the_bit(alone, model, folder, tmp_path):
    bad, done = [], []
    index = spread(empty(alone, model, tmp_path / "index"))
    report = index.add(folder, progress=done.append, on_error=bad.append)
    assert (report.added, report.failed, sum(done)) == (COUNT, 1, COUNT + 1)
    assert "bad.png" in str(bad[0])
    assert rows(index) == rows(alone)
    assert index.check().ok
    assert not waiting(index._store.folder)
    again = index.add(folder, label="mine")
    assert (again.added, again.relabelled, again.failed) == (0, COUNT, 1)
    assert index.add(folder).unchanged == COUNT


def test_it_gives_the_same_answers_and_evidence(alone, folder):
    index, queries = spread(alone), [folder / "03.png", folder / "20.png"]
    lines = dict.fromkeys(alone.lines, 0.6)
    assert index.search(queries, 5) == alone.search(queries, 5)
    assert index.search(queries, 5, views=["mirror"]) == alone.search(queries, 5, views=["mirror"])
    assert index.within(queries, 0.2) == alone.within(queries, 0.2)
    assert any(alone.within(queries, lines, views=["mirror"]))
    assert index.within(queries, lines, views=["mirror"]) == alone.within(queries, lines, views=["mirror"])
    assert index.within(queries, 0.2, tenant="nobody") == alone.within(queries, 0.2, tenant="nobody")
    with pytest.raises(InputError, match="approximate"):
        index.search(queries, approximate=True)


def test_it_finds_the_same_duplicates(alone):
    compared, seen = [], []
    expected = alone.duplicates(dict.fromkeys(alone.lines, 0.3), progress=compared.append)
    found = spread(alone).duplicates(dict.fromkeys(alone.lines, 0.3), progress=seen.append)
    assert expected.groups
    assert found.groups == expected.groups
    assert list(found.pairs()) == list(expected.pairs())
    assert sum(seen) == sum(compared)


def test_an_answer_that_lacks_a_part_is_refused(alone, folder):
    seal = alone._store.read().seal
    request = Request("nearest", 0, alone.metric.embed(folder / "00.png").numpy(), 3)
    scanned = [scan_fragment(part, request) for part in parts_of(alone.path, seal, 3)]
    whole = merge(scanned, seal)
    assert whole.compared == COUNT
    assert merge([*scanned, scanned[0]], seal).found == whole.found
    with pytest.raises(SearchError, match="not be complete"):
        merge(scanned[1:], seal)
    with pytest.raises(SearchError, match="not be complete"):
        merge([*scanned[1:], scanned[0]._replace(digest=0)], seal)


class KilledError(Exception):
    """Stands for SIGKILL: nothing is done after it."""


def test_what_was_written_before_a_kill_counts(alone, model, folder, tmp_path, monkeypatch):
    index, taken = spread(empty(alone, model, tmp_path / "index")), []

    def dies(self, fragments, **words):
        taken.append(fragments)
        if len(taken) > 1:
            raise KilledError
        return adopt(self, fragments, **words)

    adopt = spreading.Update.adopt
    monkeypatch.setattr(spreading.Update, "adopt", dies)
    with pytest.raises(KilledError):
        index.add(folder)
    monkeypatch.undo()
    assert len(waiting(index._store.folder)) == 1
    before = len(Index.open(index.path))
    embedded = []
    monkeypatch.setattr(
        spreading, "embed_batch", lambda batch, **w: embedded.extend(batch["path"]) or embed_batch(batch, **w)
    )
    report = index.add(folder)
    assert report.added == COUNT - before
    assert len(embedded) < COUNT + 1 - before  # the one that was written was not made again
    assert rows(index) == rows(alone)
    assert not waiting(index._store.folder)


def test_fragments_of_anybody_are_taken_in_once(alone, model, folder, tmp_path):
    index = empty(alone, model, tmp_path / "index")
    paths = np.array([str(path) for path in sorted(folder.glob("*.png"))], object)
    for some in (paths[:20], paths[20:], paths[15:25]):
        told = write_fragment(embed_batch({"path": some}, index=index.path, device="cpu"), index=index.path)
        assert told["pictures"].tolist() == [sum("bad" not in path for path in some)]
    assert [path for path, _ in json.loads(told["failed"][0])] == []
    assert commit_fragments(index.path).added == COUNT
    assert rows(index) == rows(alone)
    # What another index, or model, has written does not count here, and what is forgotten is not kept by any.
    write_fragment(embed_batch({"path": paths[:3]}, index=index.path, device="cpu"), index=index.path)
    index.forget([str(paths[0])])
    assert not waiting(index._store.folder)
    assert commit_fragments(index.path).added == 0


def test_shards_and_urls(alone, model, folder, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted(folder.glob("*.png")):
            tar.add(path, path.name)
        tar.add(__file__, "00.txt")
    index = spread(empty(alone, model, tmp_path / "index"))
    report = index.add(tmp_path / "shard.tar")
    assert (report.added, report.failed, report.passed_over) == (COUNT, 1, {".txt": 1})
    found, expected = rows(index), rows(alone)
    assert [one["embedding"] for one in found] == [one["embedding"] for one in expected]
    assert [one["id"] for one in found] == [one["id"] for one in expected]
    assert found[0]["path"] == f"{tmp_path}/shard.tar/00.png"
    assert index.add(f"file://{tmp_path}/shard.tar").unchanged == COUNT  # a file by its URL is that file
    with pytest.raises(InputError, match="no folder"):
        index.sync(tmp_path / "shard.tar")
    # Members of a shard that is there are not gone, and those of one that is not are.
    index.add(folder)
    index.sync(tmp_path, remove_all=True)
    assert len(Index.open(index.path)) == 2 * COUNT
    (tmp_path / "shard.tar").unlink()
    assert index.sync(tmp_path, remove_all=True).removed == COUNT

    from pyarrow import fs

    other = spread(empty(alone, model, tmp_path / "other"))
    filesystem = fs.SubTreeFileSystem(str(folder.parent), fs.LocalFileSystem())
    report = other.add(folder.name, filesystem=filesystem, label="x")
    assert (report.added, report.failed) == (COUNT, 1)
    assert [one["embedding"] for one in rows(other)] == [one["embedding"] for one in expected]
    assert other.add(folder.name, filesystem=filesystem).unchanged == COUNT


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "robustsim\[ray\]"'):
        RayRunner()
