"""Lance's own index of clusters over the rows of one version, which finds most neighbours in a part of a scan's time.

It is a cache: made from the rows when it is first asked for, checked when it is opened, used for no other version, and
removed before rows are erased. It lies beside the rows, in a folder for each version and model, as a clone of the rows
that shares their files and has an index of its own. A file that is written last, and whole, says that it is there, and
what its files are. All that it tells is which rows may be near; these are measured as the store holds them.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.weights import whole_file
from robustsim.errors import OutputError, RobustSimError, SearchError
from robustsim.search.scan.approximate import FEWEST, near_duplicates
from robustsim.search.storage.caches import FOLDER, making, remove
from robustsim.search.storage.library import lance, lances
from robustsim.search.storage.readback import manifest
from robustsim.search.storage.rows import Vectors
from robustsim.search.storage.seal import checked, checksum_of, seal_files
from robustsim.search.storage.store import ROWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robustsim.search.scan.exact import Positions
    from robustsim.search.storage.loaded import Loaded
    from robustsim.search.storage.store import Snapshot

#: Rows from which on there are clusters to be found; fewer are scanned.
SMALLEST = 1000
#: How similar the duplicates are of which `recall` tells how many are found.
SIMILARITY = 0.97

_MADE = "made.json"
_FORMAT = 1
_PLANTED = 1000
_CLUSTER = 4096  # rows
_SAMPLED = 64  # rows of each cluster that its centre is found by
_BITS = 2048  # of a row, if its values have one at least and four at most
_LOOKED_AT = 16  # clusters at least, and one of so many
_TOGETHER = 64  # queries


class Approximate:
    """Which rows may be near.

    Attributes:
        version: of the rows.
        recall: the share of duplicates that were found, of those that were planted when this was made: rows with noise,
            so that their similarity to the row is `SIMILARITY`. Others are found more or less often.
        planted: how many these were.

    Make one by `of`.
    """

    def __init__(self, loaded: "Loaded", model: int, made: Mapping[str, Any]) -> None:
        snapshot = loaded.snapshot
        self.version, self._column = snapshot.version, Vectors.of(model).embedding
        self.planted: int = made["planted"]
        self.recall: float = made["found"] / max(1, self.planted)
        self._clusters: int = made["clusters"]
        self._folder = _folder(loaded, model)
        with lances(self._folder):
            self._dataset = lance().dataset(os.fspath(self._folder))
            ids = [batch.column("_rowid").to_numpy() for batch in snapshot.batches([], row_ids=True)]
        every = np.concatenate(ids).astype(np.int64)
        self._positions = np.argsort(every)
        self._row_ids = every[self._positions]

    @classmethod
    def of(cls, loaded: "Loaded", model: int = 0) -> "Approximate | None":
        """That of a version and of the model of that number, made if it is not there; None for few rows.

        Making it takes about as long as a thousand scans; whoever asks meanwhile waits for it.

        Raises:
            SearchError: the index is damaged, or was erased since it was opened.
            OutputError: it cannot be written.
        """
        if loaded.snapshot.count < SMALLEST:
            return None
        if made := _made(loaded, model):
            return cls(loaded, model, made)
        with making(loaded.snapshot.folder):
            return cls(loaded, model, _made(loaded, model) or _make(loaded, model))

    def candidates(
        self, queries: "NDArray[Any]", count: int, where: Mapping[str, str | None] | None = None
    ) -> "list[Positions]":
        """The most promising rows for each query, nearest first by what is known of them.

        Args:
            queries: (Q, D) embeddings.
            count: how many; there may be fewer.
            where: column -> text that it must have for a row to count at all.

        Raises:
            SearchError: it was damaged or removed since it was opened.
        """
        count = min(count, max(1, len(self._row_ids)))  # Lance makes room for as many as are asked for
        looked_at = max(_LOOKED_AT, self._clusters // _LOOKED_AT)
        wanted = [f"{name} = '{_quoted(text)}'" for name, text in (where or {}).items() if text is not None]
        filtered = {"filter": " AND ".join(wanted), "prefilter": True} if wanted else {}
        out = []
        for start in range(0, len(queries), _TOGETHER):
            some = np.ascontiguousarray(queries[start : start + _TOGETHER], np.float32)
            ask = {"column": self._column, "q": some, "k": count, "nprobes": looked_at}
            with lances(self._folder):
                table = self._dataset.to_table(columns=["_distance"], nearest=ask, with_row_id=True, **filtered)
            whose, rows = (table.column(name).to_numpy() for name in ("query_index", "_rowid"))
            positions = self._places(rows.astype(np.int64))
            out += [positions[whose == query] for query in range(len(some))]
        return out

    def _places(self, rows: "NDArray[np.int64]") -> "Positions":
        at = np.minimum(np.searchsorted(self._row_ids, rows), len(self._row_ids) - 1)
        if (self._row_ids[at] != rows).any():
            raise SearchError(f"{os.fspath(self._folder)!r} knows rows that the index does not have: remove it")
        positions: Positions = self._positions[at]
        return positions


def _folder(loaded: "Loaded", model: int) -> Path:
    return loaded.snapshot.folder / FOLDER / f"{loaded.snapshot.version}-{model}"


def _whose(loaded: "Loaded", model: int) -> dict[str, Any]:
    """What it must have been made from. The clone knows the rows' files by where they are."""
    snapshot = loaded.snapshot
    return {
        "format": _FORMAT,
        "rows": os.fspath(snapshot.folder / ROWS),
        "version": snapshot.version,
        "digest": f"{snapshot.seal.digest:032x}",
        "model": model,
    }


def _made(loaded: "Loaded", model: int) -> dict[str, Any] | None:
    """What is known of the one that is there; None if there is none, or it is damaged or of something else."""
    folder = _folder(loaded, model)
    try:
        data: Any = json.loads((folder / _MADE).read_text(encoding="utf-8"))
        expected = data.pop("sha256")
        if checksum_of(data) != expected or not _whose(loaded, model).items() <= data.items():
            return None
        return data if not checked(folder, data["files"], whole=True) else None
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return None


def _make(loaded: "Loaded", model: int) -> dict[str, Any]:
    snapshot, folder = loaded.snapshot, _folder(loaded, model)
    versions = snapshot.folder / ROWS / "_versions"
    if not (versions / manifest(snapshot.version)).exists():
        raise SearchError(f"the index {os.fspath(snapshot.folder)!r} was erased since it was opened: open it again")
    remove(folder)
    for other in folder.parent.glob("*"):  # those of versions that nobody reads any more
        number = other.name.split("-")[0]
        if not (number.isdecimal() and (versions / manifest(int(number))).exists()):
            remove(other)
    try:
        data = _whose(loaded, model) | {"clusters": max(1, snapshot.count // _CLUSTER), "found": 0, "planted": 0}
        with lances(snapshot.folder, writes=True):
            _index(snapshot, folder, model, data["clusters"])
        names = [os.fspath(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        data["files"] = seal_files(folder, names, {})
        data["found"], data["planted"] = _recall(Approximate(loaded, model, data), loaded, model)
        data = dict(json.loads(json.dumps(data)))  # tuples become lists, as they will be read
        with whole_file(folder / _MADE) as path:
            path.write_text(json.dumps({**data, "sha256": checksum_of(data)}, indent=1), encoding="utf-8")
    except BaseException as error:
        with suppress(OutputError):
            remove(folder)
        if isinstance(error, OSError) and not isinstance(error, RobustSimError):
            raise OutputError(f"cannot write {os.fspath(folder)!r}: {error.strerror or error}") from error
        raise
    return data


def _index(snapshot: "Snapshot", folder: Path, model: int, clusters: int) -> None:
    clone = snapshot.dataset.shallow_clone(os.fspath(folder), snapshot.version)
    dim = snapshot.dims[model]
    # A bit a value, or some of each where a row has few. Lance takes eight values at a time, or else leaves them whole.
    kind: dict[str, Any] = {"index_type": "IVF_FLAT"}
    if dim % 8 == 0:
        kind = {"index_type": "IVF_RQ", "num_bits": min(4, max(1, _BITS // dim))}
    clone.create_index(Vectors.of(model).embedding, metric="L2", num_partitions=clusters, sample_rate=_SAMPLED, **kind)


def _recall(made: Approximate, loaded: "Loaded", model: int) -> tuple[int, int]:
    """How many planted duplicates are found, and of how many."""
    count = loaded.snapshot.count
    rows = np.sort(np.random.default_rng(0).choice(count, min(_PLANTED, count), replace=False))
    found = 0
    for start in range(0, len(rows), _TOGETHER):
        some = rows[start : start + _TOGETHER]
        queries = near_duplicates(loaded.embeddings(some, model), SIMILARITY, seed=start)
        found += sum(row in one for row, one in zip(some, made.candidates(queries, FEWEST), strict=True))
    return found, len(rows)


def _quoted(text: str) -> str:
    return text.replace("'", "''")
