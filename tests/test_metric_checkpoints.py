"""A metric inside somebody's model: checkpoints, wrappers, shards, with its weights and without them."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from robustsim import RobustSim
from tests.conftest import ROOT

OWN = {"layer.weight", "layer.bias"}


class Model(nn.Module):
    def __init__(self, encoder, persistent):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.metric = RobustSim(copy.deepcopy(encoder), persistent=persistent)

    def forward(self, x, y):
        return self.metric(self.layer(x).sigmoid(), y)


@pytest.fixture(scope="module")
def encoder(published):
    return RobustSim.from_pretrained(published["vit"][0], device="cpu").encoder


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain(model):
    return model


def fsdp1(model):
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def fsdp1_beside(model):
    return FullyShardedDataParallel(model, ignored_modules=[model.metric], device_id=torch.device("cpu"))


def fsdp2_beside(model):
    return fully_shard(model, ignored_params=set(model.metric.parameters()))


WRAPPERS = [plain, nn.parallel.DistributedDataParallel, fsdp1, fsdp1_beside, fully_shard, fsdp2_beside]


def pictures(seed):
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of FSDP1, on its age and its device
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_wrapped_models_save_and_load(one_process, encoder, tmp_path, wrap, persistent):
    def made(seed):
        torch.manual_seed(seed)
        return wrap(Model(encoder, persistent))

    model, other, third = made(0), made(1), made(2)
    x, y = pictures(0), pictures(1)
    model(x, y).sum().backward()
    trained = [one for one in model.parameters() if one.requires_grad]
    assert trained
    assert all(one.grad is not None for one in trained)

    keys = {key.removeprefix("module.") for key in model.state_dict()}
    assert keys >= OWN
    assert any(key.startswith("metric.") for key in keys) == persistent
    assert not other.load_state_dict(model.state_dict(), strict=True).missing_keys

    state = get_model_state_dict(model)
    assert (set(state) == OWN) != persistent
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    assert set(whole) == set(state)
    dcp.save(state, checkpoint_id=tmp_path / "checkpoint")
    read = get_model_state_dict(third)
    dcp.load(read, checkpoint_id=tmp_path / "checkpoint")
    set_model_state_dict(third, read)
    expected = model(x, y)
    for restored in (other, third):
        torch.testing.assert_close(restored(x, y), expected, rtol=0, atol=1e-6)


def test_what_has_a_gradient_is_encoded_last(encoder):
    """FSDP1 keeps of a unit what its last pass needs, whichever side the gradient is on."""
    model = Model(encoder, persistent=True)
    seen = []
    model.metric.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    generated = model.layer(pictures(0)).sigmoid()
    for pair in ((generated, pictures(1)), (pictures(1), generated)):
        seen.clear()
        model.metric(*pair)
        assert seen == [False, True]


def test_without_the_metric_no_module_sees_it(encoder):
    model = Model(encoder, persistent=False)
    assert set(dict(model.named_parameters())) == set(model.state_dict()) == OWN
    model.requires_grad_(True)
    assert not any(one.requires_grad for one in model.metric.encoder.parameters())
    model.train()
    assert not model.metric.encoder.training


def test_it_moves_and_copies_with_its_model(encoder, tmp_path):
    model = Model(encoder, persistent=False)
    expected = model(pictures(0), pictures(1))
    assert copy.deepcopy(model).to(torch.float64).metric.encoder.mean.dtype == torch.float64
    assert copy.deepcopy(model).to("meta").metric.device.type == "meta"
    assert model.metric.encoder.mean.dtype == torch.float32
    torch.save(model, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(again(pictures(0), pictures(1)), expected)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pictures(0), pictures(1)), expected, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_that_holds_the_metric_is_read_without_being_asked_for(encoder):
    with_it, without = Model(encoder, persistent=True), Model(encoder, persistent=False)
    with torch.no_grad():
        next(with_it.metric.encoder.parameters()).mul_(2)
    without.load_state_dict(with_it.state_dict(), strict=True)
    assert torch.equal(next(without.metric.encoder.parameters()), next(with_it.metric.encoder.parameters()))
    wrong = with_it.state_dict()
    wrong["metric.encoder.trunk.visual.proj"] = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match=r"size mismatch for trunk\.visual\.proj"):
        without.load_state_dict(wrong, strict=True)
    half = {key: value for place, (key, value) in enumerate(with_it.state_dict().items()) if place % 2 == 0}
    with pytest.raises(RuntimeError, match="Missing key"):  # a mixture of two encoders would measure something else
        without.load_state_dict(half, strict=False)
    alone = RobustSim(copy.deepcopy(encoder), persistent=False)
    with pytest.raises(RuntimeError, match="Missing key"):
        alone.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        alone.load_state_dict({**with_it.metric.state_dict(), "encoder.trunk.more": torch.zeros(1)})
    assert alone.load_state_dict(with_it.metric.state_dict(), strict=True).unexpected_keys == []
    assert set(alone.state_dict()) == set(with_it.metric.state_dict()) != set()


TWO = """
import os, sys, warnings
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from tests.test_metric_checkpoints import Model, pictures
from robustsim import RobustSim
from robustsim.encoders import Encoder

folder, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
warnings.simplefilter("ignore")
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
encoder = RobustSim.from_pretrained(folder, device="cpu").encoder
cpu = torch.device("cpu")
wrappers = {
    "fsdp1": lambda model: FullyShardedDataParallel(model, use_orig_params=True, device_id=cpu),
    "fsdp1 by parts": lambda model: FullyShardedDataParallel(
        model, use_orig_params=True, device_id=cpu, auto_wrap_policy=ModuleWrapPolicy({Encoder})
    ),
    "fsdp2": fully_shard,
    "ddp": nn.parallel.DistributedDataParallel,
}
for name, wrap in wrappers.items():
    for persistent in (True, False):
        torch.manual_seed(0)
        model = wrap(Model(encoder, persistent))
        # The generated pictures are on the left: without care, what has no gradient would be encoded after them.
        model(pictures(rank), pictures(9)).sum().backward()
        state = model.state_dict()
        assert any(".encoder." in key for key in state) == persistent, (name, persistent)
        model.load_state_dict(state, strict=True)
        assert torch.isfinite(model(pictures(rank), pictures(9))).all()
distributed.destroy_process_group()
print("well")
"""


def test_two_processes_shard_a_model_around_the_metric(published, tmp_path):
    words = [sys.executable, "-c", TWO, str(published["vit"][0]), str(tmp_path / "store")]
    processes = [
        subprocess.Popen([*words, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            said, _ = process.communicate()
            assert process.returncode == 0, said[-2000:]
            assert said.endswith("well\n")
    finally:
        for process in processes:
            process.kill()
