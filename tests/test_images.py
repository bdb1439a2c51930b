"""The one door for pictures: what comes through, as what, and what is turned away with which words."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustsim.errors import ImageError, InputError
from robustsim.images import Preprocessing, find_images, prefetch, read_image, to_rgb
from robustsim.images.decode import image_size
from robustsim.images.inputs import count_images, split_images, stream_pixels

SQUASH = Preprocessing(size=32)
CPU = torch.device("cpu")


def load(images, preprocessing=SQUASH, **options):
    return next(stream_pixels(split_images(images), preprocessing, device=CPU, **options))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array(data):
    return np.asarray(read_image(data))


@pytest.fixture(scope="module")
def rgb(photo):
    return Image.fromarray(photo)


LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_their_pixels(rgb, kind):
    np.testing.assert_array_equal(array(encoded(rgb, kind, **LOSSLESS[kind])), np.asarray(rgb))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_are_close(rgb, kind):
    got = array(encoded(rgb, kind)).astype(float)
    assert got.shape == (87, 131, 3)
    assert abs(got - np.asarray(rgb)).mean() < 12


def test_same_file_by_path_bytes_pil_and_array(rgb, tmp_path):
    path = tmp_path / "a.png"
    rgb.save(path)
    data = path.read_bytes()
    kinds = [path, str(path), data, bytearray(data), memoryview(data), rgb, np.asarray(rgb)]
    got = load(kinds)
    assert got.shape == (7, 3, 32, 32)
    assert all(torch.equal(one, got[0]) for one in got)


def test_grey_palette_and_one_bit_are_expanded(rgb):
    grey = rgb.convert("L")
    np.testing.assert_array_equal(array(encoded(grey, "PNG")), np.stack([np.asarray(grey)] * 3, -1))
    palette = rgb.convert("P")
    np.testing.assert_array_equal(array(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bits = rgb.convert("1")
    np.testing.assert_array_equal(array(encoded(bits, "PNG"))[..., 0], np.asarray(bits) * np.uint8(255))


def test_alpha_is_composited_on_white(rgb):
    alpha = Image.new("L", rgb.size, 0)
    alpha.paste(255, (0, 0, 60, 87))
    alpha.paste(51, (60, 0, 100, 87))  # a fifth opaque
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    got, original = array(encoded(rgba, "PNG")).astype(float), np.asarray(rgb).astype(float)
    np.testing.assert_array_equal(got[:, :60], original[:, :60])
    np.testing.assert_allclose(got[:, 60:100], original[:, 60:100] * 0.2 + 255 * 0.8, atol=1)
    assert (got[:, 100:] == 255).all()
    la = Image.merge("LA", (rgb.convert("L"), alpha))
    assert (array(encoded(la, "PNG"))[:, 100:] == 255).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_white_too(mode):
    image = Image.new(mode, (8, 8), (0 if mode != "RGB" else (0, 0, 0)))
    transparent = 0 if mode != "RGB" else (0, 0, 0)
    assert (array(encoded(image, "PNG", transparency=transparent)) == 255).all()


def test_opaque_alpha_changes_nothing(rgb):
    rgba = rgb.copy()
    rgba.putalpha(255)
    np.testing.assert_array_equal(array(encoded(rgba, "PNG")), np.asarray(rgb))


def test_sixteen_bits_give_their_high_byte():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = array(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(got[..., 0], (values >> 8).astype(np.uint8))
    np.testing.assert_array_equal(array(encoded(Image.fromarray(values), "TIFF")), got)


def test_float_images_need_a_range_with_a_meaning():
    assert np.asarray(to_rgb(Image.fromarray(np.full((2, 2), 0.5, np.float32))))[0, 0, 0] == 128
    for bad in (2.0, np.nan):
        with pytest.raises(ImageError, match=r"float image with values from .* scale it to"):
            read_image(Image.fromarray(np.array([[0, bad]], np.float32)))


def test_cmyk_becomes_rgb(rgb):
    cmyk = encoded(rgb.convert("CMYK"), "JPEG", quality=95)
    assert abs(array(cmyk).astype(float) - np.asarray(rgb)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(rgb, tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    rgb.save(path, exif=exif)
    got = read_image(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(got), np.asarray(ImageOps.exif_transpose(image)))
    assert image_size(path) == got.size == ((87, 131) if orientation >= 5 else (131, 87))


def test_first_frame_of_an_animation(rgb):
    other = Image.new("RGB", rgb.size, (255, 0, 0))
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encoded(rgb, kind, save_all=True, append_images=[other], **options)
        np.testing.assert_array_equal(array(data), array(encoded(rgb, kind, **options)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_name_their_path(rgb, tmp_path, kind, share):
    data = encoded(rgb, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=rf"cut\.{kind.lower()}"):
        read_image(path)


def test_empty_missing_foreign_and_folder(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(ImageError, match=r"empty\.png': the file is empty"):
        read_image(empty)
    with pytest.raises(ImageError, match="the data is empty"):
        read_image(b"")
    with pytest.raises(ImageError, match=r"text\.png': it is not an image in a known format"):
        read_image(text)
    with pytest.raises(ImageError, match=r"missing\.png': there is no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match=r"is a folder.*robustsim embed"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="9 bytes starting with b'not a pi'"):
        read_image(b"not a pic")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_decompression_bomb(tmp_path):
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    path = tmp_path / "bomb.png"
    path.write_bytes(png)
    with pytest.raises(ImageError, match=r"bomb\.png.*decompression bomb.*MAX_IMAGE_PIXELS"):
        read_image(path)


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "http://x/y.jpg", "s3://bucket/key", "data:image/png;base64,xx"]
)
def test_urls_are_refused_with_a_hint(url):
    with pytest.raises(ImageError, match=r"is a URL.*fetch it yourself"):
        read_image(url)


def test_lists_mix_everything_and_keep_the_order(rgb, photo):
    tensor = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    black, white = torch.zeros(2, 3, 40, 50), np.ones((20, 30, 3), np.float32)
    got = load([black, rgb, white, [tensor, photo]])
    assert got.shape == (6, 3, 32, 32)
    assert got[:2].max() == 0
    assert got[3].min() > 1 - 1e-6
    assert torch.equal(got[2], got[5])
    assert (got[2] - got[4]).abs().mean() < 2e-3
    assert count_images(split_images([black, rgb])) == 3


def test_arrays():
    grey = np.full((10, 12), 51, np.uint8)
    assert torch.allclose(load(grey), torch.tensor(0.2))
    assert torch.allclose(load(grey[..., None]), torch.tensor(0.2))
    assert torch.allclose(load(grey.astype(np.float64) / 255), torch.tensor(0.2))
    assert load(np.zeros((5, 8, 9, 3), np.uint8)).shape == (5, 3, 32, 32)
    clear = np.zeros((4, 4, 4), np.uint8)
    assert load(clear).min() == 1
    with pytest.raises(InputError, match="composite it first"):
        load(clear.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8])
def test_tensor_types(dtype):
    value = 255 if dtype == torch.uint8 else 1
    got = load(torch.full((3, 32, 32), value, dtype=dtype))
    assert got.dtype == torch.float32
    assert got.min() == got.max() == 1


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.rand(3, 8, 8) * 2 - 1, r"values from -0\.\d+ to 0\.\d+, outside \[0, 1\]: pass input_range=\(-1, 1\)"),
        (torch.rand(3, 8, 8) * 255, r"pass input_range=\(0, 255\), or uint8"),
        (torch.full((3, 8, 8), 1e6), r"scale them to \[0, 1\]"),
        (torch.full((3, 8, 8), 1.002), "outside"),
        (torch.full((3, 8, 8), float("nan")), "contain NaN"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "torch.int64 have no agreed range"),
        (torch.zeros(8, 8, 3), r"shape \(8, 8, 3\) is not an image.*permute\(2, 0, 1\)"),
        (torch.zeros(2, 8, 8, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 8, 8), "for grey images use tensor.expand"),
        (torch.zeros(3, 0, 8), "holds no pixels"),
        (torch.zeros(0, 3, 8, 8), "holds no pixels"),
        (np.zeros((3, 8, 9), np.uint8), r"array.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 3), np.uint16), "uint16 have no agreed range"),
        ([], "empty list of images"),
        (42, "int is not an image: an image is a path"),
        (None, "NoneType is not an image"),
    ],
)
def test_input_errors_say_what_was_seen_and_what_to_do(tensor, message):
    with pytest.raises(InputError, match=message):
        load(tensor)


def test_a_hair_outside_the_range_is_clamped():
    got = load(torch.tensor([-0.0009, 1.0009]).repeat(3, 32, 16))
    assert got.min() == 0
    assert got.max() == 1


def test_input_range():
    x = torch.linspace(-1, 1, 32).repeat(3, 32, 1)
    torch.testing.assert_close(load(x, input_range=(-1, 1)), (x[None] + 1) / 2)
    with pytest.raises(InputError, match=r"values from -1 to 1, outside \[0, 2\]"):
        load(x, input_range=(0, 2))
    with pytest.raises(InputError, match="low < high"):
        load(x, input_range=(1, 1))


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_tensor_path_is_near_the_file_path(photo, mode, interpolation):
    for size in (64, 200):
        for source in (photo, photo[:, :60]):
            pre = Preprocessing(size=size, mode=mode, interpolation=interpolation, fill=77 * (mode == "longest"))
            by_file = load(source, pre)
            tensor = torch.from_numpy(source.copy()).permute(2, 0, 1).float() / 255
            assert (by_file - load(tensor, pre)).abs().mean() < 2e-3


def test_nothing_is_copied_where_nothing_changes():
    x = torch.rand(2, 3, 32, 32)
    assert load(x).data_ptr() == x.data_ptr()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["squash", "shortest", "longest"]), st.integers(1, 40))
def test_every_size_becomes_the_square(width, height, mode, size):
    pre = Preprocessing(size=size, mode=mode)
    assert pre.apply(Image.new("RGB", (width, height))).size == (size, size)
    assert pre.apply_tensor(torch.zeros(1, 3, height, width)).shape == (1, 3, size, size)
    left, top, right, bottom = pre.seen(width, height)
    assert -1e-6 <= left < right <= width + 1e-6
    assert -1e-6 <= top < bottom <= height + 1e-6
    if mode != "shortest":
        assert (left, top, right, bottom) == (0, 0, width, height)


def test_where_the_square_lies():
    """It is what is seen, and reaches beyond a picture that is padded."""
    for mode, resize in (("squash", None), ("squash", 48), ("shortest", None), ("shortest", 48)):
        pre = Preprocessing(size=32, mode=mode, resize=resize)
        assert pre.square(100, 60) == pre.seen(100, 60)
    pre = Preprocessing(size=32, mode="longest")
    assert pre.square(64, 32) == (0, -16, 64, 48)
    assert pre.square(32, 64) == (-16, 0, 48, 64)
    assert pre.seen(64, 32) == (0, 0, 64, 32)
    picture = np.asarray(pre.apply(Image.new("RGB", (64, 32), "white")))
    assert np.flatnonzero(picture[:, 0, 0]).tolist() == list(range(8, 24))


def test_too_elongated_for_a_crop(tmp_path):
    path = tmp_path / "line.png"
    Image.new("RGB", (1, 4000)).save(path)
    with pytest.raises(ImageError, match=r"line\.png.*1 x 4000 pixels would become 224 x 896000.*'lite'"):
        load(path, Preprocessing(mode="shortest"))
    assert load(path, Preprocessing(mode="squash")).shape == (1, 3, 224, 224)


def test_find_images_is_sorted_and_knows_pictures(tmp_path):
    for name in ("b/z.JPG", "b/a.webp", "a.png", "c.txt", ".hidden.png", ".dir/x.png", "B.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.as_posix() for path in find_images(tmp_path)] == ["B.tiff", "a.png", "b/a.webp", "b/z.JPG"]
    with pytest.raises(ImageError, match="is not a folder"):
        next(find_images(tmp_path / "nowhere"))


def test_prefetch_keeps_the_order_and_does_not_run_away():
    started = []

    def work(item):
        started.append(item)
        return item * item

    results = prefetch(work, range(1000), workers=4, ahead=8)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(started) <= 5 + 8
    assert list(results) == [n * n for n in range(5, 1000)]


def test_prefetch_raises_at_the_items_turn():
    results = prefetch(lambda item: 1 / item, [2, 1, 0, 5], ahead=4)
    assert [next(results), next(results)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_reading_leaves_no_file_open_and_warns_of_nothing(rgb, tmp_path):
    path = tmp_path / "a.png"
    rgb.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path)
    path.rename(tmp_path / "b.png")


def test_one_lazily_opened_image_many_times(photo, tmp_path):
    """Pillow decodes at first use; two threads at once would read over each other."""
    path = tmp_path / "large.jpg"
    Image.fromarray(np.tile(photo, (12, 12, 1))).save(path)
    with Image.open(path) as image:
        got = load([image] * 8)
    assert all(torch.equal(one, got[0]) for one in got)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_from_the_head_is_that_of_the_picture(rgb, tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{kind.lower()}"
    rgb.save(path, exif=exif)
    assert image_size(path) == read_image(path).size


def test_transparent_colours_of_sixteen_bits():
    values = np.array([[0, 0x0300, 0xFFFF, 0x0012]], np.uint16)
    got = array(encoded(Image.fromarray(values), "PNG", transparency=0))[0, :, 0]
    assert got.tolist() == [255, 3, 255, 0]


@pytest.mark.parametrize("kind", ["I;16", "I;16B"])
def test_sixteen_bit_tiffs_of_either_byte_order(kind):
    values = np.array([[0x0100, 0x1234, 0xFFFF]], ">u2" if kind.endswith("B") else "<u2")
    data = encoded(Image.frombytes(kind, (3, 1), values.tobytes()), "TIFF")
    assert array(data)[0, :, 0].tolist() == [0x01, 0x12, 0xFF]


def test_a_damaged_exif_block_does_not_matter(rgb):
    data = encoded(rgb, "PNG", exif=b"garbagegarbage")
    np.testing.assert_array_equal(array(data), np.asarray(rgb))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(read_image(image)), np.asarray(rgb))


def test_oddities_are_image_errors(tmp_path):
    from pathlib import Path

    with pytest.raises(ImageError, match="it has 0 x 5 pixels"):
        load(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b.png")
    with pytest.raises(ImageError, match="is a URL"):
        read_image(Path("https://example.org/a.png"))
    with pytest.raises(InputError, match="holds no pixels"):
        load(torch.zeros(3, 4, 4).to_sparse())
    with pytest.raises(InputError, match="holds no pixels"):
        load(torch.zeros(3, 4, 4, device="meta"))
    for wrong in (None, (0, 1, 2), 1):
        with pytest.raises(InputError, match="input_range must be"):
            load(torch.zeros(3, 4, 4), input_range=wrong)
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert [path.name for path in find_images(tmp_path)] == ["loop.png"]
    with pytest.raises(ImageError, match=r"loop\.png"):
        read_image(tmp_path / "loop.png")


def test_read_only_arrays():
    values = np.full((8, 8, 3), 0.25, np.float32)
    values.setflags(write=False)
    assert torch.allclose(load(values), torch.tensor(0.25))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resized_tensors_stay_in_range(interpolation):
    edges = (torch.arange(90) // 7 % 2).float().expand(1, 3, 70, 90)
    for size in (40, 200):
        got = Preprocessing(size=size, interpolation=interpolation).apply_tensor(edges)
        assert got.min() >= 0
        assert got.max() <= 1


@pytest.mark.parametrize("size", [32, 50])  # as it is, and resized
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_pixels_have_gradients(size, value):
    x = torch.full((1, 3, size, size), value, requires_grad=True)
    load(x).sum().backward()
    assert (x.grad > 0).all()
    y = torch.full((1, 3, size, size), value + (2e-4 if value else -2e-4), requires_grad=True)
    load(y).sum().backward()
    assert (y.grad > 0).all()


def test_clip_is_clamp_with_open_bounds():
    from robustsim.images.preprocessing import clip

    x = torch.tensor([-0.5, -1e-4, 0.0, 0.3, 1.0, 1.0001, 1.5], requires_grad=True)
    assert torch.equal(clip(x), x.clamp(0, 1))
    clip(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_a_squash_that_crops_after_all():
    """timm's crop_mode "squash" with a crop_pct below 1."""
    import torchvision.transforms as T

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (91, 57, 3), dtype=np.uint8))
    pre = Preprocessing(size=32, mode="squash", resize=40)
    expected = T.CenterCrop(32)(T.Resize((40, 40), interpolation=T.InterpolationMode.BICUBIC)(image))
    np.testing.assert_array_equal(np.asarray(pre.apply(image)), np.asarray(expected))
    assert pre.apply_tensor(torch.zeros(1, 3, 91, 57)).shape == (1, 3, 32, 32)
    assert pre.seen(40, 40) == (4, 4, 36, 36)


def test_the_callers_image_is_left_untouched():
    image = Image.new("RGB", (2, 1), (0x12, 0x12, 0x12))
    image.putpixel((1, 0), (0, 0, 0))
    image.info["transparency"] = (0x1200, 0x1200, 0x1200)  # as Pillow reports it of a 16-bit PNG
    assert np.asarray(read_image(image))[0, :, 0].tolist() == [255, 0]
    assert image.info["transparency"] == (0x1200, 0x1200, 0x1200)


@pytest.mark.parametrize("colour", [(0x12, 0x34, 0xFF), (0x1234, 0x5678, 0x9ABC), (0, 0, 200)])
def test_transparent_colours_of_sixteen_bit_rgb(colour):
    """The colour that is meant is white, and none that only has its number of bits in common with it."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    other = tuple((part << 8) & 0xFFFF for part in colour)
    row = b"\0" + b"".join(struct.pack(">3H", *one) for one in (colour, other, (0x8000, 0x4000, 0x2000)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 3, 1, 16, 2, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">3H", *colour)) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    got = np.asarray(read_image(data))[0]
    assert got[0].tolist() == [255, 255, 255]
    assert got[1].tolist() == [part >> 8 for part in other]
    assert got[2].tolist() == [0x80, 0x40, 0x20]
