"""Every mode that Pillow knows, beside the RGB that arithmetic of our own makes of the same bytes."""

import colorsys
import io
import struct

import numpy as np
import pytest
from PIL import Image

from robustsim.errors import ImageError
from robustsim.images import read_image

SIZE = (7, 5)
SHAPE = (SIZE[1], SIZE[0])


def values(channels, seed=0, kind=np.uint8):
    shape = (*SHAPE, channels) if channels > 1 else SHAPE
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


def from_bytes(mode, array):
    return Image.frombytes(mode, SIZE, array.tobytes())


def on_white(colours, alpha):
    alpha = alpha[..., None] / 255.0
    return colours * alpha + 255 * (1 - alpha)


def grey(array):
    return np.repeat(np.asarray(array, float)[..., None], 3, -1)


def palette_of(image):
    colours = np.random.default_rng(9).integers(0, 256, (256, 3))
    image.putpalette(colours.astype(np.uint8).tobytes())
    return colours


def one_bit():
    bits = values(1) > 127
    return Image.frombytes("1", SIZE, np.packbits(bits, 1).tobytes()), grey(bits * 255)


def palette():
    places = values(1)
    image = from_bytes("P", places)
    return image, palette_of(image)[places]


def palette_and_alpha():
    places, alpha = values(1), values(1, seed=1)
    image = Image.merge("PA", (from_bytes("L", places), from_bytes("L", alpha)))
    return image, on_white(palette_of(image)[places], alpha)


def premultiplied(channels):
    straight, alpha = values(channels - 1), values(1, seed=1)
    colours = straight if channels > 2 else straight[..., None]
    stored = np.rint(colours * (alpha[..., None] / 255.0)).astype(np.uint8)
    mode = "RGBa" if channels == 4 else "La"
    image = Image.frombytes(mode, SIZE, np.concatenate((stored, alpha[..., None]), -1).tobytes())
    return image, on_white(np.broadcast_to(colours, (*SHAPE, 3)), alpha)


def with_alpha(channels):
    array = values(channels)
    image = from_bytes("RGBA" if channels == 4 else "LA", array)
    return image, on_white(np.broadcast_to(array[..., :-1], (*SHAPE, 3)), array[..., -1])


def cmyk():
    array = values(4)
    light = 255.0 - array
    return from_bytes("CMYK", array), light[..., :3] * light[..., 3:] / 255


def ycbcr():
    array = values(3)
    y, cb, cr = (array[..., place].astype(float) for place in range(3))
    rgb = y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)
    return from_bytes("YCbCr", array), np.stack(rgb, -1).clip(0, 255)


def hsv():
    array = values(3)
    return from_bytes("HSV", array), 255 * np.array(
        [[colorsys.hsv_to_rgb(*one / 255.0) for one in row] for row in array]
    )


def lab_of(lightness, a, b):
    """CIELAB under D50 as sRGB, 0..255: Lindbloom's matrix of XYZ under D50, Bradford's adaptation in it."""
    y = (lightness + 16) / 116
    f = np.stack((y + a / 500, y, y - b / 200), -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.96422, 1.0, 0.82521)
    matrix = (
        (3.1338561, -1.6168667, -0.4906146),
        (-0.9787684, 1.9161415, 0.0334540),
        (0.0719453, -0.2289914, 1.4052427),
    )
    linear = (xyz @ np.array(matrix).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def lab_values(seed=0):
    """Lightness 0..100 and a, b of colours that sRGB holds, in whole steps of the 8-bit file."""
    random = np.random.default_rng(seed)
    return random.integers(90, 200, SHAPE).astype(np.uint8), *random.integers(-18, 19, (2, *SHAPE)).astype(np.int8)


def lab():
    lightness, a, b = lab_values()
    stored = np.stack((lightness, a.view(np.uint8), b.view(np.uint8)), -1)
    return from_bytes("LAB", stored), lab_of(lightness / 2.55, a.astype(float), b.astype(float))


def sixteen(mode):
    array = values(1, kind=np.uint16)
    kinds = {"I;16B": ">u2", "I;16N": "=u2"}
    return from_bytes(mode, array.astype(kinds.get(mode, "<u2"))), grey(array >> 8)


def floats():
    array = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    return from_bytes("F", array), grey(np.rint(array * 255))


# How each mode is made of bytes, and how far Pillow's whole numbers may be from exact ones.
MODES = {
    "1": (one_bit, 0),
    "L": (lambda: (from_bytes("L", values(1)), grey(values(1))), 0),
    "P": (palette, 0),
    "PA": (palette_and_alpha, 1),
    "LA": (lambda: with_alpha(2), 1),
    "La": (lambda: premultiplied(2), 1),
    "RGB": (lambda: (from_bytes("RGB", values(3)), values(3)), 0),
    "RGBX": (lambda: (from_bytes("RGBX", values(4)), values(4)[..., :3]), 0),
    "RGBA": (lambda: with_alpha(4), 1),
    "RGBa": (lambda: premultiplied(4), 1),
    "CMYK": (cmyk, 1),
    "YCbCr": (ycbcr, 1),
    "HSV": (hsv, 2),
    "LAB": (lab, 2),
    "F": (floats, 0),
    "I;16": (lambda: sixteen("I;16"), 0),
    "I;16L": (lambda: sixteen("I;16L"), 0),
    "I;16B": (lambda: sixteen("I;16B"), 0),
    "I;16N": (lambda: sixteen("I;16N"), 0),
}


def seen(image):
    return np.asarray(read_image(image)).astype(float)


def test_these_are_all_the_modes():
    assert set(Image.MODES) <= MODES.keys() | {"I"}


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_each_mode_becomes_its_rgb(mode):
    make, tolerance = MODES[mode]
    image, expected = make()
    assert image.mode == mode
    np.testing.assert_allclose(seen(image), expected, atol=tolerance + 0.5)
    assert expected.std() > 10  # a picture that says something


@pytest.mark.parametrize("mode", MODES)
def test_a_tiff_of_each_mode_is_read_alike(mode):
    image, _ = MODES[mode][0]()
    buffer = io.BytesIO()
    try:
        image.save(buffer, "TIFF")
        Image.open(buffer).load()
    except (OSError, ValueError):
        pytest.skip(f"this Pillow does not write and read TIFFs of mode {mode}")
    np.testing.assert_allclose(seen(buffer.getvalue()), seen(image), atol=1)


def test_lab_photoshop_files_are_read():
    lightness, a, b = lab_values(seed=1)
    planes = (lightness, (a.astype(int) + 128).astype(np.uint8), (b.astype(int) + 128).astype(np.uint8))
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, *SHAPE, 8, 9) + struct.pack(">IIIH", 0, 0, 0, 0)
    expected = lab_of(lightness / 2.55, a.astype(float), b.astype(float))
    np.testing.assert_allclose(seen(head + b"".join(plane.tobytes() for plane in planes)), expected, atol=2.5)


def test_lab_pictures_made_in_any_way_are_not_white():
    """What lies behind a pixel's three values is not alpha; it may be 0."""
    image, expected = lab()
    np.testing.assert_allclose(seen(Image.merge("LAB", image.split())), expected, atol=2.5)
    np.testing.assert_allclose(seen(image.transpose(Image.Transpose.ROTATE_180)), expected[::-1, ::-1], atol=2.5)
    rgb = from_bytes("RGB", values(3))
    assert abs(seen(rgb.convert("LAB")) - values(3)).mean() < 3  # 8 bits of LAB are few


def test_two_lab_pictures_are_not_the_same(metric):
    black, red = (
        Image.merge("LAB", [Image.new("L", (64, 64), value) for value in colour])
        for colour in ((0, 128, 128), (135, 208, 195))
    )
    assert metric.distance(black, red).item() > 0.1


def test_lab_without_littlecms_is_an_error(monkeypatch):
    def none(self, mode):
        raise ImportError("the _imagingcms C module is not installed")

    monkeypatch.setattr(Image.Image, "convert", none)
    with pytest.raises(ImageError, match=r"CIELAB.*LittleCMS.*convert the picture to RGB first"):
        read_image(Image.new("LAB", (2, 2)))


def test_an_unknown_mode_is_named():
    image = Image.new("L", (2, 2))
    image._mode = "Q;7"
    with pytest.raises(ImageError, match="pictures of mode 'Q;7' have no rule: convert it to RGB"):
        read_image(image)


@pytest.mark.parametrize("high", [1, 255, 0x1234, 70_000])
def test_thirty_two_bit_integers_have_no_agreed_range(high):
    image = Image.fromarray(np.array([[0, high]], np.int32))
    assert image.mode == "I"
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    for source in (image, buffer.getvalue()):
        with pytest.raises(ImageError, match=rf"mode 'I'\) with values from 0 to {high} has no agreed range: scale it"):
            read_image(source)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_grey_png_of_sixteen_bits_in_either_mode(monkeypatch, mode, orientation):
    """Pillow opens them as "I" before 11.3, as "I;16" since."""
    from PIL import PngImagePlugin

    array = values(1, kind=np.uint16)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(buffer, "PNG", exif=exif)
    monkeypatch.setitem(PngImagePlugin._MODES, (16, 0), (mode, "I;16B"))
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        assert image.mode == mode
    expected = grey(array >> 8)
    np.testing.assert_array_equal(seen(buffer.getvalue()), expected if orientation == 1 else np.rot90(expected, 3))


def test_portable_graymaps_of_sixteen_bits():
    array = values(1, kind=np.uint16)
    data = f"P5 {SIZE[0]} {SIZE[1]} 65535\n".encode() + array.astype(">u2").tobytes()
    np.testing.assert_array_equal(seen(data), grey(array >> 8))


def test_tiffs_of_twelve_bits_use_their_whole_range():
    array = (values(1, kind=np.uint16) >> 4)[:, :6]
    pairs = array.reshape(-1, 2).astype(np.uint32)
    packed = b"".join(struct.pack(">I", int(a) << 12 | int(b))[1:] for a, b in pairs)
    tags = [
        (256, 3, 6),
        (257, 3, 5),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 3, 5),
        (279, 4, len(packed)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16"
    np.testing.assert_array_equal(seen(data), grey(array >> 4))


def test_a_palette_whose_colours_have_alpha_is_on_white():
    image = from_bytes("P", np.arange(35, dtype=np.uint8) % 2)
    image.putpalette(bytes((0, 0, 0, 0, 10, 20, 30, 255)), "RGBA")
    expected = np.where(np.arange(35).reshape(SHAPE)[..., None] % 2, (10, 20, 30), 255)
    np.testing.assert_array_equal(seen(image), expected)
