"""What do a metric's distances mean? Those of unrelated photographs, and of photographs under known changes."""

import dataclasses
import hashlib
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsim.data.tables import read_header, read_rows, require
from robustsim.distances import identities, matrix_distance, pair_distance, same_of_all, same_pictures
from robustsim.encoders.calibration import Calibration
from robustsim.encoders.load import image_sha256
from robustsim.errors import DataError, ImageError, InputError
from robustsim.evaluation.running.journal import Journal, discard
from robustsim.evaluation.statistics import Array
from robustsim.evaluation.tails import Photographs, embed, measure_tail, read_squares
from robustsim.evaluation.tasks.distortions import change, seed_of
from robustsim.images.files import list_images, printable
from robustsim.images.inputs import stack_squares
from robustsim.metric import RobustSim

PathLike: TypeAlias = Union[str, "os.PathLike[str]"]

#: The changes that are measured, and by how much.
CHANGES: Mapping[str, tuple[float, ...]] = {
    "jpeg": (90, 70, 50, 30, 20, 15, 10, 5),
    "blur": (0.5, 1, 2, 4),
    "resize": (0.5, 0.25),
    "crop": (0.95, 0.9, 0.8, 0.7),
    "mirror": (1,),
    "brightness": (0.5, 0.75, 1.25, 1.5),
    "noise": (0.02, 0.05, 0.1, 0.2),
}
_ROWS = tuple((kind, amount) for kind, amounts in CHANGES.items() for amount in amounts)

_TAIL = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03)
_SHARES = (*_TAIL, *(n / 20 for n in range(1, 20)), 0.97, 0.99, 0.999)
_LEAST_PAIRS = 5  # below a share that is measured
_DRAWS = 200
# What differs from one collection of photographs to another (docs/calibration.md has the figures), as standard
# deviations: distances of unrelated photographs, in standard deviations of these; and medians of changes, as a share of
# them, for what a photograph was scaled and compressed by before decides what JPEG and noise do to it.
_BETWEEN, _BETWEEN_CHANGES = 0.3, 0.25
_LEAST_GROUPS = 10  # fewer are no sample of kinds of photographs
_LEAST_PHOTOGRAPHS = 20
_CHUNK = 16


@dataclass(frozen=True)
class Measured:
    """What `calibrate` found.

    Attributes:
        calibration: for the card.
        failed: photographs that could not be read.
        resumed: photographs that an interrupted run had done.
        kinds: labels or folders that tell which photographs are related; 0 if nothing does.
        nearest: the nearest pairs that counted as unrelated, with their distances: pictures of one thing among them
            make the small shares too large.
        nearest_different: the nearest pairs that counted as different pictures, related ones included: copies of one
            photograph among them make rates of false positives look larger than they are.
    """

    calibration: Calibration
    failed: int
    resumed: int
    kinds: int
    nearest: tuple[tuple[str, str, float], ...]
    nearest_different: tuple[tuple[str, str, float], ...]


def calibrate(
    metric: RobustSim,
    folder: PathLike,
    work: PathLike,
    *,
    photographs: int = 1000,
    changed: int | None = None,
    pairs_of: int = 0,
    same: "PathLike | None" = None,
    labels: "PathLike | None" = None,
    label_column: str = "label",
    about: str | None = None,
    seed: int = 0,
    restart: bool = False,
    follow_links: bool = False,
    save: Callable[[Calibration], object] = lambda calibration: None,
    progress: Callable[[int], object] = lambda count: None,
    on_error: Callable[[ImageError], object] = lambda error: None,
    tell: Callable[[str], object] = lambda text: None,
) -> Measured:
    """Measure what distances mean, on a folder of photographs; the same call goes on with a run that was stopped.

    Photographs are related if they have one label, or lie in the same folder where there are several; all other pairs
    count as unrelated, but for the same picture twice. The changes are made to the squares that the model looks at.
    Standard errors are those of the bootstrap over labels or folders, where there are ten at least, else over
    photographs. Take photographs that the model was not trained on.

    The tail (`Calibration.tail`) is of all pairs of photographs, related or not, but for copies of the same picture.

    Args:
        metric: what is measured, `metric.batch_size` images at a time.
        folder: the photographs.
        work: a folder for what is done so far, removed at the end.
        photographs: how many, drawn at random; all if there are fewer.
        changed: how many of them the changes are made to, which is most of the work; all if not given.
        pairs_of: how many more, if there are so many, are embedded for the tail alone: 14,000 make 1e8 pairs.
        same: a table (CSV) of photographs that are copies, with the columns `file` and `same_as`, paths below `folder`.
        labels: a table (CSV) with the columns `file`, a path below `folder`, and `label_column`.
        label_column: see `labels`.
        about: the photographs in words, with their licence; the folder's name if not given.
        seed: of that draw, of the noise, and of the bootstrap.
        restart: forget what an interrupted run has done.
        follow_links: walk linked folders too.
        save: called with the result before `work` is removed, so that nothing is lost where it fails.
        progress: called with the number of photographs done since the last call.
        on_error: called for each photograph that cannot be read; it is left out.
        tell: called with a line for people if files of the folder are passed over.

    Raises:
        ImageError: there is no such folder, or no image in it.
        InputError: `changed` is below 20, fewer than 20 photographs can be read, or all are related.
        DataError: the table of labels is none, or lacks a photograph.
        OutputError: `work` is another run's, or cannot be written.
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    root = Path(folder)
    if changed is not None and changed < _LEAST_PHOTOGRAPHS:
        raise InputError(f"changed must be at least {_LEAST_PHOTOGRAPHS}, not {changed}")
    files = draw_photographs(root, photographs, seed, follow_links=follow_links, tell=tell)
    _check_count(len(files), folder)
    groups = _groups(root, files, labels, label_column)
    more = _more(root, files, pairs_of, seed, follow_links)
    weights = image_sha256(metric.encoder)
    identity = {
        "model": metric.card.to_identity(),
        "weights": weights,
        "files": hashlib.sha256("\n".join(_stamp(root, file) for file in files).encode()).hexdigest(),
        "changes": [list(row) for row in _ROWS],
        "changed": changed,
        "seed": seed,
        "more": hashlib.sha256("\n".join(_stamp(root, file) for file in more).encode()).hexdigest(),
    }
    if restart:
        discard(Path(work))
    most = len(files) if changed is None else min(changed, len(files))
    parts = [(files[start : min(start + _CHUNK, most)], True) for start in range(0, most, _CHUNK)]
    parts += [(files[start : start + _CHUNK], False) for start in range(most, len(files), _CHUNK)]
    embeddings: list[Tensor] = []
    known: list[Tensor] = []
    names: list[str] = []
    rows: list[list[float]] = []  # of the first of them
    resumed = 0
    with Journal(Path(work), identity) as journal, torch.no_grad():
        for number, (part, to_change) in enumerate(parts):
            squares = read_squares(root, part, metric, on_error)
            if squares:
                pixels = stack_squares(list(squares.values()), metric.device)
                z = embed(metric, pixels)
                embeddings.append(z.cpu())
                known.append(identities(pixels))
                names += squares
                if to_change:
                    key = (number, "changes")
                    if journal.done.get(key, {}).get("names") == list(squares):
                        resumed += len(squares)
                    else:  # not done, or some could not be read then, or cannot now
                        found = {"names": list(squares), "distances": _changed(metric, squares, pixels, z, seed)}
                        journal.add(*key, found)
                    rows += journal.done[key]["distances"]
            progress(len(part))
        try:
            _check_count(min(len(names), len(rows)), folder)
        except InputError:
            journal.remove()
            raise
        own = np.unique([groups[name] for name in names], return_inverse=True)[1]
        distances = _matrix(embeddings)
        digests = torch.cat(known)
        alike = same_of_all(digests, digests).numpy()
        calibration, nearest = _summary(
            distances,
            np.array(rows),
            own,
            (own[:, None] != own[None]) & ~alike,
            seed,
            data=about or f"{len(names):,} photographs of {root.resolve().name}",
            weights=weights,
        )
        tail = measure_tail(
            metric,
            root,
            more,
            journal,
            before=Photographs(names, [row.tobytes().hex() for row in digests.numpy()], torch.cat(embeddings).numpy()),
            same=None if same is None else Path(same),
            about=about if not more else None,
            progress=progress,
            on_error=on_error,
        )
        calibration = dataclasses.replace(calibration, tail=tail.tail)
        save(calibration)
        journal.remove()
    named = tuple((names[i], names[j], float(distances[i, j])) for i, j in nearest)
    kinds = len(set(groups.values()))
    return Measured(
        calibration,
        len(files) - len(names) + tail.failed,
        resumed + tail.resumed,
        kinds if kinds < len(groups) else 0,
        named,
        tail.nearest,
    )


def _check_count(count: int, folder: PathLike) -> None:
    if count < _LEAST_PHOTOGRAPHS:
        raise InputError(
            f"{count} photographs of {os.fspath(folder)!r} can be read and changed: a calibration takes "
            f"{_LEAST_PHOTOGRAPHS} at least, and is meant for 1,000"
        )


def draw_photographs(
    root: Path,
    count: int,
    seed: int,
    *,
    follow_links: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> list[Path]:
    """Which files below a folder [`calibrate`][robustsim.evaluation.calibrate] takes, in a random order.

    Raises:
        ImageError: there is no such folder, or no image in it.
    """
    files, _ = list_images(root, follow_links=follow_links, tell=tell)
    return random.Random(seed).sample(files, min(count, len(files)))


def _more(root: Path, files: Sequence[Path], count: int, seed: int, follow_links: bool) -> list[Path]:
    """Which other files of the folder are embedded for the tail alone, in a random order."""
    if not count:
        return []
    taken = set(files)
    rest = [file for file in list_images(root, follow_links=follow_links)[0] if file not in taken]
    return random.Random(seed).sample(rest, min(count, len(rest)))


def _groups(root: Path, files: Sequence[Path], labels: "PathLike | None", column: str) -> dict[str, str]:
    """What each photograph belongs to, by its name."""
    names = [printable(file) for file in files]
    if labels is None:
        folders = {name: str(PurePosixPath(name).parent) for name in names}
        return folders if len(set(folders.values())) > 1 else {name: name for name in names}
    table = Path(labels)
    columns = read_header(table)
    require(table, columns, ("file", column))
    known = {row.get("file"): row.get(column) for row in read_rows(table, columns, None)}
    if missing := [name for name in names if not known.get(name)]:
        raise DataError(
            f"{table}: {len(missing)} of {len(names)} photographs of {os.fspath(root)!r} have no label, {missing[0]!r} "
            "for one; its column 'file' holds paths below that folder"
        )
    return {name: known[name] for name in names}


def _stamp(root: Path, file: Path) -> str:
    try:
        stat = (root / file).stat()
    except OSError:  # reading it will tell why
        return printable(file)
    return f"{printable(file)} {stat.st_size} {stat.st_mtime_ns}"


def _changed(
    metric: RobustSim, squares: Mapping[str, Tensor], pixels: Tensor, z: Tensor, seed: int
) -> list[list[float]]:
    """Distances of photographs from themselves under each change, photograph by photograph."""
    pictures = [(Image.fromarray(square.numpy()), seed_of(name, seed)) for name, square in squares.items()]
    columns = []
    for kind, amount in _ROWS:
        # Copies: Pillow writes into a picture that it saves.
        new = [torch.from_numpy(np.array(change(one.copy(), kind, amount, own))) for one, own in pictures]
        other = stack_squares(new, metric.device)
        columns.append(pair_distance(z, embed(metric, other), same_pictures(pixels, other), squared=False))
    return [[round(value, 6) for value in row] for row in torch.stack(columns, 1).tolist()]


def _matrix(embeddings: Sequence[Tensor]) -> Array:
    """Distances of all to all, (N, N) float32."""
    everything = torch.cat(tuple(embeddings))
    return torch.cat([matrix_distance(z, everything, None, squared=False) for z in embeddings]).numpy()


def _summary(
    distances: Array, rows: Array, groups: Array, unrelated: Array, seed: int, *, data: str, weights: str
) -> tuple[Calibration, list[tuple[int, int]]]:
    left, right = np.triu_indices(len(distances), 1)
    taken = unrelated[left, right]
    left, right = left[taken], right[taken]
    if len(left) == 0:
        raise InputError(
            "all photographs are related, by their labels or folders, or the same: there is no pair of unrelated ones"
        )
    order = np.argsort(distances[left, right], kind="stable")
    left, right = left[order], right[order]
    values = distances[left, right].astype(np.float64)
    shares = [0.0, *(share for share in _SHARES if share * len(values) >= _LEAST_PAIRS), 1.0]
    generator = np.random.default_rng(seed)
    quantiles, medians = [], []
    for _ in range(_DRAWS):
        drawn = _drawn(groups, generator)
        quantiles.append(_quantiles(values, drawn[left] * drawn[right], shares))
        medians.append(np.median(np.repeat(rows, _drawn(groups[: len(rows)], generator), axis=0), axis=0))
    errors, errors_of_changes = np.std(quantiles, axis=0), np.std(medians, axis=0)
    middle, low, high = (np.quantile(rows, share, axis=0) for share in (0.5, 0.1, 0.9))
    calibration = Calibration(
        data=data,
        photographs=len(distances),
        pairs=len(values),
        shares=tuple(shares),
        distances=_rounded(_quantiles(values, np.ones(len(values), dtype=np.int64), shares)),
        errors=_rounded(errors),
        between=round(float(_BETWEEN * values.std()), 4),
        between_changes=_BETWEEN_CHANGES,
        changes=tuple(
            (kind, amount, *_rounded((middle[i], errors_of_changes[i], low[i], high[i])))  # type: ignore[misc]
            for i, (kind, amount) in enumerate(_ROWS)
        ),
        weights=weights,
    )
    return calibration, list(zip(left[:_LEAST_PAIRS].tolist(), right[:_LEAST_PAIRS].tolist(), strict=True))


def _drawn(groups: Array, generator: np.random.Generator) -> Array:
    """How often each photograph is in a sample of the bootstrap: drawn by kinds, where these are enough."""
    units = np.unique(groups, return_inverse=True)[1]
    if units.max() + 1 < _LEAST_GROUPS:
        units = np.arange(len(groups))
    count = int(units.max()) + 1
    return np.asarray(np.bincount(generator.integers(0, count, count), minlength=count)[units])


def _quantiles(values: Array, weights: Array, shares: Sequence[float]) -> Array:
    """Of ascending values, each counted `weight` times."""
    reached = np.cumsum(weights)
    places = np.searchsorted(reached, np.maximum(np.asarray(shares) * reached[-1], 1))
    return np.asarray(values[np.minimum(places, len(values) - 1)])


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
