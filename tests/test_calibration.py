"""What a number means: the words for a distance, how they are measured, and where they are kept."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import to_tensor

from robustsim import RobustSim, list_models
from robustsim.encoders import Calibration, EncoderCard, load_card, load_encoder
from robustsim.encoders.interpolation import interpolate_encoders
from robustsim.encoders.load import image_sha256, save_calibration
from robustsim.errors import CardError, DataError, ImageError, InputError, OutputError
from robustsim.evaluation import calibrate, calibration, tails
from robustsim.evaluation.tasks.distortions import change, seed_of
from robustsim.images import Preprocessing, read_image
from tests.conftest import EXAMPLES

KNOWN = Calibration(
    data="1,000 photographs of somebody's",
    photographs=1000,
    pairs=499_500,
    shares=(0, 1e-4, 1e-3, 0.1, 0.5, 0.9, 1),
    distances=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
    errors=(0.02, 0.01, 0.005, 0.002, 0.001, 0.001, 0.01),
    between=0.004,
    between_changes=0.2,
    changes=(
        ("jpeg", 90, 0.02, 0.001, 0.01, 0.03),
        ("jpeg", 15, 0.10, 0.002, 0.05, 0.15),
        ("jpeg", 5, 0.20, 0.004, 0.15, 0.3),
        ("crop", 0.8, 0.40, 0.01, 0.3, 0.5),
        ("mirror", 1, 0.30, 0.01, 0.2, 0.4),
        ("resize", 0.25, 0.55, 0.01, 0.2, 0.6),
    ),
    weights="0" * 64,
)
NEAREST = "nearer than every one of 499,500 pairs of unrelated photographs"


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (0, "identical"),
        (0.005, f"{NEAREST}; nearer than JPEG at quality 90"),
        (0.015, f"{NEAREST}; about as far as JPEG at quality 90"),
        (0.09, f"{NEAREST}; about as far as JPEG at quality 15"),
        (0.21, f"{NEAREST}; about as far as JPEG at quality 5"),
        (0.29, f"{NEAREST}; about as far as mirroring"),
        (0.41, f"{NEAREST}; about as far as a crop to 80 % of each side"),
        (0.6, "nearer than 99.99 % of pairs of unrelated photographs; about as far as a resize to 25 % and back"),
        (0.7, "nearer than about 99.9 % of pairs of unrelated photographs; farther than a resize to 25 % and back"),
        (0.8, "nearer than 90 % of pairs of unrelated photographs; farther than a resize to 25 % and back"),
        (0.9, "nearer than 50 % of pairs of unrelated photographs; farther than a resize to 25 % and back"),
        (1.0, "nearer than 10 % of pairs of unrelated photographs; farther than a resize to 25 % and back"),
        (
            1.2,
            "farther than every one of 499,500 pairs of unrelated photographs; farther than a resize to 25 % and back",
        ),
    ],
)
def test_a_distance_in_words(distance, words):
    assert KNOWN.describe(distance) == words
    assert KNOWN.describe(torch.tensor([distance], dtype=torch.float64)) == words
    assert KNOWN.describe(distance**2, squared=True) == words
    meaning = KNOWN.to_meaning(distance)
    assert meaning["text"] == words
    low, high = meaning["nearer_than_interval"]
    assert 0 <= low <= meaning["nearer_than"] <= high <= 1
    json.dumps(meaning, allow_nan=False)


@pytest.mark.parametrize("distance", [-0.1, float("nan"), float("inf"), torch.zeros(2), "far", None])
def test_what_is_no_distance(distance):
    for ask in (KNOWN.describe, KNOWN.share_nearer, KNOWN.yardstick, KNOWN.to_meaning):
        with pytest.raises(InputError, match="a distance is"):
            ask(distance)


@given(st.floats(0, 1.5), st.floats(0, 1.5))
def test_shares_grow_with_the_distance_and_lie_in_their_intervals(first, second):
    near, far = sorted((first, second))
    shares = [KNOWN.share_nearer(d) for d in (near, far)]
    assert all(share.low <= share.value <= share.high for share in shares)
    assert all(a <= b for a, b in zip(*shares, strict=True))


def test_shares_at_the_measured_distances():
    for share, distance in zip(KNOWN.shares, KNOWN.distances, strict=True):
        assert KNOWN.share_nearer(distance).value == pytest.approx(share, rel=1e-9)


def test_an_interval_takes_in_other_collections():
    alone = dataclasses.replace(KNOWN, between=0.0)
    narrow, wide = alone.share_nearer(0.85), KNOWN.share_nearer(0.85)
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high


@given(st.integers(0, 1000), st.sampled_from([0, 1, 2, 3, 4, 5]))
def test_no_share_is_said_that_so_many_pairs_cannot_show(part, place):
    low, high = KNOWN.distances[place : place + 2]
    words = KNOWN.describe(low + (high - low) * part / 1000)
    said = words.partition(" %")[0].split()[-1]
    if "every one" not in words:
        assert 1e-4 <= float(said) / 100 <= 1 - 1e-5
        assert len(said) <= len("99.997")


@pytest.mark.parametrize("distance", [0.500000001, 0.52, 0.59])
def test_below_the_smallest_share(distance):
    assert KNOWN.describe(distance).startswith("nearer than over 99.99 % of pairs")


@pytest.mark.parametrize("distance", [1.01, 1.0999999])
def test_above_the_largest_share(distance):
    assert KNOWN.describe(distance).startswith("farther than over 90 % of pairs")


def test_known_by_its_size_alone():
    vague = dataclasses.replace(KNOWN, errors=(0.02,) * 7)
    assert vague.describe(0.71).startswith("nearer than about 99.8 % of pairs")


def test_fewer_digits_where_less_is_known():
    sure = dataclasses.replace(KNOWN, errors=(0.0,) * 7, between=0.0)
    vague = dataclasses.replace(KNOWN, errors=(0.05,) * 7)
    assert "than 71 %" in sure.describe(0.86)
    assert "than about 70 %" in vague.describe(0.86)


def test_changes_by_name():
    jpeg = KNOWN.find_change("jpeg", 15)
    assert jpeg.median == 0.10
    assert KNOWN.error_of(jpeg) == pytest.approx((0.002**2 + 0.02**2) ** 0.5)
    with pytest.raises(InputError, match=r"jpeg 50 was not measured; there are jpeg 90"):
        KNOWN.find_change("jpeg", 50)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shares": (0.0, 1.0)},
        {"shares": (0, 0.2, 0.1, 0.1, 0.5, 0.9, 1)},
        {"shares": (0.1, *KNOWN.shares[1:])},
        {"distances": KNOWN.distances[::-1]},
        {"errors": (float("nan"), *KNOWN.errors[1:])},
        {"errors": (-0.1, *KNOWN.errors[1:])},
        {"pairs": 0},
        {"changes": ()},
        {"changes": (("jpeg", 5, 0.2, 0.004, 0.3, 0.15),)},
    ],
)
def test_a_calibration_that_contradicts_itself(wrong):
    with pytest.raises(CardError, match="calibration"):
        dataclasses.replace(KNOWN, **wrong)


def test_a_card_keeps_it(tmp_path):
    card = dataclasses.replace(load_card("lite"), calibration=KNOWN)
    text = card.to_json()
    assert EncoderCard.from_json(text) == card
    assert '["jpeg", 15, 0.1, 0.002, 0.05, 0.15]' in text  # a row is a line
    data = json.loads(text)
    data["calibration"]["changes"][0] = ["jpeg", "much", 0, 0, 0, 0]
    with pytest.raises(CardError, match="changes cannot be"):
        EncoderCard.from_json(json.dumps(data))
    data["calibration"] = None
    assert EncoderCard.from_json(json.dumps(data)).calibration is None


@pytest.fixture
def small(published):
    return RobustSim.from_pretrained(published["classifier"][0], device="cpu")


def test_a_model_without_one_says_how_to_get_it(small):
    with pytest.raises(CardError, match=r"robustsim calibrate MODEL --data DIR -o FOLDER"):
        small.calibration  # noqa: B018


def test_it_belongs_to_the_weights_that_it_was_measured_with(small, tmp_path):
    own = dataclasses.replace(KNOWN, weights=image_sha256(small.encoder))
    small.encoder.card = dataclasses.replace(small.card, calibration=own)
    kept = RobustSim.from_pretrained(small.save_pretrained(tmp_path / "same"), device="cpu")
    assert kept.calibration == own
    short = RobustSim.from_pretrained("lite", device="cpu").half()  # its values are those of float16
    assert RobustSim.from_pretrained(short.save_pretrained(tmp_path / "short"), device="cpu").calibration
    with torch.no_grad():
        next(small.parameters()).add_(1e-3)
    other = RobustSim.from_pretrained(small.save_pretrained(tmp_path / "other"), device="cpu")
    assert other.card.calibration is None
    squashed = dataclasses.replace(kept.card, preprocessing=Preprocessing(size=kept.card.preprocessing.size))
    kept.encoder.card = squashed
    assert RobustSim.from_pretrained(kept.save_pretrained(tmp_path / "squashed"), device="cpu").card.calibration is None


def test_it_does_not_go_over_to_what_is_made_of_a_model():
    lite, clean = load_encoder("lite"), load_encoder("lite")
    assert interpolate_encoders(clean, lite, 0.5).card.calibration is None
    assert "calibration" not in lite.card.to_identity()


@pytest.mark.parametrize("model", [name for name in list_models() if load_card(name).source is None])
def test_bundled_models_bring_theirs(model):
    encoder = load_encoder(model)
    own = encoder.card.calibration
    assert own.photographs == 1000
    assert "CC BY" in own.data
    assert own.weights == image_sha256(encoder)
    medians = [own.find_change("jpeg", quality).median for quality in (90, 50, 10)]
    assert 0 < medians[0] < medians[1] < medians[2] < own.distances[own.shares.index(0.01)]


@pytest.fixture
def photographs(tmp_path):
    """24 parts of four pictures, in four folders, and two that are no pictures any more."""
    root = tmp_path / "photographs"
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        folder = root / name.partition(".")[0]
        folder.mkdir(parents=True)
        picture = read_image(EXAMPLES / name)
        for number in range(6):
            left, top = 37 * number, 21 * number
            picture.crop((left, top, left + 160 + 9 * number, top + 120)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def few_changes(monkeypatch):
    rows = (("jpeg", 50), ("noise", 0.1), ("mirror", 1))
    monkeypatch.setattr(calibration, "_ROWS", rows)
    return rows


def measured(metric, folder, tmp_path, **options):
    return calibrate(metric, folder, tmp_path / "work", **options)


def test_measured_as_anybody_would(small, photographs, tmp_path, few_changes):
    found = measured(small, photographs, tmp_path, seed=3)
    own = found.calibration
    files = sorted(photographs.rglob("*.png"))
    assert (own.photographs, own.pairs, found.failed) == (24, 6 * 6 * 6, 0)
    matrix = small.distance_matrix(files).numpy()
    folders = np.array([file.parent.name for file in files])
    apart = np.triu(folders[:, None] != folders[None], 1)
    pairs = np.sort(matrix[apart])
    assert own.distances[0] == pytest.approx(pairs[0], abs=1e-4)
    assert own.distances[-1] == pytest.approx(pairs[-1], abs=1e-4)
    middle = own.distances[own.shares.index(0.5)]
    assert pairs[107] - 1e-4 <= middle <= pairs[108] + 1e-4
    assert own.between == pytest.approx(0.3 * pairs.std(), abs=1e-4)
    assert [pair[2] for pair in found.nearest] == pytest.approx(pairs[:5].tolist(), abs=1e-5)
    squares = [small.card.preprocessing.apply(read_image(file)) for file in files]
    names = [file.relative_to(photographs).as_posix() for file in files]

    def pixels(pictures):  # of the model's size: neither resized nor cropped once more
        return small.embed_pixels(torch.stack([to_tensor(picture) for picture in pictures]))

    for kind, amount in few_changes:
        changed = [
            change(square.copy(), kind, amount, seed_of(name, 3)) for square, name in zip(squares, names, strict=True)
        ]
        distances = small.distance(pixels(squares), pixels(changed)).numpy()
        row = own.find_change(kind, amount)
        assert row.median == pytest.approx(np.median(distances), abs=1e-4)
        assert (row.low, row.high) == pytest.approx(np.quantile(distances, (0.1, 0.9)), abs=1e-4)
        assert row.error > 0
    assert own.weights == image_sha256(small.encoder)
    assert not (tmp_path / "work").exists()


def test_an_interrupted_measurement_continues(small, photographs, tmp_path, few_changes, monkeypatch):
    whole = measured(small, photographs, tmp_path)

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(small, photographs, tmp_path, progress=stop)
    done = []
    monkeypatch.setattr(calibration, "change", lambda *given: done.append(given) or change(*given))
    again = measured(small, photographs, tmp_path)
    assert again.resumed == 16
    assert len(done) == 8 * len(few_changes)
    assert again.calibration == whole.calibration
    assert not (tmp_path / "work").exists()


def test_what_was_begun_otherwise_is_not_continued(small, photographs, tmp_path, few_changes):
    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(small, photographs, tmp_path, progress=stop)
    own = next(small.parameters())
    for other in ({"seed": 1}, {"changed": 20}, {"photographs": 22}, {"weights": own}, {"file": "coffee/0.png"}):
        if "weights" in other:
            with torch.no_grad():
                own.add_(1e-3)
        if "file" in other:
            (photographs / other.pop("file")).touch()
        with pytest.raises(OutputError, match="restart"):
            measured(small, photographs, tmp_path, **{key: value for key, value in other.items() if key != "weights"})
        if "weights" in other:
            with torch.no_grad():
                own.sub_(1e-3)
    assert measured(small, photographs, tmp_path, seed=1, restart=True).resumed == 0


def test_some_are_changed_and_all_are_paired(small, photographs, tmp_path, few_changes, monkeypatch):
    done = []
    monkeypatch.setattr(calibration, "change", lambda *given: done.append(given) or change(*given))
    found = measured(small, photographs, tmp_path, changed=20)
    assert len(done) == 20 * len(few_changes)
    assert found.calibration.pairs == 216
    with pytest.raises(InputError, match="changed must be at least 20, not 19"):
        measured(small, photographs, tmp_path, changed=19)


def test_bad_files_are_reported_and_left_out(small, photographs, tmp_path, few_changes):
    (photographs / "coffee" / "3.png").write_bytes(b"nothing")
    errors = []
    found = measured(small, photographs, tmp_path, on_error=errors.append)
    assert (found.failed, found.calibration.photographs, len(errors)) == (1, 23, 1)
    assert "3.png" in str(errors[0])


def test_which_photographs_are_related(small, photographs, tmp_path, few_changes):
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = ["file,kind"]
    for file in sorted(photographs.rglob("*.png")):
        name = f"{file.parent.name}{file.name}"
        file.rename(flat / name)
        lines.append(f"{name},{file.parent.name if file.parent.name != 'rocket' else 'coffee'}")
    assert measured(small, flat, tmp_path, changed=20).calibration.pairs == 24 * 23 // 2
    (flat / "again.png").write_bytes((flat / "coffee1.png").read_bytes())  # the same twice is no unrelated pair
    for seed in range(3):  # whatever batches the two are in
        again = measured(small, flat, tmp_path, changed=20, seed=seed).calibration
        assert again.pairs == 25 * 24 // 2 - 1
        assert again.distances[0] > 1e-3
    (flat / "again.png").unlink()
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines))
    labelled = measured(small, flat, tmp_path, changed=20, labels=table, label_column="kind")
    assert labelled.calibration.pairs == 6 * 6 + 2 * 6 * 12
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="1 of 24 photographs"):
        measured(small, flat, tmp_path, changed=20, labels=table, label_column="kind")
    with pytest.raises(DataError, match="needed are file, label"):
        measured(small, flat, tmp_path, changed=20, labels=table)
    table.write_text(
        "\n".join(f"{line.split(',')[0]},one" for line in ["file,kind", *lines[1:]]).replace("file,one", "file,kind")
    )
    with pytest.raises(InputError, match="all photographs are related"):
        measured(small, flat, tmp_path, changed=20, labels=table, label_column="kind")


def test_a_tail_is_of_all_pairs_of_different_pictures(small, photographs, tmp_path, few_changes):
    (photographs / "rocket" / "again.png").write_bytes((photographs / "coffee" / "1.png").read_bytes())
    table = tmp_path / "same.csv"
    table.write_text("file,same_as,reason\ncoffee/2.png,coffee/3.png,by hand\nnowhere.png,coffee/4.png,\n")
    with pytest.raises(DataError, match=r"names 'nowhere.png', which is no file below"):
        measured(small, photographs, tmp_path, photographs=25, same=table)
    table.write_text("file,same_as,reason\ncoffee/2.png,coffee/3.png,by hand\n")
    every = measured(small, photographs, tmp_path, photographs=25, same=table, restart=True)
    tail = every.calibration.tail
    assert (tail.pictures, tail.pairs) == (23, 25 * 24 // 2 - 2)
    files = sorted(photographs.rglob("*.png"))
    names = [file.relative_to(photographs).as_posix() for file in files]
    matrix = small.distance_matrix(files).numpy()
    copies = {("coffee/2.png", "coffee/3.png"), ("coffee/1.png", "rocket/again.png")}
    pairs = sorted(
        (float(matrix[i, j]), *sorted((names[i], names[j])))
        for i in range(25)
        for j in range(i)
        if tuple(sorted((names[i], names[j]))) not in copies
    )
    assert [distance for *_, distance in every.nearest_different] == pytest.approx(
        [distance for distance, *_ in pairs[:20]], abs=1e-5
    )
    assert sorted(every.nearest_different[0][:2]) == list(pairs[0][1:])
    for distance, count in zip(tail.distances, tail.counts, strict=True):
        assert sum(d <= distance - 1e-6 for d, *_ in pairs) <= count <= sum(d <= distance + 1e-6 for d, *_ in pairs)
    # Some are measured as before, and the others are embedded for the tail alone.
    fewer = measured(small, photographs, tmp_path, photographs=20, pairs_of=1000, same=table)
    assert fewer.calibration.photographs == 20
    assert (fewer.calibration.tail.pictures, fewer.calibration.tail.pairs) == (23, tail.pairs)
    assert fewer.calibration.tail.counts[-1] == tail.counts[-1]
    assert fewer.calibration.tail.data == "25 photographs of photographs"
    assert measured(small, photographs, tmp_path, photographs=20, pairs_of=2).calibration.tail.pictures in (21, 22)
    table.write_text("file,other\n")
    with pytest.raises(DataError, match="same_as"):
        measured(small, photographs, tmp_path, same=table)


def test_embeddings_for_a_tail_are_not_made_twice(small, photographs, tmp_path, few_changes, monkeypatch):
    monkeypatch.setattr(tails, "_CHUNK", 1)
    whole = measured(small, photographs, tmp_path, photographs=20, pairs_of=4)
    done, usual = [], tails.load_square

    def stop_at(last):
        def square(path, *given):
            done.append(path)
            if len(done) == last:
                raise KeyboardInterrupt
            return usual(path, *given)

        return square

    monkeypatch.setattr(tails, "load_square", stop_at(23))
    with pytest.raises(KeyboardInterrupt):
        measured(small, photographs, tmp_path, photographs=20, pairs_of=4)
    with (tmp_path / "work" / "rows.f32").open("ab") as rows:
        rows.write(b"half a row")
    done.clear()
    monkeypatch.setattr(tails, "load_square", stop_at(0))
    again = measured(small, photographs, tmp_path, photographs=20, pairs_of=4)
    assert again.resumed == 20 + 2
    assert len(done) == 20 + 2
    assert again.calibration == whole.calibration
    assert not (tmp_path / "work").exists()


def test_embeddings_that_are_gone_are_missed(small, photographs, tmp_path, few_changes):
    def stop(found):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(small, photographs, tmp_path, photographs=20, pairs_of=4, save=stop)
    with (tmp_path / "work" / "rows.f32").open("r+b") as rows:
        rows.truncate(10)
    with pytest.raises(OutputError, match="restart"):
        measured(small, photographs, tmp_path, photographs=20, pairs_of=4)
    measured(small, photographs, tmp_path, photographs=20, pairs_of=4, restart=True)


def test_too_few_photographs(small, tmp_path):
    with pytest.raises(ImageError, match="is not a folder"):
        measured(small, tmp_path / "nowhere", tmp_path)
    folder = tmp_path / "few"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    with pytest.raises(InputError, match="1 photographs"):
        measured(small, folder, tmp_path)
    for number in range(24):
        (folder / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="1 photographs"):
        measured(small, folder, tmp_path)
    assert not (tmp_path / "work").exists()


def test_what_could_be_read_before_and_cannot_now(small, photographs, tmp_path, few_changes, monkeypatch):
    whole = measured(small, photographs, tmp_path)
    usual = tails.load_square

    def broken(path, *given):
        if path.name == "3.png":
            raise ImageError(f"{path}: for now")
        return usual(path, *given)

    def stop(found):
        raise KeyboardInterrupt

    for first in (broken, usual):
        second = usual if first is broken else broken
        monkeypatch.setattr(tails, "load_square", first)
        with pytest.raises(KeyboardInterrupt):
            measured(small, photographs, tmp_path, save=stop)
        monkeypatch.setattr(tails, "load_square", second)
        found = measured(small, photographs, tmp_path)
        assert found.failed == (4 if second is broken else 0)
        if second is usual:
            assert found.calibration == whole.calibration


def test_nothing_is_lost_where_the_result_cannot_be_written(small, photographs, tmp_path, few_changes):
    def full(found):
        raise OutputError("no space")

    with pytest.raises(OutputError, match="no space"):
        measured(small, photographs, tmp_path, save=full)
    kept = []
    again = measured(small, photographs, tmp_path, save=kept.append)
    assert again.resumed == 24
    assert kept == [again.calibration]


@pytest.mark.parametrize("kinds", [4, 12])
def test_errors_are_those_of_the_bootstrap(kinds):
    """Over kinds, where there are ten, as they are alike; else over photographs."""
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(kinds), 60 // kinds)
    places = generator.normal(size=(60, 3)) + 2 * generator.normal(size=(kinds, 3))[groups]
    distances = np.linalg.norm(places[:, None] - places[None], axis=2).astype(np.float32)
    rows = np.abs(places[:, :1]).repeat(len(calibration._ROWS), axis=1)
    unrelated = groups[:, None] != groups[None]
    found, _ = calibration._summary(distances, rows, groups, unrelated, 0, data="", weights="")
    medians, middles = [], []
    units = groups if kinds >= 10 else np.arange(60)
    for _ in range(400):
        drawn = generator.choice(np.unique(units), len(np.unique(units)))
        photographs = np.concatenate([np.flatnonzero(units == unit) for unit in drawn])
        pairs = [distances[i, j] for a, i in enumerate(photographs) for j in photographs[:a] if unrelated[i, j]]
        middles.append(np.median(pairs))
        medians.append(np.median(rows[photographs, 0]))
    assert found.errors[found.shares.index(0.5)] == pytest.approx(np.std(middles), rel=0.25)
    assert found.known_changes[0].error == pytest.approx(np.std(medians), rel=0.25)


def test_the_command_writes_into_a_card(run, small, photographs, tmp_path, few_changes):
    model = small.save_pretrained(tmp_path / "model")
    weights = (model / "model.safetensors").read_bytes()
    a, b = (str(photographs / "coffee" / f"{number}.png") for number in (0, 1))
    _, out, _ = run("compare", "-m", model, a, b)
    assert "robustsim calibrate MODEL --data DIR" in out
    _, out, _ = run("compare", "-m", model, a, b, "--json")
    assert json.loads(out)["pairs"][0]["meaning"] is None
    code, out, err = run("calibrate", model, "--data", photographs, "--about", "parts of four pictures, CC0")
    assert code == 0, err
    assert "276 pairs of 24 different pictures: the smallest rate of false positives that they can say is" in err
    assert "JPEG at quality 50" in out
    metric = RobustSim.from_pretrained(model, device="cpu")
    assert metric.calibration.data == "parts of four pictures, CC0"
    assert (model / "model.safetensors").read_bytes() == weights
    assert {path.name for path in tmp_path.iterdir()} == {"model", "photographs"}
    words = metric.calibration.describe(metric.distance(a, b))
    _, out, _ = run("compare", "-m", model, a, b)
    assert f"{words}." in out
    _, out, _ = run("compare", "-m", model, a, b, "--json")
    assert json.loads(out)["pairs"][0]["meaning"]["text"] == words
    _, out, _ = run("compare", "-m", model, a, b, "--csv", "--squared")
    assert words in out


def test_the_command_writes_a_model_that_is_nobodys_folder(run, published, photographs, tmp_path, few_changes):
    model = published["classifier"][0]
    code, _, err = run("calibrate", model, "--data", photographs)
    assert code == 2
    assert "-o" in err
    code, out, err = run("calibrate", model, "--data", photographs, "-o", tmp_path / "new", "--json")
    assert code == 0, err
    told = json.loads(out)
    own = RobustSim.from_pretrained(tmp_path / "new", device="cpu").calibration
    assert told["distances"] == list(own.distances)
    assert len(told["nearest_pairs"]) == 5
    assert len(told["nearest_different"]) == 20
    assert told["tail"]["counts"] == list(own.tail.counts)


def test_where_the_command_writes(run, published, small, photographs, tmp_path, few_changes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small.save_pretrained(tmp_path / "lite")  # of the name of a bundled one, which is loaded
    before = (model / "config.json").read_bytes()
    code, _, err = run("calibrate", "lite", "--data", photographs)
    assert code == 2
    assert "./lite" in err
    assert (model / "config.json").read_bytes() == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    for out in (foreign, published["classifier"][0], photographs / "coffee" / "0.png"):
        code, _, err = run("calibrate", published["classifier"][0], "--data", photographs, "-o", out)
        assert code == 2, err
    code, _, err = run("calibrate", "./lite", "--data", photographs, "-o", model)  # where it is: its card alone
    assert code == 0, err
    assert "216 pairs of unrelated ones" in err


def test_a_model_that_changed_meanwhile_keeps_its_card(small, photographs, tmp_path, few_changes):
    model = small.save_pretrained(tmp_path / "model")
    loaded = RobustSim.from_pretrained(model, device="cpu")
    own = dataclasses.replace(KNOWN, weights=image_sha256(loaded.encoder))
    with torch.no_grad():
        next(small.parameters()).add_(1e-3)
    small.save_pretrained(model)
    with pytest.raises(OutputError, match="another model"):
        save_calibration(model, own, loaded.encoder)
    assert RobustSim.from_pretrained(model, device="cpu").card.calibration is None


def test_what_compare_says_of_many_pairs(run, photographs):
    first = photographs / "coffee" / "0.png"
    _, out, _ = run("compare", first, photographs)
    assert sum("pairs of unrelated photographs" in line or ": identical" in line for line in out.splitlines()) == 10
    assert "say it of all 24 pairs" in out
    _, out, _ = run("compare", first, photographs, "--json")
    assert all(pair["meaning"] for pair in json.loads(out)["pairs"])


@pytest.mark.parametrize(
    ("kind", "amount"), [(kind, amount) for kind, amounts in calibration.CHANGES.items() for amount in amounts]
)
def test_changes_keep_the_size_and_change_something(kind, amount, photo):
    square = Preprocessing(size=64).apply(Image.fromarray(photo))
    changed = change(square.copy(), kind, amount, 7)
    assert (changed.size, changed.mode) == (square.size, "RGB")
    assert changed.tobytes() != square.tobytes()
    assert changed.tobytes() == change(square.copy(), kind, amount, 7).tobytes()
