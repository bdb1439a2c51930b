"""How the libraries that own the metrics are used: imported late, kept quiet, their failures told in our words."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustsim.encoders.containers import strip_wrappers
from robustsim.encoders.finite import refuse_non_finite, some
from robustsim.encoders.weights import read_weights
from robustsim.errors import HubError, MissingDependencyError, RobustSimError, WeightsError

INSTALL = 'pip install "robustsim[baselines]"'


def need(module: str, name: str) -> Any:
    """An optional library's module, imported; `name` is the metric that needs it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    with undisturbed():
        try:
            return import_module(module)
        except ImportError as error:
            library = module.partition(".")[0]
            raise MissingDependencyError(f"{name} needs the package {library!r} ({error}): {INSTALL}") from error


def version_of(library: str) -> str:
    """`lpips 0.1.4`, for reports."""
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return library


@contextmanager
def undisturbed(*, silent: bool = False) -> Iterator[None]:
    """What a library does while it is imported or builds a model leaves no trace in the process.

    Its warnings are not shown, what it prints goes to standard error (nowhere if `silent`), and the random state and
    torch.hub's folder are as before when it is done. For construction only: neither is safe among threads.
    """
    hub = vars(torch.hub)
    folder = hub.get("_hub_dir")
    with (
        redirect_stdout(StringIO() if silent else sys.stderr),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            hub["_hub_dir"] = folder


@contextmanager
def downloading(name: str) -> Iterator[None]:
    """`undisturbed`, for a library that fetches its weights.

    Raises:
        HubError: it could not.
    """
    try:
        with undisturbed():
            yield
    except RobustSimError:
        raise
    except Exception as error:  # what a failing download raises is the library's affair
        raise HubError(
            f"the weights of {name} could not be downloaded ({error}): fetch them elsewhere and pass weights=FILE "
            f"({name}=FILE on the command line)"
        ) from error


def read_state(weights: "str | os.PathLike[str]") -> dict[str, Tensor]:
    """The tensors of a weights file, float32, by their names without the `module.` and its like before them.

    Raises:
        WeightsError: there is no such file, it holds no tensors or several state dicts, or values that are not finite.
        CorruptFileError: it cannot be parsed, or holds more than tensors and plain data.
    """
    path = Path(weights).expanduser()
    where = repr(os.fspath(path))
    tensors = strip_wrappers(read_weights(path), where)
    state = {key: value.detach().float() for key, value in tensors.items()}
    refuse_non_finite(state, f"the weights in {where}")
    return state


def check_state(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    where: "str | os.PathLike[str]",
    name: str,
    unknown: Iterable[str] = (),
) -> None:
    """Hold the tensors of a file against the names and shapes that a metric needs.

    Raises:
        WeightsError: some are missing, have another shape, or do not belong there.
    """
    faults = []
    if missing := [key for key in wanted if key not in found]:
        faults.append(f"lacks {some(missing)}")
    if left := sorted({*unknown, *(key for key in found if key not in wanted)}):
        faults.append(f"holds {some(left)}, which do not belong there")
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {shape}"
        for key, shape in wanted.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    if shapes:
        faults.append(f"has {some(shapes)}")
    if faults:
        raise WeightsError(f"{os.fspath(where)!r} does not fit {name}: it {'; it '.join(faults)}")


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module that was built without memory its weights."""
    module.load_state_dict(dict(state), strict=True, assign=True)


def to_buffer(module: nn.Module, name: str, value: Tensor, *, persistent: bool = False) -> None:
    """Make a plain attribute a buffer, which moves with its module."""
    vars(module).pop(name, None)
    module.register_buffer(name, value, persistent=persistent)
