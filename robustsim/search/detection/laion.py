"""LAION's CLIP-based NSFW detector: a small head on embeddings of CLIP's ViT-L/14, read without running code."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.weights import read_weights
from robustsim.errors import CorruptFileError, InputError, WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The widths of its layers, from the embedding to the score.
WIDTHS = (768, 64, 512, 256, 1)
#: The model of the catalogue whose embeddings it takes.
MODEL = "clip-vit-l-14"

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
    """

    encoder = "CLIP ViT-L/14 of OpenAI"
    model = MODEL
    embedding_dim = WIDTHS[0]
    takes: Literal["embeddings"] = "embeddings"

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
            WeightsError: it is not there, or holds another network.
        """
        file = Path(path)
        tensors = _read_npz(file) if file.suffix == ".npz" else read_weights(file)
        head = cls()
        wanted = {name: value.shape for name, value in head.state_dict().items()}
        found = {name: value.reshape(-1) if name.startswith("norm.") else value for name, value in tensors.items()}
        seen = {name: value.shape for name, value in found.items()}
        if seen != wanted:
            wrong = sorted(name for name in {*seen, *wanted} if seen.get(name) != wanted.get(name))
            told = ", ".join(f"{name} {tuple(seen[name]) if name in seen else 'missing'}" for name in wrong[:4])
            raise WeightsError(
                f"{os.fspath(path)!r} is not LAION's head for ViT-L/14, whose layers are {', '.join(map(str, WIDTHS))} "
                f"wide: {told}"
            )
        if not all(value.isfinite().all() for value in found.values()):
            raise WeightsError(f"{os.fspath(path)!r} holds values that are not finite: fetch it anew")
        head.load_state_dict({name: value.to(torch.float32) for name, value in found.items()})
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


def _read_npz(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"there is no file {os.fspath(path)!r}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except MemoryError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CorruptFileError(
            f"{os.fspath(path)!r} is no whole .npz of arrays ({error}), and was not loaded: fetch it anew, or save "
            "plain arrays"
        ) from error
    if all(name.startswith("arr_") and name[4:].isdigit() for name in arrays):
        arrays = _named([arrays[name] for name in sorted(arrays, key=lambda name: int(name[4:]))])
    numbers = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    return {name: torch.from_numpy(array) for name, array in numbers.items()}


def _named(arrays: "Sequence[NDArray[Any]]") -> "dict[str, NDArray[Any]]":
    """What Keras gives, in its order: mean, variance, a count of training data, kernels (into, out) and biases."""
    kept = [array for array in arrays if array.ndim]
    names = [*_NAMES, *(f"arr_{number}" for number in range(len(_NAMES), len(kept)))]
    return {
        name: np.ascontiguousarray(array.T) if name.endswith(".weight") else array
        for name, array in zip(names, kept, strict=False)
    }
