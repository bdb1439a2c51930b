"""DISTS and PieAPP, full-reference measures of image quality, with the networks of `piq`."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.baselines.base import Baseline
from robustsim.baselines.libraries import (
    check_state,
    downloading,
    fill,
    need,
    read_state,
    to_buffer,
    undisturbed,
    version_of,
)

_DISTS_LAYERS = ("3", "8", "15", "22", "29")  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
_DISTS_CHANNELS = (3, 64, 128, 256, 512, 512)  # those of the pixels, and of the layers


class DISTS(Baseline):
    """DISTS (Ding et al., Image Quality Assessment: Unifying Structure and Texture Similarity, 2020), in [0, 1].

    1 minus the weighted sum, over the channels of VGG16's layers, of the similarities of their means and of their
    variances. Images whose short side exceeds 256 pixels are shrunk to that, as `piq` does.

    Args:
        weights: a file with VGG16's `features.*` (a `classifier` is passed over), `alpha` and `beta`, each
            (1, 1475, 1, 1). None has torchvision and `piq` download them.

    Raises:
        WeightsError: the file lacks something, or holds something else.
        HubError: the weights could not be downloaded.
        MissingDependencyError: `piq` or torchvision is not installed.
    """

    def __init__(self, *, weights: "str | os.PathLike[str] | None" = None) -> None:
        piq = need("piq", "dists")
        super().__init__("dists", f"{version_of('piq')}; Ding et al., DISTS, 2020")
        if weights is None:
            with downloading(self.name):
                library = piq.DISTS(reduction="none")
            channels = sum(_DISTS_CHANNELS)
            factors = torch.cat([weight.detach().flatten() for weight in library.weights])
            alpha, beta = factors[:channels], factors[channels:]
        else:
            library, alpha, beta = self._read(weights)
        self.library: nn.Module = library
        total = alpha.sum() + beta.sum()  # 1 in piq's file, but not in the authors'
        self.register_buffer("alpha", alpha.reshape(1, -1) / total)
        self.register_buffer("beta", beta.reshape(1, -1) / total)
        self._settle(library)
        self._freeze()

    def _read(self, weights: "str | os.PathLike[str]") -> tuple[Any, Tensor, Tensor]:
        piq, perceptual = need("piq", self.name), need("piq.perceptual", self.name)
        vgg16 = need("torchvision.models", self.name).vgg16
        with undisturbed(), torch.device("meta"):
            trunk = vgg16(weights=None).features[: int(_DISTS_LAYERS[-1]) + 1]
        state = {key: value for key, value in read_state(weights).items() if not key.startswith("classifier.")}
        wanted = {f"features.{key}": tuple(value.shape) for key, value in trunk.state_dict().items()}
        factors = dict.fromkeys(("alpha", "beta"), (1, sum(_DISTS_CHANNELS), 1, 1))
        check_state(state, wanted | factors, where=weights, name=self.name)
        fill(trunk, {key.removeprefix("features."): state[key] for key in wanted})
        # The constructor downloads; its base class takes a network.
        library = piq.DISTS.__new__(piq.DISTS)
        with undisturbed():
            perceptual.ContentLoss.__init__(
                library,
                trunk,
                layers=_DISTS_LAYERS,
                weights=[],
                replace_pooling=True,
                reduction="none",
                allow_layers_weights_mismatch=True,
            )
        return library, state["alpha"], state["beta"]

    def _settle(self, library: Any) -> None:
        """What `piq` keeps as plain tensors, or makes at the first call, becomes buffers, which move along."""
        with torch.no_grad():
            library.get_features(torch.zeros(1, 3, 32, 32))
        for module in library.model.modules():
            if isinstance(getattr(module, "kernel", None), Tensor):
                to_buffer(module, "kernel", module.kernel)
        to_buffer(library, "mean", library.mean)
        to_buffer(library, "std", library.std)
        library.weights = []

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        library: Any = self.library
        x, y = (library.get_features(_shrunk(images)) for images in (a, b))
        similarities = library.compute_distance(x, y)
        weights = torch.cat((self.get_buffer("alpha"), self.get_buffer("beta")), 1)
        return 1 - (torch.cat([part.flatten(1) for part in similarities], 1) * weights).sum(1)


class PieAPP(Baseline):
    """PieAPP (Prashnani et al., Perceptual Image-Error Assessment through Pairwise Preference, CVPR 2018).

    The error of the second image when the first is the reference: not symmetric. It is a learned score without bounds,
    whose sign is not fixed, and which for identical images is a constant near 0. Patches of 64 x 64 pixels every
    27 pixels (the sparse sampling of the authors' code), their scores averaged by their weights.

    Args:
        weights: the state dict `PieAPPv0.1.pth`. None has `piq` download it.

    Raises:
        WeightsError: the file lacks something, or holds something else.
        HubError: the weights could not be downloaded.
        MissingDependencyError: `piq` is not installed.
    """

    least_side = 64
    stride = 27

    def __init__(self, *, weights: "str | os.PathLike[str] | None" = None) -> None:
        piq = need("piq.pieapp", "pieapp")
        super().__init__("pieapp", f"{version_of('piq')}; Prashnani et al., PieAPP, CVPR 2018")
        self._patches = need("piq.functional", "pieapp").crop_patches
        if weights is None:
            with downloading(self.name):
                model = piq.PieAPP().model
        else:
            with undisturbed(), torch.device("meta"):
                model = piq.PieAPPModel()
            state = read_state(weights)
            key = "ref_score_subtract.weight"
            if key in state and state[key].ndim == 1:  # so in the published file
                state[key] = state[key][:, None]
            shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
            check_state(state, shapes, where=weights, name=self.name)
            fill(model, state)
        self.library: nn.Module = model
        self._freeze()

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        library: Any = self.library
        (reference, reference_weights), (other, other_weights) = (self._features(images) for images in (a, b))
        scores, weights = library.compute_difference(
            (reference - other).flatten(0, 1), (reference_weights - other_weights).flatten(0, 1)
        )
        count = max(len(a), len(b))
        scores, weights = scores.reshape(count, -1), weights.reshape(count, -1)
        mean: Tensor = (scores * weights).sum(1) / weights.sum(1)
        return mean

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and weights of the patches, each (N, patches, C), of pixels that the network knows as 0..255."""
        library: Any = self.library
        features, weights = library(self._patches(255 * images, size=64, stride=self.stride))
        return features.unflatten(0, (len(images), -1)), weights.unflatten(0, (len(images), -1))


def _shrunk(images: Tensor) -> Tensor:
    short = min(images.shape[2:])
    if short <= 256:
        return images
    return F.interpolate(images, scale_factor=256 / short, recompute_scale_factor=False, mode="bilinear")
