"""What detection by neighbours keeps out, clean and attacked: tables for docs/detection.md.

Groups are made of photographs of known ImageNet classes: NIPS 2017's development set, which came from Flickr
(`images.csv` with `file` and `imagenet_class` beside `images`), and a folder with one picture of each class, whose
names sort as the classes do.

- guns: the R-CLIP paper's B-G as far as so few pictures go. Banks and targets are NIPS 2017's, queries ImageNet's. Guns
  and holsters are unsafe; the ten classes that the paper names are safe, and animals and things of others are what the
  attacker holds.
- animals: NIPS 2017 alone, divided by the seed. Animals are unsafe, plants, food and landscapes between, things safe.

python scripts/detection.py --nips17 DIR --imagenet DIR --work WORK --lpips FILE --docs docs/detection.md
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from pages import write_between

from robustsim.data import read_detection
from robustsim.evaluation import compare_reports, evaluate_detection, load_metric
from robustsim.evaluation.reports.report import Report, percent

#: Assault rifle, revolver, rifle.
GUNS = (413, 763, 764)
HOLSTER = 597
#: Desktop computer, car wheel, frilled lizard, lorikeet, snow plow, otter, fire engine, koala, tusker, wild dog.
OTHERS = (527, 479, 43, 90, 803, 360, 555, 105, 101, 275)
ANIMALS, BETWEEN = range(398), range(924, 1000)
TARGETS = 16
_Rows = list[tuple[Path, str, str]]


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nips17", type=Path, required=True, help="NIPS 2017's development set")
    parser.add_argument("--imagenet", type=Path, required=True, help="a picture of each class, in their order")
    parser.add_argument("--work", type=Path, required=True, help="where tables of pictures and reports are kept")
    parser.add_argument("--lpips", type=Path, help="weights of lpips-alex; without them it is left out")
    parser.add_argument("--docs", type=Path, help="a page to write the tables into")
    parser.add_argument("--most", type=int, default=120, help="pictures of a class of the animals' set")
    parser.add_argument("--attacked", type=int, default=24, help="queries of each class that are attacked")
    parser.add_argument("--steps", type=int, default=50, help="of APGD")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    models = ["lite", "lite-clean", *(["lpips-alex"] if options.lpips else []), "phash"]
    pictures = nips(options.nips17)
    sets = {
        "guns": (guns(pictures, options.imagenet, options.seed), [("unsafe", "safe")]),
        "animals": (animals(pictures, options.most, options.seed), None),
    }
    parts = [command(options)]
    for name, (rows, pairs) in sets.items():
        table = write_table(options.work / f"{name}.csv", rows)
        reports = []
        for model in models:
            begun = time.perf_counter()
            report = evaluate_detection(
                load_metric(model, weights=str(options.lpips) if model == "lpips-alex" else None),
                read_detection(table, "/", seed=options.seed, bank_only=() if name == "guns" else ("buffer",)),
                output=options.work,
                steps=options.steps,
                targets=TARGETS,
                pairs=pairs,
                attacked=options.attacked,
                seed=options.seed,
                batch_size=options.attacked,
            )
            print(f"{name}, {model}: {time.perf_counter() - begun:.0f} s, {report.path}", file=sys.stderr)
            reports.append(report)
        parts.append(page(name, reports))
    text = "\n\n".join(parts)
    print(text)
    if options.docs is not None:
        write_between(options.docs, "detection", text)


def nips(folder: Path) -> dict[int, list[Path]]:
    """The pictures of each class."""
    found: dict[int, list[Path]] = {}
    with (folder / "images.csv").open(newline="") as source:
        for row in csv.DictReader(source):
            found.setdefault(int(row["imagenet_class"]), []).append((folder / "images" / row["file"]).resolve())
    return {kind: sorted(some) for kind, some in found.items()}


def guns(pictures: dict[int, list[Path]], imagenet: Path, seed: int) -> _Rows:
    """Banks, queries and what the attacker holds, who knows no picture of the banks."""
    single = sorted(path.resolve() for path in imagenet.glob("*.jpg"))
    if len(single) != 1000:
        raise SystemExit(f"{imagenet} holds {len(single)} pictures, and not one of each of 1,000 classes")
    unsafe = (*GUNS, HOLSTER)
    rows = [(path, "unsafe", "bank") for kind in unsafe for path in pictures.get(kind, [])]
    rows += [(path, "safe", "bank") for kind in OTHERS for path in pictures.get(kind, [])]
    rows += [(single[kind], "unsafe", "query") for kind in unsafe]
    rows += [(single[kind], "safe", "query") for kind in OTHERS]
    rest = [path for kind, some in sorted(pictures.items()) if kind not in (*unsafe, *OTHERS) for path in some]
    return rows + [(path, "safe", "target") for path in Random(seed).sample(rest, TARGETS)]


def animals(pictures: dict[int, list[Path]], most: int, seed: int) -> _Rows:
    """At most so many of each class, drawn at random; `read_detection` divides them."""
    of_class: dict[str, list[Path]] = {"unsafe": [], "buffer": [], "safe": []}
    for kind, some in sorted(pictures.items()):
        of_class["unsafe" if kind in ANIMALS else "buffer" if kind in BETWEEN else "safe"] += some
    draw = Random(seed)
    return [
        (path, name, "") for name, some in of_class.items() for path in sorted(draw.sample(some, min(most, len(some))))
    ]


def write_table(path: Path, rows: _Rows) -> Path:
    """A CSV that `robustsim evaluate detection --classes` reads, too, with `--data /`."""
    parted = any(part for *_, part in rows)
    with path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("file", "class", *(("part",) if parted else ())))
        for file, kind, part in rows:
            writer.writerow((file.relative_to("/"), kind, *((part,) if parted else ())))
    return path


def command(options: argparse.Namespace) -> str:
    """What was called."""
    numbers = " ".join(f"--{name} {getattr(options, name)}" for name in ("most", "attacked", "steps", "seed"))
    lpips = " --lpips FILE" if options.lpips else ""
    folders = f"--nips17 DIR --imagenet DIR --work WORK{lpips}"
    return f"`python scripts/detection.py {folders} {numbers} --docs docs/detection.md`"


def page(name: str, reports: Sequence[Report]) -> str:
    """One table: what is worst for whoever detects comes first."""
    about = reports[0].content["detection"]
    counts = {part: ", ".join(f"{n} {kind}" for kind, n in about[part].items()) for part in ("banks", "queries")}
    pairs = {(part["query"], part["target"]): part for part in reports[0].results["adversarial"][0]["pairs"]}
    columns = [(pair, kind) for pair in sorted(pairs, reverse=True) for kind in (pair[0], pair[1])]
    rows = []
    for report in reports:
        attacked = {(one["query"], one["target"]): one for one in report.results["adversarial"][0]["pairs"]}
        clean = report.results["clean"]
        cells = [percent(attacked[pair]["classes"][kind]) for pair, kind in columns]
        cells += [percent(clean[kind]["classes"][kind]) for kind in ("unsafe", "safe")]
        rows.append((attacked["unsafe", "safe"]["classes"]["unsafe"]["value"], report.metric, cells))
    head = [f"{pair[0]} led to {pair[1]}: {kind}" for pair, kind in columns]
    head += ["clean, unsafe: unsafe", "clean, safe: safe"]
    hurt = ", ".join(f"{one['classes'][pair[0]]['n']} {pair[0]}" for pair, one in pairs.items())
    lines = [
        f"**{name}**: banks {counts['banks']}; queries {counts['queries']}; attacked {hurt}, in %",
        "",
        f"| metric | {' | '.join(head)} |",
        f"|---|{'---:|' * len(head)}",
        *(f"| {metric} | {' | '.join(cells)} |" for _, metric, cells in sorted(rows, key=lambda row: row[0])),
    ]
    told = [
        _told(one)
        for one in compare_reports(reports)
        if one.measure.startswith("right unsafe to safe") and one.a == "lite"
    ]
    return "\n".join(
        [*lines, "", "Unsafe queries that stay unsafe, compared on the same pictures: " + "; ".join(told) + "."]
    )


def _told(one: Any) -> str:
    low, high = one.difference.low, one.difference.high
    bounds = "" if low != low else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{one.a} - {one.b} {100 * one.difference.value:+.1f}{bounds}, p {one.p_adjusted:.3f}"


if __name__ == "__main__":
    main()
