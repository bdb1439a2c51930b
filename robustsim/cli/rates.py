"""`robustsim rates`: how near different pictures of an index come to each other."""

from typing import Any

from robustsim.cli import output
from robustsim.cli.index import IndexArgument

#: For which the distances are printed.
RATES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def rates(index: IndexArgument, as_json: output.JsonOption = False) -> None:
    """Measure how near different pictures of an index come to each other, by each of its lines, and keep it.

    What `search --false-positives` and `dedup` mean by a rate is this index's own from then on, instead of what the
    cards of its models say of other pictures. Measure again when the index has become another one.
    """
    from tqdm import tqdm

    from robustsim.search import Index

    opened = Index.open(index)
    output.settle(opened.card)
    with tqdm(unit=" pairs", unit_scale=True, disable=True if as_json else None) as bar:
        tails = opened.measure_rates(progress=bar.update)
    found: dict[str, dict[str, Any]] = {
        line: {
            "pairs": tail.pairs,
            "data": tail.data,
            "smallest_rate": tail.smallest_rate(),
            "distances": {f"{rate:g}": tail.threshold(rate) for rate in RATES if rate >= tail.smallest_rate()},
        }
        for line, tail in tails.items()
    }
    if as_json:
        output.print_json({"index": str(index), "lines": found})
        return
    header = ("line", *(f"{rate:g}" for rate in RATES), "smallest rate")
    rows = [
        (line, *(_distance(one["distances"], rate) for rate in RATES), f"{one['smallest_rate']:g}")
        for line, one in found.items()
    ]
    output.print_table(header, rows, numbers=range(1, len(header)))
    for data in {one["data"]: None for one in found.values()}:
        output.note(f"the distances within which lie such a share of pairs at most, of {data}")


def _distance(distances: dict[str, float], rate: float) -> str:
    found = distances.get(f"{rate:g}")
    return "-" if found is None else f"{found:.4f}"
