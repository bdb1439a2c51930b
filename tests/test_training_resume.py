"""A run that is stopped or killed ends with the weights of one that was left alone, bit for bit."""

import json
import os
import random
import signal
import threading

import pytest
import torch
from filelock import FileLock
from torch import nn

from robustsim.errors import CorruptFileError, OutputError, TrainingError
from robustsim.training import Stopped, finetune, train
from robustsim.training.loop import loop as loops
from robustsim.training.loop.log import Log, read_log
from robustsim.training.loop.state import find_checkpoints, read_checkpoint
from tests import processes, trainings
from tests.judges import triplets
from tests.processes import GATE
from tests.trainings import finetune_recipe, pictures, recipe, same, weights

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"progress": False, "tensorboard": False, "cpu": True}
# With a gate it has pauses, so that there is time to be killed in, and it never ends.
JOB = (
    GATE
    + """
import time
from torch import nn
from robustsim.training import run
from tests import trainings
from robustsim.training.loop.loop import Loop
class Pause(nn.Module): forward = lambda self, x: (time.sleep({pause}), x)[1]
if {gate!r}: Loop.run = lambda self, told=Loop.run: (told(self), gate({gate!r}))
setattr(*trainings.use(lambda: trainings.encoder(Pause())))
run.{verb}(trainings.{recipe}(**{changes}), {data!r}, {output!r}, cpu=True, progress=False, tensorboard=False)
"""
)

WAYS = {
    "plain": {"steps": 30, "checkpoints": {"every": 4}},
    # Eleven images are left to train on, so a batch of four is of two passes through them.
    "average, parts": {"steps": 30, "checkpoints": {"every": 7}, "ema": 0.9, "accumulate": 2},
    "by time, momentum": {
        "steps": 30,
        "checkpoints": {"minutes": 1e-3},
        "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9},
    },
    "by the size of each tensor": {
        "steps": 30,
        "checkpoints": {"every": 4},
        "optimizer": {"lr": 1e-2, "relative": True},
    },
}


@pytest.fixture(autouse=True)
def _interruptible():
    """A shell's background jobs ignore SIGINT, and so does a training in one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def data(tmp_path):
    return pictures(tmp_path / "data", 14)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(*trainings.use())


def go(verb, output, data, changes, pause=0.0, gate=None):
    """The job, for the server."""
    name, gate = "recipe" if verb == "train" else "finetune_recipe", gate and str(gate)
    words = {"changes": changes, "data": str(data), "output": str(output), "pause": pause, "gate": gate}
    return JOB.format(verb=verb, recipe=name, **words)


def steps(output, kind="train"):
    return [entry["step"] for entry in read_log(output) if entry["kind"] == kind]


def without_times(output):
    free = ("seconds", "images_per_second", "triplets_per_second")
    return [{key: value for key, value in entry.items() if key not in free} for entry in read_log(output)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path, data, server, way):
    changes, output, moments = WAYS[way], tmp_path / "killed", random.Random(way)
    train(recipe(**changes), data, tmp_path / "undisturbed", **QUIET)
    for _ in range(4):
        killed(server, "train", output, data, changes, 0.01, moments.uniform(0, 0.15))
        assert not (output / "model.safetensors").exists()
    assert server.run(go("train", output, data, changes)) == 0
    assert same(weights(output), weights(tmp_path / "undisturbed"))
    assert without_times(output) == without_times(tmp_path / "undisturbed")
    assert (steps(output), steps(output, "validation")) == ([10, 20, 30], [6, 12, 18, 24, 30])
    assert not list(output.rglob("*.part")) + list(output.rglob("*tmp*"))  # what was being written when it was killed


def killed(server, verb, output, data, changes, pause, moment):
    """A run that is killed a moment after its first checkpoint: its start is not what is meant."""
    before, gate = find_checkpoints(output)[-1:], output.with_name("gate")
    job = go(verb, output, data, changes, pause, gate)
    processes.killed(server, job, lambda: find_checkpoints(output)[-1:] != before, gate, moment)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_killed_fine_tuning_on_judgements_ends_with_the_same_weights(tmp_path, server):
    data, output = triplets(tmp_path / "data", 40, images=40), tmp_path / "killed"
    changes = {"steps": 30, "checkpoints": {"every": 3}}
    finetune(finetune_recipe(**changes), data, tmp_path / "undisturbed", **QUIET)
    for _ in range(2):
        killed(server, "finetune", output, data, changes, 0.05, 0)
    assert server.run(go("finetune", output, data, changes)) == 0
    assert same(weights(output), weights(tmp_path / "undisturbed"))
    assert without_times(output) == without_times(tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_step_with_everything_saved(tmp_path, data, number, monkeypatch):
    """And it goes on to the same bits, with dropout too."""
    dropping = trainings.use(lambda: trainings.encoder(nn.Dropout(0.3)))
    monkeypatch.setattr(*dropping)
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    train(recipe(), data, tmp_path / "undisturbed", **QUIET)
    with_signal(monkeypatch, 7, number)
    with pytest.raises(Stopped, match=rf"stopped by {number.name} after step 7; the same command goes on") as stopped:
        train(recipe(), data, tmp_path / "out", **QUIET)
    assert (stopped.value.step, stopped.value.signal) == (7, number)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert find_checkpoints(tmp_path / "out")[-1].name == "step-000000007.safetensors"
    monkeypatch.undo()
    monkeypatch.setattr(*dropping)
    train(recipe(), data, tmp_path / "out", **QUIET)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "undisturbed"))
    assert without_times(tmp_path / "out") == without_times(tmp_path / "undisturbed")


def with_signal(monkeypatch, step, *numbers):
    """Send signals to this process in a step."""
    told = loops.Loop._step

    def one(self, batches, at):
        seen = told(self, batches, at)
        if at + 1 == step:
            for number in numbers:
                signal.raise_signal(number)
        return seen

    monkeypatch.setattr(loops.Loop, "_step", one)


def test_who_presses_ctrl_c_twice_does_not_wait(tmp_path, data, monkeypatch):
    with_signal(monkeypatch, 7, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), data, tmp_path / "out", **QUIET)
    assert find_checkpoints(tmp_path / "out")[-1].name == "step-000000005.safetensors"


def test_a_signal_during_the_validation_does_not_wait_for_its_end(tmp_path, data, monkeypatch):
    from robustsim.training.tasks.adversarial import Adversarial

    judged = []
    told = Adversarial._judge

    def judge(self, *arguments):
        judged.append(1)
        if len(judged) == 1:
            signal.raise_signal(signal.SIGTERM)
        return told(self, *arguments)

    monkeypatch.setattr(Adversarial, "_judge", judge)
    monkeypatch.setattr("robustsim.training.tasks.adversarial._CHUNK", 1)
    with pytest.raises(Stopped) as stopped:
        train(recipe(), data, tmp_path / "out", **QUIET)
    assert (stopped.value.step, len(judged), steps(tmp_path / "out", "validation")) == (6, 1, [])
    train(recipe(), data, tmp_path / "out", **QUIET)
    assert (len(judged), steps(tmp_path / "out", "validation")) == (1 + 3 + 3, [6, 12])


def test_signals_that_the_process_ignores_stay_ignored(tmp_path, data, monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with_signal(monkeypatch, 7, signal.SIGTERM)
        train(recipe(), data, tmp_path / "out", **QUIET)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_runs_in_another_thread_too(tmp_path, data):
    """Where no handler of signals can be set."""
    thread = threading.Thread(target=train, args=(recipe(), data, tmp_path / "out"), kwargs=QUIET)
    thread.start()
    thread.join()
    assert weights(tmp_path / "out")


# --- checkpoints


def stop_after(monkeypatch, step):
    with_signal(monkeypatch, step, signal.SIGTERM)


def test_checkpoints_are_written_by_steps_and_the_newest_kept(tmp_path, data):
    train(recipe(steps=13, checkpoints={"every": 3, "keep": 3}), data, tmp_path / "out", **QUIET)
    assert [path.name for path in find_checkpoints(tmp_path / "out")] == [
        f"step-{step:09}.safetensors" for step in (9, 12, 13)
    ]


def test_checkpoints_are_written_by_time(tmp_path, data):
    train(recipe(steps=3, checkpoints={"minutes": 1e-9, "keep": 9}), data, tmp_path / "all", **QUIET)
    train(recipe(steps=3, checkpoints={"keep": 9}), data, tmp_path / "none", **QUIET)
    assert [len(find_checkpoints(tmp_path / name)) for name in ("all", "none")] == [3, 1]


def damage(path):
    os.truncate(path, path.stat().st_size // 2)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path, data, monkeypatch):
    train(recipe(), data, tmp_path / "undisturbed", **QUIET)
    stop_after(monkeypatch, 8)
    with pytest.raises(Stopped):
        train(recipe(), data, tmp_path / "out", **QUIET)
    monkeypatch.undo()
    monkeypatch.setattr(*trainings.use())
    damage(find_checkpoints(tmp_path / "out")[-1])
    train(recipe(), data, tmp_path / "out", **QUIET)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "undisturbed"))
    (note,) = [entry for entry in read_log(tmp_path / "out") if entry["kind"] == "note"]
    assert note["step"] == 5
    assert "step-000000008.safetensors' is no whole checkpoint" in note["text"]
    assert "goes on from step 5" in note["text"]
    assert len(list((tmp_path / "out" / "checkpoints").glob("*.damaged"))) == 1
    train(recipe(), data, tmp_path / "out", restart=True, **QUIET)
    assert not list((tmp_path / "out" / "checkpoints").glob("*.damaged"))


def test_what_was_being_written_when_it_was_killed_is_removed(tmp_path, data, monkeypatch):
    stop_after(monkeypatch, 8)
    with pytest.raises(Stopped):
        train(recipe(), data, tmp_path / "out", **QUIET)
    monkeypatch.undo()
    monkeypatch.setattr(*trainings.use())
    checkpoints = tmp_path / "out" / "checkpoints"
    left = [
        checkpoints / ".step-000000010.safetensors.77-ab12.part",
        checkpoints / ".tmpAb12Cd",  # safetensors' own
        tmp_path / "out" / ".tmpAb12Cd",
        tmp_path / "out" / ".log.jsonl.77-ab12.part",
    ]
    mine = [tmp_path / "out" / ".mine.part", tmp_path / "out" / ".tmp-of-mine"]
    for path in left + mine:
        path.write_text("half")
    train(recipe(), data, tmp_path / "out", **QUIET)
    assert [path for path in left + mine if path.exists()] == mine


def test_where_no_checkpoint_is_whole_it_says_what_to_do(tmp_path, data, monkeypatch):
    stop_after(monkeypatch, 8)
    with pytest.raises(Stopped):
        train(recipe(), data, tmp_path / "out", **QUIET)
    for path in find_checkpoints(tmp_path / "out"):
        damage(path)
    with pytest.raises(CorruptFileError, match=r"is no whole checkpoint .*no other is left: begin anew with restart"):
        train(recipe(), data, tmp_path / "out", **QUIET)


def test_a_disk_that_is_full_ends_it_and_leaves_older_checkpoints(tmp_path, data, monkeypatch):
    import safetensors.torch

    written = []
    told = safetensors.torch.save_file

    def save(tensors, path, metadata=None):
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return told(tensors, path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", save)
    with pytest.raises(OutputError, match=r"cannot write .*step-000000010.safetensors.*No space left"):
        train(recipe(), data, tmp_path / "out", **QUIET)
    (path,) = find_checkpoints(tmp_path / "out")
    assert read_checkpoint(path).step == 5
    assert not list((tmp_path / "out").rglob("*.part"))
    train(recipe(), data, tmp_path / "out", **QUIET)
    assert weights(tmp_path / "out")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk here")
def test_a_log_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    log = Log(tmp_path, 0, 10, 1, "image", tensorboard=False, progress=False)
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115, PTH123 - the log closes it
    with pytest.raises(OutputError, match=r"cannot write .*log.jsonl.*No space left"):
        log.write("train", 1, {"loss": 1.0})
    log.close()


# --- folders


def test_a_finished_run_called_again_does_nothing_and_keeps_the_result(tmp_path, data, monkeypatch):
    out = train(recipe(ema=0.5), data, tmp_path / "out", progress=False, cpu=True)
    before, log = weights(out), (out / "log.jsonl").read_text()
    files = sorted(path.relative_to(out) for path in out.rglob("*"))
    monkeypatch.setattr(loops.Loop, "_step", lambda *arguments: pytest.fail("a step"))
    train(recipe(ema=0.5), data, out, progress=False, cpu=True)
    assert same(weights(out), before)
    assert (out / "log.jsonl").read_text() == log
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == files


def test_the_card_can_be_corrected_afterwards(tmp_path, data, monkeypatch):
    out = train(recipe(), data, tmp_path / "out", **QUIET)
    monkeypatch.setattr(loops.Loop, "_step", lambda *arguments: pytest.fail("a step"))
    train(recipe(license="CC-BY-4.0", title="better"), data, out, **QUIET)
    card = json.loads((out / "config.json").read_text())
    assert (card["license"], card["name"]) == ("CC-BY-4.0", "better")
    assert "license: cc-by-4.0" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 13}, "steps was 12, is 13"),
        ({"attack": {"eps": "8/255", "steps": 3, "momentum": 0.5}}, "attack.steps was 2, is 3"),
        ({"ema": 0.9}, "ema was None, is 0.9"),
    ],
    ids=str,
)
def test_another_recipe_in_the_same_folder_is_refused(tmp_path, data, changes, told):
    out = train(recipe(), data, tmp_path / "out", **QUIET)
    before = weights(out)
    with pytest.raises(OutputError, match=rf"holds a run that differs: {told}\. Choose another.*restart"):
        train(recipe(**changes), data, out, **QUIET)
    assert same(weights(out), before)
    train(recipe(**changes), data, out, restart=True, **QUIET)
    assert not same(weights(out), before)
    assert (
        f"{told.partition(' ')[0].rpartition('.')[2]}: {told.rpartition(' ')[2]}" in (out / "recipe.yaml").read_text()
    )


def test_other_data_or_another_encoder_in_the_same_folder_are_refused(tmp_path, data, monkeypatch):
    stop_after(monkeypatch, 6)
    with pytest.raises(Stopped):
        train(recipe(), data, tmp_path / "out", **QUIET)
    more = pictures(tmp_path / "more", 15)
    with pytest.raises(OutputError, match=r"data was '# data: data, 14 images', is '# data: more, 15 images'"):
        train(recipe(), more, tmp_path / "out", **QUIET)
    with pytest.raises(OutputError, match=r"judged on more, 15 images"):
        train(recipe(), data, tmp_path / "out", validation=more, **QUIET)
    monkeypatch.setattr(*trainings.use(lambda: trainings.encoder(seed=1)))
    with pytest.raises(
        OutputError, match=r"'small', or its original, is another encoder than when the run in .* began"
    ):
        train(recipe(), data, tmp_path / "out", **QUIET)


def test_what_came_to_nothing_stands_in_nobodys_way(tmp_path, data):
    """A folder whose run has not saved anything yet is free for another recipe."""
    with pytest.raises(TrainingError):
        train(recipe(optimizer={"lr": 1e30, "name": "sgd"}), data, tmp_path / "out", **QUIET)
    train(recipe(steps=3), data, tmp_path / "out", **QUIET)
    assert steps(tmp_path / "out") == [3]


def test_restart_begins_anew(tmp_path, data):
    out = train(recipe(), data, tmp_path / "out", **QUIET)
    before = weights(out)
    (out / "mine.txt").write_text("not of the run")
    train(recipe(seed=1), data, out, restart=True, **QUIET)
    assert not same(weights(out), before)
    train(recipe(), data, out, restart=True, **QUIET)
    assert same(weights(out), before)
    assert steps(out) == [10, 12]
    assert (out / "mine.txt").exists()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_what_is_no_runs_folder_is_not_touched(tmp_path, data, name, restart):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("somebody's")
    with pytest.raises(OutputError, match=rf"holds {name} and no recipe.yaml: it is no run's folder"):
        train(recipe(), data, tmp_path / "out", restart=restart, **QUIET)
    assert (tmp_path / "out" / name).read_text() == "somebody's"


def test_a_result_without_its_checkpoints_is_not_trained_over(tmp_path, data):
    out = train(recipe(), data, tmp_path / "out", **QUIET)
    for path in find_checkpoints(out):
        path.unlink()
    before = weights(out)
    with pytest.raises(OutputError, match="a result without the checkpoints that led to it"):
        train(recipe(), data, out, **QUIET)
    assert same(weights(out), before)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path, data):
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(OutputError, match=r"another process trains into .*out': wait for it, or choose another folder"),
    ):
        train(recipe(), data, tmp_path / "out", restart=True, **QUIET)
    train(recipe(), data, tmp_path / "out", **QUIET)


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path, data):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match=r"cannot write into .*file"):
        train(recipe(), data, tmp_path / "file", **QUIET)
    with pytest.raises(OutputError, match=r"cannot write into .*file/out"):
        train(recipe(), data, tmp_path / "file" / "out", **QUIET)


def test_a_checkpoint_holds_what_its_run_knows(tmp_path, data):
    out = train(recipe(ema=0.9, steps=4), data, tmp_path / "out", **QUIET)
    state = read_checkpoint(find_checkpoints(out)[-1])
    assert state.step == 4
    assert {name.partition("/")[0] for name in state.tensors} == {"model", "average", "optimizer"}
    result = weights(out)
    for name, value in state.part("average/").items():
        assert torch.equal(result[name.removeprefix("student.")], value)
    assert any(not torch.equal(value, state.tensors[f"average/{name}"]) for name, value in state.part("model/").items())
