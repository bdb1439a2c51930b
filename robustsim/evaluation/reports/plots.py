"""Robust accuracy as a curve: against the radius, and against the iterations of the attack."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustsim.attacks import parse_eps
from robustsim.encoders.weights import whole_file
from robustsim.errors import InputError, MissingDependencyError
from robustsim.evaluation.reports.report import Report, labels
from robustsim.evaluation.statistics import mean_interval

_FORMATS = (".png", ".pdf", ".svg")


def plot_radii(reports: Sequence[Report], output: "str | os.PathLike[str]") -> Path:
    """Robust accuracy against the radius, a panel for each norm and a line for each metric (R-CLIP paper, Figure 7).

    Radius 0 is the accuracy without attack on the attacked items. Bands are 95 % intervals.

    Args:
        reports: runs with attacks; those of one metric, attacked in the same way on the same data, make one line.
        output: a file ending in `.png`, `.pdf` or `.svg`.

    Raises:
        InputError: no run has an attack, or another ending.
        MissingDependencyError: matplotlib is not installed.
    """
    lines: dict[str, dict[str, dict[float, dict[str, Any]]]] = {}
    runs = _attacked(reports)
    for report, label in zip(runs, _labels(runs), strict=True):
        for threat in report.threats:
            line = lines.setdefault(threat["norm"], {}).setdefault(label, {})
            line[parse_eps(threat["eps"], threat["norm"])] = threat["accuracy"]
            line.setdefault(0.0, threat["clean"])
    figure, panels = _figure(output, len(lines))
    for panel, (norm, metrics) in zip(panels, lines.items(), strict=True):
        scale = 255 if norm == "linf" else 1
        for name, line in metrics.items():
            x = sorted(line)
            ends = [[_percent(line[eps][end]) for eps in x] for end in ("value", "low", "high")]
            _line(panel, name, [eps * scale for eps in x], *ends)
        panel.set_xlabel(f"{norm} radius" + (" x 255" if norm == "linf" else ""))
    return _finish(figure, panels, output)


def plot_iterations(reports: Sequence[Report], output: "str | os.PathLike[str]") -> Path:
    """Robust accuracy against the evaluations that the attack has made (R-CLIP paper, Figure 8).

    A line for each run and radius, from the step at which each item broke: a curve that has become flat says that more
    steps would not have helped much.

    Args:
        reports: runs with attacks.
        output: as for [`plot_radii`][robustsim.evaluation.plot_radii].

    Raises:
        InputError: likewise.
        MissingDependencyError: likewise.
    """
    runs = _attacked(reports)
    figure, (panel,) = _figure(output, 1)
    for report, name in zip(runs, _labels(runs), strict=True):
        for threat in report.threats:
            eps, items = threat["eps"], report.items
            asked = [bool(one) and bad is None for one, bad in zip(items["attacked"], items["error"], strict=True)]
            clusters = items["cluster"][asked].astype(str)
            held = [one for one, taken in zip(items[f"holds {eps}"], asked, strict=True) if taken]
            queries = [one for one, taken in zip(items[f"queries {eps}"], asked, strict=True) if taken]
            # Wrong from the start: broken before the first evaluation.
            fell = np.array(
                [math.inf if one is True else 0 if one is None else count
                 for one, count in zip(held, queries, strict=True)]
            )  # fmt: skip
            most = max((int(count) for count in queries if count is not None and not math.isnan(count)), default=0)
            x = np.unique(np.append(fell[np.isfinite(fell)], (0, most))).astype(int)
            ends = [mean_interval((fell > step).astype(float), clusters=clusters) for step in x]
            label = f"{name}, {threat['norm']} {eps}"
            _line(
                panel,
                label,
                x.tolist(),
                *([100 * getattr(one, end) for one in ends] for end in ("value", "low", "high")),
                step="post",
            )
    panel.set_xlabel("evaluations by the attack")
    return _finish(figure, [panel], output)


def _percent(share: float | None) -> float:
    return math.nan if share is None else 100 * share


def _attacked(reports: Sequence[Report]) -> list[Report]:
    found = [report for report in reports if report.threats]
    if not found:
        raise InputError("none of these runs has an attack: there is no curve to draw")
    return found


def _figure(output: "str | os.PathLike[str]", panels: int) -> tuple[Any, Any]:
    if Path(output).suffix.lower() not in _FORMATS:
        raise InputError(f"{os.fspath(output)!r} ends in none of {', '.join(_FORMATS)}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError('plots need matplotlib: pip install "robustsim[evaluation]"') from error
    figure = Figure(figsize=(5.2 * panels, 3.8), layout="constrained")  # no pyplot: it keeps what it draws
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False, sharey=True)[0]


def _labels(runs: Sequence[Report]) -> list[str]:
    """The metric; and the data and the attack's setting where they are not all alike."""
    alike = all(runs[0].same_data(report) for report in runs)
    return [
        ", ".join(part for part in (metric, "" if alike else _data(report), setting) if part)
        for report, (metric, setting) in zip(runs, labels(runs), strict=True)
    ]


def _data(report: Report) -> str:
    about = report.content["data"]
    return f"{report.task} {about['name']} ({about['items_sha256'][:3]}{about['files_sha256'][:3]})"


def _line(
    panel: Any, label: str, x: Sequence[float], value: Any, low: Any, high: Any, *, step: str | None = None
) -> None:
    style = {"marker": "o", "markersize": 3} if step is None else {"drawstyle": f"steps-{step}"}
    (line,) = panel.plot(x, value, label=label, **style)
    panel.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0, step=step)


def _finish(figure: Any, panels: Sequence[Any], output: "str | os.PathLike[str]") -> Path:
    for panel in panels:
        panel.set_ylim(0, 100)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    panels[0].set_ylabel("robust accuracy, %")
    path = Path(output)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
    return path
