"""LAION's head: its layers, the files it is read from, and files that would run code."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robustsim import RobustSim
from robustsim.errors import CorruptFileError, InputError, WeightsError
from robustsim.search import LaionHead, ScoreDetector
from tests import trainings


@pytest.fixture
def state():
    """As LAION publishes it: the names of its port to torch."""
    generator = torch.Generator().manual_seed(0)
    widths = (768, 64, 512, 256, 1)
    made = {
        "norm.mean": torch.randn(768, generator=generator) / 100,
        "norm.variance": torch.rand(768, generator=generator),
    }
    for n in range(4):
        made[f"linear_{n + 1}.weight"] = torch.randn(widths[n + 1], widths[n], generator=generator) / widths[n] ** 0.5
        made[f"linear_{n + 1}.bias"] = torch.randn(widths[n + 1], generator=generator) / 10
    return made


@pytest.fixture
def embeddings():
    return torch.nn.functional.normalize(torch.randn(5, 768, generator=torch.Generator().manual_seed(1)))


def keras(state):
    """What `get_weights` of the Keras model gives: a count after the mean and variance, and kernels (into, out)."""
    arrays = [state["norm.mean"].numpy(), state["norm.variance"].numpy(), np.int64(240_000)]
    for n in range(1, 5):
        arrays += [state[f"linear_{n}.weight"].numpy().T, state[f"linear_{n}.bias"].numpy()]
    return arrays


def expected(state, x):
    """The network as its definition has it, in float64."""
    x = (x.double() - state["norm.mean"]) / state["norm.variance"].double().sqrt()
    for n in range(1, 5):
        x = x @ state[f"linear_{n}.weight"].double().T + state[f"linear_{n}.bias"]
        x = x.relu() if n < 4 else x.sigmoid()
    return x[:, 0].float()


def write(path, state):
    if path.name == "keras.npz":
        np.savez(path, *keras(state))
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["head.pth", "head.safetensors", "head.npz", "keras.npz"])
def test_every_kind_of_file(tmp_path, state, embeddings, name):
    head = LaionHead.load(write(tmp_path / name, state))
    scores = head(embeddings)
    assert scores.shape == (5,)
    torch.testing.assert_close(scores, expected(state, embeddings), atol=1e-6, rtol=1e-5)
    assert scores.std() > 0.01
    assert not any(one.requires_grad for one in head.parameters())


def test_it_is_differentiable_and_says_what_it_takes(tmp_path, state, embeddings):
    head = LaionHead.load(write(tmp_path / "head.pth", state))
    embeddings.requires_grad_()
    head(embeddings).sum().backward()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.abs().sum() > 0
    with pytest.raises(
        InputError, match=r"takes embeddings \(N, 768\) of CLIP ViT-L/14 of OpenAI, and not .* \(2, 512\)"
    ):
        head(torch.ones(2, 512))
    small = RobustSim(trainings.encoder())
    with pytest.raises(
        InputError, match=r"takes embeddings of 'clip-vit-l-14', 768 values each, and not those of 'small'"
    ):
        ScoreDetector(head).check_metric(small)
    with pytest.raises(InputError, match="768 values each"):
        ScoreDetector(head, metric=small)


def test_other_networks_are_refused(tmp_path, state):
    narrow = {**state, "linear_1.weight": state["linear_1.weight"][:, :512]}
    for name in ("a.pth", "a.npz", "keras.npz"):
        with pytest.raises(WeightsError, match=r"not LAION's head .* linear_1.weight \(64, 512\)"):
            LaionHead.load(write(tmp_path / name, narrow))
    del narrow["linear_4.bias"]
    with pytest.raises(WeightsError, match=r"linear_4\.bias missing"):
        LaionHead.load(write(tmp_path / "b.safetensors", {name: value.contiguous() for name, value in narrow.items()}))
    with pytest.raises(WeightsError, match="not finite"):
        LaionHead.load(write(tmp_path / "c.pth", {**state, "linear_4.bias": torch.full((1,), float("nan"))}))
    with pytest.raises(WeightsError, match="there is no file"):
        LaionHead.load(tmp_path / "nothing.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:5000])
    with pytest.raises(CorruptFileError, match="no whole"):
        LaionHead.load(tmp_path / "cut.npz")


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["head.pth", "head.pkl", "head.npz", "plain.npz", "head.safetensors"])
def test_a_file_that_would_run_code_runs_none(tmp_path, state, name):
    path, written = tmp_path / name, tmp_path / "written"
    if name == "head.npz":
        np.savez(path, **{"norm.mean": np.array([Payload(written)], dtype=object)})
    elif name == "head.pth":
        torch.save({**state, "norm.mean": Payload(written)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(written)))
    with pytest.raises(CorruptFileError):
        LaionHead.load(path)
    assert not written.exists()
    if name == "head.pkl":
        pickle.loads(path.read_bytes()).close()  # what it would have done
        assert written.exists()


def header(text):
    line = text.encode() + b" " * 20 + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


def of_shape(shape):
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")


@pytest.mark.parametrize(
    "data",
    [of_shape("(1000000000000,)"), of_shape("(-1,)"), of_shape(f"({10**30},)"), header("{" * 5000), b"", b"hello",
     b"\x93NUMPY\x07\x00", header("{'descr': [('a', '<f4')] * 3, 'fortran_order': 0, 'shape': (1,)}"),
     of_shape("(20000000,)") + bytes(80_000_000)],
    ids=["huge", "negative", "overflow", "nested", "empty", "text", "version", "descr", "bomb"],
)  # fmt: skip
def test_a_member_is_looked_at_before_it_is_read(tmp_path, data, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("norm.mean.npy", data)
    monkeypatch.setattr(np.lib.format, "read_array", None)
    with pytest.raises(CorruptFileError, match="no whole"):
        LaionHead.load(tmp_path / "a.npz")


def test_an_archive_that_numpy_did_not_write(tmp_path):
    with io.BytesIO() as made:
        np.savez(made, a=np.ones(3))
        good = made.getvalue()
    entry = good.index(b"PK\x01\x02")
    for at, value in ((8, 1), (10, 99)):  # encrypted; a compression of its own
        bad = bytearray(good)
        bad[entry + at] |= value
        (tmp_path / "a.npz").write_bytes(bad)
        with pytest.raises(CorruptFileError):
            LaionHead.load(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_numbers_that_score_nothing_are_refused(tmp_path, state, suffix):
    path = tmp_path / f"a{suffix}"
    wrong = {
        "not finite": state["linear_1.weight"].double() * 1e300,  # infinite as float32
        "int8": state["linear_1.weight"].to(torch.int8),
    }
    for why, value in wrong.items():
        with pytest.raises(WeightsError, match=why):
            LaionHead.load(write(path, {**state, "linear_1.weight": value}))
    with pytest.raises(WeightsError, match="not above 0"):
        LaionHead.load(write(path, {**state, "norm.variance": -state["norm.variance"]}))
    for threshold in (-0.1, 50):
        with pytest.raises(InputError, match=r"must be from 0\.0 to 1\.0"):
            ScoreDetector(LaionHead(), threshold)
