"""What the attacks do: cost, early leaving, randomness, expectation, targets, ensembles, sanity checks."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from robustsim import RobustSim
from robustsim.attacks import (
    APGD,
    FAB,
    PGD,
    AutoAttack,
    CarliniWagner,
    Classification,
    EnsembleAttack,
    RandomNoise,
    SquareAttack,
    Targeted,
    TwoAFC,
    Untargeted,
    attack_in_batches,
    check_gradient_masking,
)
from robustsim.errors import InputError, ObjectiveError
from tests.classifiers import crops, trained

pytestmark = pytest.mark.usefixtures("one_thread")

LINF = {"norm": "linf", "eps": 4 / 255}


class Counted(nn.Module):
    """A model that counts its forward and backward passes, and the images in them."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.forwards, self.backwards, self.images = inner, 0, 0, 0

    def forward(self, images):
        self.forwards += 1
        self.images += len(images)
        out = self.inner(images)
        if out.requires_grad:
            out.register_hook(self.count)
        return out

    def count(self, _):
        self.backwards += 1


@pytest.fixture(scope="module")
def robust():
    return trained(robust=True)


@pytest.fixture(scope="module")
def plain():
    return trained()


def right(model, count=100, **options):
    """An objective and images that the model gets right."""
    images, labels = crops(count, seed=10**6, **options)
    objective = Classification(model, labels)
    with torch.no_grad():
        rows = torch.nonzero(~objective.success(images)).squeeze(1)
    return objective.select(rows), images[rows]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_hundred_steps_of_apgd_are_101_forwards_and_100_backwards(robust, norm):
    model = Counted(robust)
    objective, images = right(model, 8)
    model.forwards = model.backwards = 0
    result = APGD(norm=norm, eps={"linf": 8 / 255, "l2": 1.0, "l1": 5.0}[norm], steps=100)(objective, images)
    assert model.forwards <= 101
    assert model.backwards <= 100
    assert bool((result.queries == model.forwards).all())
    assert bool((result.gradients == model.backwards).all())
    if norm != "l1":
        assert (model.forwards, model.backwards) == (101, 100)


def test_pgd_for_training_costs_its_steps_and_judges_nothing(robust):
    model = Counted(robust)
    objective, images = right(model, 8)
    model.forwards = model.backwards = 0
    result = PGD(**LINF, steps=10, keep="last")(objective, images)
    assert (model.forwards, model.backwards) == (10, 10)
    assert result.success is None
    assert bool(result.loss.isnan().all())
    with torch.no_grad():
        assert float(objective(result.images).mean()) > float(objective(images).mean())


def test_broken_images_leave_the_batch(plain):
    model = Counted(plain)
    objective, images = right(model, 60)
    attack = partial(APGD, norm="linf", eps=16 / 255, steps=100)
    model.images = 0
    early = attack(stop_on_success=True)(objective, images)
    spent = model.images
    assert bool(early.success.all())
    assert spent < 0.1 * 101 * len(images)
    assert int(early.queries.sum()) == spent
    with torch.no_grad():
        assert bool(objective.success(early.images).all())


def test_a_plain_callable_always_sees_the_whole_batch(plain):
    objective, images = right(plain, 10)
    sizes = []

    def loss(x):
        sizes.append(len(x))
        return objective(x)

    result = APGD(norm="linf", eps=16 / 255, steps=5, stop_on_success=True)(loss, images)
    assert set(sizes) == {len(images)}
    assert result.success is None


class Duck:
    """Somebody's objective: a loss, a success, a selection, and nothing of ours."""

    def __init__(self, model, labels):
        self.model, self.labels = model, labels

    def __call__(self, images):
        return nn.functional.cross_entropy(self.model(images), self.labels, reduction="none")

    def success(self, images):
        return self.model(images).argmax(1) != self.labels

    def select(self, indices):
        return Duck(self.model, self.labels[indices])


def test_an_objective_of_another_kind_works_too(plain):
    ours, images = right(plain, 40)
    model = Counted(plain)
    theirs = Duck(model, ours.labels)
    full = APGD(**LINF, steps=20, generator=generator())(theirs, images)
    assert model.forwards == 21 + 1  # what success costs, once, on the images that are returned
    assert torch.equal(full.success, theirs.success(full.images))
    model.images = 0
    early = APGD(norm="linf", eps=16 / 255, steps=100, stop_on_success=True)(theirs, images)
    assert bool(early.success.all())
    assert model.images < 0.15 * 101 * len(images)
    result = EnsembleAttack([APGD(**LINF, steps=5), SquareAttack(**LINF, queries=5)])(theirs, images)
    assert torch.equal(result.success, theirs.success(result.images))
    with pytest.raises(InputError, match="needs an objective with classes"):
        AutoAttack(**LINF)(theirs, images)
    with pytest.raises(InputError, match="needs an objective with a boundary"):
        FAB(**LINF)(theirs, images)


def test_restarts_and_steps_help(robust):
    objective, images = right(robust, 200)

    def left(**options):
        attack = APGD(norm="linf", eps=8 / 255, generator=generator(), stop_on_success=True, **options)
        return float((~attack(objective, images).success).float().mean())

    assert left(steps=20) <= left(steps=2)
    assert left(steps=5, restarts=4) <= left(steps=5)
    told = []
    attack = APGD(
        norm="linf", eps=8 / 255, steps=5, restarts=3, generator=generator(), callback=lambda step: told.append(step)
    )
    assert int(attack(objective, images).queries.max()) == 3 * 6
    assert [(step.attack, step.step, step.steps) for step in told] == [("APGD", n, 18) for n in range(1, 19)]
    # A point that succeeds is better than any that does not, whatever its loss.
    assert all(bool(((b.loss >= a.loss) | (b.success & ~a.success)).all()) for a, b in pairwise(told))
    for step in told[::5]:
        torch.testing.assert_close(objective.select(step.indices)(step.images), step.loss)


def test_a_callback_changes_nothing_of_points_that_are_not_judged(plain):
    objective, images = right(plain, 4)
    told = []
    options = {"norm": "linf", "eps": 8 / 255, "steps": 3, "random_start": False, "keep": "last"}
    quiet = PGD(**options)(objective, images)
    watched = PGD(**options, callback=lambda step: told.append(step))(objective, images)
    assert torch.equal(quiet.images, watched.images)
    assert not torch.equal(quiet.images, images)
    # At each step the points are those of as many gradients.
    shorter = PGD(**{**options, "steps": 2}, step_size=2.5 * 8 / 255 / 3)(objective, images)
    torch.testing.assert_close(told[2].images, shorter.images)


def test_what_a_restart_has_broken_stays_broken(plain):
    """Without ``select`` too: the attack ends when all are, in whichever go."""
    objective, images = right(plain, 40)

    class Whole(Classification):
        select = property()

    told = []
    options = {"norm": "linf", "eps": 6 / 255, "steps": 4, "restarts": 50, "stop_on_success": True}
    attack = APGD(**options, generator=generator(), callback=lambda step: told.append(int(step.success.sum())))
    result = attack(Whole(plain, objective.labels), images)
    assert told == sorted(told)
    assert told[-1] == int(result.success.sum())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_larger_start_stays_in_the_ball_and_costs_the_same(robust, norm):
    objective, images = right(robust, 60)
    eps = {"linf": 8 / 255, "l2": 1.0}[norm]
    plain, larger = (
        APGD(norm=norm, eps=eps, steps=30, larger_eps=choice, generator=generator())(objective, images)
        for choice in (False, True)
    )
    assert int(larger.queries.max()) == int(plain.queries.max()) == 31
    assert not torch.equal(larger.images, plain.images)
    assert float(larger.distance.max()) <= eps + 1e-6
    assert abs(int(larger.success.sum()) - int(plain.success.sum())) <= 3


def test_fab_restarts_and_carlini_wagner_is_confident(robust):
    objective, images = right(robust, 12)
    eps = 8 / 255
    one, two = (
        FAB(norm="linf", eps=eps, steps=5, targets=2, restarts=count, generator=generator())(objective, images)
        for count in (1, 2)
    )
    assert int(two.queries.max()) > 1.8 * int(one.queries.max())
    assert bool((two.success >= one.success).all())
    sure = CarliniWagner(steps=60, searches=6, learning_rate=0.05, confidence=1.0)(objective, images)
    with torch.no_grad():
        assert float(objective.margin()(sure.images)[sure.success].min()) >= 1.0 - 1e-3
    assert int(sure.success.sum()) > 6


def test_without_asking_the_device_the_loops_come_to_the_same(monkeypatch):
    """The branch for accelerators, where nobody asks whether a loop has converged."""
    from robustsim.attacks import ThreatModel
    from robustsim.attacks.engine import region

    originals = torch.rand(3, 3, 24, 24, generator=generator()).round()
    points = originals + 0.5 * torch.randn(originals.shape, generator=generator(1))
    for norm, eps in (("l2", 4.0), ("l1", 60.0)):
        wanted = ThreatModel(norm, eps).project(points, originals)
        with monkeypatch.context() as patch:
            patch.setattr(region, "on_host", lambda tensor: False)
            found = ThreatModel(norm, eps).project(points, originals)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_the_best_point_is_returned(robust):
    objective, images = right(robust, 20)
    seen = []

    def loss(x):
        value = objective(x)
        seen.append(value.detach())
        return value

    for attack in (APGD(**LINF, steps=15), PGD(**LINF, steps=15, step_size=0.05), SquareAttack(**LINF, queries=15)):
        seen.clear()
        result = attack(loss, images)
        torch.testing.assert_close(result.loss, torch.stack(seen).amax(0))


def test_targeted_apgd_tries_the_classes(robust):
    objective, images = right(robust, 100)
    options = {"norm": "linf", "eps": 8 / 255, "steps": 10, "stop_on_success": True}
    one, many = (APGD(**options, targets=count, generator=generator())(objective, images) for count in (1, 5))
    assert int(many.success.sum()) >= int(one.success.sum()) > 0
    assert int(many.queries.max()) == 1 + 5 * 11 + 1
    with pytest.raises(InputError, match="targets= needs an objective with classes"):
        APGD(**options, targets=2)(lambda x: x.flatten(1).sum(1), images)


def test_two_classes_take_the_margin_instead_of_dlr():
    model = trained(classes=2)
    objective, images = right(model, 30, classes=2)
    result = AutoAttack(norm="linf", eps=16 / 255, steps=10, queries=20, generator=generator())(objective, images)
    assert float(result.success.float().mean()) > 0.5
    with pytest.raises(InputError, match="use the margin"):
        APGD(**LINF)(objective.with_loss("dlr"), images)


def test_an_ensemble_runs_on_what_still_stands(plain):
    model = Counted(plain)
    objective, images = right(model, 60)
    alone = APGD(**LINF, steps=20, generator=generator())(objective, images)
    labels = objective.labels.clone()
    labels[0] = (labels[0] + 1) % 10  # wrong before anybody attacks
    parts = [APGD(**LINF, steps=20, generator=generator()), SquareAttack(**LINF, queries=30, generator=generator())]
    result = EnsembleAttack(parts)(Classification(model, labels), images)
    assert torch.equal(result.images[0], images[0])
    assert int(result.queries[0]) == 1
    assert int(result.success.sum()) >= int(alone.success.sum()) - 1  # from other random points
    standing = ~result.success
    assert bool((result.queries[standing] == 1 + 21 + 31).all())
    assert float(result.queries[result.success].float().mean()) < 20
    stopped = EnsembleAttack([APGD(**LINF, steps=5, callback=lambda step: True), SquareAttack(**LINF)])
    assert int(stopped(objective, images).queries.max()) == 2
    with pytest.raises(InputError, match="at least one attack"):
        EnsembleAttack([])


def test_the_nearest_adversarial_images_are_near(robust):
    """Within half of what FAB needs nothing is to be found, with a little more than it mostly something."""
    objective, images = right(robust, 30)
    for norm in ("linf", "l2"):
        result = FAB(norm=norm, steps=30)(objective, images)
        assert bool(result.success.all())
        more = APGD(norm=norm, eps=1.05 * result.distance.clamp_min(1e-6), steps=50, generator=generator())
        less = APGD(norm=norm, eps=0.5 * result.distance, steps=50, generator=generator())
        assert float(more(objective, images).success.float().mean()) > 0.75
        assert float(less(objective, images).success.float().mean()) < 0.3
    far = CarliniWagner(steps=60, searches=6, learning_rate=0.05)(objective, images)
    near = FAB(norm="l2", steps=30)(objective, images)
    assert float((far.distance / near.distance).median()) < 1.3


def test_what_is_beyond_the_radius_is_no_success(robust):
    objective, images = right(robust, 30)
    reach = FAB(norm="linf", steps=20)(objective, images).distance
    eps = float(reach.median())
    result = FAB(norm="linf", eps=eps, steps=20)(objective, images)
    assert 0 < int(result.success.sum()) < len(images)
    assert bool((result.distance[~result.success] == 0).all())
    assert torch.equal(result.images[~result.success], images[~result.success])


def test_expectation_over_transformation():
    """A model with random flips: averaged gradients find what single ones miss."""
    inner, images = trained(), crops(60, seed=10**6)
    noise = generator(1)

    def noisy(x):
        return inner((x + 0.15 * torch.randn(x.shape, generator=noise)).clamp(0, 1))

    objective = Classification(noisy, images[1])

    def left(eot):
        result = PGD(**LINF, steps=10, eot=eot, generator=generator())(objective, images[0])
        assert int(result.gradients.max()) == 10 * eot
        with torch.no_grad():
            return float(torch.stack([objective(result.images) for _ in range(30)]).mean())

    assert left(8) > left(1)


@pytest.mark.parametrize("perturb", ["reference", "left", "right", "all"])
def test_the_choice_of_the_metric_is_turned_around(perturb):
    metric = RobustSim.from_pretrained("lite-clean", device="cpu")  # which holds against nobody
    pictures = metric.preprocess([f"examples/{name}" for name in ("chelsea.png", "coffee.png", "rocket.jpg")])
    reference, left, right = (pictures[index : index + 1] for index in range(3))
    label = metric.two_afc(reference, left, right).long()
    objective = TwoAFC(
        embed=metric.embed_pixels, reference=reference, left=left, right=right, labels=label, perturb=perturb
    )
    result = APGD(norm="linf", eps=4 / 255, steps=20, stop_on_success=True, generator=generator())(
        objective, objective.images
    )
    assert bool(result.success.all())
    changed = {"reference": reference, "left": left, "right": right}
    if perturb == "all":
        changed = dict(zip(changed, result.images.unbind(1), strict=True))
    else:
        changed[perturb] = result.images
    assert metric.two_afc(*changed.values()).long() != label
    assert float((result.images - objective.images).abs().max()) <= 4 / 255 + 1e-6


def test_embeddings_are_moved():
    metric = RobustSim.from_pretrained("lite-clean", device="cpu")
    image, target = (metric.preprocess(f"examples/{name}") for name in ("chelsea.png", "coffee.png"))
    apart = float(metric.distance(image, target))
    away = APGD(**LINF, steps=10, generator=generator())(Untargeted(metric.embed_pixels, image), image)
    assert float(metric.distance(away.images, image)) > 0.5
    towards = APGD(**LINF, steps=10, generator=generator())(Targeted(metric.embed_pixels, target), image)
    assert float(metric.distance(towards.images, target)) < 0.8 * apart


def test_messages_name_what_is_wrong(robust):
    objective, images = right(robust, 4)
    with pytest.raises(ObjectiveError, match=r"no gradient to the images; look for detach\(\)"):
        PGD(**LINF)(lambda x: objective(x.detach()), images)
    with pytest.raises(ObjectiveError, match="use SquareAttack"):
        APGD(**LINF)(lambda x: objective((x * 255).round().detach() / 255 + 0 * x.detach()), images)
    with pytest.raises(InputError, match=r"one loss for each image, shape \(4,\) here, not \(\)"):
        PGD(**LINF)(lambda x: objective(x).mean(), images)
    with pytest.raises(ObjectiveError, match="gradient is not finite at step 0 for the images 0, 1, 2, 3"):
        PGD(**LINF, random_start=False)(lambda x: (x - images).flatten(1).square().sum(1).sqrt(), images)
    for wrong, message in (
        ({"keep": "lst"}, "keep='lst' is none of best, last"),
        ({"step_size": -1.0}, "step_size must be at least 0"),
        ({"share": 0.0}, "share must be in"),
    ):
        with pytest.raises(InputError, match=message):
            PGD(**LINF, **wrong)
    with pytest.raises(InputError, match="queries must be a whole number of at least 1"):
        AutoAttack(**LINF, queries=0)
    with pytest.raises(InputError, match="learning_rate must be above 0"):
        CarliniWagner(learning_rate=-1.0)
    with pytest.raises(InputError, match="no ensembles in it"):
        EnsembleAttack([EnsembleAttack([PGD(**LINF)])])
    with pytest.raises(InputError, match="threshold is a distance"):
        Untargeted(lambda x: x.flatten(1), images, threshold=-0.1)
    with pytest.raises(InputError, match="momentum must be in"):
        PGD(**LINF, momentum=1.0)
    with pytest.raises(InputError, match="steps must be a whole number of at least 1, not 0"):
        APGD(**LINF, steps=0)
    with pytest.raises(InputError, match="step_rule='log' is none of constant, linear, cosine"):
        PGD(**LINF, step_rule="log")
    with pytest.raises(InputError, match="keep='last'"):
        PGD(**LINF, keep="last", restarts=2)
    with pytest.raises(InputError, match="knows l2, not linf"):
        CarliniWagner(norm="linf")
    with pytest.raises(InputError, match="restarts= needs eps="):
        FAB(norm="l2", restarts=2)


def test_indices_are_those_of_the_batch(plain):
    objective, images = right(plain, 30)
    told = []
    attack = APGD(norm="linf", eps=8 / 255, steps=20, stop_on_success=True, callback=lambda step: told.append(step))
    batched = attack_in_batches(attack, objective, images, batch_size=10)
    assert {index for step in told for index in step.indices.tolist()} == set(range(len(images)))
    assert batched.images.shape == images.shape
    with torch.no_grad():
        assert torch.equal(batched.success, objective.success(batched.images))

    def hurt(x, rows):
        return torch.where((rows == 17)[:, None], torch.nan, plain(x))

    class Bad(Classification):
        per_image = (*Classification.per_image, "rows")

        def scores(self, x):
            return hurt(x, self.rows)

    bad = Bad(plain, objective.labels)
    bad.rows = torch.arange(len(images))
    with pytest.raises(ObjectiveError, match="for the images 17:"):
        attack_in_batches(PGD(**LINF), bad, images, batch_size=10)


def test_progress_goes_to_standard_error(plain, capsys):
    objective, images = right(plain, 4)
    PGD(**LINF, steps=3, progress=True)(objective, images)
    out, err = capsys.readouterr()
    assert out == ""
    assert "PGD" in err
    PGD(**LINF, steps=3)(objective, images)
    assert capsys.readouterr() == ("", "")


def test_compiled_models_and_compiled_callers(plain):
    objective, images = right(plain, 6)
    attack = APGD(**LINF, steps=4, generator=generator())
    wanted = attack(objective, images)
    compiled = Classification(torch.compile(plain, backend="aot_eager"), objective.labels)
    found = APGD(**LINF, steps=4, generator=generator())(compiled, images)
    torch.testing.assert_close(found.images, wanted.images, rtol=0, atol=1e-5)

    @partial(torch.compile, backend="aot_eager")
    def caller(x):
        return APGD(**LINF, steps=4, generator=random)(objective, x * 1.0).images + 0

    random = generator()
    torch.testing.assert_close(caller(images), wanted.images, rtol=0, atol=1e-5)


def report(model, images, labels, **options):
    given = {"norm": "linf", "eps": 4 / 255, "steps": 20, "queries": 60, "generator": generator(), **options}
    return check_gradient_masking(Classification(model, labels), images, **given)


def test_an_honest_model_passes_the_sanity_checks(robust):
    found = report(robust, *crops(80, seed=10**6), tolerance=0.03)
    assert found.warnings == ()
    assert "no sign of it" in str(found)
    assert found.accuracy["clean"] >= found.accuracy["noise"] >= found.accuracy["apgd"] > 0
    assert list(found.by_eps.values())[-1] == 0


class Rounded(nn.Module):
    """Inputs in few levels: the gradient is zero almost everywhere, and the model looks robust."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner((images * 12).round() / 12)


class Hidden(Rounded):
    """Gradients of another function than the one that decides: they are there, and lead nowhere."""

    def forward(self, images):
        other = self.inner(images.flip(3).roll(5, 2))
        return self.inner(images).detach() + other - other.detach()


def test_masked_gradients_are_found(plain):
    images, labels = crops(60, seed=10**6)
    flat = report(Rounded(plain), images, labels)
    assert not next(check for check in flat.checks if check.name == "gradients are there").passed
    assert not next(check for check in flat.checks if check.name == "accuracy falls to zero as eps grows").passed
    assert "SUSPECTED" in str(flat)
    hidden = report(Hidden(plain), images, labels, queries=800)
    assert [check.name for check in hidden.checks if not check.passed] == ["black box finds nothing new"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_black_box_is_asked_in_every_norm(plain, norm):
    images, labels = crops(12, seed=10**6)
    found = report(plain, images, labels, norm=norm, eps={"linf": "4/255", "l2": "0.5", "l1": 5}[norm], steps=10)
    assert found.accuracy["square"] <= found.accuracy["apgd"]
    assert "Square (60 queries)" in str(found)


def test_the_sanity_checks_need_a_notion_of_success(plain):
    images, labels = crops(4, seed=0)
    with pytest.raises(InputError, match="offers success"):
        check_gradient_masking(lambda x: x.sum((1, 2, 3)), images, eps=0.1)
    with pytest.raises(InputError, match="pass threshold="):
        check_gradient_masking(Untargeted(lambda x: plain(x), images), images, eps=0.1)
    with pytest.raises(InputError, match="above 0 and finite"):
        check_gradient_masking(Classification(plain, labels), images, norm="l2", eps=math.inf)


def test_noise_is_the_worst_of_its_draws(robust):
    objective, images = right(robust, 20)
    one, many = (RandomNoise(**LINF, draws=draws, generator=generator())(objective, images) for draws in (1, 20))
    assert bool((many.loss >= one.loss - 1e-6).all())


def test_stopped_in_a_larger_ball_an_attack_returns_what_is_in_the_right_one(plain):
    """l1 begins with larger radii; their points are no results, and a callback must not be told of them."""
    objective, images = right(plain, 12)
    wrong = Classification(plain, (objective.labels + 1) % 10)
    told = []

    def stop(step):
        told.append(step)
        return step.step == 5

    for goal in (wrong, objective):
        result = APGD(norm="l1", eps=5.0, steps=50, callback=stop, generator=generator())(goal, images)
        with torch.no_grad():
            loss, success = goal.evaluate(result.images)
        assert torch.equal(result.success, success)
        torch.testing.assert_close(result.loss, loss, rtol=1e-4, atol=1e-5)
        assert float((result.images - images).abs().flatten(1).sum(1).max()) <= 5 + 1e-5
    assert not any(bool(step.success.any()) for step in told)


def test_pgd_in_l1_does_not_spend_itself_on_saturated_pixels():
    slopes = torch.randn(4, 3, 12, 12, generator=generator())
    images = torch.rand(slopes.shape, generator=generator(1)).round()

    def linear(x):
        return (slopes * x).flatten(1).sum(1)

    weak, strong = (
        attack(norm="l1", eps=30.0, steps=100, generator=generator())(linear, images).loss - linear(images)
        for attack in (PGD, APGD)
    )
    assert float((weak / strong).min()) > 0.9


class Holder:
    """Somebody's own wrapper, with the model some steps away."""

    __slots__ = ("stage",)

    def __init__(self, model):
        self.stage = type("Stage", (), {})()
        self.stage.parts = [{"backbone": model}]

    def embed(self, images):
        return self.stage.parts[0]["backbone"](images)


GLOBAL_MODEL = None


class Rude:
    """Looking at it runs code that fails."""

    def __init__(self, model):
        self.net = model

    def __getattr__(self, name):
        raise KeyError(name)

    @property
    def trap(self):
        raise RuntimeError("nobody should look here")

    def __call__(self, images):
        return self.net(images)


def test_models_are_found_where_they_are(plain):
    model = Counted(nn.Sequential(nn.Dropout(0.9), copy.deepcopy(plain))).train()
    seen = []
    model.inner.register_forward_hook(lambda *_: seen.append(model.inner[0].training))
    holder = Holder(model)
    globals()["GLOBAL_MODEL"] = model
    labels = torch.zeros(2, dtype=torch.int64)

    def with_default(x, *, net=model):
        return net(x).amax(1)

    goals = [
        Classification(holder.embed, labels),
        Classification(lambda x: holder.embed(x), labels),
        Classification(partial(Holder.embed, holder), labels),
        with_default,
        lambda x: GLOBAL_MODEL(x).amax(1),
        lambda x: torch.stack([GLOBAL_MODEL(part[None])[0] for part in x]).amax(1),
        Classification(Rude(model), labels),
    ]
    for goal in goals:
        seen.clear()
        PGD(**LINF, steps=1)(goal, torch.rand(2, 3, 20, 20))
        assert set(seen) == {False}
        assert model.inner[0].training
    globals()["GLOBAL_MODEL"] = None


class Boundary(Duck):
    """The least that attacks on the boundary need, without ``evaluate``."""

    def margin(self):
        return lambda images: Classification(self.model, self.labels, loss="margin")(images)


def test_boundary_attacks_need_no_more_than_they_say(plain):
    ours, images = right(plain, 10)
    theirs = Boundary(plain, ours.labels)
    for attack in (FAB(norm="l2", steps=10), CarliniWagner(steps=30, searches=5, learning_rate=0.1)):
        result = attack(theirs, images)
        assert torch.equal(result.success, theirs.success(result.images))
        assert float(result.success.float().mean()) > 0.8


def test_fab_knows_tiny_gradients(plain):
    ours, images = right(plain, 10)
    for norm in ("linf", "l2", "l1"):
        big, small = (
            FAB(norm=norm, steps=10)(Classification(lambda x, scale=scale: plain(x) * scale, ours.labels), images)
            for scale in (1.0, 1e-20)
        )
        torch.testing.assert_close(small.distance, big.distance, rtol=1e-2, atol=1e-4)


def test_batches_of_an_ensemble_with_radii_of_their_own(plain):
    objective, images = right(plain, 12)
    eps = torch.linspace(0.01, 0.06, len(images))
    options = {"norm": "linf", "eps": eps, "generator": generator()}
    ensemble = EnsembleAttack([PGD(**options, steps=3), SquareAttack(**options, queries=3)])
    result = attack_in_batches(ensemble, objective, images, batch_size=5)
    assert bool(((result.images - images).abs().flatten(1).amax(1) <= eps + 1e-6).all())
    calls = []
    stopping = EnsembleAttack([PGD(**options, steps=3, callback=lambda step: calls.append(step) or True)])
    with pytest.raises(InputError, match=r"\d+ radii for \d+ images"):
        attack_in_batches(PGD(norm="linf", eps=eps[:-1]), objective, images, batch_size=5)
    result = attack_in_batches(stopping, objective, images, batch_size=5)
    with torch.no_grad():
        torch.testing.assert_close(result.loss, objective(result.images), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1
    assert torch.equal(result.images[5:], images[5:])


def test_objectives_that_cannot_be_trusted_are_found_out(plain):
    objective, images = right(plain, 8)
    objective, images = objective.select(torch.arange(4)), images[:4]
    before = images.clone()

    def in_place(x):
        return x.sub_(0.5).div_(0.25).flatten(1).mean(1)

    square = SquareAttack(**LINF, queries=5)
    for attack in (square, EnsembleAttack([square]), PGD(**LINF, steps=2)):
        with pytest.raises(ObjectiveError, match="changes the images it is given: look for inplace=True"):
            attack(in_place, images)
    assert torch.equal(images, before)

    class Spoils(Duck):
        def success(self, x):
            return super().success(x.sub_(5))

    with pytest.raises(ObjectiveError, match="changes the images it is given"):
        PGD(**LINF, steps=2)(Spoils(plain, objective.labels), images)

    class Column(Duck):
        def success(self, x):
            return super().success(x)[:, None]

    with pytest.raises(InputError, match=r"success is one truth for each image, shape \(4,\) here, not \(4, 1\)"):
        PGD(**LINF, steps=2)(Column(plain, objective.labels), images)

    class NanAtTheEnd(Classification):
        def loss(self, scores):
            return super().loss(scores) * (torch.nan if self.loss_name == "ce" else 1)

    bad = NanAtTheEnd(plain, objective.labels)
    for attack in (FAB(**LINF, steps=2), SquareAttack(**LINF, queries=3), APGD(**LINF, steps=3, targets=2)):
        with pytest.raises(ObjectiveError, match="loss is NaN at the adversarial images 0, 1, 2, 3"):
            attack(bad, images)
    with pytest.raises(InputError, match="PGD needs a finite radius"):
        PGD(norm="l2", eps=math.inf)


def test_autoattack_begins_with_cross_entropy_whatever_the_caller_looks_at(plain):
    objective, images = right(plain, 30)
    options = {"norm": "linf", "eps": 4 / 255, "steps": 5, "queries": 5, "targets": 2}
    one, two = (
        AutoAttack(**options, generator=generator())(objective.with_loss(loss), images) for loss in ("ce", "margin")
    )
    assert torch.equal(one.images, two.images)
    with torch.no_grad():
        torch.testing.assert_close(two.loss, objective.margin()(two.images), rtol=1e-4, atol=1e-5)


def test_pgd_begins_where_it_is_told():
    images = torch.full((3, 3, 4, 4), 0.5)
    start = images + torch.tensor([0.01, -0.01, 0.3]).view(3, 1, 1, 1)
    attack = PGD(norm="linf", eps=0.02, steps=1, step_size=0.0, start=start, keep="last")
    found = attack(lambda x: x.flatten(1).sum(1), images).images
    expected = images + torch.tensor([0.01, -0.01, 0.02]).view(3, 1, 1, 1)  # what lies outside is brought in
    assert torch.allclose(found, expected, atol=1e-6)
    rows = torch.tensor([2, 0])
    assert torch.equal(attack.for_images(rows).start, start[rows])
    with pytest.raises(InputError, match=r"start is \(3, 3, 4, 4\), the images are \(2, 3, 4, 4\)"):
        attack(lambda x: x.flatten(1).sum(1), images[:2])
    with pytest.raises(InputError, match="one restart"):
        PGD(norm="linf", eps=0.02, start=start, restarts=2)
