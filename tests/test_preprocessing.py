"""For every catalogue card, a file gives the reference pipeline's tensor to the bit."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim import EncoderCard, RobustSim, list_models
from robustsim.encoders import load_card
from robustsim.encoders.encoder import build_encoder
from robustsim.images import read_image, to_rgb

SIZES = [(451, 300), (300, 451), (224, 224), (256, 256), (223, 500), (225, 224), (97, 31), (640, 427), (1, 1), (3, 240)]
MODES = ["RGB", "L"]  # in these, open_clip resizes what we resize
CONVERTED = ["P", "1", "CMYK", "LA", "RGBA"]  # these, our rules turn into RGB first


def picture(width, height, mode="RGB"):
    rng = np.random.default_rng(width * 1000 + height)
    with Image.open("examples/coffee.png") as image:
        base = np.asarray(image.resize((width, height)), np.int16)
    noisy = np.clip(base + rng.integers(-40, 40, base.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def ours(card, data):
    """What the trunk gets: preprocessing and the encoder's normalisation."""
    metric = RobustSim(build_encoder(_light(card)))
    return metric.encoder.normalize(metric.preprocess(data))[0]


def _light(card):
    """The card on the bundled architecture: preprocessing and normalisation are what is compared."""
    import dataclasses

    light = load_card("lite-clean")
    return dataclasses.replace(card, architecture=light.architecture, embedding_dim=light.embedding_dim, source=None)


def reference(card):
    """The pipeline of the library the checkpoint comes from."""
    from open_clip.transform import PreprocessCfg, image_transform, image_transform_v2

    if card.architecture.library == "open_clip":
        import open_clip

        size = open_clip.get_model_config(card.architecture.name)["vision_cfg"]["image_size"]
        if size == 224:
            return image_transform_v2(PreprocessCfg(size=224, mean=card.mean, std=card.std), is_train=False)
        from torchvision import transforms as T

        # Pre-trained at 256: the short side goes there, and the centre 224 are cropped (REFERENCE: section 2).
        bicubic = T.InterpolationMode.BICUBIC
        return T.Compose(
            [
                T.Resize(size, interpolation=bicubic),
                T.CenterCrop(224),
                lambda image: image.convert("RGB"),
                T.ToTensor(),
                T.Normalize(card.mean, card.std),
            ]
        )
    if card.architecture.library == "timm":
        import timm
        from timm.data import create_transform, resolve_data_config

        config = resolve_data_config(
            {}, pretrained_cfg=timm.get_pretrained_cfg(card.source.repo.split("/")[1]).to_dict()
        )
        return create_transform(**{**config, "input_size": (3, 224, 224)})
    return image_transform(224, is_train=False, resize_mode="squash", mean=card.mean, std=card.std)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if image.mode == "CMYK" else "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", list_models())
def test_a_file_gives_the_reference_tensor(name):
    card = load_card(name)
    transform = reference(card)
    for width, height in SIZES:
        for mode in MODES:
            data = png(picture(width, height, mode))
            with Image.open(io.BytesIO(data)) as image:
                expected = transform(image if card.architecture.library != "timm" else image.convert("RGB"))
            assert torch.equal(ours(card, data), expected), (name, width, height, mode)


@pytest.mark.parametrize("mode", CONVERTED)
@pytest.mark.parametrize("name", ["clip-vit-b-32", "rclip-f-convnext-base", "dino-vit-b-16", "lite-clean"])
def test_other_modes_give_the_reference_tensor_of_their_rgb_form(name, mode):
    card = load_card(name)
    transform = reference(card)
    for width, height in ((451, 300), (97, 31)):
        data = png(picture(width, height, mode))
        with Image.open(io.BytesIO(data)) as image:
            expected = transform(to_rgb(image))
            if mode not in ("P", "1"):  # the usual first step of the reference scripts comes to the same
                assert torch.equal(expected, transform(image.convert("RGB")))
        assert torch.equal(ours(card, data), expected)


def test_heads_tuned_on_nights_squash(tmp_path):
    """A converted MLP: the squash of DreamSim, whatever the base did."""
    import torchvision.transforms as T

    from robustsim.encoders import convert
    from tests import layouts

    layouts.write_timm(tmp_path / "base", *layouts.DINO)
    dim = layouts.DINO[1]["embed_dim"]
    state = {"fc1.weight": (512, dim), "fc1.bias": (512,), "fc2.weight": (dim, 512), "fc2.bias": (dim,)}
    state = {f"perceptual_model.mlp.{key}": torch.zeros(shape) for key, shape in state.items()}
    torch.save({"state_dict": state}, tmp_path / "mlp.pt")
    card = convert(tmp_path / "mlp.pt", tmp_path / "out", base=tmp_path / "base")
    size = card.preprocessing.size
    transform = T.Compose([T.Resize((size, size), interpolation=T.InterpolationMode.BICUBIC), T.ToTensor()])
    for width, height in SIZES:
        data = png(picture(width, height))
        metric = RobustSim.from_pretrained(tmp_path / "out", device="cpu")
        assert torch.equal(metric.preprocess(data)[0], transform(read_image(data)))


def test_longest_pads_as_open_clip_does():
    from open_clip.transform import image_transform

    from robustsim.images import Preprocessing

    transform = image_transform(96, is_train=False, resize_mode="longest", fill_color=30, mean=(0, 0, 0), std=(1, 1, 1))
    pre = Preprocessing(size=96, mode="longest", fill=30)
    for width, height in SIZES:
        image = picture(width, height)
        got = torch.from_numpy(np.array(pre.apply(image))).permute(2, 0, 1) / 255
        assert torch.equal(got, transform(image)), (width, height)


def test_what_is_cropped_away_is_known():
    card = load_card("rclip-f-convnext-base")
    left, top, right, bottom = card.preprocessing.seen(600, 400)
    assert (right - left, bottom - top) == (pytest.approx(350, abs=0.6), pytest.approx(350))
    assert load_card("lite-clean").preprocessing.seen(600, 400) == (0, 0, 600, 400)


def test_cards_are_data_that_reads_back():
    for name in list_models():
        card = load_card(name)
        assert EncoderCard.from_json(card.to_json()) == card
        assert card.name == name
        assert card.license
        assert card.origin


@pytest.mark.parametrize("mode", ["squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("width", "height"), [(1, 40), (40, 1), (5, 500), (500, 5), (20, 500), (2, 64)])
def test_elongated_pictures_are_the_same_by_both_paths(mode, interpolation, width, height):
    from robustsim.images import Preprocessing

    preprocessing = Preprocessing(size=32, mode=mode, interpolation=interpolation)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    by_file = torch.from_numpy(np.array(preprocessing.apply(Image.fromarray(picture)))).permute(2, 0, 1) / 255
    by_tensor = preprocessing.apply_tensor(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)[0]
    torch.testing.assert_close(by_tensor, by_file, rtol=0, atol=0.02)
    assert (by_tensor - by_file).abs().mean() < 2e-3
