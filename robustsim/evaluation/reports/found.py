"""Cells and notes of tables on what was found: by queries in a database, and by copies of photographs."""

from typing import Any

from robustsim.evaluation.reports.report import Report, percent

# Of attacks, which are not rounded.
_FLOATS = (
    "Attacked pictures are judged as floats, not rounded to 8 bits: no 8-bit file holds a linf change below 1/255."
)


def retrieval_cells(report: Report, groups: bool, interval: bool) -> dict[str, str]:
    """Mean average precision of each protocol, clean and attacked; with `groups` precision at k, too."""
    found: dict[str, str] = {}
    for part in (report.results["clean"], *report.results["adversarial"]):
        aside = f", {part['norm']} {part['eps']}" if "eps" in part else ""
        for protocol in report.content["protocols"]:
            figures: dict[str, Any] = part[protocol]
            for name, figure in figures.items():
                if groups or name == "map":
                    label = "mAP" if name == "map" else f"mP{name[1:]}"
                    found[f"{label} {protocol}{aside}"] = percent(figure, interval=interval)
    return found


def retrieval_notes(report: Report, interval: bool) -> list[str]:
    """What one must know to read them."""
    content = report.content
    counts = {
        protocol: (report.results["clean"][protocol]["map"] or {"n": 0})["n"] for protocol in content["protocols"]
    }
    told = ", ".join(f"{count} {protocol}" for protocol, count in counts.items())
    bounds = ", with 95 % bootstrap intervals over queries" if interval else ""
    notes = [f"Mean average precision in %{bounds}; queries that have something to be found: {told}."]
    if report.preprocess == "squash":
        notes.append("Pictures were resized whole to the metric's square, bilinear (squash).")
    if (attack := content["adversarial"]) is not None:
        notes.append(
            f"Attacked queries: {attack['steps']} steps of APGD away from the query's own embedding, seed "
            f"{content['seed']}; the attacker knows nothing of the database."
        )
        notes.append(_FLOATS)
    if content["skipped"]:
        notes.append(f"{report.metric}: {len(content['skipped'])} queries were skipped, as they could not be read.")
    if content["unread"]:
        count = len(content["unread"])
        notes.append(f"{report.metric}: {count} pictures of the database could not be read, and count as not found.")
    return notes


def copies_cells(report: Report, groups: bool, interval: bool) -> dict[str, str]:
    """The share of copies that are found at each rate, clean and attacked; with `groups` by edit and amount, too."""
    found: dict[str, str] = {}
    results = report.results
    for part in (results["clean"], *results["adversarial"]):
        aside = f", {part['norm']} {part['eps']}" if "eps" in part else ""
        for limit in results["limits"]:
            rate = f"{limit['rate']:g}"
            if aside:
                found[f"at {rate}, before attack"] = percent(part[rate]["before"], interval=interval)
            found[f"at {rate}{aside}"] = percent(part[rate]["all"], interval=interval)
            if groups:
                edits = part[rate]["edits"].items()
                found.update({f"at {rate}{aside}, {edit}": percent(one, interval=interval) for edit, one in edits})
    return found


def copies_notes(report: Report, interval: bool) -> list[str]:
    """What one must know to read them."""
    content, metric = report.content, report.metric
    edits = content["copies"]["edits"]
    bounds = ", with 95 % bootstrap intervals over photographs, thresholds included" if interval else ""
    notes = [
        f"Share of edited copies that are found, in %{bounds}; {sum(map(len, edits.values()))} copies of each of "
        f"{content['data']['items'] - len(content['skipped'])} photographs: {', '.join(edits)}."
    ]
    if report.preprocess == "squash":
        notes.append("Pictures were resized whole to the metric's square, bilinear (squash).")
    for limit in report.results["limits"]:
        told = f"{metric}, rate {limit['rate']:g}: threshold {limit['distance']:.4f}, {limit['within']} of "
        told += (
            f"{limit['pairs']:,} pairs of different photographs are nearer; at most {limit['rate_bound']:.1e} (95 %)"
        )
        if not limit["supported"]:
            told += ". So few pairs cannot say that rate: the threshold is the nearest of them"
        notes.append(told + ".")
    if (attack := content["adversarial"]) is not None:
        notes.append(
            f"Under attack: {attack['steps']} steps of APGD away from the photograph, seed {content['seed']}; copies "
            f"of {content['attacked']} photographs, whose share before the attack stands beside."
        )
        notes.append(_FLOATS)
    if content["skipped"]:
        notes.append(f"{metric}: {len(content['skipped'])} photographs were skipped, as they could not be read.")
    return notes
