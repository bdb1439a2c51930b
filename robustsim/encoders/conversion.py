"""Published checkpoint files (bare vision state dict, MLP file, PEFT folder) into this library's folder format."""

import dataclasses
import json
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from robustsim.encoders.card import Architecture, EncoderCard, Head, list_models, load_card
from robustsim.encoders.encoder import Encoder, build_encoder
from robustsim.encoders.heads import LORA_PREFIX
from robustsim.encoders.load import fill, load_encoder, save_encoder
from robustsim.encoders.timm_models import TimmTrunk, finish
from robustsim.encoders.weights import read_pickle, read_weights, unwrap
from robustsim.errors import CardError, WeightsError
from robustsim.images.preprocessing import Preprocessing

_MLP_PREFIX = "perceptual_model.mlp."
_ADAPTER = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
# What PEFT can do beyond W + alpha / r * B A, and the values under which it does not.
_PLAIN_LORA: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", None),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
}


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
    """Turn a published file into a folder that ``from_pretrained`` reads.

    What the source is shows in it: a folder with ``adapter_config.json`` holds LoRA adapters of PEFT; a file whose
    ``state_dict`` has names that begin with ``perceptual_model.mlp.`` is an MLP; any other file is the bare state dict
    of an image tower. Tuned checkpoints (LoRA, MLP) get the preprocessing they were tuned with, a squash to the
    square; a bare tower keeps its base's.

    Args:
        source: the file or folder.
        output: the folder to write.
        base: the model it belongs to: a catalogue name, Hub id or folder. For a bare tower its card is enough where
            the catalogue has it, and no weights are downloaded.
        name: the new card's name; the output folder's if not given.
        method: how it was trained against tampering, such as ``FARE``. Nothing is taken over from the base's card: a
            card must not claim for these weights what was measured on others.
        threat: what it was trained to withstand, such as ``linf 4/255``.
        license: of these weights.

    Returns:
        The card that was written.

    Raises:
        WeightsError: the file does not fit the base, or uses an option of PEFT that is not plain LoRA.
        CorruptFileError: the file is damaged, or holds more than tensors and plain data.
        OutputError: the folder cannot be written.
    """
    path, name = Path(source), name or Path(output).name
    if not path.exists():
        raise WeightsError(f"there is no file or folder {os.fspath(source)!r}")
    claims = {
        "name": name,
        "method": method,
        "threat": threat,
        "license": license,
        "origin": f"converted from {path.name}, with the base {os.fspath(base)}",
    }
    if path.is_dir():
        if not (path / _ADAPTER).is_file():
            raise WeightsError(f"the folder {os.fspath(source)!r} is no PEFT adapter: it holds no {_ADAPTER}")
        encoder, adapters = _with_lora(path, base)
        return _save(encoder, output, claims, adapters)
    loaded = read_weights(path) if path.suffix == ".safetensors" else read_pickle(path)
    tensors = unwrap(loaded)
    mlp = {key.removeprefix(_MLP_PREFIX): value for key, value in tensors.items() if key.startswith(_MLP_PREFIX)}
    if mlp:
        return _save(_with_mlp(mlp, base, os.fspath(path)), output, claims)
    if not tensors:
        raise WeightsError(f"{os.fspath(source)!r} holds no tensors")
    return _save(_bare(tensors, base, os.fspath(path)), output, claims)


def _save(
    encoder: Encoder,
    output: "str | os.PathLike[str]",
    claims: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> EncoderCard:
    encoder.card = dataclasses.replace(encoder.card, scores={}, source=None, data=None, **claims)
    root = save_encoder(encoder, output, extra)
    return EncoderCard.from_json((root / "config.json").read_text(encoding="utf-8"))


def _squash(card: EncoderCard) -> Preprocessing:
    return Preprocessing(size=card.preprocessing.size, mode="squash", interpolation="bicubic")


def _bare(tensors: Mapping[str, Tensor], base: "str | os.PathLike[str]", where: str) -> Encoder:
    card = load_card(str(base)) if str(base) in list_models() else load_encoder(base).card
    prefix = {"open_clip": "trunk.visual.", "timm": "trunk.model."}.get(card.architecture.library, "trunk.")
    for wrapper in ("module.", "model."):
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    if any(key.startswith("visual.") for key in tensors):  # a whole CLIP: its image tower
        tensors = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
    card = dataclasses.replace(card, text=False)
    encoder = build_encoder(card)
    if card.architecture.library != "timm":
        return fill(encoder, {prefix + key: value for key, value in tensors.items()}, repr(where))
    inner: Any = encoder.trunk
    classifier = (inner.model.pretrained_cfg or {}).get("classifier") or ""
    dropped = {f"{classifier}.weight", f"{classifier}.bias", "mask_token"}  # of training, not of the features
    tensors = {key: value for key, value in tensors.items() if key not in dropped}
    places = tensors.get("pos_embed")
    if places is not None and places.shape != inner.model.pos_embed.shape:
        encoder = build_encoder(card, native_size=True)  # DINOv2's files have the size of its training
    fill(encoder, {prefix + key: value for key, value in tensors.items()}, repr(where))
    finish(cast(TimmTrunk, encoder.trunk), card)
    return encoder


def _with_mlp(mlp: Mapping[str, Tensor], base: "str | os.PathLike[str]", where: str) -> Encoder:
    below = load_encoder(base)
    if "fc1.weight" not in mlp:
        raise WeightsError(f"the MLP in {where!r} has no fc1.weight, only {', '.join(sorted(mlp)[:4])}")
    head = Head(kind="mlp", hidden=mlp["fc1.weight"].shape[0])
    encoder = Encoder(dataclasses.replace(below.card, head=head, preprocessing=_squash(below.card)), below.trunk).eval()
    weights = {key: value for key, value in below.state_dict().items() if not key.startswith("head.")}
    return fill(encoder, {**weights, **{f"head.{key}": value for key, value in mlp.items()}}, repr(where))


def _with_lora(folder: Path, base: "str | os.PathLike[str]") -> tuple[Encoder, dict[str, Tensor]]:
    """The base with its weights as they are, and the adapters that are merged into them at load."""
    try:
        config = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{os.fspath(folder / _ADAPTER)!r} is no adapter configuration: {error!r}") from None
    for key, allowed in _PLAIN_LORA.items():
        if config.get(key) not in allowed:
            raise WeightsError(
                f"the adapter uses {key} = {config[key]!r}, which is not plain LoRA and is not supported"
            )
    files = [folder / "adapter_model.safetensors", folder / "adapter_model.bin"]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise WeightsError(f"{os.fspath(folder)!r} holds neither {files[0].name} nor {files[1].name}")
    below = load_encoder(base)
    adapters = _match(read_weights(path), below)
    card = dataclasses.replace(
        below.card,
        architecture=_tuned_architecture(below.card.architecture),
        head=Head(kind="lora", scale=alpha / (rank**0.5 if config.get("use_rslora") else rank)),
        preprocessing=_squash(below.card),
    )
    below.card = card
    return below, adapters


def _match(tensors: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """PEFT's adapter names as ``lora.<parameter>.a`` and ``.b``."""
    parameters = {key for key, _ in encoder.named_parameters()}
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        path, _, kind = key.removeprefix(_PEFT_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if kind not in ("A", "B"):
            raise WeightsError(f"the adapter holds {key!r}, which is no lora_A or lora_B matrix of a linear layer")
        found = _candidates(path, parameters)
        if len(found) != 1:
            raise WeightsError(
                f"the adapter changes {path!r}, of which {encoder.card.name!r} has {len(found)}: "
                "it belongs to another base"
            )
        if value.ndim > 2:
            value = value.flatten(1)
        out[f"{LORA_PREFIX}{found[0]}.{kind.lower()}"] = value
    if not out:
        raise WeightsError("the adapter file holds no adapters")
    return out


def _candidates(path: str, parameters: set[str]) -> list[str]:
    """The parameters that an adapter's module path may mean, whatever it was wrapped in when it was saved."""
    # DINO's module names, which the LoRA checkpoints of CLIP's ViTs use, beside open_clip's own.
    tail = path.rpartition("blocks.")[2].replace(".attn.qkv", ".attn.in_proj_weight")
    parts = path.split(".")
    indices = [place for place, part in enumerate(parts) if part.isdigit()]
    found: list[str] = []
    for start in range(max(1, indices[0]) if indices else 1):  # "blocks.3" must stay whole
        ends = (f".{'.'.join(parts[start:])}.weight", f".resblocks.{tail}")
        found = [parameter for parameter in parameters if parameter.endswith(ends)]
        if found:
            break
    return found


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
