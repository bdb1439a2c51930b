"""Questions made of ratings: of two pictures that were rated beside one reference, which is nearer to it?"""

import math
from collections import defaultdict
from itertools import combinations

from robustsim.data.items import DataSet, Rating, Triplet
from robustsim.errors import InputError

#: The group of a question whose two ratings are of different groups.
ACROSS = "across groups"


def rating_triplets(ratings: DataSet[Rating], margin: float, *, symmetric: bool | None = None) -> DataSet[Triplet]:
    """Triplets from ratings: wherever two of one reference differ by at least a margin, the higher one is nearer.

    Ratings of a reference set, such as TID2013 or KADID-10k, are of a distorted picture beside its reference, which
    stays the reference. Ratings of similarity may list each pair of pictures once, and which of the two is called the
    reference says nothing there: in a symmetric set either picture of a pair is a reference. A set counts as symmetric
    if and only if it holds every pair of different pictures that can be made of its pictures, each exactly once, in
    either order, and nothing else. References of a distortion set are not rated beside each other, so that none is
    ever swapped.

    Left is the picture whose rating comes first in the file. A question is in the group that both ratings are in, or
    in `across groups`; its id names the two. The same ratings give the same triplets in the same order: by reference
    in order of appearance, then by the ratings' places. `sample` of the result draws some.

    Args:
        ratings: as [`read_ratings`][robustsim.data.read_ratings] gives them; higher means more alike, or better.
        margin: the least difference, in the ratings' own unit; more than 0. Differences count as written in decimals:
            5.6 and 4.6 differ by 1.
        symmetric: whether either picture of a pair is a reference; None: by the rule above.

    Returns:
        Triplets with `right_share` 0 or 1, scored by majority.

    Raises:
        InputError: `margin` is no such number, or no two ratings of a reference differ by so much.
    """
    if not 0 < margin < math.inf:
        raise InputError(f"margin is {margin:g}; it must be a finite number above 0, in the unit of the ratings")
    both_ways = is_symmetric(ratings) if symmetric is None else symmetric
    beside = defaultdict(list)  # of each reference: ratings, and the picture of each that is compared with it
    for rating in ratings:
        beside[rating.reference].append((rating, rating.image))
        if both_ways and rating.image != rating.reference:
            beside[rating.image].append((rating, rating.reference))
    items, largest = [], 0.0
    for reference, rated in beside.items():
        for (first, left), (second, right) in combinations(rated, 2):
            gap = abs(first.quality - second.quality)
            if left == right:
                continue
            largest = max(largest, gap)
            if gap > margin or math.isclose(gap, margin, rel_tol=1e-9):
                group = first.group if first.group == second.group else ACROSS
                share = float(second.quality > first.quality)
                items.append(Triplet(f"{first.id} / {second.id}", reference, left, right, share, group))
    if not items:
        raise InputError(
            f"{ratings.name}: no two ratings of one reference differ by {margin:g} or more: the largest difference is "
            f"{largest:g}"
        )
    description = f"{ratings.description}: ratings of one reference that differ by at least {margin:g}"
    description += ", either picture of a pair as the reference" * both_ways
    return DataSet(
        ratings.name,
        ratings.root,
        tuple(items),
        description=description,
        preprocess=ratings.preprocess,
        margin=float(margin),
    )


def is_symmetric(ratings: DataSet[Rating]) -> bool:
    """Whether every pair of different pictures of the set is rated exactly once, in either order, and nothing else."""
    pairs = {frozenset(rating.paths) for rating in ratings}
    count = len(ratings.paths)
    return len(pairs) == len(ratings) == count * (count - 1) // 2 and all(len(pair) == 2 for pair in pairs)
