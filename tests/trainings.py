"""Small encoders and recipes to train in no time, pictures to train on, and a server of processes to be killed."""

import os
import subprocess
import sys

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from robustsim.encoders import Architecture, EncoderCard
from robustsim.encoders.encoder import Encoder
from robustsim.images import Preprocessing
from robustsim.training import FinetuneRecipe, TrainRecipe
from robustsim.training.tasks import prepare
from tests.conftest import ROOT

SIDE, DIM = 16, 12


class Trunk(nn.Module):
    """(N, 3, S, S) -> (N, 12): two convolutions, what a test wants between them, and a linear layer."""

    def __init__(self, *between):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2)
        self.between = nn.Sequential(*between)
        self.second = nn.Conv2d(8, 16, 3, stride=2)
        self.last = nn.Linear(16, DIM)

    def forward(self, x):
        x = self.between(F.relu(self.first(x)))
        return self.last(F.relu(self.second(x)).mean((2, 3)))


def encoder(*between, seed=0):
    with torch.random.fork_rng():
        trunk = Trunk(*between)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trunk.parameters():
            spread = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    card = EncoderCard(
        name="small",
        architecture=Architecture(library="robustsim", name="efficientnet-lite0"),  # a lie: it cannot be loaded again
        embedding_dim=DIM,
        preprocessing=Preprocessing(size=SIDE),
        license="CC0-1.0",
        data="nothing",
    )
    return Encoder(card, trunk.eval())


def use(make=encoder):
    """Let recipes mean this encoder, whatever they name; for ``monkeypatch.setattr`` or a job."""
    return prepare, "load_encoder", lambda name, text=False: make()


def recipe(**changes):
    """FARE on the small encoder: twelve steps, checkpoints at every fifth."""
    values = {
        "encoder": "small",
        "method": "fare",
        "attack": {"eps": "8/255", "steps": 2, "momentum": 0.5},
        "augment": {"crop": [0.5, 1.0], "flip": True},
        "optimizer": {"lr": 1e-2, "weight_decay": 1e-2, "warmup_steps": 2, "clip_norm": 1.0},
        "steps": 12,
        "batch_size": 4,
        "validation": {"every": 6, "images": 3, "steps": 2},
        "checkpoints": {"every": 5},
    }
    return TrainRecipe.model_validate({**values, **changes})


def finetune_recipe(**changes):
    values = {
        "encoder": "small",
        "adapter": {"name": "mlp", "hidden": 8},
        "optimizer": {"name": "adam", "lr": 1e-2, "schedule": "constant"},
        "steps": 12,
        "batch_size": 8,
        "validation": {"images": 5},
        "checkpoints": {"every": 5},
    }
    return FinetuneRecipe.model_validate({**values, **changes})


def pictures(folder, count, *, classes=0, seed=0):
    """Smooth pictures of odd sizes, in folders of classes if there are any; a class has a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        coarse = torch.rand(1, 3, 3, 3, generator=generator)
        if classes:
            coarse[:, index % classes % 3] = 0.2 + 0.6 * (index % classes >= 3)
        fine = F.interpolate(coarse, size=(20 + index % 3, 24), mode="bilinear").mul(255).byte()
        place = folder / f"class{index % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(fine[0].permute(1, 2, 0).numpy()).save(place / f"{index:03}.png")
    return folder


def weights(output):
    return load_file(output / "model.safetensors")


def same(a, b):
    """Whether two results have the same weights, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def furthest(a, b):
    """The greatest difference between two results."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


_SERVER = """
import os, sys, traceback
import torch
from robustsim.training import run
torch.set_num_threads(1)
import accelerate, filelock, tqdm, torch._dynamo  # which the optimiser would import
from PIL import Image
Image.init()
while line := sys.stdin.readline():
    child = os.fork()
    if child == 0:
        code = 1
        try:
            exec(line)
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Starts processes that have all imports behind them, one at a time: each is a fork of a process that has done
    nothing but import."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], env=environment, cwd=ROOT, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, code):
        """Run Python in a process of its own; its number. It must not write to standard output."""
        self.process.stdin.write(f"exec({code!r}, {{}})\n")
        return int(self.process.stdout.readline())

    def wait(self):
        """The exit code of that process."""
        return int(self.process.stdout.readline())

    def run(self, code):
        """Run Python in a process of its own to its end; the exit code."""
        self.start(code)
        return self.wait()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
