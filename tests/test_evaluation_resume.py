"""A run that is killed, or shared between processes, ends with the report of one that was left alone."""

import json
import os
import random
import subprocess
import sys

import pytest

from robustsim.baselines import from_callable
from robustsim.data import read_odd_one_out, read_triplets
from robustsim.evaluation import AttackPlan, evaluate, load_report, odd_one_out, two_afc
from robustsim.evaluation.subjects import subject
from robustsim.images import Preprocessing
from tests.conftest import ROOT
from tests.judges import SIZE, Small, small, threes, triplets
from tests.processes import GATE, killed

pytestmark = pytest.mark.usefixtures("one_thread")

JOB = """
import torch
from robustsim.baselines import from_callable
from robustsim.data import read_triplets
from robustsim.evaluation import AttackPlan, evaluate, run, two_afc
from tests.judges import small
torch.set_num_threads(1)
task = two_afc(read_triplets({data!r}))
plan = AttackPlan(attacks=("pgd", "apgd"), eps=("1/255", "4/255"), steps=6, attacked=40)
if {gate!r}: run.write_report = lambda *arguments: gate({gate!r})
evaluate(small(pause={pause}), task, output={output!r}, attack=plan, batch_size=8)
"""


def job(data, output, pause=0.0, gate=None):
    """With a gate it never gets to writing its report."""
    return GATE + JOB.format(data=str(data), output=str(output), pause=pause, gate=gate and str(gate))


def without_times(report):
    content = {key: value for key, value in report.content.items() if key != "times"}
    content["items"] = {**content["items"]}
    return content, {name: column.tolist() for name, column in report.items.items()}


def same(a, b):
    content_a, items_a = without_times(a)
    content_b, items_b = without_times(b)
    assert content_a == content_b  # the hash of all items is in it
    assert json.dumps(items_a) == json.dumps(items_b)


def only(folder):
    (path,) = folder.glob("*.json")
    return load_report(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_killed_at_random_moments_it_ends_with_the_same_report(tmp_path, server):
    data = triplets(tmp_path / "data", 120)
    task = two_afc(read_triplets(data))
    plan = AttackPlan(attacks=("pgd", "apgd"), eps=("1/255", "4/255"), steps=6, attacked=40)
    undisturbed = evaluate(small(), task, output=tmp_path / "undisturbed", attack=plan, batch_size=8)

    moments, kept, output = random.Random(7), [0], tmp_path / "killed"
    for _ in range(4):
        slow = job(data, output, pause=0.02, gate=tmp_path / "gate")
        # From the first line that this process itself has kept on: its start is not the moment that is meant.
        killed(server, slow, lambda: journal(output) > kept[-1], tmp_path / "gate", moments.uniform(0, 0.2))
        assert not list((tmp_path / "killed").glob("*.json"))
        kept.append(journal(tmp_path / "killed"))
        assert kept[-1] > 0
    (file,) = (tmp_path / "killed").glob("*.partial/journal-0.jsonl")
    parts = [(entry["chunk"], entry["part"]) for entry in map(json.loads, file.read_text().splitlines()[:-1])]
    assert len(parts) == len(set(parts)) > 0  # what was kept is not done again
    assert server.run(job(data, output)) == 0
    same(undisturbed, only(tmp_path / "killed"))
    assert {path.suffix for path in (tmp_path / "killed").iterdir()} == {".json", ".parquet"}


def journal(folder):
    """Bytes that are kept."""
    return sum(path.stat().st_size for path in folder.glob("*.partial/journal-*.jsonl"))


@pytest.mark.parametrize("kind", ["2afc", "odd-one-out"])
@pytest.mark.parametrize("seed", range(4))
def test_cut_off_anywhere_the_journal_is_of_use(tmp_path, seed, kind, monkeypatch):
    """As after a crash of the machine: what was written last may be there in part."""
    from robustsim.evaluation import run

    if kind == "2afc":
        task = two_afc(read_triplets(triplets(tmp_path / "data", 40)))
    else:
        task = odd_one_out(read_odd_one_out(threes(tmp_path / "data", 40), scoring="share"))
    plan = AttackPlan(eps=("2/255",), steps=4, attacked=20)
    whole = evaluate(small(), task, output=tmp_path / "whole", attack=plan, batch_size=6)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_report", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small(), task, output=tmp_path / "cut", attack=plan, batch_size=6)
    monkeypatch.undo()
    (file,) = (tmp_path / "cut").glob("*.partial/journal-0.jsonl")
    size = file.stat().st_size
    end = random.Random(seed).randrange(size)
    os.truncate(file, end)
    modules = [Small(), Small()]
    metrics = [
        subject(from_callable(module, name="small", preprocessing=Preprocessing(size=SIZE))) for module in modules
    ]
    for module in modules:
        module.images = 0
    evaluate(metrics[0], task, output=tmp_path / "again", attack=plan, batch_size=6)
    same(whole, evaluate(metrics[1], task, output=tmp_path / "cut", attack=plan, batch_size=6))
    if end > size / 2:
        assert modules[1].images < 0.8 * modules[0].images  # what was kept was not done again


def test_two_processes_share_the_work(tmp_path):
    data = triplets(tmp_path / "data", 60)
    told = f"""
from pathlib import Path
from robustsim.evaluation.running.workers import Workers
Path({str(data)!r}).with_name(f"{{Workers().number}} of {{Workers().count}}").touch()
"""
    (tmp_path / "job.py").write_text(job(data, tmp_path / "two") + told)
    # What `accelerate launch` starts on several GPUs; on CPUs it would want MPI.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "job.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all((data.parent / f"{number} of 2").exists() for number in (0, 1))
    plan = AttackPlan(attacks=("pgd", "apgd"), eps=("1/255", "4/255"), steps=6, attacked=40)
    alone = evaluate(small(), two_afc(read_triplets(data)), output=tmp_path / "one", attack=plan, batch_size=8)
    same(alone, only(tmp_path / "two"))
