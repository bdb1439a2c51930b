"""The duplicates of an index: its rows, line by line, and the files that they are of."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.search.duplicates.find import Compare, Line, find_duplicates
from robustsim.search.duplicates.report import DuplicatesReport, Member
from robustsim.search.index.deciding import Decision
from robustsim.search.index.models import Models
from robustsim.search.storage.loaded import Loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray


def duplicates(
    models: Models,
    loaded: Loaded,
    decision: Decision,
    *,
    keep: str,
    label: str | None,
    tenant: str | None,
    progress: Callable[[int], object],
    compare: "Compare | None" = None,
) -> DuplicatesReport:
    """Group the pictures of an index; arguments as for `Index.duplicates` and `find_duplicates`."""
    allowed = loaded.allowed(label, tenant)
    counts = np.ones(len(loaded.pictures), bool)
    if allowed is not None:
        counts[:] = False
        counts[allowed] = True
    members, place = _members(loaded, counts)
    lines = []
    for name, distance in decision.thresholds.items():
        number = models.number(name)
        there = counts if number is not None else counts & _mask(loaded.hashed, len(counts))
        pictures = np.where(there, place[loaded.pictures], -1)
        lines.append(Line(name, partial(loaded.line, number), pictures, distance))
    rate = decision.false_positives
    return find_duplicates(
        lines,
        members,
        keep=keep,
        version=loaded.snapshot.version,
        false_positives=rate,
        progress=progress,
        compare=compare,
    )


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
