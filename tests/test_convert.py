"""The published files of the paper's authors, made by the tests in their layouts, into our folders."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustsim import RobustSim
from robustsim.encoders import convert, load_encoder
from robustsim.errors import CorruptFileError, WeightsError
from tests import layouts


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
        torch.testing.assert_close(encoder(pixels()), z + fc2(torch.relu(fc1(z))))


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
        torch.testing.assert_close(encoder(pixels()), expected.encode_image(encoder.normalize(pixels())))
    norms = [module for module in encoder.trunk.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


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


@pytest.mark.parametrize("wrapper", ["model", "model.visual", "visual"])
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
