"""Pictures made from embeddings: the paper's formulas, the best point, seeds, and every kind of model."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from robustsim import RobustSim
from robustsim.attacks import APGD
from robustsim.errors import InputError, ObjectiveError
from robustsim.explain import invert
from robustsim.explain.augmentations import draw_views, view
from tests import trainings
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("lite", "vit", "convnext", "dino", "classifier")  # ours, open_clip's two, timm's two


@pytest.fixture(scope="module")
def small():
    return RobustSim(trainings.encoder())


@pytest.fixture(scope="module")
def models(metric, published):
    made = {name: RobustSim.from_pretrained(published[name][0], device="cpu") for name in FAMILIES[1:]}
    return {"lite": metric, **made}


@pytest.fixture(scope="module")
def clip(published):
    return RobustSim.from_pretrained(published["vit"][0], device="cpu", text=True)


def pictures(count=2, side=trainings.SIDE, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def noisy_grey(seed, side):
    noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    return 0.5 + 8 / 255 * (2 * noise - 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_can_be_inverted(models, name):
    """The similarity of the best point rises, and is that of the picture that is returned."""
    metric, told = models[name], []
    found = invert(metric, EXAMPLES / "chelsea.png", steps=4 if name == "lite" else 12, callback=told.append)
    side = metric.card.preprocessing.size
    assert found.images.shape == (1, 1, 3, side, side)
    assert found.similarity.shape == (1, 1)
    assert (found.images.dtype, found.similarity.dtype) == (torch.float32, torch.float32)
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert all(bool((b.similarity >= a.similarity).all()) for a, b in pairwise(told))
    begun = metric.embed_pixels(noisy_grey(0, side)[None])[0] @ found.targets[0]
    torch.testing.assert_close(told[0].similarity[0], begun, atol=1e-5, rtol=0)
    assert float(found.similarity) > float(begun) + 0.02
    reached = metric.embed_pixels(found.images[:, 0])[0] @ found.targets[0]
    torch.testing.assert_close(reached, found.similarity[0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.targets, metric.embed(EXAMPLES / "chelsea.png"))


def test_it_is_apgd_on_the_papers_objective(small):
    """Eq. 9: the squared distance of unit vectors, from grey with noise in +-8/255, l2 radius 100, first step 200."""
    images, start = pictures(1), noisy_grey(3, trainings.SIDE)[None]
    target = small.encoder(images)
    target = target / target.norm()

    def objective(x):
        seen = small.encoder(x)
        return -(seen / seen.norm(dim=1, keepdim=True) - target).square().sum(1)

    wanted = APGD(norm="l2", eps=100, step_size=200, steps=15, start=start)(objective, start)
    found = invert(small, images, steps=15, seeds=[3])
    torch.testing.assert_close(found.images[0], wanted.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.similarity[0], 1 + wanted.loss / 2)
    narrow = invert(small, images, steps=15, radius=2, step_size=0.5)
    assert float((narrow.images[0, 0] - noisy_grey(0, trainings.SIDE)).norm()) <= 2 + 1e-5


def test_multiview_is_adam_on_the_mean_of_views(small):
    """A transcription, view by view, with the gradient of all of them at once."""
    images, steps, views = pictures(1), 4, 6
    target = small.embed(images)
    x = noisy_grey(5, trainings.SIDE)[None].requires_grad_()
    generator = torch.Generator().manual_seed(5)
    optimiser = torch.optim.Adam([x], lr=0.1)
    best, seen = -1.0, []
    for step in range(steps + 1):
        best = max(best, float(F.cosine_similarity(small.encoder(x.detach()), target)))
        seen.append(best)
        if step == steps:
            break
        numbers = draw_views(views, generator)
        each = [F.cosine_similarity(small.encoder(one_view(x, row)), target) for row in numbers]
        optimiser.zero_grad()
        (-torch.stack(each).mean()).backward()
        optimiser.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    told = []
    options = {"method": "multiview", "steps": steps, "views": views, "seeds": [5]}
    found = invert(small, images, **options, callback=lambda step: told.append(float(step.similarity)))
    assert told == pytest.approx(seen, abs=1e-5)
    assert float(found.similarity) == pytest.approx(best, abs=1e-5)
    assert small.batch_size > views
    few = RobustSim(trainings.encoder(), batch_size=2)  # the same, two views at a time
    again = invert(few, images, **options)
    torch.testing.assert_close(again.images, found.images, atol=1e-4, rtol=0)


def one_view(x, numbers):
    """DiffAugment's colour, translation and cutout, in plain loops: (1, 3, S, S)."""
    b, s, c, *places = numbers.tolist()
    side = x.shape[-1]
    x = x + (b - 0.5)
    grey = (x[:, 0:1] + x[:, 1:2] + x[:, 2:3]) / 3
    x = grey + 2 * s * (x - grey)
    x = x.mean() + (c + 0.5) * (x - x.mean())
    reach, hole = int(side / 8 + 0.5), round(side / 2)
    dy, dx = (int(place * (2 * reach + 1)) - reach for place in places[:2])
    top, left = (int(place * (side + 1 - hole % 2)) - hole // 2 for place in places[2:])
    rows = []
    for i in range(side):
        row = []
        for j in range(side):
            inside = 0 <= i - dy < side and 0 <= j - dx < side
            cut = top <= i < top + hole and left <= j < left + hole
            row.append(x[:, :, i - dy, j - dx] if inside and not cut else torch.zeros(1, 3))
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


@pytest.mark.parametrize("side", [7, 16])
def test_views_are_diffaugments(side):
    many, numbers = pictures(9, side), draw_views(9, torch.Generator().manual_seed(1))
    seen = view(many, numbers)
    for one, row, picture in zip(many, numbers, seen, strict=True):
        torch.testing.assert_close(one_view(one[None], row)[0], picture)
    many.requires_grad_()
    assert bool(torch.isfinite(torch.autograd.grad(view(many, numbers).square().sum(), many)[0]).all())
    assert torch.equal(draw_views(9, torch.Generator().manual_seed(1)), numbers)


@pytest.mark.parametrize("method", ["apgd", "multiview"])
def test_the_same_call_makes_the_same_pictures(small, method):
    images = pictures(3)
    options = {"method": method, "steps": 3, "seeds": 2, "views": 2} if method == "multiview" else {"steps": 3}
    options = {"seeds": 2, **options}
    found, again = (
        invert(small, images, method=method, **{k: v for k, v in options.items() if k != "method"}) for _ in range(2)
    )
    assert found.images.shape == (3, 2, 3, trainings.SIDE, trainings.SIDE)
    assert found.seeds == (0, 1)
    assert torch.equal(found.images, again.images)
    assert torch.equal(found.similarity, again.similarity)
    assert not torch.equal(found.images[:, 0], found.images[:, 1])


def test_torchs_own_random_numbers_are_left_alone(small):
    state = torch.get_rng_state()
    for method in ("apgd", "multiview"):
        invert(small, pictures(1), method=method, steps=2, views=2)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in small.parameters())


def test_embeddings_and_images_are_the_same_targets(small):
    images = pictures(2)
    z = small.embed(images)
    assert torch.equal(invert(small, images, steps=3).images, invert(small, z, steps=3).images)
    with torch.inference_mode():
        assert invert(small, z, steps=2).images.shape[0] == 2


def test_more_than_a_batch(small):
    """Targets and seeds keep their places, whatever is made together."""
    images = pictures(3)
    little = RobustSim(trainings.encoder(), batch_size=2)
    told = []
    whole, parts = (invert(m, images, steps=3, seeds=[4, 9], callback=told.append) for m in (small, little))
    torch.testing.assert_close(whole.similarity, parts.similarity, atol=1e-2, rtol=0)
    assert [(step.targets.tolist(), step.seeds.tolist()) for step in (told[0], told[-1])] == [
        ([0, 0, 1, 1, 2, 2], [4, 9] * 3),
        ([2, 2], [4, 9]),
    ]
    torch.testing.assert_close(told[-1].similarity, parts.similarity[2])
    torch.testing.assert_close(told[-1].images, parts.images[2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["apgd", "multiview"])
def test_a_callback_ends_the_search(method):
    little = RobustSim(trainings.encoder(), batch_size=1)
    calls = []
    found = invert(
        little, pictures(3), method=method, views=1, steps=50, callback=lambda step: calls.append(step.step) or True
    )
    assert calls == [1]
    # What was not searched is the beginning, with its own similarity.
    for row in range(3):
        torch.testing.assert_close(found.images[row, 0], noisy_grey(0, trainings.SIDE), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            little.similarity(found.images[row, 0], found.targets[row]), found.similarity[row], atol=1e-5, rtol=0
        )


def test_texts(clip):
    """Eq. 10: the target is the text's embedding."""
    texts = ["a cat", "a rocket"]
    found = invert(clip, text=texts, steps=8)
    assert found.images.shape[:2] == (2, 1)
    torch.testing.assert_close(found.targets, clip.embed_text(texts))
    reached = (clip.embed_pixels(found.images[:, 0]) * found.targets).sum(1)
    torch.testing.assert_close(reached, found.similarity[:, 0], atol=1e-5, rtol=0)
    assert torch.equal(invert(clip, text="a cat", steps=8).targets, clip.embed_text("a cat"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "pgd"}, "none of apgd, multiview"),
        ({"text": "a cat"}, "either images"),
        ({"steps": 0}, "steps must be"),
        ({"seeds": []}, "seeds must be"),
        ({"seeds": [1, 1]}, "seeds must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"radius": 0}, "radius must be"),
        ({"step_size": 0}, "step_size must be"),
        ({"views": 0}, "views must be"),
    ],
)
def test_what_does_not_fit_is_refused(small, options, told):
    with pytest.raises(InputError, match=told):
        invert(small, pictures(1), **options)


def test_texts_need_a_text_tower(small, models):
    with pytest.raises(InputError, match="has no text tower: use a CLIP model"):
        invert(small, text="a cat")
    with pytest.raises(InputError, match="load it with text=True"):
        invert(models["vit"], text="a cat")
    with pytest.raises(InputError, match="either images"):
        invert(small)
    with pytest.raises(InputError, match="at least one"):
        invert(small, text=[])


@pytest.mark.parametrize("method", ["apgd", "multiview"])
@pytest.mark.parametrize("calls", [0, 3])
def test_nan_is_told(small, monkeypatch, method, calls):
    """At the beginning and later on."""
    metric, told = RobustSim(trainings.encoder()), []
    z = small.embed(pictures(1))
    embed = metric.embed_pixels

    def damaged(x):
        told.append(x)
        return embed(x) * (float("nan") if len(told) > calls else 1)

    monkeypatch.setattr(metric, "embed_pixels", damaged)
    with pytest.raises(ObjectiveError, match=r"NaN|not finite"):
        invert(metric, z, method=method, steps=5, views=2)


@pytest.mark.slow
def test_what_a_robust_model_holds_looks_like_the_picture(metric, shared):
    """Judged by two who are neither of the models: LPIPS-Alex and SSIM."""
    piq = pytest.importorskip("piq")
    pytest.importorskip("lpips")
    from robustsim.baselines import LPIPS

    lpips = LPIPS("alex", weights=shared / "weights" / "lpips-alex.safetensors", complete=True)
    clean = RobustSim.from_pretrained("lite-clean", device="cpu")
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    files = [EXAMPLES / name for name in names]
    originals = metric.preprocess(files)
    held, noise = (invert(model, files, steps=60).images[:, 0] for model in (metric, clean))
    assert bool((lpips.distance(held, originals) < lpips.distance(noise, originals) - 0.1).all())
    nearer = [piq.ssim(made, originals, data_range=1.0, reduction="none") for made in (held, noise)]
    assert bool((nearer[0] > nearer[1]).all())
    # And more like its own original than like another one.
    assert float(lpips.distance(held, originals).mean()) < float(lpips.distance(held.roll(1, 0), originals).mean())
