"""Adapters: where they lie, that they change nothing before training, and nothing but the weights after merging."""

import copy
import re
import sys

import pytest
import torch
from torch import nn

from robustsim.encoders import Architecture, EncoderCard, Head, load_encoder, save_encoder
from robustsim.encoders.encoder import build_encoder
from robustsim.errors import InputError, MissingDependencyError, WeightsError
from robustsim.training.tasks.adapters import add_lora, add_mlp, default_targets, merge_lora_adapters
from tests import layouts

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("vit", "convnext", "dino", "lite")


def load(published, family, **options):
    return load_encoder("lite-clean" if family == "lite" else published[family][0], **options)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def encoder(published, family):
    return load(published, family)


def pixels(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def trained(encoder, seed=5):
    """Adapters with values as if they had been trained, so large that they show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return encoder


def trainable(encoder):
    return {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def adapted(encoder):
    """Names of the modules in the trunk that have adapters."""
    names = {name.partition(".lora_")[0] for name in trainable(encoder)}
    return {name.removeprefix("trunk.") for name in names}


def outline(encoder):
    """All there is to see of an encoder but its values."""
    return (
        [(name, type(module), module.training) for name, module in encoder.named_modules()],
        [(name, value.shape, value.dtype) for name, value in encoder.state_dict().items()],
        set(vars(encoder.trunk)),
    )


def relative(a, b):
    return ((a - b).norm(dim=-1) / b.norm(dim=-1)).max().item()


# --- where adapters lie


def expected_layers(family, encoder):
    if family == "vit":
        return {f"visual.transformer.resblocks.{block}.attn.in_proj" for block in range(2)}
    if family == "dino":
        return {f"model.blocks.{block}.attn.qkv" for block in range(2)}
    names = [name.removeprefix("trunk.").removesuffix(".weight") for name in encoder.state_dict()]
    if family == "convnext":
        return {name for name in names if re.search(r"blocks\.\d+\.mlp\.fc[12]$", name)}
    pointwise = [name for name, value in encoder.trunk.named_parameters() if value.shape[2:] == (1, 1)]
    depthwise = [name for name in pointwise if "depthwise" in name]
    assert len(pointwise) == 32
    assert not depthwise
    return {name.removesuffix(".weight") for name in pointwise}


def test_the_layers_of_each_architecture(encoder, family):
    expected = expected_layers(family, encoder)
    assert expected
    assert adapted(add_lora(encoder, r=2)) == expected


def test_a_convnexts_projection_is_none_of_its_blocks(tmp_path):
    """open_clip's larger ConvNeXts project by an MLP, whose layers are called ``fc1`` and ``fc2`` too."""
    config = {**layouts.CONVNEXT, "vision_cfg": {**layouts.CONVNEXT["vision_cfg"], "timm_proj": "mlp"}}
    layouts.write_open_clip(tmp_path / "m", config)
    encoder = load_encoder(tmp_path / "m")
    assert "visual.head.mlp.fc1" in dict(encoder.trunk.named_modules())
    layers = adapted(add_lora(encoder, r=2))
    assert layers
    assert all(".blocks." in name for name in layers)


def test_layers_of_ones_own(published):
    encoder = add_lora(load(published, "vit"), r=2, targets=["out_proj", "resblocks.1.mlp.c_fc"])
    blocks = "visual.transformer.resblocks"
    assert adapted(encoder) == {f"{blocks}.0.attn.out_proj", f"{blocks}.1.attn.out_proj", f"{blocks}.1.mlp.c_fc"}
    encoder = add_lora(load(published, "dino"), r=2, targets=r".*\.0\.mlp\.fc\d")
    assert adapted(encoder) == {"model.blocks.0.mlp.fc1", "model.blocks.0.mlp.fc2"}
    encoder = add_lora(load(published, "lite"), r=2, targets=("stem",))
    assert adapted(encoder) == {"stem"}


def test_the_end_of_one_name_is_not_taken_for_another(published):
    """As a list, PEFT would take the whole name ``head`` for the end of every ``... .head``."""
    encoder = load(published, "lite")
    encoder.trunk.blocks[0].head = nn.Linear(4, 4)
    assert adapted(add_lora(encoder, r=2, targets="head")) == {"head"}


# --- before training


def test_at_first_nothing_has_changed(encoder):
    # But for rounding: what is adapted is run by its library's modules.
    before, x = copy.deepcopy(encoder).requires_grad_(False), pixels().requires_grad_()
    assert add_lora(encoder, r=4) is encoder
    assert relative(encoder(x), before(x)) < 1e-6
    ours, theirs = encoder.features(x), before.features(x)
    assert relative(ours.tokens, theirs.tokens) < 1e-6
    assert relative(ours.embedding, theirs.embedding) < 1e-6
    assert ours.grid == theirs.grid


def test_beside_pytorchs_fused_attention(published):
    """Without gradients, PyTorch computes an attention in one piece by a kernel of its own."""
    encoder, x = load(published, "vit"), pixels()
    with torch.no_grad():
        before = encoder(x)
        assert relative(add_lora(encoder, r=4)(x), before) < 1e-6


def test_the_older_order_of_axes(published):
    encoder, x = load(published, "vit"), pixels().requires_grad_()
    for block in encoder.trunk.visual.transformer.resblocks:
        block.attn.batch_first = False
    encoder.trunk.visual.transformer.batch_first = False
    before = encoder.requires_grad_(False)(x)
    assert torch.equal(add_lora(encoder, r=4)(x), before)
    assert torch.equal(merge_lora_adapters(encoder)(x), before)


def test_a_seed_gives_the_same_adapters_and_disturbs_no_one(published, family):
    state = torch.random.get_rng_state()
    first, again, other = (trainable(add_lora(load(published, family).train(), r=4, seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    downs = [name for name in first if "lora_A" in name]
    assert not any(torch.equal(first[name], other[name]) for name in downs)
    assert all(bool(first[name].any()) for name in downs)


@pytest.mark.parametrize("training", [False, True])
def test_modes_stay_as_they_were(published, training):
    encoder = load(published, "vit").train(training)
    encoder.trunk.visual.ln_pre.train(not training)
    add_lora(encoder, r=2)
    modes = {name: module.training for name, module in encoder.named_modules() if name != "trunk.visual.ln_pre"}
    assert set(modes.values()) == {training}
    assert encoder.trunk.visual.ln_pre.training is not training


# --- training


def test_only_adapters_are_trained_and_with_dropout(encoder):
    x = pixels(4)
    trained(add_lora(encoder, r=4)).train()
    assert all(".lora_" in name for name in trainable(encoder))
    encoder(x).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name
        if parameter.grad is not None:
            assert bool(parameter.grad.isfinite().all()), name
            assert bool(parameter.grad.any()), name
    for module in encoder.modules():  # what else is random, such as whole blocks left out
        module.train(isinstance(module, nn.Dropout) and module.p == 0.3)
    assert relative(encoder(x), encoder(x)) > 1e-4
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_pixels_have_a_gradient_through_adapters(encoder):
    x = pixels().requires_grad_()
    trained(add_lora(encoder, r=4))(x).square().sum().backward()
    assert bool(x.grad.isfinite().all())
    assert bool(x.grad.any())


def test_an_adapted_encoder_can_be_copied(encoder):
    trained(add_lora(encoder, r=4))
    twin, x = copy.deepcopy(encoder), pixels()
    expected = encoder(x)
    trained(encoder, seed=6)
    assert torch.equal(twin(x), expected)
    assert not torch.equal(encoder(x), expected)


def test_a_text_tower_is_frozen_and_left_alone(published):
    encoder = load(published, "vit", text=True)
    before = [type(module) for module in encoder.text.modules()]
    add_lora(encoder, r=2)
    assert [type(module) for module in encoder.text.modules()] == before
    assert not any(parameter.requires_grad for parameter in encoder.text.parameters())


# --- merging


def test_merged_the_encoder_is_an_ordinary_one_that_computes_the_same(encoder, tmp_path):
    before, seen, x = copy.deepcopy(encoder), outline(encoder), pixels()
    expected = trained(add_lora(encoder, r=4))(x)
    assert relative(expected, before(x)) > 1e-2
    assert merge_lora_adapters(encoder) is encoder
    assert outline(encoder) == seen
    assert relative(encoder(x), expected) < 1e-5
    assert not trainable(encoder)
    save_encoder(encoder, tmp_path / "m")
    reread = load_encoder(tmp_path / "m")
    weights = encoder.state_dict()
    assert reread.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in reread.state_dict().items())
    with torch.no_grad():
        assert torch.equal(reread(x), encoder(x))


def test_only_the_targets_weights_change_and_by_the_formula(encoder, family):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    adapters = trainable(trained(add_lora(encoder, r=4, alpha=3.0)))
    changes = {}
    for name in adapted(encoder):
        down, up = (adapters[f"trunk.{name}.lora_{which}.default.weight"] for which in "AB")
        weight = f"trunk.{name}_weight" if name.endswith("in_proj") else f"trunk.{name}.weight"
        changes[weight] = 3.0 / 4 * (up.flatten(1) @ down.flatten(1)).detach().view(before[weight].shape)
    after = merge_lora_adapters(encoder).state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == changes.keys()
    for name, change in changes.items():
        torch.testing.assert_close(after[name], before[name] + change, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "targets"), [("vit", ["in_proj", "out_proj", "c_fc"]), ("lite", ["stem", "expand"]), ("dinov3", None)]
)
def test_merging_layers_of_ones_own(published, family, targets):
    encoder, x = load(published, family), pixels()
    seen = outline(encoder)
    expected = trained(add_lora(encoder, r=4, targets=targets))(x)
    merge_lora_adapters(encoder)
    assert outline(encoder) == seen
    assert relative(encoder(x), expected) < 1e-5


def test_adapters_can_follow_adapters(published):
    encoder, x = load(published, "dino"), pixels()
    expected = trained(add_lora(encoder, r=2))(x)
    add_lora(merge_lora_adapters(encoder), r=4, seed=1)
    assert relative(encoder(x), expected) < 1e-5


def test_adapters_have_the_type_of_their_layers(published):
    encoder = load(published, "vit").to(torch.bfloat16)
    seen = outline(encoder)
    add_lora(encoder, r=2, seed=7)
    float32 = trainable(add_lora(load(published, "vit"), r=2, seed=7))
    for name, parameter in trainable(encoder).items():
        assert torch.equal(parameter, float32[name].to(torch.bfloat16))
    trained(encoder)
    assert encoder(pixels()).dtype == torch.bfloat16
    assert outline(merge_lora_adapters(encoder)) == seen


def test_a_merged_card_claims_nothing_of_the_weights_before(published):
    encoder = load(published, "lite")
    assert encoder.card.weights_sha256
    card = merge_lora_adapters(add_lora(encoder, r=1)).card
    assert (card.weights_sha256, card.source, card.scores) == (None, None, {})


def test_adapters_that_are_not_finite_are_not_merged(published):
    encoder = trained(add_lora(load(published, "dino"), r=2))
    seen, last = outline(encoder), list(trainable(encoder).values())[-1]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        last[0, 0] = torch.nan
    with pytest.raises(WeightsError, match=r"adapter of 'model\.blocks\.1\.attn\.qkv' has values that are not finite"):
        merge_lora_adapters(encoder)
    assert outline(encoder) == seen
    with torch.no_grad():
        last[0, 0] = 0
    before[[name for name in before if "lora_B" in name][-1]][0, 0] = 0
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


# --- what is refused


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [
        (
            "vit",
            ["qkv"],
            r"no module of 'vit' matches the targets \['qkv'\]\. It has layers such as .*\.attn\.in_proj, ",
        ),
        ("lite", "project", r"no module of 'lite-clean' matches the targets 'project'\. It has layers such as stem, "),
        ("lite", [], r"matches the targets \[\]"),
        ("dino", "*.qkv", r"the targets '\*\.qkv' are no regular expression: nothing to repeat"),
        ("vit", ["attn"], r"match 'visual\.transformer\.resblocks\.0\.attn', a SplitAttention: adapters lie on linear"),
        ("lite", ["depthwise"], r"match 'blocks\.0\.depthwise', a SameConv2d: adapters lie on .* convolutions of one"),
    ],
)
def test_targets_that_cannot_be_adapted(published, family, targets, message):
    encoder = load(published, family)
    seen = outline(encoder)
    with pytest.raises(InputError, match=message):
        add_lora(encoder, r=2, targets=targets)
    assert outline(encoder) == seen
    assert len(trainable(encoder)) == len(list(encoder.parameters()))


def test_layers_whose_weights_are_used_without_them(published):
    """Such an adapter would be trained in vain: EVA reads the weights of its ``qkv`` instead of calling it."""
    options = {"img_size": 28, "depth": 1, "embed_dim": 48, "num_heads": 3}
    spec = Architecture(library="timm", name="eva_giant_patch14_224", options=options)
    encoder = build_encoder(EncoderCard(name="eva", architecture=spec, embedding_dim=48))
    with pytest.raises(InputError, match=r"match 'model\.blocks\.0\.attn\.qkv', whose forward method is not called"):
        add_lora(encoder)


def test_an_architecture_without_known_targets(tmp_path):
    layouts.write_timm(tmp_path / "m", "test_resnet", {})
    encoder = load_encoder(tmp_path / "m")
    with pytest.raises(InputError, match=r"which layers of 'test_resnet' .* name them with targets\. It has"):
        default_targets(encoder)
    assert adapted(add_lora(encoder, r=2, targets=["layer1.0.conv1"])) == {"model.layer1.0.conv1"}


@pytest.mark.parametrize("numbers", [{"r": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"dropout": 1.0}])
def test_numbers_out_of_range(published, numbers):
    with pytest.raises(InputError, match="r is at least 1, alpha is above 0, dropout is in"):
        add_lora(load(published, "dino"), **numbers)


def test_adapters_twice_or_never(published):
    encoder = load(published, "dino")
    with pytest.raises(InputError, match="no adapters to merge"):
        merge_lora_adapters(encoder)
    add_lora(encoder, r=2)
    with pytest.raises(InputError, match="has adapters already: merge them first"):
        add_lora(encoder, r=2)
    with pytest.raises(InputError, match="has adapters: merge them first"):
        add_mlp(encoder)


def test_without_peft(published, monkeypatch):
    encoder = load(published, "dino")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r'need the package "peft" .*pip install "robustsim\[training\]"'):
        add_lora(encoder)
    add_mlp(encoder)


# --- the MLP


def test_an_mlp_starts_from_the_zero_shot_metric(published, family):
    encoder, x = load(published, family), pixels()
    with torch.no_grad():
        expected = encoder(x)
        tuned = add_mlp(encoder, hidden=8)
        assert torch.equal(tuned(x), expected)
    assert encoder.head is None
    assert tuned.card.head == Head(kind="mlp", hidden=8)
    assert not any(module.training for module in tuned.modules())


def test_only_the_mlp_is_trained(published):
    encoder = load(published, "vit", text=True)
    tuned, x = add_mlp(encoder, hidden=8), pixels()
    assert tuned.text is encoder.text
    assert sorted(trainable(tuned)) == ["head.fc1.bias", "head.fc1.weight", "head.fc2.bias", "head.fc2.weight"]
    before, optimizer = tuned(x).detach(), torch.optim.SGD(trainable(tuned).values(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        tuned(x).square().sum().backward()
        optimizer.step()
    assert all(bool(parameter.grad.any()) for parameter in trainable(tuned).values())
    assert bool((tuned(x).square().sum() < before.square().sum()).item())


def test_an_encoder_with_an_mlp_is_saved_like_any_other(published, family, tmp_path):
    tuned = add_mlp(load(published, family), hidden=8)
    with torch.no_grad():
        tuned.head.fc2.weight.normal_(generator=torch.Generator().manual_seed(3))
        save_encoder(tuned, tmp_path / "m")
        reread = load_encoder(tmp_path / "m")
        assert reread.card.head == tuned.card.head
        assert torch.equal(reread(pixels()), tuned(pixels()))


def test_an_mlp_by_its_seed_type_and_mode(published):
    encoder = load(published, "dino").train()
    encoder.trunk.eval()
    state = torch.random.get_rng_state()
    first, again, other = (add_mlp(encoder, hidden=8, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.head.fc1.weight, again.head.fc1.weight)
    assert torch.equal(first.head.fc1.bias, again.head.fc1.bias)
    assert not torch.equal(first.head.fc1.weight, other.head.fc1.weight)
    assert 0 < first.head.fc1.weight.abs().max() <= 48**-0.5
    assert first.training
    assert first.head.training
    assert not first.trunk.training
    half = add_mlp(encoder.to(torch.bfloat16), hidden=8)
    assert half(pixels()).dtype == torch.bfloat16
    assert half.state_dict().keys() == first.state_dict().keys()


def test_what_an_mlp_is_not_put_on(published):
    encoder = load(published, "dino")
    with pytest.raises(InputError, match="hidden width 0 is none"):
        add_mlp(encoder, hidden=0)
    with pytest.raises(InputError, match="'dino' has an MLP head already"):
        add_mlp(add_mlp(encoder))


def test_adapters_below_an_mlp(published):
    encoder, x = add_mlp(load(published, "dino"), hidden=8), pixels()
    trained(add_lora(encoder, r=2))
    assert all(name.startswith("trunk.") for name in trainable(encoder))
    expected = encoder(x)
    assert relative(merge_lora_adapters(encoder)(x), expected) < 1e-5
