"""The index on clusters of Ray on this machine; skipped where Ray is not installed (`pip install "robustsim[ray]"`)."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from robustsim.search import Index
from tests.conftest import ROOT
from tests.test_index_files import draw
from tests.test_scale import rows

pytest.importorskip("lance")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc"), reason="clusters of several nodes on one machine are for Linux"),
    pytest.mark.filterwarnings("ignore"),  # of Ray's own
    pytest.mark.usefixtures("one_thread"),
]
COUNT = 160
SMALL = {"object_store_memory": 200_000_000, "include_dashboard": False}


@pytest.fixture(scope="module", autouse=True)
def not_nice():
    """Ray's workers give way to whatever else runs, and would wait for long beside other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason='Ray is not installed: pip install "robustsim[ray]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for seed in range(COUNT):
        draw(root / f"{seed:03}.png", seed % 150)
    return root


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("alone") / "index", device="cpu")
    index.add(folder)
    return index


def test_a_node_dies_halfway(ray, alone, folder, tmp_path):
    from ray.cluster_utils import Cluster

    from robustsim.search.scale import RayRunner, SpreadIndex

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **SMALL})
    try:
        doomed = cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
        cluster.wait_for_nodes()
        done = []

        def progress(count):
            done.append(count)
            if len(done) == 1:
                threading.Thread(target=cluster.remove_node, args=(doomed, False)).start()

        with RayRunner(cluster.address, workers=2) as runner:
            index = SpreadIndex(Index.create(tmp_path / "index", device="cpu"), runner)
            assert index.add(folder, progress=progress).added == COUNT
            assert rows(index) == rows(alone)
            queries = [folder / "003.png", folder / "100.png"]
            runner.workers = 1  # there is no second node any more
            single = Index.open(index.path)  # of the same version, which is not that of the other index
            assert index.search(queries, 5) == single.search(queries, 5)
            assert index.within(queries, 0.2) == single.within(queries, 0.2)
            assert single.within(queries, 0.2).hits == alone.within(queries, 0.2).hits
            found, expected = index.duplicates(0.1), alone.duplicates(0.1)
            assert expected.groups
            assert found.groups == expected.groups
        assert index.check().ok
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_the_command_is_killed_halfway(ray, alone, folder, tmp_path):
    words = [sys.executable, "-m", "robustsim", "index", str(tmp_path / "index"), str(folder), "--ray", "local"]
    options = {"cwd": ROOT, "env": {**os.environ, "CUDA_VISIBLE_DEVICES": ""}, "stderr": subprocess.PIPE, "text": True}
    command = subprocess.Popen(words, start_new_session=True, **options)
    fragments, deadline = tmp_path / "index" / "rows.lance" / "data", time.monotonic() + 300
    while command.poll() is None and time.monotonic() < deadline and not list(fragments.glob("*")):
        time.sleep(0.01)
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
    before = len(Index.open(tmp_path / "index"))
    assert 0 <= before < COUNT
    again = subprocess.run(words, check=False, **options)
    assert again.returncode == 0, again.stderr
    index = Index.open(tmp_path / "index")
    assert rows(index) == rows(alone)
    assert index.check().ok
    assert f"{COUNT - before} added" in again.stderr or f"{before} unchanged" in again.stderr
    dedup = [sys.executable, "-m", "robustsim", "dedup", str(tmp_path / "index"), "--distance", "0.3", "--json"]
    found = [
        subprocess.run([*dedup, *more], check=True, stdout=subprocess.PIPE, **options).stdout
        for more in ((), ("--ray", "local"))
    ]
    assert json.loads(found[0]) == json.loads(found[1])
    assert json.loads(found[0])["groups"]
