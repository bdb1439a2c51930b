"""Where a run writes: its report, and until then what is done."""

import os
from pathlib import Path
from typing import Any

from robustsim.evaluation.running.identity import stem
from robustsim.evaluation.running.journal import discard
from robustsim.evaluation.running.workers import Workers


def place_of(
    output: "str | os.PathLike[str]", identity: "dict[str, Any]", workers: Workers, *, restart: bool
) -> tuple[Path, Path, bool]:
    """The file of a run's report, the folder that keeps what is done of it, and whether the report is there already.

    Args:
        output: the folder for reports.
        identity: what the run depends on.
        workers: the processes that share it, all of which call this.
        restart: forget what earlier runs have done, their report included.
    """
    path = Path(output) / f"{stem(identity)}.json"
    folder = path.with_suffix(".partial")
    if restart and workers.is_main:
        path.unlink(missing_ok=True)
        discard(folder)
    workers.wait()
    is_done = path.exists() and path.with_suffix(".parquet").exists()
    if is_done and workers.is_main:
        discard(folder)  # of a run that was killed after its report was written
    return path, folder, is_done
