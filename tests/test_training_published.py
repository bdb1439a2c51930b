"""What the recipes of published checkpoints do is what the authors' code did, written here in steps of our own."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from robustsim.attacks import PGD, ThreatModel
from robustsim.encoders import load_encoder
from robustsim.errors import RecipeError
from robustsim.images import Preprocessing
from robustsim.training import METHODS, Classes, Views, list_recipes, load_recipe, open_source
from robustsim.training.recipes.recipe import TrainRecipe
from robustsim.training.sources.stream import Batch
from robustsim.training.tasks import prepare
from robustsim.training.tasks.adversarial import Adversarial, starts
from tests import trainings

pytestmark = pytest.mark.usefixtures("one_thread")

ADVERSARIAL = [name for name in list_recipes() if isinstance(load_recipe(name), TrainRecipe)]
# RobustVLM's code made the fare and tecoa ones, that of TGA-ZSR the others; those of `lite` are our own.
OWN = {"fare-lite", "fare4-lite", "fare4-lite-224", "rank5-lite", "keep4-lite", "keep5-lite", "soup5-lite"}
ROBUSTVLM = [name for name in ADVERSARIAL if name.startswith(("fare", "tecoa")) and name not in OWN]
CTGA = [name for name in ADVERSARIAL if name not in OWN and name not in ROBUSTVLM]


# --- the inner attack


class Curved(torch.nn.Module):
    """(N, 3, S, S) -> (N, 12), smooth and far from linear; no pixel's gradient is 0."""

    def __init__(self, side):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = torch.randn(24, 3 * side * side, generator=generator) / side
        self.second = torch.randn(12, 24, generator=generator)

    def forward(self, pixels):
        return torch.tanh(4 * pixels.flatten(1) @ self.first.T) @ self.second.T


def robustvlm(objective, images, start, attack):
    """Its steps: the gradient's signs, a velocity of which only the signs are kept, ball, box."""
    delta, velocity = start - images, torch.zeros_like(images)
    for _ in range(attack.steps):
        x = (images + delta).requires_grad_()
        (gradient,) = torch.autograd.grad(objective(x).sum(), x)
        velocity = torch.sign(0.9 * velocity + torch.sign(gradient))
        delta = (delta + attack.step_size * velocity).clamp(-attack.eps, attack.eps)
        delta = (images + delta).clamp(0, 1) - images
    return images + delta


@pytest.mark.parametrize("name", ROBUSTVLM)
def test_the_inner_attack_of_published_recipes_takes_the_steps_of_robustvlm(name):
    recipe = load_recipe(name)
    side, encoder = 12, Curved(12)
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    anchor = encoder((images + 0.02).clamp(0, 1)).detach()

    def objective(pixels):
        return (encoder(pixels) - anchor).square().sum(1)

    task: Any = SimpleNamespace(recipe=recipe, total=100)
    batch = SimpleNamespace(pixels=images, positions=[5, 6, 7, 8])
    found = Adversarial.attack(task, lambda views, pixels: objective(pixels), batch, None, 50)
    start = starts(ThreatModel("linf", recipe.attack.eps), images, recipe.seed, batch.positions)
    wanted = robustvlm(objective, images, start, recipe.attack)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)
    # As much cannot be said of a momentum that counts.
    other = PGD(
        norm="linf", eps=recipe.attack.eps, steps=recipe.attack.steps, step_size=recipe.attack.step_size,
        momentum=0.9, start=start, keep="last",
    )  # fmt: skip
    assert not torch.allclose(other(objective, images).images, wanted, rtol=0, atol=1e-3)


def test_recipes_of_lite_are_as_they_were_run():
    """Their values made the shipped weights: what others publish does not change them."""
    first, second, third, last = (load_recipe(name).attack for name in ("fare-lite", "fare4-lite", "fare4-lite-224",
                                                                        "rank5-lite"))  # fmt: skip
    told = [(one.eps * 255, one.steps, one.step_size * 255, one.momentum) for one in (first, second, third, last)]
    assert np.allclose(told, [(3, 2, 1.8, 0), (4, 2, 2.4, 0), (4, 2, 2.4, 0), (5, 2, 3, 0)])
    for name in OWN:
        recipe = load_recipe(name)
        assert recipe.preprocessing is None
        assert recipe.method.name == "fare"


# --- text-guided attention


def test_the_class_token_of_a_clip_transformer_counts_in_published_attention(published):
    """All tokens as the transformer has them, taken from its own layers."""
    folder, model = published["vit"]
    encoder, visual = load_encoder(folder), model.visual
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kept = []
    handle = visual.ln_post.register_forward_hook(lambda module, given, out: kept.append(out))
    whole = visual.transformer.register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        visual(encoder.normalize(pixels))
        handle.remove()
        whole.remove()
        everything = visual.ln_post(kept[0]) @ visual.proj
    texts = F.normalize(torch.randn(4, everything.shape[-1], generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.tensor([2, 0, 3])
    by_channel = everything / everything.norm(dim=1, keepdim=True)
    similarity = (by_channel[:, 1:] @ texts[labels][:, :, None]).squeeze(2)
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    wanted = F.interpolate(((similarity - low) / (high - low)).view(3, 1, 2, 2), 64, mode="bilinear").squeeze(1)
    for name in ("tga-zsr", "comp-tga"):
        options = load_recipe(f"{name}-vit-b-32").method.options
        views = Views(
            encoder, encoder, pixels, labels=labels, classes=Classes(texts), options=options, tokens=True
        )  # fmt: skip
        found = views.attention(views.student_clean).detach()
        assert torch.allclose(found, wanted, rtol=0, atol=1e-4)
        plain = Views(
            encoder, encoder, pixels, labels=labels, classes=Classes(texts), options=METHODS[name].options, tokens=True
        )  # fmt: skip
        assert not torch.allclose(plain.attention(plain.student_clean).detach(), wanted, rtol=0, atol=1e-2)


def test_an_older_recipe_file_means_the_attention_that_it_was_run_with(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("encoder: x\nmethod: {name: tga-zsr, alpha: 0.08, beta: 0.05}\nattack: {eps: 1/255}\n"
                    "optimizer: {lr: 1.0e-4}\nsteps: 3\nbatch_size: 2\n")  # fmt: skip
    recipe = load_recipe(path)
    assert recipe.method.options["attention"] == "paper"
    assert recipe.preprocessing is None


# --- how pictures are prepared


def opened(recipe, folder, monkeypatch):
    monkeypatch.setattr(*trainings.use())
    processes = SimpleNamespace(device=torch.device("cpu"))
    task, card = prepare.prepare_adversarial(
        recipe, open_source(folder), None, prototypes=None, processes=processes, report=pytest.fail
    )
    batch = next(task.batches(iter([range(4)])))
    assert isinstance(batch, Batch)
    return task, card, batch.pixels


@pytest.mark.parametrize("name", CTGA)
def test_pictures_are_brought_to_256_by_bilinear_steps_and_cropped_to_224(name):
    assert load_recipe(name).preprocessing.of(224) == Preprocessing(
        size=224, mode="shortest", resize=256, interpolation="bilinear"
    )


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ("squash", Preprocessing(size=16, mode="squash")),
        ({"mode": "shortest", "crop": 0.5, "interpolation": "bilinear"},
         Preprocessing(size=16, mode="shortest", resize=32, interpolation="bilinear")),
        ({"mode": "squash", "crop": 0.8}, Preprocessing(size=16, mode="squash", resize=20)),
        ({"mode": "longest"}, Preprocessing(size=16, mode="longest")),
        (None, Preprocessing(size=16)),
    ],
)  # fmt: skip
def test_a_recipe_decides_how_pictures_are_prepared_and_the_result_says_so(section, wanted, tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    for index in range(4):
        pixels = draw.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    changes = {} if section is None else {"preprocessing": section}
    recipe = trainings.recipe(augment={}, validation={"images": 0}, **changes)
    task, card, pixels = opened(recipe, tmp_path, monkeypatch)
    squares = [np.asarray(wanted.apply(Image.open(tmp_path / f"{index}.png"))) for index in range(4)]
    seen = {(one.permute(1, 2, 0) * 255).round().byte().numpy().tobytes() for one in pixels}
    assert seen == {square.tobytes() for square in squares}
    assert task.module.student.card.preprocessing == card.preprocessing == wanted
    state = {f"student.{key}": value for key, value in task.module.student.state_dict().items()}
    assert task.encoder(state).card.preprocessing == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{mode: longest, crop: 0.5}", "preprocessing: mode longest pads and crops nothing: leave crop out"),
        ("{mode: shortest, crop: 0}", "preprocessing.crop should be greater than 0"),
        ("{mode: shortest, crop: 1.2}", "preprocessing.crop should be less than or equal to 1"),
        ("{mode: whole}", "preprocessing.mode should be 'squash', 'shortest' or 'longest'"),
        ("{crop: 0.5}", "'preprocessing.mode' is missing"),
        ("whole", "preprocessing.mode should be 'squash'"),
        ("{mode: squash, resize: 256}", "unknown key 'preprocessing.resize'"),
    ],
)
def test_preprocessing_that_is_none_is_refused(text, message):
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
        load_recipe("fare-lite", [f"preprocessing={text}"])


def test_a_recipe_takes_back_the_preprocessing_of_its_base():
    assert load_recipe("tga-zsr-vit-b-32", ["preprocessing=null"]).preprocessing is None
    assert dataclasses.asdict(load_recipe("caw-vit-b-32").preprocessing.of(336))["resize"] == 384
