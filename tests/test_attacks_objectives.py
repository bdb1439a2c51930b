"""Objectives: their formulas, their gradients, their notion of success, and what they compute only once."""

import pytest
import torch
from torch.nn import functional as F

from robustsim.attacks import APGD, Classification, OddOneOut, Targeted, TextTargeted, TwoAFC, Untargeted
from robustsim.attacks.objectives import losses
from robustsim.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (4, 3, 6, 6)


def embed(images):
    """A smooth, nonlinear embedding of any floating-point images, (N, 5); counts its calls."""
    embed.calls += 1
    weights = torch.linspace(-1, 1, 5 * 108, dtype=images.dtype).view(5, 108).sin()
    return torch.tanh(images.flatten(1) @ weights.T) + 0.3


def images(seed, count=4):
    return torch.rand(count, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))


def afc(**options):
    given = {"reference": images(0), "left": images(1), "right": images(2), "labels": torch.tensor([0, 1, 0, 1])}
    return TwoAFC(embed=embed, **{**given, **options})


def odd(**options):
    return OddOneOut(**{"embed": embed, "odd": images(0), "others": (images(1), images(2)), **options})


def city_blocks(u, v):
    return (u - v).abs().sum(1)


def model(inputs):
    return 3 * embed(inputs)


LABELS, TARGETS = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])
OBJECTIVES = {
    **{f"afc-{side}": lambda side=side: afc(perturb=side) for side in ("reference", "left", "right", "all")},
    "afc-margin": lambda: afc(loss="margin"),
    "afc-distance": lambda: TwoAFC(
        distance=lambda a, b: (a - b).square().mean((1, 2, 3)).sqrt(),
        reference=images(0), left=images(1), right=images(2), labels=torch.tensor([0, 1, 0, 1]),
    ),
    "afc-embedded-distance": lambda: afc(distance=city_blocks),
    "odd": lambda: odd(),
    "odd-all": lambda: odd(perturb="all"),
    "odd-distance": lambda: odd(distance=city_blocks),
    "odd-dlr": lambda: odd(loss="dlr"),
    "untargeted": lambda: Untargeted(embed, images(3), threshold=0.3),
    "targeted": lambda: Targeted(embed, images(4, count=16), threshold=0.3),
    "targeted-each": lambda: Targeted(embed, torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0))),
    "text": lambda: TextTargeted(embed, torch.ones(5), others=torch.eye(5)),
    **{loss: lambda loss=loss: Classification(model, LABELS, loss=loss) for loss in ("ce", "margin", "dlr")},
    **{
        loss: lambda loss=loss: Classification(model, LABELS, loss=loss, targets=TARGETS)
        for loss in ("targeted-ce", "targeted-margin", "targeted-dlr")
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_calls_yet():
    embed.calls = 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_the_loss(name, monkeypatch):
    # Everything in double precision, so that finite differences mean something.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())
    objective = OBJECTIVES[name]()
    start = getattr(objective, "images", images(5)).double().requires_grad_()
    assert torch.autograd.gradcheck(objective, start, eps=1e-6, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_forward_tells_loss_and_success(name):
    objective = OBJECTIVES[name]()
    points = getattr(objective, "images", images(5))
    embed.calls = 0
    loss, won = objective.evaluate(points)
    assert embed.calls == (0 if name == "afc-distance" else 1)
    torch.testing.assert_close(loss, objective(points))
    assert loss.shape == (4,)
    if won is None:
        with pytest.raises(InputError, match="no notion of success"):
            objective.success(points)
    else:
        assert torch.equal(won, objective.success(points))
        assert torch.equal(objective.margin()(points) > 0, won)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_selection_is_the_same_objective_for_some_images(name):
    objective = OBJECTIVES[name]()
    points = getattr(objective, "images", images(5))
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(objective.select(rows)(points[rows]), objective(points)[rows])
    assert objective(points).shape == (4,)  # the whole one is as it was


def unit(inputs):
    return F.normalize(embed(inputs), dim=1)


def test_formulas():
    x = images(5)
    torch.testing.assert_close(Untargeted(embed, images(3))(x), (unit(x) - unit(images(3))).square().sum(1))  # Eq. 6
    targets = images(4, count=16)
    wanted = -(unit(x)[:, None] - unit(targets)[None]).square().sum((1, 2))  # Eq. 5
    torch.testing.assert_close(Targeted(embed, targets)(x), wanted)
    torch.testing.assert_close(TextTargeted(embed, torch.ones(5))(x), F.cosine_similarity(unit(x), torch.ones(1, 5)))
    pair = torch.stack([F.cosine_similarity(unit(images(0)), unit(images(side))) for side in (1, 2)], 1)  # Eq. 4
    labels = torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(afc()(images(0)), F.cross_entropy(pair, labels, reduction="none"))
    assert torch.equal(afc().success(images(0)), pair.argmax(1) != labels)


def test_losses_of_classifiers():
    z = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 4.0, 2.0]])
    y, t = torch.tensor([0, 2]), torch.tensor([2, 1])
    torch.testing.assert_close(losses.margin(z, y), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(losses.dlr(z, y), torch.tensor([-1 / 2, 1 / 3]))
    torch.testing.assert_close(losses.targeted_dlr(z, y, t), torch.tensor([-1 / 2.5, 1 / 4]))
    torch.testing.assert_close(losses.margin_to(z, y, t), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(losses.targeted_cross_entropy(z, y, t), z.log_softmax(1)[[0, 1], t])


def test_too_few_classes_are_told():
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    y = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError, match=r"DLR needs logits .* at least 3 classes, not .*use the margin"):
        losses.dlr(two, y)
    with pytest.raises(InputError, match="at least 4 classes"):
        losses.targeted_dlr(three, y, y)
    with pytest.raises(InputError, match="at least 2 classes"):
        losses.margin(torch.zeros(1, 1), y)
    with pytest.raises(InputError, match="use the margin"):
        afc(loss="dlr")(images(0))


def test_clean_embeddings_are_computed_once():
    objective = afc()
    assert embed.calls == 2
    APGD(eps=0.1, steps=10)(objective, objective.images)
    assert embed.calls == 2 + 11


def test_embeddings_stand_in_for_pictures_that_stay():
    objective = afc(left=embed(images(1)), right=embed(images(2)))
    torch.testing.assert_close(objective(images(0)), afc()(images(0)))
    with torch.inference_mode():
        made_there = afc(left=images(1), right=embed(images(2)))
    x = images(0).requires_grad_()
    made_there(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_targets_in_the_order_of_their_likelihood():
    objective = Classification(model, LABELS)
    x = images(5)
    ranked = model(x).scatter(1, LABELS[:, None], -torch.inf).argsort(1, descending=True)
    aims = objective.targeted(x, 9)
    assert len(aims) == 4
    assert [aim.targets.tolist() for aim in aims] == ranked[:, :4].T.tolist()
    assert {aim.loss_name for aim in aims} == {"targeted-dlr"}
    assert [aim.loss_name for aim in afc().targeted(images(0), 9)] == ["targeted-margin"]


def test_what_makes_no_objective_is_refused():
    with pytest.raises(InputError, match="embed= or distance=, or both"):
        TwoAFC(reference=images(0), left=images(0), right=images(0), labels=LABELS)
    with pytest.raises(InputError, match="4 reference, 2 left"):
        afc(left=images(1, count=2))
    with pytest.raises(InputError, match="leave out triplets that tie"):
        afc(labels=torch.tensor([0.0, 1.0, 0.5, 1.0]))
    with pytest.raises(InputError, match="none of reference, left, right, all"):
        afc(perturb="both")
    with pytest.raises(InputError, match=r"reference must be images \(N, C, H, W\), not \(4, 5\)"):
        afc(reference=torch.rand(4, 5))
    with pytest.raises(InputError, match="'hinge' is none of the losses"):
        Classification(model, LABELS, loss="hinge")
    with pytest.raises(InputError, match="needs targets="):
        Classification(model, LABELS, loss="targeted-dlr")
    with pytest.raises(InputError, match="takes no targets"):
        Classification(model, LABELS, targets=TARGETS)
    with pytest.raises(InputError, match="labels must be integers"):
        Classification(model, LABELS.float())


def test_what_stays_is_embedded_in_eval_mode():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5), torch.nn.Flatten())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objective = Untargeted(net, images(3))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    torch.testing.assert_close(objective(images(3)), torch.zeros(4))


def test_odd_one_out_is_the_image_outside_the_most_similar_pair():
    pictures = [images(0), images(1), images(2)]
    z = [F.normalize(embed(one), dim=-1) for one in pictures]
    similarity = {(a, b): (z[a] * z[b]).sum(1) for a, b in ((1, 2), (0, 2), (0, 1))}
    objective = odd()
    assert torch.allclose(objective.scores(objective.images), torch.stack(list(similarity.values()), 1))
    found = objective.scores(objective.images).argmax(1)
    assert torch.equal(objective.success(objective.images), found != 0)
    embed.calls = 0
    objective.scores(objective.images)
    assert embed.calls == 1  # the two others are embedded once, when the objective is made
    everything = odd(perturb="all")
    assert everything.images.shape == (4, 3, *SHAPE[1:])
    assert torch.allclose(everything.scores(everything.images), objective.scores(objective.images), atol=1e-6)


def test_distances_of_embeddings_are_asked_of_embeddings_as_they_are():
    objective = afc(distance=city_blocks)
    u, v = embed(images(0)), embed(images(1))  # not of length 1
    assert torch.allclose(objective.scores(objective.images)[:, 0], -city_blocks(u, v), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed": None}, "embed= or distance=, or both"),
        ({"perturb": "left"}, "neither odd nor all"),
        ({"others": (images(1, count=3), images(2))}, "4 odd, 3 first, 4 second"),
        ({"odd": torch.zeros(4, 5)}, "must be"),
    ],
)
def test_odd_one_out_refuses_what_does_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        odd(**options)
