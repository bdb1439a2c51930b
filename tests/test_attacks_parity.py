"""Against the reference implementations: torchattacks (a port of the authors' AutoAttack) and foolbox.

On the same model, images, budget and number of iterations, ours must not leave more standing than they do.
"""

import warnings

import pytest
import torch

from robustsim.attacks import APGD, FAB, PGD, CarliniWagner, Classification, SquareAttack, ThreatModel
from tests.classifiers import crops, trained

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 300
EPS = {"linf": (2 / 255, 4 / 255, 8 / 255), "l2": (0.2, 0.5, 1.0), "l1": (2.0, 5.0, 12.0)}
THEIRS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


# The robust one tells attacks apart; beside it the other, on which all of them succeed, takes minutes.
@pytest.fixture(
    scope="module",
    params=[pytest.param(False, id="standard", marks=pytest.mark.slow), pytest.param(True, id="robust")],
)
def problem(request):
    """A model, and images that it gets right, with their labels."""
    model = trained(robust=request.param)
    images, labels = crops(COUNT, seed=10**6)
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    return model, images[right], labels[right]


def reference(name, extra):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        return pytest.importorskip(name, reason=f"pip install 'robustsim[{extra}]'")


@pytest.fixture(scope="module")
def torchattacks():
    return reference("torchattacks", "parity")


@pytest.fixture(scope="module")
def foolbox():
    return reference("foolbox", "test")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def standing(result):
    """In percentage points of all images."""
    return 100 * float((~result.success).sum()) / COUNT


def right_after(model, images, labels):
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).sum()) / COUNT


@pytest.mark.parametrize("steps", [50])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_as_strong_as_the_original(problem, torchattacks, norm, steps):
    model, images, labels = problem
    objective = Classification(model, labels)
    for eps in EPS[norm]:
        ours = APGD(norm=norm, eps=eps, steps=steps, stop_on_success=True, generator=generator())(objective, images)
        with torch.random.fork_rng():
            original = torchattacks.APGD(model, norm=THEIRS[norm], eps=eps, steps=steps, seed=0)
            theirs = right_after(model, original(images, labels), labels)
        assert standing(ours) <= theirs + 0.5, f"{eps}: {standing(ours)} against {theirs}"


def test_apgd_in_l1_is_stronger_than_pgd_and_sparse_descent(problem, foolbox):
    model, images, labels = problem
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for eps in EPS["l1"]:
        ours = APGD(norm="l1", eps=eps, steps=50, stop_on_success=True, generator=generator())(
            Classification(model, labels), images
        )
        for other in (foolbox.attacks.L1PGD(steps=50), foolbox.attacks.SparseL1DescentAttack(steps=50)):
            with torch.random.fork_rng():
                torch.manual_seed(0)  # of their random starts
                _, _, won = other(wrapped, images, foolbox.criteria.Misclassification(labels), epsilons=eps)
            assert standing(ours) <= 100 * float((~won).sum()) / COUNT + 1.0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_is_as_strong_as_foolbox(problem, foolbox, norm):
    model, images, labels = problem
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    original = getattr(foolbox.attacks, f"{THEIRS[norm]}PGD")(rel_stepsize=2.5 / 30, steps=30)
    for eps in EPS[norm]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, _, won = original(wrapped, images, foolbox.criteria.Misclassification(labels), epsilons=eps)
        ours = PGD(norm=norm, eps=eps, steps=30, stop_on_success=True, generator=generator())(
            Classification(model, labels), images
        )
        assert standing(ours) <= 100 * float((~won).sum()) / COUNT + 1.0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_is_as_near_as_the_original(problem, torchattacks, norm):
    model, images, labels = (part if isinstance(part, torch.nn.Module) else part[:100] for part in problem)
    with torch.random.fork_rng():
        original = torchattacks.FAB(
            model, norm=THEIRS[norm], eps=10.0, steps=15, multi_targeted=True, n_classes=10, seed=0
        )
        theirs = original(images, labels)
    ours = FAB(norm=norm, steps=15, generator=generator())(Classification(model, labels), images)
    assert bool(ours.success.all())
    distances = ThreatModel(norm, 1.0).distance(theirs, images)
    assert float(ours.distance.median()) <= 1.02 * float(distances.median())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_is_as_strong_as_the_original(problem, torchattacks, norm):
    model, images, labels = problem
    eps = EPS[norm][-1]
    with torch.random.fork_rng():
        original = torchattacks.Square(model, norm=THEIRS[norm], eps=eps, n_queries=300, seed=0)
        theirs = right_after(model, original(images, labels), labels)
    ours = [
        SquareAttack(norm=norm, eps=eps, queries=300, stop_on_success=True, generator=generator(seed))(
            Classification(model, labels), images
        )
        for seed in range(2)
    ]
    assert sum(map(standing, ours)) / 2 <= theirs + 3  # chance moves both by about 2


def test_carlini_wagner_is_as_near_as_foolbox(problem, foolbox):
    model, images, labels = (part if isinstance(part, torch.nn.Module) else part[:60] for part in problem)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    original = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=80, stepsize=0.02)
    _, theirs, _ = original(wrapped, images, foolbox.criteria.Misclassification(labels), epsilons=None)
    ours = CarliniWagner(searches=6, steps=80, learning_rate=0.02)(Classification(model, labels), images)
    distances = ThreatModel("l2", 1.0).distance(theirs, images)
    assert float(ours.distance.median()) <= 1.05 * float(distances.median())
