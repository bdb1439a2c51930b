"""What every attack promises. A check takes ``make``, which builds the attack from keywords, and the norm it works in.

A new attack is one more row of ``ATTACKS`` in test_attacks_contract.py.
"""

import math

import pytest
import torch
from torch import nn

from robustsim.attacks import AttackResult, Classification
from robustsim.errors import InputError, ObjectiveError

EPS = {"linf": 0.1, "l2": 1.0, "l1": 10.0}
ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}


class Network(nn.Module):
    """Small, with what must not change under attack: running statistics, dropout, modes, frozen and free weights."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
                nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 6),
            )  # fmt: skip
            nn.init.normal_(self.layers[-1].weight, std=2.0)
        self.calls = self.seen = 0
        self.layers[0].bias.requires_grad_(False)
        self.train()
        self.layers[1].eval()

    def forward(self, images):
        self.calls += 1
        self.seen += len(images)
        return self.layers(images)


def problem(count=4):
    """A model in training mode, images, and an objective on the decisions that the model makes of them."""
    model = Network()
    images = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    images[0, :, :3] = 0
    images[0, :, 3:6] = 1
    with torch.no_grad():
        labels = Network().eval()(images).argmax(1)
    return model, images, Classification(model, labels)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def modes(model):
    return [part.training for part in model.modules()]


def assert_inside(images, originals, norm, eps):
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    size = torch.linalg.vector_norm((images.double() - originals.double()).flatten(1), ORDERS[norm], dim=1)
    assert bool((size <= torch.as_tensor(eps).double() + 1e-6).all()), f"{size.tolist()} > {eps}"


def check_form(make, norm):
    _, images, objective = problem()
    result = make(norm=norm, eps=EPS[norm], generator=generator())(objective, images)
    assert isinstance(result, AttackResult)
    assert result.images.shape == images.shape
    assert result.images.dtype == images.dtype
    assert not result.images.requires_grad
    for name, dtype in (("loss", torch.float32), ("success", torch.bool), ("queries", torch.int64)):
        value = getattr(result, name)
        assert value.shape == (4,), name
        assert value.dtype == dtype, name
        assert not value.requires_grad, name
    assert result.gradients.shape == result.distance.shape == (4,)
    double = make(norm=norm, eps=EPS[norm], generator=generator())(
        Classification(Network().double().eval(), objective.labels), images.double()
    )
    assert double.images.dtype == torch.float64


def check_budget(make, norm):
    _, images, objective = problem()
    for eps in (EPS[norm], EPS[norm] / 50, 0.0):
        result = make(norm=norm, eps=eps, generator=generator())(objective, images)
        assert_inside(result.images, images, norm, eps)
        wanted = torch.linalg.vector_norm((result.images - images).flatten(1), ORDERS[norm], dim=1)
        torch.testing.assert_close(result.distance, wanted, rtol=1e-5, atol=1e-6)


def check_truth(make, norm):
    """What is said of the images is so."""
    model, images, objective = problem(12)
    objective.labels[:3] = (objective.labels[:3] + 1) % 6
    for eps in (EPS[norm], EPS[norm] / 50):  # the second leaves some standing
        result = make(norm=norm, eps=eps, generator=generator())(objective, images)
        model.eval()
        with torch.no_grad():
            loss, success = objective.evaluate(result.images)
        assert torch.equal(result.success, success)
        torch.testing.assert_close(result.loss, loss, rtol=1e-4, atol=1e-4)


def check_strength(make, norm):
    """It finds what is there to be found: with a large radius, most images."""
    _, images, objective = problem(12)
    result = make(norm=norm, eps={"linf": 0.5, "l2": 10.0, "l1": 150.0}[norm], generator=generator())(objective, images)
    assert float(result.success.float().mean()) > 0.6


def check_inputs_untouched(make, norm):
    _, images, objective = problem()
    copy, version = images.clone(), images._version
    make(norm=norm, eps=EPS[norm], generator=generator())(objective, images)
    assert torch.equal(images, copy)
    assert images._version == version
    assert images.grad is None
    leaf = images.clone().requires_grad_()
    make(norm=norm, eps=EPS[norm], generator=generator())(objective, leaf)
    assert leaf.grad is None
    assert leaf.requires_grad


def check_model_untouched(make, norm):
    """Found as an attribute of the objective, and in the closure of a plain callable."""
    model, images, objective = problem()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mode, free = modes(model), [weight.requires_grad for weight in model.parameters()]
    attack = make(norm=norm, eps=EPS[norm], generator=generator())
    for goal in (objective, lambda images: model(images).logsumexp(1)):
        try:
            attack(goal, images)
        except InputError as error:
            assert "needs an objective" in str(error)  # noqa: PT017 - some attacks cannot do without a boundary
        assert modes(model) == mode
        assert [weight.requires_grad for weight in model.parameters()] == free
        assert all(weight.grad is None for weight in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def check_determinism(make, norm):
    _, images, objective = problem()
    state = torch.get_rng_state()
    first, again = (make(norm=norm, eps=EPS[norm], generator=generator(3))(objective, images) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(torch.get_rng_state(), state), "drawn from the global generator"


def check_radius_of_each(make, norm):
    _, images, objective = problem()
    eps = EPS[norm] * torch.tensor([0.0, 0.2, 1.0, 0.5])
    result = make(norm=norm, eps=eps, generator=generator())(objective, images)
    assert_inside(result.images, images, norm, eps)
    assert torch.equal(result.images[0], images[0])


def check_contexts(make, norm):
    """No gradients where the caller has switched them off, autocast, a bfloat16 model's coarse steps."""
    _, images, objective = problem()

    def attack():
        return make(norm=norm, eps=EPS[norm], generator=generator())(objective, images)

    plain = attack()
    with torch.no_grad():
        assert torch.equal(attack().images, plain.images)
    with torch.inference_mode():
        inside = make(norm=norm, eps=EPS[norm], generator=generator())(objective, images.clone())
    assert torch.equal(inside.images, plain.images)
    assert not inside.images.is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = attack()
    assert rough.images.dtype == torch.float32
    assert_inside(rough.images, images, norm, EPS[norm])


def check_nan(make, norm):
    """Raises with the step and the images, and leaves the model as it was."""
    model, images, objective = problem()
    mode, labels = modes(model), objective.labels.clone()
    labels[2] = 5
    with pytest.raises(ObjectiveError, match=r"NaN at step \d+ for the images 2:"):
        make(norm=norm, eps=EPS[norm], generator=generator())(_Nan(model, labels), images)
    assert modes(model) == mode


class _Nan(Classification):
    """NaN for the images whose label is 5, from the second evaluation on; none of them is ever broken."""

    def scores(self, images):
        scores = super().scores(images)
        hurt = (self.labels == 5)[:, None] & (self.model.calls > 1)
        return torch.where(hurt, torch.nan, scores)

    def gap(self, scores):
        return super().gap(scores.nan_to_num()) - 1e3 * (self.labels == 5)


def check_callback(make, norm):
    _, images, objective = problem()
    steps = []

    def stop(step):
        steps.append(step.step)
        assert step.loss.shape == step.indices.shape
        assert set(step.indices.tolist()) <= {0, 1, 2, 3}
        assert step.images.shape == (len(step.indices), *images.shape[1:])
        assert_inside(step.images, images[step.indices], norm, EPS[norm])
        step.images.zero_()  # a copy: nothing that the attack needs
        return len(steps) == 2

    result = make(norm=norm, eps=EPS[norm], generator=generator(), callback=stop)(objective, images)
    assert 1 <= len(steps) <= 2
    assert result.images.shape == images.shape
    assert_inside(result.images, images, norm, EPS[norm])


def check_cost_is_counted(make, norm):
    model, images, objective = problem()
    model.seen = 0
    result = make(norm=norm, eps=EPS[norm], generator=generator())(objective, images)
    assert int(result.queries.sum()) == model.seen


def check_keywords_only(make, norm):
    _, images, objective = problem()
    attack = make(norm=norm, eps=EPS[norm])
    with pytest.raises(TypeError):
        type(attack)(norm, EPS[norm])
    with pytest.raises(InputError, match="outside the bounds"):
        attack(objective, images * 2)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
