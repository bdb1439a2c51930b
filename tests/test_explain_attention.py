"""Text-guided attention as a map of the picture, and how it is scored against masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch.nn import functional as F

from robustsim import RobustSim
from robustsim.encoders.attention import complementary_attention, text_guided_attention
from robustsim.errors import ImageError, InputError
from robustsim.explain import attention_map, mask_scores, soft_iou
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

CAT, NO_CAT = "This is a photo of a cat", "This is not a photo of a cat"
CHELSEA = EXAMPLES / "chelsea.png"


def images(count, height=64, width=64, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["vit", "convnext"])
def clip(request, published):
    return RobustSim.from_pretrained(published[request.param][0], device="cpu", text=True)


@pytest.fixture(scope="module")
def vit(published):
    return RobustSim.from_pretrained(published["vit"][0], device="cpu", text=True)


def test_the_formula(clip):
    """Eq. 6 in words: cosines, brought to [0, 1], resized; and Eq. 8."""
    pixels = images(2, *(clip.card.preprocessing.size,) * 2)
    tokens = clip.encoder.features(pixels, project=True)
    wanted = []
    for text in (CAT, NO_CAT):
        cosines = F.cosine_similarity(tokens.tokens, clip.embed_text(text)[:, None], dim=2)
        low, high = cosines.min(1, keepdim=True).values, cosines.max(1, keepdim=True).values
        places = ((cosines - low) / (high - low)).view(2, 1, *tokens.grid)
        wanted.append(F.interpolate(places, pixels.shape[2:], mode="bilinear")[:, 0])
    torch.testing.assert_close(attention_map(clip, pixels, CAT), wanted[0], rtol=1e-3, atol=1e-4)
    both = attention_map(clip, pixels, CAT, against=NO_CAT)
    torch.testing.assert_close(both, wanted[0] * (1 - wanted[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["paper", "published"])
def test_it_is_what_training_uses(vit, form):
    side = vit.card.preprocessing.size
    pixels, seen = images(2, side, side), None
    seen = vit.encoder.features(pixels, project=True)
    token = None if form == "paper" else seen.embedding
    maps = [
        text_guided_attention(seen.tokens, vit.embed_text(text)[0], seen.grid, side, form=form, class_token=token)
        for text in (CAT, NO_CAT)
    ]
    torch.testing.assert_close(attention_map(vit, pixels, CAT, form=form), maps[0], rtol=1e-4, atol=1e-5)
    both = attention_map(vit, pixels, CAT, against=NO_CAT, form=form)
    torch.testing.assert_close(both, complementary_attention(*maps), rtol=1e-4, atol=1e-5)


def test_at_the_pictures_resolution(vit):
    found = attention_map(vit, CHELSEA, CAT)
    assert found.shape == (1, 300, 451)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert 0.5 < found.max() <= 1
    left, _, right, _ = vit.card.preprocessing.seen(451, 300)
    assert found[..., : int(left)].abs().max() == 0
    assert found[..., int(right) + 1 :].abs().max() == 0
    assert attention_map(vit, CHELSEA, CAT, against=NO_CAT).max() <= 1


def test_a_text_for_each_and_batches(vit):
    pixels, texts = images(3), ["a cat", "a rocket", "a cup"]
    each = torch.cat([attention_map(vit, pixels[i : i + 1], texts[i]) for i in range(3)])
    small = RobustSim(vit.encoder, batch_size=2)
    for model in (vit, small):
        torch.testing.assert_close(attention_map(model, pixels, texts), each, rtol=1e-3, atol=1e-4)
        many = attention_map(model, pixels, texts[0], against=texts)
        assert many.shape == (3, 64, 64)
        assert many[0].max() <= 0.25 + 1e-4  # x (1 - x)
    with pytest.raises(InputError, match="2 texts for 3 images: pass one text, or one for each"):
        attention_map(vit, pixels, texts[:2])


def test_gradients_reach_the_picture(vit):
    x = images(1).requires_grad_()
    attention_map(vit, x, CAT).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


def test_models_without_texts(metric, published):
    with pytest.raises(InputError, match="has no text tower: use a CLIP model"):
        attention_map(metric, images(1), CAT)
    bare = RobustSim.from_pretrained(published["vit"][0], device="cpu")
    with pytest.raises(InputError, match="load it with text=True"):
        attention_map(bare, images(1), CAT)


def test_refused(vit):
    with pytest.raises(InputError, match="several sizes"):
        attention_map(vit, [CHELSEA, EXAMPLES / "coffee.png"], CAT)
    with pytest.raises(InputError, match="form='no' is none of paper, published"):
        attention_map(vit, images(1), CAT, form="no")
    with pytest.raises(InputError, match="at least one"):
        attention_map(vit, images(1), [])


UNIT = arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32))


@settings(max_examples=50, deadline=None)
@given(maps=UNIT, masks=UNIT, sets=arrays(np.bool_, (2, 3, 4)))
def test_soft_iou(maps, masks, sets):
    def direct(map_, mask):
        both = sum(min(float(a), float(m)) for a, m in zip(map_.flat, mask.flat, strict=True))
        either = sum(max(float(a), float(m)) for a, m in zip(map_.flat, mask.flat, strict=True))
        return both / either if either else 1.0

    for mask in (masks, sets):
        found = soft_iou(torch.from_numpy(maps), torch.from_numpy(mask))
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx([direct(*pair) for pair in zip(maps, mask, strict=True)], abs=1e-5)
    # Of sets of pixels, the product's form is the same.
    a, m = maps.astype(np.float64), sets.astype(np.float64)
    products = (a * m).sum((1, 2)), (a + m - a * m).sum((1, 2))
    wanted = [both / either if either else 1.0 for both, either in zip(*products, strict=True)]
    assert soft_iou(torch.from_numpy(maps), torch.from_numpy(sets)).tolist() == pytest.approx(wanted, abs=1e-5)


def test_soft_iou_of_sets():
    one = torch.tensor([[[True, True, False, False]]])
    other = torch.tensor([[[False, True, True, False]]])
    assert soft_iou(one.float(), one).item() == 1
    assert soft_iou(one.float(), other).item() == pytest.approx(1 / 3)
    assert soft_iou(one.float(), ~one).item() == 0


def test_soft_iou_refuses():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"maps \(2, 4, 4\) and masks \(2, 4, 5\) must have one shape"):
        soft_iou(maps, torch.zeros(2, 4, 5))
    with pytest.raises(InputError, match=r"masks with values from 0 to 255, .* a mask of 0 and 255 is mask > 0"):
        soft_iou(maps, torch.where(maps > 0.5, 255, 0).to(torch.uint8))
    with pytest.raises(InputError, match="maps with values from -1"):
        soft_iou(-torch.ones(1, 2, 2), torch.zeros(1, 2, 2))
    with pytest.raises(InputError, match="maps with values from nan"):
        soft_iou(torch.full((1, 2, 2), float("nan")), torch.zeros(1, 2, 2))


@pytest.fixture
def masked(tmp_path):
    """Folders of images and masks, a picture and a mask of each kind."""
    random = np.random.default_rng(0)
    for place, (label, name) in enumerate([("a_cat", "one.png"), ("a_cat", "two.jpg"), ("rocket", "one.png")]):
        size = (64 + place, 70)
        mask = np.zeros(size[::-1], np.uint8)
        mask[20:50, 10:40] = place + 1
        image = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8))
        drawn = Image.fromarray(mask)
        if place == 1:  # numbers of a palette whose first colour is white
            drawn.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9])
        elif place == 2:
            drawn = Image.merge("RGBA", [Image.new("L", size), drawn, drawn, Image.new("L", size, 255)])
        for root, picture, file in (("images", image, name), ("masks", drawn, f"{name[:3]}.png")):
            (tmp_path / root / label).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / root / label / file)
    return tmp_path


def test_folders_of_images_and_masks(vit, masked):
    told = []
    found = mask_scores(vit, masked / "images", masked / "masks", tell=told.append)
    assert found.skipped == []
    assert told == [row.image for row in found.rows] == ["a_cat/one.png", "a_cat/two.jpg", "rocket/one.png"]
    assert [row.label for row in found.rows] == ["a cat", "a cat", "rocket"]
    for row in found.rows:
        path = masked / "images" / row.image
        with Image.open(path) as image:
            mask = torch.zeros(1, image.height, image.width, dtype=torch.bool)
        mask[:, 20:50, 10:40] = True
        texts = [f"This is {word}a photo of a {row.label}" for word in ("", "not ")]
        assert row.tga == pytest.approx(soft_iou(attention_map(vit, path, texts[0]), mask).item(), abs=1e-5)
        both = attention_map(vit, path, texts[0], against=texts[1])
        assert row.comp_tga == pytest.approx(soft_iou(both, mask).item(), abs=1e-5)


def test_bad_files_are_skipped_and_bad_sizes_are_not(vit, masked):
    images, masks = masked / "images", masked / "masks"
    (images / "a_cat" / "two.jpg").write_bytes(b"nothing")
    (masks / "rocket" / "one.png").unlink()
    found = mask_scores(vit, images, masks)
    assert [row.image for row in found.rows] == ["a_cat/one.png"]
    assert len(found.skipped) == 2
    assert "two.jpg" in found.skipped[0]
    Image.new("L", (64, 70)).save(masks / "a_cat" / "one.png")
    with pytest.raises(InputError, match=r"has a mask in .* \(the mask .* is empty\)"):
        mask_scores(vit, images, masks)
    Image.new("L", (70, 64), 1).save(masks / "a_cat" / "one.png")
    with pytest.raises(InputError, match=r"one\.png' has 70 x 64 pixels, its picture 64 x 70: bring masks to the size"):
        mask_scores(vit, images, masks)
    with pytest.raises(ImageError, match="is not a folder"):
        mask_scores(vit, images, masked / "nowhere")
    with pytest.raises(InputError, match=r"'a photo' must hold \{\} once"):
        mask_scores(vit, images, masks, prompt="a photo")
    with pytest.raises(InputError, match="lies in no folder of a class"):
        mask_scores(vit, images / "a_cat", masks)
