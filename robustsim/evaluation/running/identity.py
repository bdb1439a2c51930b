"""What a run is: all that its figures depend on."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from robustsim import __version__
from robustsim.data.items import Preprocess
from robustsim.evaluation.subjects import Subject
from robustsim.evaluation.tasks.choices import Task
from robustsim.evaluation.tasks.pictures import below

# Characters of a name that go into that of a file.
_LONGEST = 50
# Libraries whose versions may change figures.
_NAMED = (
    "torchvision", "numpy", "scipy", "pillow", "timm", "open_clip_torch", "transformers", "lpips", "dreamsim", "piq",
)  # fmt: skip


def versions() -> dict[str, str]:
    """What is installed that figures may depend on."""
    found = {"robustsim": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in _NAMED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_kind(device: torch.device) -> str:
    """What a device is called in reports: the GPU's own name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def identify(
    metric: Subject,
    task: Task,
    attack: "dict[str, Any] | None",
    *,
    preprocess: Preprocess,
    attacked: int,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """What the figures of a run depend on, for JSON.

    Args:
        metric: what is judged.
        task: what it is asked.
        attack: the plan, None for no attack.
        preprocess: by which rule pictures have become the metric's square.
        attacked: how many items are attacked.
        seed: of draws, attacks and resampling.
        batch_size: which moves the last digits.
    """
    questions = hashlib.sha256()
    for question in task.questions:
        shown = (f"{_name(task, picture.path)}\1{picture.variant}" for picture in question.pictures)
        shares = (repr(question.shares),) if question.shares else ()
        fields = (
            *(question.id, repr(question.answer), question.group, question.cluster, repr(question.duel)),
            *(*shares, *shown),
        )
        questions.update("\0".join(fields).encode("utf-8", "surrogateescape") + b"\n")
    return {
        "task": task.name,
        "metric": {"name": metric.name, **metric.about},
        "data": {
            **task.data,
            "items": len(task.questions),
            "items_sha256": questions.hexdigest(),
            **file_hashes(
                task.data.get("root", "."),
                {picture.path for question in task.questions for picture in question.pictures},
            ),
        },
        "preprocessing": {"rule": preprocess, **asdict(metric.preprocessing)},
        "attack": attack,
        "attacked": attacked,
        "seed": seed,
        "batch_size": batch_size,
        "versions": versions(),
        "device": device_kind(metric.device),
    }


def stem(identity: "dict[str, Any]") -> str:
    """The name of the files of a run: what it is in words, and a hash of all of it."""
    short = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    named = (identity["task"], str(identity["data"].get("name", "data")), identity["metric"]["name"])
    readable = (re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:_LONGEST] for name in named)
    return "-".join([*filter(None, readable), short])


def _name(task: Task, path: Path) -> str:
    return below(task.data.get("root", "."), path).as_posix()


def file_hashes(root: "str | os.PathLike[str]", paths: Iterable[Path]) -> dict[str, Any]:
    """Hash of the files' names below a folder and sizes, of their times of change besides, and how many there are."""
    found = sorted(set(paths))
    sizes, stamps = hashlib.sha256(), hashlib.sha256()
    for path in found:
        try:
            stat = path.stat()
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:  # whoever reads it will tell why
            size = changed = -1
        name = os.fsencode(below(root, path).as_posix())
        sizes.update(name + f"\0{size}\n".encode())
        stamps.update(name + f"\0{size} {changed}\n".encode())
    return {"files": len(found), "files_sha256": sizes.hexdigest(), "stamps_sha256": stamps.hexdigest()}
