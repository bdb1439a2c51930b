"""Lance, and its errors as ours."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustsim.errors import MissingDependencyError, OutputError, RobustSimError, SearchError


def lance() -> Any:
    """The library.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import lance as module
    except ImportError:
        raise MissingDependencyError('an index needs Lance: pip install "robustsim[search]"') from None
    return module


@contextmanager
def lances(folder: Path, *, writes: bool = False) -> Iterator[None]:
    """Lance's errors as ours. It has no type of its own for files that are missing or damaged; some let it panic."""
    try:
        yield
    except BaseException as error:
        kinds = (OSError, ValueError, RuntimeError, KeyError)
        if isinstance(error, RobustSimError) or not (
            isinstance(error, kinds) or type(error).__name__ == "PanicException"
        ):
            raise
        where, why = os.fspath(folder), str(error)[:200]
        if writes:
            raise OutputError(f"cannot write the index {where!r}; what was in it stays ({why})") from error
        raise SearchError(
            f"the index {where!r} cannot be read: its files are damaged, or were erased since it was opened. Open it "
            f"again; `robustsim check` tells more ({why})"
        ) from error
