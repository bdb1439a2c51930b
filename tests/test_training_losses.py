"""Losses of the methods, held against their formulas, written out here once more in float64."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustsim.encoders.encoder import Features
from robustsim.errors import InputError
from robustsim.training import METHODS, Classes, Views, complementary_attention, text_guided_attention
from robustsim.training.methods import losses
from robustsim.training.methods.table import see

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, GRID, DIM, CLASSES = 6, (3, 2), 5, 4
LABELS = [2, 0, 3]


class Stand(nn.Module):
    """A small encoder: 6 x 6 pixels are six places of 2 x 3, and the embedding is a twisted mean of them.

    Notes whom it was shown, and how.
    """

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.place = nn.Parameter(torch.randn(DIM, 18, generator=generator) / 3)
        self.mix = nn.Parameter(torch.randn(DIM, DIM, generator=generator))
        self.shown = []

    def places(self, pixels):
        rows = pixels.unfold(2, 2, 2).unfold(3, 3, 3)  # (N, 3, 3, 2, 2, 3)
        return torch.tanh(rows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) @ self.place.T)

    def embed(self, pixels):
        return torch.sin(self.places(pixels).mean(1) @ self.mix) * 2

    def forward(self, pixels):
        self.shown.append(pixels)
        return self.embed(pixels)

    def features(self, pixels, *, project=False):
        assert project
        self.shown.append(pixels)
        return Features(self.embed(pixels), self.places(pixels), GRID)


class Case:
    """A batch, two encoders and classes; and the same once more in float64, for the formulas."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.student, self.original = Stand(1), Stand(2)
        self.clean = torch.rand(3, 3, SIDE, SIDE, generator=generator)
        self.adversarial, *self.graded = (
            (self.clean + size * torch.randn(self.clean.shape, generator=generator)).clamp(0, 1)
            for size in (0.3, 0.2, 0.6)
        )
        texts = [
            nn.functional.normalize(torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64), dim=1)
            for _ in range(2)
        ]
        self.classes = Classes(*(text.float() for text in texts))
        self.labels = torch.tensor(LABELS)
        self.phi, self.phi_orig = (copy.deepcopy(one).double() for one in (self.student, self.original))
        self.x, self.x_adv = self.clean.double(), self.adversarial.double()
        self.weaker, self.stronger = (one.double() for one in self.graded)
        self.texts, self.not_texts = texts

    def views(self, method, **changes):
        given = {
            "adversarial": self.adversarial,
            "labels": self.labels,
            "classes": self.classes,
            "options": METHODS[method].options,
            "tokens": METHODS[method].tokens,
            "graded": self.graded,
        }
        return Views(self.student, self.original, self.clean, **{**given, **changes})

    def said(self):
        """Who was shown which pixels, in words."""
        names = {id(self.clean): "clean", id(self.adversarial): "adversarial"}
        return [
            f"{who}({names.get(id(pixels), 'weaker and stronger')})"
            for who, encoder in (("student", self.student), ("original", self.original))
            for pixels in encoder.shown
        ]


@pytest.fixture
def case():
    return Case()


# --- the papers' symbols, in elementary steps


def norm(vector):
    return (vector * vector).sum().sqrt()


def cosine(a, b):
    return (a * b).sum() / (norm(a) * norm(b))


def mean(values):
    return sum(values) / len(values)


def squared_distances(z, other):
    return [sum((z[i, d] - other[i, d]) ** 2 for d in range(DIM)) for i in range(len(z))]


def class_probabilities(z, texts, scale):
    """P[i][k] = exp(scale cos(z_i, t_k)) / sum_j exp(scale cos(z_i, t_j))."""
    rows = [[torch.exp(scale * cosine(row, text)) for text in texts] for row in z]
    return [[value / sum(row) for value in row] for row in rows]


def entropies(probabilities):
    return [-torch.log(row[label]) for row, label in zip(probabilities, LABELS, strict=True)]


def divergences(p, q):
    """KL(p_i || q_i) = sum_k p_ik log(p_ik / q_ik)."""
    return [sum(a * torch.log(a / b) for a, b in zip(row, other, strict=True)) for row, other in zip(p, q, strict=True)]


def bilinear(values, size):
    """Places (h, w) at the centres of size x size pixels, beyond the outermost ones as there."""
    height, width = values.shape

    def neighbours(index, count):
        place = max((index + 0.5) * count / size - 0.5, 0.0)
        first = min(int(place), count - 1)
        return first, min(first + 1, count - 1), place - first

    out = []
    for i in range(size):
        top, bottom, down = neighbours(i, height)
        for j in range(size):
            left, right, along = neighbours(j, width)
            upper = values[top, left] * (1 - along) + values[top, right] * along
            lower = values[bottom, left] * (1 - along) + values[bottom, right] * along
            out.append(upper * (1 - down) + lower * down)
    return torch.stack(out).view(size, size)


def attention_maps(tokens, texts):
    """Of each picture to the text of its own class, brought to [0, 1]."""
    maps = []
    for places, label in zip(tokens, LABELS, strict=True):
        similarity = torch.stack([cosine(place, texts[label]) for place in places]).view(GRID)
        maps.append(bilinear((similarity - similarity.min()) / (similarity.max() - similarity.min()), SIDE))
    return maps


def published_maps(tokens, first, texts):
    """Of the authors' code: each channel divided by its length over all tokens of the picture, the class token too."""
    maps = []
    for places, one, label in zip(tokens, first, LABELS, strict=True):
        lengths = [norm(torch.stack([one[d], *places[:, d]])) for d in range(DIM)]
        rows = [sum(place[d] / lengths[d] * texts[label][d] for d in range(DIM)) for place in places]
        similarity = torch.stack(rows).view(GRID)
        maps.append(bilinear((similarity - similarity.min()) / (similarity.max() - similarity.min()), SIDE))
    return maps


def map_distances(maps, others):
    return [norm(a - b) for a, b in zip(maps, others, strict=True)]


def fare(c, o):
    return mean(squared_distances(c.phi_orig.embed(c.x), c.phi.embed(c.x_adv)))


def fare_clean(c, o):
    return 0.7 * fare(c, o) + 0.3 * mean(squared_distances(c.phi_orig.embed(c.x), c.phi.embed(c.x)))


def fare_trades(c, o):
    clean = c.phi.embed(c.x)
    near = mean(squared_distances(c.phi_orig.embed(c.x), clean))
    return near + 6 * mean(squared_distances(clean, c.phi.embed(c.x_adv)))


def disorders(c, z, o):
    """rank * log(1 + exp(-m / 0.1)), m the anchor's distance from the plane between the two, on the unit sphere."""
    out = []
    for a, n, f in zip(z, c.phi.embed(c.weaker), c.phi.embed(c.stronger), strict=True):
        a, n, f = (one / norm(one) for one in (a, n, f))
        distance = (norm(a - f) ** 2 - norm(a - n) ** 2) / (2 * norm(n - f))
        out.append(o["rank"] * torch.log(1 + torch.exp(-distance / 0.1)))
    return out


def fare_rank(c, o):
    return fare(c, o) + mean(disorders(c, c.phi.embed(c.x_adv), o))


def fare_relations(c, o):
    """relations * mean over i, and over the others j, of (cos(a_i, a_j) - cos(o_i, o_j))^2."""
    a, orig = c.phi.embed(c.x_adv), c.phi_orig.embed(c.x)
    others = [[j for j in range(len(a)) if j != i] for i in range(len(a))]
    moved = [mean([(cosine(a[i], a[j]) - cosine(orig[i], orig[j])) ** 2 for j in row]) for i, row in enumerate(others)]
    return fare(c, o) + o["relations"] * mean(moved)


def tecoa(c, o):
    return mean(entropies(class_probabilities(c.phi.embed(c.x_adv), c.texts, o["scale"])))


def on_clean_images(c, o):
    return mean(entropies(class_probabilities(c.phi.embed(c.x), c.texts, o["scale"])))


def tecoa_clean(c, o):
    return 0.75 * tecoa(c, o) + 0.25 * on_clean_images(c, o)


def tecoa_trades(c, o):
    p, p_adv = (class_probabilities(c.phi.embed(x), c.texts, o["scale"]) for x in (c.x, c.x_adv))
    return mean(entropies(p)) + 2 * mean(divergences(p, p_adv))


def pmg_aft(c, o):
    p_adv = class_probabilities(c.phi.embed(c.x_adv), c.texts, o["scale"])
    p_orig = class_probabilities(c.phi_orig.embed(c.x_adv), c.texts, o["scale"])
    p_clean = class_probabilities(c.phi.embed(c.x), c.texts, o["scale"])
    general, clean = mean(divergences(p_adv, p_orig)), mean(divergences(p_adv, p_clean))
    return mean(entropies(p_adv)) + o["alpha"] * general + o["beta"] * clean


def guided(attention):
    def formula(c, o):
        wanted = attention(c, c.phi_orig, c.x)
        refinement = mean(map_distances(attention(c, c.phi, c.x_adv), wanted))
        constraint = mean(map_distances(attention(c, c.phi, c.x), wanted))
        return tecoa(c, o) + o["alpha"] * refinement + o["beta"] * constraint

    return formula


def of_cosines(c, phi, x, texts=None):
    return attention_maps(phi.places(x), c.texts if texts is None else texts)


def of_channels(c, phi, x, texts=None):
    return published_maps(phi.places(x), phi.embed(x), c.texts if texts is None else texts)


def complementary(maps):
    def attention(c, phi, x):
        pairs = zip(maps(c, phi, x), maps(c, phi, x, c.not_texts), strict=True)
        return [of_class * (1 - of_rest) for of_class, of_rest in pairs]

    return attention


def caw(c, o):
    z, z_orig = c.phi.embed(c.x_adv), c.phi_orig.embed(c.x_adv)
    p_adv = class_probabilities(z, c.texts, o["scale"])
    p_clean = class_probabilities(c.phi_orig.embed(c.x), c.texts, o["scale"])
    doubts = [1 - row[label] for row, label in zip(p_adv, LABELS, strict=True)]
    hard = mean([kl * doubt for kl, doubt in zip(divergences(p_adv, p_clean), doubts, strict=True)])
    near = mean([norm(a - b) for a, b in zip(z, z_orig, strict=True)])
    return mean(entropies(p_adv)) + o["alpha"] * hard + o["beta"] * near


SEEN = {
    "S(x)": "student(clean)",
    "S(a)": "student(adversarial)",
    "O(x)": "original(clean)",
    "O(a)": "original(adversarial)",
    "S(w,s)": "student(weaker and stronger)",
}
# What is trained by which formula, with which options, and which views of the batch that takes.
LOSSES = {
    "fare": ("fare", {}, fare, "S(a) O(x)"),
    "fare, share of clean images": ("fare", {"clean_weight": 0.3}, fare_clean, "S(a) S(x) O(x)"),
    "fare, TRADES": ("fare", {"trades": 6.0}, fare_trades, "S(x) S(a) O(x)"),
    "fare, rank": ("fare", {"rank": 3.0}, fare_rank, "S(a) S(w,s) O(x)"),
    "fare, relations": ("fare", {"relations": 40.0}, fare_relations, "S(a) O(x)"),
    "tecoa": ("tecoa", {}, tecoa, "S(a)"),
    "tecoa, share of clean images": ("tecoa", {"clean_weight": 0.25}, tecoa_clean, "S(a) S(x)"),
    "tecoa, TRADES": ("tecoa", {"trades": 2.0}, tecoa_trades, "S(x) S(a)"),
    "ft-clean": ("ft-clean", {}, on_clean_images, "S(x)"),
    "ft-adv": ("ft-adv", {}, tecoa, "S(a)"),
    "pmg-aft": ("pmg-aft", {}, pmg_aft, "S(a) S(x) O(a)"),
    "pmg-aft, other weights": ("pmg-aft", {"alpha": 0.3, "beta": 2.0}, pmg_aft, "S(a) S(x) O(a)"),
    "tga-zsr": ("tga-zsr", {}, guided(of_cosines), "S(a) S(x) O(x)"),
    "tga-zsr, as run": ("tga-zsr", {"attention": "published"}, guided(of_channels), "S(a) S(x) O(x)"),
    "comp-tga": ("comp-tga", {}, guided(complementary(of_cosines)), "S(a) S(x) O(x)"),
    "comp-tga, as run": ("comp-tga", {"attention": "published"}, guided(complementary(of_channels)), "S(a) S(x) O(x)"),
    "caw": ("caw", {}, caw, "S(a) O(x) O(a)"),
    "caw, other weights": ("caw", {"alpha": 4.0, "beta": 0.2}, caw, "S(a) O(x) O(a)"),
}


def close(ours, formula):
    torch.testing.assert_close(ours.double(), formula, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [100.0, 7.0])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_those_of_the_formulas(case, name, scale):
    method, changes, formula, _ = LOSSES[name]
    options = {**METHODS[method].options, **changes, "scale": scale}
    terms = METHODS[method].terms(case.views(method, options=options))
    loss, wanted = sum(terms.values()), formula(case, options)
    assert all(term.ndim == 0 for term in terms.values())
    close(loss.detach(), wanted.detach())
    gradients = torch.autograd.grad(loss, list(case.student.parameters()), allow_unused=True)
    expected = torch.autograd.grad(wanted, list(case.phi.parameters()), allow_unused=True)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", LOSSES)
def test_each_view_is_computed_once_and_only_if_it_is_needed(case, name):
    method, changes, _, seen = LOSSES[name]
    METHODS[method].terms(case.views(method, options={**METHODS[method].options, **changes}))
    assert sorted(case.said()) == sorted(SEEN[one] for one in seen.split())


@pytest.mark.parametrize("name", LOSSES)
def test_the_original_never_gets_a_gradient(case, name):
    method, changes, _, _ = LOSSES[name]
    views = case.views(method, options={**METHODS[method].options, **changes})
    sum(METHODS[method].terms(views).values()).backward()
    assert all(weight.grad is None for weight in case.original.parameters())
    assert any(weight.grad is not None for weight in case.student.parameters())


@pytest.mark.parametrize("name", ["fare", "tga-zsr", "comp-tga"])
def test_what_the_original_has_seen_already_is_not_computed_again(case, name):
    method = METHODS[name]
    fresh = method.terms(case.views(name))
    with torch.no_grad():
        seen = see(case.original, case.clean, method.tokens)
    case.original.shown.clear()
    again = method.terms(case.views(name, seen=seen))
    assert case.original.shown == []
    assert all(torch.equal(again[term], fresh[term]) for term in fresh)


# --- what attacks maximise


def away_from_the_original(c, p, o):
    return squared_distances(c.phi.embed(p), c.phi_orig.embed(c.x))


def away_from_the_original_and_out_of_order(c, p, o):
    z = c.phi.embed(p)
    away = squared_distances(z, c.phi_orig.embed(c.x))
    return [one + other for one, other in zip(away, disorders(c, z, o), strict=True)]


def away_from_the_clean_view(c, p, o):
    return squared_distances(c.phi.embed(p), c.phi.embed(c.x))


def away_from_the_class(c, p, o):
    return entropies(class_probabilities(c.phi.embed(p), c.texts, o["scale"]))


def away_from_the_clean_answer(c, p, o):
    return divergences(*(class_probabilities(c.phi.embed(x), c.texts, o["scale"]) for x in (c.x, p)))


ATTACKS = {
    "fare": (away_from_the_original, {}),
    "fare, TRADES": (away_from_the_clean_view, {"trades": 6.0}),
    "fare, rank": (away_from_the_original_and_out_of_order, {"rank": 3.0}),
    "tecoa": (away_from_the_class, {}),
    "tecoa, share of clean images": (away_from_the_class, {"clean_weight": 0.5}),
    "tecoa, TRADES": (away_from_the_clean_answer, {"trades": 6.0}),
    **{name: (away_from_the_class, {}) for name in ("ft-adv", "pmg-aft", "tga-zsr", "comp-tga", "caw")},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_maximise_the_inner_loss_of_the_formula(case, name):
    formula, changes = ATTACKS[name]
    method = METHODS[name.partition(",")[0]]
    options = {**method.options, **changes, **({"scale": 7.0} if method.labels else {})}
    views = case.views(name.partition(",")[0], adversarial=None, options=options)
    pixels, x = case.adversarial.clone().requires_grad_(), case.x_adv.clone().requires_grad_()
    ours, wanted = method.attack(views, pixels), torch.stack(formula(case, x, options))
    assert ours.shape == (3,)
    close(ours.detach(), wanted.detach())
    gradient, expected = torch.autograd.grad(ours.sum(), pixels)[0], torch.autograd.grad(wanted.sum(), x)[0]
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ATTACKS)
def test_steps_of_an_attack_cost_one_view_each(case, name):
    _, changes = ATTACKS[name]
    method = METHODS[name.partition(",")[0]]
    views = case.views(name.partition(",")[0], adversarial=None, options={**method.options, **changes})
    for _ in range(3):
        method.attack(views, case.adversarial)
    said = case.said()
    assert said.count("student(adversarial)") == 3
    # And one of the clean images, to be away from; one of the distortions.
    others = {"fare": 1, "fare, TRADES": 1, "tecoa, TRADES": 1, "fare, rank": 2}
    assert len(said) == 3 + others.get(name, 0)


def test_fine_tuning_on_clean_images_has_no_attack():
    assert METHODS["ft-clean"].attack is None
    assert all(METHODS[name].attack is not None for name in METHODS if name != "ft-clean")


# --- what must be there


@pytest.mark.parametrize(
    ("method", "missing", "message"),
    [
        ("fare", {"adversarial": None}, "needs adversarial images"),
        ("tecoa", {"labels": None}, "needs labels"),
        ("caw", {"classes": None}, "needs classes"),
        ("comp-tga", {"classes": Classes(torch.eye(CLASSES, DIM))}, "needs texts of what a picture is not of"),
        ("tga-zsr", {"tokens": False}, "needs places"),
    ],
)
def test_what_a_method_lacks_is_named(case, method, missing, message):
    with pytest.raises(InputError, match=message):
        METHODS[method].terms(case.views(method, **missing))


# --- attention


def a_map(values, size=None, grid=(2, 2)):
    """The attention of a picture whose places have these cosines to the text."""
    angles = torch.tensor(values, dtype=torch.float32).clamp(-1, 1).acos()
    tokens = torch.stack([angles.cos(), angles.sin()], 1)[None]
    return text_guided_attention(tokens, torch.tensor([1.0, 0.0]), grid, size)[0]


def test_attention_is_0_where_a_picture_is_least_like_the_text_and_1_where_it_is_most():
    expected = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    torch.testing.assert_close(a_map([-0.2, 0.6, 0.2, 0.0]), expected, rtol=0, atol=1e-6)


def test_attention_grows_to_the_size_of_the_picture_by_bilinear_steps():
    expected = torch.tensor([[0.0, 0.25, 0.75, 1.0]] * 4)
    torch.testing.assert_close(a_map([0.0, 1.0, 0.0, 1.0], 4), expected, rtol=0, atol=1e-6)


def test_attention_of_a_grid_that_is_no_square():
    values = [0.1, -0.3, 0.5, 0.9, 0.2, -0.7]
    coarse = a_map(values, grid=(2, 3))
    assert coarse.shape == (2, 3)
    torch.testing.assert_close(a_map(values, 7, (2, 3)).double(), bilinear(coarse.double(), 7), rtol=0, atol=1e-6)


def test_attention_does_not_depend_on_lengths_or_on_neighbours_in_the_batch(case):
    tokens = case.original.places(case.clean).detach()
    text = case.classes.prototypes[case.labels]
    maps = text_guided_attention(tokens, text, GRID, SIDE)
    lengths = torch.tensor([0.1, 1.0, 30.0])
    longer = text_guided_attention(tokens * lengths[:, None, None], 5 * text, GRID, SIDE)
    torch.testing.assert_close(longer, maps, rtol=0, atol=1e-5)
    alone = text_guided_attention(tokens[1:2], text[1], GRID, SIDE)
    torch.testing.assert_close(alone[0], maps[1], rtol=0, atol=1e-6)


def test_the_published_attention_is_that_of_the_authors_code():
    """Their steps on made-up tokens, written anew: one norm for each channel, over the class token and all places."""
    generator = torch.Generator().manual_seed(3)
    everything = torch.randn(2, 7, DIM, generator=generator) * torch.linspace(4, 0.1, 7)[None, :, None]
    text = nn.functional.normalize(torch.randn(2, DIM, generator=generator), dim=1)
    wanted = everything / everything.square().sum(1, keepdim=True).sqrt()
    wanted = torch.einsum("npd,nd->np", wanted[:, 1:], text)
    wanted = (wanted - wanted.amin(1, keepdim=True)) / (wanted.amax(1, keepdim=True) - wanted.amin(1, keepdim=True))
    first, tokens = everything[:, 0], everything[:, 1:]
    maps = text_guided_attention(tokens, 3 * text, GRID, form="published", class_token=first)
    torch.testing.assert_close(maps.flatten(1), wanted, rtol=0, atol=1e-6)
    # Neither the paper's, nor the same without the class token.
    for other in (
        text_guided_attention(tokens, text, GRID),
        text_guided_attention(tokens, text, GRID, form="published"),
    ):
        assert float((maps - other).abs().max()) > 0.01
    with pytest.raises(InputError, match="form='cosine' is none of paper, published"):
        text_guided_attention(tokens, text, GRID, form="cosine")
    with pytest.raises(InputError, match="class_token= goes with form='published'"):
        text_guided_attention(tokens, text, GRID, class_token=first)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_channel_that_is_0_everywhere_gives_no_nan(kind):
    tokens = torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(0)).to(kind)
    tokens[..., 2] = 0
    tokens[1] = 0
    tokens.requires_grad_()
    maps = text_guided_attention(tokens, torch.ones(DIM), GRID, form="published", class_token=torch.zeros(2, DIM))
    assert bool(maps.isfinite().all())
    assert maps[0].max() > 0.5
    assert not maps[1].any()
    maps.square().sum().backward()
    assert bool(tokens.grad.isfinite().all())


def test_a_flat_map_is_0_and_has_no_gradient():
    generator = torch.Generator().manual_seed(0)
    # Pictures whose places differ in length alone, and by rounding in their cosines; and one that is not flat.
    flat = torch.randn(20, 1, 64, generator=generator) * torch.linspace(0.1, 9, 6)[None, :, None]
    tokens = torch.cat([flat, torch.randn(1, 6, 64, generator=generator)]).requires_grad_()
    maps = text_guided_attention(tokens, torch.randn(64, generator=generator), GRID, SIDE)
    assert not maps[:20].any()
    assert maps[20].max() > 0.5
    maps.square().sum().backward()
    assert bool(tokens.grad.isfinite().all())
    assert not tokens.grad[:20].any()
    assert tokens.grad[20].any()


def test_one_place_alone_is_flat():
    tokens = torch.randn(2, 1, DIM, requires_grad=True)
    maps = text_guided_attention(tokens, torch.ones(DIM), (1, 1), 4)
    assert maps.shape == (2, 4, 4)
    assert not maps.any()
    maps.sum().backward()
    assert not tokens.grad.any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.one_of(st.none(), st.integers(1, 12)),
    spread=st.sampled_from([1e-7, 1e-5, 1e-2, 1.0, 1e3]),
)
def test_attention_is_in_the_unit_interval(seed, grid, size, spread):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 1, DIM, generator=generator) + spread * torch.randn(
        2, grid[0] * grid[1], DIM, generator=generator
    )
    text, rest = torch.randn(2, 2, DIM, generator=generator)
    maps, others = (text_guided_attention(tokens, one, grid, size) for one in (text, rest))
    assert maps.shape == (2, *(grid if size is None else (size, size)))
    both = complementary_attention(maps, others)
    for values in (maps, both):
        assert values.dtype == torch.float32
        assert float(values.min()) >= -1e-6
        assert float(values.max()) <= 1 + 1e-6
    assert bool((both <= maps + 1e-6).all())


def test_complementary_attention_is_what_looks_like_the_class_and_not_like_the_rest():
    of_class, of_rest = torch.tensor([[[1.0, 1.0], [0.5, 0.0]]]), torch.tensor([[[0.0, 1.0], [0.25, 0.3]]])
    assert complementary_attention(of_class, of_rest).tolist() == [[[1.0, 0.0], [0.375, 0.0]]]


# --- the losses themselves


def test_embedding_distance_is_squared_summed_and_not_normalised():
    z, original = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[4.0, -2.0], [0.0, 0.5]])
    assert losses.embedding_distance(z, original).tolist() == [25.0, 0.25]
    assert losses.feature_distance(z, original).tolist() == [5.0, 0.5]


def test_logits_are_100_cosines_whatever_the_lengths():
    logits = losses.class_logits(torch.tensor([[3.0, 4.0], [0.0, -0.01]]), torch.eye(2))
    torch.testing.assert_close(logits, torch.tensor([[60.0, 80.0], [0.0, -100.0]]))
    halved = losses.class_logits(torch.tensor([[3.0, 4.0]]), torch.eye(2), 50.0)
    torch.testing.assert_close(halved, torch.tensor([[30.0, 40.0]]))


def test_distances_have_no_gradient_where_they_are_0():
    for distance, shape in ((losses.feature_distance, (2, 5)), (losses.attention_distance, (2, 3, 4))):
        a = torch.ones(shape, requires_grad=True)
        distance(a, torch.ones(shape)).sum().backward()
        assert not a.grad.any()


def test_attention_distance_is_the_norm_over_all_places():
    a, b = torch.zeros(2, 2, 2), torch.tensor([[[1.0, 2.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 3.0]]])
    assert losses.attention_distance(a, b).tolist() == [5.0, 3.0]


def test_mixed_precision_does_not_reach_logits_and_attention(case):
    tokens = case.original.places(case.clean).detach()
    z, prototypes = tokens.mean(1), case.classes.prototypes
    exact = losses.class_logits(z, prototypes), text_guided_attention(tokens, prototypes[0], GRID, SIDE)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses.class_logits(z, prototypes), text_guided_attention(tokens, prototypes[0], GRID, SIDE)
    for ours, wanted in zip(mixed, exact, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_compared_in_float32(kind):
    z, other = torch.full((1, 4), 300.0, dtype=kind), torch.zeros(1, 4, dtype=kind)
    assert losses.embedding_distance(z, other).item() == 360000.0  # more than float16 can hold
    assert losses.feature_distance(z, other).item() == 600.0
    assert losses.class_logits(z, torch.eye(4)).dtype == torch.float32


logit_pairs = st.integers(1, 6).flatmap(
    lambda count: st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 2), min_size=count, max_size=count)
)


@settings(max_examples=200, deadline=None)
@given(pairs=logit_pairs, shift=st.floats(-50, 50))
def test_divergence_is_never_negative_and_0_between_equals(pairs, shift):
    p, q = torch.tensor(pairs, dtype=torch.float32).T[:, None]
    value = losses.divergence(p, q)
    assert value.shape == (1,)
    assert -1e-4 <= value.item() <= 200.1
    assert losses.divergence(p, p).item() == 0
    torch.testing.assert_close(losses.divergence(p + shift, q), value, rtol=1e-3, atol=1e-3)
    doubt = losses.confidence_weighted(p, q, torch.tensor([0]))
    assert -1e-4 <= doubt.item() <= value.item() + 1e-4


def test_divergence_takes_its_mean_under_the_first():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    forward, backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert losses.divergence(p, q).item() == pytest.approx(forward, rel=1e-5)
    assert losses.divergence(q, p).item() == pytest.approx(backward, rel=1e-5)


def test_images_whose_class_is_certain_do_not_count_for_confidence():
    sure, unsure = torch.tensor([[40.0, 0.0], [0.0, 40.0]]), torch.zeros(2, 2)
    weighted = losses.confidence_weighted(sure, unsure, torch.tensor([0, 0]))
    assert weighted[0].item() == pytest.approx(0, abs=1e-6)
    assert weighted[1].item() == pytest.approx(math.log(2), rel=1e-5)


# --- the hinge


@pytest.mark.parametrize(
    ("to_left", "to_right", "right", "expected"),
    [
        (0.5, 0.2, True, 0.0),  # right is nearer, as people say, by more than the margin
        (0.2, 0.5, False, 0.0),
        (0.24, 0.2, True, 0.01),  # nearer, but by less
        (0.2, 0.2, True, 0.05),  # undecided
        (0.2, 0.2, False, 0.05),
        (0.2, 0.5, True, 0.35),  # wrong
        (0.5, 0.2, False, 0.35),
    ],
)
def test_hinge_case_by_case(to_left, to_right, right, expected):
    loss = losses.hinge(torch.tensor([to_left]), torch.tensor([to_right]), torch.tensor([right]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_what_the_hinge_is_content_with_has_no_gradient():
    to_left, to_right = torch.tensor([0.5, 0.2], requires_grad=True), torch.tensor([0.2, 0.5], requires_grad=True)
    losses.hinge(to_left, to_right, torch.tensor([True, True])).sum().backward()
    assert to_left.grad.tolist() == [0.0, -1.0]
    assert to_right.grad.tolist() == [0.0, 1.0]


distance = st.floats(0, 2, width=32)


@settings(max_examples=100, deadline=None)
@given(to_left=distance, to_right=distance, right=st.booleans(), margin=st.floats(0.001, 1))
def test_hinge_is_the_same_when_left_and_right_change_places_with_the_answer(to_left, to_right, right, margin):
    left, other, answer = torch.tensor([to_left]), torch.tensor([to_right]), torch.tensor([right])
    loss = losses.hinge(left, other, answer, margin)
    assert torch.equal(loss, losses.hinge(other, left, ~answer, margin))
    assert loss.item() == pytest.approx(max(0.0, margin - (1 if right else -1) * (to_left - to_right)), abs=1e-6)
