"""What comes in as weights: only numbers, in a type that holds them, on the CPU, from a folder."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustsim import RobustSim
from robustsim.encoders import Encoder, EncoderCard, Head, convert, load_card, load_encoder, save_encoder
from robustsim.encoders.containers import find_state, flatten, strip_wrappers, unwrap
from robustsim.encoders.encoder import build_encoder
from robustsim.encoders.finite import refuse_non_finite
from robustsim.encoders.heads import merge_lora
from robustsim.encoders.placement import find_device, parse_dtype
from robustsim.encoders.weights import read_pickle, read_weights
from robustsim.errors import CardError, CorruptFileError, InputError, ModelNotFoundError, WeightsError
from tests import layouts

NAN, INF = math.nan, math.inf


# --- numbers


def spoil(state, key, value=NAN):
    """A state dict with one value of one tensor replaced."""
    tensor = state[key].clone()
    tensor.view(-1)[tensor.numel() // 2] = value
    return {**state, key: tensor}


@pytest.mark.parametrize("fault", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_nan_and_infinities_of_every_type_are_refused_by_name(dtype, fault):
    good = {"a": torch.ones(3, 5).to(dtype), "count": torch.tensor(7), "none": torch.ones(0, dtype=dtype)}
    refuse_non_finite(good, "these")
    bad = torch.ones(4, 6)
    bad[3, 5] = fault
    what = "NaN" if math.isnan(fault) else "infinity"
    for view in (bad.to(dtype), bad.to(dtype).T, nn.Parameter(bad.to(dtype))):
        with pytest.raises(WeightsError, match=rf"these hold values .* in 1 of 4 tensors: b\.weight \({what}\)\. They"):
            refuse_non_finite({**good, "b.weight": view}, "these")


def test_the_greatest_numbers_of_a_type_are_numbers():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        most = torch.full((9,), torch.finfo(dtype).max, dtype=dtype)  # whose sum is none
        refuse_non_finite({"most": most, "least": -most}, "these")


def test_complex_numbers_are_looked_at_in_both_parts():
    with pytest.raises(WeightsError, match=r"z \(NaN\)"):
        refuse_non_finite({"z": torch.tensor([1 + 1j, complex(0, NAN)])}, "these")


def with_mlp(encoder):
    card = dataclasses.replace(encoder.card, head=Head(kind="mlp", hidden=8))
    made = Encoder(card, encoder.trunk).eval()
    layouts.randomise(made.head)
    return made


def with_lora(encoder, folder, name):
    """A folder of ours with adapters of one weight beside the weights."""
    shape = dict(encoder.named_parameters())[name].shape
    encoder.card = dataclasses.replace(encoder.card, head=Head(kind="lora", scale=0.5))
    extra = {f"lora.{name}.a": torch.ones(2, shape[1]), f"lora.{name}.b": torch.ones(shape[0], 2)}
    return save_encoder(encoder, folder, extra)


QKV = "trunk.model.blocks.0.attn.qkv.weight"


# Each kind of file: how to write a good one, its weights file, and the names in it that are spoilt in turn.
KINDS = {
    "ours": (lambda made, out: save_encoder(load_encoder(made["dino"][0]), out), (QKV, "trunk.model.norm.bias")),
    "ours-mlp": (
        lambda made, out: save_encoder(with_mlp(load_encoder(made["dino"][0])), out),
        ("head.fc1.weight", "head.fc2.bias"),
    ),
    "ours-lora": (
        lambda made, out: with_lora(load_encoder(made["dino"][0]), out, QKV),
        (QKV, f"lora.{QKV}.a", f"lora.{QKV}.b"),
    ),
    "ours-buffer": (
        lambda made, out: save_encoder(load_encoder(made["batchnorm"]), out),
        ("trunk.model.bn1.running_mean", "trunk.model.bn1.running_var"),
    ),
    "open_clip": (lambda made, out: layouts.copy(made["vit"][0], out), ("visual.conv1.weight", "visual.proj")),
    "open_clip-bin": (lambda made, out: layouts.copy(made["vit-bin"][0], out), ("visual.ln_pre.bias",)),
    "open_clip-text": (lambda made, out: layouts.copy(made["vit"][0], out), ("text_projection", "logit_scale")),
    "timm": (lambda made, out: layouts.copy(made["dino"][0], out), ("patch_embed.proj.weight", "cls_token")),
}


@pytest.fixture(scope="module")
def made(published, tmp_path_factory):
    """The published folders, and one with batch norms."""
    folder = tmp_path_factory.mktemp("batchnorm") / "m"
    layouts.write_timm(folder, "test_resnet", {})
    return {**published, "batchnorm": folder}


def weights_file(folder):
    return next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def rewrite(folder, change):
    """The folder's weights file with other tensors, and a card that has its checksum."""
    path = weights_file(folder)
    state = change(load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True))
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    card = folder / "config.json"
    if card.is_file() and "weights_sha256" in (said := json.loads(card.read_text())):
        from robustsim.encoders.weights import sha256

        card.write_text(json.dumps({**said, "weights_sha256": sha256(path)}))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, names) in KINDS.items() for name in names])
def test_weights_with_nan_are_refused_in_every_layout(made, tmp_path, kind, name):
    write, _ = KINDS[kind]
    folder = Path(write(made, tmp_path / "m"))
    text = kind == "open_clip-text"
    load_encoder(folder, text=text)
    tail = name.removeprefix("lora.").rpartition(".")[0] if name.startswith("lora.") else name
    for fault in (NAN, INF):
        rewrite(folder, lambda state, fault=fault: spoil(state, name, fault))
        what = "NaN" if math.isnan(fault) else "infinity"
        with pytest.raises(WeightsError, match=rf"hold values that are not finite, in 1 of .*{tail}.* \({what}\)"):
            load_encoder(folder, text=text)
    if text:  # which the image tower has no use for
        load_encoder(folder)


def test_tables_that_are_not_loaded_may_hold_infinities(made, tmp_path):
    """Old files of CLIP hold the mask of the text tower, a buffer that is computed now."""
    folder = layouts.copy(made["vit"][0], tmp_path / "m")
    mask = torch.full((16, 16), -INF).triu(1)
    rewrite(folder, lambda state: {**state, "attn_mask": mask})
    load_encoder(folder, text=True)


def test_numbers_too_large_for_float32_are_refused(made, tmp_path):
    folder = layouts.copy(made["dino"][0], tmp_path / "m")
    rewrite(folder, lambda state: spoil({**state, "norm.bias": state["norm.bias"].double()}, "norm.bias", 1e300))
    with pytest.raises(WeightsError, match=r"trunk\.model\.norm\.bias \(infinity\)"):
        load_encoder(folder)


def test_adapters_whose_sum_is_no_number_are_refused():
    weights = {"w": torch.full((4, 3), 6e4).half(), "lora.w.a": torch.full((2, 3), 6e4), "lora.w.b": torch.ones(4, 2)}
    with pytest.raises(WeightsError, match=r"the LoRA adapters added, hold values .*: w \(infinity\)"):
        merge_lora(weights, 1.0)


@pytest.mark.parametrize("what", ["bare", "mlp", "lora-a", "lora-b", "base"])
def test_convert_writes_no_weights_with_nan(made, tmp_path, what):
    folder, state = made["dino"][0], load_file(made["dino"][0] / "model.safetensors")
    source = tmp_path / "source.pt"
    if what == "bare":
        torch.save(spoil(state, "blocks.1.mlp.fc1.weight"), source)
    elif what == "mlp":
        mlp = {"fc1.weight": torch.ones(8, 48), "fc1.bias": torch.ones(8), "fc2.weight": torch.ones(48, 8)}
        mlp = spoil({**mlp, "fc2.bias": torch.ones(48)}, "fc2.bias")
        torch.save({"state_dict": {f"perceptual_model.mlp.{key}": value for key, value in mlp.items()}}, source)
    else:
        source = tmp_path / "lora"
        source.mkdir()
        (source / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 1}')
        name = "base_model.model.blocks.0.attn.qkv.lora_{}.weight"
        matrices = {name.format("A"): torch.ones(2, 48), name.format("B"): torch.ones(144, 2)}
        if what != "base":
            matrices = spoil(matrices, name.format(what[-1].upper()))
        save_file(matrices, source / "adapter_model.safetensors")
    if what == "base":
        folder = layouts.copy(folder, tmp_path / "base")
        rewrite(folder, lambda state: spoil(state, "cls_token"))
    with pytest.raises(WeightsError, match="values that are not finite"):
        convert(source, tmp_path / "out", base=folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [{"mean": [NAN, 0, 0]}, {"std": [1, 1, NAN]}, {"std": [1, 0, 1]}, {"std": [1, -1, 1]}, {"std": [1, INF, 1]},
     {"head": {"kind": "lora", "scale": NAN}}, {"head": {"kind": "lora", "scale": INF}}],
    ids=str,
)  # fmt: skip
def test_cards_that_would_make_numbers_into_nan_are_refused(change):
    data = {**json.loads(load_card("lite-clean").to_json()), **change}
    with pytest.raises(CardError, match="finite"):
        EncoderCard.from_json(json.dumps(data))


# --- types


@pytest.mark.parametrize(
    ("said", "meant"),
    [(None, torch.float32), *((dtype, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16,
     torch.float64)), ("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16),
     ("float64", torch.float64), ("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16),
     ("torch.float16", torch.float16), ("torch.bfloat16", torch.bfloat16)],
    ids=str,
)  # fmt: skip
def test_types_and_their_names(said, meant):
    assert parse_dtype(said) is meant


@pytest.mark.parametrize(
    "said",
    ["", "auto", "int8", "float", "half", "torch", torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, 16,
     float, "float16 ", b"float16", ["float16"]],
    ids=str,
)  # fmt: skip
def test_what_is_no_type_to_compute_in(said):
    with pytest.raises(InputError, match=r"is no type that an encoder computes in: use torch\.float32"):
        parse_dtype(said)


@pytest.mark.parametrize("said", ["bf16", "float16", torch.float64])
def test_an_encoder_in_a_type(made, said):
    encoder = RobustSim.from_pretrained(made["dino"][0], device="cpu", dtype=said).encoder
    wanted = parse_dtype(said)
    assert {value.dtype for value in (*encoder.parameters(), *encoder.buffers())} == {wanted}
    assert encoder(torch.rand(1, 3, 64, 64)).dtype == wanted


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("way", ["dtype", "half", "to", "parent"])
def test_weights_that_a_type_cannot_hold_are_refused(made, tmp_path, way, persistent):
    def large():
        encoder = load_encoder(made["dino"][0])
        with torch.no_grad():
            encoder.trunk.model.blocks[1].mlp.fc1.weight[3, 2] = 7e4
        return RobustSim(encoder, persistent=persistent)

    folder = large().save_pretrained(tmp_path / "large")
    into_half = {
        "dtype": lambda: RobustSim.from_pretrained(folder, device="cpu", dtype="float16", persistent=persistent),
        "half": lambda: large().half(),
        "to": lambda: large().to(torch.float16),
        "parent": lambda: nn.Sequential(nn.Linear(2, 2), large()).half(),
    }
    end = r"too large for torch\.float16, which ends at 6\.55e\+04: trunk\.model\.blocks\.1\.mlp\.fc1"
    with pytest.raises(WeightsError, match=end):
        into_half[way]()
    large().to(torch.bfloat16).to(torch.float64)


@pytest.mark.parametrize("said", ["toaster", "cpu:x", "meta", "vulkan", "xla", "", ["cpu"], object(), 1.5])
def test_what_is_no_device(said):
    with pytest.raises(InputError, match=r"use (device=)?'cpu'"):
        find_device(said)


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_refused(made, tmp_path, kind):
    encoder = load_encoder(made["dino"][0])
    wrong = {key.removeprefix("trunk.model."): value.to(kind) for key, value in encoder.state_dict().items()}
    torch.save(wrong, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=rf"of another kind \(trunk\.model\.\S+ is {kind}, not torch\.float32"):
        convert(tmp_path / "a.pt", tmp_path / "out", base=made["dino"][0])
    assert not (tmp_path / "out").exists()


# --- another device for new tensors


@pytest.fixture(params=["context", "default"])
def meta(request):
    """The caller's new tensors are on the device without memory."""
    if request.param == "context":
        with torch.device("meta"):
            yield
    else:
        torch.set_default_device("meta")
        try:
            yield
        finally:
            torch.set_default_device(None)


@pytest.mark.parametrize("kind", ["lite", "ours", "ours-lora", "open_clip", "open_clip-bin", "timm"])
def test_loading_is_on_the_cpu_whatever_the_device_of_new_tensors(made, tmp_path, meta, kind):
    with torch.device("cpu"):
        folder = "lite-clean" if kind == "lite" else KINDS[kind][0](made, tmp_path / "m")
        expected = load_encoder(folder)
    encoder = load_encoder(folder)
    with torch.device("cpu"):
        for (name, value), other in zip(encoder.state_dict().items(), expected.state_dict().values(), strict=True):
            assert value.device.type == "cpu", name
            assert torch.equal(value, other), name
        assert {value.device.type for value in encoder.buffers()} == {"cpu"}
        size = encoder.card.preprocessing.size
        assert torch.isfinite(encoder(torch.rand(1, 3, size, size))).all()


def test_building_and_converting_too(made, tmp_path, meta):
    with torch.device("cpu"):
        torch.save(made["dino"][1].state_dict(), tmp_path / "bare.pt")
    encoder = build_encoder(load_encoder(made["dino"][0]).card)
    assert {value.device.type for value in (*encoder.parameters(), *encoder.buffers())} == {"cpu"}
    convert(tmp_path / "bare.pt", tmp_path / "out", base=made["dino"][0])
    with torch.device("cpu"):
        state = load_encoder(tmp_path / "out").state_dict()
        assert all(
            torch.equal(state[f"trunk.model.{key}"], value) for key, value in made["dino"][1].state_dict().items()
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["lite", "ours-mlp", "ours-lora", "open_clip", "timm"])
def test_loading_is_in_float32_whatever_the_type_of_new_tensors(made, tmp_path, kind, dtype):
    folder = "lite-clean" if kind == "lite" else KINDS[kind][0](made, tmp_path / "m")
    expected = load_encoder(folder)
    torch.set_default_dtype(dtype)
    try:
        encoder = load_encoder(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    for (name, value), other in zip(encoder.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
        assert value.dtype == other.dtype, name
    assert torch.equal(encoder.mean, expected.mean)
    assert torch.equal(encoder.std, expected.std)


# --- names of folders and files


def test_a_home_folder_is_found(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    encoder = load_encoder(made["dino"][0])
    assert save_encoder(encoder, "~/mine/model") == tmp_path / "mine" / "model"
    again = load_encoder("~/mine/model")
    assert torch.equal(again.state_dict()[QKV], encoder.state_dict()[QKV])
    torch.save(made["dino"][1].state_dict(), tmp_path / "bare.pt")
    convert("~/bare.pt", "~/converted", base="~/mine/model")
    assert (tmp_path / "converted" / "config.json").is_file()
    with pytest.raises(ModelNotFoundError, match="a folder must exist"):
        load_encoder("~/nothing")


@pytest.mark.parametrize("form", [str, Path, os.fsencode])
def test_a_file_is_explained_where_a_model_is_wanted(made, tmp_path, form):
    def form_of(path):
        return form(str(path))

    root = save_encoder(load_encoder(made["dino"][0]), tmp_path / "mine")
    assert load_encoder(form_of(root)).card.name == "dino"
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(InputError, match=rf"{name}' is a file; a model is its folder: pass '.*mine'$"):
            load_encoder(form_of(root / name))
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        with pytest.raises(InputError, match=rf"{name}' is a file; a model is its folder: pass '.*vit'$"):
            load_encoder(form_of(made["vit"][0] / name))
    torch.save({}, tmp_path / "epoch_3.pt")
    with pytest.raises(
        InputError, match=r"epoch_3\.pt' is a file; .*`robustsim convert .*epoch_3\.pt -o FOLDER --base"
    ):
        load_encoder(form_of(tmp_path / "epoch_3.pt"))


# --- files that cannot be read, and what is said of it


def test_what_torch_says_of_a_file_is_not_passed_on(tmp_path):
    import argparse

    torch.save({"args": argparse.Namespace(a=1), "state_dict": {"w": torch.ones(2)}}, tmp_path / "script.pt")
    with pytest.raises(CorruptFileError) as caught:
        read_pickle(tmp_path / "script.pt")
    text = str(caught.value)
    assert "holds more than tensors and plain data (argparse.Namespace), and was not loaded" in text
    assert text.endswith("If you trust it, load it yourself and save its state dict alone")
    (tmp_path / "noise.pt").write_bytes(b"no zip at all")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "script.pt").read_bytes()[:300])
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("noise.pt", "cut.pt", "empty.pt"):
        with pytest.raises(CorruptFileError, match=rf"{name}' .*fetch it anew") as damaged:
            read_pickle(tmp_path / name)
        assert "weights_only" not in str(damaged.value)
        assert "\n" not in str(damaged.value)
        assert damaged.value.__cause__ is not None


@pytest.mark.parametrize("name", [None, 3, ["lite"]])
def test_what_is_no_name(name):
    with pytest.raises(InputError, match="a model is named by a text or a path, not by"):
        load_encoder(name)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_folders_and_absent_files_as_weights(tmp_path, suffix):
    with pytest.raises(WeightsError, match="there is no file"):
        read_weights(tmp_path / f"none{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(WeightsError, match="is no file"):
        read_weights(tmp_path / f"folder{suffix}")


# --- state dicts in files


TENSORS = {"conv.weight": torch.arange(4.0), "norm.bias": torch.arange(2.0)}
OTHER = {key: value + 1 for key, value in TENSORS.items()}
CONTAINERS = (
    *("state_dict", "model_state_dict", "model", "net", "vision_encoder_state_dict", "state_dict_ema", "model_ema"),
    *("ema", "teacher", "student"),
)


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_usual_names_of_state_dicts(name):
    script = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}, "lr": torch.tensor(0.1)}
    for loaded in ({name: TENSORS, **script}, {**script, name: {"state_dict": TENSORS, "epoch": 3}},
                   {**script, name: {f"_orig_mod.{key}": value for key, value in TENSORS.items()}}):  # fmt: skip
        found = unwrap(loaded, "file")
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[key], value) for key, value in TENSORS.items())
        assert find_state(flatten(loaded, "file"), TENSORS, "file").keys() == TENSORS.keys()


@pytest.mark.parametrize(("first", "second"), [("state_dict", "state_dict_ema"), ("teacher", "student"),
                                               ("model", "model_ema")])  # fmt: skip
def test_two_state_dicts_must_be_alike(first, second):
    same = {key: value.clone() for key, value in TENSORS.items()}
    assert unwrap({first: TENSORS, second: same}, "file").keys() == TENSORS.keys()
    assert find_state(flatten({first: TENSORS, second: same}, "file"), TENSORS, "file").keys() == TENSORS.keys()
    for find in (
        lambda loaded: unwrap(loaded, "file"),
        lambda loaded: find_state(flatten(loaded, ""), TENSORS, "file"),
    ):
        with pytest.raises(WeightsError, match=rf"holds 2 sets of weights that differ, under '{first}', '{second}'"):
            find({first: TENSORS, second: OTHER})


def test_weights_that_differ_in_nan_alone_are_alike():
    """So that what is wrong is said: they are no numbers."""
    one = spoil(TENSORS, "conv.weight")
    other = {key: value.clone() for key, value in one.items()}
    assert unwrap({"model": one, "ema": other}, "file").keys() == one.keys()


def test_a_name_with_and_without_a_wrapper():
    both = {**TENSORS, "_orig_mod.conv.weight": TENSORS["conv.weight"].clone()}
    assert unwrap(both, "file").keys() == TENSORS.keys()
    with pytest.raises(WeightsError, match=r"file holds two different conv\.weight, with and"):
        unwrap({**both, "_orig_mod.conv.weight": torch.zeros(4)}, "file")


def test_names_before_all_names():
    wrapped = {f"module.model.{key}": value for key, value in TENSORS.items()}
    assert strip_wrappers({**wrapped, "n_averaged": torch.tensor(5)}, "file").keys() == TENSORS.keys()
    with pytest.raises(WeightsError, match=r"file holds two different conv\.weight"):
        strip_wrappers({**wrapped, "conv.weight": torch.zeros(4)}, "file")


@pytest.mark.parametrize("value", [torch.ones(4, device="meta"), torch.ones(2, 2).to_sparse()], ids=["meta", "sparse"])
def test_tensors_that_are_no_arrays_of_values(value):
    state = {**TENSORS, "conv.weight": value}
    for find in (lambda: unwrap(state, "file"), lambda: find_state(flatten(state, "file"), TENSORS, "file")):
        with pytest.raises(WeightsError, match=r"file holds 'conv\.weight', which is (without values|sparse)"):
            find()


@pytest.mark.parametrize("loaded", [None, 3, "text", [], {}, {"epoch": 3}, {"model": {}}, {"model": None}], ids=repr)
def test_files_without_a_state_dict(loaded):
    assert unwrap(loaded, "file") == {}
    assert flatten(loaded, "file") == {}
    assert find_state({}, TENSORS, "file") == {}
