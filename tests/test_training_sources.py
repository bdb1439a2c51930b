"""Sources of training images: folders, shards and Hugging Face data sets, healthy and damaged."""

import io
import json
import os
import pickle
import re
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from robustsim.errors import DataError, ImageError, InputError, MissingDependencyError
from robustsim.training.sources import shards
from robustsim.training.sources.base import Names, Sample, Source
from robustsim.training.sources.open import open_source


def encoded(value, kind="png", mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, (4 + value % 3, 4), (value % 256, 0, 0)[: len(mode)] if mode != "L" else value % 256).save(
        stream, kind
    )
    return stream.getvalue()


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(value, {"jpg": "jpeg"}.get(path.suffix[1:].lower(), path.suffix[1:].lower())))
    return path


def write_tar(path, members, mode="w", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5 if options.get("format") == tarfile.PAX_FORMAT else 0
            tar.addfile(info, io.BytesIO(data))
    return path


def members(values, labels=True):
    for value in values:
        yield f"{value:04d}.png", encoded(value)
        if labels:
            yield f"{value:04d}.cls", str(value % 3).encode()


def shard(path, values, labels=True, **options):
    return write_tar(path, members(values, labels), **options)


def red(sample):
    return sample.image.getpixel((0, 0))[0]


def all_of(source):
    return [(red(sample), sample.label) for sample in map(source.read, range(len(source)))]


# Folders of images


def test_folder_with_classes(tmp_path):
    root = tmp_path / "pets"
    for value, name in enumerate(["dog/a.png", "cat/b.jpg", "cat/deep/er/c.png", "cat/a.PNG", "ant/x.webp"]):
        picture(root / name, value)
    (root / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    picture(root / ".hidden" / "z.png")
    source = open_source(root)
    assert isinstance(source, Source)
    assert (source.name, source.classes, source.problems, len(source)) == ("pets", ("ant", "cat", "dog"), (), 5)
    assert [source.place(index).removeprefix(f"{root.as_posix()}/") for index in range(5)] == [
        "ant/x.webp", "cat/a.PNG", "cat/b.jpg", "cat/deep/er/c.png", "dog/a.png",
    ]  # fmt: skip
    samples = [source.read(index) for index in range(5)]
    assert [sample.label for sample in samples] == [0, 1, 1, 1, 2]
    assert [source.label(index) for index in range(5)] == [0, 1, 1, 1, 2]
    assert {sample.image.mode for sample in samples} == {"RGB"}
    assert red(samples[4]) == 0
    assert red(samples[1]) == 3


@pytest.mark.parametrize(
    "names", [["a.png", "b.png"], ["a.png", "cat/b.png", "dog/c.png"], ["images/a.png", "images/b.png"]], ids=str
)
def test_folder_without_labels(tmp_path, names):
    for name in names:
        picture(tmp_path / name)
    source = open_source(str(tmp_path))
    assert (source.classes, len(source), source.problems) == (None, len(names), ())
    assert [source.read(index).label for index in range(len(source))] == [None] * len(names)


def test_images_are_decoded_by_the_rules_of_the_house(tmp_path):
    Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (3, 2)).save(tmp_path / "b.jpg", exif=exif)
    Image.fromarray(np.full((2, 3), 0xFFFF, np.uint16)).save(tmp_path / "c.png")
    source = open_source(tmp_path)
    assert [(sample.image.mode, sample.image.size, red(sample)) for sample in map(source.read, range(3))] == [
        ("RGB", (3, 2), 255), ("RGB", (2, 3), 0), ("RGB", (3, 2), 255),
    ]  # fmt: skip


def test_damaged_file_is_named_when_it_is_read(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(encoded(1)[:40])
    (tmp_path / "c.png").write_bytes(b"")
    source = open_source(tmp_path)
    assert len(source) == 3
    source.read(0)
    for index, name in ((1, "b.png"), (2, "c.png")):
        with pytest.raises(ImageError, match=name):
            source.read(index)


@pytest.mark.parametrize("index", [-1, 2])
def test_no_such_index(tmp_path, index):
    picture(tmp_path / "one" / "a.png")
    picture(tmp_path / "one" / "b.png")
    shard(tmp_path / "two" / "x.tar", [1, 2])
    for name in ("one", "two"):
        with pytest.raises(IndexError, match=f"images 0 to 1, and not {index}"):
            open_source(tmp_path / name).read(index)


def test_folders_count_what_they_pass_over_and_follow_links_on_demand(tmp_path):
    root = tmp_path / "pets"
    for name in ("cat/a.png", "dog/b.ppm"):
        picture(root / name)
    picture(tmp_path / "elsewhere" / "c.png")
    (root / "cat" / "notes.txt").touch()
    (root / "ant").symlink_to(tmp_path / "elsewhere")
    source = open_source(root)
    assert (source.classes, len(source)) == (("cat", "dog"), 2)
    assert (source.passed_over, source.problems) == ({".txt": 1, "linked folder": 1}, ())
    source = open_source(root, follow_links=True)
    assert (source.classes, len(source), source.passed_over) == (("ant", "cat", "dog"), 3, {".txt": 1})
    assert source.read(0).label == 0


def test_shards_count_keys_without_an_image(tmp_path):
    named = dict.fromkeys(("a.png", "a.txt", "a.cls", "b.heix", "b.txt", "c.seg.pdf", "d.ppm", "d.cls"), b"1")
    write_tar(tmp_path / "x.tar", {**named, "a.png": encoded(1), "d.ppm": encoded(2, "ppm")}.items())
    source = open_source(tmp_path / "x.tar")
    assert (len(source), source.passed_over, source.problems) == (2, {".heix": 1, ".pdf": 1}, ())


def test_indices_may_be_numpys(tmp_path):
    picture(tmp_path / "one" / "a.png", 7)
    shard(tmp_path / "two" / "x.tar", [7])
    for name in ("one", "two"):
        assert red(open_source(tmp_path / name).read(np.int64(0))) == 7


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    for name in "abc":
        picture(tmp_path / name / "x.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(tmp_path)
    assert (len(source), source.classes) == (2, ("a", "c"))
    assert len(source.problems) == 1
    assert "cannot list" in source.problems[0]
    assert "/b'" in source.problems[0]


def test_splits_are_subfolders(tmp_path):
    root = tmp_path / "set"
    for split, count in (("train", 3), ("val", 2)):
        for value in range(count):
            picture(root / split / f"class{value}" / "x.png")
    assert (open_source(root).name, len(open_source(root))) == ("set/train", 3)
    val = open_source(root, split="val")
    assert (val.name, len(val), val.classes) == ("set/val", 2, ("class0", "class1"))
    assert open_source(root / "val").name == "set/val"
    with pytest.raises(InputError, match=r"set has no split 'test': its subfolders are 'train', 'val'"):
        open_source(root, split="test")
    (root / "train").rename(root / "test")
    with pytest.raises(InputError, match=r"the splits 'test', 'val' and no 'train'"):
        open_source(root)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        picture(tmp_path / name / "x.png")
    assert open_source(tmp_path).classes == ("bus", "train")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf8(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(name)).write_bytes(encoded(5))
    source = open_source(tmp_path)
    assert source.place(0).endswith("/\\xff\\xfe.png")
    assert red(source.read(0)) == 5


def test_names_are_packed():
    words = ["", "a", "ä/ö.png", "\udcff", "x" * 1000]
    names = Names()
    for word in words:
        names.append(word)
    assert [names[index] for index in range(len(names))] == words


# Shards


def test_shards(tmp_path):
    root = tmp_path / "wds"
    shard(root / "b.tar", range(10, 15))
    shard(root / "a.tar", range(4))
    source = open_source(root)
    assert (source.name, source.classes, source.problems, len(source)) == ("wds", ("0", "1", "2"), (), 9)
    values = [*range(4), *range(10, 15)]
    assert all_of(source) == [(value, value % 3) for value in values]
    assert [source.place(index) for index in (0, 3, 4)] == ["a.tar:0000", "a.tar:0003", "b.tar:0010"]
    one = open_source(root / "b.tar")
    assert (one.name, len(one)) == ("wds/b", 5)
    assert source.read(0) != Sample(source.read(0).image, 1)


@pytest.mark.parametrize(
    "options",
    [{"format": tarfile.PAX_FORMAT}, {"format": tarfile.GNU_FORMAT}, {"format": tarfile.USTAR_FORMAT}],
    ids=["pax", "gnu", "ustar"],
)
def test_kinds_of_tar_files(tmp_path, options):
    deep = "/".join(["a folder.with a dot"] * 6)
    content = [
        (f"{deep}/x.jpg", encoded(1, "jpeg")),
        (f"{deep}/x.cls", b" 2\n"),
        ("./y.cls", b"0"),
        ("./y.PNG", encoded(2)),
        ("./y.json", b"{}"),
        ("._y.png", b"rubbish of another system"),
        ("README", b"hello"),
        ("z.seg.png", encoded(9)),
        ("z.webp", encoded(3, "webp")),
        ("z.cls", b"1"),
    ]
    source = open_source(write_tar(tmp_path / "x.tar", content, **options))
    assert [source.place(index) for index in range(3)] == [f"x.tar:{deep}/x", "x.tar:y", "x.tar:z"]
    assert [source.read(index).label for index in range(3)] == [2, 0, 1]
    assert [red(source.read(index)) for index in (1, 2)] == [2, pytest.approx(3, abs=3)]


def test_members_need_not_stand_together(tmp_path):
    content = sorted(members(range(6)), key=lambda member: member[0][-3:])
    assert all_of(open_source(write_tar(tmp_path / "x.tar", content))) == [(value, value % 3) for value in range(6)]


def test_shards_of_splits(tmp_path):
    root = tmp_path / "wds"
    shard(root / "imagenet1k-train-0000.tar", range(4))
    shard(root / "imagenet1k-train-0001.tar", range(4, 6))
    shard(root / "imagenet1k-validation-00.tar", range(10, 13))
    assert (open_source(root).name, len(open_source(root))) == ("wds/train", 6)
    assert len(open_source(root, split="validation")) == 3
    assert len(open_source(root / "imagenet1k-train-{0000..0001}.tar", split="train")) == 6
    with pytest.raises(InputError, match=r"wds has no shard of the split 'val': 'imagenet1k-train-0000.tar', "):
        open_source(root, split="val")
    for path in root.glob("*train*"):
        path.rename(str(path).replace("train", "test"))
    with pytest.raises(InputError, match=r"several splits but none of 'train'"):
        open_source(root)


def test_brace_pattern(tmp_path):
    for number in range(4):
        shard(tmp_path / f"train-{number:03d}.tar", [number])
    source = open_source(tmp_path / "train-{000..002}.tar")
    assert source.name == f"{tmp_path.name}/train-{{000..002}}"
    assert [value for value, _ in all_of(source)] == [0, 1, 2]
    assert [value for value, _ in all_of(open_source(str(tmp_path / "train-{003,001}.tar")))] == [3, 1]
    missing = open_source(tmp_path / "train-{002..004}.tar")
    assert len(missing) == 2
    assert len(missing.problems) == 1
    assert "train-004.tar: cannot be read: No such file" in missing.problems[0]
    with pytest.raises(DataError, match=r"every shard is damaged \(2\): .*gone-0.tar: cannot be read: No such file"):
        open_source(tmp_path / "gone-{0..1}.tar")
    shard(tmp_path / "odd-{0..1}.tar", [9])
    assert [value for value, _ in all_of(open_source(tmp_path / "odd-{0..1}.tar"))] == [9]


def test_expand():
    assert shards.expand("x-{8..11}.tar") == ["x-8.tar", "x-9.tar", "x-10.tar", "x-11.tar"]
    assert shards.expand("{a,b}/{09..10}") == ["a/09", "a/10", "b/09", "b/10"]
    assert shards.expand("{0..002}") == ["000", "001", "002"]
    assert shards.expand("{0..1}") == ["0", "1"]
    for pattern in ("{1..}", "{2..1}", "{}", "{a}", "{0..99999999999}", "{0..9999}{0..9999}", "{{0..1}}", "{0..1}}"):
        with pytest.raises(InputError, match=r"brace|cannot be expanded"):
            shards.expand(pattern)


def test_classes_beside_shards(tmp_path):
    shard(tmp_path / "x.tar", range(4))
    file = tmp_path / "classes.json"
    for content in (
        ["cat", "dog", "ant", "none"],
        [{"wnid": "n1", "words": "cat"}, {"name": "dog"}, ["n3", "ant"], "none"],
        {"1": "dog", "0": "cat", "3": "none", "2": "ant"},
    ):
        file.write_text(json.dumps(content))
        assert open_source(tmp_path).classes == ("cat", "dog", "ant", "none")
    for content, text in (
        ('["cat"]', "names 1 classes, but the greatest label is 2"),
        ('{"0": "a", "2": "b"}', "names 2 classes, but none for the label 1"),
        ('["a", "b", 3]', "class of the label 2 is 3, expected a name"),
        ('"cat"', "holds neither a list of names"),
        ("[]", "names no class"),
        ("[", "is no JSON"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=f"classes.json.*{text}"):
            open_source(tmp_path)


def test_labels_that_are_none(tmp_path):
    bad = {"a": b"2", "b": b"-1", "c": b"cat", "d": b"", "e": b"1.0", "f": b"1", "g": b"9" * 30, "h": "²".encode()}
    content = [one for key, text in bad.items() for one in ((f"{key}.png", encoded(1)), (f"{key}.cls", text))]
    source = open_source(write_tar(tmp_path / "x.tar", content))
    assert [source.place(index) for index in range(len(source))] == ["x.tar:a", "x.tar:f"]
    assert source.classes == ("0", "1", "2")
    assert len(source.problems) == 1
    assert "x.tar: left out, because their .cls is no whole number" in source.problems[0]
    assert "6 samples, the first is 'b' with b'-1'" in source.problems[0]
    with pytest.raises(DataError, match=r"has no sample: .*1 samples, the first is 'a' with b'cat'"):
        open_source(write_tar(tmp_path / "y.tar", [("a.png", encoded(1)), ("a.cls", b"cat")]))


def test_labels_only_where_every_sample_has_one(tmp_path):
    shard(tmp_path / "a.tar", range(3))
    shard(tmp_path / "b.tar", range(2), labels=False)
    source = open_source(tmp_path)
    assert (len(source), source.classes) == (5, None)
    assert source.problems == ("labels are ignored: 2 of 5 samples have none, the first is b.tar:0000",)
    assert {label for _, label in all_of(source)} == {None}
    alone = open_source(tmp_path / "b.tar")
    assert (alone.classes, alone.problems) == (None, ())


def test_damaged_member_is_named_when_it_is_read(tmp_path):
    content = [("a.png", encoded(1)[:40]), ("b.png", b""), ("c.png", encoded(3))]
    source = open_source(write_tar(tmp_path / "x.tar", content))
    assert (len(source), source.problems) == (3, ())
    for index, text in ((0, r"x.tar:a: .*damaged"), (1, r"x.tar:b: .*empty")):
        with pytest.raises(ImageError, match=text):
            source.read(index)
    assert red(source.read(2)) == 3


def offsets(path):
    with tarfile.open(path) as tar:
        return {member.name: (member.offset, member.offset_data) for member in tar}


def three(root):
    """Three shards of four samples each."""
    for number in range(3):
        shard(root / f"{number}.tar", range(4 * number, 4 * number + 4))
    return root / "1.tar"


# What is done to the shard in the middle, what is left of it, and what is said.
def cut_in_image(path):
    os.truncate(path, offsets(path)["0006.png"][1] + 20)


def cut_in_label(path):
    os.truncate(path, offsets(path)["0006.cls"][1])


def cut_in_head(path):
    os.truncate(path, offsets(path)["0006.png"][0] + 100)


def cut_between(path):
    os.truncate(path, offsets(path)["0006.png"][0])


def cut_between_image_and_label(path):
    os.truncate(path, offsets(path)["0006.cls"][0])


def overwrite_head(path):
    with path.open("r+b") as file:
        file.seek(offsets(path)["0006.png"][0])
        file.write(b"rubbish" * 50)


def make_garbage(path):
    path.write_bytes(bytes(range(256)) * 100)


def make_empty(path):
    path.write_bytes(b"")


def compress(path):
    path.unlink()
    shard(path, range(4, 8), mode="w:gz")


def leave_a_hole(path):
    """As a download has that was given its whole length at first."""
    start = offsets(path)["0006.png"][0]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(2**21))


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "left", "text"),
    [
        (cut_in_image, 2, r"damaged: the file ends at byte [\d,]+, within '0006.png'"),
        (cut_in_label, 2, r"damaged: the file ends at byte [\d,]+, within '0006.cls'"),
        (cut_in_head, 2, r"damaged: .*[\d,]+"),
        (cut_between, 2, r"it has no end mark"),
        (cut_between_image_and_label, 2, r"it has no end mark"),
        (overwrite_head, 2, r"damaged: no member begins at byte [\d,]+"),
        (leave_a_hole, 2, r"damaged: no member begins at byte [\d,]+"),
        (make_garbage, 0, "damaged: "),
        (make_empty, 0, "damaged: "),
        (compress, 0, r"damaged: it is compressed \(gzip\), .*: unpack it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_shard_in_the_middle(tmp_path, damage, left, text):
    path = three(tmp_path)
    damage(path)
    source = open_source(tmp_path)
    values = [*range(4), *range(4, 4 + left), *range(8, 12)]
    assert all_of(source) == [(value, value % 3) for value in values]
    assert source.classes == ("0", "1", "2")
    assert len(source.problems) == 1
    (problem,) = source.problems
    assert problem.startswith(f"{path}: ")
    assert problem.endswith(f"; samples of it that are used: {left}")
    assert re.search(text, problem), problem


def test_every_shard_is_damaged(tmp_path):
    cut_in_image(three(tmp_path))
    with pytest.raises(DataError, match=r"1: every shard is damaged \(1\): .*1.tar: .*within '0006.png'; .* used: 2"):
        open_source(tmp_path / "1.tar")
    for number in range(3):
        make_garbage(tmp_path / f"{number}.tar")
    with pytest.raises(DataError, match=r"every shard is damaged \(3\): .*0.tar: .*; .*1.tar: .*; .*2.tar: "):
        open_source(tmp_path)


def test_a_shard_without_an_end_mark_is_used(tmp_path):
    path = shard(tmp_path / "x.tar", range(3))
    with tarfile.open(path) as tar:
        tar.getmembers()
        end = tar.offset
    os.truncate(path, end)
    source = open_source(path)
    assert len(source) == 3
    assert "no end mark" in source.problems[0]


def test_shards_without_an_image(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.txt", b"hello"), ("b.cls", b"1")])
    with pytest.raises(DataError, match=r"has no sample: .*x.tar holds no member KEY.jpg"):
        open_source(tmp_path)
    write_tar(tmp_path / "y.tar", [])
    with pytest.raises(DataError, match=r"damaged|no sample"):
        open_source(tmp_path / "y.tar")


def test_a_shard_that_changes_later(tmp_path):
    path = shard(tmp_path / "x.tar", range(3))
    source = open_source(path)
    start = offsets(path)["0002.png"][1]
    os.truncate(path, start + 10)
    assert red(source.read(1)) == 1
    with pytest.raises(ImageError, match=r"x.tar:0002: the shard ends \d+ bytes before the image does"):
        source.read(2)
    other = open_source(shard(tmp_path / "y.tar", range(3)))
    (tmp_path / "y.tar").unlink()
    with pytest.raises(ImageError, match=r"y.tar:0001: cannot read the shard: No such file"):
        other.read(1)


def test_threads_read_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)  # fewer than there are
    for number in range(6):
        shard(tmp_path / f"{number}.tar", range(20 * number, 20 * number + 20))
    source = open_source(tmp_path)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(source)), 5))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.read, order))
    assert [(red(sample), sample.label) for sample in found] == [(int(value), int(value) % 3) for value in order]
    assert open_files(tmp_path) <= 2
    del source
    assert open_files(tmp_path) == 0


def open_files(folder):
    """How many of its files this process holds open; what other tests have left open is not of interest."""
    links = Path("/proc/self/fd").glob("*") if sys.platform == "linux" else ()
    return sum(os.path.realpath(link).startswith(os.fspath(folder)) for link in links)


def test_sources_can_be_pickled(tmp_path):
    for value in range(3):
        picture(tmp_path / "images" / f"c{value}" / "x.png", value)
    shard(tmp_path / "shards" / "x.tar", range(3))
    for name in ("images", "shards"):
        source = open_source(tmp_path / name)
        expected = all_of(source)
        copy = pickle.loads(pickle.dumps(source))
        assert all_of(copy) == expected
        assert (copy.name, copy.classes, copy.place(1)) == (source.name, source.classes, source.place(1))


def test_more_threads_where_the_disk_is_slow(tmp_path, monkeypatch):
    for number in range(4):
        shard(tmp_path / f"{number}.tar", [number])
    asked = []
    prefetch = shards.prefetch
    monkeypatch.setattr(
        shards, "prefetch", lambda *args, workers: asked.append(workers) or prefetch(*args, workers=workers)
    )
    for wall, workers in ((1, 1), (4, 4), (99, 16)):
        clock = iter([0, wall])
        busy = iter([0, 1])
        # A clock for this module alone: other threads look at the real one.
        monkeypatch.setattr(shards, "time", SimpleNamespace(perf_counter=clock.__next__, thread_time=busy.__next__))
        assert [value for value, _ in all_of(open_source(tmp_path))] == [0, 1, 2, 3]
        assert asked.pop() == workers


def test_tiny_imagenet(shared):
    root = shared / "tiny-imagenet"
    if not root.is_dir():
        pytest.skip("tiny-imagenet is not here")
    val = open_source(root, split="val")
    assert (val.name, len(val), val.problems) == ("tiny-imagenet/val", 2000, ())
    source = open_source(root)
    assert (source.name, len(source), source.problems) == ("tiny-imagenet/train", 20_000, ())
    assert len(source.classes) == 200
    assert source.classes == val.classes
    assert source.classes[0] == "Egyptian cat"
    counts = np.bincount([source.label(index) for index in range(len(source))])
    assert (counts == 100).all()
    assert source.place(0) == "train-0000.tar:n02950826_424"
    for index in range(0, len(source), 997):
        assert source.read(index).image.size == (64, 64)


def test_nips17(shared):
    source = open_source(shared / "nips17")
    assert (source.name, len(source), source.classes) == ("nips17", 1000, None)
    assert source.read(999).image.size == (299, 299)


# Names of classes


def test_classes_from_a_file(tmp_path):
    for name in ("n01", "n02"):
        picture(tmp_path / "set" / name / "x.png")
    file = tmp_path / "names.txt"
    file.write_text("cat\n\n dog \n", encoding="utf-8")
    assert open_source(tmp_path / "set", classes=file).classes == ("cat", "dog")
    file.with_suffix(".json").write_text('["Katze", "Hund"]')
    assert open_source(tmp_path / "set", classes=str(file.with_suffix(".json"))).classes == ("Katze", "Hund")
    file.write_text("cat\ndog\nant\n")
    with pytest.raises(DataError, match=r"names.txt names 3 classes, but set has 2"):
        open_source(tmp_path / "set", classes=file)
    with pytest.raises(DataError, match=r"names 3 classes, but the images of n01 have no labels"):
        open_source(tmp_path / "set" / "n01", classes=file)
    for name in ("gone.txt", "gone.json"):
        with pytest.raises(DataError, match=rf"cannot read '.*{name}': No such file"):
            open_source(tmp_path / "set", classes=tmp_path / name)


# What is there


def test_nothing_to_open(tmp_path):
    with pytest.raises(DataError, match=r"there is no '.*gone' \(looked from '.*'\).*'hf:NAME'"):
        open_source(tmp_path / "gone")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match=r"folder holds neither images nor tar files: it is empty"):
        open_source(folder)
    for name, text in (
        ("a.csv", r"seen: 'a.csv'; passed over: 1 \.csv"),
        ("b.parquet", r"seen: 'a.csv', 'b.parquet'; .*'hf:' and the folder's path"),
        ("c.tar.gz", "unpack what is compressed"),
    ):
        (folder / name).write_bytes(b"x")
        with pytest.raises(DataError, match=text):
            open_source(folder)
    for name, text in (("a.csv", "is no tar file: pass a folder"), ("c.tar.gz", "is compressed, and .*: unpack it")):
        with pytest.raises(DataError, match=text):
            open_source(folder / name)
    with pytest.raises(DataError, match="is one image: pass the folder"):
        open_source(picture(folder / "x.png"))


def test_images_beside_shards(tmp_path):
    shard(tmp_path / "a.tar", [1])
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    assert open_source(tmp_path).problems == ("left out, because it is compressed: b.tar.gz",)
    picture(tmp_path / "train" / "n01" / "x.png")
    with pytest.raises(DataError, match=r"holds tar files \(a.tar\) and images \(train/n01/x.png\): pass"):
        open_source(tmp_path)
    assert len(open_source(tmp_path, split="train")) == 1


# Hugging Face


@pytest.fixture
def hf(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    return datasets


def rows(hf, values, label="label", column="image", **extra):
    content = {column: [{"bytes": encoded(value), "path": None} for value in values], **extra}
    if label:
        content[label] = [value % 3 for value in values]
    data = hf.Dataset.from_dict(content).cast_column(column, hf.Image())
    return data.cast_column(label, hf.ClassLabel(names=["ant", "bee", "cat"])) if label else data


def test_data_set_on_disk(hf, tmp_path):
    rows(hf, range(7)).save_to_disk(tmp_path / "bugs")
    source = open_source(tmp_path / "bugs")
    assert (source.name, source.classes, source.problems, len(source)) == ("bugs", ("ant", "bee", "cat"), (), 7)
    assert all_of(source) == [(value, value % 3) for value in range(7)]
    assert source.place(3) == "bugs:3"
    assert red(source.read(np.int64(6))) == 6
    with pytest.raises(IndexError):
        source.read(-1)
    with pytest.raises(InputError, match="has no split 'val': it is one data set"):
        open_source(tmp_path / "bugs", split="val")
    file = tmp_path / "names.txt"
    file.write_text("A\nB\nC")
    assert open_source(tmp_path / "bugs", classes=file).classes == ("A", "B", "C")


def test_data_set_on_disk_with_splits(hf, tmp_path):
    both = hf.DatasetDict({"train": rows(hf, range(4)), "held-out": rows(hf, range(10, 12))})
    both.save_to_disk(tmp_path / "bugs")
    assert [value for value, _ in all_of(open_source(tmp_path / "bugs"))] == [0, 1, 2, 3]
    assert open_source(tmp_path / "bugs").name == "bugs/train"
    assert [value for value, _ in all_of(open_source(tmp_path / "bugs", split="held-out"))] == [10, 11]
    with pytest.raises(InputError, match=r"no split 'test': it has 'train', 'held-out'"):
        open_source(tmp_path / "bugs", split="test")


def test_columns_are_found_by_their_type(hf, tmp_path):
    data = rows(hf, range(3), label="fine", column="scan", text=["a", "b", "c"])
    data.save_to_disk(tmp_path / "a")
    assert all_of(open_source(tmp_path / "a")) == [(0, 0), (1, 1), (2, 2)]
    mask = [{"bytes": encoded(99), "path": None}] * 3
    data = rows(hf, range(3), mask=mask, coarse=[0, 0, 0]).cast_column("mask", hf.Image())
    data = data.cast_column("coarse", hf.ClassLabel(names=["x"])).select_columns(["mask", "coarse", "image", "label"])
    data.save_to_disk(tmp_path / "b")
    source = open_source(tmp_path / "b")
    assert source.classes == ("ant", "bee", "cat")
    assert all_of(source) == [(0, 0), (1, 1), (2, 2)]
    hf.Dataset.from_dict({"n": [1, 2, 3]}).save_to_disk(tmp_path / "c")
    with pytest.raises(DataError, match=r"c has no column of images: its columns are 'n' \(Value\)"):
        open_source(tmp_path / "c")


def test_data_set_with_damaged_images_and_missing_labels(hf, tmp_path, monkeypatch):
    picture(tmp_path / "file.png", 8)
    images = [
        {"bytes": b"rubbish", "path": "x.png"},
        None,
        {"bytes": None, "path": str(tmp_path / "file.png")},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
    ]
    data = hf.Dataset.from_dict({"img": images, "labels": [0, -1, None, 1]}).cast_column("img", hf.Image())
    data = data.cast_column("labels", hf.ClassLabel(names=["a", "b"]))
    monkeypatch.setattr(hf, "load_dataset", lambda *args, **options: data)  # on disk, files are put into the rows
    source = open_source("hf:set")
    assert (len(source), source.classes) == (4, None)
    assert source.problems == ("labels are ignored: 2 of 4 rows have none",)
    assert red(source.read(2)) == 8
    for index, text in ((0, "set:0: cannot read 7 bytes"), (1, "set:1: .*'img' is empty"), (3, "set:3: .*gone.png")):
        with pytest.raises(ImageError, match=text):
            source.read(index)


def test_data_set_read_by_threads_and_pickled(hf, tmp_path):
    rows(hf, range(30)).shuffle(seed=0).flatten_indices().save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    expected = all_of(source)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.read, list(range(30)) * 5))
    assert [(red(sample), sample.label) for sample in found] == expected * 5
    assert all_of(pickle.loads(pickle.dumps(source))) == expected


def test_data_set_that_is_damaged(hf, tmp_path):
    rows(hf, range(3)).save_to_disk(tmp_path / "set")
    next((tmp_path / "set").glob("*.arrow")).write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"cannot load '.*set' as a Hugging Face data set"):
        open_source(tmp_path / "set")


def test_data_set_by_name(hf, monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        if name == "gone":
            raise FileNotFoundError("Dataset 'gone' doesn't exist on the Hub")
        return rows(hf, range(3))

    monkeypatch.setattr(hf, "load_dataset", load_dataset)
    source = open_source("hf:org/bugs")
    assert (source.name, len(source), source.classes) == ("org/bugs", 3, ("ant", "bee", "cat"))
    assert open_source("hf:org/bugs:big", split="val").name == "org/bugs:big/val"
    assert asked == [("org/bugs", None, "train"), ("org/bugs", "big", "val")]
    with pytest.raises(DataError, match=r"cannot load the split 'train' of 'gone' from Hugging Face: Dataset 'gone'"):
        open_source("hf:gone")
    with pytest.raises(InputError, match="hf:NAME"):
        open_source("hf:")


def test_a_folder_of_parquet_files_by_name(hf, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    rows(hf, range(5)).to_parquet(folder / "train-00000.parquet")
    assert all_of(open_source(f"hf:{folder}")) == [(value, value % 3) for value in range(5)]


def test_without_the_package_datasets(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "state.json").write_text("{}")
    for path in ("hf:cifar10", tmp_path):
        with pytest.raises(MissingDependencyError, match=r'pip install "robustsim\[hf\]"'):
            open_source(path)


# Several at once


def test_several_sources_follow_each_other(tmp_path):
    for value, name in enumerate(["one/ant/a.png", "one/bee/b.png", "one/bee/c.png", "two/ant/a.png", "two/bee/d.png"]):
        picture(tmp_path / name, value)
    (tmp_path / "one" / "notes.txt").write_text("no image")
    (tmp_path / "two" / "notes.txt").write_text("no image")
    source = open_source([tmp_path / "one", tmp_path / "two"])
    assert (source.name, len(source), source.classes) == ("one and two", 5, ("ant", "bee"))
    assert source.passed_over == {".txt": 2}
    assert all_of(source) == [(0, 0), (1, 1), (2, 1), (3, 0), (4, 1)]
    assert [Path(source.place(index)).name for index in range(5)] == ["a.png", "b.png", "c.png", "a.png", "d.png"]
    for index in (-1, 5):
        with pytest.raises(IndexError, match="one and two has images 0 to 4"):
            source.read(index)
    assert open_source([tmp_path / "one"]).name == "one"


def test_sources_of_other_classes_have_no_labels_together(tmp_path):
    for value, name in enumerate(["one/ant/a.png", "one/bee/b.png", "two/ant/a.png", "two/cat/d.png"]):
        picture(tmp_path / name, value)
    source = open_source([tmp_path / "one", tmp_path / "two"])
    assert source.classes is None
    assert all_of(source) == [(value, None) for value in range(4)]
    assert [source.label(index) for index in range(4)] == [None] * 4


def test_the_same_source_twice_and_none_at_all_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(InputError, match="is given twice"):
        open_source([tmp_path, tmp_path])
    with pytest.raises(InputError, match="is given twice"):
        open_source([tmp_path, f"{tmp_path}/"])
    with pytest.raises(InputError, match="no images are given"):
        open_source([])
