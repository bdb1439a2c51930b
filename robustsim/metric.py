"""The metric: cosine distance of embeddings, as a pseudometric that can be differentiated.

With unit-length embeddings u and v (R-CLIP paper, section III):

    similarity(a, b) = <u, v>                           in [-1, 1]
    distance(a, b)   = sqrt(1 - <u, v>) = |u - v| / sqrt(2)     in [0, sqrt(2)]

The root makes the triangle inequality hold. ``squared=True`` gives ``1 - <u, v>``, DreamSim's distance.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, Union

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.card import DEFAULT_MODEL, EncoderCard
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.load import load_encoder, save_encoder
from robustsim.errors import InputError
from robustsim.images.inputs import ImageInput, count_images, split_images, stream_pixels

#: Images, or their embeddings: a floating-point tensor (N, D) or (D,), such as :meth:`RobustSim.embed` returns, or a
#: NumPy array of them, such as ``robustsim embed`` writes.
ImagesOrEmbeddings: TypeAlias = Union[ImageInput, Tensor]
Range: TypeAlias = tuple[float, float]

# Unit embeddings (N, D), and fingerprints (N,) of the pixels they come from, where they come from pixels.
_Encoded: TypeAlias = tuple[Tensor, "Tensor | None"]

_SQRT_HALF = 0.5**0.5
# An embedding of that length within this counts as normalised, and is not touched again.
_UNIT = 1e-5
# Identical pixels, encoded in batches of other sizes, end this near to each other.
_NEARLY_ZERO = 0.05


class RobustSim(nn.Module):
    """A perceptual metric over a frozen image encoder.

    Wherever an image is expected, its embedding may stand in: a floating-point tensor (N, D) or (D,), as
    :meth:`embed` returns it. So whatever does not change is encoded once::

        reference = metric.embed("reference.png")
        loss = metric(generated, reference).mean()

    Images are described in :mod:`robustsim.images`. One image against N broadcasts; any other two counts must be
    equal. Results are float32, whatever the encoder's type. Parameters are frozen and the module stays in eval mode
    even after ``.train()``; gradients flow to image tensors that require them, and are finite everywhere.

    Args:
        encoder: what turns images into embeddings; :meth:`from_pretrained` makes one from a name.
        persistent: whether the encoder's weights belong to the ``state_dict`` of modules that contain this one.
            With False they are neither saved into nor expected in a checkpoint.
        batch_size: images per encoding.
    """

    _multipliers: Tensor

    def __init__(self, encoder: Encoder, *, persistent: bool = True, batch_size: int = 32) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        self.encoder = encoder.eval().requires_grad_(False)
        self.persistent = persistent
        self.batch_size = batch_size
        size = encoder.card.preprocessing.size
        self.register_buffer("_multipliers", _multipliers(3 * size * size), persistent=False)
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
        dtype: torch.dtype | None = None,
        text: bool = False,
        persistent: bool = True,
    ) -> "RobustSim":
        """A metric from a catalogue name, a Hub id or a folder; the default is bundled and needs no network.

        Args:
            name: ``"rclip-f-convnext-base"``, ``"org/repo"``, ``"org/repo@revision"`` or a folder.
            revision: branch, tag or commit on the Hub.
            cache_dir: where downloads are kept; huggingface_hub's cache if not given.
            local_files_only: use the cache alone.
            device: None for CUDA where there is one, else MPS, else the CPU.
            dtype: the encoder's type; None for float32. Results are float32 in any case.
            text: load a CLIP model's text tower too, for :meth:`embed_text`.
            persistent: see the class.

        Raises:
            ModelNotFoundError: no such name; the nearest spellings are named.
            HubError: the network, the repository or the disk; the message says what to do.
            WeightsError: the files are damaged, or contradict their card.
            InputError: this machine has no such device.
        """
        place = _device(device)
        # Tensors made in inference mode could never be part of a graph again, and a metric may live long.
        with torch.inference_mode(False):
            encoder = load_encoder(
                name, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, text=text
            )
            return cls(encoder, persistent=persistent).to(place, dtype or torch.float32)

    def save_pretrained(self, folder: "str | os.PathLike[str]") -> Path:
        """Write ``config.json`` and ``model.safetensors``; :meth:`from_pretrained` reads them back bit for bit.

        Raises:
            OutputError: they cannot be written; what was there before stays.
        """
        return save_encoder(self.encoder, folder)

    def push_to_hub(self, repo: str, *, private: bool = False, revision: str | None = None) -> str:
        """Publish to a Hub repository, with a model card made from the encoder's; returns the commit's address.

        Raises:
            HubError: no token with the right to write (``HF_TOKEN``), or no network.
        """
        from tempfile import TemporaryDirectory

        from robustsim.encoders.hub import publish

        with TemporaryDirectory() as folder:
            root = self.save_pretrained(folder)
            (root / "README.md").write_text(self.card.to_readme(repo), encoding="utf-8")
            return publish(root, repo, private=private, revision=revision, message="Upload with robustsim")

    @property
    def card(self) -> EncoderCard:
        """What the encoder is: architecture, preprocessing, provenance, licence."""
        return self.encoder.card

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
        """Unit-length embeddings, (N, D) float32. Arguments and errors as for :meth:`preprocess`."""
        return self._encode(images, input_range)[0]

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Unit-length embeddings of images that :meth:`preprocess` returned: (N, 3, S, S) -> (N, D) float32.

        No checks and no resizing; for loops that work on the encoder's own pixels, such as attacks.
        """
        if len(pixels) <= self.batch_size:
            features = self.encoder(pixels)
        else:
            features = torch.cat([self.encoder(batch) for batch in torch.split(pixels, self.batch_size)])
        return F.normalize(features.to(torch.float32), dim=1)

    def embed_text(self, texts: "str | list[str]") -> Tensor:
        """Unit-length embeddings of texts in the space of the images, (N, D) float32; CLIP models with ``text=True``.

        Raises:
            InputError: no texts, or no text tower.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError("embed_text takes a text or a list of at least one")
        return F.normalize(self.encoder.encode_text(texts).to(torch.float32), dim=1)

    def forward(
        self, a: ImagesOrEmbeddings, b: ImagesOrEmbeddings, *, squared: bool = False, input_range: Range = (0, 1)
    ) -> Tensor:
        """The differentiable distance of pairs; :meth:`distance` is the same."""
        return self._pairs(a, b, squared, input_range)

    def distance(
        self, a: ImagesOrEmbeddings, b: ImagesOrEmbeddings, *, squared: bool = False, input_range: Range = (0, 1)
    ) -> Tensor:
        """Distance of pairs: ``sqrt(1 - similarity)``, (N,) float32 in [0, sqrt(2)]; identical images give exactly 0.

        Args:
            a: N images, or 1; an embedding may stand in for an image.
            b: N images, or 1.
            squared: give ``1 - similarity`` in [0, 2] instead, which is DreamSim's distance.
            input_range: as for :meth:`preprocess`.

        Raises:
            InputError: the counts differ and neither is 1; else as :meth:`preprocess`.
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
        u, seen_u = self._encode(a, input_range)
        v, seen_v = (u, seen_u) if b is None else self._encode(b, input_range)
        # Not by a matrix product: its rounding would show as 3e-4 where the distance is 0.
        d = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist").mul(_SQRT_HALF).clamp(max=2**0.5)
        if seen_u is not None and seen_v is not None:
            same = (seen_u[:, None] == seen_v[None, :]) & (d.detach() < _NEARLY_ZERO)
            d = d.masked_fill(same, 0)
        return d.square().clamp(max=2) if squared else d

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
        z = self._encode(reference, input_range)
        x, y = self._encode_both(left, right, input_range)
        if len({len(x[0]), len(y[0]), 1}) > 2:
            raise InputError(f"{len(x[0])} left images and {len(y[0])} right ones: they must be as many")
        to_left, to_right = _distance(z, x, squared=True), _distance(z, y, squared=True)
        tie = to_right == to_left
        if x[1] is not None and y[1] is not None:
            tie = tie | (x[1] == y[1])
        return torch.where(tie, 0.5, (to_right < to_left).to(torch.float32))

    def train(self, mode: bool = True) -> "RobustSim":
        """Stays in eval mode, whatever ``mode``: the metric must not change while something is trained with it."""
        return super().train(False)

    def _pairs(self, a: ImagesOrEmbeddings, b: ImagesOrEmbeddings, squared: bool, input_range: Range) -> Tensor:
        return _distance(*self._encode_both(a, b, input_range), squared=squared)

    def _encode_both(
        self, a: ImagesOrEmbeddings, b: ImagesOrEmbeddings, input_range: Range
    ) -> "tuple[_Encoded, _Encoded]":
        a, b = self._stand_in(a), self._stand_in(b)
        if _is_embedding(a) or _is_embedding(b):
            return self._encode(a, input_range), self._encode(b, input_range)
        parts_a, parts_b = split_images(a), split_images(b)
        if count_images(parts_a) + count_images(parts_b) > self.batch_size:
            return self._encode_parts(parts_a, input_range), self._encode_parts(parts_b, input_range)
        x, y = (next(self._stream(parts, input_range)) for parts in (parts_a, parts_b))
        if x.requires_grad != y.requires_grad:  # in one batch, both would be differentiated
            return self._encode_pixels(x), self._encode_pixels(y)
        z, seen = self._encode_pixels(torch.cat((x, y)))
        return (z[: len(x)], seen[: len(x)]), (z[len(x) :], seen[len(x) :])

    def _encode(self, images: ImagesOrEmbeddings, input_range: Range) -> "_Encoded":
        images = self._stand_in(images)
        if not _is_embedding(images):
            return self._encode_parts(split_images(images), input_range)
        if images.shape[-1] != self.card.embedding_dim or not images.is_floating_point() or 0 in images.shape:
            raise InputError(
                f"a {images.dtype} tensor of shape {tuple(images.shape)} is neither an image, (3, H, W) or "
                f"(N, 3, H, W), nor an embedding of {self.card.name!r}, floating point (N, {self.card.embedding_dim})"
            )
        return _unit(images.to(self.device, torch.float32).reshape(-1, self.card.embedding_dim)), None

    def _stand_in(self, images: ImagesOrEmbeddings) -> ImagesOrEmbeddings:
        """An array of embeddings, such as np.load gives, as a tensor; any other array (H, W) is a grey picture."""
        if isinstance(images, np.ndarray) and images.dtype.kind == "f" and images.ndim in (1, 2):
            lengths = np.linalg.norm(images, axis=-1)
            if images.shape[-1] == self.card.embedding_dim and np.allclose(lengths, 1, atol=1e-3):
                return torch.from_numpy(np.array(images, dtype=np.float32))
        return images

    def _encode_parts(self, parts: list[Any], input_range: Range) -> "tuple[Tensor, Tensor]":
        encoded = [self._encode_pixels(pixels) for pixels in self._stream(parts, input_range, self.batch_size)]
        if len(encoded) == 1:
            return encoded[0]
        return torch.cat([z for z, _ in encoded]), torch.cat([seen for _, seen in encoded])

    def _stream(self, parts: list[Any], input_range: Range, batch_size: int | None = None) -> Iterator[Tensor]:
        return stream_pixels(
            parts, self.card.preprocessing, device=self.device, input_range=input_range, batch_size=batch_size
        )

    def _encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed_pixels(pixels), _fingerprint(pixels, self._multipliers)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As for any module; empty inside a bigger module's if ``persistent`` is False."""
        if self.persistent or not (kwargs.get("prefix") or len(args) > 1):
            return super().state_dict(*args, **kwargs)
        return kwargs["destination"] if "destination" in kwargs else args[0]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if not self.persistent and isinstance(state_dict, dict):
            for key, value in self.encoder.state_dict(prefix=f"{prefix}encoder.").items():
                state_dict.setdefault(key, value)  # what is not in the checkpoint stays as it is
        super()._load_from_state_dict(state_dict, prefix, *args)


def _distance(a: _Encoded, b: _Encoded, *, squared: bool) -> Tensor:
    """Distances of pairs of encoded images, (N,)."""
    (u, seen_u), (v, seen_v) = a, b
    if len(u) != len(v) and 1 not in (len(u), len(v)):
        raise InputError(f"{len(u)} images against {len(v)}: the counts must be equal, or one of them 1")
    difference = u - v
    if squared:
        d = (0.5 * difference.square().sum(1)).clamp(max=2)
    else:
        # The norm's gradient at 0 is defined as 0; sqrt(1 - cos) would have none there.
        d = (torch.linalg.vector_norm(difference, dim=1) * _SQRT_HALF).clamp(max=2**0.5)
    if seen_u is not None and seen_v is not None:
        d = d.masked_fill((seen_u == seen_v) & (d.detach() < _NEARLY_ZERO), 0)
    return d


def _is_embedding(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim in (1, 2)


def _unit(z: Tensor) -> Tensor:
    """Rows of somebody's embeddings scaled to length 1; those that have it stay the same to the bit."""
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z / torch.where((length - 1).abs() < _UNIT, torch.ones_like(length), length.clamp_min(1e-12))


def _fingerprint(pixels: Tensor, multipliers: Tensor) -> Tensor:
    """(N,) integers, equal for equal pixels wherever they stand in a batch: integer sums know no rounding."""
    bits = pixels.detach().contiguous().view(torch.int32).flatten(1)
    return (bits * multipliers).sum(1, dtype=torch.int32)


def _multipliers(count: int) -> Tensor:
    """Fixed odd int32 numbers, one for each value of an image, with no pattern between them."""
    mixed = torch.arange(1, count + 1) * 0x9E3779B97F4A7C1
    return ((mixed ^ (mixed >> 29)) & 0x7FFFFFFF).to(torch.int32) | 1


def _device(device: "str | torch.device | None") -> torch.device:
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device!r} is no device: use 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(place.type):
        raise InputError(f"this machine, or this build of torch, has no {place.type!r} device: use device='cpu'")
    return place
