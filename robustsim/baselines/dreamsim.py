"""DreamSim (Fu et al., DreamSim: Learning New Dimensions of Human Visual Similarity, NeurIPS 2023)."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustsim.baselines.base import Baseline, cosine_distance
from robustsim.baselines.libraries import need, to_buffer, undisturbed, version_of
from robustsim.encoders.fast.dino import fuse_blocks
from robustsim.encoders.fast.products import products
from robustsim.errors import HubError, InputError, WeightsError

_PATCH = "_patch"
#: For each name, the type that the package calls it, and the files and the folder of the adapter that it needs. The
#: types of patches have the mean of the patches in their embedding, beside the class token.
KINDS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "dreamsim": (
        "ensemble",
        ("dino_vitb16_pretrain.pth", "open_clip_vitb16_pretrain.pth.tar", "clip_vitb16_pretrain.pth.tar"),
        "ensemble_lora",
    ),
    "dreamsim-clip-vit-b-32": ("clip_vitb32", ("clip_vitb32_pretrain.pth.tar",), "clip_vitb32_single_lora"),
    "dreamsim-dino-vit-b-16": ("dino_vitb16", ("dino_vitb16_pretrain.pth",), "dino_vitb16_single_lora"),
    "dreamsim-dino-vit-b-16-patch": ("dino_vitb16_patch", ("dino_vitb16_pretrain.pth",), "dino_vitb16_patch_lora"),
    "dreamsim-dinov2-vit-b-14": ("dinov2_vitb14", ("dinov2_vitb14_pretrain.pth",), "dinov2_vitb14_single_lora"),
    "dreamsim-dinov2-vit-b-14-patch": (
        "dinov2_vitb14_patch",
        ("dinov2_vitb14_pretrain.pth",),
        "dinov2_vitb14_patch_lora",
    ),
    "dreamsim-open-clip-vit-b-32": (
        "open_clip_vitb32",
        ("open_clip_vitb32_pretrain.pth.tar",),
        "open_clip_vitb32_single_lora",
    ),
    "dreamsim-synclr-vit-b-16": ("synclr_vitb16", ("synclr_vit_b_16.pth",), "synclr_vitb16_single_lora"),
}


class DreamSim(Baseline):
    """1 - cosine of the embeddings of the package `dreamsim`, its adapter merged into the weights, its networks' blocks
    computed with fused attention, which torch differentiates once on a CPU, and not twice.

    An embedding is what the networks give side by side, less its mean, scaled to length 1: the class token before the
    last norm for DINO, DINOv2 and SynCLR, CLIP's after its projection. In the types of patches, each token is treated
    so, and the embedding is the class token beside the mean of the patches.

    Args:
        name: one of `KINDS`.
        weights: the folder with the package's files (its `cache_dir`). None takes `robustsim/dreamsim` in the
            user's cache, and has the package download what is not there. The types with DINO also need
            `facebookresearch_dino_main` and `checkpoints` of torch.hub in it, and download them if need be.

    Raises:
        InputError: there is no such type.
        WeightsError: the folder lacks files, or holds others.
        HubError: what is missing could not be downloaded.
        MissingDependencyError: `dreamsim` is not installed.
    """

    embeds = True
    side = 224

    def __init__(self, name: str = "dreamsim", *, weights: "str | os.PathLike[str] | None" = None) -> None:
        if name not in KINDS:
            raise InputError(f"DreamSim has the types {', '.join(KINDS)}, not {name!r}")
        library = need("dreamsim", name)
        super().__init__(name, f"{version_of('dreamsim')}; Fu et al., DreamSim, NeurIPS 2023")
        folder = default_folder() if weights is None else Path(weights).expanduser()
        missing = _missing(name, folder)
        if missing and weights is not None:
            raise WeightsError(
                f"the folder {os.fspath(folder)!r} lacks {', '.join(missing)}, which {name} needs: unpack the files of "
                f"https://github.com/ssundaram21/dreamsim/releases there, or leave weights out to have them downloaded"
            )
        model = _load(library, name, folder, missing)
        for extractor in model.extractor_list:
            if isinstance(getattr(extractor, "proj", None), Tensor):
                to_buffer(extractor, "proj", extractor.proj, persistent=True)
            fuse_blocks(extractor.model.blocks, only_first=not model.is_patch)
        self.library: nn.Module = model
        self._freeze()

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> "DreamSim":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        library: Any = self.library
        for extractor in library.extractor_list:  # they bring their projection to the device they were made on
            extractor.device = next(extractor.parameters()).device
        return self

    def _embed(self, images: Tensor) -> Tensor:
        library: Any = self.library
        with products(images):
            embedding: Tensor = library.embed(images)
        if library.is_patch:  # (N, 1 + patches, D), the class token first
            embedding = torch.cat((embedding[:, 0], embedding[:, 1:].mean(1)), 1)
        for extractor in library.extractor_list:  # they hold on to the last features, and so to the whole graph
            extractor._feats = []
        return embedding

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        return cosine_distance(u, v)


def default_folder() -> Path:
    """Where DreamSim's files are kept when no folder is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "robustsim" / "dreamsim"


def _missing(name: str, folder: Path) -> list[str]:
    _, files, adapter = KINDS[name]
    missing = [file for file in files if not (folder / file).is_file()]
    if not (folder / adapter / "adapter_config.json").is_file():
        missing.append(f"{adapter}/adapter_config.json")
    if not any((folder / adapter / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        missing.append(f"{adapter}/adapter_model.safetensors")
    return missing


def _load(library: Any, name: str, folder: Path, missing: list[str]) -> Any:
    """The package's model on the CPU, with the adapter merged."""
    kind = KINDS[name][0]
    what = f"{', '.join(missing)} of {name}" if missing else f"what {name} takes from torch.hub"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with undisturbed(silent=not missing):
            model, _ = library.dreamsim(
                pretrained=True,
                device="cpu",
                cache_dir=os.fspath(folder),
                dreamsim_type=kind.removesuffix(_PATCH),
                use_patch_model=kind.endswith(_PATCH),
            )
            merged = model.merge_and_unload()
        if missing:
            (folder / "pretrained.zip").unlink(missing_ok=True)  # the package has unpacked it
        return merged
    except Exception as error:  # the package raises whatever its next step stumbles over
        if _from_the_network(error):
            raise HubError(
                f"{what} could not be downloaded into {os.fspath(folder)!r} ({error}): fetch the files elsewhere and "
                f"pass their folder as weights=FOLDER ({name}=FOLDER on the command line)"
            ) from error
        raise WeightsError(
            f"the files of {name} in {os.fspath(folder)!r} could not be loaded: the package stopped with a "
            f"{type(error).__name__}. They are damaged, or those of another type"
        ) from error


def _from_the_network(error: Exception) -> bool:
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return "internet connection" in str(error)  # torch.hub, of a repository without a branch
