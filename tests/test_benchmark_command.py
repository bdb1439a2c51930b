"""`robustsim benchmark`: modes, errors, and a mode that fails."""

import json

import pytest
import torch

from robustsim.encoders import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_modes_are_measured_and_a_failing_one_is_told(run, monkeypatch):
    real = Encoder.to

    def to(self, *arguments):
        if torch.float16 in arguments:
            raise RuntimeError("no halves here")
        return real(self, *arguments)

    monkeypatch.setattr(Encoder, "to", to)
    code, out, _ = run("benchmark", "lite", "--random-weights", "--batch-size", 2, "--seconds", 0, "--json")
    (result,) = json.loads(out)
    modes = {mode["mode"]: mode for mode in result["modes"]}
    assert code == 0
    assert list(modes) == ["modules", "default", "bfloat16", "float16"]
    assert modes["float16"]["problem"] == "no halves here"
    assert modes["float16"]["images_per_second"] is None
    assert modes["default"]["error_worst"] < 1e-6 < modes["bfloat16"]["error_worst"] < 0.1
    assert all(modes[name]["gradients_per_second"] > 0 for name in ("modules", "default", "bfloat16"))
