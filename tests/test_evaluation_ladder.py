"""The distortion ladder: amounts that grow, the same for everybody, and scores of their order."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from robustsim.errors import ImageError, InputError
from robustsim.evaluation import DISTORTIONS, AttackPlan, distort, distortion_ladder, evaluate
from robustsim.evaluation.tasks.distortions import SIDE, Distorted, LadderPhoto
from tests.conftest import EXAMPLES
from tests.judges import pairs, small

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photograph():
    return LadderPhoto(EXAMPLES / "chelsea.png").read()


def away(a, b):
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_each_level_is_farther_away_than_the_one_before(kind, photograph):
    before = photograph.tobytes()
    levels = [distort(photograph, kind, level, seed=5) for level in range(1, 6)]
    assert photograph.tobytes() == before
    assert all(one.size == (SIDE, SIDE) and one.mode == "RGB" for one in levels)
    gaps = [away(photograph, one) for one in levels]
    assert gaps == sorted(gaps)
    assert all(b > 1.05 * a for a, b in pairwise(gaps)), gaps
    assert distort(photograph, kind, 3, seed=5).tobytes() == levels[2].tobytes()


@pytest.mark.parametrize("kind", ["rotation", "warp", "crop"])
def test_what_moves_things_about_leaves_no_black_corners(kind):
    grey = Image.new("RGB", (SIDE, SIDE), (90, 140, 200))
    assert away(grey, distort(grey, kind, 5, seed=1)) < 0.5


@pytest.mark.parametrize("kind", ["noise", "warp"])
def test_seeds_change_the_shape_and_not_the_amount(kind, photograph):
    one, other = (distort(photograph, kind, 3, seed=seed) for seed in (1, 2))
    assert one.tobytes() != other.tobytes()
    ratio = away(photograph, one) / away(photograph, other)
    assert 0.5 < ratio < 2


def test_strengths_are_those_that_are_told(photograph):
    noisy = np.asarray(distort(Image.new("RGB", (SIDE, SIDE), (128,) * 3), "noise", 1), float) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.05)
    assert len(np.unique(np.asarray(distort(photograph, "pixelation", 5))[0, :, 0])) <= SIDE // 4
    flat = np.asarray(distort(photograph, "contrast", 5), float)
    assert flat.std() == pytest.approx(0.05 * np.asarray(photograph, float).std(), rel=0.2)


def test_questions_do_not_depend_on_which_photographs_there_are():
    whole, part = (distortion_ladder(EXAMPLES, photographs=count, seed=3).questions for count in (None, 2))
    known = {question.id: question for question in whole}
    assert len(part) == 2 * len(DISTORTIONS) < len(whole)
    for question in part:
        assert question == known[question.id]
    assert len({question.duel for question in whole}) > 5
    assert all(weak < strong for question in whole for weak, strong in [question.duel])


def test_scores_count_the_pairs_of_levels_that_are_in_order():
    ladder = distortion_ladder(EXAMPLES, photographs=1)
    rows = np.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [1, 1, 1, 1, 1], [2, 1, 3, 4, 5]], float)
    assert ladder.scores(rows, ladder.questions[:4]).tolist() == pytest.approx([1, 0, 0.5, 0.9])


def test_a_metric_of_pixels_climbs_the_ladder_and_a_blind_one_does_not(tmp_path):
    ladder = distortion_ladder(EXAMPLES, photographs=2)
    sees = evaluate(pairs(), ladder, output=tmp_path)
    assert sees.results["accuracy"]["value"] > 0.85
    blind = evaluate(pairs(lambda a, b: torch.zeros(len(a)), "blind"), ladder, output=tmp_path)
    assert blind.results["accuracy"]["value"] == 0.5
    assert set(sees.results["groups"]) == set(DISTORTIONS)
    # Intervals know that the distortions of one photograph go together.
    assert sees.items["cluster"].tolist()[:: len(DISTORTIONS)] == sorted(set(sees.items["cluster"]))


def test_the_ladder_under_attack(tmp_path):
    ladder = distortion_ladder(EXAMPLES, photographs=2)
    plan = AttackPlan(eps=("1/255", "64/255"), steps=10)
    weak, strong = evaluate(small(), ladder, output=tmp_path, attack=plan).threats
    assert strong["accuracy"]["value"] < weak["accuracy"]["value"] <= weak["clean"]["value"]


def test_pictures_are_equal_by_what_they_show():
    path = EXAMPLES / "chelsea.png"
    assert Distorted(path, "blur", 2, 1) == Distorted(path, "blur", 2, 1) != Distorted(path, "blur", 3, 1)
    assert len({LadderPhoto(path), LadderPhoto(path), Distorted(path, "blur", 2, 1)}) == 2


def test_what_is_no_ladder_is_refused(tmp_path):
    with pytest.raises(ImageError, match="holds no images"):
        distortion_ladder(tmp_path)
    with pytest.raises(InputError, match="'fog' is none of the distortions jpeg, blur"):
        distortion_ladder(EXAMPLES, distortions=["fog"])


def test_threads_may_distort_one_photograph_at_once():
    """Pillow keeps a file's options in the picture it saves: two qualities of one picture must not mix."""
    from concurrent.futures import ThreadPoolExecutor

    pictures = [Distorted(EXAMPLES / "chelsea.png", "jpeg", level, 0) for level in range(1, 6)] * 20
    alone = [picture.read().tobytes() for picture in pictures[:5]]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the worst of times
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda picture: picture.read().tobytes(), pictures))
    finally:
        sys.setswitchinterval(interval)
    assert together == alone * 20
