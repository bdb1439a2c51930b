import gc
import os
import sys

# Before huggingface_hub is imported: it reads these once. Tests talk to their own server, in plain HTTP.
os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
# It answers, but on a busy machine perhaps not within the ten seconds that are usual.
os.environ.update(HF_HUB_ETAG_TIMEOUT="600", HF_HUB_DOWNLOAD_TIMEOUT="600")
# Of the processes that tests start: where cores are busy, threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The engine of commands is torch unless a test says otherwise: the other keeps what it makes in the user's cache.
os.environ["ROBUSTSIM_ENGINE"] = "torch"
for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(name, None)

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from tests import hub_server, layouts

# How long an example takes says more of the machine than of the code.
settings.register_profile("robustsim", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("robustsim")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="module")
def one_thread():
    """For small models and pictures, which gain nothing by two and lose much where a core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared():
    """The data beside the project; tests that need it skip where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def server():
    """Starts processes that are to be killed."""
    from tests import trainings

    server = trainings.Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def forks():
    """Runs code in processes that have the frameworks of others behind them."""
    from tests.processes import Forks

    names = ("torchvision.transforms.functional", "torchmetrics", "lightning.pytorch", "accelerate", "robustsim.metric")
    forks = Forks(ROOT, names)
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def metric():
    from robustsim import RobustSim

    return RobustSim.from_pretrained(device="cpu")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local Hub, and a cache of its own."""
    with hub_server.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
        server.cache = tmp_path / "hub-cache"
        yield server


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Folders in the published layouts, with the models they hold: {name: (folder, model)}."""
    root = tmp_path_factory.mktemp("published")
    made = {}
    for name, config in (("vit", layouts.VIT_B_32), ("convnext", layouts.CONVNEXT)):
        made[name] = (root / name, layouts.write_open_clip(root / name, config))
    made["vit-bin"] = (root / "vit-bin", layouts.write_open_clip(root / "vit-bin", layouts.VIT_B_32, binary=True))
    for name, (architecture, args) in (("dino", layouts.DINO), ("dinov3", layouts.DINOV3)):
        made[name] = (root / name, layouts.write_timm(root / name, architecture, args))
    architecture, args = layouts.CONVNET
    made["classifier"] = (root / "classifier", layouts.write_timm(root / "classifier", architecture, args, classes=7))
    return made


@pytest.fixture(scope="module")
def small_dreamsim():
    """DreamSim's networks, as wide as the files that the tests write for them."""
    from tests import dreamsim_files

    with dreamsim_files.small_networks():
        yield


@pytest.fixture(scope="session")
def photo():
    """A small natural picture, uint8 (H, W, 3), of odd size."""
    with Image.open(EXAMPLES / "chelsea.png") as image:
        return np.asarray(image.convert("RGB").resize((131, 87)))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    from robustsim.cli import main

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["robustsim", *map(str, words)])
        monkeypatch.setattr(gc, "freeze", lambda: None)  # for a process that ends after the command
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call
