"""What objectives and attacks are given: every argument with rows, each way to be wrong, every kind of model output.

All of it is an InputError that names what came, or right; nothing is spread over a batch without a word.
"""

import re
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch

from robustsim.attacks import (
    APGD,
    FAB,
    PGD,
    AutoAttack,
    CarliniWagner,
    Classification,
    EnsembleAttack,
    OddOneOut,
    RandomNoise,
    SquareAttack,
    Targeted,
    TextTargeted,
    ThreatModel,
    TwoAFC,
    Untargeted,
    attack_in_batches,
    check_gradient_masking,
)
from robustsim.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

N, CLASSES, WIDTH = 4, 10, 5


def images(seed=0, count=N, side=6):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def linear(out, pixels):
    weights = torch.linspace(-1, 1, out * 108, dtype=pixels.dtype).view(out, 108).sin()
    return pixels.flatten(1) @ weights.T + 0.3


embed, model = partial(linear, WIDTH), partial(linear, CLASSES)


def distance(a, b):
    return (a - b).flatten(1).square().sum(1)


# Each objective by its arguments with rows, so that one of them can be exchanged.
MAKERS = {
    "Classification": (lambda **given: Classification(model, **given), {"labels": torch.arange(N)}),
    "Classification-targeted": (
        lambda **given: Classification(model, loss="targeted-margin", **given),
        {"labels": torch.arange(N), "targets": torch.arange(N) + 1},
    ),
    **{
        f"TwoAFC-{side}": (
            lambda side=side, **given: TwoAFC(embed=embed, perturb=side, **given),
            {"reference": images(0), "left": images(1), "right": images(2), "labels": torch.tensor([0, 1, 0, 1])},
        )
        for side in ("reference", "left", "right", "all")
    },
    "TwoAFC-distance": (
        lambda **given: TwoAFC(distance=distance, **given),
        {"reference": images(0), "left": images(1), "right": images(2), "labels": torch.tensor([0, 1, 0, 1])},
    ),
    **{
        f"OddOneOut-{part}": (
            lambda odd, first, second, part=part: OddOneOut(embed=embed, odd=odd, others=(first, second), perturb=part),
            {"odd": images(0), "first": images(1), "second": images(2)},
        )
        for part in ("odd", "all")
    },
    "Untargeted": (lambda **given: Untargeted(embed, threshold=0.3, **given), {"images": images(3)}),
    "Targeted-each": (
        lambda **given: Targeted(embed, threshold=0.3, **given),
        {"targets": torch.randn(N, 2, WIDTH, generator=torch.Generator().manual_seed(0))},
    ),
}  # fmt: skip
ARGUMENTS = [(name, argument) for name, (_, given) in MAKERS.items() for argument in given]
ROWS = {
    "empty": lambda value: value[:0],
    "one for all": lambda value: value[:1],
    "one too few": lambda value: value[:-1],
    "one too many": lambda value: torch.cat((value, value[:1])),
}
WRONG = {
    "none": lambda value: None,
    "text": lambda value: "abcd",
    "number": lambda value: 3,
    "dict": lambda value: {"a": 1},
    "list of text": lambda value: ["a", "b", "c", "d"],
    "ragged": lambda value: [[1, 2], [3]],
    "one dimension too many": lambda value: value[:, None, None],
    "scalar": lambda value: value.sum(),
    "complex": lambda value: value.to(torch.complex64),
    "other kind of number": lambda value: value.long() if value.is_floating_point() else value + 0.5,
}


def ways(objective, points):
    """All the ways in which an objective is asked; each must find the fault by itself."""
    yield partial(objective, points)
    yield partial(objective.evaluate, points)
    yield partial(objective.success, points)
    yield partial(objective.margin(), points)
    yield partial(attack_in_batches, PGD(eps=0.1, steps=1), objective, points, batch_size=2)
    yield partial(PGD(eps=0.1, steps=1), objective, points)
    if hasattr(objective, "targeted"):
        yield partial(objective.targeted, points, 2)


def points_of(name):
    return images(9)[:, None].expand(-1, 3, -1, -1, -1).clone() if name.endswith("-all") else images(9)


@pytest.mark.parametrize("way", ROWS)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_rows_that_are_not_as_many_are_refused_with_both_counts(name, argument, way):
    make, given = MAKERS[name]
    wrong = ROWS[way](given[argument])
    counts = rf"(?s)(?=.*\b{len(wrong)}\b)(?=.*\b{N}\b)"
    try:
        objective = make(**{**given, argument: wrong})
    except InputError as error:
        assert way == "empty" or str(len(wrong)) in str(error)  # noqa: PT017 - one of two places to find it
        return
    for ask in ways(objective, points_of(name)):
        with pytest.raises(InputError, match=counts):
            ask()


@pytest.mark.parametrize("count", [1, N - 1, N + 1])
@pytest.mark.parametrize("name", MAKERS)
def test_images_that_are_not_as_many_as_the_objective_is_for_are_refused(name, count):
    make, given = MAKERS[name]
    points = points_of(name)
    points = torch.cat((points, points))[:count]
    for ask in ways(make(**given), points):
        with pytest.raises(InputError, match=rf"(?s)(?=.*\b{count}\b)(?=.*\b{N}\b)"):
            ask()


@pytest.mark.parametrize("way", WRONG)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_is_of_the_wrong_kind_is_refused_when_the_objective_is_made(name, argument, way):
    make, given = MAKERS[name]
    with pytest.raises(InputError, match=r"must|labels are|needs targets="):
        make(**{**given, argument: WRONG[way](given[argument])})


@pytest.mark.parametrize("name", MAKERS)
def test_what_fits_is_right(name):
    make, given = MAKERS[name]
    objective, points = make(**given), points_of(name)
    loss, won = objective.evaluate(points)
    alone = [objective.select(torch.tensor([row])).evaluate(points[row : row + 1]) for row in range(N)]
    torch.testing.assert_close(loss, torch.cat([one[0] for one in alone]))
    assert torch.equal(won, torch.cat([one[1] for one in alone]))


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        np.asarray,
        lambda v: np.asarray(v, dtype=np.uint8),
        torch.tensor,
        lambda v: np.asarray(v[::-1])[::-1],
        lambda v: np.asarray(v, ">i8"),
    ],
)
def test_labels_may_be_lists_and_arrays_of_integers(kind):
    labels = [3, 0, 9, 2]
    objective = Classification(model, kind(labels), loss="targeted-ce", targets=kind([1, 1, 1, 1]))
    assert torch.equal(objective.labels, torch.tensor(labels))
    wanted = Classification(model, torch.tensor(labels)).success(images())
    assert torch.equal(objective.success(images()), wanted)
    sides = TwoAFC(embed=embed, reference=images(), left=images(1), right=images(2), labels=kind([0, 1, 0, 1]))
    assert sides.labels.tolist() == [0, 1, 0, 1]
    for floats in ([0.0, 1.0, 0.0, 1.0], np.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0])):
        likewise = TwoAFC(embed=embed, reference=images(), left=images(1), right=images(2), labels=floats)
        assert torch.equal(likewise.labels, torch.as_tensor(floats).long())
        with pytest.raises(InputError, match="labels must be integers"):
            Classification(model, floats)


@pytest.mark.parametrize("name", ["labels", "targets"])
@pytest.mark.parametrize(("value", "told"), [(-1, "from -1 to 2"), (CLASSES, "up to 10 for 10 classes")])
def test_classes_that_there_are_not_are_refused_with_the_range(name, value, told):
    given = {"labels": torch.tensor([0, 1, 2, 0]), "targets": torch.tensor([1, 2, 0, 1])}
    given[name] = torch.tensor([0, 1, 2, value])

    def objectives():
        made = Classification(model, loss="targeted-margin", **given)
        return [made, *([made.with_loss("ce"), made.with_loss("dlr")] if name == "labels" else [])]

    if value < 0:
        with pytest.raises(InputError, match=f"{name} {told}"):
            objectives()
        return
    for objective in objectives():
        asked = list(ways(objective, images()))
        for ask in asked[:1] if name == "targets" else asked:  # their margin has no targets
            with pytest.raises(InputError, match=f"{name} {told}: they are 0 to 9"):
                ask()


def test_labels_counted_from_one_of_two_are_refused():
    with pytest.raises(InputError, match="0 where left is nearer and 1 where right is"):
        TwoAFC(embed=embed, reference=images(), left=images(1), right=images(2), labels=[1, 2, 1, 2])


class Output(OrderedDict):
    """As models of transformers return it: a dictionary with attributes."""

    def __init__(self, logits):
        super().__init__(logits=logits)
        self.logits = logits


OUTPUTS = {
    "tuple": (lambda out: (out, out), r"not tuple: pass lambda images: model\(images\)\[0\]"),
    "list": (lambda out: [out], r"not list: pass lambda images: model\(images\)\[0\]"),
    "dict": (lambda out: {"features": out}, r"not dict: pass lambda images: model\(images\)\[...\], one of 'features'"),
    "object": (Output, r"not Output: pass lambda images: model\(images\)\.logits"),
    "none": (lambda out: None, "not NoneType"),
    "array": (lambda out: out.detach().numpy(), "not ndarray"),
    "number": (lambda out: 1.0, "not float"),
    "a row too few": (lambda out: out[:-1], rf"images, not torch.float32 \(\d*{N - 1}|\(\d+"),
    "a row too many": (lambda out: torch.cat((out, out[:1])), r"images, not torch.float32 \(\d+"),
    "one row for all": (lambda out: out[:1], r"images, not torch.float32 \(1"),
    "complex": (lambda out: out.to(torch.complex64), "complex64"),
    "one dimension too many": (lambda out: out[:, None], r"images, not torch.float32 \("),
    "one dimension too few": (lambda out: out[..., 0], r"images, not torch.float32 \("),
}
USERS = {
    "Classification": lambda wrap: Classification(lambda x: wrap(model(x)), torch.arange(N)),
    "TwoAFC": lambda wrap: TwoAFC(
        embed=lambda x: wrap(embed(x)), reference=images(), left=embed(images(1)), right=embed(images(2)),
        labels=[0, 1, 0, 1],
    ),
    "TwoAFC-distance": lambda wrap: TwoAFC(
        distance=lambda a, b: wrap(distance(a, b)), reference=images(), left=images(1), right=images(2),
        labels=[0, 1, 0, 1],
    ),
    "OddOneOut": lambda wrap: OddOneOut(
        embed=lambda x: wrap(embed(x)), odd=images(), others=(embed(images(1)), embed(images(2)))
    ),
    "Untargeted": lambda wrap: Untargeted(lambda x: wrap(embed(x)), embed(images(3)), threshold=0.3),
    "Targeted": lambda wrap: Targeted(lambda x: wrap(embed(x)), embed(images(3)), threshold=0.3),
    "TextTargeted": lambda wrap: TextTargeted(lambda x: wrap(embed(x)), torch.ones(WIDTH), others=torch.eye(WIDTH)),
}  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("user", USERS)
def test_what_a_function_returns_is_refused_if_it_is_no_row_for_each_image(user, output):
    wrap, told = OUTPUTS[output]
    objective = USERS[user](wrap)
    for ask in ways(objective, images()):
        with pytest.raises(InputError, match=rf"(model|embed|distance) must return .*{told}"):
            ask()


@pytest.mark.parametrize("user", [name for name in USERS if "distance" not in name])
def test_what_stays_is_held_to_the_same(user):
    """What is embedded when the objective is made."""
    makers = {
        "TwoAFC": lambda e: TwoAFC(embed=e, reference=images(), left=images(), right=images(), labels=[0, 1, 0, 1]),
        "OddOneOut": lambda e: OddOneOut(embed=e, odd=images(), others=(images(), images())),
        "Untargeted": lambda e: Untargeted(e, images()),
        "Targeted": lambda e: Targeted(e, images()),
    }
    for output in ("tuple", "object", "one row for all", "one dimension too few"):
        wrap, told = OUTPUTS[output]
        if user in makers:
            with pytest.raises(InputError, match=rf"embed must return .*{told}"):
                makers[user](lambda x, wrap=wrap: wrap(embed(x)))


@pytest.mark.parametrize("user", USERS)
def test_whole_numbers_are_numbers_and_have_no_gradient(user):
    objective = USERS[user](lambda out: (100 * out.detach()).long())
    result = SquareAttack(eps=0.1, queries=3)(objective, images())
    assert torch.equal(result.success, objective.success(result.images))


def test_embeddings_of_another_length_are_refused():
    one = torch.ones(N, 1)  # which torch would spread
    for make in (
        lambda: TwoAFC(embed=embed, reference=images(), left=one, right=one, labels=[0, 1, 0, 1]),
        lambda: OddOneOut(embed=embed, odd=images(), others=(one, one)),
        lambda: Untargeted(embed, one),
        lambda: Targeted(embed, one),
        lambda: TextTargeted(embed, torch.ones(1)),
    ):
        with pytest.raises(InputError, match=r"(?=.*\b1\b)(?=.*\b5\b)"):
            make()(images())


@pytest.mark.parametrize(
    ("text", "others", "told"),
    [
        (torch.ones(2, WIDTH), None, r"text must be one embedding, \(D,\) or \(1, D\), not \(2, 5\)"),
        (torch.ones(1, 1, WIDTH), None, "text must be embedded texts"),
        (torch.tensor(1.0), None, "text must be embedded texts"),
        (torch.ones(0), None, "text must be embedded texts"),
        ("a cat", None, "text must be embedded texts.*not str"),
        (torch.ones(WIDTH, dtype=torch.int64), None, "text must be embedded texts.*int64"),
        (torch.ones(WIDTH), torch.ones(0, WIDTH), r"others must be embedded texts.*\(0, 5\)"),
        (torch.ones(WIDTH), torch.ones(WIDTH), r"others must be embedded texts.*\(5,\)"),
        (torch.ones(WIDTH), torch.ones(2, 3), "embeddings of 5 numbers, and others 3"),
        (torch.ones(WIDTH), [1, 2], "others must be embedded texts.*list"),
    ],
)
def test_texts_that_do_not_fit_are_refused(text, others, told):
    with pytest.raises(InputError, match=told):
        TextTargeted(embed, text, others=others)


@pytest.mark.parametrize(
    "targets", [torch.ones(0, WIDTH), torch.ones(N, 0, WIDTH), images()[:0], images()[:, :, :, :, None], "a", None, [1]]
)
def test_targets_that_are_none_are_refused(targets):
    with pytest.raises(InputError, match="targets"):
        Targeted(embed, targets)


@pytest.mark.parametrize("others", [None, images(), (images(),), (images(),) * 3, 3])
def test_others_are_a_pair(others):
    with pytest.raises(InputError, match="pass a pair"):
        OddOneOut(embed=embed, odd=images(), others=others)


def test_pictures_of_different_sizes_are_not_attacked_together():
    with pytest.raises(InputError, match=r"left \(4, 3, 8, 8\).*of one size"):
        TwoAFC(embed=embed, reference=images(), left=images(side=8), right=images(), labels=[0, 1, 0, 1], perturb="all")
    with pytest.raises(InputError, match=r"first \(4, 3, 8, 8\).*of one size"):
        OddOneOut(embed=embed, odd=images(), others=(images(side=8), images()), perturb="all")


@pytest.mark.parametrize("wrong", [3, "model", torch.ones(2)])
def test_what_cannot_be_called_is_no_function(wrong):
    for make in (
        lambda: Classification(wrong, torch.arange(N)),
        lambda: TwoAFC(embed=wrong, reference=images(), left=images(), right=images(), labels=[0, 1, 0, 1]),
        lambda: OddOneOut(distance=wrong, odd=images(), others=(images(), images())),
        lambda: Untargeted(wrong, images()),
        lambda: Targeted(wrong, images()),
    ):
        with pytest.raises(InputError, match="must be a function of images"):
            make()


@pytest.mark.parametrize("threshold", ["0.3", -0.1, 2.0, float("nan"), [0.3]])
def test_thresholds_that_are_none_are_refused(threshold):
    for make in (Untargeted, Targeted):
        with pytest.raises(InputError, match="threshold is a distance"):
            make(embed, images(), threshold=threshold)


def test_one_class_decides_nothing():
    for loss in ("ce", "margin", "dlr"):
        with pytest.raises(InputError, match=r"at least [23] classes"):
            Classification(partial(linear, 1), torch.zeros(N, dtype=torch.int64), loss=loss)(images())


def test_a_check_of_masking_counts_too():
    with pytest.raises(InputError, match="5 labels for 4 images"):
        check_gradient_masking(Classification(model, torch.arange(5)), images(), eps=0.1, steps=10, queries=2)


def test_labels_are_looked_at_once_and_not_at_each_step(monkeypatch):
    objective = Classification(model, torch.arange(N))
    looks = []
    real = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda *given, **named: looks.append(given[0].dtype) or real(*given, **named))
    PGD(eps=0.1, steps=20)(objective, images())
    assert looks == [torch.float32]  # the images, before the attack begins


ATTACKS = {
    "PGD": partial(PGD, steps=2),
    "APGD": partial(APGD, steps=2),
    "SquareAttack": partial(SquareAttack, queries=2),
    "FAB": partial(FAB, steps=2, targets=1),
    "CarliniWagner": partial(CarliniWagner, steps=2, searches=1),
    "RandomNoise": partial(RandomNoise, draws=2),
    "AutoAttack": partial(AutoAttack, steps=2, queries=2, targets=1),
    "ThreatModel": ThreatModel,
}


def norm_of(name):
    return "l2" if name == "CarliniWagner" else "linf"


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("eps", "value"),
    [
        ("8/255", 8 / 255),
        (" 0.5 ", 0.5),
        (1, 1.0),
        (np.float32(0.25), 0.25),
        (np.float64(0.1), 0.1),
        (np.int64(1), 1.0),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (("1/255", 0.2, "0.3", 1), [1 / 255, 0.2, 0.3, 1]),
        (np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32), [0.1, 0.2, 0.3, 0.4]),
        (torch.tensor([0.1, 0.2, 0.3, 0.4]), [0.1, 0.2, 0.3, 0.4]),
    ],
    ids=str,
)
def test_radii_are_read_alike_by_all(name, eps, value):
    made = ATTACKS[name](norm=norm_of(name), eps=eps)
    torch.testing.assert_close(torch.as_tensor(made.eps).double(), torch.tensor(value).double())
    assert isinstance(made.eps, (float, torch.Tensor))
    if name != "ThreatModel":
        goal = Classification(model, model(images()).argmax(1))
        parts = attack_in_batches(made, goal, images(), batch_size=3)  # each image with its own radius
        size = (parts.images - images()).flatten(1)
        size = size.norm(dim=1) if norm_of(name) == "l2" else size.abs().amax(1)
        assert bool((size <= torch.tensor(value) + 1e-6).all())


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("eps", "told"),
    [
        (-0.1, "at least 0"),
        (float("nan"), "at least 0"),
        ("-1/255", "at least 0"),
        ("nan", "no radius"),
        ("eight", "no radius"),
        ("8/0", "no radius"),
        ("", "no radius"),
        (None, "eps must be one radius"),
        (True, "eps must be one radius"),
        (1j, "eps must be one radius"),
        ({}, "eps must be one radius"),
        ([], "eps must be one radius"),
        ([[0.1]], "eps must be one radius"),
        ([[0.1], [0.1, 0.2]], "eps must be one radius"),
        ([0.1, None], "eps must be one radius"),
        ([0.1, -0.1], "at least 0"),
        (["0.1", "x"], "at least 0"),
        (np.array([0.1, np.nan]), "at least 0"),
        (torch.ones(0), "eps must be one radius"),
        (torch.ones(2, 2), "eps must be one radius"),
        (torch.tensor(True), "eps must be one radius"),
        (torch.tensor(1j), "eps must be one radius"),
    ],
    ids=str,
)
def test_what_is_no_radius_is_refused_by_all(name, eps, told):
    with pytest.raises(InputError, match=told):
        ATTACKS[name](norm=norm_of(name), eps=eps)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "CarliniWagner"])
@pytest.mark.parametrize("eps", [8, "8", [8, 4, 1, 1], np.int64(8), torch.tensor(8)], ids=str)
def test_a_radius_meant_for_8_bits_is_asked_about_by_all(name, eps):
    with pytest.raises(InputError, match="did you mean 8/255"):
        ATTACKS[name](norm="linf", eps=eps)
    ATTACKS[name](norm="linf", eps=eps, bounds=(0, 255))


@pytest.mark.parametrize("bounds", [None, 1, (0,), (0, 1, 2), ("0", "1"), (1, 0), (0, float("nan"))], ids=str)
def test_bounds_that_are_none_are_refused(bounds):
    for make in ATTACKS.values():
        with pytest.raises(InputError, match=r"bounds must be \(low, high\)"):
            make(norm="l2", eps=1.0, bounds=bounds)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "ThreatModel"])
@pytest.mark.parametrize(
    "wrong", [None, "images", np.zeros((N, 3, 6, 6)), [torch.zeros(3, 6, 6)]], ids=lambda v: type(v).__name__
)
def test_images_are_tensors(name, wrong):
    attack = ATTACKS[name](norm=norm_of(name), eps=0.1)
    objective = Classification(model, torch.arange(N))
    for one in (attack, EnsembleAttack([attack])):
        with pytest.raises(InputError, match="attacks need a tensor of images"):
            one(objective, wrong)


COUNTS = [
    *((PGD, option) for option in ("steps", "restarts", "eot")),
    *((APGD, option) for option in ("steps", "restarts", "eot", "targets")),
    *((FAB, option) for option in ("steps", "restarts", "targets")),
    *((CarliniWagner, option) for option in ("steps", "searches")),
    *((AutoAttack, option) for option in ("steps", "queries", "targets")),
    (SquareAttack, "queries"),
    (RandomNoise, "draws"),
]
MASKING = partial(check_gradient_masking, Classification(model, torch.arange(N)), images(), eps=0.1)
BATCHES = partial(attack_in_batches, PGD(eps=0.1, steps=1), Classification(model, torch.arange(N)), images())


@pytest.mark.parametrize(("make", "option"), COUNTS, ids=lambda value: getattr(value, "__name__", value))
def test_counts_are_whole_numbers(make, option):
    for wrong in ("10", float("nan"), [3], 0, -1, 5.5, 5.0, True, np.bool_(True), torch.tensor(True), 1j, {}):
        with pytest.raises(InputError, match=f"{option} must be a whole number of at least 1, not "):
            make(eps=0.1, **{option: wrong})
    if option != "targets":
        with pytest.raises(InputError, match=f"{option} must be a whole number of at least 1, not None"):
            make(eps=0.1, **{option: None})
    for count in (2, np.int64(2), np.uint8(2), torch.tensor(2)):
        read = getattr(make(eps=0.1, **{option: count}), option)
        assert type(read) is int
        assert read == 2


@pytest.mark.parametrize(
    ("call", "option", "least"), [(MASKING, "steps", 10), (MASKING, "queries", 1), (MASKING, "batch_size", 1),
    (BATCHES, "batch_size", 1)],
)  # fmt: skip
def test_counts_of_functions_are_whole_numbers(call, option, least):
    for wrong in ("20", None, float("nan"), 20.5, True, least - 1):
        with pytest.raises(InputError, match=f"{option} must be a whole number of at least {least}, not "):
            call(**{option: wrong})


NUMBERS = {
    (PGD, "share"): "in (0, 1]",
    (PGD, "momentum"): "in [0, 1)",
    (SquareAttack, "p"): "in (0, 1]",
    (CarliniWagner, "learning_rate"): "above 0",
    (CarliniWagner, "first_weight"): "above 0",
    (CarliniWagner, "confidence"): "at least 0",
    (lambda eps, **given: MASKING(**given), "tolerance"): "at least 0",
}


@pytest.mark.parametrize(("make", "option"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_other_options_are_numbers_in_their_range(make, option):
    for wrong in ("0.5", None, float("nan"), [0.5], -0.1, True, np.bool_(True), 1j):
        with pytest.raises(InputError, match=re.escape(f"{option} must be {NUMBERS[make, option]}, not {wrong!r}")):
            make(eps=0.1, **{option: wrong})


@pytest.mark.parametrize("make", [PGD, APGD])
def test_lengths_of_steps_are_read_as_radii_are(make):
    for given, wanted in (
        ("2/255", 2 / 255), (" 0.25 ", 0.25), (1, 1.0), (np.float32(0.25), 0.25), (np.array(0.5), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5), (None, None),
    ):  # fmt: skip
        read = make(eps=0.1, steps=2, step_size=given).step_size
        assert read == wanted
        assert read is None or type(read) is float
    told, plain = (make(eps=0.1, steps=3, step_size=size, start=images()) for size in ("2/255", 2 / 255))
    objective = Classification(model, torch.arange(N))
    assert torch.equal(told(objective, images()).images, plain(objective, images()).images)
    least = "above 0" if make is APGD else "at least 0"
    for wrong in ("two", "nan", "2/0", "", "inf", -0.1, float("nan"), float("inf"), True, torch.tensor(True), 1j, {},
                  [0.1, 0.2], torch.ones(N)):  # fmt: skip
        with pytest.raises(InputError, match=f"step_size must be {least} and finite, a number or text such as 2/255"):
            make(eps=0.1, step_size=wrong)
    if make is APGD:
        with pytest.raises(InputError, match="step_size must be above 0"):
            make(eps=0.1, step_size=0)
    else:
        make(eps=0.1, step_size=0)


@pytest.mark.parametrize("make", [PGD, APGD])
@pytest.mark.parametrize(
    ("start", "told"),
    [
        ([0.5], "start must be a tensor like the images, not list"),
        (images().numpy(), "start must be a tensor like the images, not ndarray"),
        ("image", "start must be a tensor like the images, not str"),
        ((images() * 255).to(torch.uint8), r"not torch.uint8: use start.float\(\) / 255"),
        (images().long(), r"not torch.int64: use start.float\(\)"),
        (images().bool(), r"not torch.bool: use start.float\(\)"),
        (images().to(torch.complex64), "not torch.complex64"),
        (images() / 0, "start must be finite"),
        (torch.where(images() > 0.9, torch.nan, images()), "start must be finite"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_beginning_is_refused_at_once(make, start, told):
    with pytest.raises(InputError, match=told):
        make(eps=0.1, start=start)


@pytest.mark.parametrize("make", [PGD, APGD])
@pytest.mark.parametrize("count", [1, N - 1, N + 1, 2 * N])
def test_a_beginning_that_does_not_fit_is_refused_before_anything_is_evaluated(make, count):
    seen = []

    def told(pixels):
        seen.append(len(pixels))
        return model(pixels)

    objective = Classification(told, torch.arange(N))
    attack = make(eps=0.1, steps=1, start=images(count=count))
    ensemble = EnsembleAttack([PGD(eps=0.1, steps=1), attack])
    for call in (
        attack,
        ensemble,
        partial(attack_in_batches, attack, batch_size=3),
        partial(attack_in_batches, ensemble, batch_size=3),
    ):
        with pytest.raises(InputError, match=rf"start is \({count}, 3, 6, 6\), the images are \({N}, 3, 6, 6\)"):
            call(objective, images())
    with pytest.raises(InputError, match=r"start is \(4, 3, 8, 8\)"):
        EnsembleAttack([make(eps=0.1, start=images(side=8))])(objective, images())
    assert seen == []


@pytest.mark.parametrize("make", [PGD, APGD])
def test_a_beginning_that_fits_goes_through_ensembles_and_batches(make):
    begun = []

    def told(pixels):
        begun.append(pixels.detach().clone())
        return model(pixels)

    start = images(1)
    objective = Classification(told, model(images()).argmax(1))
    attack = make(eps=0.1, steps=1, start=start)
    attack_in_batches(EnsembleAttack([attack]), objective, images(), batch_size=3)
    expected = attack.threat.project(start, images())
    for rows in (slice(0, 3), slice(3, 4)):
        assert any(torch.equal(one, expected[rows]) for one in begun)
