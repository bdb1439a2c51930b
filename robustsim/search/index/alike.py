"""The duplicates of an index: its rows, line by line, and the files that they are of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.errors import InputError
from robustsim.search.duplicates.find import Line, find_duplicates
from robustsim.search.duplicates.report import DuplicatesReport, Member
from robustsim.search.index.models import Models
from robustsim.search.rates import known_tails, thresholds_for
from robustsim.search.storage.loaded import Loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The share of pairs of different pictures that may be taken for duplicates, where nothing else is asked for.
RATE = 1e-6


def lines_asked(
    models: Models,
    loaded: Loaded,
    distance: "float | Mapping[str, float] | None",
    false_positives: float | None,
    by: Sequence[str] | None,
) -> dict[str, float]:
    """The distance for each line, in the order of the index.

    Args:
        models: of the index.
        loaded: its rows.
        distance: of the index's own model, or of each line that is named.
        false_positives: the rate that all lines share.
        by: which lines; None for those that have a distance, or all if a rate is asked for.

    Raises:
        InputError: both are given, there is no such line or distance, or no data that can say the rate.
    """
    if distance is not None and false_positives is not None:
        raise InputError("distance and false_positives exclude each other")
    if by is not None and not by:
        raise InputError("by names no line: name one at least")
    if distance is None:
        lines = models.lines if by is None else by
        for line in lines:
            models.number(line)
        tails = known_tails({card.name: card for card in models.cards})
        most = int(np.bincount(loaded.pictures).max(initial=1))  # rows of one picture
        rate = RATE if false_positives is None else false_positives
        given = {
            line: found.distance for line, found in thresholds_for(lines, rate, tails, comparisons=most * most).items()
        }
    else:
        own = by[0] if by is not None and len(by) == 1 else models.lines[0]
        given = dict(distance) if isinstance(distance, Mapping) else {own: distance}
        if not given or (by is not None and set(by) != set(given)):
            raise InputError(
                f"a distance is that of one line, and those that compare are {', '.join(by or ()) or 'none'}: name one "
                "for each of them, or a rate of false positives, which they share"
            )
    for line, value in given.items():
        models.number(line)
        if not 0 <= value <= 2**0.5:
            raise InputError(f"distance must be from 0 to 1.414, not {value} ({line})")
    return {line: float(given[line]) for line in models.lines if line in given}


def duplicates(
    models: Models,
    loaded: Loaded,
    thresholds: Mapping[str, float],
    *,
    keep: str,
    label: str | None,
    tenant: str | None,
    progress: Callable[[int], object],
) -> DuplicatesReport:
    """Group the pictures of an index; arguments as for `Index.duplicates`."""
    allowed = loaded.allowed(label, tenant)
    counts = np.ones(len(loaded.pictures), bool)
    if allowed is not None:
        counts[:] = False
        counts[allowed] = True
    members, place = _members(loaded, counts)
    lines = []
    for name, distance in thresholds.items():
        number = models.number(name)
        there = counts if number is not None else counts & _mask(loaded.hashed, len(counts))
        pictures = np.where(there, place[loaded.pictures], -1)
        lines.append(Line(name, loaded.line(number), pictures, distance))
    return find_duplicates(lines, members, keep=keep, version=loaded.snapshot.version, progress=progress)


def _mask(positions: "NDArray[np.int64]", count: int) -> "NDArray[np.bool_]":
    mask = np.zeros(count, bool)
    mask[positions] = True
    return mask


def _members(loaded: Loaded, counts: "NDArray[np.bool_]") -> "tuple[list[Member], NDArray[np.int64]]":
    """The files that count, each once whoever has it, and the place of each picture among them; -1 for others."""
    tenants: dict[tuple[str, str], list[str | None]] = {}
    for row in _wholes(loaded):
        tenants.setdefault((row["id"], row["path"]), []).append(row["tenant"])
    place = np.full(loaded.count, -1, np.int64)
    members: list[Member] = []
    seen: dict[tuple[str, str], int] = {}
    for row in _wholes(loaded):
        name = row["id"], row["path"]
        if counts[row["at"]]:
            if name not in seen:
                seen[name] = len(members)
                whose = tuple(sorted(tenants[name], key=lambda one: (one is not None, one or "")))
                facts: dict[str, Any] = {key: row[key] for key in ("label", "size", "mtime", "width", "height")}
                members.append(Member(row["path"], row["id"], tenants=whose, **facts))
            place[row["picture"]] = seen[name]
    return members, place


def _wholes(loaded: Loaded) -> Iterator[dict[str, Any]]:
    """The rows of whole pictures, by id, path and tenant."""
    ordered = np.argsort(loaded.order)
    columns = ["id", "path", "label", "tenant", "size", "mtime", "width", "height", "view"]
    for start in range(0, len(ordered), 4096):
        at = ordered[start : start + 4096]
        rows = loaded.table.select(columns).take(at).to_pylist()
        for row, position, picture in zip(rows, at.tolist(), loaded.pictures[at].tolist(), strict=True):
            if not row["view"]:
                yield {**row, "at": position, "picture": picture}
