"""The baselines by their names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from robustsim.encoders.card import did_you_mean
from robustsim.errors import InputError, ModelNotFoundError

if TYPE_CHECKING:
    import torch

    from robustsim.baselines.base import Baseline


@dataclass(frozen=True)
class _Entry:
    """How to make a baseline.

    Attributes:
        home: the module below this package that defines it.
        maker: the class or function there.
        options: what it is called with.
        weights: whether it takes weights.
        origin: where required weights are to be had.
    """

    home: str
    maker: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Literal["none", "optional", "required"] = "none"
    origin: str = ""


def _dreamsim(name: str) -> _Entry:
    return _Entry("dreamsim", "DreamSim", {"name": name}, "optional")


_BASELINES: Mapping[str, _Entry] = {
    "dists": _Entry("quality", "DISTS", weights="optional"),
    "dreamsim": _dreamsim("dreamsim"),
    "dreamsim-clip-vit-b-32": _dreamsim("dreamsim-clip-vit-b-32"),
    "dreamsim-dino-vit-b-16": _dreamsim("dreamsim-dino-vit-b-16"),
    "dreamsim-dino-vit-b-16-patch": _dreamsim("dreamsim-dino-vit-b-16-patch"),
    "dreamsim-dinov2-vit-b-14": _dreamsim("dreamsim-dinov2-vit-b-14"),
    "dreamsim-dinov2-vit-b-14-patch": _dreamsim("dreamsim-dinov2-vit-b-14-patch"),
    "dreamsim-open-clip-vit-b-32": _dreamsim("dreamsim-open-clip-vit-b-32"),
    "dreamsim-synclr-vit-b-16": _dreamsim("dreamsim-synclr-vit-b-16"),
    "l2": _Entry("pixels", "L2"),
    "linf": _Entry("pixels", "Linf"),
    "lipsim": _Entry("lipsim", "LipSim", {}, "required", "https://github.com/SaraGhazanfari/lipsim"),
    "lpips-alex": _Entry("lpips", "LPIPS", {"net": "alex"}, "optional"),
    "lpips-squeeze": _Entry("lpips", "LPIPS", {"net": "squeeze"}, "optional"),
    "lpips-vgg": _Entry("lpips", "LPIPS", {"net": "vgg"}, "optional"),
    "ms-ssim": _Entry("structure", "MSSSIM"),
    "phash": _Entry("hashes", "PHash"),
    "pieapp": _Entry("quality", "PieAPP", weights="optional"),
    "psnr": _Entry("pixels", "PSNR"),
    "r-lpips": _Entry("lpips", "robust_lpips", {}, "required", "https://github.com/SaraGhazanfari/R-LPIPS"),
    "ssim": _Entry("structure", "SSIM"),
}


def list_baselines() -> list[str]:
    """The names that [`load_baseline`][robustsim.baselines.load_baseline] knows, sorted."""
    return sorted(_BASELINES)


def load_baseline(
    name: str,
    *,
    weights: "str | os.PathLike[str] | None" = None,
    device: "str | torch.device | None" = None,
) -> "Baseline":
    """A baseline by its name.

    Args:
        name: one of [`list_baselines`][robustsim.baselines.list_baselines].
        weights: a file, or DreamSim's folder; None has the library that owns the metric download them. `l2` and the
            like take none; `lipsim` and `r-lpips` must have them.
        device: where it computes; None for the CPU.

    Raises:
        ModelNotFoundError: no such name; the nearest spellings are named.
        InputError: weights for a metric that takes none, none for one that needs them, or no such device.
        WeightsError: they do not fit the metric.
        HubError: they could not be downloaded.
        MissingDependencyError: the library is not installed.
    """
    import torch

    entry = _BASELINES.get(name)
    if entry is None:
        raise ModelNotFoundError(f"there is no baseline {name!r}{did_you_mean(name, list_baselines())}")
    options = dict(entry.options)
    if weights is not None:
        if entry.weights == "none":
            raise InputError(f"{name} has no weights: leave {os.fspath(weights)!r} out")
        options["weights"] = weights
    elif entry.weights == "required":
        raise InputError(
            f"{name} needs its published checkpoint, which no library brings: take it from {entry.origin} and pass "
            f"weights=FILE ({name}=FILE on the command line)"
        )
    # Tensors made in inference mode could never be part of a graph again, and a metric may live long. What the caller
    # has set as the device of new tensors is not where weights are read.
    with torch.inference_mode(False), torch.device("cpu"):
        metric: Baseline = getattr(import_module(f"{__package__}.{entry.home}"), entry.maker)(**options)
        if device is not None:
            try:
                metric.to(torch.device(device))
            except (RuntimeError, AssertionError) as error:  # the latter from builds without that device
                raise InputError(f"this machine, or this build of torch, has no device {str(device)!r}") from error
    return metric
