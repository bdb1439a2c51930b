"""Loading from a Hub that speaks the real protocol and holds the real layouts, and what it says when that fails."""

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from robustsim import RobustSim
from robustsim.errors import (
    CorruptFileError,
    HubError,
    ModelNotFoundError,
    RepositoryError,
    WeightsError,
)
from tests import layouts


@pytest.fixture
def load(hub):
    def from_pretrained(name, **options):
        return RobustSim.from_pretrained(name, cache_dir=hub.cache, device="cpu", **options)

    return from_pretrained


def pixels(size=64, count=3):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def normalised(x, mean, std):
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("kind", ["vit", "convnext", "vit-bin"])
def test_open_clip_repository_agrees_with_open_clip(hub, load, published, kind):
    folder, model = published[kind]
    hub.add("org/model", folder)
    metric = load("org/model")
    with torch.no_grad():
        expected = model.encode_image(normalised(pixels(), layouts.OPENAI_MEAN, layouts.OPENAI_STD), normalize=True)
    torch.testing.assert_close(metric.embed(pixels()), expected, rtol=0, atol=1e-5)
    assert metric.card.embedding_dim == expected.shape[1]
    assert hub.count("GET", "open_clip_config.json") == 1


@pytest.mark.parametrize("kind", ["dino", "dinov3", "classifier"])
def test_timm_repository_agrees_with_timm(hub, load, published, kind):
    folder, model = published[kind]
    hub.add("timm/model", folder)
    metric = load("timm/model")
    x = normalised(pixels(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(metric.encoder(pixels()), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_open_clip_agrees_with_its_own_loader(hub, load, published):
    """The whole way: open_clip's factory and transform on the same files, through its local-dir schema."""
    import open_clip
    from PIL import Image

    folder, _ = published["vit"]
    hub.add("org/model", folder)
    metric = load("org/model")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    path = "examples/chelsea.png"
    with torch.no_grad(), Image.open(path) as image:
        expected = model.encode_image(transform(image)[None], normalize=True)
    torch.testing.assert_close(metric.embed(path), expected, rtol=0, atol=1e-6)


def test_text_tower_agrees_with_open_clip(hub, load, published):
    import open_clip

    folder, model = published["vit"]
    hub.add("org/model", folder)
    metric = load("org/model", text=True)
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a cat", "a rocket"])
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
    texts = metric.embed_text(["a cat", "a rocket"])
    torch.testing.assert_close(texts, expected, rtol=0, atol=1e-6)
    assert metric.distance(pixels(), texts[:1]).shape == (3,)


def test_catalogue_name_loads_the_card_and_its_repository(hub, load, published, monkeypatch):
    """A catalogue entry of a real architecture, scaled down by replacing what open_clip says it is."""
    import open_clip

    monkeypatch.setattr(open_clip, "get_model_config", lambda name: json.loads(json.dumps(layouts.VIT_B_32)))
    hub.add("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", published["vit"][0])
    by_name, by_id = load("clip-vit-b-32"), load("laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert by_name.card.name == by_id.card.name == "clip-vit-b-32"


@pytest.mark.parametrize("revision", ["v1", None])
def test_revisions(hub, load, published, revision):
    hub.add("org/model", published["dino"][0])
    name = "org/model@v1" if revision is None else "org/model"
    load(name, revision=revision)
    assert {path.split("/")[4] for _, path, _ in hub.requests} == {"v1"}
    with pytest.raises(RepositoryError, match=r"org/model.*no revision 'nope'"):
        load("org/model@nope")


def test_second_load_and_offline_come_from_the_cache(hub, load, published, monkeypatch):
    hub.add("org/model", published["vit"][0])
    expected = load("org/model").embed(pixels())
    fetched = hub.count("GET", "open_clip_model.safetensors")
    torch.testing.assert_close(load("org/model").embed(pixels()), expected, rtol=0, atol=0)
    assert fetched == hub.count("GET", "open_clip_model.safetensors") == 1
    hub.requests.clear()
    torch.testing.assert_close(load("org/model", local_files_only=True).embed(pixels()), expected, rtol=0, atol=0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.testing.assert_close(load("org/model").embed(pixels()), expected, rtol=0, atol=0)
    assert hub.requests == []


def test_offline_without_cache_says_so(hub, load, published):
    hub.add("org/model", published["vit"][0])
    with pytest.raises(HubError, match=r"config.json of 'org/model' is not in .*hub-cache.*network is off.*'lite'"):
        load("org/model", local_files_only=True)
    assert hub.requests == []


def test_interrupted_download_resumes_where_it_was(hub, load, published, monkeypatch):
    import huggingface_hub.constants

    # huggingface_hub keeps whole chunks, of 10 MB; these files have 7.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    folder, model = published["convnext"]
    hub.add("org/model", folder)
    hub.cut["open_clip_model.safetensors"] = [120_000]
    try:
        metric = load("org/model")
    except HubError:  # older versions of huggingface_hub resume at the next call
        metric = load("org/model")
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert ranges == [None, "bytes=100000-"]
    assert metric.embed(pixels()).shape == (3, model.visual.head.proj.out_features)


def test_download_that_never_ends_well_leaves_nothing(hub, load, published, monkeypatch):
    import huggingface_hub.file_download

    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    hub.add("org/model", published["convnext"][0])
    hub.cut["open_clip_model.safetensors"] = [0] * 50
    with pytest.raises(HubError, match=r"downloading open_clip_model.safetensors of 'org/model' failed"):
        load("org/model")
    big = [path for path in hub.cache.rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    assert big == []
    hub.cut.clear()
    load("org/model")


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_damaged_content_is_refused_and_forgotten(hub, load, published, name):
    hub.add("org/model", published["vit"][0])
    hub.damage.add(name)
    with pytest.raises(CorruptFileError, match=rf"{name} of 'org/model' is damaged.*removed.*run again"):
        load("org/model")
    hub.damage.clear()
    load("org/model")


def test_damage_in_the_cache_is_noticed(hub, load, published):
    hub.add("org/model", published["vit"][0])
    load("org/model")
    blob = max(hub.cache.rglob("blobs/*"), key=lambda path: path.stat().st_size)
    with blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(CorruptFileError, match="damaged"):
        load("org/model", local_files_only=True)
    load("org/model")


def test_blobs_shared_between_repositories(hub, load, published):
    """huggingface_hub keeps files of Xet repositories once, under another hash, with links to them."""
    hub.add("org/model", published["dino"][0])
    load("org/model")
    blob = max(hub.cache.rglob("models--*/blobs/*"), key=lambda path: path.stat().st_size)
    store = hub.cache / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(os.path.relpath(store, blob.parent))
    load("org/model", local_files_only=True)
    store.write_bytes(store.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CorruptFileError, match="damaged"):
        load("org/model", local_files_only=True)
    assert not store.exists()
    load("org/model")


def test_checksum_of_the_card_holds(hub, load, published, monkeypatch):
    import dataclasses

    from robustsim.encoders import card, load_card
    from robustsim.encoders import load as loading

    right = load_card("dino-vit-b-16")
    architecture, args = layouts.DINO
    small = dataclasses.replace(
        right,
        architecture=card.Architecture(library="timm", name=architecture, options=args),
        embedding_dim=48,
        preprocessing=dataclasses.replace(right.preprocessing, size=64, resize=72),
    )
    digest = hashlib.sha256((published["dino"][0] / "model.safetensors").read_bytes()).hexdigest()
    hub.add(right.source.repo, published["dino"][0])
    for checksum, fits in ((digest, True), ("0" * 64, False)):
        named = dataclasses.replace(small, source=dataclasses.replace(small.source, sha256=checksum))
        monkeypatch.setattr(loading, "load_card", lambda name, named=named: named)
        if fits:
            load("dino-vit-b-16")
        else:
            with pytest.raises(CorruptFileError, match="not the file that the card names"):
                load("dino-vit-b-16")


def test_unknown_and_gated_and_private_repositories(hub, load, published, monkeypatch):
    with pytest.raises(RepositoryError, match=r"no repository 'org/nothing'.*private.*HF_TOKEN"):
        load("org/nothing")
    hub.add("org/gated", published["dino"][0])
    hub.add("org/private", published["dino"][0])
    hub.gated.add("org/gated")
    hub.private.add("org/private")
    with pytest.raises(RepositoryError, match=r"'org/gated' is gated: accept its conditions.*HF_TOKEN"):
        load("org/gated")
    with pytest.raises(RepositoryError, match="private"):
        load("org/private")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    load("org/gated")
    load("org/private")


def test_repository_without_a_known_layout(hub, load, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    hub.add("org/bert", tmp_path)
    with pytest.raises(ValueError, match=r"names no timm architecture.*transformers model, 'bert'"):
        load("org/bert")
    hub.repos["org/empty"] = {"README.md": b"nothing"}
    with pytest.raises(RepositoryError, match=r"'org/empty' holds no config.json or open_clip_config.json"):
        load("org/empty")


def test_no_network(hub, load, monkeypatch):
    import huggingface_hub.utils._http as http

    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(
            HubError, match=r"cannot be reached .*refused.*config.json of 'org/model' is not in .*'lite'"
        ):
            load("org/model")


def test_full_disk(hub, load, published, monkeypatch):
    import huggingface_hub

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(HubError, match=r"the disk is full.*MB free.*cache_dir= or HF_HOME"):
        load("org/model")


def test_weights_of_another_architecture(hub, load, published, tmp_path):
    folder = layouts.copy(published["vit"][0], tmp_path / "wrong")
    weights = layouts.open_clip_model(layouts.CONVNEXT).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "open_clip_model.safetensors")
    hub.add("org/wrong", folder)
    with pytest.raises(WeightsError, match=r"do not fit.*missing.*left over.*another architecture"):
        load("org/wrong")


@pytest.mark.parametrize(
    ("name", "said", "contradicts"),
    [
        ("clip-vit-b-32", {"quick_gelu": True}, True),
        ("clip-vit-b-32", {}, False),
        ("rclip-f-vit-l-14", {"quick_gelu": False}, True),
        ("rclip-f-vit-l-14", {"quick_gelu": True}, False),
        ("rclip-f-vit-l-14", {}, False),
        ("clip-vit-b-32", {"embed_dim": 99}, True),
    ],
)
def test_the_card_decides_the_activation(hub, load, tmp_path, monkeypatch, name, said, contradicts):
    import open_clip

    from robustsim.encoders import load_card

    card = load_card(name)
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: json.loads(json.dumps(layouts.VIT_B_32)))
    wanted = {**layouts.VIT_B_32, "quick_gelu": card.architecture.quick_gelu}
    model = layouts.write_open_clip(tmp_path / "repo", wanted, said={**layouts.VIT_B_32, **said})
    hub.add(card.source.repo, tmp_path / "repo")
    for asked in (name, card.source.repo):
        if contradicts:
            with pytest.raises(WeightsError, match=rf"{next(iter(said))} = .*the card '{name}' says"):
                load(asked)
        else:
            x = pixels(64)
            expected = model.encode_image(normalised(x, layouts.OPENAI_MEAN, layouts.OPENAI_STD))
            torch.testing.assert_close(load(asked).encoder(x), expected, rtol=0, atol=2e-5)


def test_names_that_do_not_exist():
    with pytest.raises(
        ModelNotFoundError, match=r"no model is called 'rclip-f-convnext'; did you mean 'rclip-f-convnext-base'"
    ):
        RobustSim.from_pretrained("rclip-f-convnext")


def test_push_to_hub_and_load_it_back(hub, load, published):
    """In a process of its own: huggingface_hub reads addresses of commits by the HF_ENDPOINT it was imported with."""
    metric = RobustSim.from_pretrained(published["dino"][0], device="cpu")
    code = (
        "from robustsim import RobustSim\nimport sys\n"
        "print(RobustSim.from_pretrained(sys.argv[1], device='cpu').push_to_hub('me/mine'))"
    )
    run = [sys.executable, "-c", code, str(published["dino"][0])]
    env = {**os.environ, "HF_ENDPOINT": hub.url}
    refused = subprocess.run(run, env=env, check=False, capture_output=True, text=True)
    assert "HubError: publishing to 'me/mine' failed" in refused.stderr
    assert "set HF_TOKEN" in refused.stderr
    assert hub.uploads == {}
    done = subprocess.run(run, env={**env, "HF_TOKEN": "hf_good"}, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"{hub.url}/me/mine/commit/")
    assert sorted(hub.uploads["me/mine"]) == ["README.md", "config.json", "model.safetensors"]
    assert b'RobustSim.from_pretrained("me/mine")' in hub.uploads["me/mine"]["README.md"]
    hub.repos["me/mine"] = hub.uploads["me/mine"]
    torch.testing.assert_close(load("me/mine").embed(pixels()), metric.embed(pixels()), rtol=0, atol=0)


def test_environment_variables_in_a_process_of_its_own(hub, published, tmp_path):
    """As a user sets them: before Python starts."""
    hub.add("org/model", published["dino"][0])
    code = "from robustsim import RobustSim; print(RobustSim.from_pretrained('org/model', device='cpu').card.name)"
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout.strip() == "org/model"
    hub.repos.clear()
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert subprocess.run(run, env=offline, check=True, capture_output=True, text=True).stdout.strip() == "org/model"


def test_a_configuration_that_cannot_be_read_is_not_taken_for_missing(hub, load, tmp_path, monkeypatch):
    """Or a contradiction of the card, or another layout, would go unnoticed for one bad answer of a server."""
    import huggingface_hub.utils._http as http
    import open_clip

    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: json.loads(json.dumps(layouts.VIT_B_32)))
    layouts.write_open_clip(tmp_path / "repo", layouts.VIT_B_32, said={**layouts.VIT_B_32, "quick_gelu": True})
    hub.add("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", tmp_path / "repo")
    hub.fail["open_clip_config.json"] = 503
    with pytest.raises(HubError, match=r"503.*open_clip_config\.json"):
        load("clip-vit-b-32")


def test_offline_remembers_what_a_repository_does_not_have(hub, load, published):
    hub.add("timm/model", published["dino"][0])
    expected = load("timm/model").embed(pixels())
    assert torch.equal(load("timm/model", local_files_only=True).embed(pixels()), expected)
    for path in hub.cache.rglob(".no_exist/*/open_clip_config.json"):
        path.unlink()
    with pytest.raises(HubError, match=r"open_clip_config\.json of 'timm/model' is not in"):
        load("timm/model", local_files_only=True)


def test_a_cache_without_links_is_verified_too(hub, load, published, monkeypatch):
    import huggingface_hub.file_download

    monkeypatch.setattr(huggingface_hub.file_download, "are_symlinks_supported", lambda *args: False)
    hub.add("org/model", published["dino"][0])
    hub.damage.add("model.safetensors")
    with pytest.raises(CorruptFileError, match="is damaged"):
        load("org/model")
    hub.damage.clear()
    load("org/model")
    assert not any(path.is_symlink() for path in hub.cache.rglob("*"))
