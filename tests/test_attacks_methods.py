"""Single attacks: what Square proposes, where APGD begins, of what AutoAttack's versions consist."""

import math

import numpy as np
import pytest
import torch

from robustsim.attacks import (
    APGD,
    FAB,
    AutoAttack,
    Classification,
    EnsembleAttack,
    RandomNoise,
    SquareAttack,
    TwoAFC,
    attack_in_batches,
)
from robustsim.errors import InputError
from robustsim.evaluation import AttackPlan
from tests.classifiers import crops, trained

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = {"linf": 8 / 255, "l2": 1.0, "l1": 10.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def right(model, count, **options):
    images, labels = crops(count, seed=10**6, **options)
    objective = Classification(model, labels)
    rows = torch.nonzero(~objective.success(images)).squeeze(1)
    return objective.select(rows), images[rows]


class Watched:
    """A loss that keeps the points it is asked about; `better` says which queries are improvements."""

    def __init__(self, better):
        self.better, self.points = better, []

    def __call__(self, points):
        self.points.append(points.clone())
        return torch.full((len(points),), float(self.better(len(self.points))))


SHAPES = [(6, 1, 9, 9), (6, 3, 9, 7), (3, 3, 2, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("better", [lambda count: -count, lambda count: count], ids=["none is better", "all are"])
def test_no_query_of_square_is_spent_on_what_is_known(shape, better):
    images = torch.rand(shape, generator=generator())
    images[0] = 1  # colours of which one is cut by the bounds
    seen = Watched(better)
    SquareAttack(norm="linf", eps=0.1, queries=120, generator=generator(1))(seen, images)
    best = seen.points[0]
    for points in seen.points[1:]:
        changed = points != best
        assert bool(changed.flatten(1).any(1).all())
        best = points if better(1) > 0 else best
    colours = torch.stack([(images - 0.1).clamp_min(0), (images + 0.1).clamp_max(1)])
    assert bool(((points - colours).abs() < 1e-6).any(0).all())


def test_square_in_linf_draws_nothing_that_it_does_not_use():
    """Where it begins does not depend on how many queries will follow."""
    images, begun = torch.full((2, 3, 6, 6), 0.5), []
    for queries in (2, 50):
        seen = Watched(lambda count: -count)
        SquareAttack(norm="linf", eps=0.1, queries=queries, generator=generator())(seen, images)
        begun.append(seen.points[0])
    assert torch.equal(*begun)


def test_squares_of_square_lie_anywhere_and_in_each_image_elsewhere():
    images = torch.full((5, 1, 6, 6), 0.5)
    seen = Watched(lambda count: -count)
    SquareAttack(norm="linf", eps=0.1, queries=400, p=0.05, generator=generator())(seen, images)
    changed = torch.stack([points != seen.points[0] for points in seen.points[1:]])  # (queries, N, 1, 6, 6)
    assert set(changed.flatten(2).sum(2).unique().tolist()) == {1}
    assert bool(changed.any(0).all())  # every pixel, the last row and column too
    alike = (changed[:, 0] == changed[:, 1]).flatten(1).all(1)
    assert float(alike.float().mean()) < 0.15  # 1 of 36 by chance


def test_colours_of_square_are_even_among_those_that_change_something():
    """Of two channels at their upper value, three of the four colours are left, each as likely."""
    images = torch.full((200, 2, 1, 1), 0.5)
    counts = {}
    for seed in range(5):
        seen = Watched(lambda count: -count)
        SquareAttack(norm="linf", eps=0.1, queries=2, generator=generator(seed))(seen, images)
        first, second = (points.flatten(1) > 0.5 for points in seen.points)
        for pair in (first ^ second).tolist():
            counts[tuple(pair)] = counts.get(tuple(pair), 0) + 1
    assert set(counts) == {(True, False), (False, True), (True, True)}
    assert all(abs(count - 1000 / 3) < 60 for count in counts.values())  # 4 standard deviations


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_query_of_square_is_in_the_set_and_uses_the_radius(norm, shape):
    images = torch.rand(shape, generator=generator())
    size = {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm]
    seen = Watched(lambda count: count)
    SquareAttack(norm=norm, eps=size, queries=60, generator=generator(1))(seen, images)
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    for points in seen.points:
        assert float(points.min()) >= 0
        assert float(points.max()) <= 1
        length = torch.linalg.vector_norm((points - images).double(), order, dim=(-3, -2, -1))
        assert float(length.max()) <= size + 1e-5
        if norm == "l1":
            assert float(length.min()) >= 0.85 * size  # the bounds may leave less


def test_square_takes_any_memory_format():
    images = torch.rand(2, 3, 8, 8, generator=generator())
    for norm in EPS:
        attack = SquareAttack(norm=norm, eps=0.3, queries=20, generator=generator(1))

        def loss(x):
            return (x * torch.linspace(-1, 1, 192).view(3, 8, 8)).flatten(1).sum(1)

        plain = attack(loss, images)
        attack = SquareAttack(norm=norm, eps=0.3, queries=20, generator=generator(1))
        last = attack(loss, images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last.images, plain.images)


def test_square_in_l1_climbs():
    """Higher than noise with as many queries, the more of them the higher, and not as high as gradients."""
    objective, images = right(trained(), 50)
    options = {"norm": "l1", "eps": EPS["l1"], "generator": generator()}
    attacks = (
        RandomNoise(draws=100, **options),
        SquareAttack(queries=20, **options),
        SquareAttack(queries=100, **options),
        APGD(steps=20, **options),
    )
    noise, few, many, apgd = (float(one(objective.margin(), images).loss.mean()) for one in attacks)
    assert few < many < apgd
    assert noise < many


# What a step of Square in l2 and l1 is, once more, image by image and number by number.


def hill(height, width):
    """Rectangular rings around the centre: at ring r the sum of 1 / k^2 from k = r + 1."""
    ring = [[max(abs(i - height // 2), abs(j - width // 2)) for j in range(width)] for i in range(height)]
    last = max(height, width) // 2 + 1
    values = np.array([[sum(1 / k**2 for k in range(r + 1, last + 1)) for r in row] for row in ring])
    return values / np.linalg.norm(values)


def next_change(change, norm, radius, side, draw, signs):
    """The perturbation (C, H, W) after one step, where no pixel meets a bound."""
    order = {"l2": 2, "l1": 1}[norm]

    def size(values):
        return (np.abs(values) ** order).sum() ** (1 / order)

    def window(down, right):
        top, left = int(down * (change.shape[1] - side + 1)), int(right * (change.shape[2] - side + 1))
        return slice(top, top + side), slice(left, left + side)

    to, source = window(*draw[:2]), window(*draw[2:4])
    pattern = np.concatenate([hill(side // 2, side), -hill(side - side // 2, side)])
    pattern = (pattern.T if draw[4] < 0.5 else pattern) / size(pattern)
    both = np.zeros(change.shape[1:], bool)
    both[to] = both[source] = True
    spare = radius**order - size(change) ** order
    result, count = change.copy(), len(change)
    result[:, source[0], source[1]] = 0
    for channel in range(count):
        old = change[channel][to]
        fresh = old / size(old) + signs[channel] * pattern
        if norm == "l2":  # the energy of this channel, and its part of what was spare
            length = np.sqrt((change[channel][both] ** 2).sum() + spare / count)
        else:  # the mass of all channels to each
            length = spare + count * np.abs(change[:, both]).sum()
        result[channel][to] = fresh / size(fresh) * length
    if norm == "l2":
        return result * radius / size(result)
    low, high = 0.0, np.abs(result).max()  # soft threshold, to the radius
    for _ in range(60):
        level = (low + high) / 2
        low, high = (level, high) if np.maximum(np.abs(result) - level, 0).sum() > radius else (low, level)
    return np.sign(result) * np.maximum(np.abs(result) - high, 0)


@pytest.mark.parametrize(("norm", "radius"), [("l2", 1.0), ("l1", 2.0)])
@pytest.mark.parametrize(("seed", "turned"), [(0, True), (3, True), (2, False), (5, False)])  # 2 and 3: windows overlap
def test_a_step_of_square_is_what_the_papers_say(norm, radius, seed, turned, monkeypatch):
    images = torch.full((2, 3, 12, 11), 0.5, dtype=torch.float64)
    before = torch.randn(images.shape, generator=generator(100 + seed), dtype=torch.float64)
    order = {"l2": 2, "l1": 1}[norm]
    before *= 0.6 * radius / torch.linalg.vector_norm(before, order, dim=(1, 2, 3), keepdim=True)  # some is spare
    monkeypatch.setattr(SquareAttack, "_tiles", lambda self, run: images + before)
    seen = Watched(lambda count: -count)
    SquareAttack(norm=norm, eps=radius, queries=2, p=25 / 132, generator=generator(seed))(seen, images)
    same = generator(seed)
    draw = torch.rand(2, 5, generator=same)[0].tolist()
    signs = torch.where(torch.rand(2, 3, 1, 1, generator=same, dtype=torch.float64) < 0.5, -1, 1).flatten(1).numpy()
    assert (draw[4] < 0.5) == turned
    after = (seen.points[1] - images).numpy()
    for image in range(2):
        wanted = next_change(before[image].numpy(), norm, radius, 5, draw, signs[image])
        assert np.abs(wanted).max() < 0.5
        # In l1 a thousandth of the radius may stay unused.
        np.testing.assert_allclose(after[image], wanted, rtol=0, atol=1e-9 if norm == "l2" else 1e-3 * radius / 20)


# -- where APGD begins


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_apgd_begins_where_it_is_told(norm):
    images = torch.full((3, 3, 6, 6), 0.5)
    start = images + torch.tensor([1e-3, -1e-3, 0.4]).view(3, 1, 1, 1)
    seen = []

    def loss(x):
        seen.append(x.detach().clone())
        return x.flatten(1).sum(1)

    attack = APGD(norm=norm, eps=0.2, steps=3, start=start, larger_eps=False)
    attack(loss, images)
    expected = attack.threat.project(start, images)
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(seen[0][:2], expected[:2], rtol=0, atol=0)  # what is inside keeps its bits
    rows = torch.tensor([2, 0])
    assert torch.equal(attack.for_images(rows).start, start[rows])
    with pytest.raises(InputError, match=r"start is \(3, 3, 6, 6\), the images are \(2, 3, 6, 6\)"):
        attack(loss, images[:2])
    with pytest.raises(InputError, match="start must be a tensor like the images, not list"):
        APGD(norm=norm, eps=0.2, start=[0.5])(loss, images)
    with pytest.raises(InputError, match="one restart"):
        APGD(norm=norm, eps=0.2, start=start, restarts=2)


@pytest.mark.parametrize("options", [{}, {"targets": 3}, {"loss": "dlr"}], ids=str)
def test_a_beginning_goes_with_its_image(options):
    """Into batches, past images that have left, and to each target."""
    objective, images = right(trained(), 40)
    order = torch.arange(len(images)).flip(0)
    start = (images + 0.02).clamp(0, 1)
    common = {"norm": "linf", "eps": 4 / 255, "steps": 6, "stop_on_success": True, **options}
    whole = APGD(**common, start=start)(objective, images)
    parts = attack_in_batches(APGD(**common, start=start), objective, images, batch_size=7)
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=1e-4)
    turned = APGD(**common, start=start[order])(objective.select(order), images[order])
    torch.testing.assert_close(turned.images[order], whole.images, rtol=0, atol=1e-4)
    assert 0 < int(whole.success.sum()) < len(images)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("options", [{}, {"loss": "ce"}, {"loss": "dlr"}, {"targets": 3}], ids=str)
def test_each_aim_begins_where_it_is_told(norm, larger, options):
    """Whatever it maximises: the beginning is brought into the ball that the search begins in."""
    images, labels = crops(4, seed=3)
    start = (images + torch.linspace(-0.5, 0.5, 4).view(4, 1, 1, 1)).clamp(0, 1)
    seen = []

    def model(pixels):
        seen.append(pixels.detach().clone())
        return trained()(pixels)

    steps, eps = 12, EPS[norm]
    attack = APGD(norm=norm, eps=eps, steps=steps, start=start, larger_eps=larger, **options)
    attack(Classification(model, labels), images)
    ranking = 1 if options.keys() & {"targets"} or options.get("loss") == "dlr" else 0  # looks at the classes, before
    factor = 3 if larger else 1
    expected = APGD(norm=norm, eps=factor * eps).threat.project(start, images)
    assert not bool(torch.isclose(expected, images).flatten(1).all(1).any())
    for aim in range(options.get("targets", 1)):
        torch.testing.assert_close(seen[ranking + aim * (steps + 1)], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_first_step_is_as_long_as_it_is_told(norm):
    images, order = torch.full((2, 3, 6, 6), 0.5), {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    for step_size, larger, factor in ((0.01, False, 1), (None, False, 1), (0.01, True, 3)):
        seen = []

        def loss(x, seen=seen):
            seen.append(x.detach().clone())
            return (x * torch.linspace(1, 2, 108).view(3, 6, 6)).flatten(1).sum(1)

        APGD(norm=norm, eps=0.04, steps=30, start=images, step_size=step_size, larger_eps=larger)(loss, images)
        first = torch.linalg.vector_norm((seen[1] - seen[0]).flatten(1), order, dim=1)
        wanted = 0.04 if step_size is None else factor * step_size  # 2 eps from the middle is cut at eps
        torch.testing.assert_close(first, torch.full((2,), wanted), rtol=1e-3, atol=0)


@pytest.mark.parametrize("step_size", [0, -1.0, math.inf, math.nan, "one"])
def test_steps_that_lead_nowhere_are_refused(step_size):
    with pytest.raises(InputError, match="step_size must be above 0 and finite"):
        APGD(eps=0.1, step_size=step_size)


# -- AutoAttack


def parts(**options):
    attacks = AutoAttack(eps=0.1, **options).attacks()
    names = ("loss", "restarts", "targets", "eot", "queries")
    return [(type(one).__name__, {name: getattr(one, name) for name in names if hasattr(one, name)}) for one in attacks]


def apgd(loss=None, restarts=1, targets=None, eot=1):
    return "APGD", {"loss": loss, "restarts": restarts, "targets": targets, "eot": eot}


def fab(restarts, targets):
    return "FAB", {"restarts": restarts, "targets": targets}


SQUARE = ("SquareAttack", {"queries": 5000})


def test_autoattack_is_made_of_what_its_authors_say():
    assert parts() == [apgd(), apgd(targets=9), fab(1, 9), SQUARE]
    assert parts(norm="l1") == [apgd(restarts=5), apgd(targets=5), fab(1, 9), SQUARE]
    plus = [apgd(restarts=5), apgd("dlr", 5), fab(5, None), SQUARE, apgd(targets=9), fab(1, 9)]
    assert parts(version="plus") == parts(version="plus", norm="l1") == plus
    assert parts(version="rand") == [apgd(eot=20), apgd("dlr", eot=20)]
    with pytest.raises(InputError, match="version='best' is none of standard, plus, rand"):
        AutoAttack(eps=0.1, version="best")


@pytest.mark.parametrize("version", ["plus", "rand"])
@pytest.mark.parametrize("classes", [2, 10])
def test_autoattack_takes_the_margin_where_dlr_is_none(version, classes):
    objective, images = right(trained(classes=classes), 6, classes=classes)
    attack = AutoAttack(eps=1 / 255, version=version, steps=2, queries=3, targets=1, generator=generator())
    result = attack(objective, images)
    assert torch.equal(result.success, objective.success(result.images))
    standing = ~result.success
    assert bool(standing.any())
    # What each part costs: its evaluations, a pass where it counts or ranks classes, and one where it judges the end.
    rand = 1 + 20 * 3 + (1 + 20 * 3 + 20)
    plus = 1 + 5 * 3 + (1 + 5 * 3 + 1) + (5 * 5 + 1) + (3 + 1) + (1 + 3 + 1) + (1 + 5 + 1)
    assert set(result.queries[standing].tolist()) == {rand if version == "rand" else plus}


def test_dlr_is_used_where_there_are_three_classes():
    used = []

    class Told(Classification):
        def loss(self, scores):
            used.append(self.loss_name)
            return super().loss(scores)

    for classes, name in ((2, "margin"), (10, "dlr")):
        used.clear()
        images, labels = crops(4, seed=0, classes=classes)
        APGD(eps=0.01, steps=2, loss="dlr")(Told(trained(classes=classes), labels), images)
        assert set(used[:-1]) == {name}
        assert used[-1] == "ce"  # what is returned is told of by the objective's own loss
    with pytest.raises(InputError, match="two aims"):
        APGD(eps=0.1, loss="dlr", targets=2)
    with pytest.raises(InputError, match="offers with_loss"):
        APGD(eps=0.1, loss="dlr")(lambda x: x.flatten(1).sum(1), torch.rand(1, 3, 4, 4))


def test_of_a_randomised_model_most_draws_decide():
    """A point that a rare draw turns is no success, whichever loss found it."""
    noise = generator(5)
    inner = trained()

    def unsure(images):
        scores = inner(images)
        lucky = torch.rand(len(images), 1, generator=noise) < 0.1  # hardly ever in half of 20 draws
        return torch.where(lucky, scores.flip(1), scores)

    objective, images = right(inner, 60)
    for options in ({}, {"loss": "dlr"}):
        attack = APGD(eps=1e-6, steps=2, eot=20, generator=generator(), **options)
        result = attack(Classification(unsure, objective.labels), images)
        assert int(result.success.sum()) == 0


def test_fab_of_the_nearest_class():
    objective, images = right(trained(), 30)
    one, nine = (FAB(norm="l2", steps=10, targets=targets)(objective, images) for targets in (None, 9))
    assert bool(one.success.all())
    assert int(one.queries.max()) == 21 + 1
    assert 1 - 1e-3 <= float((one.distance / nine.distance).median()) < 1.3


@pytest.mark.parametrize("version", ["plus", "rand"])
def test_versions_need_an_objective_with_other_losses(version):
    class Duck:
        def __call__(self, images):
            return images.flatten(1).sum(1)

        success = targeted = margin = None

    with pytest.raises(InputError, match="with targeted, success, margin, with_loss"):
        AutoAttack(eps=0.1, version=version)(Duck(), torch.rand(1, 3, 4, 4))


def test_plans_know_the_versions():
    plan = AttackPlan(attacks=("autoattack", "autoattack-plus", "autoattack-rand"), steps=3, queries=4)
    made = [plan.make(name, "4/255", seed=0) for name in plan.attacks]
    assert [one.version for one in made] == ["standard", "plus", "rand"]
    AttackPlan(attacks="square", norm="l1", eps="12")


def test_a_metric_is_attacked_by_all_versions():
    pictures = [crops(4, seed=seed)[0] for seed in range(3)]
    labels = torch.zeros(4, dtype=torch.int64)

    def embed(images):
        return trained()[:8](images).flatten(1)

    objective = TwoAFC(embed=embed, reference=pictures[0], left=pictures[1], right=pictures[2], labels=labels)
    for version in ("standard", "plus", "rand"):
        attack = AutoAttack(eps=0.1, version=version, steps=2, queries=2, targets=1)
        result = EnsembleAttack(attack.attacks())(objective, objective.images)
        assert torch.equal(result.success, objective.success(result.images))
