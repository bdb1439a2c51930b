"""Readers of human judgements: the published layouts in small, healthy and damaged in every way they name."""

import csv
import json
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from robustsim.data import (
    DataSet,
    OddOneOut,
    Pair,
    Rating,
    Triplet,
    find_layout,
    rating_triplets,
    read_bapps,
    read_dataset,
    read_jnd,
    read_nights,
    read_odd_one_out,
    read_ratings,
    read_things,
    read_triplets,
)
from robustsim.errors import DataError, InputError

NIGHTS_HEADER = [
    "id", "left_vote", "right_vote", "votes", "ref_path", "left_path", "right_path",
    "imagenet_class", "prompt", "split", "is_imagenet",
]  # fmt: skip


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value % 256, 0, 0)).save(path)


def table(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def nights_row(number, *, right=1, votes=10, split="test", imagenet="True"):
    paths = [f"{kind}/000/{number:03d}{end}.png" for kind, end in (("ref", ""), ("distort", "_0"), ("distort", "_1"))]
    return [number, 1 - right, right, votes, *paths, "a class", "a photo, of it", split, imagenet]


def nights(root, *rows):
    rows = rows or [
        nights_row(1, right=1),
        nights_row(2, right=0, imagenet="False"),
        nights_row(3, votes=5),
        nights_row(4, split="train"),
        nights_row(5, split="val", imagenet="false"),
    ]
    for row in rows:
        for cell in row[4:7]:
            picture(root / cell)
    table(root / "data.csv", NIGHTS_HEADER, *rows)
    return root


def numbered(root, splits, parts, answers, count=3):
    for split in splits:
        for number in range(count):
            for index, part in enumerate(parts):
                picture(root / split / part / f"{number:06d}.png", index)
            (root / split / answers).mkdir(parents=True, exist_ok=True)
            np.save(root / split / answers / f"{number:06d}.npy", np.array([number / 2], np.float32))


SPLITS = ("cnn", "color", "deblur", "frameinterp", "superres", "traditional")


@pytest.fixture
def bapps(tmp_path):
    numbered(tmp_path / "2afc" / "val", SPLITS, ("ref", "p0", "p1"), "judge")
    return tmp_path


@pytest.fixture
def jnd(tmp_path):
    numbered(tmp_path / "jnd" / "val", ("cnn", "traditional"), ("p0", "p1"), "same")
    return tmp_path


@pytest.fixture
def things(tmp_path):
    names = [f"images/{name}/{name}_01b.png" for name in ("aardvark", "abacus", "accordion", "acorn", "airbag")]
    for name in names:
        picture(tmp_path / name)
    (tmp_path / "images.txt").write_text("\n".join(names) + "\n")
    folder = tmp_path / "triplet_dataset"
    folder.mkdir()
    (folder / "validationset.txt").write_text("0 1 2\n4 3 0\n")
    (folder / "trainset.txt").write_text("0 1 2\n")
    return tmp_path


@pytest.fixture
def pictures(tmp_path):
    for name in "abcdef":
        picture(tmp_path / "images" / f"{name}.png", ord(name))
    return tmp_path


def problems_of(reader, *args, **options):
    """Every problem, each of which would have been raised had nobody taken it."""
    found = []
    data = reader(*args, **options, on_error=found.append)
    assert all(type(one) is DataError for one in found)
    if found:
        with pytest.raises(DataError) as raised:
            reader(*args, **options)
        assert str(raised.value) == str(found[0])
    return data, [str(one) for one in found]


# NIGHTS


def test_nights_takes_the_split_with_enough_votes(tmp_path):
    data = read_nights(nights(tmp_path))
    assert (data.name, data.root, data.scoring, data.left_out, len(data)) == ("nights", tmp_path, "majority", 1, 2)
    ref, left, right = (tmp_path / name for name in nights_row(1)[4:7])
    assert data.items[0] == Triplet("1", ref, left, right, 1.0, "imagenet")
    assert [item.right_share for item in data] == [1, 0]
    assert data.groups == {"imagenet": 1, "non-imagenet": 1}
    assert "test" in data.description
    assert "6 votes" in data.description


def test_nights_options(tmp_path):
    nights(tmp_path)
    ids = {split: [item.id for item in read_nights(tmp_path, split=split)] for split in ("train", "val", "all")}
    assert ids == {"train": ["4"], "val": ["5"], "all": ["1", "2", "4", "5"]}
    assert [item.id for item in read_nights(tmp_path, min_votes=5)] == ["1", "2", "3"]
    assert [item.id for item in read_nights(tmp_path, imagenet=False)] == ["2"]
    assert [item.id for item in read_nights(tmp_path / "data.csv", imagenet=True)] == ["1"]
    with pytest.raises(InputError, match="split is 'dev'"):
        read_nights(tmp_path, split="dev")


def test_nights_whose_test_split_is_written_in_two(tmp_path):
    rows = nights_row(1, split="test_imagenet", imagenet="1"), nights_row(2, split="test_no_imagenet", imagenet="0")
    assert read_nights(nights(tmp_path, *rows)).groups == {"imagenet": 1, "non-imagenet": 1}


@pytest.mark.parametrize(
    ("column", "cell", "text"),
    [
        ("right_vote", "0", "'left_vote' and 'right_vote' hold '0' and '0'"),
        ("right_vote", "2", r"'right_vote' holds '2', expected a number in \[0, 1\]"),
        ("votes", "many", "'votes' holds 'many', expected a number of at least 0"),
        ("votes", "nan", "'votes' holds 'nan'"),
        ("split", "dev", "'split' holds 'dev', expected one of train, val, test"),
        ("is_imagenet", "yes", "'is_imagenet' holds 'yes', expected one of true, 1"),
        ("left_path", "distort/gone.png", "column 'left_path' names 'distort/gone.png', and there is no file '.*gone"),
        ("ref_path", "", "column 'ref_path' is empty"),
        ("id", "2", "its id '2' is that of row 3 already"),
        ("id", "", "column 'id' is empty"),
    ],
)
def test_nights_damaged_row(tmp_path, column, cell, text):
    nights(tmp_path)
    damaged = nights_row(9, right=1)
    damaged[NIGHTS_HEADER.index(column)] = cell
    for name in nights_row(9)[4:7]:
        picture(tmp_path / name)
    with (tmp_path / "data.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow(damaged)
    data, problems = problems_of(read_nights, tmp_path)
    assert len(data) == 2
    assert len(problems) == 1
    with pytest.raises(DataError, match=rf"data.csv, row 7: .*{text}"):
        read_nights(tmp_path)


def test_nights_without_a_column_or_a_row(tmp_path):
    table(tmp_path / "data.csv", ["id", "votes", "ref_path"], [1, 2, "x"])
    with pytest.raises(DataError, match=r"row 1: .* columns id, votes, ref_path; needed are id, left_vote, .*split"):
        read_nights(tmp_path)
    nights(tmp_path, nights_row(1, votes=1))
    with pytest.raises(DataError, match=r"data.csv: the data set is empty.* 'test'; left out: 1"):
        read_nights(tmp_path)
    with pytest.raises(DataError, match=r"cannot read '.*gone': No such file"):
        read_nights(tmp_path / "gone")


# BAPPS


def test_bapps(bapps):
    roots = bapps, bapps / "2afc", bapps / "2afc" / "val"
    sets = [read_bapps(root) for root in roots]
    assert sets[0].items == sets[1].items == sets[2].items
    data = sets[0]
    assert (data.name, data.scoring, len(data)) == ("bapps", "share", 18)
    assert data.groups == dict.fromkeys(SPLITS, 3)
    folder = bapps / "2afc" / "val" / "cnn"
    images = (folder / part / "000001.png" for part in ("ref", "p0", "p1"))
    assert data.items[1] == Triplet("cnn/000001", *images, 0.5, "cnn")
    assert list(read_bapps(bapps, splits=("color", "cnn")).groups) == ["color", "cnn"]
    assert list(read_bapps(bapps, splits="color").groups) == ["color"]
    with pytest.raises(InputError, match="splits is empty"):
        read_bapps(bapps, splits=())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([0.5, 0.5]), r"expected one number in \[0, 1\], found shape \(2,\)"),
        (np.array([np.nan]), "found nan"),
        (np.array([1.5]), "found 1.5"),
        (np.array(["a"]), "type <U1"),
        (b"no array", "cannot read"),
        (b"", "cannot read"),
    ],
)
def test_bapps_damaged_answer(bapps, value, text):
    path = bapps / "2afc" / "val" / "deblur" / "judge" / "000001.npy"
    path.write_bytes(value) if isinstance(value, bytes) else np.save(path, value)
    data, problems = problems_of(read_bapps, bapps)
    assert len(data) == 17
    assert len(problems) == 1
    with pytest.raises(DataError, match=rf"deblur/judge/000001.npy.*{text}|{text}.*deblur/judge/000001.npy"):
        read_bapps(bapps)


def test_bapps_runs_no_pickle(bapps):
    path = bapps / "2afc" / "val" / "cnn" / "judge" / "000000.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"000000.npy.*allow_pickle"):
        read_bapps(bapps)


def test_bapps_without_counterparts(bapps):
    folder = bapps / "2afc" / "val"
    (folder / "cnn" / "p1" / "000002.png").unlink()
    (folder / "color" / "judge" / "000000.npy").unlink()
    (folder / "color" / "judge" / "._000000.npy").write_bytes(b"what a Mac leaves")
    for path in (folder / "superres" / "ref").iterdir():
        path.unlink()
    (folder / "superres" / "ref").rmdir()
    data, problems = problems_of(read_bapps, bapps)
    assert len(data) == 13
    assert [problem.split("/2afc/val/")[1].split("'")[0] for problem in problems] == [
        "cnn/p1/000002.png", "color/judge/000000.npy", "superres/ref",
    ]  # fmt: skip
    assert problems[0].startswith("there is no '")
    assert "counterpart of" in problems[0]


def test_bapps_with_two_files_of_one_number(bapps):
    folder = bapps / "2afc" / "val" / "cnn" / "p0"
    (folder / "000001.jpg").write_bytes((folder / "000001.png").read_bytes())
    with pytest.raises(DataError, match=r"000001\.jpg' and .*000001\.png' have the same number"):
        read_bapps(bapps)


def test_bapps_that_is_not_there(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"no folder .*cnn,color.*/judge here or below val/, 2afc/val/.*holds other/"):
        read_bapps(tmp_path)
    for part in ("ref", "p0", "p1", "judge"):
        (tmp_path / "val" / "cnn" / part).mkdir(parents=True)
    with pytest.raises(DataError, match=r"cnn: no numbered files in ref, p0, p1, judge"):
        read_bapps(tmp_path, splits=["cnn"])
    with pytest.raises(DataError, match="the data set is empty"):
        read_bapps(tmp_path, splits=["cnn"], on_error=lambda error: None)


# JND


def test_jnd_folder(jnd):
    data = read_jnd(jnd)
    assert (data.name, len(data), data.groups) == ("bapps-jnd", 6, {"cnn": 3, "traditional": 3})
    folder = jnd / "jnd" / "val" / "cnn"
    assert data.items[2] == Pair("cnn/000002", folder / "p0" / "000002.png", folder / "p1" / "000002.png", 1.0, "cnn")
    assert len(read_jnd(jnd / "jnd" / "val", splits=["cnn"])) == 3
    np.save(folder / "same" / "000000.npy", np.array([-1.0]))
    _, problems = problems_of(read_jnd, jnd)
    assert len(problems) == 1
    assert "cnn/same/000000.npy: expected one number in [0, 1], found -1" in problems[0]


def test_jnd_table(pictures):
    path = table(pictures / "pairs.csv", ["a", "b", "same", "group"], ["a.png", "b.png", "0.25", "blur"])
    data = read_jnd(path)
    images = pictures / "images"
    assert data.items == (Pair("row 2", images / "a.png", images / "b.png", 0.25, "blur"),)
    with pytest.raises(InputError, match="has no splits"):
        read_jnd(path, splits=["cnn"])
    table(path, ["a", "b", "same"], ["a.png", "b.png", "1"], ["a.png", "b.png", "25"])
    data, problems = problems_of(read_jnd, path)
    assert len(data) == 1
    assert problems == [f"{path}, row 3: column 'same' holds '25', expected a number in [0, 1]"]


# THINGS


def test_things_as_text(things):
    data = read_things(things)
    images = [things / line for line in (things / "images.txt").read_text().split()]
    assert data.name == "things"
    assert data.items == (
        OddOneOut("row 1", (images[0], images[1], images[2]), 2),
        OddOneOut("row 2", (images[4], images[3], images[0]), 2),
    )
    assert "validationset.txt" in data.description
    assert len(read_things(things, triplets="triplet_dataset/trainset.txt")) == 1
    (things / "floats.txt").write_text("1.0e+00 2.0e+00 4.0e+00\n")
    assert read_things(things, triplets=things / "floats.txt").items[0].images == tuple(images[i] for i in (1, 2, 4))
    assert len(read_things(things / "floats.txt")) == 1
    with pytest.raises(InputError, match="is a file"):
        read_things(things / "floats.txt", triplets="floats.txt")


@pytest.mark.parametrize(("name", "mark"), [("all.csv", ","), ("all.csv", "\t"), ("all.tsv", "\t")])
def test_things_as_a_table(things, name, mark):
    rows = "image1 image2 image3 choice subject_id", "1 2 3 1 7", "5 4 1 2 7", "5 4 1 3 7"
    (things / name).write_text("\n".join(row.replace(" ", mark) for row in rows) + "\n")
    data = read_things(things, triplets=name)
    images = [things / line for line in (things / "images.txt").read_text().split()]
    assert [item.odd for item in data] == [0, 1, 2]
    assert data.items[1] == OddOneOut("row 3", (images[4], images[3], images[0]), 1)
    (things / name).write_text("\n".join(row.replace(" ", mark) for row in [*rows, "1 2 6 1 7", "1 2 3 0 7"]))
    _, problems = problems_of(read_things, things, triplets=name)
    assert problems == [
        f"{things / name}, row 5: there is no image 6: images.txt has 1 to 5",
        f"{things / name}, row 6: column 'choice' holds '0', expected 1, 2 or 3",
    ]


def test_things_damaged(things):
    path = things / "triplet_dataset" / "validationset.txt"
    path.write_text("0 1 2\n0 1 5\n\n0 1\n0 1 x\n3 3 1\n-1 2 3\n0 1 2.5\n0 1 4\n")
    (things / "images" / "airbag" / "airbag_01b.png").unlink()
    data, problems = problems_of(read_things, things)
    assert len(data) == 1
    assert problems[0] == (
        f"{things / 'images.txt'}, row 5: it names 'images/airbag/airbag_01b.png', "
        f"and there is no file '{things}/images/airbag/airbag_01b.png'"
    )
    assert [problem.removeprefix(f"{path}, row ") for problem in problems[1:]] == [
        "2: there is no image 5: images.txt has 0 to 4",
        "4: 2 fields where three image numbers are expected",
        "5: field 3 holds 'x', expected a whole number",
        "6: it names an image twice: 3, 3, 1",
        "7: there is no image -1: images.txt has 0 to 4",
        "8: field 3 holds '2.5', expected a whole number",
        "9: image 4 of images.txt is not there",
    ]


def test_things_files_that_cannot_be_told(things):
    held_out = things / "triplet_dataset" / "validationset.txt"
    held_out.rename(held_out.with_name("first.txt"))
    with pytest.raises(
        DataError, match=r"2 files of triplets \(first.txt, trainset.txt\): pass one of them as the path"
    ):
        read_things(things)
    (things / "triplet_dataset" / "first.txt").unlink()
    (things / "images.txt").rename(things / "concepts.txt")
    assert "concepts.txt" in read_things(things).description
    (things / "more.txt").write_text("images/abacus/abacus_01b.png\n")
    with pytest.raises(DataError, match=r"2 lists of images \(concepts.txt, more.txt\)"):
        read_things(things)
    assert len(read_things(things, images="concepts.txt")) == 1
    (things / "more.txt").write_text("")
    with pytest.raises(DataError, match=r"more.txt is empty"):
        read_things(things, images="more.txt")
    with pytest.raises(DataError, match=r"more.txt is empty"):
        read_things(things, triplets="more.txt", images="concepts.txt")
    (things / "concepts.txt").unlink()
    with pytest.raises(DataError, match=r"no list of images .*holds images/, more.txt"):
        read_things(things)
    (things / "triplet_dataset" / "trainset.txt").unlink()
    with pytest.raises(DataError, match="no file of triplets"):
        read_things(things)


# Tables


def test_triplets(pictures):
    header = "id", "reference", "left", "right", "left_votes", "right_votes", "group", "remark"
    path = pictures / "sets" / "own.csv"
    names = ["../images/a.png", "../images/b.png", "../images/c.png"]
    table(
        path, header, ["x", *names, 3, 1, "g", "one, two"], ["y", *names, 2, 2, "g", ""], ["z", *names, 0, 0.5, "", ""]
    )
    data = read_triplets(path)
    images = [path.parent / name for name in names]
    assert data.items == (Triplet("x", *images, 0.25, "g"), Triplet("z", *images, 1.0, ""))
    assert (data.name, data.root, data.scoring, data.left_out) == ("sets/own", path.parent, "majority", 1)
    assert data.groups == {"g": 1, "": 1}
    assert data.paths == tuple(images)
    assert list(data) == list(data.items)
    shares = read_triplets(path, scoring="share")
    assert [item.right_share for item in shares] == [0.25, 0.5, 1.0]
    assert (shares.scoring, shares.left_out) == ("share", 0)
    with pytest.raises(InputError, match="scoring is 'mean'"):
        read_triplets(path, scoring="mean")


@pytest.mark.parametrize(
    ("column", "cells", "shares"),
    [
        ("label", ["0", "1", "left", "RIGHT"], [0, 1, 0, 1]),
        ("right_share", ["0", "1", "0.75"], [0, 1, 0.75]),
    ],
)
def test_triplets_answers(pictures, column, cells, shares):
    names = ["a.png", "b.png", "c.png"]
    path = table(pictures / "t.csv", ["reference", "left", "right", column], *([*names, cell] for cell in cells))
    assert [item.right_share for item in read_triplets(path)] == shares


@pytest.mark.parametrize("text", [
    "\ufeffreference,left,right,label\n\n\na.png,b.png,c.png,1\n,,,\n\n",
    "reference, left, right, label\r\na.png, b.png, c.png, 1\r\n",
    'reference;left;right;label\n"a.png";"b.png";"c.png";"1"\n',
    'reference,note,left,right,label\na.png,"two\nlines",b.png,c.png,1',
])  # fmt: skip
def test_tables_as_people_make_them(pictures, text):
    path = pictures / "t.csv"
    path.write_bytes(text.encode())
    (item,) = read_triplets(path)
    assert (item.reference, item.left, item.right) == tuple(pictures / "images" / f"{name}.png" for name in "abc")


def test_a_file_beside_the_table_comes_before_its_folder_of_images(pictures):
    path = table(pictures / "t.csv", ["reference", "left", "right", "label"], ["a.png", "b.png", "c.png", 0])
    picture(pictures / "a.png")
    (item,) = read_triplets(path)
    assert item.paths == (pictures / "a.png", pictures / "images" / "b.png", pictures / "images" / "c.png")


def test_triplets_damaged(pictures):
    path = pictures / "t.csv"
    path.write_text(
        "id,reference,left,right,left_votes,right_votes,note\n"
        'a,a.png,b.png,c.png,1,2,"on\ntwo lines"\n'
        "b,a.png,gone.png,lost.png,1,2,\n"  # line 4
        "c,a.png,b.png,c.png,1\n"
        "\n"
        "d,a.png,b.png,c.png,0,0,\n"
        "e,a.png,b.png,c.png,-1,2,\n"
        "f,a.png,b.png,c.png,one,2,\n"
        "a,a.png,b.png,c.png,1,2,\n"
        "g,,b.png,c.png,1,2,\n"
        "h,images,b.png,c.png,1,inf,\n"
        "i,images,b.png,c.png,1,2,\n"
        "j,a.png,b.png,c.png,1e308,1e308,\n"
    )
    data, problems = problems_of(read_triplets, path)
    assert [item.id for item in data] == ["a"]
    assert [problem.removeprefix(f"{path}, row ") for problem in problems] == [
        f"4: column 'left' names 'gone.png', and there is no file '{pictures}/gone.png'; "
        f"column 'right' names 'lost.png', and there is no file '{pictures}/lost.png'",
        "5: 5 fields where the header names 7",
        "7: left_votes and right_votes sum to 0: no share can be told",
        "8: column 'left_votes' holds '-1', expected a number of at least 0",
        "9: column 'left_votes' holds 'one', expected a number of at least 0",
        "10: its id 'a' is that of row 2 already",
        "11: column 'reference' is empty",
        "12: column 'right_votes' holds 'inf', expected a number of at least 0",
        f"13: column 'reference' names 'images', and there is no file '{pictures}/images'",
        "14: left_votes and right_votes sum to inf: no share can be told",
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "t.csv is empty: expected a header and rows"),
        (b"\n\n", "t.csv is empty"),
        (b"reference,left,right\n", "row 1: the header has the columns reference, left, right; needed are reference, "
         "left, right and left_votes \\+ right_votes or right_share or label"),
        (b"reference,left,label\n", "columns reference, left, label; needed are"),
        (b"reference,left,right,right,label\n", "row 1: the header names 'right' more than once"),
        (b"reference,left,right,label\n", "the data set is empty: no usable row"),
        (b"reference,left,right,label\na.png,b.png,c.png,2\n", "row 2: column 'label' holds '2'"),
        (b"reference,left,right,label\na.png,b.png,c\xe9.png,1\n", "row 2: not UTF-8 text; save the file as UTF-8"),
        (b'reference,left,right,label\na.png,b.png,"c.png,1\n', "row 2: it cannot be told into fields"),
    ],
)  # fmt: skip
def test_triplets_file_damaged(pictures, content, text):
    path = pictures / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=text):
        read_triplets(path)


def test_what_follows_an_open_quote_is_reported_once(pictures):
    path = pictures / "t.csv"
    path.write_text('reference,left,right,label\na.png,b.png,c.png,1\na.png,b.png,"c.png,1\na.png,b.png,c.png,1\n')
    data, problems = problems_of(read_triplets, path)
    assert len(data) == 1
    assert len(problems) == 1
    assert "row 3" in problems[0]


def test_ratings(pictures):
    images = pictures / "images"
    rows = ["a.png", "b.png", "4.5", "jpeg"], ["a.png", "c.png", "-2", "blur"]
    better = read_ratings(table(pictures / "r.csv", ["reference", "image", "mos", "group"], *rows))
    assert better.items[0] == Rating("row 2", images / "a.png", images / "b.png", 4.5, "jpeg")
    worse = read_ratings(table(pictures / "r.csv", ["reference", "image", "dmos", "group"], *rows))
    assert [item.quality for item in worse] == [-4.5, 2]
    path = table(pictures / "r.csv", ["reference", "image", "score"], *rows)
    with pytest.raises(DataError, match="columns reference, image, score; needed are reference, image and mos or dmos"):
        read_ratings(path)
    table(path, ["reference", "image", "mos"], ["a.png", "b.png", 1], ["a.png", "b.png", ""], ["a.png", "x.png", 1])
    _, problems = problems_of(read_ratings, path)
    assert [problem.removeprefix(f"{path}, row ")[:35] for problem in problems] == [
        "3: column 'mos' holds '', expected ",
        "4: column 'image' names 'x.png', an",
    ]


ODD = ["a", "b", "c", "odd_a", "odd_b", "odd_c"]


def test_odd_one_out_with_votes(pictures):
    header = [*ODD, "odd", "script", "group"]
    path = table(
        pictures / "o.csv", header,
        ["a.png", "b.png", "c.png", 1, 6, 1, "b", "greek", "serif"],
        ["a.png", "b.png", "d.png", 4, 4, 2, "a", "greek", ""],
        ["d.png", "e.png", "f.png", 0, 0, 2.5, "c", "greek", "sans"],
        ["d.png", "e.png", "f.png", 1, 1, 1, "", "", "sans"],
    )  # fmt: skip
    images = pictures / "images"
    first = OddOneOut("row 2", tuple(images / f"{name}.png" for name in "abc"), 1, "serif", (1 / 8, 6 / 8, 1 / 8))
    last = OddOneOut("row 4", tuple(images / f"{name}.png" for name in "def"), 2, "sans", (0, 0, 1))
    data = read_odd_one_out(path)
    assert data.items == (first, last)
    assert (data.root, data.scoring, data.left_out, data.groups) == (pictures, "majority", 2, {"serif": 1, "sans": 1})
    shares = read_dataset(path, "odd-one-out", scoring="share")
    assert [(item.odd, item.shares) for item in shares][1] == (0, (0.4, 0.4, 0.2))
    assert (len(shares), shares.scoring, shares.left_out) == (4, "share", 0)
    assert find_layout(path) == find_layout(pictures) == "odd-one-out"
    with pytest.raises(InputError, match="scoring is 'mean'"):
        read_odd_one_out(path, scoring="mean")


def test_odd_one_out_damaged(pictures, run):
    path = pictures / "o.csv"
    path.write_text(
        f"{','.join(ODD)}\n"
        "a.png,b.png,c.png,3,1,0\n"
        "a.png,b.png,gone.png,3,1,0\n"
        "a.png,b.png,c.png,0,0,0\n"
        "a.png,b.png,c.png,3,-1,0\n"
        "a.png,b.png,c.png,3,1\n"
        "a.png,b.png,a.png,3,1,0\n"
        "a.png,b.png,c.png,3,,0\n"
    )
    data, problems = problems_of(read_odd_one_out, path)
    assert len(data) == 1
    assert [problem.removeprefix(f"{path}, row ") for problem in problems] == [
        f"3: column 'c' names 'gone.png', and there is no file '{pictures}/gone.png'",
        "4: odd_a, odd_b and odd_c sum to 0: no share can be told",
        "5: column 'odd_b' holds '-1', expected a number of at least 0",
        "6: 5 fields where the header names 6",
        "7: it names an image twice: a.png, b.png, a.png",
        "8: column 'odd_b' holds '', expected a number of at least 0",
    ]
    code, out, _ = run("data", "check", path)
    assert code == 1
    assert "layout odd-one-out (odd-one-out), votes from odd_a, odd_b, odd_c" in out
    table(path, ODD[:5], ["a.png", "b.png", "c.png", 3, 1])
    with pytest.raises(DataError, match=r"columns a, b, c, odd_a, odd_b; needed are a, b, c, odd_a, odd_b, odd_c"):
        read_odd_one_out(path)
    table(path, ODD, ["a.png", "b.png", "c.png", 2, 2, 0])
    with pytest.raises(DataError, match=r"the data set is empty: no usable row; left out: 1"):
        read_odd_one_out(path)
    code, out, _ = run("data", "check", path)
    assert code == 1


# Questions made of ratings


def by_the_rule(rows, margin, both_ways):
    """The rule once more, over all threes of pictures: {(reference, nearer, farther)}."""
    found, scores = set(), {}
    for one, other, score in rows:
        scores[one, other] = score
        if both_ways:
            scores[other, one] = score
    for reference, near in scores:
        for other, far in scores:
            if other == reference and scores[reference, near] - scores[reference, far] >= margin:
                found.add((reference, near, far))
    return found


def names_of(data):
    """{(reference, nearer, farther)}, and that nothing is asked twice."""
    found = []
    for item in data:
        near, far = (item.right, item.left) if item.right_share == 1 else (item.left, item.right)
        found.append((item.reference.stem, near.stem, far.stem))
    assert len(set(found)) == len(found) == len({item.id for item in data})
    return set(found)


def rated(pictures, rows, groups=None):
    cells = [
        [f"{one}.png", f"{other}.png", score, group]
        for (one, other, score), group in zip(rows, groups or [""] * len(rows), strict=True)
    ]
    return read_ratings(table(pictures / "r.csv", ["reference", "image", "mos", "group"], *cells))


@pytest.mark.parametrize("margin", [1, 2, 3.5])
def test_questions_of_a_symmetric_set_take_either_picture_as_the_reference(pictures, margin):
    scores = np.random.default_rng(0).integers(1, 9, 15).tolist()
    rows = [(*pair, score) for pair, score in zip(combinations("abcdef", 2), scores, strict=True)]
    rows = [(b, a, score) if index % 3 else (a, b, score) for index, (a, b, score) in enumerate(rows)]  # in any order
    data = rating_triplets(rated(pictures, rows), margin)
    assert names_of(data) == by_the_rule(rows, margin, True)
    assert {item.reference.stem for item in data} > {"a"}
    assert (data.margin, data.scoring, data.name) == (margin, "majority", f"{pictures.name}/r")
    assert "either picture" in data.description
    assert data == rating_triplets(rated(pictures, rows), margin)
    few = data.sample(4, seed=3)
    assert few.items == data.sample(4, seed=3).items != data.sample(4, seed=4).items
    # One pair less, or one of them twice: then the reference is what the table calls so.
    for fewer in (rows[:-1], [*rows, rows[0]]):
        own = rating_triplets(rated(pictures, fewer), margin)
        assert {item.reference.stem for item in own} <= {row[0] for row in fewer}
        assert "either picture" not in own.description
    assert names_of(rating_triplets(rated(pictures, rows[:-1]), margin, symmetric=True)) == by_the_rule(
        rows[:-1], margin, True
    )
    assert names_of(rating_triplets(rated(pictures, rows), margin, symmetric=False)) == by_the_rule(rows, margin, False)


def test_a_true_reference_is_never_swapped(pictures):
    rows = [("a", "b", 1), ("a", "c", 2.1), ("a", "d", 1.1), ("e", "b", 5), ("e", "f", 3)]
    data = rating_triplets(rated(pictures, rows, ["blur", "jpeg", "blur", "blur", "blur"]), 1)
    # 2.1 and 1.1 differ by less than 1 in binary, and by 1 as written.
    assert names_of(data) == {("a", "c", "b"), ("a", "c", "d"), ("e", "b", "f")}
    assert [(item.id, item.group) for item in data] == [
        ("row 2 / row 3", "across groups"),
        ("row 3 / row 4", "across groups"),
        ("row 5 / row 6", "blur"),
    ]
    assert [item.right_share for item in data] == [1, 0, 0]  # left is what comes first in the table


def test_a_picture_that_is_written_in_two_ways_is_one(pictures):
    here = f"../{pictures.name}/images"
    path = table(
        pictures / "r.csv", ["reference", "image", "mos"],
        ["a.png", "b.png", 1], [f"{here}/a.png", "c.png", 3], ["images/b.png", f"{here}/c.png", 5],
    )  # fmt: skip
    data = rating_triplets(read_ratings(path), 1)
    assert "either picture" in data.description
    assert names_of(data) == {("a", "c", "b"), ("b", "c", "a"), ("c", "b", "a")}
    table(path, ODD, ["a.png", f"{here}/a.png", "c.png", 1, 2, 3])
    with pytest.raises(DataError, match="it names an image twice"):
        read_odd_one_out(path)


def test_margins_that_make_no_questions_are_told(pictures):
    ratings = rated(pictures, [("a", "b", 1), ("a", "c", 2.5), ("d", "c", 9)])
    for margin in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"margin is .*; it must be a finite number above 0"):
            rating_triplets(ratings, margin)
    with pytest.raises(InputError, match=r"r: no two ratings of one reference differ by 2 or more: .* is 1\.5"):
        rating_triplets(ratings, 2)


def test_the_rocks_are_symmetric(shared):
    found = rating_triplets(read_ratings(shared / "human" / "rocks30" / "ratings.csv"), 1)
    assert (len(found), len(found.paths)) == (6317, 30)
    published = read_triplets(shared / "human" / "rocks30" / "triplets.csv")
    assert names_of(published) <= names_of(found)


votes = st.one_of(st.integers(0, 10**6), st.floats(0, 1e6))
cells = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(st.permutations("abc"), votes, votes, cells).filter(lambda row: row[1] + row[2]), min_size=1
    ),
    bom=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_is_written_is_read(pictures, rows, bom, end, quoting):
    path = pictures / "t.csv"
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as stream:
        writer = csv.writer(stream, lineterminator=end, quoting=quoting)
        writer.writerow(["reference", "left", "right", "left_votes", "right_votes", "group"])
        writer.writerows([*(f"{name}.png" for name in names), left, right, group] for names, left, right, group in rows)
    data = read_triplets(path, scoring="share")
    images = pictures / "images"
    expected = [
        Triplet(f"row {number}", *(images / f"{name}.png" for name in names), right / (left + right), group.strip())
        for number, (names, left, right, group) in enumerate(rows, start=2)
    ]
    assert list(data) == expected


def test_material(shared):
    data = read_dataset(shared / "material-2afc" / "test.csv", "2afc", scoring="share")
    assert (data.name, len(data), len(data.paths)) == ("material-2afc/test", 1369, 100)
    majority = read_triplets(shared / "material-2afc" / "test.csv")
    assert len(majority) + majority.left_out == 1369
    train = read_triplets(shared / "material-2afc" / "train.csv", scoring="share")
    assert len(train) == 21406


# Telling layouts


def test_detect(tmp_path):
    numbered(tmp_path / "b" / "2afc" / "val", SPLITS, ("ref", "p0", "p1"), "judge", 1)
    numbered(tmp_path / "b" / "jnd" / "val", ("cnn",), ("p0", "p1"), "same", 1)
    nights(tmp_path / "n")
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "c" / "images" / name)
    table(tmp_path / "c" / "own.csv", ["reference", "left", "right", "label"], ["a.png", "b.png", "c.png", "1"])
    assert find_layout(tmp_path / "n") == find_layout(tmp_path / "n" / "data.csv") == "nights"
    assert find_layout(tmp_path / "b") == find_layout(tmp_path / "b" / "2afc") == "bapps"
    assert find_layout(tmp_path / "b" / "jnd") == "jnd"
    assert find_layout(tmp_path / "c") == find_layout(tmp_path / "c" / "own.csv") == "triplets"
    assert read_dataset(tmp_path / "b", "2afc").name == "bapps"
    assert read_dataset(tmp_path / "b", "jnd").name == "bapps-jnd"
    assert read_dataset(tmp_path / "c", "2afc", scoring="share").scoring == "share"
    assert len(read_dataset(tmp_path / "n", "2afc", split="all", min_votes=0)) == 5
    with pytest.raises(InputError, match=r"read as nights, which takes no option scoring; its options: split, min_v"):
        read_dataset(tmp_path / "n", "2afc", scoring="share")
    with pytest.raises(InputError, match=r"holds nights \(2afc\), nothing for the task 'jnd'"):
        read_dataset(tmp_path / "n", "jnd")
    with pytest.raises(InputError, match="task is '3afc'; it must be one of 2afc, odd-one-out, jnd, quality"):
        read_dataset(tmp_path / "n", "3afc")


def test_detect_things_and_tables(things):
    assert find_layout(things) == find_layout(things / "triplet_dataset" / "trainset.txt") == "things"
    assert len(read_dataset(things, "odd-one-out")) == 2
    folder = things / "tables"
    headers = {
        "jnd": ["a", "b", "same"],
        "ratings": ["reference", "image", "dmos"],
        "things": ["image1", "image2", "image3", "choice"],
    }
    for name, header in headers.items():
        assert find_layout(table(folder / f"{name}.csv", header)) == name
    (folder / "things.csv").unlink()
    with pytest.raises(DataError, match=r"holds 2 tables, jnd.csv, ratings.csv: pass one of them"):
        read_dataset(folder, "quality")


def test_detect_nothing(tmp_path):
    with pytest.raises(DataError, match=r"is no file and no folder"):
        find_layout(tmp_path / "gone")
    with pytest.raises(
        DataError, match=r"Looked for: data.csv .*\(NIGHTS\), .*judge.*\(THINGS\), one CSV; it is empty"
    ):
        find_layout(tmp_path)
    for number in range(12):
        (tmp_path / f"{number:02d}.md").write_text("")
    with pytest.raises(DataError, match=r"it holds 00.md, .*09.md and 2 more"):
        find_layout(tmp_path)
    with pytest.raises(DataError, match=r"00.md is no CSV and no list of triplets"):
        find_layout(tmp_path / "00.md")
    table(tmp_path / "x.csv", ["p", "q"])
    with pytest.raises(DataError, match=r"x.csv, row 1: the header has the columns p, q; looked for reference, left"):
        find_layout(tmp_path)
    table(tmp_path / "y.csv", ["p", "q"])
    with pytest.raises(DataError, match=r"holds 2 tables, x.csv, y.csv: pass one of them"):
        find_layout(tmp_path)


# The command


def test_check_nights(tmp_path, run):
    nights(tmp_path)
    code, out, _ = run("data", "check", tmp_path)
    assert code == 0
    assert "nights: layout nights (2afc)" in out
    assert "4 items, 12 distinct images" in out
    assert "split test: 2 items (imagenet 1, non-imagenet 1)" in out
    assert "split train: 1 items (imagenet 1)" in out
    assert "left out: 1 (fewer than 6 votes)" in out
    assert "no problems; 12 images decoded" in out


def test_check_lists_problems(pictures, run):
    path = pictures / "t.csv"
    rows = [["a.png", "b.png", "c.png", "1"], *(["a.png", "b.png", f"{n}.png", "1"] for n in range(30))]
    table(path, ["reference", "left", "right", "label"], *rows)
    (pictures / "images" / "b.png").write_bytes(b"no picture")
    code, out, _ = run("data", "check", path)
    assert code == 1
    assert "31 problems; 3 images decoded" in out
    assert f"{path}, row 3: column 'right' names '0.png'" in out
    assert "row 22:" in out
    assert "row 23:" not in out
    assert "and 11 more; --json lists all" in out

    code, out, _ = run("data", "check", path, "--json")
    assert code == 1
    report = json.loads(out)
    assert len(report["problems"]) == 31
    assert "b.png" in report["problems"][-1]
    (one,) = report["sets"]
    assert (one["layout"], one["task"], one["items"], one["images"], one["left_out"]) == ("triplets", "2afc", 1, 3, 0)

    table(path, ["reference", "left", "right", "label"], rows[0])
    code, out, _ = run("data", "check", path, "--no-images")
    assert code == 0
    assert "no problems; no image was decoded" in out
    assert run("data", "check", path)[0] == 1


def test_check_both_parts_of_bapps(bapps, run):
    numbered(bapps / "jnd" / "val", ("cnn",), ("p0", "p1"), "same")
    code, out, _ = run("data", "check", bapps)
    assert code == 0
    assert "bapps: layout bapps (2afc)" in out
    assert "bapps-jnd: layout jnd (jnd)" in out
    assert "groups: cnn 3, color 3" in out


def test_check_what_cannot_be_read(tmp_path, run):
    code, _, err = run("data", "check", tmp_path)
    assert code == 1
    assert "robustsim: " in err
    assert "Looked for" in err
    table(tmp_path / "t.csv", ["reference", "left", "right", "label"])
    code, out, _ = run("data", "check", tmp_path)
    assert code == 1
    assert "the data set is empty" in out


def test_data_is_light():
    code = "import sys, robustsim.data.layouts, robustsim.cli; sys.argv = ['robustsim', 'data', 'check', '--help']\n"
    code += "try: robustsim.cli.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--no-images" in done.stdout
    assert not {"torch", "numpy", "PIL", "tqdm"} & set(done.stdout.splitlines()[-1].split())


def test_sets_are_values(pictures):
    item = Pair("1", pictures / "a", pictures / "b", 0.5)
    assert DataSet("x", pictures, (item,)) == DataSet("x", pictures, (item,))
    with pytest.raises(AttributeError):
        item.id = "2"
