"""Reports as tables: for a terminal, in Markdown, in LaTeX."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from robustsim.evaluation.reports.detected import detection_cells, detection_notes
from robustsim.evaluation.reports.found import copies_cells, copies_notes, retrieval_cells, retrieval_notes
from robustsim.evaluation.reports.report import Report, by_data, labels, percent

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
    """Tables of reports, one for each task and data set, a row for each metric; a matrix for each report of inversion.

    Args:
        reports: any; those of one metric on the same data share a row, where they do not contradict each other.
        groups: a column for each group of the data, too.
        interval: with the 95 % interval behind each figure.
    """
    return [
        table
        for part in by_data(reports)
        for table in (
            [_matrix(report, interval) for report in part]
            if part[0].task == "inversion"
            else [_table(part, groups, interval)]
        )
    ]


def _table(reports: list[Report], groups: bool, interval: bool) -> Table:
    columns: dict[str, None] = {}
    rows: list[tuple[str, dict[str, str]]] = []
    notes: dict[str, None] = {}
    for report, (metric, setting) in zip(reports, labels(reports), strict=True):
        cells = _cells(report, setting, groups, interval)
        columns.update(dict.fromkeys(cells))
        fitting = (
            row for name, row in rows if name == metric and all(row.get(key, cells[key]) == cells[key] for key in cells)
        )
        row = next(fitting, None)
        if row is None:
            row = {}
            known = any(name == metric for name, _ in rows)
            rows.append((f"{metric} ({report.path.stem[-8:]})" if known else metric, row))
        row.update(cells)
        notes.update(dict.fromkeys(_notes(report, setting, interval)))
    return Table(
        title=_title(reports[0]),
        header=("metric", *columns),
        rows=tuple((metric, *(row.get(name, "-") for name in columns)) for metric, row in rows),
        notes=tuple(notes),
    )


def _title(report: Report) -> str:
    about = report.content["data"]
    return f"{report.task}, {about['name']}" + (f": {about['description']}" if about.get("description") else "")


def _matrix(report: Report, interval: bool) -> Table:
    """Which model finds what which model has rebuilt how similar (R-CLIP paper, Table VII)."""
    results, content = report.results, report.content
    judges: dict[str, str] = results["judges"]

    def row(label: str, part: dict[str, Any]) -> tuple[str, ...]:
        return label, *(_plain(part[judge], interval) for judge in judges)

    rows = [row(name, part) for name, part in results["matrix"].items()]
    rows += [row(f"{name}, of another photograph", part) for name, part in results["another"].items()]
    greys = [row(f"grey, as {name} is shown it", part) for name, part in results["grey"].items()]
    rows += [("grey", *greys[0][1:])] if len({one[1:] for one in greys}) == 1 else greys
    search, reached = content["inversion"], results["reached"]
    bounds = ", with 95 % bootstrap intervals" if interval else ""
    notes = [
        f"Mean cosine similarity{bounds} over {next(iter(reached.values()))['n']} photographs, of each photograph and "
        "what was rebuilt from its embedding alone by the model of the row, in the eyes of the model of the column; "
        f"{search['steps']} steps of APGD, radius {search['radius']:g}, seed {content['seed']}.",
        "No sign of anything: what was rebuilt of another photograph, and a grey picture.",
    ]
    if "distance" in judges.values():
        notes.append("A column of distances is in its judge's own units: smaller is nearer.")
    told = ", ".join(f"{name} {_plain(one, False)}" for name, one in reached.items())
    notes.append(f"Before what was rebuilt is rounded to 8 bit, its model finds it similar by: {told}.")
    if content["skipped"]:
        notes.append(f"{len(content['skipped'])} photographs were skipped, as they could not be read.")
    header = [name + (", distance" if measure == "distance" else "") for name, measure in judges.items()]
    return Table(_title(report), ("generated with", *header), tuple(rows), tuple(notes))


def _plain(figure: dict[str, Any] | None, interval: bool) -> str:
    """A number with its interval, in its own unit."""
    if figure is None:
        return "-"
    text = f"{figure['value']:.3f}"
    if interval and figure["low"] is not None:
        text += f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return text


def _cells(report: Report, setting: str, groups: bool, interval: bool) -> dict[str, str]:
    results = report.results
    if report.task in _OWN:
        return _OWN[report.task][0](report, groups, interval)
    found: dict[str, Any] = {}
    if "accuracy" in results:
        found["clean"] = results["accuracy"]
        if "mean_of_groups" in results:
            found["mean of groups"] = results["mean_of_groups"]
        if groups:
            found.update(results.get("groups", {}))
    for name, label in _STATISTICS.items():
        if name in results:
            found[label] = results[name]
            if groups:
                parts = {"mean of groups": results[name].get("mean_of_groups"), **results[name].get("groups", {})}
                found.update({f"{label}, {group}": one for group, one in parts.items()})
    aside = f" ({setting})" if setting else ""
    for place, threat in enumerate(report.threats):
        if not place:
            found[f"before attack{aside}"] = threat.get("clean")
        label = f"{threat['norm']} {threat['eps']}{aside}"
        found[label] = threat.get("accuracy")
        if groups:
            found.update({f"{label}, {name}": one for name, one in threat.get("groups", {}).items()})
    return {name: percent(one, interval=interval) for name, one in found.items()}


def _attention(report: Report, groups: bool, interval: bool) -> dict[str, str]:
    found = {}
    for part in (report.results["clean"], *report.results["adversarial"]):
        aside = f", {part['norm']} {part['eps']}" if "eps" in part else ""
        for name, label in (("tga", "TGA"), ("comp_tga", "Comp-TGA")):
            found[f"{label}{aside}"] = _plain(part[name], interval)
            if groups:
                of_classes = part[name]["groups"].items()
                found.update({f"{label}{aside}, {group}": _plain(one, interval) for group, one in of_classes})
    return found


def _notes(report: Report, setting: str, interval: bool) -> list[str]:
    content = report.content
    if report.task in _OWN:
        return _OWN[report.task][1](report, interval)
    what = {
        "ladder": "Share of pairs of levels ordered rightly, in %",
        "jnd": "Figures are times 100",
        "quality": "Figures are times 100",
    }.get(report.task, "Share of items answered rightly, in %")
    if content["data"].get("scoring") == "share":
        what = "Mean share of people who gave the metric's answer, in %"
    bounds = ", with 95 % bootstrap intervals" if interval else ""
    notes = [f"{what}{bounds}; {content['data']['items']} items."]
    if report.preprocess == "squash":
        notes.append(
            "Pictures were resized whole to the metric's square, bilinear (squash), whatever its card says otherwise."
        )
    if report.setting:
        decision = {"ladder": "one pair of levels each", "2afc": "the majority's choice"}.get(
            report.task, "the odd one"
        )
        named = f", {setting}" if setting else ""
        told = [text for name, text in report.setting.items() if name != "batches"]
        notes.append(
            f"Under attack{named}: {', '.join(told)}; share of them that is right ({decision}) "
            "before the attack, and that is right and stays so under it."
        )
    notes += [no_gradient_note(report.metric, threat) for threat in report.threats if threat.get("no_gradient")]
    if content["skipped"]:
        notes.append(skipped_note(report.metric, report))
    return notes


def no_gradient_note(whose: str, threat: dict[str, Any]) -> str:
    """That a figure under attack says little."""
    return (
        f"{whose}, {threat['norm']} {threat['eps']}: {threat['no_gradient']} of the items that hold gave the attack no "
        "gradient, so that they hold says little: add the attack square."
    )


def skipped_note(whose: str, report: Report) -> str:
    """How many items a report does without."""
    return f"{whose}: {len(report.content['skipped'])} items were skipped, as a picture could not be read."


def _attention_notes(report: Report, interval: bool) -> list[str]:
    content = report.content
    read = report.results["clean"]["tga"]["n"]
    bounds = ", with 95 % bootstrap intervals over classes" if interval else ""
    notes = [f"Mean soft IoU of the attention to a picture's class with its mask{bounds}; {read} pictures."]
    if (attack := content["adversarial"]) is not None:
        notes.append(
            f"Adversarial examples: {attack['steps']} steps of PGD on the cross-entropy of the zero-shot "
            f"classification among the folder's classes, seed {content['seed']}."
        )
        for part in (report.results["clean"], *report.results["adversarial"]):
            under = f"under {part['norm']} {part['eps']}" if "eps" in part else "without attack"
            notes.append(
                f"{report.metric} classifies {percent(part['accuracy'], interval=interval)} % rightly {under}."
            )
    if content["skipped"]:
        notes.append(
            f"{report.metric}: {len(content['skipped'])} pictures were skipped: they or their masks could not be read."
        )
    return notes


#: Cells and notes of tasks whose figures are of a form of their own.
_OWN: dict[str, tuple[Callable[[Report, bool, bool], dict[str, str]], Callable[[Report, bool], list[str]]]] = {
    "attention": (_attention, _attention_notes),
    "copies": (copies_cells, copies_notes),
    "detection": (detection_cells, detection_notes),
    "retrieval": (retrieval_cells, retrieval_notes),
}


def _bar(text: str) -> str:
    return text.replace("|", "\\|")


_SPECIAL = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(sign, sign) for sign in text)
