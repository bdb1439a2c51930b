"""LPIPS and its robust variant R-LPIPS.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from robustsim.baselines.base import Baseline
from robustsim.baselines.libraries import check_state, downloading, fill, need, read_state, undisturbed, version_of
from robustsim.errors import InputError, WeightsError

Net = Literal["alex", "vgg", "squeeze"]

# The smallest side that leaves a feature in the last layer.
_LEAST_SIDE: Mapping[str, int] = {"alex": 31, "vgg": 16, "squeeze": 17}
# One name for a tensor, whatever file it comes from: torchvision's for the trunk, linK.weight for the layers on top.
_TRUNK = re.compile(r"^(?:features|net\.slice\d+)\.(\d+\..+)$")
_LINEAR = re.compile(r"^lin(?:s\.)?(\d)\.(?:model\.\d\.)?weight$")
_SCALING = ("scaling_layer.shift", "scaling_layer.scale")


class LPIPS(Baseline):
    """LPIPS v0.1 through the package `lpips`, as a squared Euclidean distance of embeddings.

    With the features f_k (N, C_k, H_k, W_k) of layer k, scaled to length 1 along the channels, and the linear layers'
    weights w_k >= 0 (C_k):

    ```text
    embed(x)    = concatenation over k of sqrt(w_k / (H_k W_k)) * f_k(x)
    compare     = |embed(a) - embed(b)|^2
                = sum over k of mean over places of sum over channels of w_k (f_k(a) - f_k(b))^2
    ```

    Args:
        net: trunk, `alex`, `vgg` or `squeeze`.
        weights: a file, safetensors or `torch.save`: torchvision's `features.*` with or without the linear layers
            `linK.weight`, or a state dict of the package. Without linear layers it is the package's own v0.1.
            None has torchvision download the trunk.
        complete: whether the file must hold the linear layers too.

    Raises:
        WeightsError: the file lacks something, or holds something else; a linear layer has negative weights.
        HubError: the trunk could not be downloaded.
        MissingDependencyError: `lpips` is not installed.
    """

    embeds = True

    def __init__(
        self,
        net: Net = "alex",
        *,
        weights: "str | os.PathLike[str] | None" = None,
        complete: bool = False,
        name: str | None = None,
    ) -> None:
        if net not in _LEAST_SIDE:
            raise InputError(f"LPIPS has the trunks {', '.join(_LEAST_SIDE)}, not {net!r}")
        name = name or f"lpips-{net}"
        library = need("lpips", name)
        super().__init__(name, f"{version_of('lpips')}, v0.1, {net}; Zhang et al., CVPR 2018")
        self.least_side = _LEAST_SIDE[net]
        if weights is None:
            with downloading(name):
                self.library: nn.Module = library.LPIPS(net=net, verbose=False)
        else:
            # Without memory: the package would fill whole classifiers with random numbers, to throw them away.
            with undisturbed(), torch.device("meta"):
                self.library = library.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
            own = Path(library.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
            self._load(weights, None if complete else own)
        self._layers = sum(key.startswith("lins.") for key in self.library.state_dict())
        for layer in range(self._layers):
            weight = self.library.get_parameter(f"lin{layer}.model.1.weight").detach()
            if weight.min() < 0:
                raise WeightsError(
                    f"the linear layer {layer} of {name} has negative weights, down to {weight.min():.3g}: such a "
                    "distance would be none"
                )
            self.register_buffer(f"_root{layer}", weight.sqrt(), persistent=False)
        self._freeze()

    def _load(self, weights: "str | os.PathLike[str]", own: Path | None) -> None:
        found: dict[str, Tensor] = {}
        unknown = []
        for key, value in read_state(weights).items():
            short = _short(key)
            if short is None:
                if not key.startswith("classifier."):  # torchvision's whole networks have one, which is not used
                    unknown.append(key)
            elif not torch.equal(found.setdefault(short, value), value):
                raise WeightsError(f"{os.fspath(weights)!r} holds two different {short}")
        if own is not None and not any(_LINEAR.match(key) for key in found):
            found |= {short: value for key, value in read_state(own).items() if (short := _short(key))}
        state = self.library.state_dict()
        short_names = {key: _short(key) or key for key in state}
        for key in _SCALING:  # constants, which R-LPIPS does not save
            found.setdefault(key, state[key])
        shapes = {short: tuple(state[key].shape) for key, short in short_names.items()}
        check_state(found, shapes, where=weights, name=self.name, unknown=unknown)
        fill(self.library, {key: found[short] for key, short in short_names.items()})

    def _embed(self, images: Tensor) -> Tensor:
        library = self.library
        parts = []
        for layer, features in enumerate(library.net(library.scaling_layer(2 * images - 1))):  # type: ignore[operator]
            height, width = features.shape[2:]
            root = self.get_buffer(f"_root{layer}") * (height * width) ** -0.5
            # Unlike the root of a sum of squares, a norm has a gradient where all channels are 0.
            length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
            parts.append((features / (length + 1e-10) * root).flatten(1))
        return torch.cat(parts, 1)

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        return (u - v).square().sum(1)


def robust_lpips(*, weights: "str | os.PathLike[str]") -> LPIPS:
    """R-LPIPS: LPIPS-Alex trained adversarially (Ghazanfari et al., R-LPIPS: An Adversarially Robust Perceptual
    Similarity Metric, 2023), from a checkpoint of its repository.

    Raises:
        WeightsError, MissingDependencyError: as for `LPIPS`.
    """
    metric = LPIPS("alex", weights=weights, complete=True, name="r-lpips")
    metric.source = f"{version_of('lpips')} with R-LPIPS's weights; Ghazanfari et al., R-LPIPS, 2023"
    return metric


def _short(key: str) -> str | None:
    """`features.0.weight`, `lin0.weight` or `scaling_layer.shift`; None for what is none of them."""
    if match := _TRUNK.match(key):
        return f"features.{match[1]}"
    if match := _LINEAR.match(key):
        return f"lin{match[1]}.weight"
    return key if key in _SCALING else None
