"""Which class detection by neighbours gives to pictures, also to attacked ones (R-CLIP paper, V-A and B-E to B-G)."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from robustsim.attacks.engine.modules import undisturbed
from robustsim.attacks.engine.options import whole
from robustsim.attacks.engine.region import Norm
from robustsim.data.detection import TARGETS, DetectionSet
from robustsim.data.items import Preprocess
from robustsim.errors import ImageError, InputError
from robustsim.evaluation.reports.report import Report, load_report, parquet, write_report
from robustsim.evaluation.running.detecting import CLEAN, GREY, JOINT, METRIC, WHITE, Detecting, check_pairs, part_of
from robustsim.evaluation.running.escape import EscapePlan
from robustsim.evaluation.running.identity import device_kind, file_hashes, versions
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.place import place_of
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.statistics import mean_interval
from robustsim.evaluation.subjects import subject
from robustsim.evaluation.tasks.pictures import below
from robustsim.images.files import printable
from robustsim.search import Rule, ScoreDetector
from robustsim.search.stamps import content_sha256

#: What flags a query of which several perturbations were made, beside `joint`: see `evaluate_detection`.
INDEPENDENT, INDEPENDENT_WHITE, SINGLE = "independent", "independent white", "single"


def evaluate_detection(
    metric: Any,
    data: DetectionSet,
    *,
    output: "str | os.PathLike[str]",
    safe: Sequence[str] = ("safe",),
    votes: int = 1,
    eps: "Sequence[str]" = ("8/255",),
    norm: Norm = "linf",
    steps: int = 200,
    targets: int = TARGETS,
    pairs: "Sequence[tuple[str, str]] | None" = None,
    attacked: int | None = None,
    detector: ScoreDetector | None = None,
    preprocess: Preprocess = "card",
    seed: int = 0,
    batch_size: int = 32,
    restart: bool = False,
    progress: bool = False,
) -> Report:
    """The share of each class's queries that get each class, clean and under attack, and write a report.

    A query gets the class of its nearest picture in the banks, or of most of the `votes` nearest. Under attack it is
    led to another class, by all steps of APGD on `sum_y |u(x + d) - u(y)|^2` (R-CLIP paper, Eq. 5), `y` so many
    pictures of that class that are in no bank; a metric with a distance of its own between embeddings is attacked by
    the sum of that. Figures are of the perturbed pictures, as in the paper: the attacker does not ask what they become.

    With a detector beside, a query is flagged by any of the two. Where an attack is to turn a flag:

    - `grey` leads the detector's own encoder by Eq. 5, without its head; `white` its score; `joint` is one perturbation
      for the sum of both losses, the metric's mean over the targets and the detector's up to its threshold;
    - `independent`, the paper's "or": each of the two is shown the perturbation that was made against itself (`grey`
      against the detector), and the query is flagged if either flags. No one picture does that; were both attacks the
      best there are, no picture could do better for the attacker. `independent white` is that with `white`;
    - `single` is what one picture did: of all the perturbations made, flagged queries pass if one of them passes both,
      and safe ones are flagged if one of them is flagged by either.

    What is done is kept in a folder beside the report, its name ending in `.partial`: the same call continues from
    there. Started by `accelerate launch`, the processes share the work.

    Args:
        metric: a [`RobustSim`][robustsim.RobustSim], or any metric with embeddings that
            [`load_metric`][robustsim.evaluation.load_metric] returned.
        data: see [`read_detection`][robustsim.data.read_detection].
        output: a folder for reports, made if it is not there.
        safe: classes that are not flagged.
        votes: how many of the nearest pictures vote.
        eps: radii such as `8/255`; none for no attack.
        norm: of the radii: `linf`, `l2` or `l1`.
        steps: of APGD.
        targets: pictures that an attack leads to, drawn at random from those of the class.
        pairs: (class of queries, class that they are led to); every class towards every other that has targets if None.
        attacked: so many queries of each class are attacked, drawn at random; all if None.
        detector: another detector, which looks at the metric's square, resized to its own where that is of another
            size. To be attacked it must be differentiable.
        preprocess: how a picture becomes the metric's square: `card` as its card says, `squash` whole and bilinear.
        seed: of draws, attacks and the resampling.
        batch_size: pictures per encoding and attack.
        restart: forget what an earlier run has done.
        progress: show progress on standard error.

    Returns:
        The report: `results["clean"]` holds for each class of queries `classes`, the share that gets each class, and
        each of `results["adversarial"]` the same for each of `pairs`, with 95 % intervals over queries. With a
        detector: the share that it flags (`detector`), and that either flags (`either`).

    Raises:
        InputError: a metric without embeddings; a picture of a bank that is also a query or a target, or in two
            classes, by SHA-256; classes that are all safe, or all not; options that do not fit.
        ObjectiveError: a metric that gives NaN or infinity, a detector without gradient.
        ImageError: not a single query, or picture of a bank, could be read.
        OutputError: the folder cannot be written, or another process is at work on the same run.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet()  # say now what would be missing at the end
    whole("batch_size", batch_size)
    whole("targets", targets)
    if attacked is not None:
        whole("attacked", attacked)
    plan, rule = EscapePlan(eps=eps, norm=norm, steps=steps), Rule(safe=tuple(safe), votes=votes, tie=0)
    rule.check(data.bank)
    aims = check_pairs(data, pairs)
    one, workers = subject(metric).seeing(preprocess), Workers()
    if one.embed is None:
        raise InputError(f"{one.name} compares pairs of pictures and has no embeddings: detection needs those")
    check_apart(data)
    work = Detecting(one, data, rule, plan, aims, targets, attacked, detector, seed, batch_size)
    files = [*work.database.files, *(path for _, path in work.queries)]
    parts = {
        "bank": data.bank,
        "query": data.queries,
        "target": {kind: tuple(some) for kind, some in work.drawn.items()},
    }
    named = repr(
        [[part, kind, [_name(data, path) for path in some]] for part in parts for kind, some in parts[part].items()]
    )
    adversarial = plan.to_dict()
    if adversarial is not None:
        adversarial.update(targets=targets, pairs=[list(pair) for pair in work.pairs], attacked=attacked)
    identity = {
        "task": "detection",
        "metric": {"name": one.name, **one.about},
        "data": {
            "name": data.name,
            "root": os.path.abspath(data.root),
            "description": f"{len(work.queries)} queries, {sum(map(len, data.bank.values())):,} pictures in banks",
            "items": len(work.queries),
            "items_sha256": hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest(),
            **file_hashes(data.root, files),
        },
        "detection": {
            "safe": list(rule.safe),
            "votes": votes,
            "banks": {kind: len(some) for kind, some in data.bank.items()},
            "queries": {kind: len(some) for kind, some in data.queries.items()},
            "targets": {kind: len(some) for kind, some in work.drawn.items()},
            "detector": None if detector is None else detector.identity(),
        },
        "preprocessing": {"rule": preprocess, **asdict(one.preprocessing)},
        "attack": None,  # what is judged is no decision between two
        "adversarial": adversarial,
        "seed": seed,
        "batch_size": batch_size,
        "versions": versions(),
        "device": device_kind(one.device),
    }
    path, partial, is_done = place_of(output, identity, workers, restart=restart)
    if is_done:
        return load_report(path)
    workers.check(one.name, one.device)
    behind = [one.embed, one.distance, *(work.second.behind if work.second is not None else ())]
    with Journal(partial, identity, worker=workers.number) as journal, undisturbed(behind):
        work.do(journal, workers, progress=progress and workers.is_main)
        if workers.is_main:
            content, columns = _summary(work, journal, seed)
            write_report(path, {**identity, **content}, columns)
        workers.wait()
        if workers.is_main:
            journal.remove()
    return load_report(path)


def check_apart(data: DetectionSet) -> None:
    """Refuse files of equal content in two parts, or in two classes; files of unlike sizes are not read for that.

    Raises:
        InputError: there are some; the message names two of them.
    """
    parts = {"the bank": data.bank, "the queries": data.queries, "the targets": data.targets}
    by_size: dict[int, list[tuple[str, str, Path]]] = {}
    for part, classes in parts.items():
        for kind, files in classes.items():
            for path in files:
                try:
                    by_size.setdefault(path.stat().st_size, []).append((part, kind, path))
                except OSError:  # whoever reads it will tell why
                    continue
    for some in by_size.values():
        if len({one[:2] for one in some}) == 1:
            continue
        # What cannot be read is like nothing, and is told when it is decoded.
        hashes = {path: content_sha256(path).get("id", path) for path in dict.fromkeys(path for _, _, path in some)}
        for (part, kind, path), (other, other_kind, other_path) in combinations(some, 2):
            if hashes[path] == hashes[other_path] and (part, kind) != (other, other_kind):
                raise InputError(
                    f"{_name(data, path)!r} of {part} {kind!r} and {_name(data, other_path)!r} of {other} "
                    f"{other_kind!r} are the same picture: a query must not find itself, and an attacker holds other "
                    "pictures than the bank"
                )


def _name(data: DetectionSet, path: Path) -> str:
    return printable(below(data.root, path))


class _Found:
    """What the journal knows of each query, by part."""

    def __init__(self, work: Detecting, journal: Journal) -> None:
        self.classes: dict[str, dict[int, str]] = {}
        self.flags: dict[str, dict[int, bool]] = {}
        self.scores: dict[str, dict[int, float]] = {}
        self.errors: dict[int, str] = {}
        for number, chunk in enumerate(work.chunks):
            for part in work.parts(chunk):
                found = journal.done[number, part]
                self.errors.update({int(place): text for place, text in found.get("error", {}).items()})
                for name, kept in (("class", self.classes), ("flagged", self.flags), ("score", self.scores)):
                    own: dict[int, Any] = kept.setdefault(part, {})
                    own.update(zip(found["places"], found[name], strict=False))
        second = work.second
        self.limit = None if second is None else second.detector.threshold

    def detected(self, part: str) -> dict[int, bool]:
        """Whether the detector flags."""
        limit = self.limit
        return {} if limit is None else {place: score >= limit for place, score in self.scores[part].items()}

    def either(self, part: str, other: str | None = None) -> dict[int, bool]:
        """Whether the rule flags what was made in one part, or the detector what was in another."""
        detected = self.detected(other or part)
        return {place: flag or detected[place] for place, flag in self.flags[part].items() if place in detected}


def _together(
    work: Detecting, found: _Found, kind: str, target: str, eps: str
) -> Iterator[tuple[str, dict[int, bool]]]:
    """Whether queries are flagged by either, for each way to count attacks."""
    made = work.attacks(target, kind)
    part = {attack: part_of(eps, target, attack) for attack in made}
    if WHITE not in made:
        return
    if GREY in made or (work.second is not None and work.second.shares):
        yield INDEPENDENT, found.either(part[METRIC], part.get(GREY, part[METRIC]))
    yield INDEPENDENT_WHITE, found.either(part[METRIC], part[WHITE])
    yield JOINT, found.either(part[JOINT])
    flags = [found.either(part[attack]) for attack in made]
    count = any if kind in work.rule.safe else all
    yield SINGLE, {place: count(one[place] for one in flags) for place in set.intersection(*map(set, flags))}


def _summary(work: Detecting, journal: Journal, seed: int) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The results and what was skipped for the report, and its columns: a row for each query."""
    found, rule = _Found(work, journal), work.rule
    count, banks = len(work.queries), list(work.data.bank)
    names = [_name(work.data, path) for _, path in work.queries]
    of_class = [kind for kind, _ in work.queries]
    if len(found.errors) == count:
        raise ImageError(f"not a single query could be read; the first: {next(iter(found.errors.values()))}")
    columns: dict[str, list[Any]] = {
        "id": names,
        "group": of_class,
        "cluster": names,
        "answer": [0.0] * count,
        "error": [found.errors.get(place) for place in range(count)],
    }

    def column(name: str, values: Mapping[int, Any]) -> None:
        columns[name] = [values.get(place) for place in range(count)]

    def shares(places: "dict[int, str]", kind: str) -> dict[str, Any]:
        got = np.array([given for place, given in places.items() if of_class[place] == kind], dtype=object)
        return {bank: _share(got == bank, seed) for bank in banks}

    def flagged(flags: "dict[int, bool]", kind: str, measure: str) -> dict[str, Any] | None:
        """The share that is flagged; and a column of whether that is right."""
        own = {place: flag for place, flag in flags.items() if of_class[place] == kind}
        column(measure, {place: float(flag == (kind not in rule.safe)) for place, flag in own.items()})
        return _share(np.array(list(own.values()), dtype=bool), seed)

    def right(part: str, kind: str) -> dict[int, float]:
        given = found.classes[part]
        return {place: float(given[place] == kind) for place in given if of_class[place] == kind}

    column("class", found.classes[CLEAN])
    clean: dict[str, Any] = {}
    for kind in work.data.queries:
        column(f"right {kind}", right(CLEAN, kind))
        clean[kind] = {"classes": shares(found.classes[CLEAN], kind)}
        if found.limit is not None:
            clean[kind]["detector"] = flagged(found.detected(CLEAN), kind, f"detector {kind}")
            clean[kind]["either"] = flagged(found.either(CLEAN), kind, f"either {kind}")
    if found.limit is not None:
        column("score", found.scores[CLEAN])
    adversarial = []
    for eps in work.plan.eps:
        parts = []
        for kind, target in work.pairs:
            part, way = part_of(eps, target, METRIC), f"{kind} to {target}"
            hurt = {place: given for place, given in found.classes[part].items() if of_class[place] == kind}
            column(f"class {way} {eps}", hurt)
            column(f"right {way} {eps}", right(part, kind))
            figures: dict[str, Any] = {
                "query": kind,
                "target": target,
                "before": shares({place: found.classes[CLEAN][place] for place in hurt}, kind),
                "classes": shares(hurt, kind),
            }
            for attack in (GREY, WHITE) if found.limit is not None else ():
                if (made := part_of(eps, target, attack)) in found.scores and attack in work.attacks(target, kind):
                    measure = f"detector {attack} {way} {eps}"
                    figures.setdefault("detector", {})[attack] = flagged(found.detected(made), kind, measure)
            for name, flags in _together(work, found, kind, target, eps):
                figures.setdefault("either", {})[name] = flagged(flags, kind, f"either {name} {way} {eps}")
            parts.append(figures)
        adversarial.append({"norm": work.plan.norm, "eps": eps, "pairs": parts})
    unread = sorted(work.database.unread.items())
    return {
        "results": {CLEAN: clean, "adversarial": adversarial},
        "skipped": [{"id": names[place], "error": error} for place, error in sorted(found.errors.items())],
        "unread": [{"id": _name(work.data, work.database.files[place]), "error": error} for place, error in unread],
        "times": {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }, columns


def _share(values: Any, seed: int) -> dict[str, Any] | None:
    """With its interval over queries; None where there are none."""
    return mean_interval(np.asarray(values, dtype=float), seed=seed).to_dict() if len(values) else None
