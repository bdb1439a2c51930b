"""Reports as tables: for a terminal, in Markdown, in LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustsim.evaluation.reports import Report, percent

#: How figures of each task that has no accuracy are headed.
_STATISTICS = {
    "average_precision": "average precision",
    "spearman": "Spearman",
    "pearson": "Pearson after logistic fit",
    "kendall": "Kendall",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what was asked of what.
        header: names of the columns, the first for metrics.
        rows: cells.
        notes: what one must know to read it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [
            f"**{self.title}**",
            "",
            f"| {' | '.join(map(_bar, self.header))} |",
            f"|---|{'---:|' * (len(self.header) - 1)}",
            *(f"| {' | '.join(map(_bar, row))} |" for row in self.rows),
            "",
            *self.notes,
        ]
        return "\n".join(lines).rstrip()

    def latex(self) -> str:
        """As LaTeX, for the package booktabs."""
        notes = " ".join(map(_tex, (f"{self.title}.", *self.notes)))
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{notes}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
            r"\toprule",
            " & ".join(map(_tex, self.header)) + r" \\",
            r"\midrule",
            *(" & ".join(map(_tex, row)) + r" \\" for row in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines)


def report_table(reports: Sequence[Report], *, groups: bool = False, interval: bool = True) -> list[Table]:
    """Tables of reports, one for each task and data set, a row for each metric.

    Args:
        reports: any; those of one metric on the same data share a row, where they do not contradict each other.
        groups: a column for each group of the data, too.
        interval: with the 95 % interval behind each figure.
    """
    sets: dict[tuple[str, str], list[Report]] = {}
    for report in reports:
        sets.setdefault((report.task, report.content["data"]["items_sha256"]), []).append(report)
    return [_table(part, groups, interval) for part in sets.values()]


def _table(reports: list[Report], groups: bool, interval: bool) -> Table:
    columns: dict[str, None] = {}
    rows: dict[tuple[str, Any], dict[str, str]] = {}
    notes: dict[str, None] = {}
    for report in reports:
        # One metric's runs, at several radii for example, make one row.
        row = rows.setdefault((report.metric, report.content["metric"]["weights_sha256"]), {})
        for name, text in _cells(report, groups, interval):
            if name in row and row[name] != text:
                row = rows[report.metric, report.path] = dict.fromkeys(row, "")
            row[name] = text
            columns[name] = None
        notes.update(dict.fromkeys(_notes(report, interval)))
    about = reports[0].content["data"]
    title = f"{reports[0].task}, {about['name']}" + (f": {about['description']}" if about.get("description") else "")
    return Table(
        title=title,
        header=("metric", *columns),
        rows=tuple((key[0], *(row.get(name, "") or "-" for name in columns)) for key, row in rows.items()),
        notes=tuple(notes),
    )


def _cells(report: Report, groups: bool, interval: bool) -> list[tuple[str, str]]:
    results, found = report.results, []
    if "accuracy" in results:
        found.append(("clean", percent(results["accuracy"], interval=interval)))
        if "mean_of_groups" in results:
            found.append(("mean of groups", percent(results["mean_of_groups"], interval=interval)))
        if groups:
            found += [(name, percent(one, interval=interval)) for name, one in results.get("groups", {}).items()]
    for name, label in _STATISTICS.items():
        if name in results:
            found.append((label, percent(results[name], interval=interval)))
            if groups:
                parts = results[name].get("groups", {}).items()
                found += [(f"{label}, {group}", percent(one, interval=interval)) for group, one in parts]
    for threat in report.threats:
        label = f"{threat['norm']} {threat['eps']}"
        found.append((label, percent(threat.get("accuracy"), interval=interval)))
        if groups:
            parts = threat.get("groups", {}).items()
            found += [(f"{label}, {name}", percent(one, interval=interval)) for name, one in parts]
    return found


def _notes(report: Report, interval: bool) -> list[str]:
    content, plan = report.content, report.content["attack"]
    kind = {"ladder": "pairs of levels ordered rightly"}.get(report.task, "items answered rightly")
    unit = f"Share of {kind}" if "accuracy" in report.results else "Figures are times 100"
    notes = [f"{unit}, in %{', with 95 % bootstrap intervals' if interval else ''}; {content['data']['items']} items."]
    if plan is not None:
        steps = "" if set(plan["attacks"]) <= {"square", "noise"} else f", {plan['steps']} steps"
        queries = f", {plan['queries']} queries" if {"square", "autoattack"} & set(plan["attacks"]) else ""
        attacked = report.threats[0]["n"]
        notes.append(
            f"Under attack ({', '.join(plan['attacks'])}{steps}{queries}; {plan['perturb']} perturbed): {attacked} "
            "items, of which those count that are right without attack, too."
        )
    if content["skipped"]:
        notes.append(f"{report.metric}: {len(content['skipped'])} items were skipped, as a picture could not be read.")
    return notes


def _bar(text: str) -> str:
    return text.replace("|", "\\|")


_SPECIAL = {**{sign: f"\\{sign}" for sign in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(sign, sign) for sign in text)
