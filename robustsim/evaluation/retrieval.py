"""How well a metric finds what it should in a database, also by queries that were tampered with (R-CLIP paper, V-B)."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsim.attacks.engine.modules import undisturbed
from robustsim.attacks.engine.region import Norm
from robustsim.data.items import Preprocess
from robustsim.data.retrieval import Query, RetrievalSet
from robustsim.encoders.weights import whole_file
from robustsim.errors import ImageError, InputError
from robustsim.evaluation.ranking import KAPPAS, precision_at, ranks_of, trapezoidal_precision
from robustsim.evaluation.reports.report import Report, load_report, parquet, write_report
from robustsim.evaluation.running.database import Database, embedded
from robustsim.evaluation.running.escape import EscapePlan
from robustsim.evaluation.running.identity import device_kind, file_hashes, versions
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.place import place_of
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.sheet import NEAREST, picture_of, shown_queries
from robustsim.evaluation.statistics import Array, mean_interval, mean_of_numbers
from robustsim.evaluation.subjects import Subject, subject
from robustsim.evaluation.tasks.pictures import Part, below, decode_square
from robustsim.images.files import prefetch, printable
from robustsim.images.inputs import stack_squares, to_picture

CLEAN = "clean"


def evaluate_retrieval(
    metric: Any,
    data: RetrievalSet,
    *,
    output: "str | os.PathLike[str]",
    eps: "Sequence[str]" = (),
    norm: Norm = "linf",
    steps: int = 100,
    preprocess: Preprocess = "card",
    seed: int = 0,
    batch_size: int = 32,
    pictures: int = 0,
    restart: bool = False,
    progress: bool = False,
) -> Report:
    """Mean average precision and precision at 1, 5 and 10, clean and with attacked queries, and write a report.

    The database is embedded once, into a file beside the report that goes when the report is there; memory does not
    grow with it, but for some numbers a picture. What is done is kept in a folder beside the report, its name ending in
    `.partial`: the same call continues from there. Started by `accelerate launch`, the processes share the work.

    A query is attacked without any knowledge of the database: it is moved as far as possible from its own clean
    embedding (R-CLIP paper, Eq. 6), by all steps of APGD.

    Pictures of the database that cannot be read, and are to be found, count as not found.

    Args:
        metric: a [`RobustSim`][robustsim.RobustSim], or any metric with embeddings that
            [`load_metric`][robustsim.evaluation.load_metric] returned.
        data: see [`read_retrieval`][robustsim.data.read_retrieval].
        output: a folder for reports, made if it is not there.
        eps: radii such as `4/255`, for figures on attacked queries each.
        norm: of the radii: `linf`, `l2` or `l1`.
        steps: of APGD.
        preprocess: how a file becomes the metric's square: `card` as the metric's card says, `squash` whole and
            bilinear.
        seed: of the attacks and of the resampling.
        batch_size: pictures per encoding, and queries per attack.
        pictures: of so many queries, at even distances in the list, keep the attacked picture in a folder beside the
            report, its name ending in `.pictures`, for [`draw_neighbours`][robustsim.evaluation.draw_neighbours].
        restart: forget what an earlier run has done.
        progress: show progress on standard error.

    Returns:
        The report: `results["clean"]` and each of `results["adversarial"]` hold for each protocol `map` and `p@1`,
        `p@5`, `p@10` with their 95 % intervals over queries; None where no query has anything to be found.

    Raises:
        InputError: a metric without embeddings, options that do not fit.
        ObjectiveError: a metric that gives NaN or infinity.
        ImageError: not a single picture of the database, or not a single query, could be read.
        OutputError: the folder cannot be written, or another process is at work on the same run.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet()  # say now what would be missing at the end
    if batch_size < 1 or pictures < 0:
        raise InputError(f"batch_size must be at least 1, pictures at least 0, not {batch_size} and {pictures}")
    plan = EscapePlan(eps=eps, norm=norm, steps=steps)
    one, workers = subject(metric).seeing(preprocess), Workers()
    if one.embed is None:
        raise InputError(
            f"{one.name} compares pairs of pictures and has no embeddings: a search needs those, as it would compare "
            f"each of {len(data.queries)} queries with each of {len(data.database)} pictures"
        )
    identity = _identity(one, data, plan, preprocess, seed, batch_size)
    path, folder, is_done = place_of(output, identity, workers, restart=restart)
    work = _Work(one, data, plan, seed, batch_size, path.with_suffix(".pictures"), pictures)
    behind = [one.embed, one.distance]
    if not is_done:
        workers.check(one.name, one.device)
        with Journal(folder, identity, worker=workers.number) as journal, undisturbed(behind):
            work.database.embed(journal, workers, progress=progress and workers.is_main)
            work.ask(journal, workers, progress and workers.is_main)
            if workers.is_main:
                content, columns = work.summary(journal)
                write_report(path, {**identity, **content}, columns)
            workers.wait()
            if workers.is_main:
                journal.remove()
    if workers.is_main:
        with undisturbed(behind):
            work.draw_missing()
    workers.wait()
    return load_report(path)


def _identity(
    one: Subject, data: RetrievalSet, plan: EscapePlan, preprocess: Preprocess, seed: int, batch_size: int
) -> dict[str, Any]:
    items = hashlib.sha256()
    for query in data.queries:
        lists = {name: list(places) for name, places in query.lists.items()}
        items.update(json.dumps([query.name, query.box, lists]).encode() + b"\n")
    for file in data.database:
        items.update(printable(below(data.root, file)).encode() + b"\n")
    files = [*data.database, *(query.path for query in data.queries)]
    return {
        "task": "retrieval",
        "metric": {"name": one.name, **one.about},
        "data": {
            "name": data.name,
            "root": os.path.abspath(data.root),
            "description": f"{len(data.queries)} queries, {len(data.database):,} pictures",
            "items": len(data.queries),
            "database": len(data.database),
            "items_sha256": items.hexdigest(),
            **file_hashes(data.root, files),
        },
        "protocols": {name: {"find": find, "pass": over} for name, (find, over) in data.protocols.items()},
        "preprocessing": {"rule": preprocess, **asdict(one.preprocessing)},
        "attack": None,  # no decision is judged
        "adversarial": plan.to_dict(),
        "seed": seed,
        "batch_size": batch_size,
        "versions": versions(),
        "device": device_kind(one.device),
    }


class _Work:
    """What is to be done for one metric."""

    def __init__(
        self,
        metric: Subject,
        data: RetrievalSet,
        plan: EscapePlan,
        seed: int,
        batch_size: int,
        pictures: Path,
        shown: int,
    ) -> None:
        self.metric, self.data, self.plan, self.seed, self.size = metric, data, plan, seed, batch_size
        self.pictures, self.shown = pictures, shown_queries(len(data.queries), shown)
        self.parts = [CLEAN, *plan.eps]
        self.chunks = range(-(-len(data.queries) // batch_size))
        self.database = Database(metric, data.database, batch_size)

    def _members(self, chunk: int) -> range:
        return range(chunk * self.size, min((chunk + 1) * self.size, len(self.data.queries)))

    def ask(self, journal: Journal, workers: Workers, progress: bool) -> None:
        """Rank the database for what is left of the queries, each in a part without attack and one for each radius."""
        from tqdm import tqdm

        mine = [chunk for chunk in self.chunks if chunk % workers.count == workers.number]
        open_ = [chunk for chunk in mine if not all(journal.is_settled(chunk, part) for part in self.parts)]
        for chunk in tqdm(open_, desc=f"{self.metric.name}: queries", unit="batch", disable=not progress):
            places, errors, pixels = self._shown(chunk)
            found: dict[str, Any] = {"places": places, "queries": [], **({"error": errors} if errors else {})}
            codes = embedded(self.metric, pixels) if places else pixels
            for part in self.parts:
                if journal.is_settled(chunk, part):
                    continue
                seen = codes
                if places and part != CLEAN:
                    seen = embedded(self.metric, self._attacked(chunk, part, codes, pixels, places))
                    with torch.no_grad():
                        found["moved"] = self.metric.distance(codes, seen).tolist()
                far = self.database.distances(seen)
                journal.add(chunk, part, {**found, "queries": [self._ranked(place, next(far)) for place in places]})
        workers.wait()
        journal.read_all()
        journal.check((chunk, part) for chunk in self.chunks for part in self.parts)

    def _shown(self, chunk: int) -> tuple[list[int], dict[int, str], Tensor]:
        """The queries of a chunk that can be read, why others cannot, and pixels of the former."""
        members = self._members(chunk)
        pictures = [Part(query.path, query.box) for query in self.data.queries[members.start : members.stop]]
        loaded = list(prefetch(partial(decode_square, self.metric), pictures))
        errors = {place: str(bad) for place, bad in zip(members, loaded, strict=True) if isinstance(bad, ImageError)}
        good = [square for square in loaded if isinstance(square, Tensor)]
        pixels = stack_squares(good, self.metric.device) if good else torch.empty(0)
        return [place for place in members if place not in errors], errors, pixels

    def _attacked(self, chunk: int, eps: str, codes: Tensor, pixels: Tensor, places: Sequence[int]) -> Tensor:
        """The chunk's queries under attack; those that are to be shown are kept."""
        moved = self.plan.move(self.metric, codes, pixels, eps, seed=self.seed * 1_000_003 + chunk)
        for place, picture in zip(places, moved, strict=True):
            if place in self.shown:
                self.pictures.mkdir(parents=True, exist_ok=True)
                with whole_file(picture_of(self.pictures, place, self.plan.norm, eps)) as temporary:
                    to_picture(picture).save(temporary, format="PNG")
        return moved

    def draw_missing(self) -> None:
        """Attack once more those queries whose pictures are wanted and not there, as they were for the report."""
        for chunk in self.chunks:
            wanted = [place for place in self._members(chunk) if place in self.shown]
            for eps in self.plan.eps:
                names = {place: picture_of(self.pictures, place, self.plan.norm, eps) for place in wanted}
                missing = {place for place, path in names.items() if not path.is_file()}
                places, _, pixels = self._shown(chunk) if missing else ([], {}, torch.empty(0))
                if missing & set(places):
                    self._attacked(chunk, eps, embedded(self.metric, pixels), pixels, places)

    def _ranked(self, place: int, far: Array) -> dict[str, Any]:
        """The figures of one query, and what is nearest to it."""
        query, unread = self.data.queries[place], self.database.unread
        found: dict[str, Any] = {}
        for protocol, (find, over) in self.data.protocols.items():
            positives = [one for name in find for one in query.lists[name]]
            if not positives:
                continue
            # What cannot be read is not found: a metric gains nothing by pictures that are missing.
            seen, count = [one for one in positives if one not in unread], len(positives)
            ranks = ranks_of(far, seen, [*(one for name in over for one in query.lists[name]), *unread])
            found[f"ap {protocol}"] = trapezoidal_precision(ranks, count)
            found.update({f"p@{k} {protocol}": precision_at(ranks, k, count) for k in KAPPAS})
        return {**found, "nearest": json.dumps(self._nearest(query, far))}

    def _nearest(self, query: Query, far: Array) -> list[list[Any]]:
        """Names of the pictures next to a query, itself aside, and which of its lists they are in."""
        files, more = self.data.database, NEAREST + 1
        places = np.argpartition(far, more)[:more] if more < len(far) else np.arange(len(far))  # NaN is last
        order = sorted((float(far[one]), int(one)) for one in places if int(one) not in self.database.unread)
        kinds = {one: name for name, list_ in query.lists.items() for one in list_}
        near = [one for _, one in order if files[one] != query.path][:NEAREST]
        return [[printable(below(self.data.root, files[one])), kinds.get(one)] for one in near]

    def summary(self, journal: Journal) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """The results and what was skipped for the report, and its columns: a row for each query."""
        data, seed = self.data, self.seed
        count, errors = len(data.queries), dict[int, str]()
        rows: dict[str, dict[int, dict[str, Any]]] = {part: {} for part in self.parts}
        for chunk in self.chunks:
            for part in self.parts:
                found = journal.done[chunk, part]
                errors.update({int(place): error for place, error in found.get("error", {}).items()})
                for row, place in enumerate(found["places"]):
                    moved = {"moved": found["moved"][row]} if "moved" in found else {}
                    rows[part][place] = {**found["queries"][row], **moved}
        read = [place for place in range(count) if place not in errors]
        if not read:
            raise ImageError(f"not a single query could be read; the first: {next(iter(errors.values()))}")
        columns: dict[str, list[Any]] = {
            "id": [query.name for query in data.queries],
            "group": [data.name] * count,
            "cluster": [query.name for query in data.queries],
            "answer": [0.0] * count,
            "error": [errors.get(place) for place in range(count)],
            "file": [printable(below(data.root, query.path)) for query in data.queries],
            "box": [None if query.box is None else json.dumps(query.box) for query in data.queries],
        }
        kinds = {"map": "ap", **{f"p@{k}": f"p@{k}" for k in KAPPAS}}
        figures: dict[str, dict[str, Any]] = {}
        for part in self.parts:
            aside = "" if part == CLEAN else f" {part}"

            def column(name: str, part: str = part) -> list[Any]:
                return [None if place in errors else rows[part][place].get(name) for place in range(count)]

            figures[part] = {}
            for protocol in data.protocols:
                own = {figure: column(f"{name} {protocol}") for figure, name in kinds.items()}
                columns.update({f"{kinds[figure]} {protocol}{aside}": values for figure, values in own.items()})
                figures[part][protocol] = {figure: _mean(values, seed) for figure, values in own.items()}
            columns[f"nearest{aside}"] = column("nearest")
            if aside:
                columns[f"moved{aside}"] = column("moved")
                far = np.array([rows[part][place]["moved"] for place in read])
                figures[part]["moved"] = mean_of_numbers(far, seed=seed).to_dict()
        results = {
            CLEAN: figures[CLEAN],
            "adversarial": [{"norm": self.plan.norm, "eps": eps, **figures[eps]} for eps in self.plan.eps],
        }
        unread = sorted(self.database.unread.items())
        return {
            "results": results,
            "skipped": [{"id": data.queries[place].name, "error": error} for place, error in sorted(errors.items())],
            "unread": [
                {"id": printable(below(data.root, data.database[place])), "error": error} for place, error in unread
            ],
            "times": {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        }, columns


def _mean(values: "Sequence[float | None]", seed: int) -> dict[str, Any] | None:
    """Over the queries that have something to be found, with its interval; None where there are none."""
    known = np.array([value for value in values if value is not None], dtype=float)
    return mean_interval(known, seed=seed).to_dict() if len(known) else None
