"""Several models, perceptual hashes and views in one index: what is kept of a picture, and what finds it."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from robustsim import RobustSim
from robustsim.encoders.tail import Tail
from robustsim.errors import InputError, SearchError
from robustsim.images import load_views
from robustsim.search import Index, rates
from robustsim.search.storage.rows import Entry, make_table
from tests import trainings
from tests.conftest import EXAMPLES
from tests.test_index_files import names

pytest.importorskip("lance")
pytestmark = pytest.mark.usefixtures("one_thread")


def draw(path, seed):
    """A small picture with enough in it for a hash, unlike others."""
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def model(name, seed):
    encoder = trainings.encoder(seed=seed)
    encoder.card = replace(encoder.card, name=name)
    return RobustSim(encoder, batch_size=4)


@pytest.fixture(scope="module")
def first():
    return model("first", 0)


@pytest.fixture(scope="module")
def second():
    return model("second", 1)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for seed in range(6):
        draw(root / f"{seed}.png", seed)
    frames = [Image.open(draw(tmp_path / "frames" / f"{seed}.png", seed)).copy() for seed in (20, 21, 22)]
    frames[0].save(root / "moving.png", save_all=True, append_images=frames[1:], duration=100)
    return root


@pytest.fixture
def index(first, second, folder, tmp_path):
    index = Index.create(tmp_path / "index", first, also=[second], views=["frames"])
    assert index.add(folder).added == 7
    return index


def test_each_line_answers_as_its_model_does(first, second, folder, index):
    assert index.lines == ("first", "second", "phash")
    files = sorted(folder.glob("?.png"))
    for metric in (first, second):
        answer = index.within(files[2], 2**0.5, by=metric.card.name)
        found = {hit.path: hit.distance for hit in answer[0]}
        expected = metric.distance_matrix(files[2], files)[0]
        np.testing.assert_allclose([found[str(path)] for path in files], expected, atol=5e-4)
        assert {evidence.line for hit in answer[0] for evidence in hit.found_by} == {metric.card.name}
    hashes = [load_views(path, [first.card.preprocessing], hashed=True)[0].hash for path in files]
    bits = [bin(int.from_bytes(one, "big") ^ int.from_bytes(hashes[2], "big")).count("1") for one in hashes]
    found = {hit.path: hit.distance for hit in index.within(files[2], 2**0.5, by="phash")[0]}
    np.testing.assert_allclose([found[str(path)] for path in files], np.sqrt(np.array(bits) / 128), atol=1e-6)
    assert index.check().ok


def test_a_picture_that_any_line_finds_is_a_hit(first, second, folder, index):
    differs = False
    for query in sorted(folder.glob("?.png")):
        everything = {line: index.within(query, 2**0.5, by=line)[0] for line in index.lines}
        limits = {line: hits[1].distance for line, hits in everything.items()}
        answer = index.within(query, limits)
        assert answer.thresholds == (limits,)
        expected = {}
        for line, hits in everything.items():
            for hit in hits:
                if hit.distance <= limits[line]:
                    expected.setdefault(hit.path, set()).add(line)
        found = {hit.path: {evidence.line for evidence in hit.found_by} for hit in answer[0]}
        assert found == expected
        differs |= len(set(map(frozenset, expected.values()))) > 1
        by_first = {hit.path: hit.distance for hit in everything["first"]}
        distances = [hit.distance for hit in answer[0]]  # by the first line, whatever line found it
        assert distances == sorted(by_first[path] for path in expected)
    assert differs  # or this test shows nothing


def test_views_of_pictures_are_rows_of_theirs(folder, index, tmp_path):
    assert len(index) == 7
    hit = index.within(tmp_path / "frames" / "22.png", 0.01)[0]
    assert names(hit) == ["moving.png"]
    assert hit[0].found_by[0].view == "frame 2"
    answer = index.search(tmp_path / "frames" / "20.png", 7)
    assert sorted(names(answer[0])) == sorted(path.name for path in folder.iterdir())  # a picture is found once
    assert answer.compared == 7
    draw(folder / "moving.png", 77)
    assert index.sync(folder).replaced == 1
    assert names(index.within(tmp_path / "frames" / "22.png", 0.01)[0]) == []
    assert index.add(folder, label="mine").relabelled == 7
    assert index.forget(folder / "moving.png").forgotten == 1
    assert (len(index), index.check().rows) == (6, 6)


def test_all_views_go_with_their_picture(folder, index, tmp_path):
    assert index.check().rows == 9
    assert index.add(folder, label="mine").relabelled == 7
    assert index.check().rows == 9
    assert index.within(tmp_path / "frames" / "21.png", 0.01)[0][0].label == "mine"
    (folder / "moving.png").unlink()
    assert index.sync(folder).removed == 1
    assert (len(index), index.check().rows) == (6, 6)


def test_views_of_a_query(first, folder, index):
    mirrored = ImageOps.mirror(Image.open(folder / "3.png").convert("RGB"))
    assert names(index.within(mirrored, 0.01)[0]) == []
    hits = index.within(mirrored, 0.01, views=["mirror"])[0]
    assert names(hits) == ["3.png"]
    assert hits[0].found_by[0].query_view == "mirror"
    assert names(index.search(mirrored, 1, views=["mirror"])[0]) == ["3.png"]
    tensor = torch.from_numpy(np.array(mirrored)).permute(2, 0, 1)
    assert names(index.search(tensor, 1, views=["mirror"])[0]) == ["3.png"]
    pair = index.within([mirrored, Image.open(folder / "4.png").convert("RGB")], 0.01, views=["mirror"])
    assert [names(hits) for hits in pair] == [["3.png"], ["4.png"]]


def test_pictures_in_memory_have_views_and_lines(first, second, tmp_path):
    index = Index.create(tmp_path / "index", first, also=[second], views=["mirror"])
    picture = Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize((40, 30))
    held = BytesIO()
    picture.save(held, "png")
    assert index.add([picture, held.getvalue()]).added == 1
    assert (len(index), index.check().rows) == (1, 2)
    hit = index.within(ImageOps.mirror(picture), {"second": 0.01, "phash": 0.01})[0][0]
    assert [evidence.view for evidence in hit.found_by] == ["mirror", "mirror"]


def test_what_a_picture_in_memory_hides_below_its_alpha_is_found(first, folder, tmp_path):
    """As a query and in the index; two that show the same on white are two."""
    index = Index.create(tmp_path / "hidden.index", first, views=["alpha"])
    hidden = [Image.open(folder / f"{seed}.png").convert("RGBA") for seed in (0, 1)]
    for image in hidden:
        image.putalpha(0)
    assert index.add(hidden).added == 2
    for number, image in enumerate(hidden):
        (hit,) = index.within(folder / f"{number}.png", 0.01)[0]
        assert [one.view for one in hit.found_by] == ["opaque"]
        assert index.add([image]).unchanged == 1
    index.add([folder / "1.png"])
    assert "1.png" in names(index.within(hidden[1], 0.01, views=["alpha"])[0])


def test_a_picture_without_contrast_has_no_hash(first, tmp_path):
    Image.new("RGB", (30, 30), (9, 90, 200)).save(tmp_path / "flat.png")
    index = Index.create(tmp_path / "index", first)
    index.add([tmp_path / "flat.png", draw(tmp_path / "1.png", 1)])
    assert names(index.within(tmp_path / "flat.png", 0.01)[0]) == ["flat.png"]
    assert names(index.within(tmp_path / "flat.png", 2**0.5, by="phash")[0]) == []
    assert names(index.within(tmp_path / "1.png", 2**0.5, by="phash")[0]) == ["1.png"]


@pytest.fixture
def tail():
    return Tail(
        data="made up", pictures=2000, pairs=10**6, distances=(0.1, 0.2, 0.5), counts=(0, 10, 5000), effects=(1, 1, 1)
    )


def test_a_rate_is_shared_by_lines_and_comparisons(folder, index, tail, monkeypatch):
    monkeypatch.setattr(rates, "phash_tail", lambda: tail)
    rates.keep_tails(index.path, {"first": tail, "second": tail})
    alone = index.within(folder / "0.png", false_positives=4e-5)
    # Nine rows of seven pictures: a picture takes less than two comparisons, on average.
    assert alone.thresholds == ({"first": 0.2},)
    assert alone.false_positives == pytest.approx(2 * tail.rate_bound(0.2))
    assert alone.measured_on == {"first": "made up"}
    # Each query has its own share: that of three frames takes four comparisons, whatever stands beside it.
    both = index.within([folder / "0.png", folder / "moving.png"], false_positives=4e-5, views=["frames"])
    assert both.thresholds == ({"first": 0.2}, {"first": 0.1})
    assert index.within(folder / "0.png", false_positives=4e-5, by="all").thresholds[0]["second"] == 0.1
    # Of a tenant whose pictures have one view each, nobody else's count.
    index.add(folder / "5.png", tenant="plain")
    assert index.within(folder / "0.png", false_positives=2e-5, tenant="plain").thresholds == ({"first": 0.2},)
    with pytest.raises(InputError, match=r"of which each of 6 comparisons has its part: ask for 1.9e-05"):
        index.within(folder / "0.png", false_positives=1e-5, by="all")
    assert index.within(folder / "0.png", false_positives=1.9e-5, by="all").false_positives <= 1.9e-5
    for wrong in (3, 1, 0, -1e-5):
        with pytest.raises(InputError, match="lies between 0 and 1"):
            index.within(folder / "0.png", false_positives=wrong, by="all")
    # Pairs of pictures: views of the one times views of the other.
    assert index.duplicates(false_positives=4e-5, by="first").thresholds == {"first": 0.2}
    empty = Index.create(folder.parent / "empty", index.metric)
    rates.keep_tails(empty.path, {"first": tail})
    assert empty.duplicates(false_positives=4e-5, by="first").groups == ()
    frames = [Image.open(folder / f"{n}.png") for n in (0, 1, 2)]
    frames[0].save(folder / "other.png", save_all=True, append_images=frames[1:])
    index.add(folder)
    with pytest.raises(InputError, match="each of 3 comparisons"):
        index.duplicates(false_positives=7e-6, by="first")


def test_an_index_measures_its_own_rates(first, folder, tmp_path):
    index = Index.create(tmp_path / "index", first)
    with pytest.raises(InputError, match="first"):
        index.within(folder / "0.png", false_positives=0.9)  # no card says anything of this model
    index.add(folder)
    for tenant in ("a", "b"):  # the same files are no further pictures, and no views of them
        index.add(folder, tenant=tenant)
    tails = index.measure_rates()
    assert set(tails) == {"first", "phash"}
    assert (tails["first"].pairs, tails["first"].comparisons) == (7 * 6 // 2, 1)
    opened = Index.open(index.path, first)
    answer = opened.within(folder / "0.png", false_positives=0.9)
    assert answer.thresholds[0]["first"] == tails["first"].threshold(0.9)
    assert "21 pictures of the index" in answer.measured_on["first"]
    draw(folder / "new.png", 70)
    opened.add(folder)
    opened.forget(folder / "new.png")  # what an index measured stays its measure until it is measured again
    assert opened.within(folder / "0.png", false_positives=0.9).thresholds == answer.thresholds
    assert opened.check().ok
    kept = tmp_path / "index" / rates.NAME
    kept.write_text(kept.read_text().replace('"pairs": 21', '"pairs": 91'))
    with pytest.raises(SearchError, match=r"rates of the index .* are damaged"):
        opened.within(folder / "0.png", false_positives=0.9)
    assert not opened.check().ok


def test_rates_of_pictures_without_hashes(first, tmp_path):
    for number, colour in enumerate(((9, 90, 200), (200, 9, 9), (0, 80, 0))):
        Image.new("RGB", (30, 30), colour).save(tmp_path / f"{number}.png")
    index = Index.create(tmp_path / "index", first)
    index.add(sorted(tmp_path.glob("*.png")))
    assert set(index.measure_rates()) == {"first"}


def test_filters_hold_for_every_line(folder, index):
    index.add(folder / "1.png", tenant="b")
    index.add(folder / "2.png", label="two")
    for line in index.lines:
        everything = {line: 2**0.5}
        assert names(index.within(folder / "0.png", everything, tenant="b")[0]) == ["1.png"]
        assert names(index.within(folder / "0.png", everything, label="two")[0]) == ["2.png"]


def test_the_nearest_views_count(first, folder, tmp_path):
    """Of a query, of a picture, and where another line has found it."""
    index = Index.create(tmp_path / "index", first, views=["mirror"])
    index.add(folder / "3.png")
    whole = Image.open(folder / "3.png").convert("RGB")
    for query in (whole, ImageOps.mirror(whole)):
        for views in ((), ("mirror",)):
            assert index.search(query, 1, views=views)[0][0].distance < 0.01
            hit = index.within(query, {"first": 2**0.5, "phash": 0.01}, views=views)[0][0]
            assert [evidence.distance < 0.01 for evidence in hit.found_by] == [True, True]
            hit = index.within(query, {"first": 0.0, "phash": 0.01}, views=views)[0][0]
            assert [evidence.line for evidence in hit.found_by] == ["phash"]
            assert hit.distance < 0.01


def test_what_no_index_can_be_asked(first, second, folder, index, tmp_path):
    for wrong, words in (
        ({"by": "third"}, "does not compare by 'third'; it has 'first', 'second', 'phash'"),
        ({"by": ["first", "second"]}, "name a distance for each of them, or a rate"),
        ({"by": []}, "no line was named"),
        ({"views": ["upside down"]}, "upside down"),
    ):
        with pytest.raises(InputError, match=words):
            index.within(folder / "0.png", 0.3, **wrong)
    with pytest.raises(InputError, match="give one"):
        index.within(folder / "0.png")
    with pytest.raises(InputError, match="give one"):
        index.within(folder / "0.png", 0.3, false_positives=1e-3)
    z = first.embed(folder / "0.png")
    for wrong in ({"by": "second"}, {"views": ["mirror"]}, {"by": "phash"}):
        with pytest.raises(InputError, match="an embedding has no views, and is compared by its own model alone"):
            index.within(z, 0.3, **wrong)
    with pytest.raises(InputError, match="told apart by the names"):
        Index.create(tmp_path / "two", first, also=[first])
    with pytest.raises(InputError, match="'phash' is that of the perceptual hash"):
        Index.create(tmp_path / "two", model("phash", 3))
    with pytest.raises(SearchError, match="was made by 'second'"):
        Index.open(index.path, first, also=[model("second", 7)])
    assert Index.open(index.path, first, also=[second]).within(folder / "1.png", 0.01, by="second")[0]


def test_an_approximate_search_says_so(first, folder, tmp_path):
    index = Index.create(tmp_path / "index", first)
    index.add(folder, label="mine")
    small = index.search(folder / "2.png", 3, approximate=True)
    assert (small.complete, small.recall) == (True, None)
    with index._store.writing() as writer:
        rows = np.random.default_rng(0).standard_normal((1100, first.card.embedding_dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        entries = [Entry(f"{n:064x}", f"/{n}.jpg") for n in range(len(rows))]
        writer.append(make_table(entries, [rows], writer.snapshot.dataset.schema))
    index = Index.open(index.path, first)
    z = first.embed(folder / "2.png")
    about = index.search(z, 3, approximate=True)
    assert not index._loaded._codes  # most of the memory, which is not needed
    exact = index.search(z, 3)
    assert (exact.complete, exact.recall) == (True, None)
    assert not about.complete
    assert 0.5 < about.recall <= 1
    assert about[0][0] == exact[0][0]  # to the last bit of the distance
    assert {hit.label for hit in index.search(z, 7, label="mine", approximate=True)[0]} == {"mine"}
    other = torch.from_numpy(rows[500:501])  # no picture with the label is among the nearest of this one
    assert {hit.label for hit in index.search(other, 7, label="mine", approximate=True)[0]} == {"mine"}
    assert len(index.search(z, 10**9, approximate=True)[0]) <= len(index)
    assert names(index.within(z, 0.01, approximate=True)[0]) == ["2.png"]
    assert (tmp_path / "index" / "approximate").exists()
    index.forget(folder / "3.png")
    assert not (tmp_path / "index" / "approximate").exists()
