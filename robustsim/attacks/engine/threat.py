"""What an attacker may do: a ball around each image, within the range of pixels."""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from robustsim.attacks.engine.region import ORDERS, Norm, Region, measure, steepest, widest
from robustsim.errors import InputError


def parse_eps(text: str, norm: Norm = "linf") -> float:
    """A radius as people write it: ``4/255``, ``0.0157``, ``3``.

    Raises:
        InputError: no number, or one that cannot be meant, such as 4 in linf; the message says what may be.
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{text!r} is no radius: write 4/255, or a number such as 0.0157")
    _check_eps(torch.tensor(value, dtype=torch.float64), norm, (0.0, 1.0))
    return value


def check_norm(norm: str) -> None:
    """Refuse a norm that is none of ours."""
    if norm not in ORDERS:
        raise InputError(f"{norm!r} is none of the norms {', '.join(get_args(Norm))}")


def _check_eps(eps: Tensor, norm: str, bounds: tuple[float, float]) -> None:
    if eps.ndim > 1 or not bool((eps >= 0).all()):
        raise InputError(f"eps must be one radius of at least 0, or one for each image, not {eps.tolist()!r}")
    largest, span = float(eps.max()) if eps.numel() else 0.0, bounds[1] - bounds[0]
    if norm == "linf" and span * (1 + 1e-6) < largest < math.inf:
        hint = f": did you mean {largest:g}/255?" if largest <= 255 * span else ""
        raise InputError(
            f"an linf radius of {largest:g} is more than the range of pixels, {bounds[0]:g} to {bounds[1]:g}{hint}"
        )


@dataclass(frozen=True, eq=False)
class ThreatModel:
    """A ball of radius ``eps`` around each image, cut with the box of valid pixels.

    Attributes:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: the radius in units of pixels; (N,) for one radius for each image; infinity for no ball at all.
        bounds: least and greatest value of a pixel.

    Raises:
        InputError: an unknown norm, a negative radius, or an linf radius of more than the range of pixels.
    """

    norm: Norm
    eps: float | Tensor
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if not -math.inf < self.bounds[0] < self.bounds[1] < math.inf:
            raise InputError(f"bounds must be (low, high) with low < high, both finite, not {self.bounds!r}")
        _check_eps(torch.as_tensor(self.eps, dtype=torch.float32), self.norm, self.bounds)

    def around(self, images: Tensor) -> "Region":
        """What may be reached from these images: the set that attacks project onto.

        Raises:
            InputError: the images are not floating point of at least 32 bits, lie outside the bounds, or are not as
                many as the radii.
        """
        if images.dtype not in (torch.float32, torch.float64):
            fix = (
                "images.float() / 255" if images.dtype == torch.uint8 else "images.float(), and autocast for the model"
            )
            raise InputError(f"attacks need float32 or float64 images, a finer step than {images.dtype} has: use {fix}")
        if images.ndim < 2 or 0 in images.shape:
            raise InputError(f"images of shape {tuple(images.shape)}: attacks need (N, C, H, W), at least one image")
        low, high = (float(value) for value in torch.aminmax(images))
        if not (low >= self.bounds[0] - 1e-6 and high <= self.bounds[1] + 1e-6):
            raise InputError(
                f"images with values from {low:.6g} to {high:.6g}, outside the bounds {self.bounds}: scale or clamp "
                "them, or pass bounds="
            )
        exact = torch.as_tensor(self.eps, dtype=torch.float64, device="cpu" if images.device.type == "mps" else None)
        if exact.ndim and len(exact) not in (1, len(images)):
            raise InputError(f"{len(exact)} radii for {len(images)} images: pass one, or one for each")
        exact = exact.to(images.device, widest(images)).expand(len(images))
        return Region(self.norm, images, exact, self.bounds, beyond=low < self.bounds[0] or high > self.bounds[1])

    def project(self, images: Tensor, originals: Tensor) -> Tensor:
        """The nearest point (in l2) of the ball around ``originals`` and the box: (N, ...) -> (N, ...)."""
        return self.around(originals).project(images)

    def random_start(self, originals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A random point of each image's set; see :meth:`Region.random_start`.

        Raises:
            InputError: the radius is infinite; else as for :meth:`around`.
        """
        if bool(torch.isinf(torch.as_tensor(self.eps)).any()):
            raise InputError("an infinite radius has no random point: pass eps=")
        return self.around(originals).random_start(generator)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 in the norm along which a linear function grows most; see :func:`steepest`."""
        return steepest(gradient, self.norm)

    def distance(self, images: Tensor, originals: Tensor) -> Tensor:
        """The norm of the difference, (N,); of several pictures of one row, the largest."""
        return measure(images - originals, self.norm)
