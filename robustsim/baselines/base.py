"""The interface that every baseline has."""

import math
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.finite import refuse_non_finite
from robustsim.encoders.weights import state_sha256
from robustsim.errors import InputError
from robustsim.images.inputs import ImageInput, split_images, stream_pixels, unit_range
from robustsim.images.preprocessing import Preprocessing

_SQRT_HALF = math.sqrt(0.5)


class Baseline(nn.Module):
    """A metric: pixels in [0, 1], (N, 3, H, W) -> distances (N,) float32, smaller is more alike.

    Called with images of any kind; [`embed`][robustsim.baselines.Baseline.embed],
    [`compare`][robustsim.baselines.Baseline.compare] and [`distance`][robustsim.baselines.Baseline.distance] are for
    loops on pixels, such as attacks, and check no values. One image against N broadcasts. Nothing is detached:
    gradients flow to both images, and are finite everywhere. Parameters are frozen and the module stays in eval mode
    even after `.train()`.

    Subclasses give `_embed` and `_compare`, or `_distance` alone, and call `_freeze` when they are built.

    Attributes:
        name: what reports call it, such as `lpips-alex`.
        source: library or implementation, its version, and the paper, in one line.
        preprocessing: how a file becomes the pixels it looks at.
        embeds: whether [`embed`][robustsim.baselines.Baseline.embed] and
            [`compare`][robustsim.baselines.Baseline.compare] are there.
        side: the only height and width that it takes, in pixels; None where it takes others too.
        least_side: the smallest height and width that it takes, in pixels.
    """

    embeds: bool = False
    side: int | None = None
    least_side: int = 1

    def __init__(self, name: str, source: str, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.preprocessing = preprocessing or Preprocessing()

    def embed(self, images: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in [0, 1] as (N, D) float32; only where `embeds` is True.

        Raises:
            InputError: the pixels have another shape or type, or this metric has no embeddings.
        """
        self._needs_embeddings()
        return self._embed(self._checked(images))

    def compare(self, u: Tensor, v: Tensor) -> Tensor:
        """Embeddings (N, D) and (N, D) as distances (N,); only where `embeds` is True.

        Raises:
            InputError: the shapes do not fit, or this metric has no embeddings.
        """
        self._needs_embeddings()
        if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[1] or not _fit(len(u), len(v)):
            raise InputError(
                f"{self.name} compares embeddings (N, D) with (N, D), not {tuple(u.shape)} with {tuple(v.shape)}"
            )
        return self._compare(u.float(), v.float())

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) and (N, 3, H, W) in [0, 1], or one against N, as distances (N,); differentiable in both.

        Raises:
            InputError: the shapes or types do not fit.
        """
        x, y = self._checked(a), self._checked(b)
        if x.shape[1:] != y.shape[1:] or not _fit(len(x), len(y)):
            raise InputError(
                f"{self.name} compares images of one size, N with N or one with N, not {tuple(a.shape)} with "
                f"{tuple(b.shape)}"
            )
        return self._distance(x, y)

    def forward(self, a: ImageInput, b: ImageInput) -> Tensor:
        """Distances (N,) of images of any kind, N against N or one against N; differentiable in both.

        Tensors are looked at as they are, at their own size; `uint8` is 0..255, floating point is [0, 1]. Files and
        whatever else [`robustsim.images`][robustsim.images] takes go through `preprocessing`.

        Raises:
            ImageError: a file that cannot be read.
            InputError: a shape, type or range that is no image, or counts that do not fit.
        """
        return self.distance(self._pixels(a), self._pixels(b))

    def weights_sha256(self) -> str | None:
        """What tells two sets of weights apart; None where there are none."""
        return state_sha256(self) if self.state_dict() else None

    def train(self, mode: bool = True) -> "Baseline":
        """Stays in eval mode, whatever `mode`: a yardstick must not change while something is trained with it."""
        return super().train(False)

    def _embed(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def _compare(self, u: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return self._compare(self._embed(a), self._embed(b))

    def _freeze(self, *, weights: bool = True) -> None:
        """Parameters without gradients, eval mode; `weights` says whether they must be finite, as what is loaded must.

        Raises:
            WeightsError: they hold NaN or an infinity.
        """
        if weights:
            refuse_non_finite(dict(chain(self.named_parameters(), self.named_buffers())), f"the weights of {self.name}")
        self.requires_grad_(False)
        super().train(False)

    def _needs_embeddings(self) -> None:
        if not self.embeds:
            raise InputError(f"{self.name} has no embeddings: use distance")

    def _pixels(self, images: ImageInput) -> Tensor:
        if isinstance(images, Tensor):
            return unit_range(images[None] if images.ndim == 3 else images, (0, 1))
        return torch.cat(list(stream_pixels(split_images(images), self.preprocessing, device=self._device())))

    def _device(self) -> torch.device:
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def _checked(self, images: Tensor) -> Tensor:
        if (
            not isinstance(images, Tensor)
            or images.ndim != 4
            or images.shape[1] != 3
            or 0 in images.shape
            or not images.is_floating_point()
        ):
            seen = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"{self.name} takes floating-point pixels (N, 3, H, W) in [0, 1], not {seen}")
        height, width = images.shape[2:]
        if self.side is not None and (height, width) != (self.side, self.side):
            raise InputError(f"{self.name} looks at {self.side} x {self.side} pixels, not {height} x {width}: resize")
        if min(height, width) < self.least_side:
            raise InputError(f"{self.name} needs at least {self.least_side} x {self.least_side} pixels, not "
                             f"{height} x {width}: resize")  # fmt: skip
        return images.float()


def cosine_distance(u: Tensor, v: Tensor) -> Tensor:
    """`1 - cos` of (N, D) and (N, D), in [0, 2], as half the squared distance of the unit vectors.

    So it is exactly 0 where they are equal, and its gradient is finite everywhere.
    """
    return 0.5 * (F.normalize(u, dim=1) - F.normalize(v, dim=1)).square().sum(1)


def angular_root(u: Tensor, v: Tensor) -> Tensor:
    """`sqrt(1 - cos)` of (N, D) and (N, D), in [0, sqrt(2)]; the gradient at 0 is 0."""
    # The norm's gradient at 0 is defined as 0; that of the root would be infinite.
    length: Tensor = torch.linalg.vector_norm(F.normalize(u, dim=1) - F.normalize(v, dim=1), dim=1)
    return length * _SQRT_HALF


def _fit(one: int, other: int) -> bool:
    return one == other or 1 in (one, other)
