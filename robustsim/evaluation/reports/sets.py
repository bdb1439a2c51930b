"""Many sets of human judgements in one: every metric on every set, and whether their means differ by chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from robustsim.errors import InputError
from robustsim.evaluation.reports.blocks import SCORES, Block, Column, Figure
from robustsim.evaluation.reports.comparison import COMPARED, Comparison, compared, holm
from robustsim.evaluation.reports.means import compare_means
from robustsim.evaluation.reports.report import Report, by_data, distinct_names
from robustsim.evaluation.reports.tables import Table, no_gradient_note, skipped_note


@dataclass(frozen=True)
class OverSets:
    """Metrics on many sets of human judgements.

    Attributes:
        blocks: figures without attack (`measure` is `clean`), and a block for each norm and radius (`linf 4/255`), each
            with `metrics`, `columns`, `figures` (a row for each metric), `counted` (the columns that count), `means`,
            `mean_ranks` and `table()`.
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
                "A and B: means over the sets that count, on items that every metric has read. Intervals by the paired "
                "bootstrap within each set; p of no difference: permutation test in each set's clusters for shares, "
                "bootstrap where a correlation or average precision counts. Where a set has fewer than five clusters "
                "there is no interval, and p by the bootstrap is 1. Holm's correction is for all comparisons of this "
                "table. The sets are taken as given: nothing is said of other sets."
            )
            rows = tuple(compared(one) for one in self.comparisons)
            found.append(Table("Differences of means over sets", COMPARED, rows, (told,)))
        return found


def over_sets(reports: Sequence[Report], *, seed: int = 0) -> OverSets:
    """One table of reports on many sets of human judgements: a row for each metric, a column for each set.

    Scores are accuracies (2AFC, odd one out), Spearman's correlation (quality) and average precision (JND). Means and
    mean ranks are over the sets for which every metric of a block has a figure; ratings and the questions that were
    made of them count once, by the questions, where set and folder are called the same in both reports. Two ways of
    showing the pictures of a set, or of attacking it, are two columns, of which the first counts.

    **The test.** The statistic of metrics A and B is the mean over the K sets that count of the difference of their
    scores, `D = 1/K sum_k (s_k(A) - s_k(B))`, on the items that every metric of the block has read (and that were
    attacked with every one). Its interval is the middle 95 % of the paired bootstrap within sets: in each draw every
    set's clusters (references; questions where there are none) are drawn with replacement, independently of the other
    sets and the same for A and B, and D is computed anew; there is none where a set has fewer than five clusters. As in
    [`compare_reports`][robustsim.evaluation.compare_reports], p is by exchanging A and B at random in each cluster
    where all scores are shares, 10,000 times, and else, which exchange cannot do for correlations, twice the share of
    draws on the other side of 0, the observation itself counted: no less than 0.002, and 1 where there is no interval.
    Over a single set interval and p are that function's. Holm's correction is for all pairs of all blocks. The sets are
    taken as they are: nothing is said of sets that are not among them.

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
    attacks = dict.fromkeys((one["norm"], one["eps"]) for report in reports for one in report.threats)
    made = [_Made(reports, attack) for attack in (None, *attacks)]
    return OverSets(
        tuple(one.block for one in made), tuple(holm([pair for one in made for pair in one.comparisons(seed)]))
    )


class _Made:
    """A block and the reports behind its figures.

    Args:
        reports: all of them.
        attack: norm and radius; None for no attack.
    """

    def __init__(self, reports: Sequence[Report], attack: tuple[str, str] | None) -> None:
        self.attack = attack
        measure = " ".join(attack or ["clean"])
        names = dict(zip((report.path for report in reports), distinct_names(reports), strict=True))
        numbers = {report.path: str(number) for number, part in enumerate(by_data(reports)) for report in part}
        # By what a column stands for (the judgements, how pictures were shown and attacked) and by metric.
        self.cells: dict[tuple[str, ...], dict[str, Report]] = {}
        for report in reports:
            name, found = names[report.path], self._figure(report)
            if found is None:
                continue
            setting = _setting(report).values() if attack else ()
            row = self.cells.setdefault((numbers[report.path], report.preprocess, *setting), {})
            known = self._figure(row.setdefault(name, report))
            if known is not None and known["value"] != found["value"]:
                both = f"{row[name].path.name} and {report.path.name}"
                raise InputError(f"{both} give {name} unlike figures for the same ({measure}): pass one of them")
        figures = {
            name: tuple(self._figure(row[name]) if name in row else None for row in self.rows)
            for name in dict.fromkeys(names.values())
            if any(name in row for row in self.rows)
        }
        # What is not defined, such as a correlation with a constant, is shown as missing.
        figures = {
            name: tuple(one if one and one["value"] is not None else None for one in figures[name]) for name in figures
        }
        nothing = [name for name, row in figures.items() if not any(row)]
        if len(nothing) < len(figures):
            figures = {name: row for name, row in figures.items() if name not in nothing}
        columns = _columns([next(iter(row.values())) for row in self.rows], attack is not None)
        notes = [f"Without any figure, and left out: {'; '.join(nothing)}."] * bool(nothing) + self._notes(columns)
        self.block = Block(measure, tuple(figures), columns, tuple(figures.values()), tuple(notes))

    @property
    def rows(self) -> list[dict[str, Report]]:
        """For each column the reports by metric."""
        return list(self.cells.values())

    def _figure(self, report: Report) -> Figure | None:
        if self.attack is None:
            found: Figure | None = report.results.get(SCORES[report.task][0])
        else:
            found = (_threat(report, self.attack) or {}).get("accuracy")
        return found

    def _notes(self, columns: Sequence[Column]) -> list[str]:
        """How answers were scored and attacked, and what was skipped or gave no gradient."""
        settings: dict[str, dict[str, None]] = {}
        by_share: list[str] = []
        found: list[str] = []
        for column, row in zip(columns, self.rows, strict=True):
            for name, report in row.items():
                whose = f"{name}, {column.name}"
                if self.attack is not None:
                    settings.setdefault(", ".join(_setting(report).values()), {})[column.name] = None
                    threat = _threat(report, self.attack) or {}
                    if threat.get("no_gradient"):
                        found.append(no_gradient_note(whose, threat))
                elif report.content["skipped"]:
                    found.append(skipped_note(whose, report))
            if self.attack is None and report.content["data"].get("scoring") == "share":
                by_share.append(column.name)
        if by_share:
            found.insert(0, f"An answer is worth the share of people who gave it: {'; '.join(by_share)}.")
        if settings:
            found.insert(0, "Share of the attacked items that is right, and stays so under attack.")
        return [*(f"Attacked by {how}: {'; '.join(names)}." for how, names in settings.items()), *found]

    def comparisons(self, seed: int) -> list[Comparison]:
        """Every two metrics, by the means of the columns that count."""
        metrics, rows = self.block.metrics, self.rows
        if len(metrics) < 2 or not self.block.counted:
            return []
        sets = [[rows[place][name] for name in metrics] for place in self.block.counted]
        return compare_means(self.block.measure, metrics, sets, self.attack and self.attack[1], seed=seed)


def _threat(report: Report, attack: tuple[str, str]) -> dict[str, Any] | None:
    return next((one for one in report.threats if (one["norm"], one["eps"]) == attack), None)


def _setting(report: Report) -> dict[str, str]:
    """How it was attacked; batches move the last digits alone."""
    return {name: text for name, text in report.setting.items() if name != "batches"}


def _columns(reports: Sequence[Report], attacked: bool) -> tuple[Column, ...]:
    """Columns by a report of each, called by set and score, and by what is unlike in those that are called the same."""
    heads = [f"{report.content['data']['name']}, {SCORES[report.task][1]}" for report in reports]
    traits = [_traits(report, attacked) for report in reports]
    found = []
    for head, report, own in zip(heads, reports, traits, strict=True):
        unlike = _unlike([other for name, other in zip(heads, traits, strict=True) if name == head])
        data = report.content["data"]
        rated = report.task == "quality" or "margin" in data
        origin = f"ratings {data['name']} {data.get('root')}" if rated else f"{report.task} {data['items_sha256']}"
        name = f"{head} ({', '.join(own[one] for one in unlike if one in own)})" if unlike else head
        found.append(Column(name, data["name"], report.task, origin, data["items"]))
    return tuple(found)


def _unlike(traits: Sequence[dict[str, str]]) -> list[str]:
    """The traits that tell some columns apart, hashes only where nothing else does."""
    found = [name for name in dict.fromkeys(chain(*traits)) if len({own.get(name) for own in traits}) > 1]
    for name in ("files", "data"):
        rest = [one for one in found if one != name]
        if len({tuple(own.get(one) for one in rest) for own in traits}) == len(traits):
            found = rest
    return found


def _traits(report: Report, attacked: bool) -> dict[str, str]:
    """What tells columns of one name apart."""
    data = report.content["data"]
    return {
        **({"margin": f"margin {data['margin']:g}"} if "margin" in data else {}),
        "scoring": f"by {data.get('scoring')}",
        "data": f"items {data['items_sha256'][:6]}",
        "files": f"pictures {str(data.get('files_sha256'))[:6]}",
        "preprocess": report.preprocess,
        **(_setting(report) if attacked else {}),
    }
