"""The exact scan against FAISS's: time and memory, and planted near-duplicates that are missed; on rows made up here.

    python benchmarks/search.py [--rows 100000] [--dim 5120] [--rounds 7] [--planted 1000] [--memory]
    python benchmarks/search.py --approximate --hnsw
    python benchmarks/search.py --rows 1000000 --dim 512 --faiss fp16
    python benchmarks/search.py --files 1000 [--rounds 3]
    python benchmarks/search.py --pairs [--rows 100000] [--dim 5120] [--planted 1000]
    python benchmarks/search.py --whole --rows 1000000 [--dim 5120] [--planted 100]

Rows have a spectrum that decays: 256 directions of variance 1, 1/2, 1/3, ..., all others together a tenth of that, and
a mean, so that two rows are about 0.2 similar. Near-duplicates have similarity 0.97. One thread; CPU time, medians of
rounds in which the contenders take turns. FAISS (faiss-cpu) holds float32 (flat), or float16 (fp16, its
IndexScalarQuantizer), the index int8 and, on the disk, float16; with --memory, each is a process of its own, and its
memory is told.

With --approximate, Lance's clusters too; with --hnsw, usearch's graph over the codes, which takes long to make.

With --pairs, the near-duplicates are rows too, and all pairs within a distance of 0.2 are found and grouped, as
`robustsim dedup` does; by as many threads as there are cores. Time on the clock and of the CPU, and the peak of memory.

With --whole, what an index of all rows takes, each part in a process of its own: to write it, to open it, to answer one
query and many (near-duplicates, of which none may be missed), and to check every byte; time, disk and peak memory.

With --files, so many photographs are cut from those in examples/, embedded and indexed; and 10,000 files that an index
knows are looked through once more.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from robustsim.search.scan import approximate
from robustsim.search.scan import exact as scan
from robustsim.search.scan.approximate import near_duplicates
from robustsim.search.scan.codes import unit
from robustsim.search.scan.kernels import KERNELS
from robustsim.search.storage.approximate import SIMILARITY, Approximate
from robustsim.search.storage.check import check_store
from robustsim.search.storage.loaded import Loaded
from robustsim.search.storage.rows import Entry, make_table
from robustsim.search.storage.store import Store

Thing = TypeVar("Thing")
BLOCK, DIRECTIONS = 512, 256
COMMITTED = 1 << 23  # values that are committed together
WITHIN = (1 - 0.96) ** 0.5
FAISS = {"flat": "FAISS Flat", "fp16": "FAISS SQfp16"}


def made_up(rows: int, dim: int) -> Iterator[np.ndarray]:
    """Blocks of unit rows, float32; the same at each call."""
    rng = np.random.default_rng(0)
    strength = np.arange(1, DIRECTIONS + 1, dtype=np.float32) ** -0.5
    basis = rng.standard_normal((DIRECTIONS, dim), dtype=np.float32) * strength[:, None]
    total = float(np.square(strength).sum())
    mean = rng.standard_normal(dim, dtype=np.float32) * (0.25 * total) ** 0.5
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        block = rng.standard_normal((count, DIRECTIONS), dtype=np.float32) @ basis
        block += rng.standard_normal((count, dim), dtype=np.float32) * (0.1 * total) ** 0.5
        yield unit(block + mean).astype(np.float32)


def build(folder: Path, rows: int, dim: int) -> Store:
    store = Store.create(folder, [dim], {})
    blocks, done = made_up(rows, dim), 0
    while block := list(islice(blocks, max(1, COMMITTED // (BLOCK * dim)))):
        some = np.concatenate(block)
        with store.writing() as writer:
            entries = [Entry(f"{row:064x}", f"/{row}.jpg") for row in range(done, done + len(some))]
            writer.append(make_table(entries, [some], writer.snapshot.dataset.schema))
        done += len(some)
    return store


def opened(store: Store) -> scan.Rows:
    return Loaded(store.read()).line(0)


def pairs(argv: argparse.Namespace, store: Store) -> None:
    """Duplicates among all rows, in a process of its own, whose memory is told."""
    rows = opened(store)
    planted = np.random.default_rng(2).choice(argv.rows, argv.planted, replace=False)
    chosen = np.concatenate([rows.read(planted[n : n + 1]) for n in range(argv.planted)])
    copies = near_duplicates(chosen, SIMILARITY)
    with store.writing() as writer:
        entries = [Entry(f"{argv.rows + n:064x}", f"/{row} again.jpg") for n, row in enumerate(planted)]
        writer.append(make_table(entries, [copies], writer.snapshot.dataset.schema))
    alone("search.group(sys.argv[2])", store.folder)


def group(folder: str) -> None:
    """The groups of an index's rows within 0.2, and what they cost."""
    from robustsim.search.duplicates.find import Line, find_duplicates
    from robustsim.search.duplicates.report import Member

    print(f"memory of the imports: {held('VmRSS')}")
    start = time.perf_counter()
    loaded = Loaded(Store(folder).read())
    members = [Member(**row) for row in loaded.table.select(["path", "id"]).to_pylist()]
    line = Line("made up", lambda: loaded.line(0), np.arange(len(members)), WITHIN)
    print(f"opened in {time.perf_counter() - start:.0f} s, memory {held('VmRSS')}")
    start, before = time.perf_counter(), time.process_time()
    report = find_duplicates([line], members)
    wall, cpu = time.perf_counter() - start, time.process_time() - before
    found = sum(1 for _ in report.pairs())
    print(f"{len(members):,} rows: {wall:.0f} s, CPU time {cpu:.0f} s; memory at most {held('VmHWM')}")
    print(f"{found:,} pairs, {len(report.groups):,} groups")
    again = {path for group in report.groups for path in (one.path for one in group.members)}
    planted = [member.path for member in members if member.path.endswith(" again.jpg")]
    print(f"planted: {sum(path not in again for path in planted)} of {len(planted)} missed")


def held(which: str) -> str:
    """A line of what Linux says of this process: VmRSS, the memory that it holds; VmHWM, the most that it held."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in status if line.startswith(which))


def alone(code: str, *words: object) -> None:
    """Run a line in a process of its own, in which this file is `search`."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import search; " + code
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), *map(str, words)], check=True)


def whole(argv: argparse.Namespace, folder: Path) -> None:
    """Write, ask and check an index."""
    alone("search.write(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))", folder, argv.rows, argv.dim)
    alone("search.ask(sys.argv[2], int(sys.argv[3]))", folder, argv.planted)
    alone("search.verify(sys.argv[2])", folder)


def told(what: str, function: Callable[[], Thing]) -> Thing:
    """What a function gives; its time on the clock and of the CPU are told."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    print(f"{what}: {time.perf_counter() - wall:.1f} s, CPU time {time.process_time() - cpu:.1f} s", flush=True)
    return result


def write(folder: str, rows: int, dim: int) -> None:
    """The index, and what its folder takes."""
    told("rows made up, and nothing else", lambda: sum(len(block) for block in made_up(rows, dim)))
    told("rows made up and written", lambda: build(Path(folder), rows, dim))
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"on the disk: {size / 1e9:.2f} GB for {rows:,} rows of {dim:,}; memory at most {held('VmHWM')}", flush=True)


def ask(folder: str, planted: int) -> None:
    """The index opened, and near-duplicates looked for."""
    rows = told("opened", lambda: opened(Store(folder)))
    chosen = np.random.default_rng(2).choice(len(rows.codes.values), planted, replace=False)
    queries = near_duplicates(np.concatenate([rows.read(one[None]) for one in chosen]), SIMILARITY)
    told("one query within 0.2", lambda: scan.within(rows, queries[:1], WITHIN))
    told("the ten nearest of one query", lambda: scan.nearest(rows, queries[:1], 10))
    found = told(f"{planted} queries within 0.2", lambda: scan.within(rows, queries, WITHIN))
    missed = sum(row not in one.positions for row, one in zip(chosen, found, strict=True))
    print(f"planted: {missed} of {planted} missed; memory at most {held('VmHWM')}", flush=True)


def verify(folder: str) -> None:
    """Every byte compared with what was written."""
    report = told("checked", lambda: check_store(Store(folder)))
    print(f"{report.rows:,} rows, problems: {list(report.problems)}; memory at most {held('VmHWM')}", flush=True)


def faiss_index(kind: str, rows: int, dim: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(dim)
    if kind == "fp16":
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for block in made_up(rows, dim):
        index.add(block)
    return index


def memory(argv: argparse.Namespace, folder: Path) -> None:
    """Peak and end (VmHWM, VmRSS) of a process that opens the index, or makes FAISS's, and asks one query."""
    base = "import sys; sys.path.insert(0, sys.argv[2]); import search; "
    query = "q = next(search.made_up(1, {d})); "
    ask = {
        "int8 in memory": query + "r = search.opened(search.Store(sys.argv[1])); search.scan.nearest(r, q, 10); ",
        "nothing but the imports": "",
    }
    ask |= {
        FAISS[kind]: f"{query}f = search.faiss_index('{kind}', {{n}}, {{d}}); f.search(q, 10); " for kind in argv.faiss
    }
    for name, code in ask.items():
        code = base + "import faiss; " + code.format(d=argv.dim, n=argv.rows)
        # Not by getrusage, which tells the peak of the parent too. FAISS's peak comes of its array, which grows.
        code += "print(*(line.strip() for line in open('/proc/self/status') if line[:5] in ('VmHWM', 'VmRSS')))"
        words = [sys.executable, "-c", code, str(folder), str(Path(__file__).parent)]
        print(f"{name}: {subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()}")


def files(count: int, rounds: int) -> None:
    """Indexing against embedding, and a sync that finds nothing new."""
    from embed_folder import make_photographs

    from robustsim import RobustSim
    from robustsim.search import Index, embed_folder

    metric = RobustSim.from_pretrained(device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "photographs").mkdir()
        make_photographs(root / "photographs", count)
        ratios = []
        for number in range(rounds):
            index = Index.create(root / f"{number}", metric)
            embed = cost(lambda number=number: embed_folder(metric, root / "photographs", root / f"{number}.npz"))
            ratios.append(cost(lambda index=index: index.add(root / "photographs")) / embed)
        print(f"index / embed, {count} photographs: {np.median(ratios):.3f}", flush=True)
        index = Index.create(root / "many", metric)
        listed = known(index, root / "files", 10_000)
        syncs = []
        for _ in range(max(rounds, 5)):
            again = Index.open(index.path, metric)
            syncs.append(cost(lambda again=again: again.sync(root / "files")))
        print(f"sync with nothing new, {listed} files: {np.median(syncs):.3f} s")


def known(index: Any, folder: Path, count: int) -> int:
    """Files that an index has rows of, without looking at them."""
    folder.mkdir()
    rows = iter(made_up(count, index.card.embedding_dim))
    for start in range(0, count, BLOCK):
        entries = []
        for number in range(start, min(start + BLOCK, count)):
            path = folder / f"{number:06d}.jpg"
            path.write_bytes(b"no picture")
            found = path.stat()
            entries.append(Entry(f"{number:064x}", str(path), found.st_size, found.st_mtime_ns, hash=bytes(32)))
        store = Store(index.path)
        with store.writing() as writer:
            writer.append(make_table(entries, [next(rows)], writer.snapshot.dataset.schema))
        store.tidy()
    return count


def cost(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(contenders: dict[str, Callable[[], object]], rounds: int, what: str) -> None:
    for function in contenders.values():
        function()
    taken = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            taken[name].append(cost(function))
    medians = {name: float(np.median(times)) for name, times in taken.items()}
    for name, median in medians.items():
        others = (f"{median / medians[one]:.2f} of {one}'s" for one in FAISS.values() if one in medians and one != name)
        print(f"{what}, {name}: {1e3 * median:.1f} ms", *others, sep=", ", flush=True)


def hnsw(codes: np.ndarray, queries: np.ndarray, planted: np.ndarray) -> None:
    from usearch.index import Index

    graph = Index(ndim=codes.shape[1], metric="cos", dtype="i8", expansion_search=512)
    took = cost(lambda: graph.add(np.arange(len(codes)), codes, threads=1))
    hits = graph.search(scan.encode(queries).values, 30, threads=1)
    lost = sum(row not in hits[n].keys for n, row in enumerate(planted))
    one = cost(lambda: graph.search(scan.encode(queries).values, 30, threads=1)) / len(queries)
    print(
        f"planted, usearch HNSW, int8, ef 512, 30 of each: {lost} of {len(planted)} missed, {1e3 * one:.1f} ms each;",
        f"made in {took:.0f} s",
        flush=True,
    )


def clusters(loaded: Loaded, rows: scan.Rows, queries: np.ndarray, planted: np.ndarray) -> dict[str, Any]:
    """What `scan.approximate` takes; and what is missed of the planted, and of the ten nearest of a hundred."""
    start = time.process_time()
    made = Approximate.of(loaded)
    took = time.process_time() - start
    size = sum(path.stat().st_size for path in loaded.snapshot.folder.glob("approximate/**/*") if path.is_file())
    arguments = {"candidates": made.candidates, "read": rows.read, "order": rows.order}
    found = approximate.within(queries, WITHIN, **arguments)
    missed = sum(row not in one.positions for row, one in zip(planted, found, strict=True))
    ten = zip(approximate.nearest(queries[:100], 10, **arguments), scan.nearest(rows, queries[:100], 10), strict=True)
    same = sum(len(np.intersect1d(some.positions, every.positions)) for some, every in ten)
    print(
        f"planted, approximate: {missed} of {len(planted)} missed, {1000 - same} of the ten nearest of 100 queries;",
        f"it says recall {made.recall:.3f} of {made.planted}; made in {took:.0f} s, {size / 1e6:.0f} MB",
        flush=True,
    )
    return arguments


def main() -> None:
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--planted", type=int, default=1000)
    parser.add_argument("--faiss", nargs="*", choices=FAISS, default=["flat"], help="what to compare with; none too")
    parser.add_argument("--approximate", action="store_true", help="Lance's clusters too")
    parser.add_argument("--hnsw", action="store_true", help="usearch's graph too, which takes long to make")
    parser.add_argument("--memory", action="store_true", help="the memory alone")
    parser.add_argument("--pairs", action="store_true", help="the near-duplicates among all rows, and nothing else")
    parser.add_argument("--whole", action="store_true", help="write, ask and check an index; nothing else is measured")
    parser.add_argument("--files", type=int, help="photographs to embed and to index; nothing else is measured")
    argv = parser.parse_args()
    if argv.files:
        files(argv.files, argv.rounds)
        return
    with tempfile.TemporaryDirectory() as temporary:
        if argv.whole:
            whole(argv, Path(temporary) / "index")
            return
        store = build(Path(temporary) / "index", argv.rows, argv.dim)
        if argv.memory:
            memory(argv, store.folder)
            return
        if argv.pairs:
            pairs(argv, store)
            return
        loaded = Loaded(store.read())
        rows = loaded.line(0)
        planted = np.random.default_rng(2).choice(argv.rows, argv.planted, replace=False)
        queries = near_duplicates(
            np.concatenate([rows.read(planted[n : n + 1]) for n in range(argv.planted)]), SIMILARITY
        )
        found = scan.within(rows, queries, WITHIN)
        missed = sum(row not in one.positions for row, one in zip(planted, found, strict=True))
        measured = np.mean([one.measured for one in found])
        print(
            f"planted: {missed} of {argv.planted} missed; {measured:.1f} rows a query were measured exactly", flush=True
        )
        if argv.hnsw:
            hnsw(rows.codes.values, queries, planted)
        some = clusters(loaded, rows, queries, planted) if argv.approximate else {}
        others = {FAISS[kind]: faiss_index(kind, argv.rows, argv.dim) for kind in argv.faiss}
        for count, what in ((1, "one query"), (100, "100 queries")):
            q = queries[:count]
            contenders: dict[str, Callable[[], object]] = {
                name: partial(other.search, q, 10) for name, other in others.items()
            }
            for name in KERNELS:
                contenders[f"ten nearest, {name}"] = partial(scan.nearest, rows, q, 10, name=name)
            contenders["within 0.2, numkong"] = partial(scan.within, rows, q, WITHIN)
            if some:
                contenders["ten nearest, approximate"] = partial(approximate.nearest, q, 10, **some)
                contenders["within 0.2, approximate"] = partial(approximate.within, q, WITHIN, **some)
            compare(contenders, argv.rounds, what)


if __name__ == "__main__":
    main()
