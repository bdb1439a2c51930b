"""`robustsim benchmark`: modes, errors, memory, a mode that fails, and Ctrl-C."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch

from robustsim.encoders import Encoder, measuring
from robustsim.encoders.memory import peak_memory

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ("--batch-size", 2, "--seconds", 0, "--json")
needs_onnx = pytest.mark.skipif(not (find_spec("onnx") and find_spec("onnxruntime")), reason="needs onnx, onnxruntime")


def measured(run, *words):
    code, out, err = run("benchmark", *words, *QUICK)
    results = json.loads(out)
    return code, results, {mode["mode"]: mode for mode in results[-1]["modes"]}, err


def test_modes_are_measured_and_a_failing_one_is_told(run, monkeypatch):
    real = Encoder.to

    def to(self, *arguments):
        if torch.float16 in arguments:
            raise RuntimeError("no halves here")
        return real(self, *arguments)

    monkeypatch.setattr(Encoder, "to", to)
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    code, (result,), modes, _ = measured(run, "lite", "--random-weights")
    assert code == 0
    assert list(modes) == ["modules", "default", "bfloat16", "float16", "onnx", "onnx-int8"]
    assert result["default_mode"] == "default"
    assert all("robustsim[fast]" in modes[name]["problem"] for name in ("onnx", "onnx-int8"))
    assert modes["float16"]["problem"] == "no halves here"
    assert modes["float16"]["images_per_second"] is None
    assert modes["default"]["error_worst"] < 1e-6 < modes["bfloat16"]["error_worst"] < 0.1
    assert all(modes[name]["gradients_per_second"] > 0 for name in ("modules", "default", "bfloat16"))


@needs_onnx
def test_any_encoder_is_measured_on_onnx_runtime(run, published, monkeypatch):
    pytest.importorskip("onnxscript")
    exports = []
    real = measuring._exported
    monkeypatch.setattr(measuring, "_exported", lambda encoder: exports.append(encoder) or real(encoder))
    code, (result,), modes, _ = measured(run, published["dino"][0])
    assert code == 0
    assert len(exports) == 1
    full, small = modes["onnx"], modes["onnx-int8"]
    assert full["problem"] == small["problem"] == ""
    assert full["images_per_second"] > 0 < small["images_per_second"]
    assert full["gradients_per_second"] is small["gradients_per_second"] is None
    assert full["error_worst"] < 1e-6 < small["error_worst"] < 0.01
    assert small["model_bytes"] < 0.7 * full["model_bytes"]  # the graph itself is a part of so small a model
    assert result["default_mode"] == result["engine"].replace("torch", "default")


@needs_onnx
def test_convolutions_have_no_row_in_8_bits(run, monkeypatch):
    monkeypatch.setattr(measuring, "_time", lambda *arguments: None)
    _, _, modes, _ = measured(run, "lite", "--random-weights")
    assert modes["onnx"]["problem"] == ""
    assert modes["onnx"]["error_worst"] < 1e-6
    assert "convolutions" in modes["onnx-int8"]["problem"]


@pytest.mark.parametrize("place", [0, 3])
def test_ctrl_c_keeps_what_was_measured(run, monkeypatch, place):
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    monkeypatch.setitem(sys.modules, "onnx", None)
    real, done = measuring._time, []

    def interrupted(mode, *arguments):
        if len(done) == place:
            raise KeyboardInterrupt
        done.append(mode.said.mode)
        real(mode, *arguments)

    monkeypatch.setattr(measuring, "_time", interrupted)
    code, results, modes, err = measured(run, "lite", "lite-clean", "--random-weights")
    assert code == 130
    assert [result["model"] for result in results] == ["lite"]
    assert results[0]["whole"] is False
    assert "interrupted" in err
    assert len(done) == place
    for name in ("modules", "default", "bfloat16", "float16"):
        assert (modes[name]["images_per_second"] is not None) == (name in done)
        assert ("interrupted" in modes[name]["problem"]) == (name not in done)
        assert modes[name]["error_worst"] is not None


def test_ctrl_c_while_a_model_is_loaded_keeps_the_models_before(run, monkeypatch):
    monkeypatch.setattr(measuring, "measure", lambda *words, **options: ([measuring.Measured("modules")], True))
    real = measuring.random_encoder

    def interrupted(name):
        if name == "lite-clean":
            raise KeyboardInterrupt
        return real(name)

    monkeypatch.setattr(measuring, "random_encoder", interrupted)
    code, results, _, _ = measured(run, "lite", "lite-clean", "--random-weights")
    assert code == 130
    assert [result["model"] for result in results] == ["lite"]
    assert run("benchmark", "lite-clean", "--random-weights")[:2] == (130, "")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone keeps the peak of a process")
def test_the_peak_is_what_was_taken_in_between():
    told = []
    for size in (200, 50):  # a peak of its own, however high an earlier one was
        with peak_memory(torch.device("cpu"), told.append):
            torch.ones(size << 18)
    assert told[0] == pytest.approx(200 << 20, rel=0.1)
    assert told[1] == pytest.approx(50 << 20, rel=0.3)


def test_a_peak_that_nobody_keeps_is_not_told(tmp_path, monkeypatch):
    monkeypatch.setattr("robustsim.encoders.memory._PROCESS", tmp_path)
    told = []
    with peak_memory(torch.device("cpu"), told.append):
        pass
    assert told == []
