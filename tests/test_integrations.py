"""The metric as a `torchmetrics.Metric`: alone, in torchmetrics' own containers, and in two processes."""

import copy
import gc
import importlib
import json
import math
import pickle
import sys
import weakref

import pytest
import torch
from torch import nn

from robustsim import RobustSim
from robustsim.errors import InputError, MissingDependencyError
from tests.processes import two_ranks

torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics")

from robustsim.integrations import RobustSimilarity  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clean():
    return RobustSim.from_pretrained("lite-clean", device="cpu")


def pictures(count, seed=0, size=24):
    """Pairs in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(count, 3, size, size, generator=generator)
    return a, (a + 0.2 * torch.rand(a.shape, generator=generator)).clamp(0, 1)


BATCHES = [pictures(count, seed) for seed, count in enumerate((3, 1, 2))]


@pytest.fixture(scope="module")
def embedded(metric):
    """Embeddings that stand in for them: what is measured is the same, and nothing is encoded."""
    return [(metric.embed(a), metric.embed(b)) for a, b in BATCHES]


def all_pairs(metric, batches=BATCHES, **options):
    return torch.cat([metric(a, b, **options) for a, b in batches])


@pytest.mark.parametrize("squared", [False, True])
def test_it_gives_the_distances_of_the_metric(metric, embedded, squared):
    expected = all_pairs(metric, embedded, squared=squared)
    reduced = {"mean": expected.mean(), "sum": expected.sum(), "none": expected, None: expected}
    for reduction, value in reduced.items():
        similarity = RobustSimilarity(metric, reduction=reduction, normalize=True, squared=squared)
        for a, b in embedded:
            similarity.update(a, b)
        torch.testing.assert_close(similarity.compute(), value)
        similarity.reset()
        similarity.update(*embedded[0])
        first = {"mean": expected[:3].mean(), "sum": expected[:3].sum()}.get(reduction, expected[:3])
        torch.testing.assert_close(similarity.compute(), first)


def test_the_range_is_that_of_torchmetrics(metric):
    a, b = BATCHES[0]
    expected = metric(a, b).mean()
    torch.testing.assert_close(RobustSimilarity(metric)(2 * a - 1, 2 * b - 1), expected)
    torch.testing.assert_close(RobustSimilarity(metric, normalize=True)(a, b), expected)
    whole = [(x * 255).round().to(torch.uint8) for x in (a, b)]
    assert RobustSimilarity(metric)(*whole) == RobustSimilarity(metric, normalize=True)(*whole)
    torch.testing.assert_close(
        RobustSimilarity(metric, normalize=True)(a.half(), b.half()), expected, rtol=1e-2, atol=0
    )
    torch.testing.assert_close(RobustSimilarity(metric, normalize=True)(a, metric.embed(b)), expected)


def test_what_it_says_of_itself():
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Theirs

    for name in ("is_differentiable", "higher_is_better", "full_state_update", "plot_lower_bound"):
        assert getattr(RobustSimilarity, name) == getattr(Theirs, name), name
    metric = RobustSimilarity()
    assert metric.model.card.name == "lite"
    assert metric.plot_upper_bound == pytest.approx(math.sqrt(2))
    assert RobustSimilarity(metric.model, squared=True).plot_upper_bound == 2
    assert RobustSimilarity(metric.model, reduction="sum").plot_upper_bound is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "max"}, "reduction must be .* not 'max'"),
        ({"normalize": "yes"}, "normalize must be True or False, not 'yes'"),
        ({"squared": 1}, "squared must be True or False, not 1"),
    ],
)
def test_options_that_do_not_fit(metric, options, message):
    with pytest.raises(InputError, match=message):
        RobustSimilarity(metric, **options)
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `net_type`"):
        RobustSimilarity(metric, net_type="alex")


def test_images_that_do_not_fit_leave_what_was_there(metric):
    similarity = RobustSimilarity(metric)
    a, b = (2 * x - 1 for x in BATCHES[0])
    similarity.update(a, b)
    value = similarity.compute()
    for wrong, message in (
        ((a, b[:2]), "3 images against 2"),
        ((a * 3, b), r"outside \[-1, 1\]"),
        ((a[:, :2], b), "shape"),
    ):
        with pytest.raises(ValueError, match=message):  # of which InputError is one, as torchmetrics' users expect
            similarity.update(*wrong)
    assert similarity.compute() == value


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_call_gives_the_batch_and_its_gradient_and_keeps_no_graph(metric, reduction):
    similarity = RobustSimilarity(metric, reduction=reduction, normalize=True)
    for a, b in BATCHES:
        x, y = a.clone().requires_grad_(), a.clone().requires_grad_()
        value = similarity(x, b)
        value.sum().backward()
        pairs = metric(y, b)
        expected = {"mean": pairs.mean(), "sum": pairs.sum(), "none": pairs.squeeze()}[reduction]
        expected.sum().backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(x.grad, y.grad)
    images = a.clone().requires_grad_()
    similarity.update(images, b)
    similarity(images, b)
    kept = weakref.ref(images)  # a graph would hold them
    del images
    gc.collect()
    assert kept() is None
    assert not similarity.compute().requires_grad


def test_before_any_pair(metric):
    expected = {"mean": math.nan, "sum": 0.0, "none": []}
    for reduction, value in expected.items():
        with pytest.warns(UserWarning, match="before the ``update`` method"):
            found = RobustSimilarity(metric, reduction=reduction).compute().tolist()
        assert found == pytest.approx(value, nan_ok=True)


def test_sums_do_not_drift(metric):
    """In float32, 2 ** 26 and a distance are 2 ** 26 again."""
    a, b = BATCHES[0]
    once = float(metric(a, b).double().sum())
    assert torch.tensor(2.0**26) + once == 2**26
    a, b = metric.embed(a), metric.embed(b)
    for add in ("update", "forward"):
        similarity = RobustSimilarity(metric, reduction="sum", normalize=True)
        total, count = similarity.metric_state
        similarity.merge_state({total: torch.tensor([2.0**26, 0]), count: torch.tensor(2**26)})
        for _ in range(40):
            getattr(similarity, add)(a, b)
        assert float(similarity.metric_state[total].double().sum()) - 2**26 == pytest.approx(40 * once, rel=1e-6)
        assert float(similarity.compute()) == pytest.approx(2**26 + 40 * once, abs=4)  # a step of float32 there is 8


def test_types_of_others_change_nothing(metric):
    expected = metric(*BATCHES[0]).mean()
    for change in (
        lambda one: one.half(),
        lambda one: one.double(),
        lambda one: one.set_dtype(torch.float16),
        lambda one: one.to(torch.bfloat16),
        lambda one: nn.ModuleList([one]).to(torch.float64)[0],
    ):
        similarity = RobustSimilarity(metric, normalize=True)
        change(similarity)
        with torch.autocast("cpu", torch.bfloat16):
            value = similarity(*BATCHES[0])
        assert value.dtype == similarity.dtype == torch.float32
        torch.testing.assert_close(value, expected)
        assert metric.encoder.mean.dtype == torch.float32
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert RobustSimilarity(metric, normalize=True)(*BATCHES[0]).dtype == torch.float32
    finally:
        torch.set_default_dtype(default)


def test_checkpoints_hold_nothing_of_the_encoder(clean):
    model = nn.Module()
    model.linear = nn.Linear(2, 2)
    model.similarity = RobustSimilarity(clean)
    assert set(model.state_dict()) == {"linear.weight", "linear.bias"}
    assert len(list(model.parameters())) == 2
    model.load_state_dict(model.state_dict(), strict=True)
    model.similarity.persistent(True)
    assert len(model.state_dict()) == 4
    model.requires_grad_(True)
    assert not any(weights.requires_grad for weights in clean.parameters())


def test_states_come_back_from_a_checkpoint_and_only_to_their_own_model(metric, embedded, clean):
    similarity = RobustSimilarity(metric, normalize=True)
    similarity.persistent(True)
    similarity.update(*embedded[0])
    other = RobustSimilarity(metric, normalize=True)
    other.persistent(True)
    other.load_state_dict(copy.deepcopy(similarity.state_dict()))
    other._update_count = 1  # which is no part of it
    assert other.compute() == similarity.compute()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        RobustSimilarity(clean, normalize=True).load_state_dict(similarity.state_dict())
    with pytest.raises(ValueError, match="to be present in incoming state"):
        RobustSimilarity(clean, normalize=True).merge_state(similarity)


def test_copies_share_the_encoder_and_nothing_else(metric, embedded):
    similarity = RobustSimilarity(metric, normalize=True)
    similarity.update(*embedded[0])
    value = similarity.compute()
    for made in (similarity.clone(), copy.deepcopy(similarity), copy.deepcopy(nn.ModuleList([similarity]))[0]):
        assert made.model is metric
        assert made.compute() == value
        made.update(*embedded[1])
        assert made.compute() != value
        assert similarity.compute() == value
    loaded = pickle.loads(pickle.dumps(similarity))
    assert loaded.model is not metric
    assert loaded.compute() == value
    loaded.update(*embedded[1])
    torch.testing.assert_close(loaded.compute(), made.compute())


def test_another_device_has_a_copy_of_the_encoder_once(metric, embedded):
    """With torch's device without memory, which every machine has."""
    similarity = RobustSimilarity(metric, normalize=True)
    similarity.update(*embedded[0])
    value = similarity.compute()
    first, second = similarity.clone().to("meta"), similarity.clone().to("meta")
    assert first.device.type == first.model.device.type == "meta"
    assert first.model is second.model is not metric
    assert all(state.device.type == "meta" for state in first.metric_state.values())
    assert metric.device.type == similarity.device.type == "cpu"
    assert similarity.compute() == value
    there = weakref.ref(first.model)
    del first, second
    gc.collect()
    assert there() is None


def test_it_has_values_under_a_device_without_memory(metric):
    with torch.device("meta"):
        similarity = RobustSimilarity("lite", normalize=True)
    assert similarity.device.type == "cpu"
    torch.testing.assert_close(similarity(*BATCHES[0]), metric(*BATCHES[0]).mean())


def test_a_collection_never_takes_one_model_for_another(metric, clean):
    """torchmetrics updates only one of those whose states are equal after the first batch; here they are all zero."""
    a, b = BATCHES[1]
    trained = copy.deepcopy(metric)  # of the same name
    for weights in trained.parameters():
        weights.mul_(1.01)
    collection = torchmetrics.MetricCollection(
        {
            "mean": RobustSimilarity(metric, normalize=True),
            "sum": RobustSimilarity(metric, normalize=True, reduction="sum"),
            "none": RobustSimilarity(metric, normalize=True, reduction="none"),
            "squared": RobustSimilarity(metric, normalize=True, squared=True),
            "clean": RobustSimilarity(clean, normalize=True),
            "trained": RobustSimilarity(trained, normalize=True),
        }
    )
    collection.update(a, a)
    assert sorted(map(sorted, collection.compute_groups.values())) == [
        ["clean"], ["mean", "sum"], ["none"], ["squared"], ["trained"],
    ]  # fmt: skip
    collection.update(a, b)
    zeros = torch.zeros(1)
    ours, theirs = torch.cat((zeros, metric(a, b))), torch.cat((zeros, clean(a, b)))
    expected = {
        "mean": ours.mean(), "sum": ours.sum(), "none": ours, "clean": theirs.mean(),
        "trained": torch.cat((zeros, trained(a, b))).mean(),
        "squared": torch.cat((zeros, metric(a, b, squared=True))).mean(),
    }  # fmt: skip
    torch.testing.assert_close(collection.compute(), expected)
    assert collection.clone(prefix="val_")["mean"].model is metric
    collection.reset()
    torch.testing.assert_close(collection(a, b)["mean"], metric(a, b).mean())


@pytest.mark.filterwarnings(
    "ignore:The default value for `maximize`:FutureWarning"
)  # of 1.6, which goes by what is set
def test_torchmetrics_wrappers(metric, embedded):
    from torchmetrics.wrappers import BootStrapper, MetricTracker, MinMaxMetric, Running

    tracker = MetricTracker(RobustSimilarity(metric, normalize=True), maximize=False)
    for a, b in embedded:
        tracker.increment()
        tracker.update(a, b)
    best, step = tracker.best_metric(return_step=True)
    means = [float(metric(a, b).mean()) for a, b in embedded]
    assert best == pytest.approx(min(means))
    assert step == means.index(min(means))

    torch.manual_seed(0)
    bootstrap = BootStrapper(RobustSimilarity(metric, normalize=True), num_bootstraps=5)
    bootstrap.update(*(torch.cat(side) for side in zip(*embedded, strict=True)))
    assert bootstrap.compute()["std"] > 0
    assert {id(one.model) for one in bootstrap.metrics} == {id(metric)}

    running = Running(RobustSimilarity(metric, normalize=True), window=2)
    for a, b in embedded:
        running.update(a, b)
    torch.testing.assert_close(running.compute(), all_pairs(metric, embedded[1:]).mean())
    minmax = MinMaxMetric(RobustSimilarity(metric, normalize=True))
    minmax.update(*embedded[0])
    assert minmax.compute()["min"] == minmax.compute()["max"]
    twice = 2 * RobustSimilarity(metric, normalize=True)
    torch.testing.assert_close(twice(*embedded[0]), 2 * metric(*embedded[0]).mean())


def test_torchmetrics_own_check_of_full_state_update(metric, embedded, capsys):
    from torchmetrics.utilities.checks import check_forward_full_state_property

    check_forward_full_state_property(
        RobustSimilarity, init_args={"model": metric, "normalize": True},
        input_args={"img1": embedded[1][0], "img2": embedded[1][1]}, num_update_to_compare=[2, 3], reps=2,
    )  # fmt: skip
    assert "Partial state" in capsys.readouterr().out


def test_torchmetrics_own_testers(metric):
    testers = pytest.importorskip("unittests._helpers.testers", reason="torchmetrics' wheel does not bring its tests")
    tester = testers.MetricTester()
    preds, target = (torch.stack(side) for side in zip(*(pictures(3, seed) for seed in range(2)), strict=True))

    # Of different names: what they give is kept by their names there.
    def distances(preds, target):
        return metric(preds, target)

    def mean_distance(preds, target):
        return metric(preds, target).mean()

    for reduction, reference in (("none", distances), ("mean", mean_distance)):
        args = {"model": metric, "normalize": True, "reduction": reduction}
        tester.run_class_metric_test(
            ddp=False, preds=preds, target=target, metric_class=RobustSimilarity, reference_metric=reference,
            metric_args=args, check_scriptable=False, atol=1e-6,
        )  # fmt: skip
    tester.run_differentiability_test(preds, target, metric_module=RobustSimilarity, metric_args=args)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tester.run_precision_test_cpu(preds, target, metric_module=RobustSimilarity, metric_args=args, dtype=dtype)


def test_plots(metric, embedded):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    similarity = RobustSimilarity(metric, normalize=True)
    values = [similarity(a, b) for a, b in embedded]
    _, axes = similarity.plot()
    assert axes.get_ylabel() == "RobustSimilarity"
    assert axes.get_ylim() == pytest.approx((-0.1 * 2**0.5, 1.1 * 2**0.5))
    _, axes = similarity.plot(values)
    assert axes.lines[0].get_ydata() == pytest.approx([float(value) for value in values])
    every = RobustSimilarity(metric, normalize=True, reduction="none")
    every.update(*embedded[0])
    _, axes = pyplot.subplots()
    every.plot(ax=axes)
    assert len(axes.lines) == 3
    pyplot.close("all")


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "robustsim.integrations.similarity")
    package = importlib.import_module("robustsim.integrations")
    monkeypatch.delitem(vars(package), "RobustSimilarity", raising=False)
    with pytest.raises(MissingDependencyError, match=r'pip install "robustsim\[integrations\]"'):
        _ = package.RobustSimilarity
    with pytest.raises(ImportError):
        from robustsim.integrations import RobustSimilarity  # noqa: F401


# What each of two processes computes.
JOB = """
import json, os, warnings
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection
from robustsim import RobustSim
from robustsim.integrations import RobustSimilarity

rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
metric = RobustSim.from_pretrained(device="cpu")
batches = torch.load("batches.pt")
told = {}
warnings.filterwarnings("ignore", "The ``compute`` method of metric RobustSimilarity")
for name, places in SHARES.items():
    for reduction in ("mean", "sum", "none"):
        one = RobustSimilarity(metric, reduction=reduction, normalize=True)
        for place in places[rank]:
            one.update(*batches[place])
        told[f"{name} {reduction}"] = one.compute().tolist()
        told[f"{name} {reduction} again"] = [one.compute().tolist(), one.sync_on_compute]
        one.update(*batches[0])  # it goes on from its own pairs
        told[f"{name} {reduction} more"] = one.compute().tolist()
for reduction in ("mean", "none"):
    one = RobustSimilarity(metric, reduction=reduction, normalize=True, dist_sync_on_step=True)
    told[f"step {reduction}"] = [one(*batches[rank]).tolist(), one.compute().tolist()]
collection = MetricCollection({"a": RobustSimilarity(metric, normalize=True),
                               "b": RobustSimilarity(metric, normalize=True, squared=True)})
collection.update(*batches[rank])
told["collection"] = {name: value.tolist() for name, value in collection.compute().items()}
print(json.dumps(told))
dist.destroy_process_group()
"""


# Which batches each of the two sees.
SHARES = {
    "uneven": ([0, 1], [2]),
    "one idle": ([0, 1, 2], []),
    "first idle": ([], [0, 1, 2]),
    "both idle": ([], []),
}


def test_two_processes_give_what_one_does(metric, embedded, forks, tmp_path):
    torch.save(embedded, tmp_path / "batches.pt")
    with two_ranks() as ranks:
        codes, printed = forks.run(tmp_path, f"SHARES = {SHARES!r}\n{JOB}", ranks)
    assert codes == [0, 0], "\n".join(printed)
    told = [json.loads(one) for one in printed]
    assert repr(told[0]) == repr(told[1])  # NaN is among them
    pairs = [metric(a, b) for a, b in embedded]
    reduce = {"mean": torch.mean, "sum": torch.sum, "none": lambda pairs: pairs}
    for name, shares in SHARES.items():
        parts = [torch.cat([torch.empty(0), *(pairs[place] for place in places)]) for places in shares]
        for reduction, reduced in reduce.items():
            found, again, more = (told[0][f"{name} {reduction}{end}"] for end in ("", " again", " more"))
            assert found == pytest.approx(reduced(torch.cat(parts)).tolist(), rel=1e-6, nan_ok=True)
            assert repr(again) == repr([found, True])
            together = torch.cat((parts[0], pairs[0], parts[1], pairs[0]))
            assert more == pytest.approx(reduced(together).tolist(), rel=1e-6)
    step = torch.cat(pairs[:2])
    assert told[0]["step mean"] == pytest.approx([float(step.mean())] * 2, rel=1e-6)
    assert told[0]["step none"] == [pytest.approx(step.tolist(), rel=1e-6)] * 2
    squared = torch.cat([metric(*embedded[rank], squared=True) for rank in (0, 1)])
    assert told[0]["collection"] == pytest.approx({"a": float(step.mean()), "b": float(squared.mean())}, rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_call_that_is_refused_changes_nothing(metric, embedded, reduction):
    similarity = RobustSimilarity(metric, reduction=reduction, normalize=True)
    similarity(*embedded[0])
    before = similarity.compute()
    inside = {name: value for name, value in vars(similarity).items() if not name.startswith("_modules")}
    with pytest.raises(InputError):
        similarity(torch.full((1, 3, 24, 24), 7.0), torch.rand(1, 3, 24, 24))
    assert vars(similarity).keys() >= inside.keys()
    for name in ("_update_count", "_to_sync", "_should_unsync", "_enable_grad", "compute_on_cpu"):
        assert getattr(similarity, name) == inside[name]
    assert torch.equal(similarity.compute(), before)
    similarity(*embedded[1])
    torch.testing.assert_close(similarity.compute().mean(), all_pairs(metric, embedded[:2]).mean())
