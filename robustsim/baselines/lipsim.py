"""LipSim (Ghazanfari et al., LipSim: A Provably Robust Perceptual Similarity Metric, ICLR 2024), from its formulas."""

import math
import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.baselines.base import Baseline, cosine_distance
from robustsim.baselines.libraries import check_state, read_state
from robustsim.errors import WeightsError
from robustsim.images.preprocessing import Preprocessing

# A layer is registered in the network and again in `base`; training wraps the whole in `module.` and `model.`.
_KEY = re.compile(
    r"^(?:module\.|model\.)*"
    r"(?:(?:base\.1|convs)\.(?P<conv>\d+)\.(?P<c>kernel|bias|q)"
    r"|(?:base\.2|linear)\.(?P<linear>\d+)\.(?P<l>weight|bias|q))$"
)
_EMBEDDING = 1792


class LipSim(Baseline):
    """1 - cosine of the embeddings of a 1-Lipschitz network.

    The network widens the image with channels of zeros, applies residual convolutions and two poolings, which add up
    4 x 4 values and divide by 4, and residual linear layers; the embedding is the first values of the result. Every
    step is 1-Lipschitz in the Euclidean norm. The published evaluation scales pixels by nothing (mean 0, deviation 1),
    and its interface adds no bias to short embeddings.

    Args:
        weights: a checkpoint of the published code, `model.ckpt-N.pth`, or its state dict as safetensors. Channels,
            layers and the side of the image are read off its shapes.
        embedding_dim: how many values of the last layer are the embedding: 1792 of DreamSim's ensemble, which it
            imitates, 768 of DINO, 512 of CLIP. Files do not tell.

    Raises:
        WeightsError: the file lacks something, or holds something else.
    """

    embeds = True

    def __init__(self, *, weights: "str | os.PathLike[str]", embedding_dim: int = _EMBEDDING) -> None:
        super().__init__("lipsim", "own implementation of SLL layers; Ghazanfari et al., LipSim, ICLR 2024")
        convs, linears = _layers(weights)
        self.channels = convs[0]["kernel"].shape[1]
        features = linears[0]["weight"].shape[1]
        cells = math.isqrt(features // self.channels)
        if self.channels < 3 or cells < 1 or self.channels * cells * cells != features:
            raise WeightsError(
                f"{os.fspath(weights)!r} does not fit lipsim: linear layers over {features} values do not follow "
                f"{self.channels} channels of a square"
            )
        self.convs = nn.Sequential(*(_Convolution(**layer) for layer in convs))
        self.linears = nn.Sequential(*(_Linear(**layer) for layer in linears))
        self.side = 16 * cells
        self.preprocessing = Preprocessing(size=self.side)
        self.embedding_dim = min(embedding_dim, features)
        self._freeze()

    def _embed(self, images: Tensor) -> Tensor:
        x = self.convs(F.pad(images, (0, 0, 0, 0, 0, self.channels - 3)))
        for _ in range(2):
            x = F.avg_pool2d(x, 4, divisor_override=4)
        embedding: Tensor = self.linears(x.flatten(1))[:, : self.embedding_dim]
        return embedding

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        return cosine_distance(u, v)


class _Convolution(nn.Module):
    """`y = x - 2 W^T diag(t) relu(W x + b)` with a convolution W, kernel (inner, channels, 3, 3).

    Here q has no part in t: in the code that trained the published weights it stands on both sides of the fraction.
    """

    def __init__(self, kernel: Tensor, bias: Tensor, q: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel)
        self.register_buffer("bias", bias.flatten())
        self.register_buffer("q", q)
        # The rates depend on the weights alone: into the second kernel with them, once.
        self.register_buffer("back", 2 * convolution_rates(kernel).view(-1, 1, 1, 1) * kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(F.conv2d(x, self.get_buffer("kernel"), self.get_buffer("bias"), padding=1))
        return x - F.conv_transpose2d(inner, self.get_buffer("back"), padding=1)


class _Linear(nn.Module):
    """`y = x - 2 W^T diag(t) relu(W x + b)` with a matrix W (inner, features)."""

    def __init__(self, weight: Tensor, bias: Tensor, q: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.flatten())
        self.register_buffer("q", q)
        self.register_buffer("rates", 2 * linear_rates(weight, q), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("weight")
        inner = F.relu(F.linear(x, weight, self.get_buffer("bias")))
        return x - (inner * self.get_buffer("rates")) @ weight


def linear_rates(weight: Tensor, q: Tensor) -> Tensor:
    """`t_i = 1 / sum_j |W W^T|_ij exp(q_j - q_i)`, (inner,), 0 where the sum is 0.

    With it the layer is 1-Lipschitz (Araujo et al., A Unified Algebraic Perspective on Lipschitz Neural Networks,
    ICLR 2023, theorem 3).

    Args:
        weight: W, (inner, features).
        q: (inner,).
    """
    sums = ((weight @ weight.T).abs() * torch.exp(q[None] - q[:, None])).sum(1)
    return _inverse(sums)


def convolution_rates(kernel: Tensor) -> Tensor:
    """The rates of a convolution: `t_i = 1 / sum over j and shifts of |(W W^T)_ij|`, (inner,).

    Args:
        kernel: (inner, channels, side, side).
    """
    products = F.conv2d(kernel, kernel, padding=kernel.shape[-1] - 1)
    return _inverse(products.abs().sum((1, 2, 3)))


def _inverse(sums: Tensor) -> Tensor:
    return torch.where(sums > 0, 1 / sums, 0)


def _layers(weights: "str | os.PathLike[str]") -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The tensors of the convolutions and of the linear layers, in order."""
    found: dict[str, Tensor] = {}
    unknown = []
    for key, value in read_state(weights).items():
        if "alpha" in key:  # of an older layer; the published evaluation leaves them out too
            continue
        match = _KEY.match(key)
        if match is None:
            unknown.append(key)
            continue
        short = f"convs.{match['conv']}.{match['c']}" if match["c"] else f"linear.{match['linear']}.{match['l']}"
        if not torch.equal(found.setdefault(short, value), value):
            raise WeightsError(f"{os.fspath(weights)!r} holds two different {short}")
    convs, linears = _numbers(found, "convs"), _numbers(found, "linear")
    # All shapes follow from those of the first of each kind; the first linear layer comes after the flattening.
    channels = _size(found, "convs.0.kernel", 1)
    features = _size(found, "linear.1.weight", 1)
    wanted: dict[str, tuple[int, ...]] = {}
    for number in convs:
        inner = _size(found, f"convs.{number}.q", 0)
        wanted |= {
            f"convs.{number}.kernel": (inner, channels, 3, 3),
            f"convs.{number}.bias": (1, inner, 1, 1),
            f"convs.{number}.q": (inner,),
        }
    for number in linears:
        inner = _size(found, f"linear.{number}.q", 0)
        wanted |= {
            f"linear.{number}.weight": (inner, features),
            f"linear.{number}.bias": (1, inner),
            f"linear.{number}.q": (inner,),
        }
    check_state(found, wanted, where=weights, name="lipsim", unknown=unknown)
    return (
        [{part: found[f"convs.{number}.{part}"] for part in ("kernel", "bias", "q")} for number in convs],
        [{part: found[f"linear.{number}.{part}"] for part in ("weight", "bias", "q")} for number in linears],
    )


def _numbers(found: Mapping[str, Tensor], kind: str) -> range:
    """The places that layers of this kind have: an unbroken line from 0 for convolutions, from 1 for linear layers."""
    start = 1 if kind == "linear" else 0
    last = max((int(key.split(".")[1]) for key in found if key.startswith(f"{kind}.")), default=start)
    return range(start, last + 1)


def _size(found: Mapping[str, Tensor], key: str, dimension: int) -> int:
    return found[key].shape[dimension] if key in found and found[key].ndim > dimension else 1
