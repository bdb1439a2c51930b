"""What of an encoder's last map is embedded: its mean is taken away, and its strongest directions are made weaker.

python scripts/readout.py runs/soup --data nips17/images -o runs/read

The means over quarters of the map before the head are linear in the weights of the convolution before, so any
linear map of them costs nothing: it is folded into those weights. With C the covariance of these means over
photographs, a part m of the embedding becomes C^-share (m - mean of m): with a share of 1/2 it would be white, with
1/4 it is half way there. No labels are used.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustsim import RobustSim
from robustsim.encoders import load_encoder, save_encoder
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.lite_plan import LAST
from robustsim.images.files import list_images

BATCH = 50


def parts(encoder: Encoder, folder: Path, count: int) -> Tensor:
    """Means of each cell of photographs, (count * cells, 320) float64."""
    metric = RobustSim(encoder)
    files, _ = list_images(folder)
    files = files[:: max(1, len(files) // count)][:count]
    trunk: Any = encoder.trunk
    rows = []
    with torch.no_grad():
        for start in range(0, len(files), BATCH):
            pixels = metric.preprocess([folder / file for file in files[start : start + BATCH]])
            rows.append(trunk(encoder.normalize(pixels)).double().view(-1, LAST))
    return torch.cat(rows)


def readout(rows: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The mean (320,) and the map (320, 320) of the text above, which is scaled to keep the covariance's trace."""
    covariance = torch.cov(rows.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    powers = values.clamp_min(1e-6) ** -share
    return rows.mean(0), (vectors * powers) @ vectors.T * (values.sum() / (values * powers**2).sum()).sqrt()


def fold(encoder: Encoder, mean: Tensor, whole: Tensor) -> None:
    """Every part m of the embedding becomes `whole @ (m - mean)`, in place."""
    trunk: Any = encoder.trunk
    last = trunk.blocks[-1].project
    with torch.no_grad():
        last.weight.copy_((whole @ last.weight.double().flatten(1)).view_as(last.weight))
        last.bias.copy_(whole @ (last.bias.double() - mean))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="an encoder whose embedding is made without the head: build_lite.py --no-head")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.25)
    options = parser.parse_args()
    encoder = load_encoder(options.run).float()
    if encoder.card.architecture.options.get("head", True):
        raise SystemExit(f"{options.run} embeds what its last convolution makes: build_lite.py --no-head first")
    fold(encoder, *readout(parts(encoder, options.data, options.photographs), options.share))
    training = {**encoder.card.training, "whitened": options.share}
    changed = {"name": options.output.name, "training": training, "weights_sha256": None, "calibration": None}
    encoder.card = dataclasses.replace(encoder.card, **changed)
    save_encoder(encoder, options.output)


if __name__ == "__main__":
    main()
