"""The models behind an objective, left as they were."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

# How deep modules are looked for in what an objective holds.
_DEPTH = 7
_LEAVES = (str, bytes, int, float, Tensor, type, ModuleType)


@contextmanager
def undisturbed(objective: object) -> Iterator[None]:
    """The modules of an objective in eval mode and their parameters frozen, and everything as it was afterwards.

    Modules are found where the objective is one, or holds one within a few steps: in attributes, containers, closures,
    as the owner of a method or by a global name. A model that it reaches in another way should be in eval mode already.
    """
    modules = list(_modules(objective))
    modes = [(part, part.training) for module in modules for part in module.modules() if part.training]
    frozen = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    try:
        for part, _ in modes:
            part.training = False
        for weight in frozen:
            weight.requires_grad_(False)
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for weight in frozen:
            weight.requires_grad_(True)


def _modules(objective: object) -> Iterator[nn.Module]:
    """Breadth first, so that whatever can be reached in a few steps is."""
    level, seen = [objective], set()
    for _ in range(_DEPTH):
        following: list[object] = []
        for holder in level:
            if holder is None or id(holder) in seen or isinstance(holder, _LEAVES):
                continue
            seen.add(id(holder))
            if isinstance(holder, nn.Module):
                yield holder
            else:
                following += _parts(holder)
        level = following


def _parts(holder: Any) -> list[object]:
    """What an object holds: the owner of a method, items, attributes, a closure, defaults, globals that it names."""
    if isinstance(holder, partial):
        return [holder.func, *holder.args, *holder.keywords.values()]
    if isinstance(holder, (list, tuple, set, frozenset)):
        return list(holder)
    if isinstance(holder, dict):
        return list(holder.values())
    parts = [getattr(holder, "__self__", None), *getattr(holder, "__dict__", {}).values()]
    for kind in type(holder).__mro__:
        slots = getattr(kind, "__slots__", ())
        parts += [getattr(holder, name, None) for name in ([slots] if isinstance(slots, str) else slots)]
        parts += [value for value in vars(kind).values() if isinstance(value, nn.Module)]
    function = getattr(holder, "__func__", holder)
    if isinstance(function, FunctionType):
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a name that is not bound yet
                parts.append(cell.cell_contents)
        parts += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        # Of the globals only models themselves: the rest of the program is nobody's holder.
        named = (function.__globals__.get(name) for name in function.__code__.co_names)
        parts += [value for value in named if isinstance(value, nn.Module)]
    return parts
