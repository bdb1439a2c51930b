"""Small deterministic models in real architectures, written in the layouts that are published on the Hub."""

import json
import shutil

import torch
from safetensors.torch import save_file

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT_B_32 = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
    "text_cfg": TEXT,
}
CONVNEXT = {
    "embed_dim": 20,
    "vision_cfg": {
        "timm_model_name": "test_convnext",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_drop": 0.0,
        "timm_drop_path": 0.1,
        "timm_proj_bias": False,
        "image_size": 64,
    },
    "text_cfg": TEXT,
}
OPENAI_MEAN, OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
DINO = ("vit_small_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3})
DINOV3 = ("vit_small_patch16_dinov3", {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 3})
CONVNET = ("test_convnext", {})


def randomise(module, seed=0):
    """Values with enough spread that a wrong activation or eps shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.copy_(0.3 * values + name.endswith("weight"))  # norms: around 1
            else:
                parameter.copy_(values * (1.5 / parameter[0].numel() ** 0.5))
    return module.eval()


def open_clip_model(config):
    import open_clip

    return randomise(open_clip.CLIP(**config))


def write_open_clip(folder, config, *, binary=False, said=None, preprocess=None):
    """OpenCLIP's Hub layout; returns the model. ``said`` is what the configuration file claims."""
    folder.mkdir(parents=True)
    model = open_clip_model(config)
    pre = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": said or config, "preprocess_cfg": {**pre, **(preprocess or {})}})
    )
    if binary:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model


def write_timm(folder, architecture, args, *, classes=0, pretrained_cfg=None):
    """timm's Hub layout; returns the model."""
    import timm

    folder.mkdir(parents=True)
    model = randomise(timm.create_model(architecture, pretrained=False, num_classes=classes, **args))
    pre = {
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": classes,
        "license": "apache-2.0",
    }
    config = {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": model.num_features,
        "model_args": args,
        "pretrained_cfg": {**pre, **(pretrained_cfg or {})},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return model


def copy(source, target):
    return shutil.copytree(source, target)
