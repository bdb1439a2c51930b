"""Classes: embedded prompts, means of embedded images, and their file."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from robustsim.encoders import load_encoder
from robustsim.errors import CorruptFileError, DataError, InputError, OutputError
from robustsim.images.inputs import load_square, stack_squares
from robustsim.training import METHODS, Classes, image_classes, load_classes, open_source, save_classes, text_classes
from robustsim.training.tasks.classes import find_classes
from tests import judges

pytestmark = pytest.mark.usefixtures("one_thread")

PHOTO = "This is a photo of a {}"


@pytest.fixture(scope="module")
def speaking(published):
    """A CLIP with its text tower, and open_clip's own model of the same weights."""
    folder, model = published["vit"]
    return load_encoder(folder, text=True), model


@pytest.fixture
def labelled(tmp_path):
    """Three pictures in each of three classes."""
    for seed, name in enumerate(("ant", "bee", "cat")):
        judges.pictures(tmp_path / "animals" / name, 3, size=40 + 4 * seed, seed=seed)
    return tmp_path / "animals"


def embedded(encoder, paths):
    squares = [load_square(path, encoder.card.preprocessing) for path in paths]
    with torch.no_grad():
        return F.normalize(encoder(stack_squares(squares, torch.device("cpu"))), dim=1)


def unit(rows, dim, seed=0):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


# --- texts


def test_classes_are_open_clips_own_embeddings_of_their_prompts(speaking):
    encoder, model = speaking
    names = ["tench", "green_mamba", "a {0} or {two}"]
    classes = text_classes(encoder, names, PHOTO, "This is not a photo of a {}")
    for prompt, ours in ((PHOTO, classes.prototypes), ("This is not a photo of a {}", classes.negatives)):
        texts = [prompt.replace("{}", name) for name in ("tench", "green mamba", "a {0} or {two}")]
        with torch.no_grad():
            theirs = model.encode_text(open_clip.tokenize(texts, context_length=16), normalize=True)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert not ours.requires_grad
    assert text_classes(encoder, names, PHOTO).negatives is None


def test_any_number_of_classes_has_the_embeddings_that_each_has_alone(speaking):
    encoder, _ = speaking
    names = [f"thing {index}" for index in range(70)]  # more than are embedded at once
    classes = text_classes(encoder, names, PHOTO)
    assert classes.prototypes.shape == (70, 24)
    for index in (0, 63, 64, 69):
        alone = text_classes(encoder, [names[index]], PHOTO).prototypes
        torch.testing.assert_close(classes.prototypes[index : index + 1], alone, rtol=0, atol=1e-5)


def test_other_brackets_in_a_prompt_mean_nothing(speaking):
    encoder, _ = speaking
    odd = text_classes(encoder, ["ant"], "{0} {x} {} {{").prototypes
    torch.testing.assert_close(odd, text_classes(encoder, ["{0} {x} ant {{"], "{}").prototypes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompt", ["a photo", "{} and {}", ""])
def test_a_prompt_has_one_place_for_the_name(speaking, prompt):
    with pytest.raises(InputError, match=r"the prompt '.*' must hold \{\} once"):
        text_classes(speaking[0], ["ant"], prompt)
    with pytest.raises(InputError, match=r"must hold \{\} once"):
        text_classes(speaking[0], ["ant"], PHOTO, prompt)


def test_there_must_be_names(speaking):
    with pytest.raises(InputError, match="no names of classes"):
        text_classes(speaking[0], [], PHOTO)


def test_texts_need_a_text_tower(published):
    with pytest.raises(InputError, match=r"without a text tower: load it with text=True"):
        text_classes(load_encoder(published["vit"][0]), ["ant"], PHOTO)
    with pytest.raises(InputError, match=r"'dino' has no text tower"):
        text_classes(load_encoder(published["dino"][0]), ["ant"], PHOTO)


# --- images


def test_a_class_is_the_mean_of_its_embedded_images(published, labelled):
    encoder = load_encoder(published["dino"][0])
    classes = image_classes(encoder, open_source(labelled))
    for index, name in enumerate(("ant", "bee", "cat")):
        mean = embedded(encoder, sorted((labelled / name).iterdir())).mean(0)
        torch.testing.assert_close(classes.prototypes[index], mean / mean.norm(), rtol=0, atol=1e-5)
    assert classes.negatives is None


def test_the_first_images_of_a_class_are_enough(published, labelled):
    encoder = load_encoder(published["dino"][0])
    classes = image_classes(encoder, open_source(labelled), per_class=1)
    firsts = embedded(encoder, [labelled / name / "00.png" for name in ("ant", "bee", "cat")])
    torch.testing.assert_close(classes.prototypes, firsts, rtol=0, atol=1e-5)


def test_images_that_cannot_be_read_do_not_count(published, labelled):
    encoder = load_encoder(published["dino"][0])
    (labelled / "bee" / "00.png").write_bytes(b"no picture")
    classes = image_classes(encoder, open_source(labelled), per_class=1)
    second = embedded(encoder, [labelled / "bee" / "01.png"])
    torch.testing.assert_close(classes.prototypes[1:2], second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ant", "cat"])
def test_a_class_without_an_image_is_named(published, labelled, name):
    for path in (labelled / name).iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"no image of the class '{name}' could be read"):
        image_classes(load_encoder(published["dino"][0]), open_source(labelled))


def test_a_source_may_know_no_names(published, labelled):
    """Whatever has labels and images will do."""

    class Bare:
        def __init__(self, source, labels):
            self._source, self._labels = source, labels

        def __len__(self):
            return len(self._labels)

        def read(self, index):
            return self._source.read(index)

        def label(self, index):
            return self._labels[index]

    encoder, source = load_encoder(published["dino"][0]), open_source(labelled)
    assert image_classes(encoder, Bare(source, [1, 0, 1])).prototypes.shape == (2, 48)
    with pytest.raises(DataError, match="no image of the class 1 could be read"):
        image_classes(encoder, Bare(source, [0, 2, 2]))
    with pytest.raises(DataError, match="no image of the class 0 could be read"):
        image_classes(encoder, Bare(source, []))


def test_prototypes_need_labels(published, tmp_path):
    encoder = load_encoder(published["dino"][0])
    source = open_source(judges.pictures(tmp_path / "flat", 2))
    with pytest.raises(DataError, match="class prototypes need labelled images: a folder for each class"):
        image_classes(encoder, source)
    with pytest.raises(InputError, match="per_class must be at least 1, not 0"):
        image_classes(encoder, source, per_class=0)


# --- files


def test_classes_are_read_as_they_were_written(tmp_path):
    classes = Classes(unit(5, 7), unit(5, 7, seed=1))
    path = save_classes(classes, tmp_path / "new" / "classes.safetensors")
    again = load_classes(path, dim=7, count=5)
    torch.testing.assert_close(again.prototypes, classes.prototypes, rtol=0, atol=1e-7)
    torch.testing.assert_close(again.negatives, classes.negatives, rtol=0, atol=1e-7)
    save_classes(Classes(unit(3, 7)), str(path))  # in the place of the other
    assert load_classes(str(path), dim=7).prototypes.shape == (3, 7)
    assert load_classes(path, dim=7).negatives is None
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_prototypes_of_any_length_and_type_become_unit_vectors(tmp_path):
    save_file({"prototypes": torch.tensor([[3, 4], [0, -2]])}, tmp_path / "a.safetensors")
    save_file({"prototypes": torch.tensor([[3, 4], [0, -2]]).half()}, tmp_path / "b.safetensors")
    for name in "ab":
        prototypes = load_classes(tmp_path / f"{name}.safetensors", dim=2).prototypes
        torch.testing.assert_close(prototypes, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weights": torch.ones(3, 4)}, r"holds weights; it must hold `prototypes` \(K, 4\)"),
        ({"prototypes": torch.ones(3, 4), "bias": torch.ones(3)}, r"holds bias, prototypes; it must hold"),
        ({"negatives": torch.ones(3, 4)}, r"holds negatives; it must hold `prototypes`"),
        ({}, r"holds nothing; it must hold `prototypes`"),
        ({"prototypes": torch.ones(3, 5)}, r"prototypes of .* have the shape \(3, 5\).* of the encoder's 4 numbers"),
        ({"prototypes": torch.ones(4)}, r"have the shape \(4,\)"),
        ({"prototypes": torch.tensor(1.0)}, r"have the shape \(\).* each of the K classes"),
        ({"prototypes": torch.ones(0, 4)}, r"have the shape \(0, 4\).* each of the K classes"),
        ({"prototypes": torch.ones(3, 4), "negatives": torch.ones(2, 4)}, r"negatives of .* \(2, 4\).* the 3 classes"),
        ({"prototypes": torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])}, r"rows that are no directions"),
        ({"prototypes": torch.full((1, 4), torch.nan)}, r"rows that are no directions"),
        (
            {"prototypes": torch.ones(1, 4), "negatives": torch.full((1, 4), torch.inf)},
            r"negatives of .* no directions",
        ),
    ],
)
def test_files_that_hold_something_else(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "classes.safetensors")
    with pytest.raises(DataError, match=message):
        load_classes(tmp_path / "classes.safetensors", dim=4)


def test_there_must_be_a_row_for_each_class(tmp_path):
    path = save_classes(Classes(unit(3, 4)), tmp_path / "three.safetensors")
    with pytest.raises(DataError, match=r"have the shape \(3, 4\): there must be a row for each of the 5 classes"):
        load_classes(path, dim=4, count=5)


def test_what_is_no_file_of_classes(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "classes.pt").write_bytes(b"")
    for name in ("none.safetensors", "folder.safetensors", "classes.pt"):
        with pytest.raises(DataError, match=rf"{name}' is no safetensors file with class prototypes \(K, 4\)"):
            load_classes(tmp_path / name, dim=4)
    (tmp_path / "torn.safetensors").write_bytes(b"\x08")
    with pytest.raises(CorruptFileError, match="no whole safetensors file"):
        load_classes(tmp_path / "torn.safetensors", dim=4)
    with pytest.raises(OutputError, match="cannot write"):
        save_classes(Classes(unit(2, 4)), tmp_path / "classes.pt" / "classes.safetensors")


# --- which of them a method gets


def test_a_method_gets_the_classes_of_its_prompts(speaking):
    encoder, _ = speaking
    for name in ("tecoa", "comp-tga"):
        options = dict(METHODS[name].options)
        classes = find_classes(encoder, ("ant", "bee"), options, None)
        wanted = text_classes(encoder, ("ant", "bee"), options["prompt"], options.get("negative_prompt"))
        assert torch.equal(classes.prototypes, wanted.prototypes)
        assert (classes.negatives is None) == (name == "tecoa")
        assert classes.negatives is None or torch.equal(classes.negatives, wanted.negatives)


def test_a_file_comes_before_the_text_tower(speaking, tmp_path):
    path = save_classes(Classes(unit(2, 24)), tmp_path / "own.safetensors")
    classes = find_classes(speaking[0], ("ant", "bee"), dict(METHODS["tecoa"].options), path)
    torch.testing.assert_close(classes.prototypes, unit(2, 24))
    with pytest.raises(DataError, match="a row for each of the 3 classes"):
        find_classes(speaking[0], ("ant", "bee", "cat"), dict(METHODS["tecoa"].options), path)


def test_without_texts_and_files_there_are_no_classes(published):
    with pytest.raises(InputError, match=r"'dino' has no text tower .*--prototypes; .*image_classes makes them"):
        find_classes(load_encoder(published["dino"][0]), ("ant", "bee"), dict(METHODS["tecoa"].options), None)


def test_without_labels_there_are_no_classes(speaking):
    with pytest.raises(DataError, match="this method needs labels, and the images have none: a folder for each class"):
        find_classes(speaking[0], None, dict(METHODS["tecoa"].options), None)


def test_classes_move_to_a_device():
    moved = Classes(unit(2, 3), unit(2, 3)).to(torch.device("meta"))
    assert (moved.prototypes.device.type, moved.negatives.device.type) == ("meta", "meta")
    assert Classes(unit(2, 3)).to(torch.device("cpu")).negatives is None
