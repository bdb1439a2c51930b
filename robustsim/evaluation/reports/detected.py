"""Cells and notes of tables on detection: which class the queries of each class get, and what is flagged."""

from collections.abc import Mapping
from typing import Any

from robustsim.evaluation.reports.report import Report, percent

# The figures of another detector beside, and how they are called.
_BESIDE = {
    "grey": "by Eq. 5 on its encoder",
    "white": "its score attacked",
    "independent": "each attacked by itself",
    "independent white": "each attacked by itself, the detector's score",
    "joint": "one attack on both",
    "single": "the worst picture made",
}


def detection_cells(report: Report, groups: bool, interval: bool) -> dict[str, str]:
    """What each class of queries gets, clean and attacked: its own class, with `groups` every class."""
    found: dict[str, str] = {}
    results = report.results

    def classes(way: str, kind: str, figures: Mapping[str, Any]) -> None:
        for bank, figure in figures.items():
            if groups or bank == kind:
                found[f"{way} = {bank}"] = percent(figure, interval=interval)

    for kind, part in results["clean"].items():
        classes(kind, kind, part["classes"])
        for name, told in (("detector", "detector flags"), ("either", "either flags")):
            if name in part:
                found[f"{kind}: {told}"] = percent(part[name], interval=interval)
    several = report.content["adversarial"] and report.content["adversarial"]["attacked"] is not None
    for part in results["adversarial"]:
        for pair in part["pairs"]:
            kind, way = pair["query"], f"{pair['query']} to {pair['target']}"
            if several:
                classes(f"{way}, before", kind, pair["before"])
            aside = f"{way}, {part['norm']} {part['eps']}"
            classes(aside, kind, pair["classes"])
            for name in ("detector", "either"):
                for how, figure in pair.get(name, {}).items():
                    found[f"{aside}: {name} flags, {_BESIDE[how]}"] = percent(figure, interval=interval)
    return found


def detection_notes(report: Report, interval: bool) -> list[str]:
    """What one must know to read them."""
    content, about = report.content, report.content["detection"]
    votes = f"of most of the {about['votes']} nearest pictures" if about["votes"] > 1 else "of the nearest picture"
    bounds = ", with 95 % bootstrap intervals over queries" if interval else ""
    notes = [
        f"Share of queries that get a class, that {votes} of the banks, in %{bounds}. Queries: "
        f"{_counts(about['queries'])}; banks: {_counts(about['banks'])}; not flagged: {', '.join(about['safe'])}."
    ]
    if report.preprocess == "squash":
        notes.append("Pictures were resized whole to the metric's square, bilinear (squash).")
    if (attack := content["adversarial"]) is not None:
        which = "all queries" if attack["attacked"] is None else f"{attack['attacked']} queries of each class at most"
        notes.append(
            f"Under attack: {attack['steps']} steps of APGD towards pictures of the other class that are in no bank "
            f"({_counts(about['targets'])}), seed {content['seed']}; {which}. The attacker knows the metric, and not "
            "the banks."
        )
    if (detector := about["detector"]) is not None:
        notes.append(f"The detector is {detector['name']}, which flags from {detector['threshold']:g} on.")
    if content["skipped"]:
        notes.append(f"{report.metric}: {len(content['skipped'])} queries were skipped, as they could not be read.")
    if content["unread"]:
        count = len(content["unread"])
        notes.append(f"{report.metric}: {count} pictures of banks and targets could not be read, and were left out.")
    return notes


def _counts(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in parts.items())
