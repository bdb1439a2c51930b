"""Metrics by sets of judgements: figures without attack, or those under one, their means and mean ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from robustsim.evaluation.reports.report import percent
from robustsim.evaluation.reports.tables import Table
from robustsim.evaluation.statistics import Array

Figure: TypeAlias = Mapping[str, Any]

#: For each task on human judgements: its figure in a report, and how it is headed.
SCORES = {
    "2afc": ("accuracy", "2AFC %"),
    "odd-one-out": ("accuracy", "odd-one-out %"),
    "jnd": ("average_precision", "average precision x 100"),
    "quality": ("spearman", "Spearman x 100"),
}


@dataclass(frozen=True)
class Column:
    """A set of judgements, by one score.

    Attributes:
        name: its head: the set and the score, and what tells it from others of the same set.
        set: the set's name.
        task: what was asked.
        origin: equal for columns of the same judgements, such as ratings and the questions made of them.
        items: how many were asked.
    """

    name: str
    set: str
    task: str
    origin: str
    items: int


@dataclass(frozen=True)
class Block:
    """Figures of one measure, a row for each metric that has any and a column for each set.

    Attributes:
        measure: `clean`, `linf 4/255`, ...
        metrics: the rows.
        columns: the sets.
        figures: a value in [-1, 1] with `low`, `high` and `n` for each row and column; None where there is none.
        notes: what one must know to read them.
    """

    measure: str
    metrics: tuple[str, ...]
    columns: tuple[Column, ...]
    figures: tuple[tuple[Figure | None, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def common(self) -> tuple[int, ...]:
        """The columns for which every row has a figure."""
        return tuple(place for place in range(len(self.columns)) if all(row[place] is not None for row in self.figures))

    @property
    def counted(self) -> tuple[int, ...]:
        """Those of them that means and ranks are over: one for the same judgements, choices before correlations."""
        first: dict[str, int] = {}
        for place in sorted(self.common, key=lambda place: self.columns[place].task == "quality"):
            first.setdefault(self.columns[place].origin, place)
        return tuple(sorted(first.values()))

    @property
    def values(self) -> Array:
        """Of the columns that are counted, (rows, counted)."""
        found = [[row[place]["value"] for place in self.counted] for row in self.figures]  # type: ignore[index]
        return np.array(found, dtype=float).reshape(len(self.figures), -1)

    @property
    def means(self) -> "list[float | None]":
        """The mean of each row's counted figures; None where nothing is counted."""
        return list(self.values.mean(1).tolist()) if self.counted else [None] * len(self.metrics)

    @property
    def mean_ranks(self) -> "list[float | None]":
        """The mean of each row's ranks in the counted columns; None where nothing is counted."""
        return list(mean_ranks(self.values).tolist()) if self.counted else [None] * len(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "measure": self.measure,
            "columns": [
                {
                    **{name: getattr(column, name) for name in ("name", "set", "task", "items")},
                    "score": SCORES[column.task][1],
                    "counted": place in self.counted,
                }
                for place, column in enumerate(self.columns)
            ],
            "rows": [
                {"metric": metric, "figures": [one and dict(one) for one in row], "mean": mean, "mean_rank": rank}
                for metric, row, mean, rank in zip(self.metrics, self.figures, self.means, self.mean_ranks, strict=True)
            ],
            "notes": list(self.notes),
        }

    def table(self, *, interval: bool = True) -> Table:
        """As text."""
        rows = [
            (
                metric,
                *(percent(one, interval=interval) for one in row),
                "-" if mean is None else f"{100 * mean:.1f}",
                "-" if rank is None else f"{rank:.2f}",
            )
            for metric, row, mean, rank in zip(self.metrics, self.figures, self.means, self.mean_ranks, strict=True)
        ]
        bounds = ", with 95 % bootstrap intervals" if interval else ""
        what = "Figures are in %" if {"2afc", "odd-one-out"} & {column.task for column in self.columns} else ""
        times = "correlations and average precision times 100"
        if {"jnd", "quality"} & {column.task for column in self.columns}:
            what = f"{what}, {times}" if what else f"Figures are {times}"
        return Table(
            title=f"Sets of human judgements, {self.measure}",
            header=("metric", *(column.name for column in self.columns), "mean", "mean rank"),
            rows=tuple(rows),
            notes=(f"{what}{bounds}.", *self._said(), *self.notes),
        )

    def _said(self) -> list[str]:
        """Which columns means and ranks are over, and why not the others."""
        counted, common = self.counted, self.common
        if not counted:
            return ["There is no set that every metric has a figure for, and so no mean and no rank."]
        named = [self.columns[place].name for place in counted]
        found = [
            f"Mean, and mean rank (1 is best, equal ones share theirs), are over {len(counted)} of {len(self.columns)} "
            f"columns: {'; '.join(named)}."
        ]
        missing = [column.name for place, column in enumerate(self.columns) if place not in common]
        again = [self.columns[place].name for place in common if place not in counted]
        if missing:
            found.append(f"Left out of both, as not every metric has a figure: {'; '.join(missing)}.")
        if again:
            found.append(f"Left out of both, as the same judgements are counted already: {'; '.join(again)}.")
        if len({self.columns[place].task for place in counted}) > 1:
            found.append("The mean is over scores of several kinds.")
        return found


def mean_ranks(values: "Array | Sequence[Sequence[float]]") -> Array:
    """The mean rank of each row: its ranks in the columns, 1 for the highest, equal ones sharing the mean of theirs.

    Args:
        values: (rows, columns).
    """
    table = np.asarray(values, dtype=float)
    above = (table[None] > table[:, None]).sum(1)
    equal = (table[None] == table[:, None]).sum(1)  # itself among them
    return np.asarray((1 + above + (equal - 1) / 2).mean(1))
