"""The published files of the paper's authors, made by the tests in their layouts, into our folders."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustsim import RobustSim
from robustsim.encoders import convert, load_encoder
from robustsim.encoders.containers import find_state, flatten
from robustsim.errors import CardError, CorruptFileError, WeightsError
from tests import dreamsim_files, layouts


def pixels(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def peft_folder(model, targets, folder, *, seed=3, **options):
    """Adapters as PEFT writes them, with random matrices; returns the model with the adapters in it."""
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=0.5, lora_dropout=0.3, bias="none", target_modules=targets, **options)
    wrapped = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped


def adapted_output(wrapped, x):
    with torch.no_grad():
        return wrapped.merge_and_unload()(x)


@pytest.mark.parametrize("name", ["vit", "convnext"])
@pytest.mark.parametrize("prefix", ["", "module.", "visual."])
def test_bare_vision_state_dict_of_clip(published, tmp_path, name, prefix):
    folder, _ = published[name]
    tower = layouts.randomise(
        layouts.open_clip_model(layouts.VIT_B_32 if name == "vit" else layouts.CONVNEXT), seed=8
    ).visual
    torch.save({prefix + key: value for key, value in tower.state_dict().items()}, tmp_path / "x-eps4.pt")
    card = convert(tmp_path / "x-eps4.pt", tmp_path / "out", base=folder)
    encoder = load_encoder(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels()), tower(encoder.normalize(pixels())))
    assert card.preprocessing.mode == "shortest"
    assert card.name == "out"


def test_bare_vision_state_dict_of_a_catalogue_base_needs_no_download(tmp_path, monkeypatch, hub):
    """DINO's R-DINO(F) file: the card of its base says the architecture; the base's weights are not asked for."""
    from robustsim.encoders import load_card

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import timm

    model = timm.create_model("vit_base_patch16_224", num_classes=0, pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "dino-eps4.pt")
    card = convert(tmp_path / "dino-eps4.pt", tmp_path / "out", base="dino-vit-b-16", name="r-dino")
    assert (card.name, card.scores, card.source) == ("r-dino", {}, None)
    assert card.preprocessing == load_card("dino-vit-b-16").preprocessing
    with torch.no_grad():
        encoder = load_encoder(tmp_path / "out")
        torch.testing.assert_close(encoder(pixels(1, 224)), model(encoder.normalize(pixels(1, 224))))


def test_mlp_file(published, tmp_path):
    folder, model = published["vit"]
    dim, generator = layouts.VIT_B_32["embed_dim"], torch.Generator().manual_seed(0)
    fc1, fc2 = torch.nn.Linear(dim, 512), torch.nn.Linear(512, dim)
    layouts.randomise(torch.nn.Sequential(fc1, fc2), seed=4)
    state = {
        f"perceptual_model.mlp.{n}.{k}": v for n, m in (("fc1", fc1), ("fc2", fc2)) for k, v in m.state_dict().items()
    }
    state["perceptual_model.extractor.something"] = torch.rand(3, generator=generator)
    torch.save({"epoch": 20, "state_dict": state}, tmp_path / "mlp.pt")
    card = convert(tmp_path / "mlp.pt", tmp_path / "out", base=folder)
    assert (card.head.kind, card.head.hidden, card.preprocessing.mode) == ("mlp", 512, "squash")
    encoder = load_encoder(tmp_path / "out")
    with torch.no_grad():
        z = model.encode_image(encoder.normalize(pixels()))
        torch.testing.assert_close(encoder(pixels()), z + fc2(torch.relu(fc1(z))), rtol=1e-4, atol=1e-4)


def test_peft_folder_of_a_convnext(published, tmp_path):
    """Every fc1 and fc2, as the ConvNeXt checkpoints have it; the result agrees with PEFT's own merge."""
    folder, _ = published["convnext"]
    tower = layouts.open_clip_model(layouts.CONVNEXT).visual
    expected = adapted_output(
        peft_folder(tower, ["fc1", "fc2"], tmp_path / "lora"), load_encoder(folder).normalize(pixels())
    )
    card = convert(tmp_path / "lora", tmp_path / "out", base=folder)
    assert (card.head.kind, card.head.scale, card.preprocessing.mode) == ("lora", 0.125, "squash")
    assert any(key.startswith("lora.") for key in load_file(tmp_path / "out" / "model.safetensors"))
    encoder = load_encoder(tmp_path / "out")
    torch.testing.assert_close(encoder(pixels()).detach(), expected, rtol=1e-4, atol=1e-4)
    assert encoder.state_dict().keys() == load_encoder(folder).state_dict().keys()  # merged: nothing left at run time
    again = RobustSim(encoder)
    again.save_pretrained(tmp_path / "merged")
    assert torch.equal(load_encoder(tmp_path / "merged")(pixels()), encoder(pixels()))


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_folder_of_a_dino_vit(published, tmp_path, rslora):
    import timm

    folder, _ = published["dino"]
    model = timm.create_model(layouts.DINO[0], num_classes=0, **layouts.DINO[1]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    wrapped = peft_folder(model, ["qkv"], tmp_path / "lora", use_rslora=rslora)
    expected = adapted_output(wrapped, load_encoder(folder).normalize(pixels()))
    convert(tmp_path / "lora", tmp_path / "out", base=folder)
    torch.testing.assert_close(load_encoder(tmp_path / "out")(pixels()).detach(), expected, rtol=1e-4, atol=1e-4)


def test_peft_folder_of_a_clip_vit_in_dinos_naming(published, tmp_path):
    """``qkv`` is open_clip's ``in_proj``, and the LayerNorms have the eps of DINO's module, 1e-6."""
    import timm

    folder, _ = published["vit"]
    stand_in = timm.create_model(
        "vit_small_patch16_224", num_classes=0, img_size=64, depth=2, embed_dim=64, num_heads=2
    )
    wrapped = peft_folder(stand_in, ["qkv"], tmp_path / "lora")
    deltas = [
        module.get_delta_weight("default")
        for _, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    ]
    convert(tmp_path / "lora", tmp_path / "out", base=folder)
    encoder = load_encoder(tmp_path / "out")
    expected = layouts.open_clip_model(
        {**layouts.VIT_B_32, "vision_cfg": {**layouts.VIT_B_32["vision_cfg"], "norm_kwargs": {"eps": 1e-6}}}
    )
    with torch.no_grad():
        for block, delta in zip(expected.visual.transformer.resblocks, deltas, strict=True):
            block.attn.in_proj_weight += delta
        wanted = expected.encode_image(encoder.normalize(pixels()))
        torch.testing.assert_close(encoder(pixels()), wanted, rtol=1e-4, atol=1e-4)
    for one, eps in ((encoder, 1e-6), (load_encoder(folder), 1e-5)):
        norms = [module for module in one.trunk.modules() if isinstance(module, torch.nn.LayerNorm)]
        assert len(norms) == 6  # ln_pre, ln_post, and two in each block
        assert {norm.eps for norm in norms} == {eps}


def test_what_convert_refuses(published, tmp_path):
    vit, dino = published["vit"][0], published["dino"][0]
    with pytest.raises(WeightsError, match="there is no file or folder"):
        convert(tmp_path / "nothing.pt", tmp_path / "out", base=vit)
    with pytest.raises(WeightsError, match=r"is no PEFT adapter: it holds no adapter_config.json"):
        convert(dino, tmp_path / "out", base=vit)
    torch.save(layouts.open_clip_model(layouts.CONVNEXT).visual.state_dict(), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="belong to another architecture"):
        convert(tmp_path / "other.pt", tmp_path / "out", base=vit)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:5000])
    with pytest.raises(CorruptFileError, match=r"cut\.pt"):
        convert(tmp_path / "cut.pt", tmp_path / "out", base=vit)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "uses use_dora = True, which is not plain LoRA"),
        ({"bias": "all"}, "uses bias = 'all'"),
        ({"rank_pattern": {"x": 3}}, "rank_pattern"),
        ({"r": None}, "is no adapter configuration"),
    ],
)
def test_adapters_beyond_plain_lora_are_refused(published, tmp_path, change, message):
    import timm

    model = timm.create_model(layouts.DINO[0], num_classes=0, **layouts.DINO[1])
    peft_folder(model, ["qkv"], tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError if "r" in change else WeightsError, match=message):
        convert(tmp_path / "lora", tmp_path / "out", base=published["dino"][0])


def test_adapters_of_another_base_are_refused(published, tmp_path):
    import timm

    model = timm.create_model(layouts.DINO[0], num_classes=0, **{**layouts.DINO[1], "depth": 3})
    peft_folder(model, ["qkv"], tmp_path / "lora")
    with pytest.raises(
        WeightsError, match=r"changes 'blocks\.2\.attn\.qkv', of which .* has 0: it belongs to another base"
    ):
        convert(tmp_path / "lora", tmp_path / "out", base=published["dino"][0])
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "lora")
    peft_folder(timm.create_model(layouts.DINO[0], num_classes=0, **layouts.DINO[1]), ["qkv"], tmp_path / "lora")
    save_file(
        {key.replace("lora_A", "lora_magnitude"): v for key, v in weights.items()},
        tmp_path / "lora" / "adapter_model.safetensors",
    )
    with pytest.raises(WeightsError, match="no lora_A or lora_B matrix"):
        convert(tmp_path / "lora", tmp_path / "out", base=published["dino"][0])


def test_nothing_is_claimed_that_was_measured_on_other_weights(published, tmp_path):
    from robustsim.encoders import load_card

    base = load_encoder(published["vit"][0])
    import dataclasses

    from robustsim.encoders import save_encoder

    named = load_card("rclip-f-vit-b-32")
    base.card = dataclasses.replace(
        base.card, method=named.method, threat=named.threat, license="MIT", data=named.data, scores=named.scores
    )
    save_encoder(base, tmp_path / "base")
    torch.save(published["vit"][1].visual.state_dict(), tmp_path / "bare.pt")
    card = convert(tmp_path / "bare.pt", tmp_path / "a", base=tmp_path / "base")
    assert (card.method, card.threat, card.license, card.data, card.scores) == (None, None, None, None, {})
    assert "bare.pt" in card.origin
    card = convert(
        tmp_path / "bare.pt", tmp_path / "b", base=tmp_path / "base", method="FARE", threat="linf 2/255", license="MIT"
    )
    assert (card.method, card.threat, card.license) == ("FARE", "linf 2/255", "MIT")


@pytest.fixture
def dreamsims_dino(small_dreamsim, tmp_path):
    """The package's files of its DINO, small, and the same network without adapters in timm's layout."""
    files = dreamsim_files.write_dreamsim(tmp_path / "files", "dreamsim-dino-vit-b-16", dreamsim_files.small_vit)
    args = {"embed_dim": 24, "depth": 12, "num_heads": 2}
    shape = {"input_size": [3, 224, 224]}
    model = layouts.write_timm(tmp_path / "base", "vit_base_patch16_224", args, pretrained_cfg=shape)
    model.load_state_dict(dreamsim_files.dino(16).state_dict())
    save_file(model.state_dict(), tmp_path / "base" / "model.safetensors")
    return files, tmp_path / "base"


def test_dreamsims_adapters_on_timms_dino_measure_as_dreamsim_does(dreamsims_dino, tmp_path):
    """The class token before the last norm, its mean taken off; the base's own embedding comes after the norm."""
    from robustsim.baselines.libraries import need, undisturbed

    files, base = dreamsims_dino
    with undisturbed():
        theirs, _ = need("dreamsim", "test").dreamsim(device="cpu", cache_dir=str(files), dreamsim_type="dino_vitb16")
    a, b = pixels(2, 224), 1 - pixels(2, 224).square()
    card = convert(files / "dino_vitb16_single_lora", tmp_path / "out", base=base)
    assert (card.head.kind, card.head.scale, card.preprocessing.mode) == ("lora", 0.5, "squash")
    metric = RobustSim.from_pretrained(tmp_path / "out", device="cpu")
    expected = theirs(a, b)
    assert (expected > 1e-3).all()
    torch.testing.assert_close(metric.distance(a, b, squared=True), expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(metric.embed(a), theirs.embed(a), rtol=0, atol=1e-5)
    without = RobustSim.from_pretrained(base, device="cpu").embed(a)
    assert (without - metric.embed(a)).abs().max() > 1e-2


def test_dreamsims_other_adapters_are_for_the_baselines(dreamsims_dino, tmp_path):
    files, base = dreamsims_dino
    patch = shutil.copytree(files / "dino_vitb16_single_lora", tmp_path / "dino_vitb16_patch_lora")
    with pytest.raises(WeightsError, match=r"the class token and the patches together.* baselines 'dreamsim-\*-patch'"):
        convert(patch, tmp_path / "out", base=base)
    state = load_file(patch / "adapter_model.safetensors")
    other = {key.replace("extractor_list.0.", "extractor_list.1."): 2 * value for key, value in state.items()}
    ensemble = shutil.copytree(patch, tmp_path / "ensemble_lora")
    save_file({**state, **other}, ensemble / "adapter_model.safetensors")
    with pytest.raises(
        WeightsError, match=r"extractor_list\.0.*extractor_list\.1.* several models .*baseline 'dreamsim'"
    ):
        convert(ensemble, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


# What stands before the names, or between them, when a wrapped model is saved; "{}" is the network's own name.
PREFIXES = (
    *("_orig_mod.", "module._orig_mod.", "model.module.", "module.", "module.module.", "model.", "net.", "backbone."),
    *("model._orig_mod.module.", "_forward_module.model.", "_fsdp_wrapped_module.", "model._fsdp_wrapped_module."),
    *(
        "encoder.trunk.model.",
        "ema_model.module.",
        "model.model.visual.",
        "student.backbone.",
        "clip.visual._orig_mod.",
    ),
)


def dino_state(published, seed=0):
    """The state dict of the small DINO, or one of another seed."""
    import copy

    return layouts.randomise(copy.deepcopy(published["dino"][1]), seed=seed).state_dict()


def converted(published, tmp_path, loaded, base="dino"):
    """What is in the folder that a file holding `loaded` became, under timm's names."""
    torch.save(loaded, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out", base=published[base][0])
    return {
        key.removeprefix("trunk.model."): value
        for key, value in load_file(tmp_path / "out" / "model.safetensors").items()
    }


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())


def found_in(loaded, state):
    """What conversion takes from a file for a network that has the names of a state dict."""
    return find_state(flatten(loaded, "file"), state, "file")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_under_wrappers_are_found(published, tmp_path, prefix):
    state = dino_state(published, seed=5)
    wrapped = {prefix + key: value for key, value in state.items()}
    if prefix not in ("_orig_mod.", "_fsdp_wrapped_module."):  # which leave no place of its own to what is wrapped
        wrapped |= {"n_averaged": torch.tensor(3), "criterion.weight": torch.ones(2)}
    for loaded in (wrapped, {"state_dict": wrapped}, {"epoch": 1, "my own name": {"deeper": wrapped}}):
        assert same(found_in(loaded, state), state)
    assert same(converted(published, tmp_path, {"epoch": 1, "model_state_dict": wrapped}), state)


@pytest.mark.parametrize("part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_around_single_blocks_are_found(published, tmp_path, part):
    state = dino_state(published, seed=5)
    wrapped = {
        f"model.{key.replace('blocks.1.', f'blocks.1.{part}.').replace('.mlp.', f'.mlp.{part}.')}": value
        for key, value in state.items()
    }
    assert any(f".1.{part}." in key and f"mlp.{part}." in key for key in wrapped)
    assert same(converted(published, tmp_path, wrapped), state)


@pytest.mark.parametrize("wrap", ["compile", "parallel", "average", "compiled inside parallel", "parallel in a module"])
def test_state_dicts_of_wrapped_modules_are_found(published, tmp_path, wrap):
    import copy

    from torch.optim.swa_utils import AveragedModel

    model = layouts.randomise(copy.deepcopy(published["dino"][1]), seed=5)
    state = model.state_dict()
    made = {
        "compile": torch.compile,
        "parallel": torch.nn.DataParallel,
        "average": AveragedModel,
        "compiled inside parallel": lambda model: torch.nn.DataParallel(torch.compile(model)),
        "parallel in a module": lambda model: torch.nn.Sequential(torch.nn.DataParallel(model), torch.nn.Linear(2, 2)),
    }[wrap](model)
    assert made.state_dict().keys() != state.keys()
    assert same(converted(published, tmp_path, made.state_dict()), state)


CONTAINERS = (
    *("state_dict", "model_state_dict", "model", "net", "module", "vision_encoder_state_dict", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict", "teacher", "student", "my own name"),
)


@pytest.mark.parametrize("container", CONTAINERS)
def test_state_dicts_in_files_of_training_scripts_are_found(published, tmp_path, container):
    """Under any name, beside an optimiser's state, as deep as it may lie."""
    state = dino_state(published, seed=5)
    optimizer = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(2)}}, "param_groups": [{"lr": 1.0}]}
    rest = {"epoch": 3, "optimizer": optimizer, "best": torch.tensor(0.5), "args": {"lr": 0.1}}
    for loaded in ({"state": {**rest, container: state}}, {**rest, "models": [{container: state}]}):
        assert same(found_in(loaded, state), state)
    assert same(converted(published, tmp_path, {**rest, container: state}), state)


@pytest.mark.parametrize(
    ("first", "second"),
    [("state_dict", "state_dict_ema"), ("teacher", "student"), ("model", "ema"), ("one", "other"),
     ("generator", "state_dict")],
)  # fmt: skip
def test_two_state_dicts_in_a_file_are_named(published, tmp_path, first, second):
    state, other = dino_state(published, seed=5), dino_state(published, seed=6)
    both = ((first, state), (second, other))
    inside = {f"{way}.{key}": value for way, one in both for key, value in one.items()}
    for loaded in (dict(both), inside, {"state_dict": inside}):
        with pytest.raises(WeightsError, match="holds 2 sets of weights that differ, under") as caught:
            converted(published, tmp_path, loaded)
        assert all(re.search(rf"'[\w.]*{name}'", str(caught.value)) for name in (first, second))
    assert not (tmp_path / "out").exists()
    assert same(found_in({first: state, second: dict(state)}, state), state)


def test_what_lies_beside_the_names_of_the_network_is_refused(published, tmp_path):
    state = {f"module.{key}": value for key, value in dino_state(published).items()}
    with pytest.raises(WeightsError, match=r"1 left over \(trunk\.model\.blocks\.2\.extra\)"):
        converted(published, tmp_path, {**state, "module.blocks.2.extra": torch.ones(2)})
    state.pop("module.blocks.1.norm1.bias")
    with pytest.raises(WeightsError, match=r"1 missing \(trunk\.model\.blocks\.1\.norm1\.bias\)"):
        converted(published, tmp_path, {"state_dict": state})


def test_other_layouts_under_wrappers_are_found(published, tmp_path):
    """A whole CLIP, whose texts have names that its pictures have too; the bundled architecture; a file of ours."""
    folder, model = published["vit"]
    state = {f"model.clip.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "clip.pt")
    convert(tmp_path / "clip.pt", tmp_path / "a", base=folder)
    found = load_file(tmp_path / "a" / "model.safetensors")
    assert same(found, {f"trunk.visual.{key}": value for key, value in model.visual.state_dict().items()})
    metric = RobustSim.from_pretrained("lite-clean", device="cpu")
    torch.save(
        {"model": {f"module.metric.{key}": value for key, value in metric.state_dict().items()}}, tmp_path / "l.pt"
    )
    convert(tmp_path / "l.pt", tmp_path / "b", base="lite-clean")
    assert same(load_file(tmp_path / "b" / "model.safetensors"), metric.encoder.state_dict())
    save_file(found, tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "c", base=folder)
    assert same(load_file(tmp_path / "c" / "model.safetensors"), found)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.model."])
@pytest.mark.parametrize("container", ["state_dict", "model_state_dict"])
def test_an_mlp_under_wrappers_is_found(published, tmp_path, prefix, container):
    mlp = {"fc1.weight": torch.rand(8, 48), "fc1.bias": torch.rand(8), "fc2.weight": torch.rand(48, 8)}
    mlp["fc2.bias"] = torch.rand(48)
    state = {f"{prefix}perceptual_model.mlp.{key}": value for key, value in mlp.items()}
    torch.save({container: state}, tmp_path / "mlp.pt")
    card = convert(tmp_path / "mlp.pt", tmp_path / "out", base=published["dino"][0])
    assert (card.head.kind, card.head.hidden) == ("mlp", 8)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[f"head.{key}"], value) for key, value in mlp.items())
    del state[f"{prefix}perceptual_model.mlp.fc1.weight"]
    torch.save({container: state}, tmp_path / "mlp.pt")
    with pytest.raises(WeightsError, match=r"the MLP in .*mlp\.pt' has no matrix fc1\.weight, only fc1\.bias, fc2"):
        convert(tmp_path / "mlp.pt", tmp_path / "out", base=published["dino"][0])


def renamed(folder, change):
    """The adapters of a folder under other names; ``change`` gives those that each is to have."""
    path = folder / "adapter_model.safetensors"
    state = {new: value.clone() for key, value in load_file(path).items() for new in change(key)}
    save_file(state, path)
    return state


# The authors' wrapper has the stages of a ConvNeXt under a second name, in the same module.
ALIASES = {
    "model.trunk.stages.": "model.blocks.",
    "extractor_list.0.model.trunk.stages.": "extractor_list.0.model.blocks.",
    "model.visual.trunk.stages.": "model.visual.blocks.",
    "trunk.stages.": "blocks.",
}


@pytest.mark.parametrize("name", ALIASES)
def test_adapters_of_a_convnext_under_two_names(published, tmp_path, name):
    folder, _ = published["convnext"]
    tower = layouts.open_clip_model(layouts.CONVNEXT).visual
    wrapped = peft_folder(tower, ["fc1", "fc2"], tmp_path / "lora")
    expected = adapted_output(wrapped, load_encoder(folder).normalize(pixels()))

    def names(key, order=(0, 1)):
        first = key.replace("base_model.model.trunk.stages.", f"base_model.model.{name}")
        second = key.replace("base_model.model.trunk.stages.", f"base_model.model.{ALIASES[name]}")
        assert first != second
        return [(first, second)[place] for place in order]

    original = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    state = renamed(tmp_path / "lora", names)
    assert len(state) == 2 * len(original)
    convert(tmp_path / "lora", tmp_path / "out", base=folder)
    torch.testing.assert_close(load_encoder(tmp_path / "out")(pixels()).detach(), expected, rtol=1e-4, atol=1e-4)
    key = next(key for key in state if ".blocks.0.blocks.0.mlp.fc1.lora_B" in key)
    save_file({**state, key: state[key] + 1}, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"the adapters '.*' and '.*' change the same weight, and differ") as caught:
        convert(tmp_path / "lora", tmp_path / "again", base=folder)
    assert key in str(caught.value)
    assert not (tmp_path / "again").exists()
    save_file(original, tmp_path / "lora" / "adapter_model.safetensors")
    renamed(tmp_path / "lora", lambda key: names(key, (1,)))
    convert(tmp_path / "lora", tmp_path / "second", base=folder)
    assert same(*(load_file(tmp_path / one / "model.safetensors") for one in ("out", "second")))


def test_pefts_own_adapters_of_a_module_with_two_names(published, tmp_path):
    """As the authors' wrapper is built; what PEFT writes of it depends on its version."""
    folder, _ = published["convnext"]
    wrapper = torch.nn.Module()
    wrapper.model = layouts.open_clip_model(layouts.CONVNEXT).visual
    wrapper.model.blocks = wrapper.model.trunk.stages
    wrapped = peft_folder(wrapper, ["fc1", "fc2"], tmp_path / "lora")
    tower = wrapped.merge_and_unload().model
    with torch.no_grad():
        expected = tower(load_encoder(folder).normalize(pixels()))
    convert(tmp_path / "lora", tmp_path / "out", base=folder)
    torch.testing.assert_close(load_encoder(tmp_path / "out")(pixels()).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [["qkv"], ["fc1", "fc2"], ["qkv", "attn.proj", "fc1", "fc2"]], ids="-".join)
def test_adapters_of_a_clip_vit_in_dinos_naming_of_every_layer(published, tmp_path, targets):
    import timm

    folder, _ = published["vit"]
    stand_in = timm.create_model(
        "vit_small_patch16_224", num_classes=0, img_size=64, depth=2, embed_dim=64, num_heads=2
    )
    wrapped = peft_folder(stand_in, targets, tmp_path / "lora")
    deltas = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert len(deltas) == 2 * len(targets)
    convert(tmp_path / "lora", tmp_path / "out", base=folder)
    before, after = (dict(load_encoder(one).named_parameters()) for one in (folder, tmp_path / "out"))
    theirs = {"attn.qkv": "attn.in_proj_weight", "attn.proj": "attn.out_proj.weight", "mlp.fc1": "mlp.c_fc.weight",
              "mlp.fc2": "mlp.c_proj.weight"}  # fmt: skip
    for name, delta in deltas.items():
        _, number, layer = name.split(".", 2)
        key = f"trunk.visual.transformer.resblocks.{number}.{theirs[layer]}"
        torch.testing.assert_close(after.pop(key), before.pop(key) + delta)
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_adapters_of_a_convnext_do_not_fit_a_vit(published, tmp_path):
    """``stages.0.blocks.1.mlp.fc1`` ends as a name of the ViT does."""
    tower = layouts.open_clip_model(layouts.CONVNEXT).visual
    peft_folder(tower, ["fc1", "fc2"], tmp_path / "lora")
    for base in ("dino", "vit"):
        with pytest.raises(WeightsError, match=r"changes 'trunk\.stages\.0\.blocks\.0\.mlp\.fc1', of which .* has 0"):
            convert(tmp_path / "lora", tmp_path / "out", base=published[base][0])


def test_adapters_named_by_peft_itself(published, tmp_path):
    """As the state dict of the model has them, with the adapter's name; two adapters are two models."""
    import timm

    model = timm.create_model(layouts.DINO[0], num_classes=0, **layouts.DINO[1])
    peft_folder(model, ["qkv"], tmp_path / "lora")
    convert(tmp_path / "lora", tmp_path / "a", base=published["dino"][0])
    state = renamed(tmp_path / "lora", lambda key: (key.replace(".weight", ".default.weight"),))
    convert(tmp_path / "lora", tmp_path / "b", base=published["dino"][0])
    assert same(*(load_file(tmp_path / one / "model.safetensors") for one in "ab"))
    other = {key.replace(".default.", ".other."): value + 1 for key, value in state.items()}
    save_file({**state, **other}, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match="change the same weight, and differ"):
        convert(tmp_path / "lora", tmp_path / "c", base=published["dino"][0])
    with pytest.raises(WeightsError, match=r"holds LoRA adapters, .*: pass their folder, '.*lora'$"):
        convert(tmp_path / "lora" / "adapter_model.safetensors", tmp_path / "c", base=published["dino"][0])
    biases = {key.replace(".default.weight", ".bias"): torch.ones(3) for key in state}
    save_file(biases, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"lora_[AB]\.bias', which is no lora_A or lora_B matrix"):
        convert(tmp_path / "lora", tmp_path / "c", base=published["dino"][0])


@pytest.mark.parametrize("change", [{"r": 0}, {"r": -4}, {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")},
                                    {"r": "many"}, {"lora_alpha": None}], ids=str)  # fmt: skip
def test_adapter_configurations_that_scale_by_no_number(published, tmp_path, change):
    import timm

    model = timm.create_model(layouts.DINO[0], num_classes=0, **layouts.DINO[1])
    peft_folder(model, ["qkv"], tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CardError, match="is no adapter configuration"):
        convert(tmp_path / "lora", tmp_path / "out", base=published["dino"][0])


def test_adapters_that_contradict_their_configuration_or_base(published, tmp_path):
    import timm

    model = timm.create_model(layouts.DINO[0], num_classes=0, **layouts.DINO[1])
    peft_folder(model, ["qkv"], tmp_path / "lora")
    path, file = tmp_path / "lora" / "adapter_config.json", tmp_path / "lora" / "adapter_model.safetensors"
    config, state = path.read_text(), load_file(file)
    path.write_text(json.dumps({**json.loads(config), "r": 8}))
    with pytest.raises(
        WeightsError, match=r"says r = 8, the matrix 'lora\.trunk\.model\.blocks\.\d\.attn\.qkv.* has the"
    ):
        convert(tmp_path / "lora", tmp_path / "out", base=published["dino"][0])
    path.write_text(config)
    key = next(key for key in state if "lora_A" in key)
    for change, message in (
        ({key: state[key][:, :20].clone()}, "is for a 144 x 20 matrix, the parameter has the shape"),
        ({key: None}, "lacks one of its matrices"),
        ({key: state[key][0].clone()}, "says r = 4|is no pair of matrices"),
    ):
        save_file({k: v for k, v in {**state, **change}.items() if v is not None}, file)
        with pytest.raises(WeightsError, match=message):
            convert(tmp_path / "lora", tmp_path / "out", base=published["dino"][0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrapper", ["model", "model.visual", "visual", "extractor_list.0.model", "extractor_list.2.model"]
)
def test_adapters_saved_from_a_wrapper(published, tmp_path, wrapper):
    folder, _ = published["convnext"]
    tower = layouts.open_clip_model(layouts.CONVNEXT).visual
    wrapped = peft_folder(tower, ["fc1", "fc2"], tmp_path / "lora")
    expected = adapted_output(wrapped, load_encoder(folder).normalize(pixels()))
    path = tmp_path / "lora" / "adapter_model.safetensors"
    prefix = "base_model.model."
    state = {f"{prefix}{wrapper}.{key.removeprefix(prefix)}": value for key, value in load_file(path).items()}
    save_file(state, path)
    convert(tmp_path / "lora", tmp_path / "out", base=folder)
    torch.testing.assert_close(load_encoder(tmp_path / "out")(pixels()).detach(), expected, rtol=1e-4, atol=1e-4)


def test_the_image_tower_of_a_whole_checkpoint(published, tmp_path):
    folder, model = published["vit"]
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    convert(tmp_path / "epoch_1.pt", tmp_path / "out", base=folder)
    assert torch.equal(load_encoder(tmp_path / "out")(pixels()), load_encoder(folder)(pixels()))


def test_a_bare_timm_file_with_its_classifier(published, tmp_path):
    import timm

    folder, _ = published["dino"]
    model = layouts.randomise(timm.create_model(layouts.DINO[0], num_classes=5, **layouts.DINO[1]))
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    convert(tmp_path / "bare.pth", tmp_path / "out", base=folder)
    encoder = load_encoder(tmp_path / "out")
    expected = model.forward_head(model.forward_features(encoder.normalize(pixels())), pre_logits=True)
    torch.testing.assert_close(encoder(pixels()), expected)


def test_a_bare_dinov2_file_of_the_size_of_its_training(tmp_path):
    """Position embeddings for 518 pixels and a mask token, run at the card's 224."""
    import timm

    model = layouts.randomise(timm.create_model("vit_base_patch14_dinov2", num_classes=0))
    torch.save({**model.state_dict(), "mask_token": torch.zeros(1, 768)}, tmp_path / "dinov2-eps4.pt")
    convert(tmp_path / "dinov2-eps4.pt", tmp_path / "out", base="dinov2-vit-b-14")
    model.set_input_size(img_size=(224, 224))
    encoder = load_encoder(tmp_path / "out")
    with torch.no_grad():
        x = pixels(1, 224)
        torch.testing.assert_close(encoder(x), model(encoder.normalize(x)), rtol=1e-4, atol=1e-4)
