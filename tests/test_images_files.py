"""Folders and pipes: what counts as a picture, what is passed over and said to be, and what leads in circles."""

import io
import os
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from robustsim.errors import ImageError
from robustsim.images import decode as decode_module
from robustsim.images import find_images, picture_suffixes, read_image, tell_passed_over
from robustsim.images.decode import image_size, read_stream
from robustsim.images.files import what_is_there

Image.init()
EXTENSIONS = Image.registered_extensions()
# What Pillow recognises by name and cannot decode without other programs.
NO_PICTURES = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "PDF", "PALM"}
SAVED = sorted(suffix for suffix, kind in EXTENSIONS.items() if kind in Image.SAVE and kind not in NO_PICTURES)

needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")


def names(walk):
    return [path.as_posix() for path in walk]


def touch(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def save_as(path, kind):
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        picture = Image.new("L", (64, 64), 200).convert(mode)
        try:
            picture.save(path, kind)
        except (OSError, ValueError, KeyError):
            path.unlink(missing_ok=True)
        else:
            return
    pytest.skip(f"this Pillow cannot write {kind}")


# -- what counts


@pytest.mark.filterwarnings("ignore:.*image format is deprecated:DeprecationWarning")
@pytest.mark.parametrize("suffix", SAVED)
def test_a_file_of_each_format_that_pillow_writes_is_found_and_read(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    save_as(path, EXTENSIONS[suffix])
    walk = find_images(tmp_path)
    assert names(walk) == [path.name]
    assert not walk.passed_over
    image = read_image(path)
    assert image.mode == "RGB"
    assert image_size(path) == image.size  # which the head alone has told
    assert abs(np.asarray(image).astype(int) - 200).max() <= 60 or EXTENSIONS[suffix] in ("XBM", "MSP")  # 1 bit


def test_no_format_that_can_be_opened_is_forgotten():
    opened = {suffix for suffix, kind in EXTENSIONS.items() if kind in Image.OPEN and kind not in NO_PICTURES}
    assert opened | {".mpo"} == picture_suffixes()
    often = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2"}
    assert often | {".ppm", ".pgm", ".tga", ".ico", ".psd", ".mpo"} <= picture_suffixes()


@pytest.mark.parametrize("suffix", [".eps", ".wmf", ".mpg", ".h5", ".grib", ".bufr", ".pdf", ".txt", ".mp4"])
def test_what_pillow_cannot_decode_by_itself_is_counted(tmp_path, suffix):
    touch(tmp_path, f"a{suffix}", f"b/B{suffix.upper()}", "c.png")
    walk = find_images(tmp_path)
    assert names(walk) == ["c.png"]
    assert walk.passed_over == {suffix: 2}


def test_a_plugin_counts_from_when_it_is_registered(tmp_path, monkeypatch):
    """As pillow-heif's does, for .heic."""
    for registry in (Image.OPEN, Image.EXTENSION):
        for key, value in list(registry.items()):
            monkeypatch.setitem(registry, key, value)
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    touch(tmp_path, "a.heic")
    walk = find_images(tmp_path)
    assert names(walk) == []
    assert walk.passed_over == {".heic": 1}
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, None))
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert names(find_images(tmp_path)) == ["a.heic"]


# -- what is passed over


def test_everything_that_is_left_out_is_counted_by_kind(tmp_path):
    touch(tmp_path, "a.png", "b.txt", "c/d.TXT", "c/README", ".hidden.png", ".DS_Store", ".cache/x.png", "e.tar.gz")
    (tmp_path / "linked").symlink_to(tmp_path / "c")
    walk = find_images(tmp_path)
    assert names(walk) == ["a.png"]
    assert walk.passed_over == {
        ".txt": 2, "file without a suffix": 1, "hidden picture": 1, "hidden folder": 1, ".gz": 1, "linked folder": 1,
    }  # fmt: skip


@needs_fifo
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_skipped_and_counted(tmp_path, monkeypatch):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to(os.devnull)
    monkeypatch.chdir(tmp_path)  # the names of sockets must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        walk = find_images(tmp_path)
        assert names(walk) == ["a.png"]
    assert walk.passed_over == {"pipe": 2, "device": 1, "socket": 1}


def test_names_that_end_in_numbers_do_not_fill_the_memory(tmp_path):
    touch(tmp_path, *(f"frame.{number}" for number in range(500)), "a.png")
    walk = find_images(tmp_path)
    assert names(walk) == ["a.png"]
    assert len(walk.passed_over) <= 201
    assert walk.passed_over.total() == 500


def test_what_was_passed_over_in_words():
    assert tell_passed_over({}) == ""
    assert tell_passed_over({".txt": 3, "file without a suffix": 2, "pipe": 1, "hidden folder": 2}) == (
        "passed over: 3 .txt, 2 files without a suffix, 2 hidden folders, 1 pipe"
    )
    assert tell_passed_over({"linked folder": 2, "folder walked already": 3}) == (
        "passed over: 3 folders walked already, 2 linked folders (follow_links, --follow-links, walks them)"
    )
    many = {f".{letter}": 2 for letter in "abcdefghijk"}
    assert tell_passed_over(many).endswith(".h, 6 of 3 more kinds")
    assert what_is_there({}) == "it holds no files (hidden ones aside)"
    assert what_is_there({".txt": 1}, unreadable=2) == "2 could not be read; passed over: 1 .txt"


# -- linked folders


def test_linked_folders_are_followed_on_demand(tmp_path):
    root = tmp_path / "root"
    touch(root, "a/1.png", "z/3.png")
    touch(tmp_path, "outside/2.png", "outside/deep/4.png")
    (root / "linked").symlink_to(tmp_path / "outside")
    assert names(find_images(root)) == ["a/1.png", "z/3.png"]
    walk = find_images(root, follow_links=True)
    assert names(walk) == ["a/1.png", "linked/2.png", "linked/deep/4.png", "z/3.png"]
    assert not walk.passed_over


@pytest.mark.timeout(20)
@pytest.mark.parametrize("target", [".", "..", "a", "root", "z"])
def test_links_in_circles_and_to_folders_within_give_each_picture_once(tmp_path, target):
    root = tmp_path / "root"
    touch(root, "a/1.png", "z/3.png")
    (root / "a" / "again").symlink_to((root / target) if target != "root" else root)
    (root / "b").symlink_to(root / "z")
    walk = find_images(root, follow_links=True)
    assert names(walk) == ["a/1.png", "z/3.png"]
    assert walk.passed_over["folder walked already"] >= 2 or target == ".."


@pytest.mark.timeout(20)
def test_links_that_lead_to_each_other_end(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    folders = [tmp_path / f"outside{number}" for number in range(8)]
    for folder in folders:
        touch(folder, "picture.png")
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    (root / "first").symlink_to(folders[0])
    (root / "parent").symlink_to(tmp_path)
    walk = find_images(root, follow_links=True)
    found = names(walk)
    assert len(found) == 8
    assert len({os.path.realpath(root / name) for name in found}) == 8


def test_a_hidden_store_is_reached_through_its_links(tmp_path):
    touch(tmp_path, ".store/x/1.png")
    (tmp_path / "class").symlink_to(tmp_path / ".store" / "x")
    assert names(find_images(tmp_path, follow_links=True)) == ["class/1.png"]


def test_broken_links_are_left_to_the_reader(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    walk = find_images(tmp_path)
    assert names(walk) == ["gone.png"]
    assert walk.passed_over == {"file without a suffix": 1}


# -- pipes


def png(colour=(10, 20, 30), **options):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "PNG", **options)
    return buffer.getvalue()


@needs_fifo
@pytest.mark.timeout(20)
@pytest.mark.parametrize("large", [False, True])
def test_a_picture_is_read_from_a_pipe(tmp_path, large):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 500, 3) if large else (5, 4, 3), dtype=np.uint8)
    buffer, fifo = io.BytesIO(), tmp_path / "pipe"
    Image.fromarray(pixels).save(buffer, "PNG")
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(buffer.getvalue(),))
    writer.start()
    np.testing.assert_array_equal(np.asarray(read_image(fifo)), pixels)
    writer.join()


@needs_fifo
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"pipe': nothing came out of it; .* can be read once"),
        (b"no picture", r"pipe': it is not an image in a known format"),
        (png()[:40], r"cannot read .*pipe'"),
    ],
)
def test_what_comes_through_a_pipe_and_is_no_picture(tmp_path, data, message):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))
    writer.start()
    with pytest.raises(ImageError, match=message):
        read_image(fifo)
    writer.join()


def test_a_pipe_without_an_end_is_no_picture(monkeypatch):
    class Endless:
        def read(self, count):
            return bytes(count)

    monkeypatch.setattr(decode_module, "_MOST_BYTES", 5 * 2**20)
    with pytest.raises(ImageError, match=r"cannot read this: more than 5,242,880 bytes came; save them to a file"):
        read_stream(Endless(), "this")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_that_was_read_can_be_read_again(orientation):
    """What came out of a pipe goes on as a PIL image: nothing is turned, or composited, twice."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for data in (png(exif=exif), png((0, 0, 0), exif=exif, transparency=(0, 0, 0))):
        once = read_image(data)
        twice = read_image(once)
        assert twice.size == once.size == ((6, 4) if orientation == 1 else (4, 6))
        np.testing.assert_array_equal(np.asarray(twice), np.asarray(once))
