"""Models that leave torch behind: their files, the metric that runs them without torch, and the terminal's engine."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import robustsim
from robustsim import RobustSim
from robustsim.encoders import EncoderCard, export_encoder, load_card, load_encoder
from robustsim.encoders.export.files import check_sealed, describe, sealed
from robustsim.errors import (
    CorruptFileError,
    EncodingError,
    ImageError,
    InputError,
    MissingDependencyError,
    OutputError,
    WeightsError,
)
from tests.conftest import EXAMPLES

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

pytestmark = pytest.mark.usefixtures("one_thread")

CHELSEA, COFFEE, ROCKET, ASTRONAUT = (
    str(EXAMPLES / name) for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache, with the bundled model made in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def lite(cache):
    from robustsim.onnx import bundled

    return bundled("lite")


@pytest.fixture
def engines(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("ROBUSTSIM_ENGINE")
    monkeypatch.setattr("robustsim.cli.engine._has_accelerator", lambda: False)
    return monkeypatch


@pytest.fixture(scope="module")
def lite_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "lite.onnx"
    export_encoder(load_encoder("lite"), path)
    return path


def close(found, expected, most=1e-6):
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=most)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_lite_gives_the_numbers_of_torch_by_every_verb(metric, lite):
    several = [COFFEE, ROCKET, CHELSEA]
    for squared in (False, True):
        close(lite.distance(CHELSEA, several, squared=squared), metric.distance(CHELSEA, several, squared=squared))
        close(lite.distance_matrix(several, squared=squared), metric.distance_matrix(several, squared=squared))
    close(lite.similarity(several, CHELSEA), metric.similarity(several, CHELSEA))
    close(lite.embed(several), metric.embed(several))
    close(lite(CHELSEA, ROCKET), metric(CHELSEA, ROCKET))
    close(lite.two_afc(CHELSEA, several, COFFEE), metric.two_afc(CHELSEA, several, COFFEE), 0)
    assert lite.calibration == metric.calibration
    assert lite.card == metric.card


def test_lite_clean_and_another_grid_and_size_are_built_too(tmp_path):
    from dataclasses import replace

    from robustsim.encoders.card import Architecture
    from robustsim.images import Preprocessing

    clean = load_encoder("lite-clean")
    for grid, size, options in ((1, 65, {}), (3, 96, {}), (2, 64, {"head": False})):
        clean.trunk.grid = grid
        if options:
            clean.trunk.head = None
        clean.card = replace(
            load_card("lite-clean"),
            architecture=Architecture(
                library="robustsim", name="efficientnet-lite0", options={"grid": grid, **options}
            ),
            embedding_dim=grid**2 * (320 if options else 1280),
            preprocessing=Preprocessing(size=size, mode="longest", fill=90),
        )
        export_encoder(clean, tmp_path / "clean.onnx")
        close(robustsim.from_onnx(tmp_path / "clean.onnx").embed(CHELSEA), RobustSim(clean).embed(CHELSEA))


def test_identical_pictures_are_at_0_however_they_are_batched(lite, photo):
    noisy = photo.copy()
    noisy[0, 0, 0] ^= 128
    many = [noisy, photo] * 3
    for size in (1, 2, 4, 32):
        small = robustsim.onnx.bundled("lite")
        small.batch_size = size
        d = small.distance(photo, many)
        assert (d[1::2] == 0).all()
        assert (d[::2] > 0).all()
        assert (np.diag(small.distance_matrix(many)) == 0).all()
        assert (small.distance_matrix(photo, many)[0, 1::2] == 0).all()
        np.testing.assert_array_equal(small.two_afc(noisy, photo, many), [1, 0.5] * 3)
        np.testing.assert_array_equal(small.similarity(many, photo)[1::2], 1)


def kinds(photo):
    rgb = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = rgb.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(rgb.size))
    deep = (np.asarray(rgb.convert("L")).astype(np.uint16) << 8) + 77
    yield from (encoded(rgb, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))
    yield encoded(rgb, "JPEG", exif=exif)
    yield encoded(rgb.convert("CMYK"), "TIFF")
    yield encoded(rgb.convert("P"), "PNG", transparency=3)
    yield encoded(alpha, "PNG")
    yield encoded(Image.fromarray(deep), "PNG")
    yield from (rgb, rgb.convert("L"), rgb.convert("1"), rgb.convert("LAB"), alpha, photo, photo[..., 0], photo[None])
    yield from (CHELSEA, EXAMPLES / "rocket.jpg", bytearray(encoded(rgb, "PNG")))


def test_pictures_become_the_same_pixels_to_the_bit(metric, lite, photo):
    for number, image in enumerate(kinds(photo)):
        theirs, ours = metric.preprocess(image).numpy(), lite.preprocess(image)
        assert ours.dtype == np.float32
        assert np.array_equal(theirs, ours), number


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_float_arrays_and_tensors_take_the_path_of_tensors(mode, interpolation):
    from robustsim.images import Preprocessing, split_images, stream_pixels
    from robustsim.images.arrays import stream_arrays
    from robustsim.onnx import _split

    preprocessing = Preprocessing(size=32, mode=mode, interpolation=interpolation, fill=60)
    draw = np.random.default_rng(0)
    for shape in ((32, 32), (50, 41), (20, 31), (3, 9), (70, 4)):
        array = draw.random((*shape, 3)).astype(np.float32)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        batch = torch.stack([tensor, tensor.flip(2)])
        for image in (array, array[..., 0], array.astype(np.float64), tensor, batch, (batch * 255).to(torch.uint8)):
            theirs = next(stream_pixels(split_images(image), preprocessing, device=torch.device("cpu")))
            close(next(stream_arrays(_split(image), preprocessing)), theirs, 2e-6)
    signed = 2 * array - 1
    (theirs,) = stream_pixels(split_images(signed), preprocessing, device=torch.device("cpu"), input_range=(-1, 1))
    close(next(stream_arrays(_split(signed), preprocessing, input_range=(-1, 1))), theirs, 2e-6)


def test_embeddings_stand_in_for_images(metric, lite, tmp_path):
    z = lite.embed([CHELSEA, COFFEE])
    np.save(tmp_path / "z.npy", z)
    expected = metric.distance([CHELSEA, COFFEE], ROCKET)
    close(lite.distance(np.load(tmp_path / "z.npy"), ROCKET), expected)
    close(lite.distance(torch.from_numpy(z), ROCKET), expected)
    close(lite.distance(z[0].astype(np.float64), ROCKET), expected[:1])
    assert lite.distance(z[0], z[0]) == 0
    with pytest.raises(InputError, match="of length 1"):
        lite.distance(torch.from_numpy(2 * z), ROCKET)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (np.full((5, 5, 3), 200.0), InputError, r"values from 200 to 200.*input_range=\(0, 255\)"),
        (np.full((5, 5, 3), np.nan), InputError, "contain NaN"),
        (np.zeros((5, 5, 3), dtype=np.int64), InputError, "no agreed range"),
        (np.zeros((3, 5, 5)), InputError, "channels are first"),
        (torch.zeros(5, 5, 3), InputError, r"tensors are \(3, H, W\)"),
        (torch.zeros(3, 5, 5, dtype=torch.int32), InputError, "no agreed range"),
        (torch.zeros(3, 5, 5, requires_grad=True), InputError, "requires a gradient.*detach"),
        ([], InputError, "empty list"),
        (3, InputError, "int is not an image"),
        ("nowhere.png", ImageError, "no such file"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused_in_the_words_of_the_metric(lite, images, error, words):
    with pytest.raises(error, match=words):
        lite.distance(images, CHELSEA)


def test_wrong_calls_are_refused(lite):
    with pytest.raises(InputError, match="2 images against 3"):
        lite.distance([CHELSEA] * 2, [CHELSEA] * 3)
    with pytest.raises(InputError, match="input_range must be"):
        lite.distance(CHELSEA, CHELSEA, input_range=(1, 0))
    with pytest.raises(InputError, match="batch_size"):
        robustsim.onnx.OnnxMetric(b"", batch_size=0)


def test_a_file_says_what_it_is(lite_file, lite):
    import onnx

    model = onnx.load(lite_file)
    onnx.checker.check_model(model)
    said = {one.key: one.value for one in model.metadata_props}
    card = load_card("lite")
    assert EncoderCard.from_json(said["card"]) == card
    assert json.loads(said["preprocessing"])["size"] == 224
    assert said["weights_sha256"] == card.weights_sha256
    assert said["weights"] == card.calibration.weights
    assert said["robustsim_version"] == robustsim.__version__
    assert said["robustsim_format_version"] == "1"
    # What the exporter writes of an encoder in torch is what is made of the weights file alone.
    assert lite_file.read_bytes() == next((lite_cache()).glob("lite-*.onnx")).read_bytes()
    read = RobustSim.from_onnx(lite_file)
    assert isinstance(read, robustsim.onnx.OnnxMetric)
    assert read.exported == lite.exported


def lite_cache():
    from pathlib import Path

    return Path(os.environ["XDG_CACHE_HOME"]) / "robustsim" / "onnx"


def test_damage_and_other_files_are_refused_by_name(lite_file, tmp_path):
    path = tmp_path / "other.onnx"
    data = lite_file.read_bytes()
    for place in (100, len(data) // 2, len(data) - 300, len(data) - 10):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CorruptFileError, match=r"other\.onnx.*damaged"):
            robustsim.from_onnx(path)
    for size in (0, 50, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(WeightsError, match=r"other\.onnx"):
            robustsim.from_onnx(path)
    path.write_bytes(data + b"x")
    with pytest.raises(CorruptFileError, match=r"other\.onnx.*changed after its export"):
        robustsim.from_onnx(path)
    with pytest.raises(WeightsError, match=r"chelsea\.png' is no file of `robustsim export`"):
        robustsim.from_onnx(CHELSEA)
    with pytest.raises(WeightsError, match="cannot read"):
        robustsim.from_onnx(tmp_path)


def changed(path, **metadata):
    """A whole file of ours with other metadata."""
    import onnx
    from onnx import helper

    model = onnx.load(path)
    said = {one.key: one.value for one in model.metadata_props if one.key != "robustsim_checksum"}
    del model.metadata_props[:]
    helper.set_model_props(model, {key: value for key, value in {**said, **metadata}.items() if value is not None})
    return sealed(model.SerializeToString())


def test_a_file_that_contradicts_its_card_is_refused(lite_file, tmp_path):
    path = tmp_path / "other.onnx"
    clean = load_card("lite-clean").to_json()
    wrong_size = json.dumps({**json.loads(clean), "preprocessing": {"size": 96, "mode": "squash"}})
    for metadata, words in (
        ({"card": clean}, "made from other weights than its card 'lite-clean' says"),
        ({"weights": "0" * 64}, "made from other weights"),
        ({"weights_sha256": "0" * 64}, "made from other weights"),
        ({"card": wrong_size, **clean_sums()}, "one preprocessing"),
        ({"robustsim_format_version": "2"}, "export format '2'"),
        ({"robustsim_format_version": None}, "export format None"),
        ({"weights": None}, "lacks what an export says"),
        ({"preprocessing": "{"}, "lacks what an export says"),
    ):
        path.write_bytes(changed(lite_file, **metadata))
        with pytest.raises(WeightsError, match=rf"other\.onnx.*{words}"):
            robustsim.from_onnx(path)


def clean_sums():
    said = describe(load_card("lite-clean"), load_card("lite-clean").calibration.weights)
    return {"weights": said.weights, "weights_sha256": said.weights_sha256}


def test_the_cache_is_made_anew_if_it_is_damaged(tmp_path, monkeypatch):
    from robustsim.encoders.export.making import bundled_model, cached_path

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cached_path(load_card("lite"))
    made = bundled_model("lite")
    assert path.read_bytes() == made
    path.write_bytes(made[:5000])
    assert bundled_model("lite") == made == path.read_bytes()
    assert check_sealed(made, "it") == made
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # where nothing can be written
    assert bundled_model("lite") == made
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"made with onnx.*robustsim\[fast\]"):
        bundled_model("lite")


def test_the_cache_is_made_anew_if_it_holds_something_else(tmp_path, monkeypatch):
    """Another model, another format, or no graph at all, each with a checksum that is right."""
    from robustsim.encoders.export.making import bundled_model, cached_path
    from robustsim.onnx import bundled

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, made = cached_path(load_card("lite")), bundled_model("lite")
    older = changed(path, robustsim_format_version="0")
    for other in (bundled_model("lite-clean"), older, sealed(b"no graph")):
        path.write_bytes(other)
        assert bundled("lite").card.name == "lite"
        assert path.read_bytes() == made


def test_without_a_home_nothing_is_kept(monkeypatch):
    from pathlib import Path

    from robustsim.encoders.export.making import bundled_model, cached_path

    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cached_path(load_card("lite")) is None
    assert check_sealed(bundled_model("lite"), "it")


def test_tensors_of_8_bits_have_a_range_of_their_own(lite, metric):
    a, b = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for input_range in ((0, 1), (-1, 1), (0, 255)):
        close(lite.distance(a, b, input_range=input_range), metric.distance(a, b, input_range=input_range))


# Each export by torch takes seconds: one file of each kind; timm's vision transformer comes with int8 below.
@pytest.mark.parametrize("name", ["vit", "classifier"])
def test_traced_models_give_the_numbers_of_torch_for_any_batch(published, tmp_path, name):
    pytest.importorskip("onnxscript")
    encoder = load_encoder(published[name][0])
    said = export_encoder(encoder, tmp_path / "model.onnx")
    assert said.card.name == encoder.card.name
    assert said.int8 is None
    metric, ours = RobustSim(encoder), robustsim.from_onnx(tmp_path / "model.onnx")
    for images in (CHELSEA, [CHELSEA, COFFEE, ROCKET]):
        close(ours.embed(images), metric.embed(images))
    close(ours.distance(CHELSEA, [COFFEE, ROCKET]), metric.distance(CHELSEA, [COFFEE, ROCKET]))
    assert (tmp_path / "model.onnx").stat().st_size < 1.1 * sum(4 * one.numel() for one in encoder.parameters()) + 2e5


def test_int8_tells_what_it_costs(published, run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("robustsim.encoders.export.write._MOST_ERROR", 1e-6)  # of float32, on the way to 8 bits
    folder = published["dino"][0]
    code, _, err = run("export", folder, "--int8", "-o", tmp_path / "small.onnx")
    assert code == 0
    metric, ours = RobustSim.from_pretrained(folder, device="cpu"), robustsim.from_onnx(tmp_path / "small.onnx")
    told = ours.exported.int8
    assert (
        f"by up to {told['embedding_error']:g}, and distances between them by up to {told['distance_error']:g}" in err
    )
    assert 0 < told["distance_error"] <= 2 * told["embedding_error"] < 0.1
    from robustsim.encoders.export.write import pictures

    pixels = pictures(8, 64)
    off = np.linalg.norm(ours.embed_pixels(pixels.numpy()) - metric.embed_pixels(pixels).numpy(), axis=1) * 0.5**0.5
    assert off.max() == pytest.approx(told["embedding_error"], abs=1e-5)
    d = ours.distance(CHELSEA, [COFFEE, ROCKET]) - metric.distance(CHELSEA, [COFFEE, ROCKET]).numpy()
    assert np.abs(d).max() < 0.05
    kinds = {tensor.data_type for tensor in __import__("onnx").load(tmp_path / "small.onnx").graph.initializer}
    assert 3 in kinds  # int8


def test_convolutions_are_not_quantised(run, tmp_path):
    code, _, err = run("export", "lite", "--int8", "-o", tmp_path / "small.onnx")
    assert code == 1
    assert "convolutions" in err
    assert not list(tmp_path.iterdir())


def test_a_program_of_torch_export(published, run, tmp_path):
    folder, path = published["dino"][0], tmp_path / "model.pt2"
    assert run("export", folder, "--format", "torch-export", "-o", path)[0] == 0
    extra = {"robustsim.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    metric = RobustSim.from_pretrained(folder, device="cpu")
    for count in (1, 3):
        pixels = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
        torch.testing.assert_close(program(pixels), metric.embed_pixels(pixels), rtol=0, atol=1e-6)
    said = json.loads(extra["robustsim.json"])
    assert EncoderCard.from_json(said["card"]).embedding_dim == metric.card.embedding_dim
    assert said["robustsim_version"] == robustsim.__version__


def test_exports_that_cannot_be_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    encoder = load_encoder("lite")
    for options, words in (({"form": "tflite"}, "none of onnx"), ({"form": "torch-export", "int8": True}, "int8 goes")):
        with pytest.raises(InputError, match=words):
            export_encoder(encoder, tmp_path / "x", **options)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        export_encoder(encoder, tmp_path / "file" / "x.onnx")
    with pytest.raises(InputError, match=r"bfloat16.*device='cpu'"):
        export_encoder(load_encoder("lite").to(torch.bfloat16), tmp_path / "x")
    # A runtime that computes something else is found out before anything is written.
    monkeypatch.setattr("robustsim.encoders.export.write._MOST_ERROR", -1)
    with pytest.raises(EncodingError, match="other embeddings"):
        export_encoder(encoder, tmp_path / "x")
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(MissingDependencyError, match=rf"needs {name}, .*robustsim\[fast\]"):
                export_encoder(encoder, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_changed_weights_lose_the_calibration_of_others(tmp_path):
    encoder = load_encoder("lite")
    with torch.no_grad():
        encoder.trunk.stem.bias.add_(0.1)
    said = export_encoder(encoder, tmp_path / "x.onnx")
    assert said.card.calibration is None
    assert said.weights_sha256 is None
    assert robustsim.from_onnx(tmp_path / "x.onnx").exported == said


HEAVY = {"torch", "torchvision", "timm", "open_clip", "huggingface_hub", "safetensors", "onnx", "rich.table"}


def in_a_new_process(cache, prelude, *commands):
    """What commands print, one after the other in one process, and the modules that are loaded at its end."""
    code = (
        f"import sys, robustsim\n{prelude}\nfrom robustsim.cli import main\n"
        f"for words in {[list(map(str, words)) for words in commands]!r}:\n"
        "    sys.argv = ['robustsim', *words]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, (words, stop.code)\n"
        "    print('--')\n"
        "print(*sys.modules)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "ROBUSTSIM_ENGINE": "onnx"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    *printed, modules = done.stdout.split("--\n")
    return printed, set(modules.split())


def test_compare_and_from_onnx_import_no_torch(cache, lite, lite_file):
    first = f"robustsim.from_onnx({str(lite_file)!r}).distance({CHELSEA!r}, {COFFEE!r})"
    (printed,), modules = in_a_new_process(cache, first, ("compare", "--csv", CHELSEA, COFFEE))
    _, pair = printed.splitlines()
    assert float(pair.split(",")[2]) == pytest.approx(float(lite.distance(CHELSEA, COFFEE)[0]), abs=1e-6)
    assert not HEAVY & modules


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, path in (("a.png", CHELSEA), ("b.png", COFFEE), ("c.jpg", ROCKET)):
        (folder / name).symlink_to(path)
    (folder / "d.png").write_bytes(b"no picture")
    return folder


def test_matrix_and_embed_import_no_torch(cache, lite_file, metric, photos, tmp_path):
    files = [tmp_path / f"out{suffix}" for suffix in (".npz", ".parquet", ".safetensors")]
    (as_csv, as_json, from_file, *_), modules = in_a_new_process(
        cache,
        "",
        ("matrix", photos, "--csv"),
        ("matrix", photos, "--json", "--squared"),
        ("matrix", photos, "--csv", "--model", lite_file),
        *(("embed", photos, "-o", path) for path in files),
    )
    assert not HEAVY & modules
    expected = metric.embed([CHELSEA, COFFEE, ROCKET])
    distances = metric.distance_matrix(expected)
    for printed in (as_csv, from_file):
        found = [[float(cell) for cell in row[1:]] for row in list(csv.reader(io.StringIO(printed)))[1:]]
        close(np.array(found, np.float32), distances)
    close(np.array(json.loads(as_json)["distances"], np.float32), distances.square())
    kept = np.load(files[0])
    assert kept["files"].tolist() == ["a.png", "b.png", "c.jpg"]
    close(kept["embeddings"], expected)

    from pyarrow.parquet import read_table
    from safetensors.numpy import load_file

    close(load_file(files[2])["embeddings"], expected)
    close(np.stack(read_table(files[1])["embedding"].to_numpy()).astype(np.float32), expected)


class _StopError(Exception):
    pass


def test_embed_is_continued_under_another_engine_unless_it_computes_otherwise(lite, metric, photos, tmp_path):
    from copy import copy
    from dataclasses import replace

    from robustsim.search import embed_folder, embed_images

    def stop(count):
        if count:
            raise _StopError

    in_8_bits = copy(lite)
    in_8_bits.exported = replace(lite.exported, int8={"pictures": 8})
    out = tmp_path / "out.npz"
    for first, second in ((lite, metric), (metric, lite)):
        with pytest.raises(_StopError):
            embed_folder(first, photos, out, progress=stop)
        with pytest.raises(OutputError, match="another folder or model"):
            embed_folder(in_8_bits, photos, out)
        report = embed_folder(second, photos, out, overwrite=True)
        assert (report.embedded, report.resumed) == (3, 1)
        close(np.load(out)["embeddings"], metric.embed([CHELSEA, COFFEE, ROCKET]))
        out.unlink()
    (_, array), *_, (_, error) = embed_images(lite, photos)
    close(array[None], metric.embed(CHELSEA))
    assert isinstance(error, ImageError)


def numbers(run, *words):
    code, out, _ = run(*words, "--csv")
    assert code == 0
    return [[float(cell) for cell in row if cell[:1].isdigit()] for row in list(csv.reader(io.StringIO(out)))[1:]]


@pytest.fixture
def calls(engines):
    """How many pictures ONNX Runtime has embedded at each call."""
    from robustsim.onnx import OnnxMetric

    seen = []
    original = OnnxMetric.embed_pixels
    engines.setattr(OnnxMetric, "embed_pixels", lambda self, pixels: seen.append(len(pixels)) or original(self, pixels))
    return seen


def test_commands_give_the_same_numbers_by_both_engines(run, calls, photos, tmp_path):
    for words in (("compare", CHELSEA, COFFEE, CHELSEA), ("compare", CHELSEA, photos), ("matrix", photos)):
        theirs = numbers(run, *words, "--engine", "torch")
        assert not calls
        np.testing.assert_allclose(numbers(run, *words), theirs, rtol=0, atol=1e-6)
        assert calls
        calls.clear()
    for engine in ("torch", "onnx"):
        assert run("embed", photos, "-o", tmp_path / f"{engine}.npz", "--engine", engine)[0] == 0
        assert bool(calls) == (engine == "onnx")
    theirs, ours = (np.load(tmp_path / f"{engine}.npz")["embeddings"] for engine in ("torch", "onnx"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_an_index_gives_the_same_neighbours_by_both_engines_and_is_continued_by_either(run, calls, photos, tmp_path):
    pytest.importorskip("lance")
    with Image.open(CHELSEA) as image:
        image.resize((200, 133)).save(photos / "e.png")
        image.crop((30, 20, 400, 280)).save(photos / "f.jpg", quality=40)
    found = {}
    for first, second in (("torch", "onnx"), ("onnx", "torch")):
        index, moved = tmp_path / first, photos / "b.png"
        aside = moved.rename(tmp_path / "b.png")
        for engine, added in ((first, 4), (second, 1)):
            code, _, err = run("index", index, photos, "--engine", engine)
            assert code == 0
            assert f"{added} added" in err
            assert bool(calls) == (engine == "onnx")
            calls.clear()
            if not moved.exists():
                aside.rename(moved)
        for engine in ("torch", "onnx"):
            code, out, _ = run("search", index, CHELSEA, ROCKET, "-k", 5, "--json", "--engine", engine)
            assert code == 0
            hits = [hit for query in json.loads(out)["queries"] for hit in query["hits"]]
            found[first, engine] = [hit["path"] for hit in hits], [hit["distance"] for hit in hits]
            assert bool(calls) == (engine == "onnx")
            calls.clear()
    paths, distances = found["torch", "torch"]
    assert len(paths) == 10
    for other_paths, other_distances in found.values():
        assert other_paths == paths
        np.testing.assert_allclose(other_distances, distances, rtol=0, atol=1e-6)
    code, _, err = run("index", tmp_path / "new", photos, "--model", "dino-vit-b-16", "--engine", "onnx")
    assert code == 1
    assert "is not bundled" in err


def test_the_engine_is_chosen_by_what_is_there_and_what_is_said(engines, lite_file, run, tmp_path):
    from robustsim.cli.engine import choose_engine

    assert choose_engine("lite", None, None)[0] == "onnx"
    assert choose_engine(str(lite_file), None, None) == ("onnx", "the model is a file of ONNX")
    for words, named in (
        (("compare", CHELSEA, COFFEE, "--engine", "torch"), "--engine torch"),
        (("index", tmp_path / "index", EXAMPLES), "an index"),
    ):
        code, _, err = run(*words, "--model", lite_file)
        assert code == 1
        assert "is a file of ONNX, and" in err
        assert named in err
    for model, device, torch_for, words in (
        ("clip-vit-b-32", None, None, "not bundled"),
        ("lite", "cuda", None, "runs on the CPU"),
        ("lite", None, "--map", "--map needs torch"),
    ):
        engine, why = choose_engine(model, device, None, torch_for=torch_for)
        assert engine == "torch"
        assert words in why
        with pytest.raises(InputError, match=words):
            choose_engine(model, device, "onnx", torch_for=torch_for)
    assert json.loads(run("info", "--json")[1])["engine"].startswith("onnx because")
    assert run("compare", CHELSEA, COFFEE, "--map", tmp_path / "map.png")[0] == 0
    code, out, _ = run("compare", "--model", lite_file, CHELSEA, COFFEE, "--json")
    assert code == 0
    assert json.loads(out)["model"] == "lite"
    with engines.context() as patch:
        patch.setattr("robustsim.cli.engine._has_accelerator", lambda: True)
        assert choose_engine("lite", None, None) == ("torch", "an accelerator is seen")
        assert choose_engine("lite", "cpu", None)[0] == choose_engine("lite", None, "onnx")[0] == "onnx"
    with engines.context() as patch:
        patch.setattr("robustsim.cli.engine.find_spec", lambda name: None)
        engine, why = choose_engine("lite", None, None)
        assert engine == "torch"
        assert "onnxruntime is not installed" in why
    with engines.context() as patch:  # there, and broken
        patch.setitem(sys.modules, "onnxruntime", None)
        assert run("compare", CHELSEA, COFFEE)[0] == 0
        code, _, err = run("compare", CHELSEA, COFFEE, "--engine", "onnx")
        assert code == 1
        assert "robustsim[fast]" in err
        (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('built for another NumPy')")
        patch.delitem(sys.modules, "onnxruntime")
        patch.syspath_prepend(tmp_path)
        told = "torch because onnxruntime is installed and cannot be imported (built for another NumPy)"
        assert json.loads(run("info", "--json")[1])["engine"] == told
    engines.setenv("ROBUSTSIM_ENGINE", "torch")
    assert choose_engine("lite", None, None) == ("torch", "ROBUSTSIM_ENGINE says so")
    assert choose_engine("lite", None, "onnx")[0] == "onnx"
    engines.setenv("ROBUSTSIM_ENGINE", "tpu")
    with pytest.raises(InputError, match="'tpu'"):
        choose_engine("lite", None, None)
