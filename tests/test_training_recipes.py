"""Recipes: the papers' numbers, one recipe built on another, changes, and what is said of each mistake."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsim.errors import InputError, RecipeError, RobustSimError
from robustsim.training import METHODS, dump_recipe, list_recipes, load_recipe
from robustsim.training.loop.schedule import averaging, learning_rate
from robustsim.training.recipes.recipe import FinetuneRecipe, TrainRecipe

# REFERENCE.md, section 5. R-CLIP: 20,000 steps at 128, AdamW, cosine with 1,400 warm-up steps, PGD-10. The
# momentum of 0.9 did nothing in the code that was run; section 8.
RCLIP = {
    "steps": 20000,
    "epochs": None,
    "batch_size": 128,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-5,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 1400,
    "attack.norm": "linf",
    "attack.eps": 4 / 255,
    "attack.steps": 10,
    "attack.step_size": 1 / 255,
    "attack.momentum": 0.0,
    "attack.warmup": 0.0,
}
# CTGA: ten passes at 128, SGD with momentum and no weight decay, PGD-2. As the authors ran it: 1,000 steps of warm-up,
# pictures at 256 by bilinear interpolation, of which 224 are seen, attention by channel; section 8.
CTGA = {
    "encoder": "clip-vit-b-32",
    "steps": None,
    "epochs": 10,
    "batch_size": 128,
    "optimizer.name": "sgd",
    "optimizer.lr": 1e-4,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0,
    "optimizer.warmup_steps": 1000,
    "preprocessing.mode": "shortest",
    "preprocessing.crop": 224 / 256,
    "preprocessing.interpolation": "bilinear",
    "attack.norm": "linf",
    "attack.eps": 1 / 255,
    "attack.steps": 2,
    "attack.step_size": 1 / 255,
}
# DreamSim's scheme for NIGHTS.
NIGHTS = {
    "encoder": "rclip-f-convnext-base",
    "preprocessing": "squash",
    "margin": 0.05,
    "optimizer.name": "adam",
    "optimizer.lr": 3e-4,
    "optimizer.betas": (0.5, 0.999),
}
PROMPT = {"prompt": "This is a photo of a {}", "scale": 100.0}
PLAIN = {"clean_weight": 0.0, "trades": 0.0}
AS_RUN = {"attention": "published"}


def fare(encoder, **changes):
    return {
        **RCLIP,
        "encoder": encoder,
        "method.name": "fare",
        "method.options": {**PLAIN, "rank": 0.0, "relations": 0.0},
        **changes,
    }


def tecoa(encoder):
    return {**RCLIP, "encoder": encoder, "method.name": "tecoa", "method.options": {**PROMPT, **PLAIN}}


def ctga(method, **options):
    return {**CTGA, "method.name": method, "method.options": {**PROMPT, **options}}


PAPERS = {
    "fare4-convnext-base": fare("clip-convnext-base"),
    "fare4-vit-b-16": fare("clip-vit-b-16"),
    "fare4-vit-b-32": fare("clip-vit-b-32"),
    "fare4-vit-l-14": fare("clip-vit-l-14"),
    "fare2-vit-l-14": fare("clip-vit-l-14", **{"attack.eps": 2 / 255}),
    "fare4-dino-vit-b-16": fare("dino-vit-b-16"),
    "fare4-dinov2-vit-b-14": fare("dinov2-vit-b-14"),
    "tecoa4-convnext-base": tecoa("clip-convnext-base"),
    "tecoa4-vit-b-16": tecoa("clip-vit-b-16"),
    "tecoa4-vit-b-32": tecoa("clip-vit-b-32"),
    "tecoa4-vit-l-14": tecoa("clip-vit-l-14"),
    "ft-clean-vit-b-32": ctga("ft-clean"),
    "ft-adv-vit-b-32": ctga("ft-adv"),
    "pmg-aft-vit-b-32": ctga("pmg-aft", alpha=1.0, beta=1.0),
    "tga-zsr-vit-b-32": ctga("tga-zsr", alpha=0.08, beta=0.05, **AS_RUN),
    "comp-tga-vit-b-32": ctga(
        "comp-tga", alpha=0.10, beta=0.10, negative_prompt="This is not a photo of a {}", **AS_RUN
    ),
    "caw-vit-b-32": ctga("caw", alpha=1.0, beta=1.0),
    "lora-2afc": {
        **NIGHTS,
        "epochs": 8,
        "batch_size": 32,
        "adapter.name": "lora",
        "adapter.r": 16,
        "adapter.alpha": 0.5,
        "adapter.dropout": 0.3,
    },
    "mlp-2afc": {**NIGHTS, "epochs": 20, "batch_size": 512, "adapter.name": "mlp", "adapter.hidden": 512},
}
# Our own, for which there is no paper.
OWN = {"fare-lite", "fare4-lite", "fare4-lite-224", "rank5-lite", "keep4-lite", "keep5-lite", "soup5-lite"}


def value(recipe, key):
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


@pytest.fixture
def write(tmp_path):
    """Write a recipe file; lines are numbered from 1."""

    def make(text, name="mine.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return make


# Whole, and as short as one may be: eight lines.
SHORT = """\
encoder: lite-clean
method: fare
attack:
  eps: 4/255
optimizer:
  lr: 1.0e-4
steps: 10
batch_size: 4
"""


# --- bundled recipes


def test_every_bundled_recipe_has_its_papers_numbers_here():
    assert list_recipes() == sorted(PAPERS.keys() | OWN)


@pytest.mark.parametrize("name", PAPERS)
def test_bundled_recipes_have_the_papers_numbers(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    for key, wanted in PAPERS[name].items():
        assert value(recipe, key) == (pytest.approx(wanted, rel=1e-12) if isinstance(wanted, float) else wanted), key


@pytest.mark.parametrize("name", sorted(PAPERS.keys() | OWN))
def test_bundled_recipes_describe_themselves_and_start_from_a_known_encoder(name):
    from robustsim import list_models

    recipe = load_recipe(name)
    assert recipe.description.endswith(".")
    # Parts of one way go on from what the docs call the part before.
    assert recipe.encoder in list_models() or (name in OWN and recipe.encoder.startswith("./runs/"))
    if isinstance(recipe, TrainRecipe):
        assert ("labels" in recipe.description) == (recipe.method.method.labels or "no labels" in recipe.description)


def test_each_method_has_a_bundled_recipe():
    trained = [load_recipe(name) for name in list_recipes()]
    assert {recipe.method.name for recipe in trained if isinstance(recipe, TrainRecipe)} == set(METHODS)


def test_methods_have_the_papers_options_where_a_recipe_says_nothing():
    papers = {
        numbers["method.name"]: numbers["method.options"] for numbers in PAPERS.values() if "method.name" in numbers
    }
    for name in ("tga-zsr", "comp-tga"):
        papers[name] = {**papers[name], "attention": "paper"}
    assert {name: dict(method.options) for name, method in METHODS.items()} == papers


def test_the_kind_decides_what_a_recipe_is():
    assert isinstance(load_recipe("fare-lite"), TrainRecipe)
    assert isinstance(load_recipe("lora-2afc"), FinetuneRecipe)
    assert (load_recipe("fare-lite").kind, load_recipe("mlp-2afc").kind) == ("adversarial", "2afc")


# --- there and back


@pytest.mark.parametrize("name", sorted(PAPERS.keys() | OWN))
def test_a_recipe_written_out_reads_back_as_it_was(name, write):
    recipe = load_recipe(name)
    text = dump_recipe(recipe)
    again = load_recipe(write(text))
    assert again == recipe.model_copy(update={"base": None})
    assert dump_recipe(again) == text


positive = st.floats(1e-300, 1e300)
share = st.floats(0, 1)


@st.composite
def train_recipes(draw):
    name = draw(st.sampled_from(sorted(METHODS)))
    options = {}
    if "alpha" in METHODS[name].options:
        options["alpha"] = draw(st.floats(0, 1e6))
    if "prompt" in METHODS[name].options:
        options["prompt"] = (
            draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=8)).replace("{}", "") + "{}"
        )
    parts = draw(st.integers(1, 5))
    later = draw(st.lists(st.floats(0.001, 0.999), unique=True, max_size=3))
    length = {"steps": draw(st.integers(1, 10**9))} if draw(st.booleans()) else {"epochs": draw(positive)}
    return TrainRecipe(
        name=draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=12)),
        description=draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=40)),
        encoder="x",
        method={"name": name, **options},
        attack={"eps": draw(share), "step_size": draw(st.one_of(st.none(), share)), "warmup": draw(share)},
        optimizer={"lr": draw(positive), "betas": (draw(st.floats(0, 0.999)), 0.5), "clip_norm": draw(positive)},
        batch_size=parts * draw(st.integers(1, 50)),
        accumulate=parts,
        ema=draw(st.one_of(st.none(), st.floats(0, 0.9999))),
        stages=[{"at": at, "size": draw(st.integers(8, 512))} for at in (0, *sorted(later))],
        **length,
    )


@settings(max_examples=100, deadline=None)
@given(recipe=train_recipes())
def test_any_recipe_written_out_reads_back_as_it_was(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


# --- numbers as people write them


@pytest.mark.parametrize(
    ("text", "eps"),
    [
        ("4/255", 4 / 255),
        ("0.5/255", 0.5 / 255),
        ("0.0157", 0.0157),
        ("1e-2", 0.01),
        ("0", 0),
        ("1", 1),
        ("8 / 255", 8 / 255),
    ],
)
def test_a_radius_is_a_number_or_a_fraction(text, eps, write):
    assert load_recipe(write(SHORT.replace("4/255", text))).attack.eps == pytest.approx(eps)


def test_the_norm_decides_how_large_a_radius_may_be(write):
    far = SHORT.replace("eps: 4/255", "eps: 3\n  norm: l2\n  step_size: 300/255")
    attack = load_recipe(write(far)).attack
    assert (attack.norm, attack.eps, attack.step_size) == ("l2", 3, pytest.approx(300 / 255))
    for text in ("3", "3.0", "'3'"):
        with pytest.raises(RecipeError, match=re.escape("more than the range of pixels, 0 to 1: did you mean 3/255?")):
            load_recipe(write(SHORT.replace("4/255", text)))


def test_learning_rates_may_lack_the_dot_that_yaml_wants(write):
    assert load_recipe(write(SHORT.replace("1.0e-4", "3e-4"))).optimizer.lr == 3e-4


# --- one built on another


def test_a_file_is_built_on_a_bundled_recipe(write):
    path = write("base: fare4-convnext-base\nattack: {eps: 2/255}\nencoder: clip-vit-b-16\n")
    recipe, base = load_recipe(path), load_recipe("fare4-convnext-base")
    assert recipe == base.model_copy(
        update={
            "name": "mine",
            "base": "fare4-convnext-base",
            "description": "",
            "encoder": "clip-vit-b-16",
            "attack": base.attack.model_copy(update={"eps": 2 / 255}),
        }
    )


def test_a_file_is_built_on_a_file_beside_it(write, monkeypatch, tmp_path):
    write(SHORT + "ema: 0.9\nlicense: MIT\n", "deep/ground.yml")
    path = write("base: ground.yml\nseed: 3\nema: null\n", "deep/house.yaml")
    top = write("base: deep/house.yaml\nattack: {steps: 7}\n", "top.yaml")
    monkeypatch.chdir("/")
    house, roof = load_recipe(path), load_recipe(top)
    assert (house.name, house.seed, house.ema, house.license, house.batch_size) == ("house", 3, None, "MIT", 4)
    assert (roof.name, roof.seed, roof.attack.steps, roof.attack.eps) == ("top", 3, 7, pytest.approx(4 / 255))
    monkeypatch.chdir(tmp_path / "deep")
    assert load_recipe("house.yaml") == house


def test_a_file_may_be_called_like_the_recipe_it_is_built_on(write):
    assert load_recipe(write("base: fare-lite\nseed: 5\n", "fare-lite.yaml")).seed == 5
    assert load_recipe("fare-lite").seed == 0


def test_another_method_takes_no_options_from_the_base(write):
    base = load_recipe("tga-zsr-vit-b-32")
    assert base.method.options["alpha"] == 0.08
    for text in ("method: caw", "method: {name: caw}"):
        assert load_recipe(write(f"base: tga-zsr-vit-b-32\n{text}\n")).method.options["alpha"] == 1.0
    for text in ("method: tga-zsr", "method: {beta: 0.5}", "method: {name: tga-zsr, beta: 0.5}"):
        options = load_recipe(write(f"base: tga-zsr-vit-b-32\n{text}\n")).method.options
        assert options["alpha"] == 0.08
        assert options["beta"] == (0.5 if "beta" in text else 0.05)
    assert load_recipe(write("base: lora-2afc\nadapter: mlp\n")).adapter.r == 16  # the usual one, and unused


def test_another_optimiser_keeps_the_rest_of_its_section(write):
    optimizer = load_recipe(write("base: fare4-vit-b-32\noptimizer: {name: sgd, lr: 0.1}\n")).optimizer
    assert (optimizer.name, optimizer.lr, optimizer.warmup_steps) == ("sgd", 0.1, 1400)


def test_steps_take_the_place_of_epochs_and_the_other_way_round(write):
    recipe = load_recipe(write("base: lora-2afc\nsteps: 7\n"))
    assert (recipe.steps, recipe.epochs) == (7, None)
    recipe = load_recipe(write("base: fare-lite\nepochs: 0.5\n"))
    assert (recipe.steps, recipe.epochs) == (None, 0.5)


def test_recipes_that_are_built_on_themselves(write, tmp_path, monkeypatch):
    first = write("seed: 1\nbase: sub/second.yaml\n", "first.yaml")
    write("base: ../sub/third.yaml\n", "sub/second.yaml")
    third = write("\n\nbase: ../first.yaml\n", "sub/third.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(first)
    message = str(caught.value)
    assert re.match(r".*third\.yaml, line 3: the recipe is built on itself: ", message)
    assert [part.rpartition("/")[2] for part in message.partition("itself: ")[2].split(" -> ")] == [
        "first.yaml", "second.yaml", "third.yaml", "first.yaml",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"built on itself"):
        load_recipe(third)
    monkeypatch.chdir(tmp_path)
    write("base: ./me.yaml\n", "me.yaml")
    with pytest.raises(RecipeError, match=r"^me\.yaml, line 1: the recipe is built on itself: me\.yaml -> me\.yaml$"):
        load_recipe("me.yaml")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("fare4-vit-b32", r"base: no recipe is called 'fare4-vit-b32'; did you mean 'fare4-vit-b-32'"),
        ("nowhere.yaml", r"base: cannot read the recipe '.*nowhere\.yaml': No such file"),
        ("[a, b]", r"base must be the name of a recipe or a file, not \['a', 'b'\]"),
        ("7", r"base must be the name of a recipe or a file, not 7"),
    ],
)
def test_a_base_that_is_none(base, message, write):
    with pytest.raises(RecipeError, match=rf"mine\.yaml, line 2: {message}"):
        load_recipe(write(f"seed: 1\nbase: {base}\n"))


def test_a_mistake_in_the_base_is_told_with_the_bases_line(write):
    write(SHORT.replace("eps: 4/255", "eps: four"), "ground.yaml")
    with pytest.raises(RecipeError, match=r"ground\.yaml, line 4: attack\.eps: 'four' is no radius"):
        load_recipe(write("base: ground.yaml\nseed: 1\n"))
    # Which the file on top of it may mend.
    assert load_recipe(write("base: ground.yaml\nattack: {eps: 1/255}\n")).attack.eps == pytest.approx(1 / 255)


# --- mistakes


# What stands in the place of which line of SHORT (all else stays), in which line the mistake is told, and how.
MISTAKES = [
    # unknown keys
    ("steps: 10", "stebs: 10", 7, "unknown key 'stebs'; did you mean 'steps'"),
    ("  lr: 1.0e-4", "  lr: 1\n  momentun: 1", 7, "unknown key 'optimizer.momentun'; did you mean 'momentum'"),
    ("  lr: 1.0e-4", "  lr: 1\n  zzz: 0", 7, "unknown key 'optimizer.zzz'; known: name, lr, relative, weight_decay"),
    ("method: fare", "method: {name: fare, aplha: 1}", 2, "unknown key 'method.aplha'; did you mean 'alpha'"),
    ("steps: 10", "stages: [{at: 0, sise: 64}]", 7, "unknown key 'stages.0.sise'; did you mean 'size'"),
    ("steps: 10", "adapter: lora", 7, "unknown key 'adapter': it belongs to recipes of the kind 2afc"),
    ("steps: 10", "kind_: 2afc", 7, "unknown key 'kind_'; did you mean 'kind'"),
    ("steps: 10", "5: five", 7, "unknown key '5'; known: name, base"),
    # wrong types and values
    ("steps: 10", "steps: many", 7, "steps should be a valid integer, not 'many'"),
    ("steps: 10", "steps: 2.5", 7, "steps should be a valid integer, not 2.5"),
    ("steps: 10", "steps: 0", 7, "steps should be greater than or equal to 1, not 0"),
    ("steps: 10", "steps: [1, 2]", 7, "steps should be a valid integer, not [1, 2]"),
    ("steps: 10", "epochs: -1", 7, "epochs should be greater than 0, not -1"),
    ("steps: 10", "epochs: .inf", 7, "epochs should be a finite number, not inf"),
    ("lr: 1.0e-4", "lr: fast", 6, "optimizer.lr should be a valid number, not 'fast'"),
    ("  lr: 1.0e-4", "  lr: 1\n  name: lamb", 7, "optimizer.name should be 'adamw', 'adam' or 'sgd', not 'lamb'"),
    ("  lr: 1.0e-4", "  lr: 1\n  betas: [0.9, 1.0]", 7, "optimizer.betas.1 should be less than 1, not 1.0"),
    ("  eps: 4/255", "  eps: 0\n  norm: l3", 5, "attack.norm should be 'linf', 'l2' or 'l1', not 'l3'"),
    ("encoder: lite-clean", "encoder: [a]", 1, "encoder should be a valid string, not ['a']"),
    ("steps: 10", "stages: 64", 7, "stages should be a list, not 64"),
    ("steps: 10", "validation: no", 7, "validation must have keys of its own below it, and is False"),
    ("steps: 10", "validation:", 7, "validation must have keys of its own below it, and is None"),
    # radii
    ("4/255", "4/0", 4, "attack.eps: '4/0' is no radius: write 4/255, or a number such as 0.0157"),
    ("4/255", "abc", 4, "attack.eps: 'abc' is no radius: write 4/255, or a number such as 0.0157"),
    ("4/255", "4", 4, "an linf radius of 4 is more than the range of pixels, 0 to 1: did you mean 4/255?"),
    ("4/255", "-1/255", 4, "attack.eps: eps must be one radius of at least 0"),
    ("4/255", "4/255\n  step_size: quick", 5, "attack.step_size: 'quick' is no radius"),
    # what is missing
    ("encoder: lite-clean\n", "", 1, "'encoder' is missing"),
    ("  lr: 1.0e-4", "  momentum: 0.9", 5, "'optimizer.lr' is missing"),
    ("method: fare", "method: {alpha: 1}", 2, "'method.name' is missing"),
    ("steps: 10", "stages: [{size: 64}]", 7, "'stages.0.at' is missing"),
    # what does not go together
    ("steps: 10\n", "", 1, "set either steps or epochs: neither is there"),
    ("steps: 10", "steps: 10\nepochs: 2", 1, "set either steps or epochs: not both (10 and 2)"),
    ("batch_size: 4", "batch_size: 10\naccumulate: 3", 1, "batch_size 10 cannot be cut into 3 equal parts"),
    ("steps: 10", "stages: [{at: 0.2, size: 64}]", 7, "stages: the first must begin at 0 and each later than"),
    ("steps: 10", "stages: [{at: 0, size: 9}, {at: 0, size: 8}]", 7, "the one before, these begin at [0.0, 0.0]"),
    ("steps: 10", "augment: {crop: [0.9, 0.5]}", 7, "augment.crop: it must be the least and the greatest share"),
    ("steps: 10", "augment: {crop: [0.5, 2]}", 7, "share of the area, at most 1, not [0.5, 2.0]"),
    # methods
    (
        "method: fare",
        "method: fair",
        2,
        "method.name: no method is called 'fair'; did you mean 'fare'? there are fare,",
    ),
    ("method: fare", "method: zzzz", 2, "method.name: no method is called 'zzzz'; there are fare, tecoa, "),
    (
        "method: fare",
        "method:\n  name: fare\n  beta: 1",
        4,
        "method.beta: fare has no such option; its options are clean",
    ),
    (
        "method: fare",
        "method: {name: caw, trades: 1}",
        2,
        "caw has no such option; its options are prompt, scale, alpha",
    ),
    (
        "method: fare",
        "method: {name: fare, trades: 1, clean_weight: 1}",
        2,
        "method: clean_weight and trades are two ways",
    ),
    ("method: fare", "method: {name: fare, rank: 1, trades: 1}", 2, "method: rank goes with the plain loss"),
    ("method: fare", "method: {name: tecoa, rank: 1}", 2, "method.rank: tecoa has no such option"),
    ("method: fare", "method: {name: tecoa, prompt: a photo}", 2, "method.prompt: 'a photo' must hold {} once"),
    ("method: fare", "method: [fare]", 2, "method must have keys of its own below it, and is ['fare']"),
    # kinds
    ("steps: 10", "kind: adversary", 7, "kind is 'adversary'; it is one of adversarial, 2afc"),
    ("steps: 10", "kind: [2afc]", 7, "kind is ['2afc']; it is one of adversarial, 2afc"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_mistakes_are_told_with_file_and_line_and_what_to_do(old, new, line, message, write):
    assert SHORT.count(old) == 1
    path = write(SHORT.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    # Several mistakes are parted by semicolons.
    told = [part for part in re.split(rf"(?={re.escape(str(path))}, line )", str(caught.value)) if message in part]
    assert told, caught.value
    assert told[0].startswith(f"{path}, line {line}: ")
    assert "\n" not in str(caught.value)


def test_every_mistake_is_told_at_once(write):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(SHORT.replace("steps: 10", "stebs: 10").replace("4/255", "far")))
    assert "line 4: attack.eps" in str(caught.value)
    assert "line 7: unknown key 'stebs'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHORT + "steps: 20\n", r", line 9: the key 'steps' is there twice"),
        (SHORT.replace("  lr: 1.0e-4", "  lr: 1\n  lr: 2"), r", line 7: the key 'lr' is there twice"),
        ("encoder: [a\nsteps: 1\n", r", line 2 is not valid YAML: while parsing a flow sequence, expected ',' or '\]'"),
        ("a: 1\n\tb: 2\n", r", line 2 is not valid YAML: while scanning for the next token, found character '\\t'"),
        ("a: 'b\n", r", line 2 is not valid YAML: while scanning a quoted scalar"),
        ("a: 1\n---\nb: 2\n", r", line 2 is not valid YAML: expected a single document"),
        ("a: !!python/object:os.system 1\n", r", line 1 is not valid YAML: could not determine a constructor"),
        ("a: \x00\n", r" is not valid YAML: unacceptable character"),
        ("? [a, b]\n: 1\n", r", line 1: a key must be a word"),
        ("[" * 600, r" is not valid YAML: it is nested too deeply"),
        ("a: &a [*a]\n", r" is not valid YAML: it is nested too deeply"),
        ("", r" holds no keys: a recipe is a mapping"),
        ("# nothing\n", r" holds no keys"),
        ("- a\n- b\n", r" holds no keys"),
        ("fare-lite\n", r" holds no keys"),
    ],
)
def test_what_is_no_recipe_at_all(text, message, write):
    path = write(text)
    with pytest.raises(RecipeError, match=f"^{re.escape(str(path))}{message}") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the recipe '.*none\.yaml': No such file or directory"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("description: schön\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"cannot read the recipe '.*latin\.yaml': it is no text in UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(InputError, match=r"cannot read the recipe '.*folder\.yaml': Is a directory"):
        load_recipe(tmp_path / "folder.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "mark.yaml").write_text(SHORT, encoding="utf-8-sig")
    assert load_recipe(tmp_path / "mark.yaml").encoder == "lite-clean"


def test_names_of_no_recipe_are_answered_with_the_nearest():
    with pytest.raises(InputError) as caught:
        load_recipe("fare4-vit-b32")
    message = str(caught.value)
    assert message.startswith("no recipe is called 'fare4-vit-b32'; did you mean 'fare4-vit-b-32'")
    assert message.endswith("? `robustsim recipes` lists them, and a file must end in .yaml")
    with pytest.raises(InputError, match=r"^no recipe is called 'qqq'; `robustsim recipes` lists them"):
        load_recipe("qqq")


def test_recipes_are_values(write):
    recipe = load_recipe(write(SHORT))
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 5
    assert hash(recipe.attack) == hash(load_recipe(write(SHORT)).attack)


# --- changes


def test_changes_reach_values_at_any_depth(write):
    path = write(
        SHORT
        + "ema: 0.9\naugment: {crop: [0.1, 1], flip: yes}\nvalidation: {images: 32}\nstages: [{at: 0, size: 112}]\n"
    )
    before = load_recipe(path)
    assert (before.ema, before.augment.crop, before.augment.flip) == (0.9, (0.1, 1), True)
    recipe = load_recipe(
        path,
        [
            "attack.eps=2/255",
            "optimizer.betas=[0.5, 0.9]",
            "stages=[{at: 0, size: 64}, {at: 0.5, size: 96}]",
            "ema=",
            "validation={every: 7}",
            "augment.crop=null",
            "augment.flip=no",
            "title='A robust model: the second'",
            "name = other",
            "optimizer.lr=3e-4",
        ],
    )
    assert (recipe.attack.eps, recipe.attack.steps) == (pytest.approx(2 / 255), before.attack.steps)
    assert recipe.optimizer.betas == (0.5, 0.9)
    assert [(stage.at, stage.size) for stage in recipe.stages] == [(0, 64), (0.5, 96)]
    assert recipe.ema is None
    assert (recipe.validation.every, recipe.validation.images) == (7, 32)
    assert (recipe.augment.crop, recipe.augment.flip) == (None, False)
    assert (recipe.title, recipe.name, recipe.optimizer.lr) == ("A robust model: the second", "other", 3e-4)


def test_changes_may_open_a_section_that_was_not_there(write):
    recipe = load_recipe(write(SHORT), ["augment.flip=true", "checkpoints.every=5"])
    assert recipe.augment.flip
    assert recipe.checkpoints.every == 5


def test_lists_are_changed_as_a_whole(write):
    path = write(SHORT + "stages: [{at: 0, size: 64}]\n")
    with pytest.raises(InputError, match=r"stages is \[\{'at': 0, 'size': 64\}\], and has no keys below it"):
        load_recipe(path, ["stages.0.size=96"])


def test_a_later_change_comes_over_an_earlier_one():
    assert load_recipe("fare4-convnext-base", ["seed=1", "seed=2"]).seed == 2
    assert load_recipe("fare4-convnext-base", ["attack={eps: 1/255, steps: 9}", "attack.steps=3"]).attack.steps == 3


@pytest.mark.parametrize("change", ["method=tecoa", "method.name=tecoa", "method={name: tecoa}"])
def test_another_method_is_set_by_its_name(change):
    recipe = load_recipe("comp-tga-vit-b-32", [change])
    assert recipe.method.name == "tecoa"
    assert recipe.method.options == METHODS["tecoa"].options
    recipe = load_recipe("comp-tga-vit-b-32", [change, "method.clean_weight=0.5"])
    assert recipe.method.options == {**METHODS["tecoa"].options, "clean_weight": 0.5}


def test_an_option_is_set_where_the_file_has_the_methods_name_alone(write):
    path = write(SHORT)  # method: fare
    assert load_recipe(path, ["method.clean_weight=0.5"]).method.options == {
        **METHODS["fare"].options,
        "clean_weight": 0.5,
    }
    assert load_recipe("caw-vit-b-32", ["method.alpha=3"]).method.options["alpha"] == 3
    assert load_recipe("lora-2afc", ["adapter=mlp", "adapter.hidden=64"]).adapter.hidden == 64


def test_changed_steps_take_the_place_of_epochs():
    recipe = load_recipe("lora-2afc", ["steps=10"])
    assert (recipe.steps, recipe.epochs) == (10, None)
    recipe = load_recipe("fare4-convnext-base", ["epochs=2"])
    assert (recipe.steps, recipe.epochs) == (None, 2)
    recipe = load_recipe("fare4-convnext-base", ["epochs=2", "steps=10"])
    assert (recipe.steps, recipe.epochs) == (10, None)
    recipe = load_recipe("fare4-convnext-base", ["attack.steps=3", "validation.steps=4"])
    assert (recipe.steps, recipe.attack.steps, recipe.validation.steps) == (20000, 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps", "--set wants key=value, such as attack.eps=2/255, not 'steps'"),
        ("=5", "--set wants key=value, such as attack.eps=2/255, not '=5'"),
        ("", "--set wants key=value, such as attack.eps=2/255, not ''"),
        ("steps=[1", "--set steps=[1, line 1 is not valid YAML: while parsing a flow sequence"),
        ("title=a: b: c", "put text with a colon or a bracket in quotes"),
        ("attack.eps.more=1", "--set attack.eps.more=1: attack.eps is '4/255', and has no keys below it"),
        ("steps.more=1", "--set steps.more=1: steps is 20000, and has no keys below it"),
        ("encoder.size=64", "--set encoder.size=64: encoder is 'clip-convnext-base', and has no keys below it"),
        ("base=fare4-vit-b-32", "--set base=fare4-vit-b-32: a recipe keeps its base: name the other recipe"),
        ("stebs=5", "--set stebs=5: unknown key 'stebs'; did you mean 'steps'"),
        ("attak.eps=1/255", "--set attak.eps=1/255: unknown key 'attak'; did you mean 'attack'"),
        ("attack.epz=1/255", "--set attack.epz=1/255: unknown key 'attack.epz'; did you mean 'eps'"),
        ("attack={eps: far, steps: 3}", "--set attack={eps: far, steps: 3}: attack.eps: 'far' is no radius"),
        ("attack.eps=4/0", "--set attack.eps=4/0: attack.eps: '4/0' is no radius"),
        ("attack.eps=4", "did you mean 4/255?"),
        ("attack=4/255", "--set attack=4/255: attack must have keys of its own below it, and is '4/255'"),
        ("method=fair", "--set method=fair: method.name: no method is called 'fair'; did you mean 'fare'"),
        ("method.alpha=1", "--set method.alpha=1: method.alpha: fare has no such option; its options are clean_weight"),
        ("steps=", "set either steps or epochs: neither is there"),
        (
            "kind=2afc",
            "line 4: unknown key 'method': it belongs to recipes of the kind adversarial",
        ),
        ("optimizer.lr=quick", "--set optimizer.lr=quick: optimizer.lr should be a valid number, not 'quick'"),
    ],
)
def test_changes_that_do_not_fit_are_told_as_they_were_written(change, message):
    with pytest.raises(RobustSimError) as caught:
        load_recipe("fare4-convnext-base", [change])
    assert isinstance(caught.value, ValueError)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- along the training


def test_steps_follow_from_epochs_and_the_size_of_the_data():
    recipe = load_recipe("tga-zsr-vit-b-32")  # Tiny-ImageNet, ten passes
    assert recipe.total_steps(100_000) == round(10 * 100_000 / 128)
    assert recipe.total_steps(1) == 1
    assert load_recipe("fare4-vit-b-32").total_steps(5) == 20000


@settings(max_examples=200, deadline=None)
@given(lr=st.floats(1e-6, 1), total=st.integers(1, 500), warmup=st.integers(0, 600))
def test_the_learning_rate_grows_then_falls_and_is_never_0(lr, total, warmup):
    rates = [learning_rate(step, total, lr=lr, warmup_steps=warmup) for step in range(total)]
    assert all(0 < rate <= lr * (1 + 1e-9) for rate in rates)
    grown, falling = rates[:warmup], rates[warmup:]
    assert grown == sorted(grown)
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == pytest.approx(lr)
        middle = lr * 0.5 * (1 + math.cos(math.pi * (len(falling) // 2) / len(falling)))
        assert falling[len(falling) // 2] == pytest.approx(middle)
    constant = [learning_rate(step, total, lr=lr, warmup_steps=warmup, schedule="constant") for step in range(total)]
    assert constant[:warmup] == grown
    assert set(constant[warmup:]) <= {lr}


@settings(max_examples=100, deadline=None)
@given(steps=st.integers(0, 10**6), decay=st.floats(0, 0.9999))
def test_averages_forget_the_beginning(steps, decay):
    assert 0 <= averaging(steps, decay) <= decay
    assert averaging(steps, decay) <= averaging(steps + 1, decay)
    assert averaging(10**9, decay) == decay


@settings(max_examples=200, deadline=None)
@given(eps=st.floats(0, 1), warmup=st.floats(0, 1), total=st.integers(1, 300))
def test_the_radius_grows_to_its_full_size_and_stays_there(eps, warmup, total):
    recipe = TrainRecipe(
        encoder="x",
        method="fare",
        optimizer={"lr": 1},
        steps=total,
        batch_size=1,
        attack={"eps": eps, "warmup": warmup},
    )
    radii = [recipe.eps_at(step, total) for step in range(total)]
    assert radii == sorted(radii)
    assert radii[-1] == pytest.approx(eps)
    assert all(0 <= radius <= eps for radius in radii)
    if eps > 1e-300:
        assert radii[0] > 0
    assert all(radius == eps for step, radius in enumerate(radii) if step + 1 >= warmup * total)


@settings(max_examples=200, deadline=None)
@given(
    starts=st.lists(st.integers(1, 99), unique=True, max_size=4).map(sorted),
    total=st.integers(1, 400),
)
def test_sizes_change_at_their_share_of_the_training(starts, total):
    places = [0.0, *(start / 100 for start in starts)]
    recipe = TrainRecipe(
        encoder="x",
        method="fare",
        optimizer={"lr": 1},
        steps=total,
        batch_size=1,
        attack={"eps": 0},
        stages=[{"at": at, "size": 8 + index} for index, at in enumerate(places)],
    )
    for step in range(total):
        # In whole numbers, where nothing is rounded.
        begun = sum(1 for start in [0, *starts] if start * total <= 100 * step)
        assert recipe.size_at(step, total, 224) == 8 + begun - 1


def test_without_stages_images_have_the_usual_size():
    recipe = load_recipe("fare4-vit-b-32")
    assert {recipe.size_at(step, 10, 224) for step in range(10)} == {224}


def test_an_option_that_is_said_and_one_that_is_left_alone_are_no_difference():
    """A run begun by a recipe from before an option was there goes on where its value is said."""
    from robustsim.training.loop.output import _difference

    silent, said, other = (
        load_recipe("tga-zsr-vit-b-32", [f"method.attention={value}"]) for value in ("null", "paper", "published")
    )
    assert _difference(silent, said) == _difference(said, silent) == ""
    assert _difference(silent, other) == "method.attention was 'paper', is 'published'"
