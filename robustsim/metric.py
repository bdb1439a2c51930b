"""The metric: cosine distance of embeddings, as a pseudometric that can be differentiated.

With unit-length embeddings u and v (R-CLIP paper, section III):

    similarity(a, b) = <u, v>                           in [-1, 1]
    distance(a, b)   = sqrt(1 - <u, v>) = |u - v| / sqrt(2)     in [0, sqrt(2)]

The root makes the triangle inequality hold. `squared=True` gives `1 - <u, v>`, DreamSim's distance.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, Union

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.distances import (
    encode_together,
    finite,
    identities,
    joined,
    matrix_distance,
    pair_distance,
    same_of_all,
    same_pictures,
    unit_embeddings,
)
from robustsim.encoders.calibration import Calibration
from robustsim.encoders.card import DEFAULT_MODEL, EncoderCard
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.load import load_encoder, publish_encoder, save_encoder
from robustsim.encoders.placement import find_device, parse_dtype, refuse_overflow
from robustsim.errors import CardError, InputError
from robustsim.images.checks import Checks
from robustsim.images.fast import Decode, check_decode
from robustsim.images.inputs import ImageInput, count_images, split_images, stream_pixels
from robustsim.onnx import OnnxMetric, from_onnx
from robustsim.vectors import are_embeddings, check_batch_size, check_counts

#: Images, or their embeddings: a floating-point tensor (N, D) or (D,), such as `RobustSim.embed` returns, or a
#: NumPy array of them, such as `robustsim embed` writes.
ImagesOrEmbeddings: TypeAlias = Union[ImageInput, Tensor]
Range: TypeAlias = tuple[float, float]

# Groups of images as unit embeddings, (N, D) or (1, D) each; and where two of them, by their places, show the same
# pixels, (N,) or (1,) bool: pixels are compared, as embeddings of equal ones differ by rounding in other batches.
_Encoded: TypeAlias = tuple[list[Tensor], dict[tuple[int, int], Tensor]]


class RobustSim(nn.Module):
    """A perceptual metric over a frozen image encoder.

    Wherever an image is expected, its embedding may stand in: a floating-point tensor (N, D) or (D,), as
    [`embed`][robustsim.RobustSim.embed] returns it. So whatever does not change is encoded once:

    ```python
    reference = metric.embed("reference.png")
    loss = metric(generated, reference).mean()
    ```

    Images are described in [`robustsim.images`][robustsim.images]. One image against N broadcasts; any other two counts
    must be equal. Results are float32, whatever the encoder's type. Parameters are frozen and the module stays in eval
    mode even after `.train()`; gradients flow to image tensors that require them, and are finite everywhere.

    Args:
        encoder: what turns images into embeddings; [`from_pretrained`][robustsim.RobustSim.from_pretrained] makes one
            from a name.
        persistent: whether the encoder belongs to the modules that contain this one: its weights to their checkpoints,
            its parameters to what they shard and synchronise. With False, no module sees it; it moves with them still.
        batch_size: images per encoding; compiled or exported, what one call brings is encoded at once.
        decode: `exact`, by which files have the pixels of the reference pipelines, or `fast`, near that.
    """

    def __init__(
        self, encoder: Encoder, *, persistent: bool = True, batch_size: int = 32, decode: Decode = "exact"
    ) -> None:
        super().__init__()
        self.batch_size, self.decode = check_batch_size(batch_size), check_decode(decode)
        self.encoder: Encoder
        encoder.eval().requires_grad_(False)
        if persistent:
            self.encoder = encoder
        else:  # past nn.Module: whoever saves, shards or wraps the modules around this one finds nothing here
            self.__dict__["encoder"] = encoder
        self.persistent = persistent
        super().train(False)

    @classmethod
    def from_pretrained(
        cls,
        name: "str | os.PathLike[str]" = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        cache_dir: "str | os.PathLike[str] | None" = None,
        local_files_only: bool = False,
        device: "str | torch.device | None" = None,
        dtype: "torch.dtype | str | None" = None,
        text: bool = False,
        persistent: bool = True,
        decode: Decode = "exact",
        compile: bool = False,  # noqa: A002 - torch's word for it
    ) -> "RobustSim":
        """A metric from a catalogue name, a Hub id or a folder; the default is bundled and needs no network.

        Args:
            name: `"rclip-f-convnext-base"`, `"org/repo"`, `"org/repo@revision"` or a folder.
            revision: branch, tag or commit on the Hub.
            cache_dir: where downloads are kept; huggingface_hub's cache if not given.
            local_files_only: use the cache alone.
            device: None for CUDA where there is one, else MPS, else the CPU.
            dtype: the encoder's type, or its name (`"bfloat16"`); None for float32. Results are float32 in any case.
            text: load a CLIP model's text tower too, for [`embed_text`][robustsim.RobustSim.embed_text].
            persistent: see the class.
            decode: see the class.
            compile: have `torch.compile` write the encoder's code, at the first call with each kind of batch. That
                takes minutes and a C++ compiler, and pays for some models and processors: `robustsim benchmark` tells.

        Raises:
            ModelNotFoundError: no such name; the nearest spellings are named.
            HubError: the network, the repository or the disk; the message says what to do.
            WeightsError: the files are damaged, contradict their card, or hold what is not finite in that type.
            InputError: no such device here or way to decode, or an encoder cannot compute in that type.
        """
        place, wanted, decode = find_device(device), parse_dtype(dtype), check_decode(decode)
        # Tensors made in inference mode could never be part of a graph again, and a metric may live long; those made
        # under somebody's `torch.device("meta")` would hold nothing.
        with torch.inference_mode(False), torch.device("cpu"):
            encoder = load_encoder(
                name, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, text=text
            )
            metric = cls(encoder, persistent=persistent, decode=decode).to(place, wanted)
        if compile:
            metric.encoder.compile()
        return metric

    @staticmethod
    def from_onnx(path: "str | os.PathLike[str]", *, decode: Decode = "exact") -> OnnxMetric:
        """[`robustsim.from_onnx`][robustsim.from_onnx], which needs no torch: a metric of the same verbs."""
        return from_onnx(path, decode=decode)

    def save_pretrained(self, folder: "str | os.PathLike[str]") -> Path:
        """Write `config.json` and `model.safetensors`; [`from_pretrained`][robustsim.RobustSim.from_pretrained] reads
        them back bit for bit.

        Raises:
            OutputError: they cannot be written; what was there before stays.
        """
        return save_encoder(self.encoder, folder)

    def push_to_hub(self, repo: str, *, private: bool = False, revision: str | None = None) -> str:
        """Publish to a Hub repository, with a model card made from the encoder's; returns the commit's address.

        Raises:
            HubError: no token with the right to write (`HF_TOKEN`), or no network.
        """
        return publish_encoder(self.encoder, repo, private=private, revision=revision)

    @property
    def card(self) -> EncoderCard:
        """What the encoder is: architecture, preprocessing, provenance, licence."""
        return self.encoder.card

    @property
    def calibration(self) -> Calibration:
        """What its distances mean: `metric.calibration.describe(d)` says it in words.

        Raises:
            CardError: the model's card holds none; the message says how to get it.
        """
        if self.card.calibration is None:
            raise CardError(
                f"what distances of {self.card.name!r} mean was not measured: `robustsim calibrate MODEL --data DIR -o "
                "FOLDER` does, on a folder of photographs"
            )
        return self.card.calibration

    @property
    def device(self) -> torch.device:
        """Where the encoder is; images are brought there."""
        return self.encoder.mean.device  # an attribute, so that replicas of DataParallel have it too

    def preprocess(self, images: ImageInput, *, input_range: Range = (0, 1)) -> Tensor:
        """Images as the encoder sees them: (N, 3, S, S) float32 in [0, 1] on the metric's device.

        Files and other 8-bit pictures give the pixels of the card's reference pipeline; the tensor path is
        differentiable, antialiased and clamped.

        Args:
            images: one image or several, of any sizes.
            input_range: the range of floating-point input, (-1, 1) for LPIPS-style tensors.

        Raises:
            ImageError: a file that cannot be read.
            InputError: a shape, type or range that is no image.
        """
        return next(self._stream(split_images(images), input_range))

    def embed(self, images: ImagesOrEmbeddings, *, input_range: Range = (0, 1)) -> Tensor:
        """Unit-length embeddings, (N, D) float32. Arguments and errors as for
        [`preprocess`][robustsim.RobustSim.preprocess].
        """
        z = self._encode(images, input_range)
        return finite(z, z)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Unit-length embeddings of images that [`preprocess`][robustsim.RobustSim.preprocess] returned: (N, 3, S, S)
        -> (N, D) float32.

        No checks and no resizing; for loops that work on the encoder's own pixels, such as attacks.
        """
        if torch.compiler.is_compiling() or pixels.shape[0] <= self.batch_size:
            features = self.encoder(pixels)
        else:
            features = torch.cat([self.encoder(batch) for batch in torch.split(pixels, self.batch_size)])
        return F.normalize(features.to(torch.float32), dim=1)

    def embed_text(self, texts: "str | list[str]") -> Tensor:
        """Unit-length embeddings of texts in the space of the images, (N, D) float32; CLIP models with `text=True`.

        Raises:
            InputError: no texts, or no text tower.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError("embed_text takes a text or a list of at least one")
        z = F.normalize(self.encoder.encode_text(texts).to(torch.float32), dim=1)
        return finite(z, z)

    def forward(
        self, a: ImagesOrEmbeddings, b: ImagesOrEmbeddings, *, squared: bool = False, input_range: Range = (0, 1)
    ) -> Tensor:
        """The differentiable distance of pairs; [`distance`][robustsim.RobustSim.distance] is the same."""
        return self._pairs(a, b, squared, input_range)

    def distance(
        self, a: ImagesOrEmbeddings, b: ImagesOrEmbeddings, *, squared: bool = False, input_range: Range = (0, 1)
    ) -> Tensor:
        """Distance of pairs: `sqrt(1 - similarity)`, (N,) float32 in [0, sqrt(2)]; identical images give exactly 0.

        Args:
            a: N images, or 1; an embedding may stand in for an image.
            b: N images, or 1.
            squared: give `1 - similarity` in [0, 2] instead, which is DreamSim's distance.
            input_range: as for [`preprocess`][robustsim.RobustSim.preprocess].

        Raises:
            InputError: the counts differ and neither is 1; else as [`preprocess`][robustsim.RobustSim.preprocess].
        """
        return self._pairs(a, b, squared, input_range)

    def similarity(self, a: ImagesOrEmbeddings, b: ImagesOrEmbeddings, *, input_range: Range = (0, 1)) -> Tensor:
        """Cosine similarity of pairs, (N,) float32 in [-1, 1]; identical images give exactly 1."""
        return 1 - self._pairs(a, b, True, input_range)

    def distance_matrix(
        self,
        a: ImagesOrEmbeddings,
        b: ImagesOrEmbeddings | None = None,
        *,
        squared: bool = False,
        input_range: Range = (0, 1),
    ) -> Tensor:
        """Distance of every a to every b, (N, M) float32, in N + M encodings; of every a to every a without b."""
        groups = [self._stand_in(group) for group in ((a,) if b is None else (a, b))]
        pictures: list[Tensor] | None = None if any(map(_is_embedding, groups)) else []
        encoded = [self._encode(group, input_range, pictures) for group in groups]
        same = same_of_all(pictures[0], pictures[-1]) if pictures else None
        return finite(matrix_distance(encoded[0], encoded[-1], same, squared=squared), *encoded)

    def two_afc(
        self,
        reference: ImagesOrEmbeddings,
        left: ImagesOrEmbeddings,
        right: ImagesOrEmbeddings,
        *,
        input_range: Range = (0, 1),
    ) -> Tensor:
        """Two-alternative forced choice: which of two looks more like the reference?

        Returns:
            (N,) float32: 0 where left is nearer, 1 where right is, 0.5 where they tie exactly.
        """
        z, same = self._encode_groups((reference, left, right), input_range)
        to_left, to_right = (pair_distance(z[0], z[side], same.get((0, side)), squared=True) for side in (1, 2))
        finite(to_left + to_right, *z)
        tie = to_right == to_left
        if (1, 2) in same:
            tie = tie | same[1, 2]
        return torch.where(tie, 0.5, (to_right < to_left).to(torch.float32))

    def train(self, mode: bool = True) -> "RobustSim":
        """Stays in eval mode, whatever `mode`: the metric must not change while something is trained with it."""
        return super().train(False)

    def _pairs(self, a: ImagesOrEmbeddings, b: ImagesOrEmbeddings, squared: bool, input_range: Range) -> Tensor:
        (u, v), same = self._encode_groups((a, b), input_range)
        return finite(pair_distance(u, v, same.get((0, 1)), squared=squared), u, v)

    def _encode_groups(self, groups: Sequence[ImagesOrEmbeddings], input_range: Range) -> _Encoded:
        """Embed groups of N images, or of 1 that stands against all of them; pictures of one batch go together."""
        z: list[Any] = [None] * len(groups)
        parts: dict[int, list[Any]] = {}
        checks = Checks()
        for place, group in enumerate(map(self._stand_in, groups)):
            if _is_embedding(group):
                z[place] = self._embedding(group, checks)
            else:
                parts[place] = split_images(group)
        counts = [count_images(parts[i]) if z[i] is None else z[i].shape[0] for i in range(len(groups))]
        if not (parts and (torch.compiler.is_compiling() or len({1, *counts}) < 3)):  # a set fixes counts in a graph
            checks.settle()  # else with the first pictures, in one wait with their range of values
        check_counts(counts)
        if torch.compiler.is_compiling() or sum(counts[i] for i in parts) <= self.batch_size:
            streamed, size = list(parts), None
        else:
            streamed = [i for i in parts if counts[i] == max(counts)]
            size = max(1, self.batch_size // max(1, len(streamed)))
        seen = {i: next(self._stream(parts[i], input_range, None, checks)) for i in parts if i not in streamed}
        for i, pixels in seen.items():
            z[i] = self.embed_pixels(pixels)
        same = {(i, j): [same_pictures(seen[i], seen[j])] for i, j in combinations(seen, 2)}
        encoded: dict[int, list[Tensor]] = {i: [] for i in streamed}
        for batch in zip(*(self._stream(parts[i], input_range, size, checks) for i in streamed), strict=True):
            for i, embedded in zip(streamed, encode_together(self.embed_pixels, batch), strict=True):
                encoded[i].append(embedded)
            seen.update(zip(streamed, batch, strict=True))
            for i, j in combinations(parts, 2):
                if i in streamed or j in streamed:
                    same.setdefault((i, j), []).append(same_pictures(seen[i], seen[j]))
        for i, batches in encoded.items():
            z[i] = joined(batches)
        return z, {pair: joined(rows) for pair, rows in same.items()}

    def _encode(self, images: ImagesOrEmbeddings, input_range: Range, pictures: "list[Tensor] | None" = None) -> Tensor:
        """Unit embeddings (N, D). To `pictures`, what tells the pictures apart is added, where they are pictures."""
        images = self._stand_in(images)
        if _is_embedding(images):
            return self._embedding(images)
        size = None if torch.compiler.is_compiling() else self.batch_size
        encoded, known = [], []
        for pixels in self._stream(split_images(images), input_range, size):
            encoded.append(self.embed_pixels(pixels))
            if pictures is not None:
                known.append(identities(pixels))
        if pictures is not None:
            pictures.append(joined(known))
        return joined(encoded)

    def _embedding(self, z: Tensor, checks: Checks | None = None) -> Tensor:
        return unit_embeddings(z, self.card.embedding_dim, self.card.name, checks).to(self.device)

    def _stand_in(self, images: ImagesOrEmbeddings) -> ImagesOrEmbeddings:
        """An array of embeddings, such as np.load gives, as a tensor; any other array (H, W) is a grey picture."""
        if are_embeddings(images, self.card.embedding_dim):
            return torch.from_numpy(np.array(images, dtype=np.float32))
        return images

    def _stream(
        self, parts: list[Any], input_range: Range, size: int | None = None, checks: Checks | None = None
    ) -> Iterator[Tensor]:
        how: dict[str, Any] = {"device": self.device, "decode": self.decode, "checks": checks}
        return stream_pixels(parts, self.card.preprocessing, input_range=input_range, batch_size=size, **how)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As for any module; empty inside a bigger module's if `persistent` is False."""
        if self.persistent or kwargs.get("prefix") or len(args) > 1:
            return super().state_dict(*args, **kwargs)
        return self.encoder.state_dict(*args, **{**kwargs, "prefix": "encoder."})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *lists: list[str]
    ) -> None:
        """Checkpoints need not hold the encoder if `persistent` is False; one that does is read all the same."""
        if not self.persistent:
            inner = f"{prefix}encoder."
            held = {key[len(inner) :]: state_dict.pop(key) for key in list(state_dict) if key.startswith(inner)}
            try:
                if held or not prefix:  # all of it, or another encoder would be mixed into this one
                    self.encoder.load_state_dict(held, assign=local_metadata.get("assign_to_params_buffers", False))
            except RuntimeError as error:  # names or shapes that differ
                lists[-1].append(str(error))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RobustSim":
        before = self.encoder.mean.dtype
        if not self.persistent:
            self.encoder._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.encoder.mean.dtype != before:
            refuse_overflow(self.encoder)
        return self


def _is_embedding(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim in (1, 2)
