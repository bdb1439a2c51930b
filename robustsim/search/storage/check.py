"""Look an index over: every byte of its files, every row, every bound."""

from collections.abc import Callable
from dataclasses import dataclass

from robustsim.errors import SearchError
from robustsim.search.storage.readback import check_whole
from robustsim.search.storage.rows import add_up
from robustsim.search.storage.seal import checked, read_seal
from robustsim.search.storage.store import ROWS, Store


@dataclass(frozen=True)
class CheckReport:
    """What `Index.check` found.

    Attributes:
        rows: how many there are.
        version: that was looked at.
        problems: what is wrong, a line each; nothing if the index is whole.
    """

    rows: int
    version: int
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_store(store: Store, progress: Callable[[int], object] = lambda rows: None) -> CheckReport:
    """Compare all files and all rows with their checksums, and compute every residual anew.

    Raises:
        SearchError: there is no index, or it is of a newer format.
    """
    seal = read_seal(store.folder)
    while True:
        problems = checked(store.folder / ROWS, seal.files, whole=True)
        if not problems:
            try:
                _check_rows(store, progress)
            except SearchError as error:
                problems = [str(error)]
        before, seal = seal, read_seal(store.folder)
        if not problems or seal == before:  # else somebody wrote meanwhile, and files may have been replaced
            break
    if before.erasing:
        problems.append("rows were erased, and their files are still there: `robustsim forget` again removes them")
    return CheckReport(before.rows, before.version, tuple(problems))


def _check_rows(store: Store, progress: Callable[[int], object]) -> None:
    snapshot = store.read()
    rows = total = 0
    for batch in snapshot.batches(None):
        total += add_up(check_whole(batch))
        rows += len(batch)
        progress(len(batch))
    snapshot.compare(rows, total)
