"""The models behind an objective, left as they were."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

# How deep modules are looked for in what an objective holds.
_DEPTH = 7
# How many items of one container are looked through: a data set is no holder of models.
_ITEMS = 1000
_LEAVES = (str, bytes, int, float, Tensor, type, ModuleType)


@contextmanager
def undisturbed(objective: object) -> Iterator[None]:
    """The modules of an objective in eval mode and their parameters frozen, and everything as it was afterwards.

    Modules are found where the objective is one, or holds one within a few steps: in attributes, containers, closures,
    as the owner of a method or by a global name. A model that it reaches in another way should be in eval mode already.
    """
    modules = list(modules_behind(objective))
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


def modules_behind(objective: object) -> Iterator[nn.Module]:
    """The modules that an objective is or holds; breadth first, so that whatever can be reached in a few steps is."""
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
    """What an object holds: the owner of a method, items, attributes, a closure, defaults, globals that it names.

    Nothing of the holder's own is run for that, neither properties nor `__getattr__`.
    """
    if isinstance(holder, partial):
        return [holder.func, *holder.args, *holder.keywords.values()]
    if isinstance(holder, (list, tuple, set, frozenset)):
        return list(islice(holder, _ITEMS))
    if isinstance(holder, dict):
        return list(islice(holder.values(), _ITEMS))
    if isinstance(holder, MethodType):
        return [holder.__self__, holder.__func__]
    if isinstance(holder, FunctionType):
        return _parts_of_function(holder)
    parts: list[object] = []
    with suppress(AttributeError):
        parts += islice(object.__getattribute__(holder, "__dict__").values(), _ITEMS)
    for kind in type(holder).__mro__:
        for value in vars(kind).values():
            if isinstance(value, MemberDescriptorType):  # of __slots__
                with suppress(AttributeError):
                    parts.append(value.__get__(holder))
            elif isinstance(value, nn.Module):
                parts.append(value)
    return parts


def _parts_of_function(function: FunctionType) -> list[object]:
    parts: list[object] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that is not bound yet
            parts.append(cell.cell_contents)
    # Of the globals only models themselves: the rest of the program is nobody's holder.
    named = [function.__globals__.get(name) for name in sorted(_names(function.__code__))]
    return [*parts, *(value for value in named if isinstance(value, nn.Module))]


def _names(code: CodeType) -> set[str]:
    """The globals that a function names, itself and in what is defined inside it."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))
