"""Run a task on a metric: one pass over the questions, continued after any interruption, to the same figures."""

import os
from typing import Any

from robustsim.data.items import Preprocess
from robustsim.errors import InputError
from robustsim.evaluation.reports.report import Report, load_report, parquet, write_report
from robustsim.evaluation.running.identity import identify
from robustsim.evaluation.running.journal import Journal
from robustsim.evaluation.running.place import place_of
from robustsim.evaluation.running.plan import AttackPlan
from robustsim.evaluation.running.summary import summary
from robustsim.evaluation.running.work import Work
from robustsim.evaluation.running.workers import Workers
from robustsim.evaluation.subjects import subject
from robustsim.evaluation.tasks.choices import Task


def evaluate(
    metric: Any,
    task: Task,
    *,
    output: "str | os.PathLike[str]",
    attack: AttackPlan | None = None,
    seed: int = 0,
    batch_size: int = 32,
    preprocess: Preprocess | None = None,
    restart: bool = False,
    progress: bool = False,
) -> Report:
    """Judge a metric, and write a report.

    Each picture is encoded once. What is done is kept in a folder beside the report, its name ending in `.partial`;
    the same call continues from there, and one whose report is there already returns that. Started by `accelerate
    launch`, the processes share the work.

    Args:
        metric: a [`RobustSim`][robustsim.RobustSim], a baseline, or what
            [`load_metric`][robustsim.evaluation.load_metric] returned.
        task: see `robustsim.evaluation.tasks.questions` and
            [`distortion_ladder`][robustsim.evaluation.distortion_ladder].
        output: a folder for reports, made if it is not there.
        attack: also attack the metric's right decisions.
        seed: of the draw of attacked items, of the attacks and of the resampling.
        batch_size: pictures per encoding, and items per attack.
        preprocess: how a file becomes the metric's square, which attacks change too: `card` as the metric's card (or
            the baseline) says, `squash` whole and bilinear; what the task states if not given. Another one is another
            run.
        restart: forget what an earlier run has done.
        progress: show progress on standard error.

    Returns:
        The report.

    Raises:
        InputError: a task that cannot be attacked in that way; an unknown `preprocess`; a metric that does not give one
            distance for each pair.
        ObjectiveError: a metric that gives NaN or infinity.
        ImageError: not a single item could be read.
        OutputError: the folder cannot be written, or another process is at work on the same run.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet()  # say now what would be missing at the end
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    if attack is not None:
        task.check_attack(attack.perturb)
    how = task.preprocess if preprocess is None else preprocess
    one, workers = subject(metric).seeing(how), Workers()
    work = Work(one, task, attack, seed, batch_size)
    plan = None if attack is None else {**attack.to_dict(), "perturb": work.perturb}
    identity = identify(one, task, plan, preprocess=how, attacked=len(work.attacked), seed=seed, batch_size=batch_size)
    path, folder, is_done = place_of(output, identity, workers, restart=restart)
    if is_done:
        return load_report(path)
    workers.check(one.name, one.device)
    with Journal(folder, identity, worker=workers.number) as journal:
        work.do(journal, workers, progress and workers.is_main)
        workers.wait()
        if workers.is_main:
            journal.read_all()
            work.check(journal)
            content, columns = summary(work, journal, seed=seed)
            write_report(path, {**identity, **content}, columns)
        workers.wait()
        if workers.is_main:
            journal.remove()
    return load_report(path)
