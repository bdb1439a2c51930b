"""Files that an index takes in, and whether they are there still."""

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from robustsim.errors import ImageError
from robustsim.images.preprocessing import Preprocessing
from robustsim.images.views.load import load_views
from robustsim.search.index.pictures import Loading
from robustsim.search.stamps import Stamp, hashed_stamp


def load_file(
    preprocessings: Sequence[Preprocessing], views: Sequence[str], path: str
) -> "tuple[tuple[str, Stamp], Loading]":
    """The views of a file that has an absolute name, with the name and what the file is known by.

    Args:
        preprocessings: of the models.
        views: which, beside the whole.
        path: the file.
    """
    stamp = hashed_stamp(Path(), Path(path))  # before it is read: what changes meanwhile is noticed
    try:
        return (path, stamp), load_views(path, preprocessings, views, hashed=True)
    except ImageError as error:
        return (path, stamp), ImageError(str(error))  # without the traceback, which holds the half-decoded picture


def is_gone(path: str, root: Path) -> bool:
    """Whether the file system says for certain that there is no such file below the root."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        if _is_of_shard(path):
            return False
        # Below a link that leads nowhere, perhaps to a disk that is not there now, nothing is certain.
        folders = takewhile(lambda folder: folder != root, Path(path).parents)
        return not any(os.path.islink(folder) and not os.path.exists(folder) for folder in folders)
    except (OSError, ValueError):
        pass
    return False


def _is_of_shard(path: str) -> bool:
    """Whether it is the name of what a tar file has, which is there: a walk through folders does not come by it."""
    return any(folder.suffix.lower() == ".tar" and os.path.isfile(folder) for folder in Path(path).parents)
