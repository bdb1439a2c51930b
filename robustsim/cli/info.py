"""`robustsim info`: what a bug report needs."""

import os

from robustsim.cli import output
from robustsim.cli.engine import usable_engine
from robustsim.errors import InputError


def info(as_json: output.JsonOption = False) -> None:
    """Versions, device and cache."""
    import platform

    import torch
    from huggingface_hub import constants

    import robustsim

    facts = {
        "robustsim": robustsim.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in ("torch", "torchvision", "open_clip_torch", "timm", "huggingface_hub")},
        **{name: _version(name) for name in ("safetensors", "pillow", "numpy", "onnxruntime")},
        "device": _device_name(),
        "threads": str(torch.get_num_threads()),
        "default model": output.DEFAULT_MODEL,
        "engine": _engine(),
        "cache": constants.HF_HUB_CACHE,
        "hub": os.environ.get("HF_ENDPOINT") or constants.ENDPOINT,
        "offline": str(bool(constants.HF_HUB_OFFLINE)).lower(),
    }
    if as_json:
        output.print_json(facts)
    else:
        output.print_table(("", ""), list(facts.items()))


def _engine() -> str:
    try:
        return " because ".join(usable_engine(output.DEFAULT_MODEL, None))
    except InputError as error:  # what is wrong with it is what is looked for here
        return str(error)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()})"
    return "mps" if torch.backends.mps.is_available() else "cpu"
