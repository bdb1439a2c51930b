"""The layout of BAPPS: `{split}/{ref,p0,p1,...}/000003.png` beside `{split}/{judge,same}/000003.npy`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from robustsim.data.tables import OnError, report
from robustsim.errors import DataError
from robustsim.images.files import picture_suffixes


def find_splits(root: Path, below: Sequence[str], splits: Sequence[str], answers: str) -> Path | None:
    """The first of `root` and the folders `below` it that holds one of the splits with its answers."""
    for folder in (root, *(root / name for name in below)):
        if any((folder / split / answers).is_dir() for split in splits):
            return folder
    return None


def require_splits(root: Path, below: Sequence[str], splits: Sequence[str], answers: str) -> Path:
    """The same, where it must be there.

    Raises:
        DataError: it is not.
    """
    if (folder := find_splits(root, below, splits, answers)) is None:
        choices = splits[0] if len(splits) == 1 else f"{{{','.join(splits)}}}"
        raise DataError(
            f"{root}: no folder {choices}/{answers} here or below {', '.join(f'{name}/' for name in below)}; "
            f"{root} {seen_in(root)}"
        )
    return folder


def seen_in(folder: Path, most: int = 10) -> str:
    """What a folder holds, in words, for a message about what it does not hold."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    except OSError as error:
        return f"cannot be listed: {error.strerror or error}"
    if not names:
        return "is empty"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"holds {', '.join(names[:most])}{more}"


def numbered(
    folder: Path, images: Sequence[str], answers: str, on_error: OnError | None
) -> Iterator[tuple[str, tuple[Path, ...], float]]:
    """(number, images, share of people) of one split, in order of the numbers.

    Reported are folders that are missing or empty, files without their counterparts, two files of one number, and
    answers that are no share.
    """
    parts: dict[str, dict[str, str]] = {}
    for part in (*images, answers):
        suffixes = {".npy"} if part == answers else picture_suffixes()
        try:
            with os.scandir(folder / part) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            report(DataError(f"cannot list {str(folder / part)!r}: {error.strerror or error}"), on_error)
            return
        parts[part] = {}
        for stem, suffix in map(os.path.splitext, sorted(names)):
            if suffix.lower() not in suffixes:
                continue
            if stem in parts[part]:
                both = " and ".join(repr(str(folder / part / (stem + one))) for one in (parts[part][stem], suffix))
                report(DataError(f"{both} have the same number: keep one"), on_error)
            parts[part][stem] = suffix
    stems = sorted(set().union(*parts.values()))
    if not stems:
        report(DataError(f"{folder}: no numbered files in {', '.join(parts)}"), on_error)
    for stem in stems:
        try:
            if missing := [part for part in parts if stem not in parts[part]]:
                there = next(str(folder / part / (stem + parts[part][stem])) for part in parts if stem in parts[part])
                absent = ", ".join(
                    repr(str(folder / part / (stem + (".npy" if part == answers else ".png")))) for part in missing
                )
                raise DataError(f"there is no {absent}, the counterpart of {there!r}")
            share = read_share(folder / answers / (stem + parts[answers][stem]))
        except DataError as error:
            report(error, on_error)
            continue
        yield stem, tuple(folder / part / (stem + parts[part][stem]) for part in images), share


def read_share(path: Path) -> float:
    """The one number in a `.npy` file, a share of people.

    Raises:
        DataError: the file is damaged, or holds anything but one number in [0, 1].
    """
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # damage is answered with a dozen kinds of exception
        raise DataError(f"cannot read {str(path)!r} as a NumPy array: {error or type(error).__name__}") from error
    if not isinstance(array, np.ndarray) or array.size != 1 or array.dtype.kind not in "fiub":
        what = f"shape {array.shape} and type {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{path}: expected one number in [0, 1], found {what}")
    share = float(array.item())
    if not 0 <= share <= 1:
        raise DataError(f"{path}: expected one number in [0, 1], found {share:g}")
    return share
