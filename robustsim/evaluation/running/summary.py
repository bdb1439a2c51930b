"""What a run has found, item by item and in figures."""

import time
from typing import Any

import numpy as np

from robustsim.errors import ImageError
from robustsim.evaluation import statistics
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.work import CLEAN, FOUND, Work
from robustsim.evaluation.tasks.choices import accuracies


def summary(work: Work, journal: Journal, *, seed: int) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The results, what was skipped and the times for the report, and its columns."""
    questions, task = work.task.questions, work.task
    columns: dict[str, list[Any]] = {
        "id": [question.id for question in questions],
        "group": [question.group for question in questions],
        "cluster": [question.cluster or question.id for question in questions],
        "answer": [float(question.answer) for question in questions],
        **{name: [None] * len(questions) for name in (*task.distance_names, "score", "error")},
    }
    seconds = {CLEAN: 0.0, "attack": 0.0}
    for chunk in work.chunks:
        found = journal.done[chunk.number, CLEAN]
        seconds[CLEAN] += found["seconds"]
        for row, item in enumerate(chunk.questions):
            columns["error"][item] = found["errors"].get(str(row))
            for place, name in enumerate(task.distance_names):
                if found["distances"][row] is not None:
                    columns[name][item] = found["distances"][row][place]
        if work.plan is not None:
            column = columns.setdefault("attacked", [False] * len(questions))
            for item in chunk.questions:
                column[item] = chunk.attacked
        for eps in work.parts(chunk)[1:]:
            found = journal.done[chunk.number, eps]
            seconds["attack"] += found["seconds"]
            for name in FOUND:
                column = columns.setdefault(f"{name} {eps}", [None] * len(questions))
                for row, item in enumerate(chunk.questions):
                    column[item] = found[name][row]
    read = [item for item in range(len(questions)) if columns["error"][item] is None]
    if not read:
        raise ImageError(f"not a single item could be read; the first: {columns['error'][0]}")
    asked = [questions[item] for item in read]
    distances = np.array([[columns[name][item] for name in task.distance_names] for item in read])
    for item, score in zip(read, task.scores(distances, asked).tolist(), strict=True):
        columns["score"][item] = None if np.isnan(score) else score
    arrays = {
        name: np.array([columns[name][item] for item in read], dtype=dtype)
        for name, dtype in (
            ("group", object), ("cluster", object), ("answer", float), ("score", float),
            *((name, float) for name in task.distance_names),
        )
    }  # fmt: skip
    results = task.results(arrays, seed=seed)
    if work.plan is not None:
        results["robust"] = [_robust(work, eps, columns, read, arrays, seed) for eps in work.plan.radii]
    bad = [{"id": columns["id"][item], "error": error} for item, error in enumerate(columns["error"]) if error]
    content = {
        "results": results,
        "skipped": bad,
        "passed_over": task.passed_over,
        "times": {**{f"{name}_seconds": round(value, 3) for name, value in seconds.items()}, "written": _now()},
    }
    return content, columns


def _robust(work: Work, eps: str, columns: Any, read: list[int], arrays: Any, seed: int) -> dict[str, Any]:
    """Figures under attack, over the attacked items that could be read."""
    plan, taken = work.plan, set(work.attacked)
    if plan is None:
        raise RuntimeError("nothing is planned")
    rows = np.array([row for row, item in enumerate(read) if item in taken], dtype=int)
    part = {name: column[rows] for name, column in arrays.items()}
    held, broken, flat = (
        [columns[f"{name} {eps}"][read[row]] for row in rows] for name in ("holds", "broken_by", "no_gradient")
    )
    holds = np.array([one is True for one in held], dtype=float)
    right = np.array([one is not None for one in held], dtype=float)
    if not len(holds):
        return {"norm": plan.norm, "eps": eps, "n": 0}
    return {
        "norm": plan.norm,
        "eps": eps,
        "n": len(holds),
        "clean": statistics.mean_interval(right, clusters=part["cluster"], seed=seed).to_dict(),
        **accuracies(holds, part, seed=seed),
        "broken_by": {name: broken.count(name) for name in plan.names},
        "no_gradient": flat.count(True),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
