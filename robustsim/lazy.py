"""Public names that are imported at their first use, so that importing a package costs next to nothing."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a package (PEP 562).

    Args:
        package: its `__name__`.
        homes: for each public name, the module that defines it, relative to the package: `room.module` below it,
            `.room.module` beside it.
    """
    namespace = vars(sys.modules[package])

    def getattribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = namespace[name] = getattr(import_module(f".{homes[name]}", package), name)
        return value

    def directory() -> list[str]:
        return sorted({*namespace, *homes})

    return getattribute, directory
