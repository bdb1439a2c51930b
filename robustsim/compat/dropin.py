"""What the two drop-ins have in common: a metric inside, other people's ranges, and other people's checkpoints."""

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any, ClassVar, TypeAlias, Union

import torch
from torch import Tensor, nn

from robustsim.distances import encode_together, finite, pair_distance, same_pictures
from robustsim.encoders.card import EncoderCard
from robustsim.errors import EncodingError, InputError
from robustsim.images.inputs import unit_range
from robustsim.images.resize import full_precision
from robustsim.images.tracing import concrete
from robustsim.metric import Range, RobustSim
from robustsim.vectors import check_counts

#: A metric, or what `RobustSim.from_pretrained` makes one from: a name, a Hub id or a folder.
Model: TypeAlias = Union[RobustSim, str, "os.PathLike[str]"]

# How far outside its range a value may lie, in widths of it. Generators without tanh stray far; pictures in 0..255, of
# which a loss would see nothing but white, lie further out.
_FURTHEST = 50.0
# From there on it is told that values are clamped: by less, optimisers move pixels in passing.
_TOLD = 0.1

_told: set[str] = set()


class CompatWarning(UserWarning):
    """What a drop-in does otherwise than the package whose place it takes; said once in a process, for each class."""


class _Inward(torch.autograd.Function):
    """`clamp(0, 1)` for what is minimised: of the gradient, what would take a pixel further out is left away.

    That of `torch.clamp` is 0 outside, where a pixel would stay for ever; passed on as it is, it drives pixels out, and
    nothing would bring them back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(pixels: Tensor) -> Tensor:
        return pixels.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (pixels,) = ctx.saved_tensors
        outward = ((pixels < 0) & (gradient > 0)) | ((pixels > 1) & (gradient < 0))
        return gradient.masked_fill(outward, 0)


def inward(pixels: Tensor) -> Tensor:
    """See `_Inward`."""
    clamped: Tensor = _Inward.apply(pixels)
    return clamped


class DropIn(nn.Module):
    """A metric in another package's place: frozen, always in eval mode, and in nobody's checkpoint.

    Args:
        model: the metric, or what to make it from.
        device: where to load it; a metric that is passed stays where it is.
    """

    #: The other package's own parameters, by the names that a checkpoint from before the change has them under.
    theirs: ClassVar["re.Pattern[str]"]

    def __init__(self, model: Model, device: "str | torch.device | None") -> None:
        super().__init__()
        self.verbose = True
        if isinstance(model, RobustSim):
            self.metric = RobustSim(model.encoder, persistent=False, batch_size=model.batch_size)
        else:
            self.metric = RobustSim.from_pretrained(model, device=device, persistent=False)
        super().train(False)

    def train(self, mode: bool = True) -> "DropIn":
        """Stays in eval mode, whatever `mode`."""
        return super().train(False)

    def parameters(self, recurse: bool = True) -> "Iterator[nn.Parameter]":
        """The encoder's, for `next(loss.parameters()).device` and the like; modules around this one find none."""
        return self.metric.encoder.parameters(recurse)

    def requires_grad_(self, requires_grad: bool = True) -> "DropIn":
        """Stays frozen, whatever is asked for."""
        return self

    def pixels(self, images: Tensor, input_range: Range) -> Tensor:
        """(N, 3, S, S) in [0, 1], as the metric's encoder sees them, of (N, C, H, W) or (C, H, W), where C is 3 or 1.

        Values outside the range are clamped; their gradient passes unless it leads further out. What is not finite
        becomes NaN, as mixed precision wants it that skips such a step.

        Raises:
            InputError: another shape, or values 50 widths outside: pictures in 0..255.
        """
        images = batch_of(images).to(self.metric.device)
        if images.is_floating_point():
            low, high = input_range
            images = self._within((images.to(torch.float32) - low) / (high - low), input_range)
        else:
            images = unit_range(images, input_range)
        return self.prepared(images.expand(-1, 3, -1, -1))

    def _within(self, images: Tensor, input_range: Range) -> Tensor:
        if torch.compiler.is_compiling():  # a check would break the graph
            return inward(images)
        lowest, highest = torch.stack(torch.aminmax(concrete(images))).tolist()  # one wait for the device, not two
        if not (isfinite(lowest) and isfinite(highest)):
            images = images + (images - images)  # infinity less infinity is NaN
        elif lowest < -_FURTHEST or highest > 1 + _FURTHEST:
            low, high = input_range
            lowest, highest = (value * (high - low) + low for value in (lowest, highest))
            way = f"x / 255 * {high - low:g} - {-low:g}" if low else "x / 255"
            raise InputError(
                f"pictures with values from {lowest:.4g} to {highest:.4g}, outside [{low:g}, {high:g}]: scale them to "
                f"that (pictures in 0..255: {way})"
            )
        elif lowest >= 0 and highest <= 1:
            return images
        elif self.verbose and (lowest < -_TOLD or highest > 1 + _TOLD):
            tell(
                f"{type(self).__name__}, clamped",
                f"pictures with values outside {list(input_range)} are clamped by {type(self).__name__}; their "
                "gradient passes unless it leads further out. Said once",
            )
        return inward(images)

    def of_none(self, a: Tensor, b: Tensor) -> "Tensor | None":
        """(0,), if there are no pictures, as the last batch of a loader may have none."""
        counts = {batch_of(images).shape[0] for images in (a, b)}
        if 0 not in counts:
            return None
        if not counts <= {0, 1}:
            raise InputError(f"0 images against {max(counts)}: the counts must be equal, or one of them 1")
        return torch.zeros(0, device=a.device)

    def prepared(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], resized and cropped as the metric's card says."""
        return self.metric.card.preprocessing.apply_tensor(images)

    def distance(self, a: Tensor, b: Tensor, *, squared: bool) -> Tensor:
        """(N,) float32, of two batches of `pixels`; NaN where these are."""
        check_counts((a.shape[0], b.shape[0]))
        with full_precision(a):  # in half precision near pictures look further apart, and their gradient points nowhere
            u, v = encode_together(self.metric.embed_pixels, (a, b))
            return checked(pair_distance(u, v, same_pictures(a, b), squared=squared), (a, b), (u, v))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """A checkpoint from before the change holds the other package's weights here: they are passed over."""
        for key in [key for key in state_dict if key.startswith(prefix) and self.theirs.fullmatch(key[len(prefix) :])]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *others)


def batch_of(images: Tensor) -> Tensor:
    """(N, C, H, W), where C is 3 or 1.

    Raises:
        InputError: no tensor, or another shape.
    """
    if not isinstance(images, Tensor):
        raise InputError(
            f"the drop-ins take tensors (N, 3, H, W), not {type(images).__name__}; RobustSim takes files and lists too"
        )
    shape = tuple(images.shape)
    if images.ndim not in (3, 4) or shape[-3] not in (1, 3) or 0 in shape[-3:]:
        raise InputError(f"a tensor of shape {shape} is no batch of pictures, which is (N, 3, H, W)")
    return images if images.ndim == 4 else images[None]


def crops(card: EncoderCard) -> str:
    """A sentence for people about what the model does not look at; "" if it sees all."""
    if card.preprocessing.seen(3, 2) == (0, 0, 3, 2):
        return ""
    return "It crops: what lies at the edges counts for nothing, and has no gradient. "


def checked(values: Tensor, pixels: Sequence[Tensor], embeddings: Sequence[Tensor]) -> Tensor:
    """The values themselves, if they are numbers, or the pixels are none.

    Raises:
        EncodingError: the encoder makes something else of pictures that are fine.
    """
    try:
        return finite(values, *embeddings)
    except EncodingError:
        if all(bool(one.isfinite().all()) for one in pixels):
            raise
        return values


def tell(what: str, text: str) -> None:
    """Warn once in a process, at the line outside this package and torch that it comes of."""
    if what in _told:
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("robustsim", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, CompatWarning, stacklevel=level)
    _told.add(what)  # after it: where warnings are errors, the next one is told too
