"""LoRA adapters as PEFT writes them: their folders, and whose weights they change, whatever these are called there."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustsim.encoders.encoder import Encoder
from robustsim.encoders.heads import LORA_PREFIX, merge_lora
from robustsim.encoders.weights import read_weights
from robustsim.errors import CardError, WeightsError

CONFIG = "adapter_config.json"
# DreamSim's package, and what was trained with it, has the networks in a list of this name.
DREAMSIM_LIST = "extractor_list."

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
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
# <module>.lora_A.weight, with the adapter's name in it where the model's own state dict was saved.
_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])(?:\.(?!bias$)[^.]+)?(?:\.weight)?$")
_ROOTS = ("trunk.visual.", "trunk.model.", "trunk.")
# open_clip's names, and those that a module written after DINO's has for the same.
_AS_IN_DINO = (
    ("transformer.resblocks.", "blocks."),
    (".attn.in_proj_weight", ".attn.qkv"),
    (".attn.out_proj", ".attn.proj"),
    (".mlp.c_fc", ".mlp.fc1"),
    (".mlp.c_proj", ".mlp.fc2"),
)
# ConvNeXts were tuned in a wrapper that calls their stages blocks, beside the name they have.
_STAGES = re.compile(r"^(?:trunk\.)?stages\.(?=\d+\.blocks\.)")
# A number before the name that was found belongs to it: the block of another network.
_WITHIN = re.compile(r"(?:^|\.)(?:blocks|resblocks|layers|stages)\.\d+$")


def read_adapters(folder: Path, encoder: Encoder) -> tuple[dict[str, Tensor], float, bool]:
    """The adapters in a folder of PEFT, for an encoder that they fit.

    Args:
        folder: with `adapter_config.json` and the adapters.
        encoder: the base, its weights as they are without them.

    Returns:
        The matrices as `lora.<parameter>.a` and `.b`; what their product is multiplied with; and whether their
        names are those of DreamSim's package.

    Raises:
        CardError: the configuration cannot be understood.
        WeightsError: options of PEFT that are not plain LoRA, adapters that do not fit the base, contradict each
            other or hold values that are not finite.
    """
    rank, scale = _read_config(folder)
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise WeightsError(f"{os.fspath(folder)!r} holds neither {' nor '.join(_FILES)}")
    tensors = read_weights(path)
    adapters = _match(tensors, encoder)
    for name, value in adapters.items():
        if value.shape[0 if name.endswith(".a") else -1] != rank:
            raise WeightsError(f"{CONFIG} says r = {rank}, the matrix {name!r} has the shape {tuple(value.shape)}")
    # What loading will do, so that a folder that cannot be loaded is never written.
    merge_lora({**encoder.state_dict(), **adapters}, scale)
    return adapters, scale, any(DREAMSIM_LIST in key for key in tensors)


def _read_config(folder: Path) -> tuple[int, float]:
    """The rank, and the scale of the product."""
    where = repr(os.fspath(folder / CONFIG))
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{where} is no adapter configuration: {error!r}") from None
    if rank < 1 or not math.isfinite(alpha):
        raise CardError(f"{where} is no adapter configuration: r = {rank}, lora_alpha = {alpha}")
    for key, allowed in _PLAIN_LORA.items():
        if config.get(key) not in allowed:
            raise WeightsError(
                f"the adapter uses {key} = {config[key]!r}, which is not plain LoRA and is not supported"
            )
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _match(tensors: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """PEFT's adapter names as `lora.<parameter>.a` and `.b`."""
    parameters: dict[str, set[str]] = {}
    for parameter, _ in encoder.named_parameters():
        for spelling in _spellings(parameter):
            parameters.setdefault(spelling, set()).add(parameter)
    out: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for key, value in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise WeightsError(f"the adapter holds {key!r}, which is no lora_A or lora_B matrix of a linear layer")
        found = _find(match["module"], parameters)
        if len(found) != 1:
            raise WeightsError(
                f"the adapter changes {match['module']!r}, of which {encoder.card.name!r} has {len(found)}: "
                "it belongs to another base"
            )
        name = f"{LORA_PREFIX}{found.pop()}.{match['half'].lower()}"
        matrix = value.flatten(1) if value.ndim > 2 else value
        # A wrapper that has a second name for its layers saves what is in them twice.
        if name in out and not (out[name].shape == matrix.shape and torch.equal(out[name], matrix)):
            raise WeightsError(
                f"the adapters {first[name]!r} and {key!r} change the same weight, and differ: they belong to several "
                "models (DreamSim's ensemble is the baseline 'dreamsim')"
            )
        out[name], first[name] = matrix, first.get(name, key)
    if not out:
        raise WeightsError("the adapter file holds no adapters")
    return out


def _spellings(parameter: str) -> Iterator[str]:
    """The module paths by which adapters may call a parameter, from the network on."""
    path = next((parameter.removeprefix(root) for root in _ROOTS if parameter.startswith(root)), parameter)
    path = path.removesuffix(".weight")
    yield path
    # Adapters of what is inside: from the list that holds the first block on.
    parts = path.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    if number > 1:
        yield ".".join(parts[number - 1 :])
    in_dino = path
    for ours, theirs in _AS_IN_DINO:
        in_dino = in_dino.replace(ours, theirs)
    if in_dino != path:
        yield in_dino
    as_blocks = _STAGES.sub("blocks.", path)
    if as_blocks != path:
        yield as_blocks


def _find(module: str, parameters: Mapping[str, set[str]]) -> set[str]:
    """The parameters that an adapter's module path may mean, whatever it was wrapped in when it was saved."""
    parts = module.split(".")
    for start in range(len(parts)):
        found = parameters.get(".".join(parts[start:]))
        if found and not _WITHIN.search(".".join(parts[:start])):
            return set(found)
    return set()
