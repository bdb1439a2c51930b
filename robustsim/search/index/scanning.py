"""Scan the rows of an index that count for a question, and say of what was found which pictures it is of."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from robustsim.search.scan import approximate as some
from robustsim.search.scan import exact as scan
from robustsim.search.scan.codes import distances, unit
from robustsim.search.storage.approximate import Approximate
from robustsim.search.storage.loaded import Loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Positions: TypeAlias = NDArray[np.int64]

#: Version and number of a model -> what is open for an approximate search; None where there are too few rows.
Clusters: TypeAlias = dict[tuple[int, int], "Approximate | None"]

_MEASURED = 512  # rows read and measured at a time


class Measured(NamedTuple):
    """Rows of some pictures, measured.

    Attributes:
        positions: (P,) of the rows.
        distances: (M, P) from each query.
    """

    positions: "Positions"
    distances: "NDArray[np.float64]"


class Scanner(Protocol):
    """What scans: the rows of an index as they lie in memory, or those that several processes have found.

    Attributes:
        version: of the rows.
        compared: how many pictures count.
        counted: how many rows.
        recall: of an approximate scan, the least of its lines; None for an exact one.
    """

    version: int
    compared: int
    counted: int
    recall: float | None

    def nearest(self, number: int | None, queries: "NDArray[np.float32]", k: int) -> list[scan.Found]:
        """The nearest rows to each query (M, D), of k pictures at least, if so many count."""
        ...

    def within(self, number: int | None, queries: "NDArray[np.float32]", limit: float) -> list[scan.Found]:
        """All rows at most at that distance from each query (M, D)."""
        ...

    def measured(self, number: int | None, queries: "NDArray[np.float32]", pictures: Sequence[int]) -> Measured:
        """All rows of some pictures, by their numbers."""
        ...

    def ranks(self, positions: "Positions") -> list[Any]:
        """What rows at the same distance are ordered by."""
        ...

    def numbers(self, positions: "Positions") -> list[int]:
        """Which picture each row is of."""
        ...

    def texts(self, column: str, positions: Sequence[int]) -> list[Any]:
        """A column that describes rows."""
        ...


class LoadedScanner:
    """Those in memory; see `Scanner`.

    Args:
        loaded: the rows.
        label: only pictures with this label count.
        tenant: only pictures of this tenant count.
        device: where an exact scan multiplies, if it does so by torch.
        made: for an approximate scan, its clusters by the number of the model.
    """

    def __init__(
        self,
        loaded: Loaded,
        label: str | None,
        tenant: str | None,
        *,
        device: str = "cpu",
        made: "Mapping[int | None, Approximate]" = {},  # noqa: B006
    ) -> None:
        self._loaded, self._device, self._made = loaded, device, made
        self._allowed = loaded.allowed(label, tenant)
        self._where = {"label": label, "tenant": tenant}
        self.version = loaded.snapshot.version
        self.compared = self._pictures(self._allowed)
        self.counted = len(loaded.pictures) if self._allowed is None else len(self._allowed)
        self.recall = min((one.recall for one in made.values()), default=None)

    def nearest(self, number: int | None, queries: "NDArray[np.float32]", k: int) -> list[scan.Found]:
        allowed = self._counting(number)
        reached, enough = k, min(k, self._pictures(allowed))
        while True:
            if made := self._made.get(number):
                found = some.nearest(queries, reached, **self._ask_clusters(made, number))
            else:
                rows = self._loaded.line(number)
                found = scan.nearest(rows, queries, reached, allowed=allowed, device=self._device)
            # The rows come by their distance, so the first k pictures among them are the k nearest to this view.
            if all(self._pictures(one.positions) >= enough or len(one.positions) < reached for one in found):
                return found
            reached *= 2

    def within(self, number: int | None, queries: "NDArray[np.float32]", limit: float) -> list[scan.Found]:
        if made := self._made.get(number):
            return some.within(queries, limit, **self._ask_clusters(made, number))
        return scan.within(
            self._loaded.line(number), queries, limit, allowed=self._counting(number), device=self._device
        )

    def measured(self, number: int | None, queries: "NDArray[np.float32]", pictures: Iterable[int]) -> Measured:
        every = np.flatnonzero(np.isin(self._loaded.pictures, list(pictures)))
        away, wide = np.empty((len(queries), len(every))), unit(queries)
        for start in range(0, len(every), _MEASURED):
            block = slice(start, start + _MEASURED)
            rows = unit(self._loaded.embeddings(every[block], number or 0))
            for query, one in enumerate(wide):
                away[query, block] = distances(one, rows)
        return Measured(every, away)

    def ranks(self, positions: "Positions") -> list[Any]:
        ranks: list[Any] = self._loaded.order[positions].tolist()
        return ranks

    def numbers(self, positions: "Positions") -> list[int]:
        numbers: list[int] = self._loaded.pictures[positions].tolist()
        return numbers

    def texts(self, column: str, positions: Sequence[int]) -> list[Any]:
        found: list[Any] = self._loaded.table.column(column).take(np.array(positions, np.int64)).to_pylist()
        return found

    def _pictures(self, positions: "Positions | None") -> int:
        """Of how many pictures rows are."""
        if positions is None:
            return self._loaded.count
        return len(positions) if self._loaded.most_views == 1 else len(np.unique(self._loaded.pictures[positions]))

    def _counting(self, number: int | None) -> "Positions | None":
        """The rows that count for a line; None for all."""
        if number is not None:
            return self._allowed
        hashed = self._loaded.hashed
        if self._allowed is None:
            return hashed
        there = np.zeros(len(self._loaded.pictures), bool)
        there[hashed] = True
        return self._allowed[there[self._allowed]]

    def _ask_clusters(self, made: Approximate, number: int | None) -> dict[str, Any]:
        """What `some` takes, without the codes, which nothing needs here."""
        read = partial(self._loaded.embeddings, model=number or 0)
        return {"candidates": partial(made.candidates, where=self._where), "read": read, "order": self._loaded.order}


def opened(clusters: Clusters, loaded: Loaded, number: int) -> Approximate | None:
    """The clusters of a version and model, kept for the next question."""
    key = loaded.snapshot.version, number
    if key not in clusters:
        for other in [one for one in clusters if one[0] != key[0]]:
            del clusters[other]
        clusters[key] = Approximate.of(loaded, number)
    return clusters[key]
