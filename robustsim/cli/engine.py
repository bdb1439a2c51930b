"""What computes embeddings for a command that only scores: torch, or ONNX Runtime, which needs no torch."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, Union

import typer

from robustsim.cli import output
from robustsim.encoders.card import list_models, load_card
from robustsim.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from robustsim.metric import RobustSim
    from robustsim.onnx import OnnxMetric

Engine = Literal["torch", "onnx"]
Scorer: TypeAlias = "Union[RobustSim, OnnxMetric]"
EngineOption = Annotated[
    Engine | None,
    typer.Option(
        help="What computes: torch, or onnx, ONNX Runtime on the CPU. If not given, ROBUSTSIM_ENGINE says it; else "
        "onnx for a bundled model where it is installed and no accelerator is seen."
    ),
]

_VARIABLE = "ROBUSTSIM_ENGINE"
# By sight: to ask torch would cost what the other engine spares.
_ACCELERATORS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))


def choose_engine(
    model: str, device: str | None, engine: Engine | None, *, torch_for: str | None = None
) -> tuple[Engine, str]:
    """The engine, and why.

    Args:
        model: what the command was given.
        device: likewise.
        engine: likewise; the environment's if None.
        torch_for: the option for which this command needs torch, if there is one.

    Raises:
        InputError: the engine that was asked for cannot do it, or there is none of that name.
    """
    wanted, by = engine or os.environ.get(_VARIABLE) or None, "--engine" if engine else _VARIABLE
    if wanted not in (None, "torch", "onnx"):
        raise InputError(f"{_VARIABLE} is {wanted!r}: it is torch, onnx, or not set")
    if _is_file(model):
        if against := f"--engine {engine}" if engine == "torch" else torch_for:
            raise InputError(
                f"{model!r} is a file of ONNX, and {against} needs a model in torch: give its name or folder"
            )
        if device not in (None, "cpu"):
            raise InputError(f"{model!r} is a file of ONNX, which runs on the CPU, and not on {device!r}")
        return "onnx", "the model is a file of ONNX"
    if wanted == "torch":
        return "torch", f"{by} says so"
    against = _against_onnx(model, device, torch_for)
    if engine == "onnx" and against is not None:
        raise InputError(f"--engine onnx cannot be used: {against}")
    if against is None and wanted is None and device is None and _has_accelerator():
        against = "an accelerator is seen"
    if against is not None:
        return "torch", against
    return "onnx", f"{by} says so" if wanted else "the model is bundled and onnxruntime is installed"


def usable_engine(model: str, device: str | None) -> tuple[Engine, str]:
    """The engine that runs where none is named, and why: `choose_engine`, and whether onnxruntime can be imported."""
    chosen, why = choose_engine(model, device, None)
    if chosen == "onnx":
        try:
            import onnxruntime  # noqa: F401
        except Exception as error:  # built for another NumPy, a library that is missing: of any kind
            return "torch", f"onnxruntime is installed and cannot be imported ({error})"
    return chosen, why


def load_scorer(model: str, device: str | None, engine: Engine | None, *, torch_for: str | None = None) -> Scorer:
    """The metric of a command that only scores; arguments and errors as for `choose_engine`."""
    if choose_engine(model, device, engine, torch_for=torch_for)[0] == "torch":
        return output.load_metric(model, device)
    from robustsim.onnx import bundled, from_onnx

    try:
        metric = from_onnx(model) if _is_file(model) else bundled(model)
    except MissingDependencyError:  # installed, and cannot be imported
        if engine is not None or _is_file(model):
            raise
        return output.load_metric(model, device)
    output.settle(metric.card)
    return metric


def load_hybrid(model: str, device: str | None, engine: Engine | None) -> "RobustSim":
    """A metric in torch whose embeddings ONNX Runtime computes, if it may; arguments and errors as for
    `choose_engine`.
    """
    chosen, _ = choose_engine(model, device, engine, torch_for="an index" if _is_file(model) else None)
    runner = None
    if chosen == "onnx":
        from robustsim.onnx import bundled

        try:
            runner = bundled(model)
        except MissingDependencyError:  # installed, and cannot be imported
            if engine is not None:
                raise
    metric = output.load_metric(model, device if runner is None else "cpu")
    if runner is not None:
        import torch

        def embed_pixels(pixels: "torch.Tensor") -> "torch.Tensor":
            runner.batch_size = metric.batch_size
            return torch.from_numpy(runner.embed_pixels(pixels.numpy()))

        metric.__dict__["embed_pixels"] = embed_pixels  # no module: nothing of it belongs into a checkpoint
    return metric


def _against_onnx(model: str, device: str | None, torch_for: str | None) -> str | None:
    if torch_for is not None:
        return f"{torch_for} needs torch"
    if device not in (None, "cpu"):
        return f"it runs on the CPU, and not on {device!r}"
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install 'robustsim[fast]')"
    if model not in list_models() or load_card(model).source is not None:
        return f"{model!r} is not bundled: `robustsim export` makes a file of it, which --model takes"
    from robustsim.encoders.export.making import cached_path

    kept = cached_path(load_card(model))
    if find_spec("onnx") is None and (kept is None or not kept.is_file()):
        return "onnx is not installed (pip install 'robustsim[fast]')"
    return None


def _is_file(model: str) -> bool:
    return model.endswith(".onnx") and os.path.isfile(model)


def _has_accelerator() -> bool:
    is_apple = sys.platform == "darwin" and os.uname().machine == "arm64"
    return is_apple or any(path.exists() for path in _ACCELERATORS)
