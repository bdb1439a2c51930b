"""The fast way from a file to the square: near the exact one, the same in both engines, and not used where it is not
made for a file.
"""

import io
import os
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from robustsim import RobustSim, from_onnx
from robustsim.encoders import export_encoder
from robustsim.errors import ImageError, InputError, OutputError
from robustsim.images.arrays import read_square
from robustsim.images.fast import draft
from robustsim.images.preprocessing import Preprocessing
from robustsim.search import embed_folder

BUDGET = 2  # of the mean error of a picture, in 1/255
WAYS = [
    Preprocessing(size=64),
    Preprocessing(size=64, resize=73),
    Preprocessing(size=64, mode="shortest", resize=73, interpolation="bilinear"),
    Preprocessing(size=60, mode="shortest"),
    Preprocessing(size=64, mode="longest", fill=127),
    Preprocessing(size=61, mode="longest", interpolation="bilinear"),
]


@lru_cache
def photograph(width, height, seed=0):
    """Smooth, with edges, and texture whose strength falls with its frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells, strength in ((3, 80), (12, 30), (48, 12), (192, 5)):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += (np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)) / 127.5 - 1) * strength
    pixels[height // 3 :, width // 2 :] += 40
    return Image.fromarray((pixels + 110).clip(0, 255).astype(np.uint8))


def encoded(image, kind="JPEG", **options):
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def both(source, preprocessing):
    exact, fast = (read_square(source, preprocessing, way) for way in ("exact", "fast"))
    assert exact.shape == fast.shape
    assert exact.dtype == fast.dtype == np.uint8
    return exact.astype(int), fast.astype(int)


@pytest.mark.parametrize("size", [(601, 397), (40, 33), (64, 301), (703, 70)], ids=str)
@pytest.mark.parametrize("preprocessing", WAYS, ids=lambda one: f"{one.mode}-{one.resize}-{one.interpolation}")
def test_near_the_exact_pixels(preprocessing, size):
    data = encoded(photograph(*size), quality=92)
    exact, fast = both(data, preprocessing)
    error = np.abs(exact - fast)
    assert error.mean() < BUDGET
    assert error.max() <= 24
    # Neither moved nor stretched: nothing is left of the error on the average of many pixels.
    assert np.abs((exact - fast).mean((0, 1))).max() < 0.25


@pytest.mark.parametrize(("size", "decoded"), [((255, 300), 1), ((601, 397), 2), ((601, 530), 4)], ids=str)
def test_a_large_picture_is_decoded_small(size, decoded):
    with Image.open(io.BytesIO(encoded(photograph(*size)))) as image:
        drafted = draft(image, Preprocessing(size=64))
        image.load()
        assert drafted == (size, (size[0] / decoded, size[1] / decoded), (False, False))
        assert image.size == (-(-size[0] // decoded), -(-size[1] // decoded))


def test_pictures_that_lie_on_their_side_or_are_mirrored_are_as_near():
    picture, errors = photograph(401, 277), {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture, quality=95, exif=exif)
        for number, preprocessing in enumerate(WAYS[::2]):
            exact, fast = both(data, preprocessing)
            errors.setdefault(number, []).append(np.abs(exact - fast).mean())
            assert np.abs((exact - fast).mean((0, 1))).max() < 0.25
    for upright, *others in errors.values():
        assert upright > 0
        assert max(others) < 1.3 * upright + 0.05  # half a pixel aside would be several times that


def test_grey_and_progressive():
    for data in (encoded(photograph(401, 270).convert("L")), encoded(photograph(401, 270), progressive=True)):
        exact, fast = both(data, WAYS[0])
        assert 0 < np.abs(exact - fast).mean() < BUDGET


def test_what_is_not_for_it_is_exact(tmp_path):
    rgb = photograph(200, 150)
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    sixteen = Image.fromarray(np.arange(200 * 150, dtype=np.uint16).reshape(150, 200))
    others = [
        encoded(rgb, "PNG"),
        encoded(alpha, "PNG"),
        encoded(rgb.quantize(32), "PNG"),
        encoded(sixteen, "PNG"),
        encoded(rgb, "WEBP", quality=80),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgb, "TIFF", compression="jpeg"),
        encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        encoded(rgb, "MPO", save_all=True, append_images=[rgb.rotate(90)]),
        encoded(photograph(64, 64)),  # no resize: nothing to gain
        rgb,
        Image.open(io.BytesIO(encoded(rgb))),
    ]
    for source in others:
        for preprocessing in (WAYS[0], WAYS[4]):
            exact, fast = both(source, preprocessing)
            np.testing.assert_array_equal(exact, fast)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
def test_a_pipe_is_read_once(tmp_path):
    from threading import Thread

    data, pipe = encoded(photograph(300, 200)), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    found = read_square(pipe, WAYS[0], "fast")
    writer.join()
    np.testing.assert_array_equal(found, read_square(data, WAYS[0], "fast"))


def message(source, preprocessing, way):
    with pytest.raises(ImageError) as caught:
        read_square(source, preprocessing, way)
    return str(caught.value)


def test_damage_is_the_same_error(tmp_path):
    data = encoded(photograph(601, 397), quality=90)
    path = tmp_path / "cut.jpg"
    for options in ({}, {"progressive": True}):
        data = encoded(photograph(601, 397), quality=90, **options)
        for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.99):
            path.write_bytes(data[: int(len(data) * share)])
            exact, fast = (message(path, WAYS[0], way) for way in ("exact", "fast"))
            assert exact == fast
            assert "cut.jpg" in exact
    for cut in range(1, 40):  # near the end, where Pillow takes what lacks its last marker alone
        path.write_bytes(data[:-cut])
        outcomes = []
        for way in ("exact", "fast"):
            try:
                outcomes.append(read_square(path, WAYS[0], way).shape)
            except ImageError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1], cut
    long = tmp_path / "long.jpg"
    Image.new("RGB", (1, 40_000)).save(long)
    narrow = Preprocessing(size=64, mode="shortest")
    exact, fast = (message(long, narrow, way) for way in ("exact", "fast"))
    assert exact == fast
    assert "too elongated" in exact
    assert message(tmp_path / "none.jpg", narrow, "fast") == message(tmp_path / "none.jpg", narrow, "exact")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(5):
        photograph(500 + 40 * index, 480, index).save(folder / f"{index}.jpg")
    photograph(90, 80).save(folder / "a.png")
    return sorted(folder.iterdir())


def test_both_engines_have_the_same_pixels(metric, files, tmp_path):
    pytest.importorskip("onnxruntime")
    export_encoder(metric.encoder, tmp_path / "model.onnx")
    exact, torch_fast = RobustSim(metric.encoder), RobustSim(metric.encoder, decode="fast")
    onnx_fast = from_onnx(tmp_path / "model.onnx", decode="fast")
    assert (exact.decode, torch_fast.decode, onnx_fast.decode) == ("exact", "fast", "fast")
    pixels = torch_fast.preprocess(files).numpy()
    np.testing.assert_array_equal(pixels, onnx_fast.preprocess(files))
    reference = exact.preprocess(files).numpy()
    differing = (pixels != reference).any((1, 2, 3)).tolist()
    assert differing == [True] * 5 + [False]
    np.testing.assert_array_equal(reference, from_onnx(tmp_path / "model.onnx").preprocess(files))
    assert torch_fast.distance(files[0], files[0]).item() == 0
    assert exact.distance(exact.embed(files), torch_fast.embed(files)).max() < 0.1


def test_the_default_is_exact_and_other_names_are_refused(metric):
    assert RobustSim.from_pretrained(device="cpu").decode == "exact"
    assert RobustSim.from_pretrained(device="cpu", decode="fast").decode == "fast"
    for make in (lambda: RobustSim(metric.encoder, decode="quick"), lambda: RobustSim.from_pretrained(decode="quick")):
        with pytest.raises(InputError, match=r"'quick'.*'exact'.*'fast'"):
            make()


def test_a_folder_is_embedded_the_same_way(metric, files, tmp_path):
    fast = RobustSim(metric.encoder, decode="fast", batch_size=4)
    embed_folder(fast, files[0].parent, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as held:
        np.testing.assert_allclose(held["embeddings"], fast.embed(files).numpy(), atol=1e-5)
    with pytest.raises(KeyboardInterrupt):
        embed_folder(fast, files[0].parent, tmp_path / "b.npz", progress=interrupt)
    with pytest.raises(OutputError, match="another decode"):
        embed_folder(RobustSim(metric.encoder), files[0].parent, tmp_path / "b.npz")
    assert embed_folder(fast, files[0].parent, tmp_path / "b.npz").resumed > 0


def interrupt(count):
    if count:
        raise KeyboardInterrupt
