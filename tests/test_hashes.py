"""Perceptual hashes: ImageHash's, of pictures that have something to hash."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robustsim.errors import InputError, MissingDependencyError
from robustsim.images import hash_rows, perceptual_hash, read_image
from robustsim.images.hashes import HASH_BITS
from tests.conftest import EXAMPLES

PHOTOS = sorted(EXAMPLES.glob("*.png")) + sorted(EXAMPLES.glob("*.jpg"))


def differing(one, other):
    return int((hash_rows([one]) != hash_rows([other])).sum())


def as_jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return read_image(buffer.getvalue())


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_hashes_are_those_of_imagehash(path):
    import imagehash

    image = read_image(path)
    got = perceptual_hash(image)
    assert len(got) * 8 == HASH_BITS
    assert got.hex() == str(imagehash.phash(image, hash_size=16))


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_hashes_withstand_copies_and_tell_pictures_apart(path):
    image = read_image(path)
    own = perceptual_hash(image)
    copy = as_jpeg(image.resize((image.width // 2, image.height // 2)), 60)
    assert differing(own, perceptual_hash(copy)) <= 24
    for other in PHOTOS:
        if other != path:
            assert differing(own, perceptual_hash(read_image(other))) > 64


def picture(values):
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")


ACROSS, DOWN = np.meshgrid(np.arange(200), np.arange(160))
RANDOM = np.random.default_rng(0).normal(size=(160, 200))


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (200, 160)),
        Image.new("RGB", (1, 1), "white"),
        picture(128 + 2 * RANDOM),
        picture(ACROSS),
        picture((ACROSS + DOWN) / 2),
        picture(255 * (abs(DOWN - 80) > 2)),
    ],
    ids=["flat", "one pixel", "noise", "gradient", "slanted gradient", "line"],
)
def test_what_shows_next_to_nothing_has_no_hash(image):
    """Their bits are those of noise, or of no picture in particular."""
    assert perceptual_hash(image) is None


def test_faint_pictures_have_hashes_as_long_as_these_last():
    image = np.asarray(read_image(EXAMPLES / "chelsea.png")).astype(float)
    faint = [perceptual_hash(picture((image.mean(-1) - 128) * share + 128)) for share in (1, 0.1, 0.01)]
    assert differing(faint[0], faint[1]) <= 40
    assert faint[2] is None


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5))
def test_rows_are_the_bits_as_signs(hashes):
    rows = hash_rows(hashes)
    assert rows.dtype == np.int8
    assert rows.shape == (len(hashes), 256)
    for one, row in zip(hashes, rows, strict=True):
        bits = "".join(f"{byte:08b}" for byte in one)
        assert row.tolist() == [1 if bit == "1" else -1 for bit in bits]
    for one, row in zip(hashes[1:], rows[1:], strict=True):
        apart = bin(int.from_bytes(one) ^ int.from_bytes(hashes[0])).count("1")
        assert row.astype(int) @ rows[0] == 256 - 2 * apart


def test_rows_of_other_lengths_are_refused():
    with pytest.raises(InputError, match="has 32 bytes, and one of 8 was passed"):
        hash_rows([bytes(32), bytes(8)])


def test_without_imagehash_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "robustsim\[search\]"'):
        perceptual_hash(Image.new("RGB", (8, 8)))
