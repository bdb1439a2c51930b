"""All pairs of an index that are near each other, block by block: each part with itself, and with each other one."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from robustsim.errors import SearchError
from robustsim.search.duplicates.find import Line
from robustsim.search.scale.scanning import Part, load_part
from robustsim.search.scan.codes import Codes
from robustsim.search.scan.exact import Rows
from robustsim.search.scan.pairs import Pairs, pairs_within

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robustsim.search.storage.seal import Seal


class Block(NamedTuple):
    """Rows of one part with those of another one, or with each other.

    Attributes:
        one: a part.
        two: the same one, or a later one.
        number: of the model by which they are compared; None for perceptual hashes.
        distance: up to which they are near.
        pictures: (N,) of each part, which picture each row is of; -1 for rows that do not count.
        threads: that multiply.
    """

    one: Part
    two: Part
    number: int | None
    distance: float
    pictures: "tuple[NDArray[np.int64], NDArray[np.int64]]"
    threads: int | None


class Compared(NamedTuple):
    """What a block says.

    Attributes:
        block: the parts.
        pairs: of places in the index.
        compared: how many pairs were.
        rows: of the part, if it was compared with itself; else 0.
        digest: the sum of their digests likewise.
    """

    block: tuple[Part, Part]
    pairs: Pairs
    compared: int
    rows: int
    digest: int


def compare_fragments(block: Block) -> Compared:
    """The pairs of a block, none of them missed.

    Raises:
        SearchError: a part is damaged, or the version is not there any more.
    """
    one, pictures, counts = load_part(block.one), block.pictures[0], [0]
    if block.one == block.two:
        rows, split = one.line(block.number), None
    else:
        two = load_part(block.two)
        rows, split = _together(one.line(block.number), two.line(block.number)), len(pictures)
        pictures = np.concatenate(block.pictures)

    def count(compared: int) -> None:
        counts[0] += compared

    found = list(
        pairs_within(
            rows,
            block.distance,
            pictures=pictures,
            allowed=np.flatnonzero(pictures >= 0),
            split=split,
            threads=block.threads,
            progress=count,
        )
    )
    places = np.arange(block.one.start, block.one.stop)
    if split is not None:
        places = np.concatenate((places, np.arange(block.two.start, block.two.stop)))
    first, second = (np.concatenate([part[at] for part in found] + [np.empty(0, np.int64)]) for at in range(2))
    away = np.concatenate([part.distances for part in found] + [np.empty(0)])
    whole = (len(one.pictures), one.digest) if split is None else (0, 0)
    return Compared((block.one, block.two), Pairs(places[first], places[second], away), counts[0], *whole)


def _together(one: Rows, two: Rows) -> Rows:
    """Rows of two parts, those of the second after those of the first."""
    split = len(one.codes)
    columns = ("values", "scales", "residuals")
    codes = Codes(*(np.concatenate((getattr(one.codes, name), getattr(two.codes, name))) for name in columns))

    def read(positions: "NDArray[np.int64]") -> "NDArray[np.float16]":
        halves = positions[positions < split], positions[positions >= split] - split
        return np.concatenate([part.read(at) for part, at in zip((one, two), halves, strict=True) if len(at)])

    return Rows(codes, read, np.arange(len(codes)))


def compare_parts(
    run: "Callable[[Callable[[Block], Compared], Iterator[Block]], Iterator[Compared]]",
    parts: list[Part],
    seal: "Seal",
    line: Line,
    number: int | None,
    pictures: "NDArray[np.int64]",
    progress: Callable[[int], object],
    threads: int | None,
) -> Iterator[Pairs]:
    """All pairs of a line, by blocks.

    Args:
        run: what maps over blocks, in any order.
        parts: of the index, which are compared with each other and themselves.
        seal: of the index.
        line: what compares.
        number: of its model; None for perceptual hashes.
        pictures: (N,), which picture each row is of; -1 for rows that do not count.
        progress: called with the number of pairs compared since the last call.
        threads: of each worker.

    Raises:
        SearchError: the parts are not the whole index.
    """

    def blocks() -> Iterator[Block]:
        for at, one in enumerate(parts):
            for two in parts[at:]:
                places = pictures[one.start : one.stop], pictures[two.start : two.stop]
                yield Block(one, two, number, line.distance, places, threads)

    seen: dict[tuple[Part, Part], tuple[int, int]] = {}
    for found in run(compare_fragments, blocks()):
        if found.block not in seen:  # what was lost with a worker may have been there already
            seen[found.block] = found.rows, found.digest
            yield found.pairs
            progress(found.compared)
    rows, digest = (sum(one[at] for one in seen.values()) for at in range(2))
    wanted = len(parts) * (len(parts) + 1) // 2
    if (len(seen), rows, digest % (1 << 128)) != (wanted, seal.rows, seal.digest % (1 << 128)):
        raise SearchError("not all parts of the index were compared, or they hold other rows than it has: ask again")
