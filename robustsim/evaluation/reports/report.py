"""Reports: one JSON for each run, and a Parquet of what was found on every item beside it."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robustsim.encoders.weights import sha256, whole_file
from robustsim.errors import InputError, MissingDependencyError
from robustsim.evaluation.statistics import Array

FORMAT = "robustsim-report/1"


@dataclass(frozen=True, eq=False)
class Report:
    """What a run has found.

    Attributes:
        path: its JSON file.
        content: what is in it.
    """

    path: Path
    content: dict[str, Any]

    @property
    def metric(self) -> str:
        """The metric's name."""
        return str(self.content["metric"]["name"])

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.content["task"])

    @property
    def results(self) -> dict[str, Any]:
        """The figures."""
        found: dict[str, Any] = self.content["results"]
        return found

    @property
    def metric_id(self) -> str:
        """Equal for the same metric: name, card or source, weights, behaviour."""
        return hashlib.sha256(json.dumps(self.content["metric"], sort_keys=True).encode()).hexdigest()

    @property
    def preprocess(self) -> str:
        """How pictures became the metric's square: `card` or `squash`; reports of older versions know only the card."""
        return str(self.content.get("preprocessing", {}).get("rule", "card"))

    @property
    def setting(self) -> dict[str, str]:
        """How decisions were attacked, but for norm and radius; nothing where they were not."""
        plan = self.content["attack"]
        if plan is None:
            return {}
        found = {"attacks": "+".join(plan["attacks"])}
        if set(plan["attacks"]) - {"square", "noise"}:
            found["steps"] = f"{plan['steps']} steps"
        if {"square", "autoattack", "autoattack-plus"} & set(plan["attacks"]):
            found["queries"] = f"{plan['queries']} queries"
        found["perturb"] = f"{plan['perturb']} perturbed"
        found["loss"] = plan["loss"]
        drawn = f", seed {self.content['seed']}"
        batches = f"batches of {self.content['batch_size']}"
        return {**found, "items": f"{self.content['attacked']} items{drawn}", "batches": batches}

    def same_data(self, other: "Report") -> bool:
        """Whether another report is on the same items of the same files, as far as names and sizes tell."""
        names = ("items_sha256", "files_sha256", "masks_files_sha256", "scoring")
        return self.task == other.task and all(
            self.content["data"].get(name) == other.content["data"].get(name) for name in names
        )

    @property
    def threats(self) -> list[dict[str, Any]]:
        """The figures under attack, one for each radius; none where no attacked item could be read."""
        return [one for one in self.results.get("robust", []) if one["n"]]

    @cached_property
    def items(self) -> dict[str, Array]:
        """What was found on each item, a column each, (n,).

        Raises:
            InputError: the Parquet file is not there, or is not the one that the report was written with.
        """
        about = self.content["items"]
        path = self.path.parent / about["file"]
        if not path.is_file() or sha256(path) != about["sha256"]:
            raise InputError(
                f"{os.fspath(path)!r} is missing, or is not the one that {self.path.name} was written with"
            )
        table = parquet().read_table(path)
        return {name: _array(name, table.column(name).to_pylist()) for name in table.column_names}


def _array(name: str, values: list[Any]) -> Array:
    """Numbers as floating point, with NaN where there is none; everything else as it is."""
    return np.array(values, dtype=float if name in ("answer", "score") or name.startswith("distance") else object)


def by_data(reports: Sequence[Report]) -> list[list[Report]]:
    """Reports on the same items together, in order of appearance."""
    sets: list[list[Report]] = []
    for report in reports:
        known = next((part for part in sets if part[0].same_data(report)), None)
        if known is None:
            sets.append([report])
        else:
            known.append(report)
    return sets


def labels(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """What tells the reports of one table or plot apart: the metric, and of the attack's setting what is not alike."""
    settings = [report.setting for report in reports if report.setting]
    unlike = [name for name in _SETTINGS if len({setting.get(name) for setting in settings}) > 1]
    return [
        (name, ", ".join(report.setting[key] for key in unlike if key in report.setting))
        for name, report in zip(metric_names(reports), reports, strict=True)
    ]


def metric_names(reports: Sequence[Report]) -> list[str]:
    """The metrics' names; behind them what tells namesakes apart, and how pictures were shown where that is unlike."""
    unlike = len({report.preprocess for report in reports}) > 1
    return [
        name + (f", {report.preprocess}" if unlike else "")
        for name, report in zip(distinct_names(reports), reports, strict=True)
    ]


def distinct_names(reports: Sequence[Report]) -> list[str]:
    """The metrics' names; behind them what tells namesakes apart."""
    ids: dict[str, set[str]] = {}
    for report in reports:
        ids.setdefault(report.metric, set()).add(report.metric_id)
    return [
        report.metric if len(ids[report.metric]) == 1 else f"{report.metric} ({report.metric_id[:6]})"
        for report in reports
    ]


_SETTINGS = ("attacks", "steps", "queries", "perturb", "loss", "items", "batches")


def parquet() -> Any:
    """Pyarrow's Parquet module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from pyarrow import parquet as module
    except ImportError as error:
        raise MissingDependencyError(
            'reports keep every item in a Parquet file: pip install "robustsim[evaluation]"'
        ) from error
    return module


def write_report(path: Path, content: dict[str, Any], columns: Mapping[str, "list[Any]"]) -> Report:
    """Write both files; the JSON comes last, so that it is there only when all is.

    Raises:
        OutputError: they cannot be written.
    """
    import pyarrow as pa

    items = path.with_suffix(".parquet")
    with whole_file(items) as temporary:
        parquet().write_table(
            pa.table({name: list(map(_writable, column)) for name, column in columns.items()}), temporary
        )
    about = {"file": items.name, "rows": len(columns["id"]), "sha256": sha256(items)}
    content = {"format": FORMAT, **content, "items": about}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return Report(path, content)


def _writable(value: Any) -> Any:
    """Text that UTF-8 can hold: a file's name may be more."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def load_report(path: "str | os.PathLike[str]") -> Report:
    """A report by its JSON file.

    Raises:
        InputError: there is none, or it is something else.
    """
    file = Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the report {os.fspath(path)!r}: {error.strerror or error}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{os.fspath(path)!r} is no report of `robustsim evaluate` ({FORMAT})")
    return Report(file, content)


def percent(figure: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    """A share with its interval, in per cent: `79.6 [77.3, 81.7]`."""
    if figure is None or figure["value"] is None or math.isnan(figure["value"]):
        return "-"
    text = f"{100 * figure['value']:.1f}"
    if interval and figure.get("low") is not None:
        text += f" [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
    return text
