"""DreamSim's released files, small and with random weights, and the networks that its package builds for them."""

import json
from contextlib import contextmanager
from functools import partial
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustsim.baselines.dreamsim import KINDS
from robustsim.baselines.libraries import undisturbed


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_state(module, seed=0):
    """Weights for a module, on the meta device or not, that keep the size of what passes through."""
    draw = generator(seed)
    state = {}
    for key, value in module.state_dict().items():
        if value.ndim > 1:
            state[key] = torch.empty(value.shape).normal_(0, (2 / value[0].numel()) ** 0.5, generator=draw)
        else:
            state[key] = torch.empty(value.shape).uniform_(-0.1, 0.1, generator=draw)
    return state


def write_dreamsim(folder, name, vit):
    """A folder in the layout of the package's releases, for networks that ``vit(patch_size)`` builds."""
    kind, files, adapter = KINDS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.startswith("dino_"):
            shapes = {"mlp.0.weight": (8, 8), "mlp.0.bias": (8,), "mlp.2.weight": (8, 8), "mlp.2.bias": (8,),
                      "mlp.4.weight": (8, 8), "mlp.4.bias": (8,), "last_layer.weight": (8, 8)}  # fmt: skip
            torch.save({"student": {f"module.head.{key}": torch.zeros(s) for key, s in shapes.items()}}, folder / file)
        else:
            with undisturbed():
                model = vit(patch_size=int(file.split("vitb")[1][:2]))
                model.pos_drop = nn.LayerNorm(model.embed_dim)
            state = random_state(model)
            for key, value in state.items():
                value += "norm" in key and key.endswith("weight")  # around 1, so that pictures differ behind it
            state["pos_drop.weight"] += 1
            state |= {"proj": torch.randn(model.embed_dim, 512, generator=generator(1))}
            torch.save({"state_dict": state}, folder / file)
    width = 24 if vit is small_vit else 768
    extractors = 3 if kind == "ensemble" else 1
    draw, rank = generator(2), 4
    lora = {
        f"base_model.model.extractor_list.{k}.model.blocks.{block}.attn.qkv.lora_{part}.weight": torch.randn(
            shape, generator=draw
        )
        * 0.1
        for k in range(extractors)
        for block in range(12)
        for part, shape in (("A", (rank, width)), ("B", (3 * width, rank)))
    }
    (folder / adapter).mkdir()
    save_file(lora, folder / adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2, "lora_dropout": 0.3, "bias": "none",
              "target_modules": ["qkv"], "inference_mode": True}  # fmt: skip
    (folder / adapter / "adapter_config.json").write_text(json.dumps(config))
    for network, patch_size in (("dino", 16), ("dinov2", 14)):
        if any(file.startswith(f"{network}_") for file in files):
            hub = folder / f"facebookresearch_{network}_main"
            hub.mkdir()
            (hub / "hubconf.py").write_text(
                "from tests.dreamsim_files import dino\n"
                f"def {network}_vitb{patch_size}():\n"
                f"    return dino({patch_size})\n"
            )
    return folder


def dino(patch_size):
    """What torch.hub gives the package as DINO: its own network, at this time's width, with random weights."""
    from dreamsim.feature_extraction import load_clip_as_dino

    model = load_clip_as_dino.vit_base(patch_size=patch_size)
    draw = generator(5)
    for key, value in model.state_dict().items():
        value.normal_(float("norm" in key and "weight" in key), 0.2, generator=draw)
    return model


def small_vit(patch_size=16, **kwargs):
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    norm = partial(nn.LayerNorm, eps=1e-6)  # as in the package's
    return VisionTransformer(patch_size=patch_size, embed_dim=24, depth=12, num_heads=2, qkv_bias=True, norm_layer=norm)


@contextmanager
def small_networks():
    """DreamSim's networks, as wide as the small files: the package's are too big for a test. No network is asked."""
    import dreamsim.feature_extraction.load_clip_as_dino as clip
    import dreamsim.feature_extraction.load_open_clip_as_dino as open_clip

    def offline(*args, **kwargs):
        raise URLError("no network in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "vit_base", small_vit)
        patch.setattr(open_clip, "vit_base", small_vit)
        patch.setattr(torch.hub, "urlopen", offline)
        yield
