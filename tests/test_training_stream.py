"""What becomes of images on their way into a training: crops, flips, colours, blends; all of it by position alone."""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from robustsim.errors import DataError, ImageError, RecipeError
from robustsim.images import Preprocessing
from robustsim.training import Sample, load_recipe
from robustsim.training.sources.stream import Augment, Stream

forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
SQUARE = Preprocessing(size=8, mode="squash")


class Flat:
    """Pictures of one colour each; None is one that cannot be read."""

    def __init__(self, *colours):
        self.colours = colours

    def __len__(self):
        return len(self.colours)

    def read(self, index):
        if self.colours[index] is None:
            raise ImageError(f"{index} is damaged")
        return Sample(Image.new("RGB", (12, 10), self.colours[index]), None)

    def label(self, index):
        return None


def batches(source, augment, spans, report=None, **options):
    stream = Stream(
        source, range(len(source)), augment, seed=3, size=lambda position: 8, device=torch.device("cpu"),
        report=report or pytest.fail, **options,
    )  # fmt: skip
    return torch.cat([batch.pixels for batch in stream.batches(spans)])


def test_colours_change_within_their_bounds():
    augment = Augment(SQUARE, jitter=0.4)
    found = [augment(Image.new("RGB", (9, 9), (128,) * 3), 8, random.Random(seed)) for seed in range(200)]
    levels = {int(one[0, 0, 0]) for one in found}
    assert all((one == one[0, 0, 0]).all() for one in found)  # grey has neither contrast nor hue to change
    assert len(levels) > 50
    assert 0.6 * 128 - 2 <= min(levels) < 90
    assert 166 < max(levels) <= 1.4 * 128 + 2

    red = [augment(Image.new("RGB", (9, 9), (200, 40, 40)), 8, random.Random(seed)) for seed in range(200)]
    # A tenth of the circle is 36 degrees: red becomes orange or pink, and no other colour.
    assert all(int(one[0, 0].argmax()) == 0 for one in red)
    assert {int(one[0, 0].argmin()) for one in red} == {1, 2}


def test_colours_change_as_pillow_changes_them_one_after_the_other():
    """But for the hue, which Pillow does not turn: where nothing is clipped, to the rounding of four steps."""
    ramp = torch.linspace(60, 190, 24)
    square = torch.stack(torch.broadcast_tensors(ramp[:, None], ramp, (250 - ramp)[:, None]), 2).byte()

    class Draw(random.Random):
        """Everything but the turn."""

        def __init__(self):
            self.drawn = [0.9, 1.15, 0.7, 0.0]

        def uniform(self, low, high):
            return self.drawn.pop(0)

    image = Image.fromarray(square.numpy())
    for enhancer, factor in ((ImageEnhance.Brightness, 0.9), (ImageEnhance.Contrast, 1.15), (ImageEnhance.Color, 0.7)):
        image = enhancer(image).enhance(factor)
    ours = Augment(SQUARE, jitter=0.4)._recolour(square, Draw())
    assert (ours.int() - torch.from_numpy(np.array(image)).int()).abs().max() <= 3
    assert (ours.int() - square.int()).abs().max() > 20


def test_without_them_draws_are_what_they_were():
    """Recipes that ask for neither give the images that they gave before there were any: nothing else is drawn."""
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    ours, theirs = random.Random(1), random.Random(1)
    square = Augment(SQUARE, flip=True)(picture, 8, ours)
    mirrored = theirs.random() < 0.5
    plain = Augment(SQUARE)(picture, 8, random.Random(0))
    assert torch.equal(square, plain.flip(1) if mirrored else plain)
    assert ours.random() == theirs.random()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_images_is_blended(share):
    found = batches(Flat((0, 0, 0), (255, 255, 255)), Augment(SQUARE, mixup=share), [range(400)])
    assert (found == found[:, :1, :1, :1]).all()  # black and white blend to grey
    levels = found[:, 0, 0, 0]
    between = ((levels > 0) & (levels < 1)).float().mean().item()
    assert between == pytest.approx(share / 2, abs=0.08)  # half of the others are the same again
    assert share == 0 or levels.mul(10).int().unique().numel() > 8


def test_an_image_does_not_depend_on_who_shares_its_batch():
    source = Flat(*[(20 * index, 255 - 20 * index, 90) for index in range(12)])
    augment = Augment(SQUARE, flip=True, jitter=0.3, mixup=0.7)
    whole = batches(source, augment, [range(24)])
    assert torch.equal(whole, batches(source, augment, [range(5), range(5, 20), range(20, 24)]))
    assert torch.equal(whole[16:], batches(source, augment, [range(16, 24)]))


def test_what_cannot_be_blended_in_is_told_and_another_image_takes_its_place():
    told = Counter()
    source = Flat((0, 0, 0), None, (255, 255, 255))
    found = batches(source, Augment(SQUARE, mixup=1.0), [range(60)], lambda message: told.update([message]))
    assert len(found) == 60
    assert set(told) == {"1 is damaged"}


@forks
def test_processes_read_what_threads_do():
    source = Flat(*[None if index == 5 else (20 * index, 255 - 20 * index, 90) for index in range(12)])
    augment, spans, told = (
        Augment(SQUARE, flip=True, jitter=0.3, mixup=0.7),
        [range(9), range(9, 12), range(12, 40)],
        [],
    )
    by_threads = batches(source, augment, spans, told.append, processes=False)
    by_processes = batches(source, augment, spans, told.append, processes=True, workers=2)
    assert torch.equal(by_threads, by_processes)
    half = len(told) // 2
    assert half
    assert told[:half] == told[half:]


def test_a_gpu_gets_processes_and_a_cpu_threads():
    chosen = {
        kind: Stream(
            Flat((1, 2, 3)), range(1), Augment(SQUARE), seed=3, size=lambda position: 8, device=torch.device(kind),
            report=pytest.fail,
        )._processes
        for kind in ("cpu", "cuda", "mps")
    }  # fmt: skip
    assert chosen == {"cpu": False, "cuda": "fork" in multiprocessing.get_all_start_methods(), "mps": False}


@forks
def test_processes_take_no_random_number_of_the_one_that_trains():
    before = torch.get_rng_state()
    batches(Flat((1, 2, 3)), Augment(SQUARE), [range(4)], processes=True, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


@forks
def test_a_process_that_dies_is_told_with_what_to_do():
    class Deadly(Flat):
        def read(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"a process that reads images has died: .*--shm-size"):
        batches(Deadly((1, 2, 3)), Augment(SQUARE), [range(4)], processes=True, workers=1)


@forks
def test_a_process_that_can_read_nothing_says_so():
    with pytest.raises(DataError, match=r"100 images in a row could not be read, at last 0 is damaged"):
        batches(Flat(None), Augment(SQUARE), [range(2)], lambda message: None, processes=True, workers=1)


def begun(stream, spans):
    """Its batches, of which one has come, and the process that reads them; those of other tests may not be gone yet."""
    before = set(multiprocessing.active_children())
    found = stream.batches(iter(spans))
    next(found)
    (reader,) = set(multiprocessing.active_children()) - before
    return found, reader


@forks
def test_processes_that_read_outlive_a_signal_to_the_whole_group():
    """The process that trains saves its state then, and one that had lost its readers could not."""
    stream = Stream(
        Flat((9, 9, 9)), range(1), Augment(SQUARE), seed=3, size=lambda position: 8, device=torch.device("cpu"),
        report=pytest.fail, processes=True, workers=1,
    )  # fmt: skip
    found, reader = begun(stream, [range(4)] * 50)
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        os.kill(reader.pid, signal_)
    assert sum(1 for _ in found) == 49
    found.close()
    reader.join()


@forks
def test_a_process_that_hangs_in_a_read_does_not_outlive_the_stream():
    class Stuck(Flat):
        count = 0

        def read(self, index):
            self.count += 1
            while self.count > 4:
                time.sleep(60)
            return super().read(index)

    stream = Stream(
        Stuck((9, 9, 9)), range(1), Augment(SQUARE), seed=3, size=lambda position: 8, device=torch.device("cpu"),
        report=pytest.fail, processes=True, workers=1,
    )  # fmt: skip
    found, reader = begun(stream, [range(4)] * 5)
    found.close()
    reader.join()


def test_images_of_two_classes_are_not_blended():
    with pytest.raises(RecipeError, match=r"augment.mixup blends images of two classes, and tecoa wants one"):
        load_recipe("tecoa4-vit-b-32", ["augment.mixup=0.5"])
    assert load_recipe("fare4-vit-b-32", ["augment.mixup=0.5"]).augment.mixup == 0.5
