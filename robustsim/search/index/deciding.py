"""What counts as a match: by which lines, and up to which distance of each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from robustsim.encoders.tail import Tail
from robustsim.errors import InputError
from robustsim.search.index.models import Models
from robustsim.search.rates import measure_rows, thresholds_for
from robustsim.search.scan.exact import Read
from robustsim.search.storage.loaded import Loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Names all lines of an index.
ALL = "all"
#: The share of pairs of different pictures that may be taken for duplicates, where nothing else is asked for.
RATE = 1e-5


class Decision(NamedTuple):
    """Up to which distances pictures match.

    Attributes:
        thresholds: the distance of each line.
        false_positives: no larger share of pairs of different pictures match, as far as the data can say; None where
            distances were given, and nobody asked.
        measured_on: of which pictures each line's rate is known.
    """

    thresholds: dict[str, float]
    false_positives: float | None
    measured_on: dict[str, str]


def lines_of(
    models: Models,
    by: "str | Sequence[str] | None",
    distance: "float | Mapping[str, float] | None",
    false_positives: float | None,
) -> list[str]:
    """By which lines an index is asked: those of `by`, or of the distances, or its own model alone.

    Raises:
        InputError: neither or both of distance and rate were given, there is no such line, or two arguments name lines.
    """
    if (distance is None) == (false_positives is None):
        raise InputError("a match is what is within a distance, or what a rate of false positives allows: give one")
    if isinstance(distance, Mapping):
        if by is not None:
            raise InputError("the distances name their lines: leave out `by`")
        lines = list(distance)
    elif by == ALL:
        lines = list(models.lines)
    else:
        lines = [models.lines[0]] if by is None else [by] if isinstance(by, str) else list(by)
    if not lines:
        raise InputError("no line was named: name one at least")
    for line in lines:
        models.number(line)
    if false_positives is None:
        _distances(lines, distance)
    return list(dict.fromkeys(lines))


def decide(
    lines: Sequence[str],
    distance: "float | Mapping[str, float] | None",
    false_positives: float | None,
    tails: Mapping[str, Tail],
    comparisons: int,
) -> Decision:
    """The distances that were given, or those that make at most a rate of false matches.

    Args:
        lines: of `lines_of`.
        distance: of the one line, or of each; or None.
        false_positives: a share of pairs of different pictures; or None.
        tails: what is known of the lines' distances.
        comparisons: how many a pair of pictures takes on each line.

    Raises:
        InputError: a distance is none, or is that of several lines; or the rate cannot be told. The message says why.
    """
    if false_positives is not None:
        found = thresholds_for(lines, false_positives, tails, comparisons=comparisons)
        shares = {line: -(-comparisons // tails[line].comparisons) for line in found}
        bound = min(1.0, sum(one.rate_bound * shares[line] for line, one in found.items()))
        thresholds = {line: one.distance for line, one in found.items()}
        return Decision(thresholds, bound, {line: one.data for line, one in found.items()})
    return Decision(_distances(lines, distance), None, {})


def _distances(lines: Sequence[str], distance: "float | Mapping[str, float] | None") -> dict[str, float]:
    if not isinstance(distance, Mapping):
        if len(lines) > 1 or distance is None:
            raise InputError(
                f"one distance is that of one line, and {', '.join(lines)} were asked: name a distance for each of "
                "them, or a rate of false positives for all"
            )
        distance = {lines[0]: distance}
    for line, value in distance.items():
        if not 0 <= value <= 2**0.5:
            raise InputError(f"distance must be from 0 to 1.414, not {value} ({line})")
    return dict(distance)


def measure(models: Models, loaded: Loaded, data: str, progress: Callable[[int], object]) -> dict[str, Tail]:
    """How near different pictures of an index come to each other, by each line; not by `phash`, if no two have one.

    Raises:
        InputError: it holds no two pictures.
        SearchError: it is damaged.
    """
    tails = {}
    for line in models.lines:
        number = models.number(line)
        at = loaded.hashed if number is None else np.arange(len(loaded.pictures))
        at = at[_first_of_content(loaded)[loaded.pictures[at]]]
        pictures = loaded.pictures[at]
        if number is None and len(np.unique(pictures)) < 2:
            continue
        read = loaded.reader(number)
        tails[line] = measure_rows(partial(_read_some, read, at), pictures, data, progress=progress)
    return tails


def _read_some(read: Read, at: "NDArray[np.int64]", places: "NDArray[np.int64]") -> "NDArray[np.float16]":
    return read(at[places])


def _first_of_content(loaded: Loaded) -> "NDArray[np.bool_]":
    """Which pictures are the first with their content: the same file at another place is no other picture."""
    import pyarrow.compute as pc

    by_rank = np.argsort(loaded.order)  # by id, so that pictures of one content come one after the other
    ids = pc.dictionary_encode(loaded.table.column("id").combine_chunks()).indices.to_numpy()[by_rank]
    pictures = loaded.pictures[by_rank]
    first = np.zeros(loaded.count, bool)
    first[pictures[np.unique(ids, return_index=True)[1]]] = True
    return first
