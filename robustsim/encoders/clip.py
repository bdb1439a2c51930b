"""OpenCLIP's image towers (ViT, ConvNeXt and other timm trunks, ResNet), their repositories, and its texts."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

from torch import Tensor, nn

from robustsim.encoders.card import CLIP_MEAN, CLIP_STD, Architecture, EncoderCard, did_you_mean
from robustsim.encoders.fast import vit
from robustsim.encoders.layers import spread
from robustsim.encoders.text import TextTower
from robustsim.errors import CardError, InputError, WeightsError
from robustsim.images.preprocessing import Preprocessing

CONFIG = "open_clip_config.json"

# A text tower nobody asked for: open_clip builds none without one, and this one costs nothing.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}


class ClipTrunk(nn.Module):
    """open_clip's `model.visual`: (N, 3, S, S) -> (N, D), the class token or pooled feature after the projection."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = vit.forward(self.visual, x)
        return features

    def path(self) -> tuple[Literal["fast", "open_clip"], str]:
        """By what code it is run, and what there is to say of it (see `Execution`)."""
        reason = vit.why_not(self.visual)
        return ("fast", vit.exceptions(self.visual)) if reason is None else ("open_clip", reason)

    def tokens(self, x: Tensor, *, project: bool = False) -> tuple[Tensor, Tensor]:
        """The embedding, and the last layer's places after the final norm, (N, C, h, w)."""
        visual: Any = self.visual
        self._check_access()
        out = vit.forward_intermediates(visual, x, indices=1, normalize_intermediates=True, output_fmt="NCHW")
        last = out["image_intermediates"][-1]
        return out["image_features"], self._project(last) if project else last

    def layers(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embedding, and the maps of the stages, or of five blocks evenly, after the final norm where it fits."""
        visual: Any = self.visual
        self._check_access()
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        known = getattr(getattr(visual, "trunk", None), "feature_info", None) if blocks is None else blocks
        indices = spread(len(known)) if known else None
        out = vit.forward_intermediates(visual, x, indices=indices, normalize_intermediates=True, output_fmt="NCHW")
        return out["image_features"], out["image_intermediates"]

    def _check_access(self) -> None:
        if getattr(self.visual, "attn_pool", None) is not None:
            raise InputError("this image tower pools by attention (CoCa): its tokens are not in reach")

    def _project(self, last: Tensor) -> Tensor:
        visual: Any = self.visual
        matrix = getattr(visual, "proj", None)
        if isinstance(matrix, Tensor) and matrix.shape[0] == last.shape[1]:
            return (last.permute(0, 2, 3, 1) @ matrix).permute(0, 3, 1, 2)
        head = getattr(visual, "head", None)
        if isinstance(head, nn.Sequential) and "pool" not in dict(head.named_children()):
            projected: Tensor = head(last.permute(0, 2, 3, 1))
            return projected.permute(0, 3, 1, 2)
        raise InputError(f"{type(visual).__name__} has no projection that can be applied place by place")


def model_config(architecture: Architecture) -> dict[str, Any]:
    """open_clip's `model_cfg` of an architecture, the card's activation set in it.

    Raises:
        CardError: open_clip knows no architecture of that name, and the card brings no `model_cfg`.
    """
    import open_clip

    config = architecture.options.get("model_cfg") or open_clip.get_model_config(architecture.name)
    if config is None:
        hint = did_you_mean(architecture.name, open_clip.list_models())
        raise CardError(f"open_clip knows no architecture {architecture.name!r}{hint}")
    return {**deepcopy(dict(config)), "quick_gelu": architecture.quick_gelu}


def build(card: EncoderCard, *, text: bool) -> tuple[ClipTrunk, TextTower | None]:
    """The image tower and, on request, the text tower, without weights and without the network."""
    import open_clip

    config = model_config(card.architecture)
    config["vision_cfg"].update(timm_model_pretrained=False, output_tokens=False)
    if text and ("multimodal_cfg" in config or {"hf_model_name", "hf_tokenizer_name"} & config["text_cfg"].keys()):
        raise InputError(
            f"the text tower of {card.name!r} is not supported (a CoCa model, or one with a tokenizer or tower of "
            "transformers): load it without text=True"
        )
    custom = config.pop("custom_text", False)
    if not text:
        config = {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu")} | {"text_cfg": dict(_NO_TEXT)}
    try:
        model: Any = (open_clip.CustomTextCLIP if text and custom else open_clip.CLIP)(**config)
    except (TypeError, RuntimeError) as error:
        raise CardError(
            f"open_clip {open_clip.__version__} cannot build {card.architecture.name!r}: {error}. "
            "A newer version of open_clip_torch or timm may"
        ) from error
    trunk = ClipTrunk(model.visual)
    del model.visual
    return trunk, TextTower(model, config["text_cfg"]) if text else None


def adopt(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published OpenCLIP state dict under this library's names."""
    return {("trunk." if key.startswith("visual.") else "text.model.") + key: value for key, value in weights.items()}


def card_from_config(name: str, config: Mapping[str, Any]) -> EncoderCard:
    """A card for a repository in OpenCLIP's layout, from its `open_clip_config.json`.

    Raises:
        CardError: the file lacks what is needed.
    """
    model, pre = config.get("model_cfg"), config.get("preprocess_cfg") or {}
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys():
        raise CardError(f"{CONFIG} of {name!r} has no usable model_cfg (embed_dim, vision_cfg and text_cfg)")
    size = pre.get("size", model["vision_cfg"].get("image_size", 224))
    if isinstance(size, list | tuple):
        if len({*size}) != 1:
            raise CardError(f"{name!r} looks at {size[0]} x {size[1]} pixels: only squares are supported")
        size = size[0]
    return EncoderCard(
        name=name,
        architecture=Architecture(
            library="open_clip",
            name=name.rpartition("/")[2],
            quick_gelu=bool(model.get("quick_gelu", False)),
            options={"model_cfg": model},
        ),
        embedding_dim=model["embed_dim"],
        preprocessing=Preprocessing(
            size=size,
            mode=pre.get("resize_mode") or "shortest",
            # "random" was for training; open_clip itself evaluates it as bicubic.
            interpolation="bilinear" if pre.get("interpolation") == "bilinear" else "bicubic",
            fill=pre.get("fill_color") or 0,
        ),
        mean=_triple(pre.get("mean"), CLIP_MEAN),
        std=_triple(pre.get("std"), CLIP_STD),
    )


def _triple(value: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if value is None:
        return default
    numbers = [float(part) for part in (value if isinstance(value, list | tuple) else [value] * 3)]
    return numbers[0], numbers[1], numbers[2]


def check_config(card: EncoderCard, config: Mapping[str, Any], where: str) -> None:
    """Compare what a repository says of its model with what the card says.

    A model run with the other activation than the one it was trained with answers plausibly and wrongly
    (open_clip issue 771), so that a contradiction is an error. What the file does not mention, the card decides.

    Raises:
        WeightsError: they contradict each other.
    """
    said: Mapping[str, Any] = config.get("model_cfg") or {}
    ours = model_config(card.architecture)
    pairs = [(key, said.get(key), ours[key]) for key in ("embed_dim", "quick_gelu") if key in said]
    vision = said.get("vision_cfg") or {}
    pairs += [
        (f"vision_cfg.{key}", vision[key], ours["vision_cfg"][key])
        for key in ("layers", "width", "patch_size", "timm_model_name")
        if key in vision and key in ours["vision_cfg"]
    ]
    for key, theirs, wanted in pairs:
        if theirs != wanted:
            raise WeightsError(
                f"{where} says {key} = {theirs!r}, the card {card.name!r} says {wanted!r}: with the wrong one, the "
                "model answers wrongly without a sign. Pin a revision that agrees (org/repo@revision); to take the "
                "repository's word instead, download it and load the folder"
            )
