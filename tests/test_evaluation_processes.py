"""Evaluations with reports of their own, shared by processes: as one alone makes them."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from robustsim.data import detection_folders, read_retrieval
from robustsim.evaluation import evaluate_copies, evaluate_detection, evaluate_retrieval, load_report
from tests.conftest import ROOT
from tests.judges import pictures, small

pytestmark = pytest.mark.usefixtures("one_thread")

PARTS = ("bank", "queries", "targets")
JOB = """
import sys
from pathlib import Path
import torch
from robustsim.evaluation.running.workers import Workers
from tests.test_evaluation_processes import judge
torch.set_num_threads(1)
root, output = map(Path, sys.argv[1:])
judge(root, output)
(root / f"{Workers().number} of {Workers().count}").touch()
"""


def judge(root, output):
    parts = [{kind: root / part / kind for kind in ("safe", "unsafe")} for part in PARTS]
    evaluate_copies(
        small(), root / "jpg", output=output / "copies", edits={"jpeg": (50, 10), "mirror": (1,)}, rates=(0.1,),
        eps=("4/255",), steps=3, batch_size=4,
    )  # fmt: skip
    data = read_retrieval(root / "gnd.pkl")
    evaluate_retrieval(small(), data, output=output / "retrieval", eps=("4/255",), steps=3, batch_size=2)
    data = detection_folders(*parts)
    evaluate_detection(small(), data, output=output / "detection", eps=("8/255",), steps=3, targets=2, batch_size=2)


def made(output):
    found = {}
    for kind in ("copies", "retrieval", "detection"):
        (path,) = (output / kind).glob("*.json")
        report = load_report(path)
        content = {name: value for name, value in report.content.items() if name != "times"}
        found[kind] = json.dumps([content, {name: column.tolist() for name, column in report.items.items()}])
    return found


def test_two_processes_share_copies_retrieval_and_detection(tmp_path):
    pictures(tmp_path / "jpg", 12, size=40)
    for path in sorted((tmp_path / "jpg").iterdir()):
        path.rename(path.with_suffix(".jpg"))
    truths = {
        "imlist": [f"{n:02}" for n in range(9)],
        "qimlist": ["09", "10", "11"],
        "gnd": [
            {"easy": np.array([n, n + 1]), "hard": [n + 3], "junk": [n + 5], "bbx": [1.0, 2.0, 30.0, 33.0]}
            for n in range(3)
        ],
    }
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(truths))
    for place, part in enumerate(PARTS):
        for row, kind in enumerate(("safe", "unsafe")):
            pictures(tmp_path / part / kind, 5, size=40, seed=10 * place + row)
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "job.py"), str(tmp_path), str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / f"{number} of 2").exists() for number in (0, 1))
    judge(tmp_path, tmp_path / "one")
    assert made(tmp_path / "one") == made(tmp_path / "two")
