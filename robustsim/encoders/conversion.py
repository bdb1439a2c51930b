"""Published checkpoint files (bare vision state dict, MLP file, PEFT folder) into this library's folder format."""

import dataclasses
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustsim.encoders import adapters
from robustsim.encoders.card import Architecture, EncoderCard, Head, list_models, load_card
from robustsim.encoders.containers import find_state, flatten
from robustsim.encoders.encoder import Encoder, build_encoder
from robustsim.encoders.finite import some
from robustsim.encoders.load import fill, load_encoder, save_encoder
from robustsim.encoders.timm_models import TimmTrunk, finish
from robustsim.encoders.weights import read_pickle, read_weights
from robustsim.errors import WeightsError
from robustsim.images.preprocessing import Preprocessing

# The MLP in the names of its file, and its own names.
_MLP = "perceptual_model.mlp."
_MLP_NAMES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def convert(
    source: "str | os.PathLike[str]",
    output: "str | os.PathLike[str]",
    *,
    base: "str | os.PathLike[str]",
    name: str | None = None,
    method: str | None = None,
    threat: str | None = None,
    license: str | None = None,  # noqa: A002 - the card's word
) -> EncoderCard:
    """Turn a published file into a folder that `from_pretrained` reads.

    What the source is shows in it: a folder with `adapter_config.json` holds LoRA adapters of PEFT; a file whose
    `state_dict` has names that begin with `perceptual_model.mlp.` is an MLP; any other file is the bare state dict
    of an image tower. Tuned checkpoints (LoRA, MLP) get the preprocessing they were tuned with, a squash to the
    square; a bare tower keeps its base's.

    Args:
        source: the file or folder.
        output: the folder to write.
        base: the model it belongs to: a catalogue name, Hub id or folder. For a bare tower its card is enough where
            the catalogue has it, and no weights are downloaded.
        name: the new card's name; the output folder's if not given.
        method: how it was trained against tampering, such as `FARE`. Nothing is taken over from the base's card: a
            card must not claim for these weights what was measured on others.
        threat: what it was trained to withstand, such as `linf 4/255`.
        license: of these weights.

    Returns:
        The card that was written.

    Raises:
        WeightsError: the file does not fit the base, or uses an option of PEFT that is not plain LoRA.
        CorruptFileError: the file is damaged, or holds more than tensors and plain data.
        OutputError: the folder cannot be written.
    """
    path, output = Path(source).expanduser(), Path(output).expanduser()
    if not path.exists():
        raise WeightsError(f"there is no file or folder {os.fspath(source)!r}")
    if path.is_dir() and not (path / adapters.CONFIG).is_file():
        raise WeightsError(f"the folder {os.fspath(source)!r} is no PEFT adapter: it holds no {adapters.CONFIG}")
    claims = {
        "name": name or output.name,
        "method": method,
        "threat": threat,
        "license": license,
        "origin": f"converted from {path.name}, with the base {os.fspath(base)}",
    }
    # What the caller has set as the device of new tensors is not where weights are read.
    with torch.device("cpu"):
        if path.is_dir():
            encoder, matrices = _with_lora(path, base)
            return _save(encoder, output, claims, matrices)
        where = repr(os.fspath(path))
        tensors = flatten(read_weights(path) if path.suffix == ".safetensors" else read_pickle(path), where)
        if not tensors:
            raise WeightsError(f"{where} holds no tensors")
        if all(".lora_" in key for key in tensors):
            raise WeightsError(
                f"{where} holds LoRA adapters, whose configuration lies beside them: pass their folder, "
                f"{os.fspath(path.parent)!r}"
            )
        mlp = {key: value for key, value in tensors.items() if _MLP in key}
        encoder = _with_mlp(find_state(mlp, _MLP_NAMES, where), base, where) if mlp else _bare(tensors, base, where)
        return _save(encoder, output, claims)


def _save(
    encoder: Encoder,
    output: "str | os.PathLike[str]",
    claims: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> EncoderCard:
    encoder.card = dataclasses.replace(encoder.card, scores={}, source=None, data=None, calibration=None, **claims)
    root = save_encoder(encoder, output, extra)
    return EncoderCard.from_json((root / "config.json").read_text(encoding="utf-8"))


def _squash(card: EncoderCard) -> Preprocessing:
    return Preprocessing(size=card.preprocessing.size, mode="squash", interpolation="bicubic")


def _bare(tensors: Mapping[str, Tensor], base: "str | os.PathLike[str]", where: str) -> Encoder:
    card = load_card(str(base)) if str(base) in list_models() else load_encoder(base).card
    prefix = {"open_clip": "trunk.visual.", "timm": "trunk.model."}.get(card.architecture.library, "trunk.")
    card = dataclasses.replace(card, text=False)
    encoder = build_encoder(card)
    wanted = [key.removeprefix(prefix) for key in encoder.state_dict() if key.startswith(prefix)]
    tensors = find_state(tensors, wanted, where)
    if card.architecture.library != "timm":
        return fill(encoder, {prefix + key: value for key, value in tensors.items()}, where)
    inner: Any = encoder.trunk
    classifier = (inner.model.pretrained_cfg or {}).get("classifier") or ""
    dropped = {f"{classifier}.weight", f"{classifier}.bias", "mask_token"}  # of training, not of the features
    tensors = {key: value for key, value in tensors.items() if key not in dropped}
    places = tensors.get("pos_embed")
    if places is not None and places.shape != inner.model.pos_embed.shape:
        encoder = build_encoder(card, native_size=True)  # DINOv2's files have the size of its training
    fill(encoder, {prefix + key: value for key, value in tensors.items()}, where)
    finish(cast(TimmTrunk, encoder.trunk), card)
    return encoder


def _with_mlp(mlp: Mapping[str, Tensor], base: "str | os.PathLike[str]", where: str) -> Encoder:
    below = load_encoder(base)
    if "fc1.weight" not in mlp or mlp["fc1.weight"].ndim != 2:
        raise WeightsError(f"the MLP in {where} has no matrix fc1.weight, only {some(sorted(mlp))}")
    head = Head(kind="mlp", hidden=mlp["fc1.weight"].shape[0])
    encoder = Encoder(dataclasses.replace(below.card, head=head, preprocessing=_squash(below.card)), below.trunk).eval()
    weights = {key: value for key, value in below.state_dict().items() if not key.startswith("head.")}
    return fill(encoder, {**weights, **{f"head.{key}": value for key, value in mlp.items()}}, where)


def _with_lora(folder: Path, base: "str | os.PathLike[str]") -> tuple[Encoder, dict[str, Tensor]]:
    """The base with its weights as they are, and the adapters that are merged into them at load."""
    below = load_encoder(base)
    matrices, scale, dreamsims = adapters.read_adapters(folder, below)
    if dreamsims and below.card.architecture.library == "timm":
        if "_patch" in folder.resolve().name:
            raise WeightsError(
                f"{os.fspath(folder)!r} holds adapters for the class token and the patches together, which no encoder "
                "here has as its embedding: use the baselines 'dreamsim-*-patch'"
            )
        _centre(cast(TimmTrunk, below.trunk))
    card = dataclasses.replace(
        below.card,
        architecture=_tuned_architecture(below.card.architecture),
        head=Head(kind="lora", scale=scale),
        preprocessing=_squash(below.card),
    )
    below.card = card
    return below, matrices


def _centre(trunk: TimmTrunk) -> None:
    """DreamSim compares class tokens before the last norm, their mean taken off: a norm without weights does that.

    What it divides by is one number for each image, which a cosine does not see.
    """
    norm = getattr(trunk.model, "norm", None)
    if getattr(trunk.model, "global_pool", None) == "token" and isinstance(norm, nn.LayerNorm):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)


def _tuned_architecture(architecture: Architecture) -> Architecture:
    """CLIP's ViTs were tuned as DINO modules, whose LayerNorms have an eps of 1e-6."""
    if architecture.library != "open_clip":
        return architecture
    from robustsim.encoders.clip import model_config

    config = deepcopy(model_config(architecture))
    if "timm_model_name" in config["vision_cfg"]:
        return architecture
    config["vision_cfg"]["norm_kwargs"] = {"eps": 1e-6}
    return dataclasses.replace(architecture, options={**architecture.options, "model_cfg": config})
