"""Many sets of human judgements in one: every metric on every set, and whether their means differ by chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from zlib import crc32

import numpy as np

from robustsim.errors import InputError
from robustsim.evaluation import statistics
from robustsim.evaluation.reports.blocks import SCORES, Block, Column, Figure
from robustsim.evaluation.reports.comparison import (
    COMPARED,
    STATISTICS,
    Comparison,
    attacked_items,
    compared,
    held_items,
    holm,
)
from robustsim.evaluation.reports.report import Report, by_data, distinct_names
from robustsim.evaluation.reports.tables import Table, no_gradient_note, skipped_note
from robustsim.evaluation.statistics import Array


@dataclass(frozen=True)
class OverSets:
    """Metrics on many sets of human judgements.

    Attributes:
        blocks: figures without attack, and a block for each norm and radius.
        comparisons: of the means of every two metrics of a block, as
            [`over_sets`][robustsim.evaluation.over_sets] says; in their order, Holm's correction for all of them.
    """

    blocks: tuple[Block, ...]
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not defined is None there."""
        return {
            "blocks": [block.to_dict() for block in self.blocks],
            "comparisons": [one.to_dict() for one in self.comparisons],
        }

    def tables(self, *, interval: bool = True) -> list[Table]:
        """A table for each block, and one of the comparisons if there are any."""
        found = [block.table(interval=interval) for block in self.blocks]
        if self.comparisons:
            told = (
                "A and B: means over the sets that count, on items that every metric has read. Paired bootstrap within "
                "each set, by its clusters: intervals are of 95 %, p is of no difference, two-sided; Holm's correction "
                "is for all comparisons of this table. Other questions of the same sets were drawn, and not other sets."
            )
            rows = tuple(compared(one) for one in self.comparisons)
            found.append(Table("Differences of means over sets", COMPARED, rows, (told,)))
        return found


def over_sets(reports: Sequence[Report], *, seed: int = 0) -> OverSets:
    """One table of reports on many sets of human judgements: a row for each metric, a column for each set.

    Scores are accuracies (2AFC, odd one out), Spearman's correlation (quality) and average precision (JND). Means and
    mean ranks are over the sets for which every metric of a block has a figure; ratings and the questions that were
    made of them count once, by the questions. Two ways of showing the pictures of a set, or of attacking it, are two
    columns.

    **The test.** The statistic of metrics A and B is the mean over the K sets that count of the difference of their
    scores, `D = 1/K sum_k (s_k(A) - s_k(B))`, on the items that every metric of the block has read (and that were
    attacked with every one). In each of the bootstrap's draws every set's clusters (references; questions where there
    are none) are drawn with replacement, independently of the other sets and the same for A and B, and D is computed
    anew. The interval is the middle 95 % of these; p is twice the share of draws on the other side of 0, the
    observation itself counted, and 1 where a set has fewer than five clusters. Holm's correction is for all pairs of
    all blocks. The sets are taken as they are: nothing is said of sets that are not among them.

    Args:
        reports: of 2AFC, odd one out, JND or quality, any metrics on any sets.
        seed: of resampling.

    Raises:
        InputError: no report, one of another task, two that give one metric different figures for the same, or metrics
            that have no readable item of a set in common.
    """
    if not reports:
        raise InputError("a table over sets needs at least one report")
    for report in reports:
        if report.task not in SCORES:
            raise InputError(f"{report.path.name} is on {report.task}: a table over sets is of {', '.join(SCORES)}")
    names = dict(zip((report.path for report in reports), distinct_names(reports), strict=True))
    sets = {report.path: part[0] for part in by_data(reports) for report in part}
    measures = dict.fromkeys((one["norm"], one["eps"]) for report in reports for one in report.threats)
    made = [_Made("clean", reports, sets, names, lambda report: report.results.get(SCORES[report.task][0]))]
    for norm, eps in measures:

        def figure(report: Report, norm: str = norm, eps: str = eps) -> Figure | None:
            threat = _threat(report, norm, eps)
            return None if threat is None else threat["accuracy"]

        made.append(_Made(f"{norm} {eps}", reports, sets, names, figure, (norm, eps)))
    return OverSets(
        tuple(one.block for one in made), tuple(holm([pair for one in made for pair in one.comparisons(seed)]))
    )


class _Made:
    """A block and the reports behind its figures."""

    def __init__(
        self,
        measure: str,
        reports: Sequence[Report],
        sets: "dict[Any, Report]",
        names: "dict[Any, str]",
        figure: "Callable[[Report], Figure | None]",
        attack: "tuple[str, str] | None" = None,
    ) -> None:
        self.attack = attack
        # By what a column stands for and by metric: the report that has the figure.
        self.cells: dict[tuple[str, ...], dict[str, Report]] = {}
        shown: dict[tuple[str, ...], Report] = {}
        for report in reports:
            found = figure(report)
            if found is None or found["value"] is None:
                continue
            key = (
                (str(sets[report.path].path), report.preprocess, *_setting(report).values())
                if attack
                else (str(sets[report.path].path), report.preprocess)
            )
            row = self.cells.setdefault(key, {})
            known = row.setdefault(names[report.path], report)
            if (other := figure(known)) is not None and other["value"] != found["value"]:
                raise InputError(
                    f"{known.path.name} and {report.path.name} give {names[report.path]} unlike figures for the same "
                    f"({measure}): pass one of them"
                )
            shown.setdefault(key, report)
        metrics = tuple(
            dict.fromkeys(name for name in names.values() if any(name in row for row in self.cells.values()))
        )
        columns = _columns(shown, attack is not None)
        figures = [[figure(row[name]) if name in row else None for row in self.cells.values()] for name in metrics]
        self.block = Block(
            measure, metrics, columns, tuple(map(tuple, figures)), tuple(dict.fromkeys(self._notes(columns)))
        )

    def _notes(self, columns: Sequence[Column]) -> list[str]:
        found = []
        by_share = [
            column.name
            for column, row in zip(columns, self.cells.values(), strict=True)
            if next(iter(row.values())).content["data"].get("scoring") == "share" and not self.attack
        ]
        if by_share:
            found.append(f"An answer is worth the share of people who gave it: {', '.join(by_share)}.")
        settings: dict[str, list[str]] = {}
        for column, row in zip(columns, self.cells.values(), strict=True):
            for name, report in row.items():
                whose = f"{name}, {column.name}"
                if self.attack is not None:
                    threat = _threat(report, *self.attack) or {}
                    of = settings.setdefault(", ".join(_setting(report).values()), [])
                    of += [column.name] * (column.name not in of)
                    if threat.get("no_gradient"):
                        found.append(no_gradient_note(whose, threat))
                elif report.content["skipped"]:
                    found.append(skipped_note(whose, report))
        told = [
            f"Attacked by {setting}: {', '.join(of)}; share of the attacked items that is right, and stays so."
            for setting, of in settings.items()
        ]
        return [*told, *found]

    def comparisons(self, seed: int) -> list[Comparison]:
        """Every two metrics, by the means of the columns that count."""
        block, rows = self.block, list(self.cells.values())
        if len(block.metrics) < 2 or not block.counted:
            return []
        parts = [self._draws([rows[place][name] for name in block.metrics], seed) for place in block.counted]
        least = min(draws.shape[1] for _, draws, _, _ in parts)
        values = np.mean([own for own, _, _, _ in parts], 0)
        means = np.mean([draws[:, :least] for _, draws, _, _ in parts], 0)
        n, units = sum(part[2] for part in parts), min(part[3] for part in parts)
        found = []
        for (one, a), (two, b) in combinations(enumerate(block.metrics), 2):
            gap = statistics.interval_of(float(values[one] - values[two]), means[one] - means[two], n, units=units)
            p = 1.0 if np.isnan(gap.low) else statistics.p_of_draws(means[one] - means[two])
            found.append(Comparison(block.measure, a, b, float(values[one]), float(values[two]), gap, p))
        return found

    def _draws(self, reports: "list[Report]", seed: int) -> "tuple[Array, Array, int, int]":
        """Scores (metrics,) on what all have in common, their draws (metrics, B), how many items and clusters."""
        first = reports[0]
        both = np.all([[error is None for error in report.items["error"]] for report in reports], 0)
        if self.attack is not None:
            both &= np.all([attacked_items(report) for report in reports], 0)
        if not both.any():
            raise InputError(f"{', '.join(one.path.name for one in reports)} have no readable item in common")
        clusters = first.items["cluster"][both].astype(str)
        # The same for all metrics, and another one for each set.
        own = crc32(f"{seed} {first.task} {first.content['data']['items_sha256']}".encode())
        values, draws = [], []
        for report in reports:
            items = report.items
            if self.attack is None and report.task in STATISTICS:
                statistic = next(iter(STATISTICS[report.task].values()))
                columns = (items["distance"][both], items["answer"][both])
                values.append(statistic(*columns))
                draws.append(statistics.bootstrap_draws(statistic, columns, clusters=clusters, seed=own)[:, 0])
            else:
                scores = items["score"][both] if self.attack is None else held_items(report, self.attack[1])[both]
                values.append(float(scores.mean()))
                draws.append(statistics.mean_draws(scores, clusters=clusters, seed=own))
        return np.array(values), np.array(draws), int(both.sum()), len(set(clusters))


def _threat(report: Report, norm: str, eps: str) -> "dict[str, Any] | None":
    return next((one for one in report.threats if (one["norm"], one["eps"]) == (norm, eps)), None)


def _setting(report: Report) -> dict[str, str]:
    """How it was attacked; batches move the last digits alone."""
    return {name: text for name, text in report.setting.items() if name != "batches"}


def _columns(shown: "dict[tuple[str, ...], Report]", attacked: bool) -> tuple[Column, ...]:
    """What each column is called: the set and its score, and of what is unlike in several of them whatever it takes."""
    heads = [f"{one.content['data']['name']}, {SCORES[one.task][1]}" for one in shown.values()]
    found = []
    for head, report in zip(heads, shown.values(), strict=True):
        alike = [other for name, other in zip(heads, shown.values(), strict=True) if name == head]
        kinds = [_traits(other, attacked) for other in alike]
        own = _traits(report, attacked)
        unlike = [text for name, text in own.items() if len({kind.get(name) for kind in kinds}) > 1]
        data = report.content["data"]
        rated = report.task == "quality" or "margin" in data
        origin = f"ratings {data['name']} {data.get('root')}" if rated else f"{report.task} {data['items_sha256']}"
        name = f"{head} ({', '.join(unlike)})" if unlike else head
        found.append(Column(name, data["name"], report.task, origin, data["items"]))
    return tuple(found)


def _traits(report: Report, attacked: bool) -> dict[str, str]:
    data = report.content["data"]
    margin = {"margin": f"margin {data['margin']:g}"} if "margin" in data else {}
    return {
        "preprocess": report.preprocess,
        **margin,
        "scoring": f"by {data.get('scoring')}",
        "data": f"items {data['items_sha256'][:6]}",
        **(_setting(report) if attacked else {}),
    }
