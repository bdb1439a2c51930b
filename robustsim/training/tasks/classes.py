"""What labels stand for: classes as embedded prompts, or as means of embedded images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.encoders.encoder import Encoder
from robustsim.encoders.weights import read_weights, whole_file, write_weights
from robustsim.errors import DataError, ImageError, InputError
from robustsim.images.inputs import load_square, stack_squares
from robustsim.training.methods.table import Classes
from robustsim.training.sources.stream import Images

# Prompts, or images, that are embedded at once.
_CHUNK = 64
_NAMES = ("prototypes", "negatives")


def text_classes(encoder: Encoder, names: Sequence[str], prompt: str, negative: str | None = None) -> Classes:
    """Prompts of classes, embedded by the encoder's own text tower.

    Args:
        encoder: loaded with its text tower.
        names: K names of classes; underscores become spaces.
        prompt: such as `This is a photo of a {}`.
        negative: the prompt of what a picture is not of.

    Raises:
        InputError: the encoder has no text tower; there is no name; a prompt without one place for it.
    """
    if not names:
        raise InputError("there are no names of classes to embed")
    plain = [name.replace("_", " ") for name in names]

    def embed(pattern: str) -> Tensor:
        if pattern.count("{}") != 1:
            raise InputError(f"the prompt {pattern!r} must hold {{}} once, where the name of the class goes")
        with torch.no_grad():
            # Not by format, to which other brackets would mean something.
            texts = [pattern.replace("{}", name) for name in plain]
            parts = [encoder.encode_text(texts[i : i + _CHUNK]) for i in range(0, len(texts), _CHUNK)]
            return F.normalize(torch.cat(parts).float(), dim=1)

    return Classes(embed(prompt), None if negative is None else embed(negative))


def image_classes(encoder: Encoder, source: Images, *, per_class: int = 50) -> Classes:
    """Means of the unit-length embeddings of each class's first images: for encoders that know no text.

    Args:
        encoder: in eval mode.
        source: labelled images; those that cannot be read do not count.
        per_class: images of a class, at most.

    Raises:
        DataError: no labels, or a class without an image.
        InputError: no image of a class is wanted.
    """
    if per_class < 1:
        raise InputError(f"per_class must be at least 1, not {per_class}")
    device = encoder.mean.device
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    pending: list[tuple[int, Any]] = []

    def embed() -> None:
        if not pending:
            return
        with torch.no_grad():
            z = F.normalize(encoder(stack_squares([square for _, square in pending], device)).float(), dim=1)
        for (label, _), row in zip(pending, z, strict=True):
            sums[label] = sums[label] + row if label in sums else row
        pending.clear()

    for index in range(len(source)):
        label = source.label(index)
        if label is None:
            raise DataError("class prototypes need labelled images: a folder for each class, or .cls files in shards")
        if counts.get(label, 0) >= per_class:
            continue
        try:
            square = load_square(source.read(index).image, encoder.card.preprocessing)
        except ImageError:  # which the training reports
            continue
        counts[label] = counts.get(label, 0) + 1
        pending.append((label, square))
        if len(pending) == _CHUNK:
            embed()
    embed()
    names = getattr(source, "classes", None)  # which some sources know
    wanted = range(max(sums, default=0) + 1 if names is None else len(names))
    missing = [label for label in wanted if label not in sums]
    if missing:
        called = missing[0] if names is None else repr(names[missing[0]])
        raise DataError(f"no image of the class {called} could be read: add one, or leave the class out")
    return Classes(F.normalize(torch.stack([sums[label] for label in sorted(sums)]), dim=1).cpu())


def save_classes(classes: Classes, path: "str | os.PathLike[str]") -> Path:
    """Write `prototypes` (and `negatives`), (K, D), to a safetensors file;
    [`load_classes`][robustsim.training.load_classes] reads it back.
    """
    place = Path(path)
    tensors = {"prototypes": classes.prototypes}
    if classes.negatives is not None:
        tensors["negatives"] = classes.negatives
    with whole_file(place) as temporary:
        write_weights(temporary, tensors)
    return place


def load_classes(path: "str | os.PathLike[str]", *, dim: int, count: int | None = None) -> Classes:
    """Read class prototypes; they are brought to length 1.

    Args:
        path: a safetensors file that holds `prototypes` (K, D), and `negatives` (K, D) if a method wants them.
        dim: D of the encoder.
        count: K, where the data says it.

    Raises:
        DataError: it holds something else, or shapes that do not fit.
    """
    place = Path(path)
    if place.suffix != ".safetensors" or not place.is_file():
        raise DataError(f"{os.fspath(path)!r} is no safetensors file with class prototypes (K, {dim})")
    tensors = read_weights(place)
    if "prototypes" not in tensors or set(tensors) - set(_NAMES):
        held = ", ".join(sorted(tensors)) or "nothing"
        raise DataError(
            f"{os.fspath(path)!r} holds {held}; it must hold `prototypes` (K, {dim}), and may hold `negatives` beside"
        )
    if count is None:
        count = len(tensors["prototypes"]) if tensors["prototypes"].ndim else 0
    for name, value in tensors.items():
        if value.shape != (count, dim) or not count:
            raise DataError(
                f"{name} of {os.fspath(path)!r} have the shape {tuple(value.shape)}: there must be a row for each of "
                f"the {count or 'K'} classes, of the encoder's {dim} numbers"
            )
        if not bool(torch.isfinite(value).all()) or not bool(value.any(1).all()):
            raise DataError(f"{name} of {os.fspath(path)!r} hold rows that are no directions (zero, NaN or infinite)")
    unit = {name: F.normalize(value.float(), dim=1) for name, value in tensors.items()}
    return Classes(unit["prototypes"], unit.get("negatives"))


def find_classes(
    encoder: Encoder,
    names: Sequence[str] | None,
    options: dict[str, Any],
    prototypes: "str | os.PathLike[str] | None",
) -> Classes:
    """The classes that a method needs: from a file, or by the encoder's text tower.

    Raises:
        InputError: neither is there.
        DataError: the images have no labels.
    """
    if names is None:
        raise DataError(
            "this method needs labels, and the images have none: a folder for each class, .cls files in shards, or a "
            "data set with a ClassLabel column; several sets have labels where all name the same classes"
        )
    if prototypes is not None:
        return load_classes(prototypes, dim=encoder.card.embedding_dim, count=len(names))
    if encoder.text is None:
        raise InputError(
            f"{encoder.card.name!r} has no text tower to embed the classes with: bring prototypes from a file "
            "(--prototypes; robustsim.training.image_classes makes them from images, save_classes writes them)"
        )
    return text_classes(encoder, names, options["prompt"], options.get("negative_prompt"))
