"""Scan an index part by part, anywhere, and bring together what the parts found: two plain functions.

Each part is read and checked as a whole index is, and says how many rows it held and the sum of their digests. These
must add up to what the seal of the index says: an answer that lacks a part is refused, never given.
"""

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robustsim.errors import SearchError
from robustsim.search.index.scanning import LoadedScanner, Measured
from robustsim.search.scan.exact import Found
from robustsim.search.storage.loaded import Loaded
from robustsim.search.storage.seal import Seal
from robustsim.search.storage.store import Snapshot

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

NEAREST, WITHIN, MEASURE, COUNT = "nearest", "within", "measure", "count"
_MODULUS = 1 << 128
_FIELDS = ("id", "path", "tenant", "view", "label")


class Part(NamedTuple):
    """Rows of one version of an index, from one place to another.

    Attributes:
        folder: of the index, which whoever scans must see.
        version: of the rows.
        start: the first row.
        stop: the one after the last.
    """

    folder: str
    version: int
    start: int
    stop: int


class Request(NamedTuple):
    """What is looked for.

    Attributes:
        kind: `nearest`, `within`, `measure` (all rows of some pictures), or `count`.
        number: of the model, from 0; None for perceptual hashes.
        queries: (M, D) embeddings; None to count.
        value: how many pictures, or the distance.
        label: only pictures with this label count.
        tenant: only pictures of this tenant count.
        pictures: id, path and tenant of those that are measured.
    """

    kind: str
    number: int | None = 0
    queries: "NDArray[np.float32] | None" = None
    value: float = 0
    label: str | None = None
    tenant: str | None = None
    pictures: tuple[tuple[str, str, str | None], ...] = ()


class Scanned(NamedTuple):
    """What a part says.

    Attributes:
        part: which.
        rows: that it held.
        digest: the sum of theirs.
        counted: rows with the label and the tenant.
        compared: pictures likewise.
        found: rows that were found: `query`, `distance`, and what describes them.
        bounds: (M,) no exact score of a row differs from that over codes by more.
        measured: (M,) rows that were measured exactly.
    """

    part: Part
    rows: int
    digest: int
    counted: int
    compared: int
    found: "pa.Table"
    bounds: "NDArray[np.float64]"
    measured: "NDArray[np.int64]"


class PartSnapshot(Snapshot):
    """The rows of a part, as if there were no others.

    Attributes:
        digest: the sum of the digests of the rows that were read.
    """

    def __init__(self, part: Part) -> None:
        super().__init__(Path(part.folder), Seal(part.version))  # what the version holds, who merges compares
        self._start, self.count, self.digest = part.start, part.stop - part.start, -1

    def take(self, positions: "NDArray[np.int64]", columns: Sequence[str]) -> "pa.Table":
        return super().take(np.asarray(positions) + self._start, columns)

    def compare(self, rows: int, digest: int | None = None) -> None:
        """Remember the sum, which `merge` compares with the seal."""
        if digest is not None:
            self.digest = digest % _MODULUS


class LoadedPart(Loaded):
    """The rows of a part, as `Loaded` has those of a whole index."""

    def __init__(self, part: Part) -> None:
        self._part = PartSnapshot(part)
        super().__init__(self._part)

    @property
    def digest(self) -> int:
        """The sum of the digests of its rows."""
        return self._part.digest


@lru_cache(maxsize=4)
def load_part(part: Part) -> LoadedPart:
    """A part in memory, read and checked; a process keeps the last four.

    Raises:
        SearchError: it is damaged, or the version is not there any more.
    """
    return LoadedPart(part)


def parts_of(index: "str | os.PathLike[str]", seal: Seal, count: int, *, most: int = 1 << 18) -> list[Part]:
    """A version of an index in parts of about one size.

    Args:
        index: its folder.
        seal: of the version.
        count: how many parts, at least; fewer where there are not so many rows.
        most: rows of one.
    """
    folder = Path(index).expanduser().absolute()
    count = max(1, min(seal.rows, max(count, ceil(seal.rows / most))))
    ends = [seal.rows * at // count for at in range(count + 1)]
    return [Part(os.fspath(folder), seal.version, start, stop) for start, stop in pairwise(ends)]


def scan_fragment(part: Part, request: Request) -> Scanned:
    """Look for something in a part of an index, which the process loads once. By the exact scan of the whole index.

    Raises:
        SearchError: the part is damaged, or the version is not there any more.
    """
    import pyarrow as pa

    loaded = load_part(part)
    scanner, queries = LoadedScanner(loaded, request.label, request.tenant), request.queries
    found: list[Found] = []
    if queries is not None and request.kind == NEAREST:
        found = scanner.nearest(request.number, queries, int(request.value))
    elif queries is not None and request.kind == WITHIN:
        found = scanner.within(request.number, queries, request.value)
    elif queries is not None and request.kind == MEASURE:
        at, away = scanner.measured(request.number, queries, _numbers(loaded, request.pictures))
        found = [Found(at, one, 0.0, len(at)) for one in away]
    positions = np.concatenate([one.positions for one in found] + [np.empty(0, np.int64)])
    columns: dict[str, Any] = {
        "query": np.repeat(np.arange(len(found)), [len(one.positions) for one in found]),
        "distance": np.concatenate([one.distances for one in found] + [np.empty(0)]),
        **{name: loaded.table.column(name).take(positions) for name in _FIELDS},
    }
    whole = np.array(loaded.table.column("view").to_pylist(), object) == ""
    allowed = loaded.allowed(request.label, request.tenant)
    return Scanned(
        part,
        len(loaded.pictures),
        loaded.digest,
        scanner.counted,
        int((whole if allowed is None else whole[allowed]).sum()),
        pa.table(columns),
        np.array([one.bound for one in found]),
        np.array([one.measured for one in found], np.int64),
    )


def merge(parts: Iterable[Scanned], seal: Seal, index: str = "") -> Scanned:
    """What several parts say, as one: all rows that were found, and the largest of the bounds.

    Args:
        parts: all parts of a version, in any order; one that comes twice counts once.
        seal: of the index, that says what all parts together hold.
        index: its folder, for messages.

    Raises:
        SearchError: they are not all of the rows, or others.
    """
    import pyarrow as pa

    every = sorted({one.part: one for one in parts}.values(), key=lambda one: one.part)
    rows, digest = sum(one.rows for one in every), sum(one.digest for one in every) % _MODULUS
    if (rows, digest) != (seal.rows, seal.digest % _MODULUS):
        raise SearchError(
            f"the parts of the index {index!r} hold {rows} rows, and it has {seal.rows}, or others: an answer "
            "from them would not be complete. Ask again"
        )
    first = every[0]
    return Scanned(
        Part(first.part.folder, first.part.version, 0, seal.rows),
        rows,
        digest,
        sum(one.counted for one in every),
        sum(one.compared for one in every),
        pa.concat_tables([one.found for one in every]),
        np.max([one.bounds for one in every], axis=0),
        np.sum([one.measured for one in every], axis=0),
    )


class Gathered:
    """What parts have found so far: a `robustsim.search.index.scanning.Scanner`.

    Args:
        ask: a request -> what all parts together say.
        label: only pictures with this label count.
        tenant: only pictures of this tenant count.
        version: of the index.
    """

    recall: float | None = None

    def __init__(self, ask: Any, label: str | None, tenant: str | None, version: int) -> None:
        self._ask = ask
        self._words: dict[str, Any] = {"label": label, "tenant": tenant}
        self.version = version
        counts = ask(Request(COUNT, **self._words))
        self.compared, self.counted = counts.compared, counts.counted
        self._places: dict[Any, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._pictures: dict[tuple[str, str, str | None], int] = {}

    def nearest(self, number: int | None, queries: "NDArray[np.float32]", k: int) -> list[Found]:
        return self._found(Request(NEAREST, number, queries, k, **self._words))

    def within(self, number: int | None, queries: "NDArray[np.float32]", limit: float) -> list[Found]:
        return self._found(Request(WITHIN, number, queries, limit, **self._words))

    def measured(self, number: int | None, queries: "NDArray[np.float32]", pictures: Sequence[int]) -> Measured:
        named = {number: name for name, number in self._pictures.items()}
        wanted = tuple(named[one] for one in pictures)
        found = self._found(Request(MEASURE, number, queries, pictures=wanted, **self._words))
        # Of each query the same rows, in the same order.
        return Measured(found[0].positions, np.stack([one.distances for one in found]))

    def ranks(self, positions: "NDArray[np.int64]") -> list[Any]:
        return [self._rank(self._rows[at]) for at in positions.tolist()]

    def numbers(self, positions: "NDArray[np.int64]") -> list[int]:
        return [self._pictures[_picture(self._rows[at])] for at in positions.tolist()]

    def texts(self, column: str, positions: Sequence[int]) -> list[Any]:
        return [self._rows[at][column] for at in positions]

    @staticmethod
    def _rank(row: "dict[str, Any]") -> tuple[Any, ...]:
        """As `Loaded.order` has it: by id, path, tenant, those of nobody last, and view."""
        return row["id"], row["path"], row["tenant"] is None, row["tenant"] or "", row["view"]

    def _found(self, request: Request) -> list[Found]:
        scanned = self._ask(request)
        described = scanned.found.select(_FIELDS).to_pylist()
        positions = np.fromiter(map(self._place, described), np.int64, len(described))
        queries, away = (scanned.found.column(name).to_numpy() for name in ("query", "distance"))
        out = []
        for query, (bound, measured) in enumerate(zip(scanned.bounds, scanned.measured, strict=True)):
            at = queries == query
            out.append(Found(positions[at], away[at], float(bound), int(measured)))
        return out

    def _place(self, row: "dict[str, Any]") -> int:
        key = self._rank(row)
        if key not in self._places:
            self._places[key] = len(self._rows)
            self._rows.append(row)
            self._pictures.setdefault(_picture(row), len(self._pictures))
        return self._places[key]


def _picture(row: "dict[str, Any]") -> tuple[str, str, str | None]:
    return row["id"], row["path"], row["tenant"]


def _numbers(loaded: Loaded, pictures: Sequence[tuple[str, str, str | None]]) -> list[int]:
    """The numbers of those of the pictures that a part has rows of."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.array([one[0] for one in pictures], pa.string())
    at = np.flatnonzero(pc.is_in(loaded.table.column("id"), ids).to_numpy(zero_copy_only=False))
    rows = loaded.table.select(["id", "path", "tenant"]).take(at).to_pylist()
    wanted = set(pictures)
    return sorted({int(loaded.pictures[one]) for one, row in zip(at, rows, strict=True) if _picture(row) in wanted})
