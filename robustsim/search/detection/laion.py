"""LAION's CLIP-based NSFW detector: a small head on embeddings of CLIP's ViT-L/14, read without running code."""

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.weights import read_weights
from robustsim.errors import CorruptFileError, InputError, WeightsError

#: The widths of its layers, from the embedding to the score.
WIDTHS = (768, 64, 512, 256, 1)
#: The model of the catalogue whose embeddings it takes.
MODEL = "clip-vit-l-14"

# More than a layer of any such head takes, and than there are arrays in it.
_MOST_BYTES, _MOST_MEMBERS = 1 << 24, 64
# What Keras divides by at least.
_LEAST = 1e-7
_NAMES = (
    "norm.mean",
    "norm.variance",
    *(f"linear_{n}.{what}" for n in range(1, len(WIDTHS)) for what in ("weight", "bias")),
)


class LaionHead(nn.Module):
    """Embeddings (N, 768) of CLIP's ViT-L/14, as OpenAI trained it -> how likely each is not safe for work, (N,).

    A normalisation by the mean and variance of the training data, layers of 64, 512 and 256 with ReLU, and a sigmoid.
    Differentiable in the embeddings. Embeddings are those of the picture in the space of the texts, of length 1, as
    `clip-vit-l-14` gives them; other widths are refused, and of other encoders of that width it says nothing.

    Make one by [`load`][robustsim.search.LaionHead.load].

    Attributes:
        encoder: what its embeddings are of.
        model: the name of that model in the catalogue.
        embedding_dim: how many values they have.
        takes: "embeddings", for `ScoreDetector`.
        score_range: between what its scores, and so thresholds, lie.
    """

    encoder = "CLIP ViT-L/14 of OpenAI"
    model = MODEL
    embedding_dim = WIDTHS[0]
    takes: Literal["embeddings"] = "embeddings"
    score_range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.norm = _Normalisation(WIDTHS[0])
        self.linear_1, self.linear_2, self.linear_3, self.linear_4 = (
            nn.Linear(into, out) for into, out in pairwise(WIDTHS)
        )

    @classmethod
    def load(cls, path: "str | os.PathLike[str]") -> "LaionHead":
        """The head in a file, frozen and in eval mode. No code of a file is run.

        Args:
            path: `clip_ViT-L-14_openai_binary_nsfw_head.pth`, as LAION publishes it; a `.safetensors` with the same
                names; or a `.npz` with these names, or with the arrays of Keras's `get_weights()` in their order, as
                `numpy.savez(path, *model.get_weights())` writes them.

        Raises:
            CorruptFileError: the file cannot be parsed, or holds more than arrays.
            WeightsError: it is not there, or holds another network, values that are not finite or a variance that is
                not above 0.
        """
        file, head = Path(path), cls()
        wanted = {name: tuple(value.shape) for name, value in head.state_dict().items()}
        if file.suffix == ".npz":
            found = _read_npz(file, wanted)
        else:
            found = dict(read_weights(file))
            _check(file, {name: (tuple(value.shape), _kind(value)) for name, value in found.items()}, wanted)
        cast = {name: found[name].to(torch.float32).reshape(shape) for name, shape in wanted.items()}
        if not all(value.isfinite().all() for value in cast.values()):
            raise WeightsError(f"{os.fspath(path)!r} holds values that are not finite: fetch it anew")
        if not (cast["norm.variance"] > 0).all():
            raise WeightsError(f"{os.fspath(path)!r} holds a variance that is not above 0: fetch it anew")
        head.load_state_dict(cast)
        return head.requires_grad_(False).eval()

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, 768) -> (N,) float32 in [0, 1]; 1 is not safe for work.

        Raises:
            InputError: the embeddings have another shape.
        """
        return self.logits(embeddings).sigmoid()

    def logits(self, embeddings: Tensor) -> Tensor:
        """The same before the sigmoid, (N,), for attacks: where the score is next to 0 or 1 it has no gradient.

        Raises:
            InputError: the embeddings have another shape.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != WIDTHS[0] or not embeddings.is_floating_point():
            raise InputError(
                f"this head takes embeddings (N, {WIDTHS[0]}) of {self.encoder}, and not {embeddings.dtype} "
                f"{tuple(embeddings.shape)}"
            )
        x = self.norm(embeddings.to(torch.float32))
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            x = F.relu(layer(x))
        found: Tensor = self.linear_4(x).squeeze(1)
        return found


class _Normalisation(nn.Module):
    mean: Tensor
    variance: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.variance.sqrt().clamp(min=_LEAST)


def _check(
    path: Path, seen: "Mapping[str, tuple[tuple[int, ...], str]]", wanted: "Mapping[str, tuple[int, ...]]"
) -> None:
    """Refuse other shapes than those wanted, and what is not floating point ("" as the kind says that it is)."""
    told = []
    for name in sorted({*seen, *wanted}, key=str):
        shape, kind = seen.get(name, (None, ""))
        right = wanted.get(name)
        fits = shape == right or (name in _NAMES[:2] and shape is not None and (math.prod(shape),) == right)
        if not fits or kind:
            told.append(f"{name} {'missing' if shape is None else shape}{kind and f' {kind}'}")
    if told:
        raise WeightsError(
            f"{os.fspath(path)!r} is not LAION's head for ViT-L/14, whose layers are {', '.join(map(str, WIDTHS))} "
            f"wide: {', '.join(told[:4])}"
        )


def _kind(value: Tensor) -> str:
    is_plain = value.is_floating_point() and value.layout == torch.strided
    return "" if is_plain else f"{value.dtype} {value.layout}"


def _read_npz(path: Path, wanted: "Mapping[str, tuple[int, ...]]") -> dict[str, Tensor]:
    """Arrays of a `.npz`, of which nothing is read before its size, type and shape are seen to be those wanted."""
    if not path.is_file():
        raise WeightsError(f"there is no file {os.fspath(path)!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
            if len(members) > _MOST_MEMBERS:
                raise ValueError(f"{len(members)} members")
            heads = {name: _header(archive, one) for name, one in members.items()}
            named = {name: (name, *heads[name]) for name in heads}
            if all(name.startswith("arr_") and name[4:].isdigit() for name in named):
                named = _named([(name, *heads[name]) for name in sorted(named, key=lambda name: int(name[4:]))])
            seen = {
                name: (shape, "" if dtype.kind == "f" else str(dtype))
                for name, (_, shape, dtype) in named.items()
                if dtype.kind == "f" or name in wanted
            }
            _check(path, seen, wanted)
            found = {}
            for name in wanted:
                with archive.open(members[named[name][0]]) as file, np.errstate(over="ignore"):
                    array = np.lib.format.read_array(file, allow_pickle=False).astype(np.float32)
                is_turned = named[name][0] != name and name.endswith(".weight")
                found[name] = torch.from_numpy(np.ascontiguousarray(array.T if is_turned else array))
            return found
    except WeightsError:
        raise
    except Exception as error:  # of the many that a damaged archive or header raises, each says the same
        raise CorruptFileError(
            f"{os.fspath(path)!r} is no whole .npz of arrays ({error or type(error).__name__}), and was not loaded: "
            "fetch it anew, or save plain arrays"
        ) from error


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> "tuple[tuple[int, ...], np.dtype[Any]]":
    """Shape and type of an array; what is read for it is bounded by its size, which zipfile keeps to."""
    if not member.filename.endswith(".npy") or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename!r} is no array that numpy writes")
    if member.file_size > _MOST_BYTES:
        raise ValueError(f"{member.filename!r} has {member.file_size} bytes, more than any layer")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{member.filename!r} holds {dtype} {shape}")
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename!r} is not as large as it says")
    return shape, dtype


def _named(
    arrays: "Sequence[tuple[str, tuple[int, ...], np.dtype[Any]]]",
) -> "dict[str, tuple[str, tuple[int, ...], np.dtype[Any]]]":
    """What Keras gives, in its order: mean, variance, a count of training data, kernels (into, out) and biases."""
    kept = [one for one in arrays if one[1]]
    names = [*_NAMES, *(f"arr_{number}" for number in range(len(_NAMES), len(kept)))]
    return {
        name: (own, shape[::-1] if name.endswith(".weight") else shape, dtype)
        for name, (own, shape, dtype) in zip(names, kept, strict=False)
    }
