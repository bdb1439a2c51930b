"""The loop: what a step does, what goes in and what comes out, and what happens where something is not as it should."""

import copy
import json
import math
import os
import subprocess
import sys
import tarfile
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustsim import RobustSim
from robustsim.attacks import PGD
from robustsim.data import read_triplets
from robustsim.encoders import load_encoder, save_encoder
from robustsim.errors import DataError, InputError, TrainingError
from robustsim.training import finetune, run, save_classes, train
from robustsim.training.loop.log import read_log
from robustsim.training.loop.state import find_checkpoints, finite, read_checkpoint
from robustsim.training.loop.trained import Trained
from robustsim.training.methods.losses import hinge
from robustsim.training.methods.table import Classes
from robustsim.training.tasks import adversarial, prepare
from tests import judges, trainings
from tests.trainings import DIM, encoder, finetune_recipe, furthest, pictures, recipe, same, weights

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"progress": False, "tensorboard": False, "cpu": True}
SGD = {"name": "sgd", "lr": 1e-3, "momentum": 0.9}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(*trainings.use())


@pytest.fixture
def data(tmp_path):
    return pictures(tmp_path / "data", 14)


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """The bundled encoder on pictures of 32 x 32."""
    found = load_encoder("lite-clean")
    found.card = copy.copy(found.card)
    object.__setattr__(found.card, "preprocessing", judges.Preprocessing(size=32))
    return save_encoder(found, tmp_path_factory.mktemp("lite") / "lite")


def lines(output, kind="train"):
    return [entry for entry in read_log(output) if entry["kind"] == kind]


def tasks(monkeypatch):
    """The tasks of the runs that follow."""
    made = []
    for name in ("prepare_adversarial", "prepare_perceptual"):
        told = getattr(run, name)

        def prepared(*arguments, told=told, **options):
            found = told(*arguments, **options)
            made.append(found[0])
            return found

        monkeypatch.setattr(run, name, prepared)
    return made


# --- a step


class Witness(nn.Module):
    """Passes everything on, and writes down who came by: the trained encoder, or the original, a copy of it."""

    def __init__(self, seen, who="student", dropout=None):
        super().__init__()
        self.seen, self.who, self.dropout = seen, who, dropout or nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_var.fill_(0.5)

    def __deepcopy__(self, memo):
        other = Witness(self.seen, "original")
        other.norm.load_state_dict(self.norm.state_dict())
        return other

    def forward(self, x):
        entry = {
            "who": self.who,
            "training": self.training,
            "frozen": not self.norm.weight.requires_grad,
            "graph": x.requires_grad,
            "untouched": self.norm.weight.grad is None,
            "backward": 0,
            "size": 2 * x.shape[-1] + 4,
            "images": len(x),
        }
        self.seen.append(entry)
        y = self.norm(x)
        dropped = self.dropout(y)
        entry["dropped"] = not torch.equal(y, dropped)
        entry["statistics"] = not self.norm.training
        if dropped.requires_grad:
            dropped.register_hook(lambda gradient: entry.update(backward=entry["backward"] + 1))
        return dropped


def test_a_step_is_so_many_passes_and_no_more(tmp_path, data, monkeypatch):
    """k passes of the attack with frozen weights, one of the original, one that trains."""
    seen = []
    monkeypatch.setattr(*trainings.use(lambda: encoder(Witness(seen))))
    changes = {"steps": 2, "attack": {"eps": "8/255", "steps": 3}, "validation": {"images": 0}}
    out = train(recipe(**changes), data, tmp_path / "out", **QUIET)
    attacking = {
        "who": "student", "training": False, "frozen": True, "graph": True, "untouched": True, "backward": 1,
        "dropped": False, "statistics": True, "size": 16, "images": 4,
    }  # fmt: skip
    training = {**attacking, "training": True, "frozen": False, "dropped": True}
    original = {**attacking, "who": "original", "graph": False, "backward": 0}
    assert seen == 2 * [original, *3 * [attacking], training]
    result = weights(out)
    assert torch.equal(result["trunk.between.0.norm.running_var"], torch.full((8,), 0.5))
    assert result["trunk.between.0.norm.num_batches_tracked"] == 0
    assert not torch.equal(result["trunk.between.0.norm.weight"], torch.ones(8))


def test_methods_without_an_attack_attack_only_to_judge(tmp_path, monkeypatch):
    data, seen = pictures(tmp_path / "data", 12, classes=2), []
    monkeypatch.setattr(*trainings.use(lambda: encoder(Witness(seen))))
    changes = {"method": "ft-clean", "steps": 2, "validation": {"images": 3, "steps": 2}}
    out = train(recipe(**changes), data, tmp_path / "out", prototypes=prototypes(tmp_path, 2), **QUIET)
    assert [(one["who"], one["frozen"]) for one in seen[:4]] == 2 * [("original", True), ("student", False)]
    (judged,) = lines(out, "validation")
    assert judged["robust_loss"] > judged["clean_loss"] > 0
    assert json.loads((out / "config.json").read_text()).get("threat") is None


def test_parts_of_a_batch_add_up_to_the_whole(tmp_path, data):
    results = [
        weights(train(recipe(optimizer=SGD, accumulate=parts), data, tmp_path / f"{parts}", **QUIET))
        for parts in (1, 2, 4)
    ]
    assert 0 < furthest(results[0], results[2]) < 1e-5
    assert 0 < furthest(results[0], results[1]) < 1e-5
    losses = [[entry["loss"] for entry in lines(tmp_path / name)] for name in ("1", "4")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_result_is_the_average_that_the_formula_says(tmp_path, data, monkeypatch):
    states, told = [], Trained.update

    def update(self, step):
        told(self, step)
        states.append({name: value.clone() for name, value in self._weights().items()})

    monkeypatch.setattr(Trained, "update", update)
    begun = encoder().state_dict()
    out = train(recipe(ema=0.6), data, tmp_path / "out", **QUIET)
    for name, mean in begun.items():
        mean = mean.double()
        for step, state in enumerate(states):
            keep = min(0.6, (1 + step) / (10 + step))
            mean = keep * mean + (1 - keep) * state[f"student.{name}"].double()
        assert torch.allclose(weights(out)[name].double(), mean, atol=1e-6)
        assert not torch.equal(weights(out)[name], states[-1][f"student.{name}"])


@pytest.mark.parametrize("relative", [False, True])
def test_a_relative_rate_is_a_share_of_each_tensors_size(tmp_path, data, monkeypatch, relative):
    """Adam's first step is the rate, wherever there is a gradient: so it shows what the rate is."""

    def begun():
        made = encoder()
        with torch.no_grad():
            for index, weight in enumerate(made.parameters()):
                weight.mul_(10.0 ** (index % 3 - 1))
            made.trunk.first.bias.zero_()
        return made

    monkeypatch.setattr(*trainings.use(begun))
    optimizer = {"lr": 1e-3, "relative": relative, "schedule": "constant"}
    out = train(recipe(steps=1, optimizer=optimizer, validation={"images": 0}), data, tmp_path / "out", **QUIET)
    result = weights(out)
    for name, weight in begun().named_parameters():
        size = max(1e-3, weight.square().mean().sqrt().item()) if relative else 1.0
        assert (result[name] - weight).abs().max().item() == pytest.approx(1e-3 * size, rel=2e-2), name


def test_training_makes_the_attacks_loss_fall(tmp_path, data):
    out = train(recipe(steps=60, optimizer={"lr": 3e-3}), data, tmp_path / "out", **QUIET)
    losses = [entry["loss"] for entry in lines(out)]
    assert losses[-1] < 0.7 * losses[0]


def test_bfloat16_trains_and_keeps_float32_weights(tmp_path, data):
    out = train(recipe(steps=60, precision="bf16", optimizer={"lr": 3e-3}), data, tmp_path / "out", **QUIET)
    losses = [entry["loss"] for entry in lines(out)]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.7 * losses[0]
    assert {value.dtype for value in weights(out).values()} == {torch.float32}
    plain = train(recipe(steps=60, optimizer={"lr": 3e-3}), data, tmp_path / "plain", **QUIET)
    assert not same(weights(out), weights(plain))
    assert lines(out)[0]["loss"] == pytest.approx(lines(plain)[0]["loss"], rel=0.1)


@pytest.mark.slow
def test_compiled_it_trains_to_the_same_weights(tmp_path, data):
    changes = {"steps": 8, "optimizer": SGD, "stages": [{"at": 0, "size": 16}, {"at": 0.5, "size": 24}]}
    eager = train(recipe(**changes), data, tmp_path / "eager", **QUIET)
    compiled = train(recipe(**changes, compile=True), data, tmp_path / "compiled", **QUIET)
    assert 0 < furthest(weights(eager), weights(compiled)) < 1e-4


def test_stages_change_the_size_of_the_images(tmp_path, data, monkeypatch):
    seen = []
    monkeypatch.setattr(*trainings.use(lambda: encoder(Witness(seen))))
    stages = [{"at": 0, "size": 16}, {"at": 0.5, "size": 24}, {"at": 0.9, "size": 20}]
    out = train(recipe(stages=stages, validation={"images": 0}), data, tmp_path / "out", **QUIET)
    trained = [one["size"] for one in seen if one["training"]]
    assert trained == [16] * 6 + [24] * 5 + [20]
    assert [(entry["step"], entry["size"]) for entry in lines(out)] == [(10, 24), (12, 20)]


def test_nothing_global_is_changed(tmp_path, data, recwarn):
    def state():
        return (
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_num_threads(),
        )

    before, threads = state(), threading.active_count()
    train(recipe(ema=0.5), data, tmp_path / "out", **QUIET)
    finetune(finetune_recipe(), judges.triplets(tmp_path / "triplets", 30), tmp_path / "mlp", **QUIET)
    assert state() == before
    for thread in threading.enumerate():
        if thread.name.startswith("robustsim"):
            thread.join(5)
    assert threading.active_count() <= threads
    assert not recwarn.list


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_trains_whatever_the_caller_differentiates(tmp_path, data, context):
    plain = train(recipe(steps=3), data, tmp_path / "plain", **QUIET)
    with context():
        out = train(recipe(steps=3), data, tmp_path / "out", **QUIET)
        assert not torch.is_grad_enabled()
    assert same(weights(out), weights(plain))


# --- data


def reads(monkeypatch):
    """The images that are read, as (name of the source, index); and how many before the first judgement."""
    from robustsim.training.sources.base import Source

    seen, before, told, judge = [], [], Source.read, adversarial.Adversarial.validate

    def read(self, index):
        seen.append((self.name, index))
        return told(self, index)

    def validate(self, *arguments):
        before.append(len(seen))
        return judge(self, *arguments)

    monkeypatch.setattr(Source, "read", read)
    monkeypatch.setattr(adversarial.Adversarial, "validate", validate)
    return seen, before


def test_what_is_held_out_is_never_trained_on(tmp_path, data, monkeypatch):
    """Not in the place of an image that cannot be read, either."""
    seen, before = reads(monkeypatch)
    for index in range(0, 14, 3):
        (data / f"{index:03}.png").write_bytes(b"no picture")
    train(recipe(validation={"every": 0, "images": 5}, seed=3), data, tmp_path / "out", **QUIET)
    trained, judged = set(seen[: before[0]]), set(seen[before[0] :])
    assert (len(trained), len(judged), len(seen) - before[0]) == (9, 5, 5)
    assert not trained & judged


def test_other_images_can_be_judged_on(tmp_path, data, monkeypatch):
    seen, before = reads(monkeypatch)
    others = pictures(tmp_path / "others", 9, seed=1)
    changes = {"validation": {"every": 0, "images": 6}}
    train(recipe(**changes), data, tmp_path / "out", validation=others, **QUIET)
    trained, judged = set(seen[: before[0]]), set(seen[before[0] :])
    assert trained == {("data", index) for index in range(14)}
    assert {name for name, _ in judged} == {"others"}
    assert len(judged) == 6
    assert judged != {("others", index) for index in range(6)}  # which may be of one class


def test_every_image_is_seen_once_in_each_pass(tmp_path, data, monkeypatch):
    """By its place in the training: threads read ahead, and which one is first is nobody's business."""
    from robustsim.training.sources.stream import Stream

    (seen, _), placed, told = reads(monkeypatch), {}, Stream._read

    def read(self, wanted):
        position, index = wanted
        assert position not in placed
        placed[position] = index
        return told(self, wanted)

    monkeypatch.setattr(Stream, "_read", read)
    changes = {"steps": None, "epochs": 3, "batch_size": 7, "validation": {"images": 0}}
    train(recipe(**changes), data, tmp_path / "out", **QUIET)
    assert sorted(placed) == list(range(42))
    assert sorted(placed.values()) == sorted(index for _, index in seen)  # and what was asked for was read
    passes = [[placed[position] for position in range(start, start + 14)] for start in (0, 14, 28)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2]) == list(range(14))
    assert passes[0] != passes[1] != passes[2]


def test_an_image_that_cannot_be_read_is_skipped_and_counted_once(tmp_path, data):
    (data / "003.png").write_bytes(b"no picture")
    out = train(recipe(steps=20), data, tmp_path / "out", **QUIET)  # nearly seven passes
    (line,) = (out / "skipped.txt").read_text().splitlines()
    assert "003.png" in line
    assert {entry["skipped"] for entry in lines(out)} == {1}
    assert lines(out)[-1]["step"] == 20


def test_an_image_to_judge_on_that_cannot_be_read_does_not_count(tmp_path, data):
    others = pictures(tmp_path / "others", 5)
    whole = train(recipe(), data, tmp_path / "whole", validation=others, **QUIET)
    (others / "a.png").write_bytes(b"no picture")
    (others / "z.png").write_bytes(b"no picture")
    changes = {"validation": {"every": 6, "images": 7, "steps": 2}}
    out = train(recipe(**changes), data, tmp_path / "out", validation=others, **QUIET)
    assert lines(out, "validation")[-1]["skipped"] == len((out / "skipped.txt").read_text().splitlines()) == 2
    assert same(weights(out), weights(whole))
    changes = {"validation": {"every": 6, "images": 5, "steps": 2}}
    kept = train(recipe(**changes), data, tmp_path / "kept", validation=pictures(tmp_path / "again", 5), **QUIET)
    for name in ("clean_loss", "clean_cosine"):
        judged = [lines(one, "validation")[-1][name] for one in (out, kept)]
        assert judged[0] == pytest.approx(judged[1], rel=1e-5)


def test_a_shard_that_is_cut_off_is_used_as_far_as_it_goes(tmp_path, data):
    shards = tmp_path / "shards"
    shards.mkdir()
    for name, part in (("a", sorted(data.iterdir())[:7]), ("b", sorted(data.iterdir())[7:])):
        with tarfile.open(shards / f"{name}.tar", "w") as tar:
            for path in part:
                tar.add(path, path.name)
    os.truncate(shards / "b.tar", 2500)
    out = train(recipe(steps=20, validation={"images": 2, "steps": 1}), shards, tmp_path / "out", **QUIET)
    (line,) = (out / "skipped.txt").read_text().splitlines()
    assert "b.tar" in line
    assert lines(out)[-1]["step"] == 20
    assert lines(out)[-1]["skipped"] == 1


@pytest.mark.parametrize("held_out", [0, 1])
def test_where_every_image_is_damaged_it_ends_with_an_error(tmp_path, data, held_out):
    for path in data.iterdir():
        path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match=r"100 images in a row could not be read, at last .*\.png"):
        train(recipe(validation={"images": held_out}), data, tmp_path / "out", **QUIET)


def test_what_cannot_be_held_out_is_told_before_anything_runs(tmp_path, data):
    with pytest.raises(InputError, match=r"14 images cannot be held out of 14: set validation.images lower"):
        train(recipe(validation={"images": 14}), data, tmp_path / "out", **QUIET)


def test_an_abandoned_stream_makes_no_noise_where_the_interpreter_ends():
    """Modules are put away then one by one, those that a pool of threads needs among them."""
    code = (
        "import concurrent.futures.thread as pool\n"
        "from robustsim.images import prefetch\n"
        "results = prefetch(abs, iter(range(10**6)), workers=2)\n"
        "next(results)\n"
        "del pool.queue, results\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# --- labels


def prototypes(folder, count, seed=0, name="prototypes"):
    points = F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)
    return save_classes(Classes(points), folder / f"{name}.safetensors")


TECOA = {"method": {"name": "tecoa", "scale": 10.0}}


def test_validation_tells_what_a_direct_computation_does(tmp_path, monkeypatch):
    data, made = pictures(tmp_path / "data", 24, classes=4), tasks(monkeypatch)
    points = prototypes(tmp_path, 4)
    changes = {**TECOA, "validation": {"every": 0, "images": 9, "steps": 3}}
    out = train(recipe(**changes), data, tmp_path / "out", prototypes=points, **QUIET)
    source, indices = made[0].held_out
    student, original = encoder(), encoder()
    student.load_state_dict(weights(out))
    samples = [source.read(index) for index in indices]
    squares = [judges.Preprocessing(size=16).apply(sample.image) for sample in samples]
    pixels = torch.stack([torch.tensor(list(one.tobytes())).view(16, 16, 3).permute(2, 0, 1) / 255 for one in squares])
    labels = torch.tensor([sample.label for sample in samples])
    known = trainings.load_file(points)["prototypes"]

    def logits(x):
        return 10 * F.normalize(student(x), dim=1) @ known.T

    def loss(x):
        return F.cross_entropy(logits(x), labels, reduction="none")

    starts = made[0].recipe and adversarial.starts(
        adversarial.ThreatModel("linf", 8 / 255), pixels, recipe().seed, range(9)
    )
    found = PGD(norm="linf", eps=8 / 255, steps=3, start=starts, keep="last")(loss, pixels).images
    with torch.no_grad():
        wanted = {
            "clean_loss": loss(pixels).mean(),
            "robust_loss": loss(found).mean(),
            "clean_accuracy": (logits(pixels).argmax(1) == labels).float().mean(),
            "robust_accuracy": (logits(found).argmax(1) == labels).float().mean(),
            "clean_cosine": F.cosine_similarity(student(pixels), original(pixels)).mean(),
            "robust_cosine": F.cosine_similarity(student(found), original(pixels)).mean(),
        }
    (told,) = lines(out, "validation")
    assert {name: told[name] for name in wanted} == pytest.approx({k: v.item() for k, v in wanted.items()}, abs=1e-5)
    assert wanted["robust_loss"] > wanted["clean_loss"]


def test_other_prototypes_or_classes_are_another_run(tmp_path):
    data = pictures(tmp_path / "data", 24, classes=4)
    out = train(recipe(**TECOA), data, tmp_path / "out", prototypes=prototypes(tmp_path, 4), **QUIET)
    with pytest.raises(OSError, match=r"data was .*prototypes \w{8}', is .*prototypes \w{8}'"):
        train(recipe(**TECOA), data, out, prototypes=prototypes(tmp_path, 4, seed=1, name="others"), **QUIET)


@pytest.mark.parametrize("classes", [0, 3])
def test_images_to_judge_on_with_other_classes_are_refused_before_anything_runs(tmp_path, classes):
    data, others = pictures(tmp_path / "data", 24, classes=4), pictures(tmp_path / "others", 9, classes=classes)
    told = "have 3 classes" if classes else "have no classes"
    with pytest.raises(DataError, match=rf"others, {told}.*4 classes .*stand for something else"):
        train(recipe(**TECOA), data, tmp_path / "out", validation=others, prototypes=prototypes(tmp_path, 4), **QUIET)
    assert not (tmp_path / "out").exists()


# --- what is not finite


class Spoiler(nn.Module):
    """Passes everything on, but in one of its passes."""

    def __init__(self, at, spoil, mode=True):
        super().__init__()
        self.at, self.spoil, self.mode, self.passes = at, spoil, mode, 0

    def __deepcopy__(self, memo):
        return nn.Identity()

    def forward(self, x):
        self.passes += self.training == self.mode
        return self.spoil(x) if self.passes == self.at and self.training == self.mode else x


class EndlessGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.inf


def good_state(output, error, step):
    (path,) = [path for path in find_checkpoints(output) if repr(os.fspath(path)) in str(error.value)]
    assert path == find_checkpoints(output)[-1]
    state = read_checkpoint(path)
    assert state.step == step
    assert finite(state.tensors)


@pytest.mark.parametrize(
    ("spoiler", "told"),
    [
        (lambda: Spoiler(8, lambda x: x * math.nan), r"step 8: adversarial is not finite"),
        (lambda: Spoiler(8, lambda x: x * 1e38 * 1e38), r"step 8: adversarial is not finite"),
        (lambda: Spoiler(8, EndlessGradient.apply), r"step 8: gradient_norm is not finite"),
        (lambda: Spoiler(16, lambda x: x * math.nan, mode=False), r"step 8: in the inner attack: "),
    ],
    ids=["loss is NaN", "loss is infinite", "gradient is infinite", "attack is NaN"],
)
def test_what_is_not_finite_ends_it_and_the_last_good_state_is_kept(tmp_path, data, monkeypatch, spoiler, told):
    monkeypatch.setattr(*trainings.use(lambda: encoder(spoiler())))
    with pytest.raises(TrainingError, match=told + r".*the last good state is .*Lower optimizer.lr") as error:
        train(recipe(validation={"images": 0}), data, tmp_path / "out", **QUIET)
    good_state(tmp_path / "out", error, 5)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    monkeypatch.setattr(*trainings.use())
    train(recipe(validation={"images": 0}), data, tmp_path / "out", **QUIET)
    assert lines(tmp_path / "out")[-1]["step"] == 12


def test_a_learning_rate_that_is_too_high_ends_it(tmp_path, data):
    changes = {"optimizer": {"name": "sgd", "lr": 1e5, "warmup_steps": 0}, "checkpoints": {"every": 1}}
    with pytest.raises(TrainingError, match=r"step \d+: .* not finite") as error:
        train(recipe(**changes), data, tmp_path / "out", **QUIET)
    if kept := find_checkpoints(tmp_path / "out"):
        good_state(tmp_path / "out", error, read_checkpoint(kept[-1]).step)


def test_weights_that_are_spoilt_by_the_very_last_step_are_no_result(tmp_path, data, monkeypatch):
    told = Trained.update

    def update(self, step):
        told(self, step)
        if step == 11:
            with torch.no_grad():
                self._named[0][1].view(-1)[0] = math.inf

    monkeypatch.setattr(Trained, "update", update)
    for images in (0, 3):
        with pytest.raises(TrainingError, match=r"step 12: ") as error:
            train(recipe(validation={"images": images}), data, tmp_path / f"{images}", **QUIET)
        good_state(tmp_path / f"{images}", error, 10)
        assert not (tmp_path / f"{images}" / "model.safetensors").exists()


# --- results


def test_the_result_is_a_metric_that_goes_to_the_hub_and_back(tmp_path, data, lite, hub, monkeypatch):
    monkeypatch.setattr(prepare, "load_encoder", load_encoder)
    changes = {"encoder": os.fspath(lite), "steps": 2, "ema": 0.9, "license": "CC-BY-4.0", "name": "mine", "seed": 5}
    out = train(recipe(**changes, title="sturdy"), data, tmp_path / "out", progress=False, cpu=True)
    metric = RobustSim.from_pretrained(out, device="cpu")
    card = metric.card
    assert (card.name, card.method, card.threat, card.data) == ("sturdy", "FARE", "linf 8/255", "data (14 images)")
    assert (card.license, card.training["recipe"], card.training["seed"]) == ("CC-BY-4.0", "mine", 5)
    assert card.training["steps"] == 2
    assert card.origin.startswith("lite-clean, fine-tuned with robustsim")
    assert card.preprocessing.size == 32
    images = [data / "000.png", data / "001.png"]
    distance = metric.distance(*images)
    assert not torch.equal(distance, RobustSim.from_pretrained(lite, device="cpu").distance(*images))
    average = read_checkpoint(find_checkpoints(out)[-1]).part("average/student.")
    assert all(torch.equal(value, average[name]) for name, value in weights(out).items())
    assert {path.name for path in out.iterdir()} == {
        ".lock", "README.md", "checkpoints", "config.json", "log.jsonl", "model.safetensors", "recipe.yaml",
        "skipped.txt", "tensorboard",
    }  # fmt: skip
    # In a process of its own, as huggingface_hub reads HF_ENDPOINT when it is imported.
    code = f"from robustsim import RobustSim; RobustSim.from_pretrained({os.fspath(out)!r}).push_to_hub('me/sturdy')"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    hub.repos["me/sturdy"] = hub.uploads["me/sturdy"]
    back = RobustSim.from_pretrained("me/sturdy", cache_dir=hub.cache, device="cpu")
    assert torch.equal(back.distance(*images), distance)
    assert back.card.training == card.training


def test_people_are_told_on_standard_error(tmp_path, data, capsys):
    train(recipe(), data, tmp_path / "out", progress=True, tensorboard=False, cpu=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 6: clean_cosine 0." in err
    assert "48/48" in err


def test_curves_go_to_tensorboard(tmp_path, data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = train(recipe(), data, tmp_path / "out", progress=False, cpu=True)
    curves = EventAccumulator(os.fspath(out / "tensorboard"))
    curves.Reload()
    assert [(point.step, point.value) for point in curves.Scalars("train/loss")] == [
        (entry["step"], pytest.approx(entry["loss"], rel=1e-5)) for entry in lines(out)
    ]
    assert [point.step for point in curves.Scalars("validation/robust_loss")] == [6, 12]


# --- judgements


def direct(output, triplets, made):
    """Cosine distances of the result, from scratch."""
    size = made.card.preprocessing.size
    preprocessing = judges.Preprocessing(size=size)

    def pixels(path):
        with judges.Image.open(path) as image:
            square = preprocessing.apply(image.convert("RGB"))
        return torch.tensor(list(square.tobytes())).view(size, size, 3).permute(2, 0, 1) / 255

    def embed(paths):
        return F.normalize(made(torch.stack([pixels(path) for path in paths])), dim=1)

    with torch.no_grad():
        reference, left, right = (embed([one.paths[side] for one in triplets]) for side in range(3))
    return 1 - (reference * left).sum(1), 1 - (reference * right).sum(1)


@pytest.mark.parametrize("adapter", ["mlp", "lora"])
def test_fine_tuning_ends_with_an_encoder_that_agrees_as_it_says(tmp_path, lite, adapter, monkeypatch):
    monkeypatch.setattr(prepare, "load_encoder", load_encoder)
    made = tasks(monkeypatch)
    data = judges.triplets(tmp_path / "data", 40, images=12)
    changes = {
        "encoder": os.fspath(lite), "adapter": adapter, "steps": 6, "validation": {"images": 15},
        "optimizer": {"lr": 1e-3}, "preprocessing": "squash",
    }  # fmt: skip
    out = finetune(finetune_recipe(**changes), data, tmp_path / "out", **QUIET)
    held_out = made[0].held_out
    result = load_encoder(out)
    to_left, to_right = direct(out, held_out, result)
    right = torch.tensor([one.right_share > 0.5 for one in held_out])
    agreed = torch.where(right, to_right < to_left, to_left < to_right).float().mean()
    (told,) = lines(out, "validation")
    assert told["agreement"] == pytest.approx(agreed.item(), abs=1e-6)
    assert told["hinge"] == pytest.approx(hinge(to_left, to_right, right, 0.05).mean().item(), abs=1e-5)
    metric = RobustSim.from_pretrained(out, device="cpu")
    distances = metric.distance([one.reference for one in held_out], [one.left for one in held_out])
    assert torch.allclose(distances.square(), to_left, atol=1e-5)
    assert result.card.head.kind == ("mlp" if adapter == "mlp" else "none")
    assert result.card.data.endswith("; data/triplets (25 triplets)")
    assert result.card.license == "Apache-2.0"
    before = direct(lite, held_out, load_encoder(lite))[0]
    assert not torch.allclose(before, to_left, atol=1e-4)


def test_judgements_that_are_held_out_are_not_trained_on(tmp_path, monkeypatch):
    made = tasks(monkeypatch)
    data = judges.triplets(tmp_path / "data", 40)
    finetune(finetune_recipe(), data, tmp_path / "out", **QUIET)
    train_ids, held_ids = ({one.id for one in part} for part in (made[0]._train, made[0].held_out))
    assert (len(train_ids), len(held_ids)) == (35, 5)
    assert train_ids | held_ids == {one.id for one in read_triplets(data)}
    others = judges.triplets(tmp_path / "others", 9, seed=1)
    finetune(finetune_recipe(), data, tmp_path / "other", validation=others, **QUIET)
    assert (len(made[1]._train), {one.reference.parent.name for one in made[1].held_out}) == (40, {"others"})


def test_the_frozen_trunk_sees_every_image_once(tmp_path, monkeypatch):
    seen = []

    class Eye(nn.Module):
        def forward(self, x):
            seen.append(x.flatten(1).unique(dim=0))
            return x

    monkeypatch.setattr(*trainings.use(lambda: encoder(Eye())))
    data = judges.triplets(tmp_path / "data", 60, images=20)
    finetune(finetune_recipe(steps=40), data, tmp_path / "out", **QUIET)  # six passes
    everything = torch.cat(seen)
    assert len(everything) == len(everything.unique(dim=0)) == 20


@pytest.mark.parametrize("adapter", ["mlp", "lora"])
def test_a_triplet_whose_image_cannot_be_read_is_skipped(tmp_path, adapter):
    data = judges.triplets(tmp_path / "data", 40)
    (data.parent / "03.png").write_bytes(b"no picture")
    changes = {"adapter": {"name": adapter, **({"targets": ["last"]} if adapter == "lora" else {})}}
    out = finetune(finetune_recipe(**changes), data, tmp_path / "out", **QUIET)
    (line,) = (out / "skipped.txt").read_text().splitlines()
    assert "03.png" in line
    assert lines(out, "validation")[-1]["skipped"] == 1
    for path in data.parent.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"100 triplets in a row have an image that cannot be read, at last .*png"):
        finetune(finetune_recipe(**changes), data, tmp_path / "none", **QUIET)


def test_a_table_of_ties_teaches_nothing(tmp_path):
    data = judges.triplets(tmp_path / "data", 5)
    header, *rows = data.read_text().splitlines()
    data.write_text("\n".join([header, *(",".join([*row.split(",")[:3], "5", "5"]) for row in rows)]))
    with pytest.raises(DataError):
        finetune(finetune_recipe(), data, tmp_path / "out", **QUIET)


def test_fine_tuning_on_nights_takes_its_splits(tmp_path, monkeypatch):
    made = tasks(monkeypatch)
    folder = judges.pictures(tmp_path / "nights", 10)
    rows = ["id,left_vote,right_vote,votes,ref_path,left_path,right_path,split,is_imagenet"]
    for index, split in enumerate(["train"] * 12 + ["val"] * 3 + ["test"] * 4):
        rows.append(f"{index},{index % 2},{1 - index % 2},6,0{index % 8}.png,0{index % 8 + 1}.png,09.png,{split},True")
    (folder / "data.csv").write_text("\n".join(rows))
    finetune(finetune_recipe(steps=2), folder, tmp_path / "out", **QUIET)
    finetune(finetune_recipe(steps=2), folder, tmp_path / "judged", validation=folder, **QUIET)
    assert [(len(one._train), len(one.held_out)) for one in made] == [(7, 5), (12, 3)]
    assert {one.id for one in made[1].held_out} == {"12", "13", "14"}


def test_kinds_of_recipes_are_not_mixed_up(tmp_path, data):
    with pytest.raises(InputError, match=r"is of kind '2afc': it goes with `finetune`"):
        train(finetune_recipe(), data, tmp_path / "out", **QUIET)
    with pytest.raises(InputError, match=r"is of kind 'adversarial': it goes with `train`"):
        finetune(recipe(), data, tmp_path / "out", **QUIET)
