"""What the two drop-ins have in common: a metric inside, other people's ranges, and other people's checkpoints."""

import os
import re
import warnings
from typing import Any, ClassVar, TypeAlias, Union

import torch
from torch import Tensor, nn

from robustsim.distances import check_counts, encode_together, finite, pair_distance, same_pictures
from robustsim.errors import InputError
from robustsim.images.inputs import unit_range
from robustsim.metric import Range, RobustSim

#: A metric, or what `RobustSim.from_pretrained` makes one from: a name, a Hub id or a folder.
Model: TypeAlias = Union[RobustSim, str, "os.PathLike[str]"]

# How far outside its range a value may lie, in widths of it: that far a generator without tanh strays, or pixels that
# an optimiser moves. Pictures in 0..255 lie further out.
_BEYOND = 1.0

_told: set[str] = set()


class CompatWarning(UserWarning):
    """What a drop-in does otherwise than the package whose place it takes; said once in a process, for each class."""


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
        if isinstance(model, RobustSim):
            self.metric = RobustSim(model.encoder, persistent=False, batch_size=model.batch_size)
        else:
            self.metric = RobustSim.from_pretrained(model, device=device, persistent=False)
        super().train(False)

    def train(self, mode: bool = True) -> "DropIn":
        """Stays in eval mode, whatever `mode`."""
        return super().train(False)

    def pixels(self, images: Tensor, input_range: Range) -> Tensor:
        """(N, 3, S, S) in [0, 1], as the metric's encoder sees them, of (N, C, H, W) or (C, H, W), where C is 3 or 1.

        Values up to a whole width outside the range are clamped, and their gradient passes.

        Raises:
            InputError: another shape, values further out, or NaN.
        """
        images = unit_range(batch_of(images).to(self.metric.device), input_range, beyond=_BEYOND)
        return self.prepared(images.expand(-1, 3, -1, -1))

    def prepared(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], resized and cropped as the metric's card says."""
        return self.metric.card.preprocessing.apply_tensor(images)

    def distance(self, a: Tensor, b: Tensor, *, squared: bool) -> Tensor:
        """(N,) float32, of two batches of `pixels`."""
        check_counts((a.shape[0], b.shape[0]))
        u, v = encode_together(self.metric.embed_pixels, (a, b))
        return finite(pair_distance(u, v, same_pictures(a, b), squared=squared), u, v)

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
    if images.ndim not in (3, 4) or shape[-3] not in (1, 3) or 0 in shape:
        raise InputError(f"a tensor of shape {shape} is no batch of pictures, which is (N, 3, H, W)")
    return images if images.ndim == 4 else images[None]


def tell(who: str, text: str) -> None:
    """Warn once in a process for each class, where the class was made."""
    if who not in _told:
        _told.add(who)
        warnings.warn(text, CompatWarning, stacklevel=3)
