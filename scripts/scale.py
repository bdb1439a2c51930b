"""What an index of a million, a hundred million and a thousand million pictures takes: measured here, and multiplied.

python scripts/scale.py [--rows 20000] [--dim 5120] [--photographs 200] [--rounds 5]

Rows are those of benchmarks/search.py, photographs are cut from those in examples/; one thread, CPU time, medians.
Everything below the first table is a measured figure times what its line says, on processors like this one: no index of
a thousand million pictures was ever made.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(os.fspath(Path(__file__).parents[1] / "benchmarks"))  # after the packages: a file there is called ray

import numpy as np
import torch
from embed_folder import make_photographs
from search import WITHIN, build, cost, made_up, opened

from robustsim import RobustSim
from robustsim.search import embed_folder
from robustsim.search.duplicates.find import Line, find_duplicates
from robustsim.search.duplicates.report import Member
from robustsim.search.scan import exact as scan
from robustsim.search.storage.store import Store

COUNTS = (10**6, 10**8, 10**9)
# Shares of pairs of different pictures that match, as rates of false positives are asked for.
RATES = (1e-6, 1e-9, 1e-12)
TENANTS = 1000
QUERIES = 100
UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
HOUR, YEAR = 3600, 3600 * 24 * 365


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=5120)
    parser.add_argument("--photographs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = build(Path(folder) / "index", options.rows, options.dim)
        disk, memory = sizes(store, options.rows)
        one, many, pair = scans(store, options.rows, options.dim, options.rounds)
        picture = embedding(Path(folder), options.photographs, options.rounds)
    print(f"Measured: {options.rows:,} rows of {options.dim:,} values, {options.photographs} photographs, one core.\n")
    print("| | |\n|---|---:|")
    for what, value in (
        ("on the disk, each picture (float16, its name, its hash)", f"{disk:,.0f} bytes"),
        ("in memory while it answers (8 bits a value, and bounds)", f"{memory:,.0f} bytes"),
        ("to decode and embed a picture", f"{1e3 * picture:.1f} ms"),
        ("to scan a row for one query", f"{1e9 * one:.0f} ns"),
        (f"to scan a row for one of {QUERIES} queries together", f"{1e9 * many:.0f} ns"),
        ("to compare two rows in `dedup`", f"{1e9 * pair:.1f} ns"),
    ):
        print(f"| {what} | {value} |")
    print("\n| | " + " | ".join(f"{count:,}" for count in COUNTS) + " |\n|---|" + "---:|" * len(COUNTS))
    for name, per in (
        ("disk: N x bytes a picture", lambda n: size(n * disk)),
        ("memory: N x bytes a picture", lambda n: size(n * memory)),
        ("embed, or embed again for another model: N x time a picture", lambda n: hours(n * picture)),
        ("one query: N x time a row", lambda n: hours(n * one)),
        (f"one of {QUERIES} queries together: N x time a row", lambda n: hours(n * many)),
        ("all pairs: N (N - 1) / 2 x time a pair", lambda n: hours(n * (n - 1) / 2 * pair)),
        (
            f"all pairs within {TENANTS:,} tenants of N / {TENANTS:,} each",
            lambda n: hours(n / TENANTS * (n - TENANTS) / 2 * pair),
        ),
    ):
        print(f"| {name} | " + " | ".join(per(count) for count in COUNTS) + " |")
    for rate in RATES:
        found = " | ".join(short(count * rate) for count in COUNTS)
        print(f"| false positives of a query at a rate of {rate:g}: N x rate | {found} |")
    for rate in RATES:
        found = " | ".join(short(count * (count - 1) / 2 * rate) for count in COUNTS)
        print(f"| false positives among all pairs at {rate:g}: N (N - 1) / 2 x rate | {found} |")


def sizes(store: Store, rows: int) -> tuple[float, float]:
    """Bytes of a row, on the disk and as it is held to answer."""
    disk = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    codes = opened(store).codes
    held = codes.values.nbytes + codes.scales.nbytes + codes.residuals.nbytes
    return disk / rows, held / rows


def scans(store: Store, rows: int, dim: int, rounds: int) -> tuple[float, float, float]:
    """CPU seconds: of a row for one query, of a row for one of many, and of a pair of rows."""
    held = opened(store)
    queries = next(made_up(QUERIES, dim))
    scan.within(held, queries[:1], WITHIN)
    one = np.median([cost(lambda: scan.within(held, queries[:1], WITHIN)) for _ in range(rounds)])
    many = np.median([cost(lambda: scan.within(held, queries, WITHIN)) for _ in range(rounds)])
    members = [Member(path=f"/{row}.jpg", id=f"{row:064x}") for row in range(rows)]
    line = Line("made up", lambda: held, np.arange(rows), WITHIN)
    all_pairs = cost(lambda: find_duplicates([line], members))
    return float(one) / rows, float(many) / QUERIES / rows, all_pairs / (rows * (rows - 1) / 2)


def embedding(folder: Path, count: int, rounds: int) -> float:
    """CPU seconds from a file to its embedding."""
    metric = RobustSim.from_pretrained(device="cpu")
    (folder / "photographs").mkdir()
    make_photographs(folder / "photographs", count)
    times = [
        cost(lambda number=number: embed_folder(metric, folder / "photographs", folder / f"{number}.npz"))
        for number in range(rounds)
    ]
    return float(np.median(times)) / count


def size(value: float) -> str:
    unit, name = next(((unit, name) for unit, name in UNITS if value >= unit), UNITS[-1])
    return f"{short(value / unit)} {name}"


def hours(seconds: float) -> str:
    """Time of one core, in the unit that is read most easily."""
    if seconds < HOUR:
        return f"{short(seconds)} s"
    return f"{short(seconds / HOUR)} core-hours" if seconds < YEAR else f"{short(seconds / YEAR)} core-years"


def short(value: float) -> str:
    """Two digits that count, with commas; powers of ten beyond what is read as a number."""
    if not 1e-3 <= value < 1e9:
        return f"{value:.1e}"
    digits = max(0, 1 - int(np.floor(np.log10(value))))
    return f"{round(value, 1 - int(np.floor(np.log10(value)))):,.{digits}f}"


if __name__ == "__main__":
    main()
