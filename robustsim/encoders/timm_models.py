"""timm's models with a pooled feature: DINO, DINOv2, DINOv3 and the rest; and timm's Hub repositories."""

from collections.abc import Mapping
from math import floor
from typing import Any, Literal

from torch import Tensor, nn

from robustsim.encoders.card import IMAGENET_MEAN, IMAGENET_STD, Architecture, EncoderCard, did_you_mean
from robustsim.encoders.fast.products import products
from robustsim.encoders.layers import spread
from robustsim.errors import CardError, InputError
from robustsim.images.preprocessing import Preprocessing

CONFIG = "config.json"


class TimmTrunk(nn.Module):
    """A timm model without classifier: (N, 3, S, S) -> (N, D), the class token or the pooled feature."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with products(x):
            features: Tensor = self.model(x)
        return features

    def path(self) -> tuple[Literal["timm"], str]:
        """By what code it is run: timm's own."""
        return "timm", "its attention is torch's fused one already"

    def tokens(self, x: Tensor, *, project: bool = False) -> tuple[Tensor, Tensor]:
        """The embedding, and the last layer's places, (N, C, h, w), after the norm where there is one.

        `project` changes nothing: these models have no projection, their tokens live in the embedding's space.

        Raises:
            InputError: timm gives no access to this model's last layer.
        """
        embedding, maps = self._intermediates(x, 1)
        return embedding, maps[-1]

    def layers(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embedding, and the maps of the stages, or of five blocks evenly, after the norm where there is one.

        Raises:
            InputError: as for `tokens`.
        """
        known = getattr(self.model, "feature_info", None)
        return self._intermediates(x, spread(len(known)) if known else None)

    def _intermediates(self, x: Tensor, indices: "int | list[int] | None") -> tuple[Tensor, list[Tensor]]:
        model: Any = self.model
        if not hasattr(model, "forward_intermediates"):
            raise InputError(f"timm gives no access to the last feature map of {type(model).__name__}")
        with products(x):
            last, maps = model.forward_intermediates(x, indices=indices, norm=True, output_fmt="NCHW")
            return model.forward_head(last, pre_logits=True), maps


def build(card: EncoderCard, *, classes: int = 0, native_size: bool = False) -> TimmTrunk:
    """A timm model without weights.

    Args:
        card: what to build.
        classes: outputs of the classifier that a published file holds; `finish` removes it.
        native_size: keep the position embeddings at the architecture's own size, which a published file has.

    Raises:
        CardError: timm knows no such architecture, or not with these options.
    """
    import timm

    spec = card.architecture
    if not timm.is_model(spec.name):
        raise CardError(f"timm knows no architecture {spec.name!r}{did_you_mean(spec.name, timm.list_models())}")
    try:
        model = timm.create_model(spec.name, pretrained=False, num_classes=classes, **spec.options)
    except TypeError as error:
        raise CardError(f"timm cannot build {spec.name!r} with {dict(spec.options)}: {error}") from None
    trunk = TimmTrunk(model)
    if not native_size:
        finish(trunk, card)
    return trunk


def finish(trunk: TimmTrunk, card: EncoderCard) -> None:
    """Drop the classifier, and bring position embeddings to the card's size: once, not at every call."""
    model: Any = trunk.model
    if model.num_classes:
        model.reset_classifier(0)
    size = (card.preprocessing.size,) * 2
    patches = getattr(model, "patch_embed", None)
    if hasattr(model, "set_input_size") and getattr(patches, "img_size", size) not in (size, None):
        model.set_input_size(img_size=size)


def adopt(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published timm state dict under this library's names."""
    return {f"trunk.model.{key}": value for key, value in weights.items()}


def card_from_config(name: str, config: Mapping[str, Any]) -> EncoderCard:
    """A card for a repository in timm's layout, from its `config.json`.

    Raises:
        CardError: the file lacks what is needed, or the model looks at something else than squares.
    """
    # Repositories of timm's early days have everything on one level.
    architecture, pre = config.get("architecture"), config.get("pretrained_cfg") or config
    if not isinstance(architecture, str):
        raise CardError(
            f"{CONFIG} of {name!r} names no timm architecture"
            + (f" (it describes a transformers model, {config['model_type']!r})" if "model_type" in config else "")
            + ": robustsim reads its own folders, OpenCLIP's and timm's"
        )
    channels, height, width = pre.get("input_size", (3, 224, 224))
    if channels != 3 or height != width:
        raise CardError(f"{name!r} takes input of {channels} x {height} x {width}: only RGB squares are supported")
    crop, mode = float(pre.get("crop_pct") or 0.875), pre.get("crop_mode") or "center"
    interpolation = pre.get("interpolation") or "bicubic"
    if crop > 1 or mode not in ("center", "squash") or interpolation not in ("bicubic", "bilinear"):
        raise CardError(
            f"{name!r} wants crop_pct {crop}, crop_mode {mode!r} and interpolation {interpolation!r}: supported are "
            "up to 1, center or squash, and bicubic or bilinear"
        )
    if "num_features" not in config:
        raise CardError(f"{CONFIG} of {name!r} does not say num_features")
    return EncoderCard(
        name=name,
        architecture=Architecture(library="timm", name=architecture, options=config.get("model_args") or {}),
        embedding_dim=config["num_features"],
        preprocessing=Preprocessing(
            size=height,
            mode="squash" if mode == "squash" else "shortest",
            resize=floor(height / crop),
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        ),
        mean=tuple(pre.get("mean", IMAGENET_MEAN)),
        std=tuple(pre.get("std", IMAGENET_STD)),
        license=pre.get("license"),
    )
