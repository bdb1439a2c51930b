"""`robustsim benchmark`: what this machine does with a model, mode by mode."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output
from robustsim.cli.engine import usable_engine
from robustsim.errors import InputError, RobustSimError

if TYPE_CHECKING:
    from robustsim.encoders.encoder import Encoder

_INTERRUPTED = 130  # as of a process that Ctrl-C ends


def benchmark(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Models that are here; the default one if none.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures a call.")] = 8,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="About how long each mode is run.")] = 3.0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads on the CPU.")] = None,
    device: output.DeviceOption = None,
    compiled: Annotated[bool, typer.Option("--compile", help="With torch.compile too, which takes minutes.")] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Architectures of the catalogue, without their weights.")
    ] = False,
    as_json: output.JsonOption = False,
) -> None:
    """Pictures and gradients a second, errors and memory of each way to run a model on this machine."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # ONNX Runtime's too
    import torch

    from robustsim.encoders.measuring import measure

    if threads is not None:
        torch.set_num_threads(threads)
    results: list[dict[str, Any]] = []
    code = 0
    for name in names or [output.DEFAULT_MODEL]:
        try:
            encoder = _load(name, device, random_weights)
        except RobustSimError as error:
            output.note(f"robustsim: {error}")
            code = 1
            continue
        except KeyboardInterrupt:
            output.note("interrupted: these are the models that were measured")
            code = _INTERRUPTED
            break
        measured, whole = measure(encoder, batch_size=batch_size, seconds=seconds, compiled=compiled)
        said = encoder.describe()
        engine, why = ("torch", "its weights are random") if random_weights else usable_engine(name, device)
        result = {
            "model": name,
            "device": str(said.device),
            "threads": torch.get_num_threads(),
            "batch_size": batch_size,
            "random_weights": random_weights,
            "path": said.path,
            "path_reason": said.reason,
            "engine": engine,
            "engine_reason": why,
            "default_mode": "onnx" if engine == "onnx" else "default",
            "whole": whole,
            "modes": [vars(mode) for mode in measured],
        }
        results.append(result)
        if not as_json:
            _print(result)
        if not whole:
            output.note("interrupted: these are the rounds that were done")
            code = _INTERRUPTED
            break
    if as_json:
        output.print_json(results)
    if code:
        raise typer.Exit(code)


def _load(name: str, device: str | None, random_weights: bool) -> "Encoder":
    from robustsim.encoders import list_models, load_encoder
    from robustsim.encoders.measuring import random_encoder
    from robustsim.encoders.placement import find_device

    if random_weights and name not in list_models():
        raise InputError(f"--random-weights takes names of `robustsim models`, and {name!r} is none")
    encoder = random_encoder(name) if random_weights else load_encoder(name, local_files_only=True)
    return encoder.to(find_device(device))


def _print(result: dict[str, Any]) -> None:
    header = ("mode", "images/s", "gradients/s", "error, median", "worst", "model MB", "peak MB", "")
    rows = [
        (
            mode["mode"],
            *(_number(mode[key], ".1f") for key in ("images_per_second", "gradients_per_second")),
            *(_number(mode[key], ".1e") for key in ("error_median", "error_worst")),
            *(_number(mode[key] and mode[key] / 1e6, ".1f") for key in ("model_bytes", "peak_bytes")),
            mode["problem"],
        )
        for mode in result["modes"]
    ]
    weights = ", random weights" if result["random_weights"] else ""
    typer.echo(
        f"{result['model']} on {result['device']}, {result['threads']} threads, batches of "
        f"{result['batch_size']}{weights}"
    )
    output.print_table(header, rows, numbers=(1, 2, 3, 4, 5, 6))
    reason = f" ({result['path_reason']})" if result["path_reason"] else ""
    typer.echo(
        f"By default, Python runs `default`: path {result['path']}{reason}. Commands that only embed run "
        f"`{result['default_mode']}`, because {result['engine_reason']}."
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
