"""Banks of pictures: indexes of one model, asked together with embeddings that were made once."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from robustsim.errors import InputError, SearchError
from robustsim.search.detection.verdict import Neighbour
from robustsim.search.index.answer import Hit
from robustsim.search.index.index import Index


def open_banks(
    paths: "Mapping[str, str | os.PathLike[str]]", *, model: str | None = None, device: str | None = None
) -> dict[str, Index]:
    """Indexes by the names of their banks; the model is loaded once.

    Args:
        paths: folder of each.
        model: what made them, where it is not found by its name.
        device: where it computes.

    Raises:
        SearchError: one is no index, or two are of different models.
    """
    from robustsim.metric import RobustSim

    metric = None if model is None else RobustSim.from_pretrained(model, device=device)
    banks: dict[str, Index] = {}
    for name, path in paths.items():
        banks[name] = Index.open(path, None if banks else metric, device=device)
    share_model(banks)
    return banks


def share_model(banks: Mapping[str, Index]) -> None:
    """Let all have the first one's model.

    Raises:
        SearchError: two are of different models.
    """
    first = next(iter(banks.values()))
    for bank in banks.values():
        bank.share_model(first)


def check_filled(banks: Mapping[str, Index]) -> None:
    """Refuse a bank without pictures, which would never be the nearest, and say so by nothing.

    Raises:
        SearchError: there is one.
    """
    for name, bank in banks.items():
        if not len(bank):
            raise SearchError(
                f"the bank {name!r}, the index {bank.path!r}, holds no pictures: add some, or leave it out"
            )


def nearest(
    banks: Mapping[str, Index], rows: Tensor, owners: Sequence[int], views: Sequence[str], count: int
) -> list[dict[str, tuple[Neighbour, ...]]]:
    """The nearest pictures of each bank to each query.

    Args:
        banks: of one model.
        rows: (M, D) embeddings of all views of all queries.
        owners: M: which query each is of, from 0 on, each once at least.
        views: M: their names.
        count: how many pictures of each bank.
    """
    if len(owners) != len(rows) or len(views) != len(rows):
        raise InputError(f"{len(rows)} embeddings, {len(owners)} owners and {len(views)} views do not fit")
    found: list[dict[str, tuple[Neighbour, ...]]] = [{} for _ in range(max(owners, default=-1) + 1)]
    for name, bank in banks.items():
        best: list[dict[tuple[str, str, int], Neighbour]] = [{} for _ in found]
        for owner, view, hits in zip(owners, views, bank.search(rows, count), strict=True):
            times: Counter[tuple[str, str]] = Counter()  # the same file of several tenants
            for hit in hits:
                one = hit.path, hit.id
                key, new = (*one, times[one]), _neighbour(hit, view)
                times[one] += 1
                if key not in best[owner] or new.distance < best[owner][key].distance:
                    best[owner][key] = new
        for owner, some in enumerate(best):
            ranked = sorted(some.values(), key=lambda near: near.distance)
            found[owner][name] = tuple(ranked[:count])
    return found


def _neighbour(hit: Hit, query_view: str) -> Neighbour:
    return Neighbour(hit.path, hit.id, hit.distance, hit.label, query_view, hit.found_by[0].view)
