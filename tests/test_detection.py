"""Detection by neighbours: the rule against its own definition, ties, lists, and real indexes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from robustsim import RobustSim
from robustsim.errors import EncodingError, ImageError, InputError, SearchError
from robustsim.images import Preprocessing
from robustsim.search import Detector, Index, Reason, Rule, ScoreDetector, decide_embeddings, open_banks
from robustsim.search.detection.rule import TIE
from tests import trainings
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("unsafe", "buffer", "safe")


def rows(seed, *counts, dim=7):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, dim)).astype(np.float32) for count in counts]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=2, max_size=3))
def test_the_rule_is_that_of_the_most_similar_picture(seed, counts):
    """The paper's: the class of the picture with the largest cosine similarity to the query, of all classes."""
    queries, *pools = rows(seed, 6, *counts)
    names = (*NAMES[: len(counts) - 1], "safe")
    found = decide_embeddings(queries, dict(zip(names, pools, strict=True)), Rule(tie=0))
    pool, classes = np.concatenate(pools), np.repeat(names, counts)
    cos = torch.nn.functional.cosine_similarity(
        torch.from_numpy(queries)[:, None].double(), torch.from_numpy(pool)[None].double(), dim=-1
    )
    expected = classes[cos.argmax(1).numpy()].tolist()
    assert [one.bank for one in found] == expected
    assert [one.flagged for one in found] == [name != "safe" for name in expected]
    assert {one.reasons for one in found} <= {(Reason("nearest", (name,)),) for name in names}


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.floats(0.3, 1.4))
def test_votes_within_a_distance(seed, votes, within):
    queries, *pools = rows(seed, 5, 6, 4, 8)
    found = decide_embeddings(
        queries, dict(zip(NAMES, pools, strict=True)), Rule(votes=votes, within=within, tie=0, flag_unknown=False)
    )
    for query, one in zip(queries.astype(np.float64), found, strict=True):
        near = []
        for name, pool in zip(NAMES, pools, strict=True):
            for row in pool.astype(np.float64):
                cos = row @ query / np.linalg.norm(row) / np.linalg.norm(query)
                near.append((np.sqrt(1 - cos), name))
        near = [name for away, name in sorted(near)[:votes] if away <= within]
        most = max(map(near.count, near), default=0)
        winners = [name for name in near if near.count(name) == most]  # the nearest first
        unsafe = [name for name in winners if name != "safe"]
        assert one.bank == next(iter(unsafe + winners), None)
        assert one.flagged == (one.bank not in ("safe", None))


def test_what_is_as_near_to_both_is_not_safe():
    rule = Rule()
    assert rule.decide({"safe": [0.3], "unsafe": [0.3]}) == ("unsafe", True, (Reason("tie", ("unsafe", "safe")),))
    assert rule.decide({"safe": [0.3], "unsafe": [0.3 + TIE / 2]}).flagged
    assert rule.decide({"safe": [0.3], "unsafe": [0.3 + 2 * TIE]}) == ("safe", False, (Reason("nearest", ("safe",)),))
    # However many safe ones are as near.
    assert replace(rule, votes=1).decide({"safe": [0.3] * 5, "unsafe": [0.3]}).bank == "unsafe"
    three = replace(rule, votes=3)
    assert three.decide({"safe": [0.1, 0.4, 0.4], "unsafe": [0.4, 0.4, 0.9]}).bank == "unsafe"
    assert three.decide({"safe": [0.1, 0.2, 0.4], "unsafe": [0.2, 0.4]}).bank == "safe"  # two of three, whatever comes
    assert replace(rule, votes=2).decide({"safe": [0.1], "unsafe": [0.9]}).bank == "unsafe"  # a vote each
    assert rule.decide({"unsafe": [0.3], "buffer": [0.3], "safe": [0.3]}).bank == "unsafe"
    assert str(rule.decide({"safe": [0.3], "unsafe": [0.3]}).reasons[0]) == "tie unsafe, safe"


def test_doubt_among_several_classes_is_not_safe():
    near = {"safe": [0.1, 0.11, 0.9], "a": [0.2, 0.3002, 0.9], "b": [0.3, 0.9], "c": [0.3001, 0.9]}
    found = Rule(votes=5).decide(near)  # two of five are a, if of the three near 0.3 that of a is the nearer
    assert (found.bank, found.flagged, found.reasons[0].kind) == ("a", True, "tie")
    assert not Rule(votes=5).decide({**near, "a": [0.2, 0.4]}).flagged


def test_limits_are_as_sure_as_distances():
    """A copy is not at 0 in float16: what denies reaches further by that, what lets pass does not."""
    copy = {"known": [TIE / 2], "safe": [0.5]}
    assert Rule(deny={"known": 0}).decide(copy).flagged
    assert not Rule(deny={"known": 0}).decide({**copy, "known": [2 * TIE]}).flagged
    assert Rule(allow={"known": 0}).decide({**copy, "unsafe": [0.1]}).flagged
    assert Rule(within=0.3).decide({"unsafe": [0.3 + TIE / 2]}).bank == "unsafe"
    assert Rule(within=0.3).decide({"safe": [0.3 + TIE / 2]}).bank is None


def test_nothing_within_the_distance_is_unknown():
    away = {"unsafe": [0.6], "safe": [0.5]}
    assert Rule(within=0.4).decide(away) == (None, True, (Reason("unknown"),))
    assert Rule(within=0.4, flag_unknown=False).decide(away) == (None, False, (Reason("unknown"),))
    assert Rule(within=0.4).decide({"unsafe": [0.6]}) == (
        None,
        False,
        (Reason("unknown"),),
    )  # a list of what is not wanted
    assert Rule(within={"safe": 0.4}).decide(away).bank == "unsafe"
    assert Rule(within=0.5).decide(away).bank == "safe"


def test_lists_come_before_classes():
    rule = Rule(allow={"mine": 0.2}, deny={"known": 0.2})
    near = {"unsafe": [0.3], "safe": [0.5], "mine": [0.9], "known": [0.9]}
    assert rule.decide(near) == ("unsafe", True, (Reason("nearest", ("unsafe",)),))
    allowed = {**near, "mine": [0.2]}
    assert rule.decide(allowed, ["head"]) == ("unsafe", False, (Reason("allow", ("mine",)),))
    both = rule.decide({**allowed, "known": [0.1]}, ["head"])
    assert both.flagged
    assert [one.kind for one in both.reasons] == ["deny", "detector", "nearest"]
    assert rule.decide({**near, "safe": [0.1], "known": [0.2]}) == ("safe", True, (Reason("deny", ("known",)),))
    # A list that is the nearest of all, and is not near enough, is no class.
    assert rule.decide({**near, "known": [0.21], "mine": [0.21]}).bank == "unsafe"
    assert rule.decide({**near, "safe": [0.1]}, ["head"]) == ("safe", True, (Reason("detector", ("head",)),))
    # Lists alone.
    assert not Rule(deny={"known": 0.2}).decide({"known": [0.3]}).flagged
    # A class that may let pass too.
    trusted = Rule(allow={"safe": 0.1})
    assert not trusted.decide({"safe": [0.1], "unsafe": [0.05]}).flagged
    assert trusted.decide({"safe": [0.2], "unsafe": [0.1]}).flagged


@pytest.mark.parametrize(
    ("rule", "banks", "message"),
    [
        (Rule(), (), "one bank of pictures at least"),
        (Rule(), ("unsafe",), "each is flagged, so that every picture would be"),
        (Rule(), ("safe",), "each is safe"),
        (Rule(deny={"unsafe": 0.1}), ("safe", "unsafe"), "each is safe"),
        (Rule(safe=("saef",)), ("safe", "unsafe"), "safe names 'saef', and the banks are 'safe', 'unsafe'"),
        (Rule(safe="safe"), ("safe", "unsafe"), "safe takes a list of names"),
        (Rule(votes=0), ("safe", "unsafe"), "votes must be a whole number"),
        (Rule(within=2), ("safe", "unsafe"), "from 0 to 1.414, not 2"),
        (Rule(within={"no": 1}), ("safe", "unsafe"), "within names 'no'"),
        (Rule(tie=-1), ("safe", "unsafe"), "tie must be"),
        (Rule(tie=float("nan")), ("safe", "unsafe"), "tie must be"),
        (Rule(deny={"known": None}), ("safe", "unsafe", "known"), "is a list, and needs a distance"),
        (Rule(deny={"safe": 0.1}), ("safe", "unsafe"), "in deny and in safe"),
        (Rule(deny={"a": 0.1}, allow={"a": 0.1}), ("safe", "unsafe", "a"), "in deny and in allow"),
        (Rule(allow={"a": float("nan")}), ("safe", "unsafe", "a"), "not nan"),
    ],
)
def test_a_rule_that_cannot_decide_is_refused(rule, banks, message):
    with pytest.raises(InputError, match=message):
        rule.check(banks)


def test_rules_that_fit():
    Rule().check(["safe", "unsafe", "buffer"])
    Rule(within=0.4).check(["unsafe"])
    Rule(deny={"known": 0.3}).check(["known"])
    Rule(within=0.3, deny={"known": None}, allow={"mine": None}).check(["known", "mine"])


def test_numbers_that_are_none_decide_nothing():
    with pytest.raises(EncodingError, match="not finite"):
        Rule().decide({"safe": [0.1], "unsafe": [float("nan")]})
    (good,) = rows(0, 3)
    with pytest.raises(InputError, match="floating point"):
        decide_embeddings(good[0], {"safe": good, "unsafe": good})
    with pytest.raises(InputError, match="one row at least"):
        decide_embeddings(good, {"safe": good, "unsafe": good[:0]})
    with pytest.raises(InputError):
        decide_embeddings(good * np.nan, {"safe": good, "unsafe": good})


@pytest.fixture(scope="module")
def small():
    return RobustSim(trainings.encoder())


@pytest.fixture(scope="module")
def places(small, tmp_path_factory):
    """Folders of two kinds of pictures and their indexes: {name: (folder, index)}."""
    pytest.importorskip("lance")
    root = tmp_path_factory.mktemp("banks")
    made = {}
    for name, picture in (("unsafe", "rocket.jpg"), ("safe", "chelsea.png")):
        folder = root / name
        folder.mkdir()
        for degrees in (0, 90):
            with Image.open(EXAMPLES / picture) as image:
                image.convert("RGB").resize((60, 40)).rotate(degrees, expand=True).save(folder / f"{degrees}.png")
        Index.create(root / f"{name}.index", small).add(folder, label=f"a {name} one")
        made[name] = folder, root / f"{name}.index"
    return made


@pytest.fixture
def banks(places, small):
    return {name: Index.open(path, small) for name, (_, path) in places.items()}


def test_pictures_are_judged_by_their_neighbours(banks, places, small, monkeypatch):
    calls = []
    embed = RobustSim.embed_pixels
    monkeypatch.setattr(RobustSim, "embed_pixels", lambda *words: calls.append(len(words[1])) or embed(*words))
    detector = Detector(banks)
    pictures = [places["safe"][0] / "90.png", places["unsafe"][0] / "0.png"]
    safe, unsafe = detector.detect(pictures)
    assert sum(calls) == 2  # each once, whatever banks are asked
    assert (safe.bank, safe.flagged, unsafe.bank, unsafe.flagged) == ("safe", False, "unsafe", True)
    assert list(safe.evidence) == ["unsafe", "safe"]
    nearest = safe.evidence["safe"][0]
    assert (nearest.path, nearest.label, nearest.view) == (str(pictures[0]), "a safe one", "")
    assert nearest.distance < 0.001
    assert safe.evidence["unsafe"][0].distance == pytest.approx(
        small.distance(pictures[0], safe.evidence["unsafe"][0].path).item(), abs=1e-3
    )
    again = detector.detect(small.embed(pictures))
    assert [one.bank for one in again] == ["safe", "unsafe"]
    assert len(Detector(banks, Rule(votes=3)).detect(pictures[0])[0].evidence["safe"]) == 2
    described = unsafe.described()
    assert described["class"] == "unsafe"
    assert described["reasons"] == [{"kind": "nearest", "names": ["unsafe"]}]
    assert described["evidence"]["unsafe"][0]["path"] == str(pictures[1])


def test_views_of_the_picture(banks, places):
    with Image.open(places["unsafe"][0] / "0.png") as image:
        mirrored = ImageOps.mirror(image)
    found = Detector(banks, views=["mirror"]).detect(mirrored)[0]
    assert found.evidence["unsafe"][0].query_view == "mirror"
    assert found.evidence["unsafe"][0].distance < 0.001
    with pytest.raises(InputError, match="has no views"):
        Detector(banks, views=["mirror"]).detect(torch.ones(1, trainings.DIM))


def test_a_picture_that_is_in_two_banks_is_not_safe(banks, places, small, tmp_path):
    shutil.copy(places["unsafe"][0] / "0.png", tmp_path / "x.png")
    mixed = Index.create(tmp_path / "mixed", small)
    mixed.add(tmp_path / "x.png")
    found = Detector({"safe": mixed, "unsafe": banks["unsafe"]}).detect(tmp_path / "x.png")[0]
    assert (found.bank, found.flagged, found.reasons[0].kind) == ("unsafe", True, "tie")


def test_banks_of_two_models_and_empty_ones(banks, small, tmp_path):
    encoder = trainings.encoder(seed=1)
    encoder.card = replace(encoder.card, name="another")
    other = Index.create(tmp_path / "other", RobustSim(encoder))
    other.add(EXAMPLES / "coffee.png")
    with pytest.raises(SearchError, match=r"by 'small', and .* by 'another' of other weights"):
        Detector({**banks, "buffer": other})
    with pytest.raises(SearchError, match=r"the bank 'buffer', .* holds no pictures"):
        Detector({**banks, "buffer": Index.create(tmp_path / "empty", small)})
    with pytest.raises(InputError, match="one bank"):
        Detector({})


def test_the_model_is_loaded_once(places, small, monkeypatch):
    loaded = []
    monkeypatch.setattr(RobustSim, "from_pretrained", lambda name, **options: loaded.append(name) or small)
    detector = Detector(open_banks({name: path for name, (_, path) in places.items()}))
    detector.detect(places["safe"][0] / "0.png")
    assert loaded == ["small"]
    Detector(open_banks({name: path for name, (_, path) in places.items()}, model="mine"))
    assert loaded == ["small", "mine"]


def test_a_rate_in_place_of_a_distance(banks, places):
    with pytest.raises(InputError, match="has no distances of different pictures"):
        Detector(banks, false_positives=0.5)
    with pytest.raises(InputError, match="give one"):
        Detector(banks, Rule(within=0.3), false_positives=0.5)
    for _, path in places.values():
        copy = path.with_name(f"{path.name}.rates")
        if not copy.exists():
            shutil.copytree(path, copy)
            index = Index.open(copy, banks["safe"].metric)
            index.add([torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(12)])
            index.measure_rates()
    rated = {
        name: Index.open(path.with_name(f"{path.name}.rates"), banks["safe"].metric)
        for name, (_, path) in places.items()
    }
    detector = Detector(rated, false_positives=0.3)
    assert detector.rule.within == {name: index.distance_at(0.3) for name, index in rated.items()}
    answer = rated["safe"].within(places["safe"][0] / "0.png", false_positives=0.3)
    assert answer.thresholds[0]["small"] == rated["safe"].distance_at(0.3)
    assert detector.detect(places["unsafe"][0] / "0.png")[0].bank == "unsafe"


def brightness(pixels):
    assert pixels.shape[1:] == (3, 224, 224)
    return pixels.mean((1, 2, 3))


def first_value(embeddings):
    assert embeddings.shape[1] == trainings.DIM
    return embeddings[:, :1].numpy()


def test_other_detectors_flag_too(banks, places, small):
    picture = places["safe"][0] / "0.png"
    light = brightness(
        torch.from_numpy(np.array(Preprocessing().apply(Image.open(picture)))).permute(2, 0, 1)[None] / 255
    ).item()
    value = small.embed(picture)[0, 0].item()
    for threshold, flags in ((light - 1e-4, True), (light + 1e-4, False)):
        found = Detector(banks, detectors=[ScoreDetector(brightness, threshold)]).detect([picture, picture])[1]
        assert found.scores == {"brightness": pytest.approx(light, abs=1e-5)}
        assert (found.bank, found.flagged) == ("safe", flags)
        assert found.reasons == ((Reason("detector", ("brightness",)),) if flags else (Reason("nearest", ("safe",)),))
    two = [ScoreDetector(first_value, value - 1e-4, name="first"), brightness]
    found = Detector(banks, detectors=two).detect(picture)[0]
    assert found.scores["first"] == pytest.approx(value, abs=1e-5)
    assert found.reasons[0].names[0] == "first"
    # Of embeddings of another model.
    other = RobustSim(trainings.encoder(seed=1))
    found = Detector(banks, detectors=[ScoreDetector(first_value, metric=other)]).detect(picture)[0]
    assert found.scores["first_value"] == pytest.approx(other.embed(picture)[0, 0].item(), abs=1e-5)


def fails(pixels):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails, "the detector 'fails' failed: KeyError: 'no such thing'"),
        (lambda pixels: torch.full((len(pixels),), float("nan")), "not finite"),
        (lambda pixels: torch.zeros(len(pixels), 2), r"must give 1 scores, \(N,\) or \(N, 1\), not \(1, 2\)"),
        (lambda pixels: 0.0, "must give 1 scores"),
        (lambda pixels: None, "failed"),
    ],
)
def test_a_detector_that_fails_is_no_pass(banks, places, function, message):
    with pytest.raises(InputError, match=message):
        Detector(banks, detectors=[function]).detect(places["safe"][0] / "0.png")


def test_detectors_that_do_not_fit(banks):
    with pytest.raises(InputError, match="does not say what it takes"):
        ScoreDetector(lambda x: x)
    with pytest.raises(InputError, match="cannot be called"):
        ScoreDetector(3)
    with pytest.raises(InputError, match="must be finite"):
        ScoreDetector(brightness, float("nan"))
    with pytest.raises(InputError, match="by their names"):
        Detector(banks, detectors=[brightness, brightness])
    with pytest.raises(InputError, match="pass the picture"):
        Detector(banks, detectors=[brightness]).detect(torch.ones(1, trainings.DIM))


def test_pictures_that_cannot_be_read(banks, places, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"bad\.png"):
        Detector(banks).detect([places["safe"][0] / "0.png", tmp_path / "bad.png"])
