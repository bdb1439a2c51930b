"""What an attacker may do: a ball around each image, within the range of pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Union, get_args

import torch
from torch import Tensor

from robustsim.attacks.engine.region import ORDERS, Norm, Region, measure, steepest, widest
from robustsim.errors import InputError

#: What may be said for a radius; numbers of other libraries and arrays too.
Eps: TypeAlias = Union[float, str, Tensor, Sequence[float | str]]
_LISTS = (list, tuple)


def parse_eps(text: str, norm: Norm = "linf") -> float:
    """A radius as people write it: `4/255`, `0.0157`, `3`.

    Raises:
        InputError: no number, or one that cannot be meant, such as 4 in linf; the message says what may be.
    """
    value = _number(text)
    if not math.isfinite(value):
        raise InputError(f"{text!r} is no radius: write 4/255, or a number such as 0.0157")
    _check_eps(torch.tensor(value, dtype=torch.float64), norm, (0.0, 1.0))
    return value


def read_eps(eps: Any, norm: str, bounds: tuple[float, float]) -> float | Tensor:
    """A radius, or one for each image, as attacks are given it: numbers, text such as `4/255`, lists and arrays.

    Returns:
        A float; a tensor (N,) where there is one for each image; a tensor as it is.

    Raises:
        InputError: what is no number, below 0, NaN, more than the range of pixels in linf, or of more dimensions.
    """
    told = f"eps must be one radius of at least 0, or one for each image, not {eps!r}"
    if isinstance(eps, str):
        value: float | Tensor = _number(eps)
        if math.isnan(value):
            raise InputError(f"{eps!r} is no radius: write 4/255, or a number such as 0.0157")
    elif isinstance(eps, Tensor):
        value = eps.detach()
    elif isinstance(eps, bool) or eps is None:
        raise InputError(told)
    else:
        try:
            each = [_number(one) if isinstance(one, str) else one for one in eps] if isinstance(eps, _LISTS) else eps
            value = torch.as_tensor(each, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise InputError(told) from None
        value = value if value.ndim else float(value)
    radii = torch.as_tensor(value)
    if radii.ndim > 1 or not radii.numel() or radii.is_complex() or radii.dtype == torch.bool:
        raise InputError(told)
    _check_eps(radii, norm, bounds)
    return value


def _number(text: str) -> float:
    """The number that text says, as a decimal or a fraction; NaN if none."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        return math.nan


def check_norm(norm: str) -> None:
    """Refuse a norm that is none of ours."""
    if not isinstance(norm, str) or norm not in ORDERS:
        raise InputError(f"{norm!r} is none of the norms {', '.join(get_args(Norm))}")


def _check_eps(eps: Tensor, norm: str, bounds: tuple[float, float]) -> None:
    if not bool((eps >= 0).all()):
        raise InputError(f"eps must be one radius of at least 0, or one for each image, not {eps.tolist()!r}")
    largest, span = float(eps.max()), bounds[1] - bounds[0]
    if norm == "linf" and span * (1 + 1e-6) < largest < math.inf:
        hint = f": did you mean {largest:g}/255?" if largest <= 255 * span else ""
        raise InputError(
            f"an linf radius of {largest:g} is more than the range of pixels, {bounds[0]:g} to {bounds[1]:g}{hint}"
        )


@dataclass(frozen=True, eq=False)
class ThreatModel:
    """A ball of radius `eps` around each image, cut with the box of valid pixels.

    Attributes:
        norm: `linf`, `l2` or `l1`.
        eps: the radius in units of pixels, a number or text such as `8/255`; (N,) for one radius for each image, a
            tensor, list or array; infinity for no ball at all. It becomes a float or a tensor.
        bounds: least and greatest value of a pixel.

    Raises:
        InputError: an unknown norm, a negative radius or none, or an linf radius of more than the range of pixels.
    """

    norm: Norm
    eps: Eps
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_norm(self.norm)
        try:
            low, high = self.bounds
            fit = -math.inf < low < high < math.inf
        except (TypeError, ValueError):
            fit = False
        if not fit:
            raise InputError(f"bounds must be (low, high) with low < high, both finite, not {self.bounds!r}")
        object.__setattr__(self, "eps", read_eps(self.eps, self.norm, self.bounds))

    def around(self, images: Tensor) -> "Region":
        """What may be reached from these images: the set that attacks project onto.

        Raises:
            InputError: the images are no tensor of floating point of at least 32 bits, lie outside the bounds, or are
                not as many as the radii.
        """
        if not isinstance(images, Tensor):
            raise InputError(f"attacks need a tensor of images (N, C, H, W), not {type(images).__name__}")
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
        """The nearest point (in l2) of the ball around `originals` and the box: (N, ...) -> (N, ...)."""
        return self.around(originals).project(images)

    def random_start(self, originals: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A random point of each image's set; see `Region.random_start`.

        Raises:
            InputError: the radius is infinite; else as for [`around`][robustsim.attacks.ThreatModel.around].
        """
        if bool(torch.isinf(torch.as_tensor(self.eps)).any()):
            raise InputError("an infinite radius has no random point: pass eps=")
        return self.around(originals).random_start(generator)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 in the norm along which a linear function grows most; see `steepest`."""
        return steepest(gradient, self.norm)

    def distance(self, images: Tensor, originals: Tensor) -> Tensor:
        """The norm of the difference, (N,); of several pictures of one row, the largest."""
        return measure(images - originals, self.norm)
