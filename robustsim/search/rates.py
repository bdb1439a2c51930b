"""A false-positive rate as a distance, for each line of comparison, and what is kept of an index's own."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.pairs import make_tail, near_pairs, nearest_rows
from robustsim.encoders.tail import CONFIDENCE, Tail, rounded_up
from robustsim.encoders.weights import whole_file
from robustsim.errors import CardError, InputError, SearchError
from robustsim.search.scan.exact import Read
from robustsim.search.storage.seal import checksum_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The file of an index that holds its own tails.
NAME = "rates.json"

#: The line of perceptual hashes.
PHASH = "phash"

# All pairs of so many rows are more than 1e8.
_MOST = 15_000


@dataclass(frozen=True)
class Threshold:
    """The distance up to which a line says that two pictures match.

    Attributes:
        distance: to be compared with by `<=`, in [0, sqrt(2)].
        rate_bound: no larger share of pairs of different pictures is that near, as far as the data can say.
        pairs: of different pictures that were compared.
        data: which pictures these were.
    """

    distance: float
    rate_bound: float
    pairs: int
    data: str


def thresholds_for(
    lines: Sequence[str],
    rate: float,
    tails: Mapping[str, Tail],
    *,
    comparisons: int = 1,
    confidence: float = CONFIDENCE,
) -> Mapping[str, Threshold]:
    """For each line the largest distance at which all of them together make at most that share of false matches.

    A pair that any line takes for a match is one, so each line gets an equal part of the rate (the union bound, which
    holds however the lines depend on each other).

    Args:
        lines: which, such as `("lite", "phash")`.
        rate: the share of pairs of different pictures that may match.
        tails: what was measured, by line.
        comparisons: how many a pair of pictures takes on each line: views of the query times views of the picture. Each
            gets an equal part, too; of a tail whose pairs took several, as many of them share one.
        confidence: of each line's bound, one-sided.

    Raises:
        InputError: a line has no tail, or its data cannot say so small a rate; the message says what to do.
    """
    if not lines or comparisons < 1:
        raise InputError("a rate is that of one line at least, and of one comparison")
    if not 0 < rate < 1:
        raise InputError(f"a rate of false positives lies between 0 and 1, and {rate:g} does not")
    found = {}
    for line in lines:
        if line not in tails:
            raise InputError(
                f"{line!r} has no distances of different pictures to tell a rate by. Measure them on photographs "
                f"(`robustsim calibrate {line} --data DIR --pairs-of 14000`) or on the index itself, or give a distance"
            )
        tail = tails[line]
        parts = len(lines) * -(-comparisons // tail.comparisons)
        smallest = rounded_up(parts * tail.smallest_rate(confidence))
        if rate < smallest:
            shared = f", of which each of {parts} comparisons has its part" if parts > 1 else ""
            instead = f"ask for {smallest:g} or more, or " if smallest < 1 else ""
            raise InputError(
                f"{line!r}: {tail.pairs:,} pairs of different pictures ({tail.data}) cannot say a rate of {rate:g}"
                f"{shared}: {instead}measure on more, by `robustsim calibrate` with --pairs-of or on the index itself"
            )
        distance = tail.threshold(rate / parts, confidence)
        found[line] = Threshold(distance, tail.rate_bound(distance, confidence), tail.pairs, tail.data)
    return found


def known_tails(cards: "Mapping[str, Any]") -> dict[str, Tail]:
    """The tails that come with models, by line, and that of perceptual hashes.

    Args:
        cards: card of each line that is a model.
    """
    found = {PHASH: phash_tail()}
    for line, card in cards.items():
        if card.calibration is not None and card.calibration.tail is not None:
            found[line] = card.calibration.tail
    return found


@cache
def phash_tail() -> Tail:
    """That of perceptual hashes of 256 bits (`imagehash.phash`, hash_size 16), at the distance `sqrt(bits / 128)`."""
    return Tail.from_json(files("robustsim.search").joinpath("data").joinpath("phash.json").read_text(encoding="utf-8"))


def measure_rows(
    read: Read,
    pictures: "Sequence[Any] | NDArray[Any]",
    data: str,
    *,
    most: int = _MOST,
    seed: int = 0,
    progress: Callable[[int], object] = lambda pairs: None,
) -> Tail:
    """The tail of an index's own pictures: all pairs of them, or of so many that their rows make 1e8.

    Two pictures are as far apart as their nearest views are, so that a rate is one of pictures also where they have
    several. Copies of a picture that are not the same file count as different ones: small rates look larger by them
    than they are, never smaller. Memory does not grow with the index.

    Args:
        read: the rows of one line, as of `robustsim.search.scan.exact.Rows`.
        pictures: (N,) which picture each row is of: rows of one are no pair, but views of it.
        data: which pictures they are, in words.
        most: of more rows than this, the pictures of about so many are drawn.
        seed: of that draw.
        progress: called with the number of pairs compared since the last call.

    Raises:
        InputError: there is no pair of different pictures.
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    own = np.unique(np.asarray(pictures), return_inverse=True)[1].reshape(-1)
    chosen = np.arange(len(own))
    if len(own) > most:
        count = int(own.max()) + 1
        drawn = np.random.default_rng(seed).choice(count, max(2, count * most // len(own)), replace=False)
        chosen = np.flatnonzero(np.isin(own, drawn))
        data = f"{data}, {len(drawn):,} of {count:,} pictures drawn at random"
    found = near_pairs(lambda places: read(chosen[places]), own[chosen], progress=progress)
    views = len(chosen) / (int(found.pictures.max()) + 1)
    return replace(make_tail(nearest_rows(found), data), comparisons=max(1, floor(views**2)))


def read_tails(folder: "str | os.PathLike[str]") -> dict[str, Tail]:
    """An index's own tails, by line; none if they were never measured.

    Args:
        folder: of the index.

    Raises:
        SearchError: what is there is not what was written.
    """
    try:
        kept = json.loads((Path(folder) / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        kept = None
    if isinstance(kept, dict) and kept.pop("sha256", None) == checksum_of(kept):
        with suppress(CardError, KeyError, TypeError, AttributeError):
            return {line: Tail.from_json(json.dumps(tail)) for line, tail in kept["tails"].items()}
    raise SearchError(
        f"the rates of the index {os.fspath(folder)!r} are damaged: measure them again (`robustsim rates`), or remove "
        f"its {NAME}"
    )


def keep_tails(folder: "str | os.PathLike[str]", tails: Mapping[str, Tail]) -> None:
    """Keep tails for `read_tails`, in place of those that are there.

    Raises:
        OutputError: the file cannot be written.
    """
    kept = {"tails": {line: json.loads(tail.to_json()) for line, tail in tails.items()}}
    with whole_file(Path(folder) / NAME) as temporary:
        temporary.write_text(json.dumps({**kept, "sha256": checksum_of(kept)}), encoding="utf-8")
