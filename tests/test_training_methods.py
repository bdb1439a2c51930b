"""Every bundled recipe trains a tiny encoder of its family, and the loss of images that stay the same falls."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from robustsim.attacks import PGD
from robustsim.data import read_dataset
from robustsim.encoders import load_encoder, save_encoder
from robustsim.encoders.encoder import build_encoder
from robustsim.errors import InputError
from robustsim.images import Preprocessing
from robustsim.images.inputs import load_square, stack_squares
from robustsim.training import (
    METHODS,
    Views,
    finetune,
    image_classes,
    list_recipes,
    load_recipe,
    open_source,
    save_classes,
    text_classes,
    train,
)
from robustsim.training.loop.log import read_log
from robustsim.training.methods.distortions import graded
from robustsim.training.recipes.recipe import TrainRecipe
from robustsim.training.tasks.adversarial import Adversarial
from tests import judges, layouts

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"cpu": True, "tensorboard": False, "progress": False}
# Ten steps of a problem that stays the same: no radius that grows, no rate that does.
SHORT = ("steps=10", "batch_size=8", "optimizer.warmup_steps=0", "validation={images: 2, steps: 1}")
ATTACK = ("attack.steps=2", "attack.warmup=0")
# The learning rate of the papers is one for large models.
RATES = {"adamw": 1e-3, "sgd": 1e-3, "adam": 1e-2}
# The bundled encoder is no tiny one, and takes images of any size.
STAGES = "stages=[{at: 0, size: 48}, {at: 0.2, size: 64}]"
# CAW holds on to features, which are long here.
OWN = {
    "caw-vit-b-32": ("optimizer.lr=3e-4", "method.beta=0.1"),
    "fare-lite": ("optimizer.lr=1e-4", "attack.eps=1/255", STAGES),
    **dict.fromkeys(
        ("fare4-lite", "fare4-lite-224", "rank5-lite", "keep4-lite", "keep5-lite", "soup5-lite"),
        ("original=lite-clean", "optimizer.lr=5e-4", "attack.eps=1/255", STAGES),
    ),
}
# Of which family a recipe's encoder is.
FAMILIES = {
    "clip-vit-b-32": "vit",
    "clip-vit-b-16": "vit-16",
    "clip-vit-l-14": "vit-14-quick",
    "clip-convnext-base": "convnext",
    "rclip-f-convnext-base": "convnext",
    "dino-vit-b-16": "dino",
    "dinov2-vit-b-14": "dinov2",
}


@pytest.fixture(scope="module")
def families(published, tmp_path_factory):
    """Folders with tiny models, by family; those that the other tests have no use for are written here."""
    root = tmp_path_factory.mktemp("families")
    for name, patch, size in (("vit-16", 16, 64), ("vit-14-quick", 14, 56)):
        vision = {**layouts.VIT_B_32["vision_cfg"], "patch_size": patch, "image_size": size}
        layouts.write_open_clip(
            root / name, {**layouts.VIT_B_32, "vision_cfg": vision, "quick_gelu": name.endswith("quick")}
        )
    layouts.write_timm(
        root / "dinov2",
        "vit_small_patch14_dinov2",
        {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 3},
        pretrained_cfg={"input_size": [3, 56, 56]},
    )
    return {**{name: folder for name, (folder, _) in published.items()}, **{one.name: one for one in root.iterdir()}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six pictures in each of three classes, which differ in their contrast."""
    root = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("green_grass", "night_sky", "red_brick")):
        judges.pictures(root / name, 6, size=64, seed=seed)
    return root


def encoder_of(name, families):
    recipe = load_recipe(name)
    encoder = recipe.original or recipe.encoder
    if encoder.startswith("./runs/"):  # what another recipe has made of it
        encoder = "lite-clean"
    return str(families[FAMILIES[encoder]]) if encoder in FAMILIES else encoder


def loss_of(recipe, student, original, source, classes, size=None):
    """The method's own loss of all images, under an attack that begins at the same points for every student."""
    method, attack = recipe.method.method, recipe.attack
    squares = [load_square(source.read(index).image, original.card.preprocessing) for index in range(len(source))]
    clean = stack_squares(squares, torch.device("cpu"))
    if size is not None:
        clean = F.interpolate(clean, size=(size, size), mode="area")
    options = {
        "labels": torch.tensor([source.label(index) for index in range(len(source))]),
        "classes": classes,
        "options": recipe.method.options,
        "tokens": method.tokens,
        "graded": graded(clean, range(len(clean))),
    }
    adversarial = None
    if method.attack is not None:
        views = Views(student, original, clean, **options)
        pgd = PGD(norm=attack.norm, eps=attack.eps, steps=3, generator=torch.Generator().manual_seed(0))
        adversarial = pgd(lambda pixels: method.attack(views, pixels), clean).images
    with torch.no_grad():
        return float(sum(method.terms(Views(student, original, clean, adversarial, **options)).values()))


def classes_of(recipe, encoder, source):
    """As the training makes them, for methods that want some; the text tower is put away afterwards."""
    options = recipe.method.options
    if not recipe.method.method.labels:
        return None
    classes = text_classes(encoder, source.classes, options["prompt"], options.get("negative_prompt"))
    encoder.text = None
    return classes


def told(output, names):
    """The numbers of the training's only line, which is the mean of its ten steps."""
    (line,) = [entry for entry in read_log(output) if entry["kind"] == "train"]
    assert line["step"] == 10
    assert all(math.isfinite(line[name]) for name in names)
    assert line["loss"] == pytest.approx(sum(line[name] for name in names), rel=1e-4)


TERMS = {
    "fare": ("adversarial",),
    "tecoa": ("adversarial",),
    "ft-clean": ("clean",),
    "ft-adv": ("adversarial",),
    "pmg-aft": ("adversarial", "original", "clean"),
    "tga-zsr": ("adversarial", "refinement", "constraint"),
    "comp-tga": ("adversarial", "refinement", "constraint"),
    "caw": ("adversarial", "confidence", "features"),
}
ADVERSARIAL = [name for name in list_recipes() if isinstance(load_recipe(name), TrainRecipe)]


def falls(before, after):
    assert math.isfinite(before)
    assert math.isfinite(after)
    assert after < 0.9 * before


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_bundled_recipe_trains_with_falling_loss(name, families, images, tmp_path):
    encoder = encoder_of(name, families)
    rate = RATES[load_recipe(name).optimizer.name]
    changes = [f"encoder={encoder}", f"optimizer.lr={rate}", *SHORT, *ATTACK, *OWN.get(name, ())]
    size = 64 if STAGES in changes else None
    recipe, source = load_recipe(name, changes), open_source(images)
    output = train(name, images, tmp_path / "out", changes=changes, **QUIET)
    more = [term for term in ("rank", "relations") if getattr(recipe.method, term)]
    told(output, (*TERMS[recipe.method.name], *more))

    original = load_encoder(encoder, text=recipe.method.method.labels)
    classes = classes_of(recipe, original, source)
    student = load_encoder(output)
    assert original.card.architecture.quick_gelu == name.endswith("l-14")  # OpenAI's
    assert student.card.architecture == original.card.architecture
    added = {
        "rank5-lite": ", order of distortions",
        "keep4-lite": ", relations",
        "keep5-lite": ", order of distortions, relations",
        "soup5-lite": ", order of distortions, relations",
    }
    title = METHODS[recipe.method.name].title + added.get(name, "")
    assert student.card.method == (None if recipe.method.name == "ft-clean" else title)
    falls(*(loss_of(recipe, one, original, source, classes, size) for one in (original, student)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fare4-vit-b-32", ["method.clean_weight=0.5"]),
        ("fare4-vit-b-16", ["method.trades=1"]),
        ("tecoa4-vit-b-16", ["method.clean_weight=0.5"]),
        ("tecoa4-vit-b-32", ["method.trades=1"]),
        ("comp-tga-vit-b-32", ["encoder=convnext"]),
        ("fare4-vit-b-16", ["attack.norm=l2", "attack.eps=0.5", "attack.step_size="]),
        ("tecoa4-vit-b-16", ["precision=bf16"]),
    ],
    ids=lambda one: one if isinstance(one, str) else ",".join(one),
)
def test_variants_of_a_recipe_train_with_falling_loss(name, changes, families, images, tmp_path):
    encoder = str(families["convnext"]) if "encoder=convnext" in changes else encoder_of(name, families)
    rate = RATES[load_recipe(name).optimizer.name] if "trades" not in changes[0] else 3e-4
    changes = [*changes, f"encoder={encoder}", f"optimizer.lr={rate}", *SHORT, *ATTACK]
    recipe, source = load_recipe(name, changes), open_source(images)
    student = load_encoder(train(name, images, tmp_path / "out", changes=changes, **QUIET))
    original = load_encoder(encoder, text=recipe.method.method.labels)
    classes = classes_of(recipe, original, source)
    falls(*(loss_of(recipe, one, original, source, classes) for one in (original, student)))


@pytest.mark.parametrize("encoder", ["dino", "lite-clean"])
def test_an_encoder_without_texts_trains_on_means_of_images(encoder, families, images, tmp_path):
    folder = str(families.get(encoder, encoder))
    original, source = load_encoder(folder), open_source(images)
    classes = image_classes(original, source, per_class=2)
    prototypes = save_classes(classes, tmp_path / "classes.safetensors")
    size = 64 if encoder == "lite-clean" else None
    changes = [f"encoder={folder}", "optimizer.lr=3e-4", *SHORT, *ATTACK]
    if size is not None:
        changes.append(f"stages=[{{at: 0, size: {size}}}]")
    recipe = load_recipe("tecoa4-vit-b-16", changes)
    output = train("tecoa4-vit-b-16", images, tmp_path / "out", changes=changes, prototypes=prototypes, **QUIET)
    told(output, TERMS["tecoa"])
    falls(*(loss_of(recipe, one, original, source, classes, size) for one in (original, load_encoder(output))))


def gridded():
    """The bundled encoder with the means over four quarters."""
    whole = load_encoder("lite-clean")
    architecture = dataclasses.replace(whole.card.architecture, options={"grid": 2})
    found = build_encoder(dataclasses.replace(whole.card, architecture=architecture, embedding_dim=4 * 1280))
    found.load_state_dict(whole.state_dict())
    return found


def test_attention_does_not_go_with_a_grid(images, tmp_path):
    """A place has 1,280 values there, and a class 5,120."""
    folder, source = save_encoder(gridded(), tmp_path / "gridded"), open_source(images)
    prototypes = save_classes(
        image_classes(load_encoder(folder), source, per_class=1), tmp_path / "classes.safetensors"
    )
    changes = [f"encoder={folder}", *SHORT]
    with pytest.raises(InputError, match="'lite-clean' embeds 5120 values for several places at once"):
        train("tga-zsr-vit-b-32", images, tmp_path / "out", changes=changes, prototypes=prototypes, **QUIET)


def test_a_run_tells_the_same_weights_under_another_grid_apart(images):
    recipe, source = load_recipe("fare-lite"), open_source(images)
    began = {
        Adversarial(
            recipe, one, source, [0], (source, [1]), classes=None, device=torch.device("cpu"), report=pytest.fail
        ).began_as
        for one in (load_encoder("lite-clean"), gridded())
    }
    assert len(began) == 2


def hinge_of(encoder, preprocessing, triplets):
    """max(0, 0.05 - y (d_left - d_right)), in the mean over all triplets."""
    paths = sorted({path for triplet in triplets for path in triplet.paths})
    with torch.no_grad():
        squares = stack_squares([load_square(path, preprocessing) for path in paths], torch.device("cpu"))
        unit = dict(zip(paths, F.normalize(encoder(squares), dim=1), strict=True))
    total = 0.0
    for triplet in triplets:
        reference, left, right = (unit[path] for path in triplet.paths)
        sign = 1 if triplet.right_share > 0.5 else -1
        to_left, to_right = 1 - float(reference @ left), 1 - float(reference @ right)
        total += max(0.0, 0.05 - sign * (to_left - to_right))
    return total / len(triplets)


@pytest.mark.parametrize(
    ("name", "family"),
    [("lora-2afc", "convnext"), ("lora-2afc", "vit"), ("lora-2afc", "dino"), ("mlp-2afc", "convnext")],
)
def test_a_bundled_recipe_learns_judgements_with_falling_loss(name, family, families, tmp_path):
    path = judges.triplets(tmp_path / "triplets", 12)
    encoder = families[family]
    changes = [f"encoder={encoder}", f"optimizer.lr={RATES['adam']}", *SHORT, "batch_size=12", "validation.images=0"]
    output = finetune(name, path, tmp_path / "out", changes=changes, **QUIET)
    told(output, ("hinge",))
    triplets = list(read_dataset(path, "2afc"))
    original, result = load_encoder(encoder), load_encoder(output)
    squash = Preprocessing(size=original.card.preprocessing.size, mode="squash")
    assert result.card.preprocessing == squash
    falls(*(hinge_of(one, squash, triplets) for one in (original, result)))


def test_every_bundled_recipe_is_trained_here():
    assert sorted([*ADVERSARIAL, "lora-2afc", "mlp-2afc"]) == list_recipes()
