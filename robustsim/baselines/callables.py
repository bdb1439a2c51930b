"""Anybody's own metric behind the interface."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustsim.baselines.base import Baseline, angular_root, cosine_distance
from robustsim.encoders.weights import sha256
from robustsim.errors import InputError
from robustsim.images.preprocessing import Preprocessing

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def from_callable(
    function: Callable[..., Any], *, name: str = "custom", preprocessing: Preprocessing | None = None
) -> Baseline:
    """A module or a function as a baseline. Pixels in [0, 1], (N, 3, H, W) float32, are what it gets.

    - An object with a method `embed` is an embedding; its method `compare` tells distances, or `1 - cos` if it
      has none.
    - What takes one argument is an embedding model: `distance = sqrt(1 - cos)`.
    - Anything else is called with two batches and gives distances (N,), (N, 1) or (N, 1, 1, 1).

    A [`Baseline`][robustsim.baselines.Baseline] comes back as it is. A module is used itself, not copied: its
    parameters are frozen and it is put into eval mode.

    Args:
        function: the metric.
        name: what reports call it.
        preprocessing: how a file becomes pixels; squashed to 224 x 224 if not given.

    Raises:
        InputError: it cannot be called. What it returns is checked at every call, and raises this too.
    """
    if isinstance(function, Baseline):
        return function
    embed = _method(function, "embed")
    if embed is None and not callable(function):
        raise InputError(f"{name} is {type(function).__name__}, which can neither be called nor has a method embed")
    module = function if isinstance(function, nn.Module) else None
    if embed is not None:
        compare = _method(function, "compare")
        return _Embedding(name, preprocessing, module, embed, compare or cosine_distance)
    if _takes_one(function):
        return _Embedding(name, preprocessing, module, function, angular_root)
    return _Pairs(name, preprocessing, module, function)


def import_metric(path: str) -> Baseline:
    """The metric that `package.module:name` names, as [`from_callable`][robustsim.baselines.from_callable] wraps what
    `find_object` finds.

    Raises:
        InputError: there is no such thing, or it cannot be called.
    """
    return from_callable(find_object(path), name=path)


def find_object(path: str, *, what: str = "metric") -> Any:
    """What `package.module:name` names; what it makes, if it is a class or a function without positional parameters.

    Args:
        path: the name.
        what: is looked for, for messages.

    Raises:
        InputError: the module cannot be imported, has no such name, or the class does not take that.
    """
    where, colon, name = path.partition(":")
    if not (where and colon and name) or where.startswith("."):
        raise InputError(f"{path!r} names no {what}: write package.module:name")
    try:
        found: Any = import_module(where)
    except ImportError as error:
        raise InputError(
            f"{path!r}: the module {where!r} cannot be imported ({error}); is it on PYTHONPATH?"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{path!r}: the module {where!r} has no {name!r}")
        found = getattr(found, part)
    if not isinstance(found, type):
        return found() if _takes_none(found) else found
    try:
        return found()
    except TypeError as error:
        raise InputError(f"{path!r}: the class cannot be made without arguments ({error})") from error


def _takes_none(found: object) -> bool:
    """Whether a function can only be there to make a metric."""
    if not inspect.isfunction(found):
        return False
    kinds = {parameter.kind for parameter in inspect.signature(found).parameters.values()}
    return not kinds & {*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL}


class _Wrapped(Baseline):
    def __init__(
        self, name: str, preprocessing: Preprocessing | None, module: nn.Module | None, function: Callable[..., Any]
    ) -> None:
        super().__init__(name, f"given as {name}{_code(module or function)}", preprocessing)
        self.module = module
        self._freeze(weights=False)  # what is somebody's own is theirs to judge: masks hold infinities

    def _distances(self, result: Any, count: int) -> Tensor:
        """What a metric returned, as (N,) float32."""
        if isinstance(result, Tensor) and result.shape[:1] == (count,) and result.numel() == count:
            return result.reshape(count).float()
        seen = f"{tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise InputError(f"{self.name} must give {count} distances, a tensor ({count},) or ({count}, 1), not {seen}")


class _Pairs(_Wrapped):
    def __init__(
        self,
        name: str,
        preprocessing: Preprocessing | None,
        module: nn.Module | None,
        function: Callable[..., Any],
    ) -> None:
        super().__init__(name, preprocessing, module, function)
        self._function = _Held(function)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        count = max(len(a), len(b))
        size = (count, *a.shape[1:])
        return self._distances(self._function.call(a.expand(size), b.expand(size)), count)


class _Embedding(_Wrapped):
    embeds = True

    def __init__(
        self,
        name: str,
        preprocessing: Preprocessing | None,
        module: nn.Module | None,
        embed: Callable[..., Any],
        compare: Callable[..., Any],
    ) -> None:
        super().__init__(name, preprocessing, module, embed)
        self._embedder, self._comparer = _Held(embed), _Held(compare)

    def _embed(self, images: Tensor) -> Tensor:
        z = self._embedder.call(images)
        if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(images) or not z.is_floating_point():
            seen = f"{z.dtype} {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise InputError(f"{self.name} must give embeddings, floating point ({len(images)}, D), not {seen}")
        return z.float()

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        count = max(len(u), len(v))
        size = (count, u.shape[1])
        return self._distances(self._comparer.call(u.expand(size), v.expand(size)), count)


class _Held:
    """A callable that is not registered as a module a second time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.call = function


def _code(function: object) -> str:
    """What tells that somebody has changed his metric: the hash of the file that defines it, where there is one."""
    try:
        file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
        return "" if file is None else f", file {Path(file).name} with SHA-256 {sha256(Path(file))}"
    except (OSError, TypeError):  # built in, or typed in
        return ""


def _method(function: object, name: str) -> Callable[..., Any] | None:
    found = getattr(function, name, None)
    # Many networks call a layer of theirs "embed".
    return found if callable(found) and not isinstance(found, nn.Module) else None


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):  # of builtins nothing is known
        return False
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters.values()):
        return False
    required = [one for one in parameters.values() if one.kind in _POSITIONAL and one.default is one.empty]
    return len(required) == 1
