"""Where training images come from: folders, tar shards and Hugging Face data sets, each read at any index.

A training loop that can ask for any image shuffles them all by one seeded permutation, goes on after an interruption
exactly where it was, and shares the work with other processes by sharing out the indices. Nothing is decoded when a
source is opened. Its names are packed, so that a million images take some fifty megabytes.

A folder may hold splits: subfolders `train`, `val` and the like, or shards whose names have such a word in them.
Where no split is asked for, `train` is taken, so that nobody trains on the images to validate with.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from robustsim.errors import DataError, InputError
from robustsim.images.files import find_images, picture_suffixes, printable, tell_passed_over
from robustsim.training.sources import folders, hf, shards
from robustsim.training.sources.base import SPLITS, Source, folder_name, listing, read_classes
from robustsim.training.sources.joined import JoinedSource

_HUB = "hf:"
# Written by Hugging Face's save_to_disk.
_ARROW = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


def open_source(
    path: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]",
    *,
    split: str | None = None,
    classes: "str | os.PathLike[str] | None" = None,
    follow_links: bool = False,
) -> Source:
    """Open images to train on.

    | path | what is opened |
    |---|---|
    | a folder of images | `robustsim.training.sources.folders.FolderSource` |
    | a folder of `*.tar` files | `robustsim.training.sources.shards.ShardSource` |
    | `x.tar`, `x-{000..127}.tar` | the same |
    | `hf:NAME`, `hf:NAME:CONFIG` | `robustsim.training.sources.hf.HuggingFaceSource` |
    | a folder written by save_to_disk | the same |

    Args:
        path: see the table; or several of them, whose images come one after the other. They have labels where all
            name the same classes in the same order.
        split: `train` if not given and there are splits. It is a subfolder's name, a word in the names of the shards
            (`train-0000.tar`), or a split of the Hugging Face data set.
        classes: a file with other names for the classes, in the order of their labels: one a line, or a list in JSON.
        follow_links: whether to walk linked folders too, in a folder of images.

    Raises:
        DataError: there is nothing at the path, or nothing that can be read; or `classes` has not one name for each
            class.
        ImageError: a folder of images may not be read.
        InputError: there is no such split, or there are some without a `train`; the path is a pattern that cannot be
            expanded, or has no name after `hf:`.
        MissingDependencyError: a Hugging Face data set, and the package `datasets` is not installed.
    """
    source = _open_all(path, split, follow_links)
    if classes is not None:
        file = Path(classes)
        names = read_classes(file)
        if source.classes is None:
            raise DataError(f"{file} names {len(names)} classes, but the images of {source.name} have no labels")
        if len(names) != len(source.classes):
            raise DataError(f"{file} names {len(names)} classes, but {source.name} has {len(source.classes)}")
        source.classes = names
    return source


def tell_left_out(sources: "Iterable[Source | None]", tell: Callable[[str], object]) -> None:
    """Call `tell` with what each source has passed over, a line for one that has."""
    for source in sources:
        if source is not None and source.passed_over:
            tell(f"{source.name}: {tell_passed_over(source.passed_over)}")


def _open_all(
    path: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]", split: str | None, follow_links: bool
) -> Source:
    if isinstance(path, (str, os.PathLike)):
        return _open(os.fspath(path), split, follow_links)
    names = [os.fspath(one) for one in path]
    places = [os.path.realpath(one) for one in names]  # `one` and `one/` are the same
    if twice := [names[at] for at, one in enumerate(places) if one in places[:at]]:
        raise InputError(f"{twice[0]!r} is given twice: name each set of images once")
    if not names:
        raise InputError("no images are given: pass a path, or several")
    parts = [_open(one, split, follow_links) for one in names]
    return parts[0] if len(parts) == 1 else JoinedSource(parts)


def _open(name: str, split: str | None, follow_links: bool) -> Source:
    if name.startswith(_HUB):
        return hf.load(name[len(_HUB) :], split)
    path = Path(name)
    if path.is_dir():
        return _open_folder(path, split, folder_name(path), follow_links)
    is_pattern = "{" in name and not path.exists()
    paths = [Path(one) for one in shards.expand(name)] if is_pattern else [_one_shard(path)]
    return shards.open_shards(paths, f"{folder_name(path.parent)}/{printable(Path(path.stem))}", split)


def _one_shard(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"there is no {str(path)!r} (looked from {os.getcwd()!r}); a data set of the Hub is 'hf:NAME'")
    name = path.name.lower()
    if name.endswith(_COMPRESSED):
        raise DataError(f"{path} is compressed, and images are read from uncompressed tar files: unpack it")
    if name.endswith(tuple(picture_suffixes())):
        raise DataError(f"{path} is one image: pass the folder that holds the images")
    if not name.endswith(".tar"):
        raise DataError(f"{path} is no tar file: pass a folder of images, or tar files that hold them")
    return path


def _open_folder(path: Path, split: str | None, name: str, follow_links: bool) -> Source:
    try:
        found = sorted(one.name for one in path.iterdir() if not one.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list {str(path)!r}: {error.strerror or error}") from error
    if not _ARROW.isdisjoint(found):
        return hf.open_folder(path, split, name)
    subfolders = [one for one in found if (path / one).is_dir()]
    if split in subfolders:
        return _open_folder(path / split, None, f"{name}/{split}", follow_links)
    tars = [path / one for one in found if one.lower().endswith(".tar") and (path / one).is_file()]
    if tars:
        if (image := next(find_images(path, follow_links=follow_links), None)) is not None:
            raise DataError(
                f"{path} holds tar files ({tars[0].name}) and images ({printable(image)}): pass the subfolder of the "
                f"images, or the tar files by a pattern such as '{path.name}/train-{{000..127}}.tar'"
            )
        packed = [one for one in found if one.lower().endswith(_COMPRESSED)]
        return shards.open_shards(tars, name, split, divided=True, left_out=packed)
    if split is not None:
        raise InputError(f"{path} has no split {split!r}: its subfolders are {listing(subfolders)}")
    if _are_splits(subfolders):
        if "train" not in subfolders:
            raise InputError(f"{path} holds the splits {listing(subfolders)} and no 'train': say which one (split=)")
        return _open_folder(path / "train", None, f"{name}/train", follow_links)
    source = folders.FolderSource(path, name, follow_links=follow_links)
    if not len(source):
        raise DataError(f"{path} holds neither images nor tar files: {_seen(found, source)}")
    return source


def _are_splits(subfolders: Sequence[str]) -> bool:
    known = [one for one in subfolders if one in SPLITS]
    # A class may well be called "train"; two of these words, or nothing else, are splits.
    return len(known) >= 2 or (len(known) == 1 and known == subfolders)


def _seen(found: Sequence[str], source: Source) -> str:
    if not found:
        return "it is empty"
    advice = ""
    if any(one.lower().endswith(_COMPRESSED) for one in found):
        advice = "; unpack what is compressed"
    elif any(one.endswith(".parquet") for one in found):
        advice = "; parquet files are read by 'hf:' and the folder's path"
    elif source.problems:
        advice = f"; {source.problems[0]}"
    elif source.passed_over:
        advice = f"; {tell_passed_over(source.passed_over)}"
    return f"seen: {listing(found)}{advice}"
