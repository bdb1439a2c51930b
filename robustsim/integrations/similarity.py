"""The metric as torchmetrics wants it: updated batch by batch, computed at the end, the same over many processes."""

import hashlib
import os
from copy import deepcopy
from typing import Any, Literal, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor

from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.errors import InputError, MissingDependencyError
from robustsim.metric import ImagesOrEmbeddings, RobustSim

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise MissingDependencyError(
        'RobustSimilarity is a torchmetrics.Metric: pip install "robustsim[integrations]"'
    ) from error

# What torchmetrics' `forward` changes while it works, beside the states.
_PUT_ASIDE = ("_update_count", "_computed", "_to_sync", "_should_unsync", "_enable_grad", "compute_on_cpu")

Reduction: TypeAlias = Literal["mean", "sum", "none"] | None


class RobustSimilarity(Metric):
    """The distance of pairs of images over a whole data set, as a `torchmetrics.Metric`.

    It is called as torchmetrics' `LearnedPerceptualImagePatchSimilarity` is, and measures a distance as that one does:
    0 is identical. Its value is that of [`RobustSim.distance`][robustsim.RobustSim.distance], float32 whatever
    `set_dtype`, `.to(dtype)` or autocast say, and does not drift over millions of batches. Calling it adds a batch and
    gives that batch's value, with a gradient; `update` adds it and gives nothing.

    The encoder belongs to no `state_dict`, and copies share it (`clone`, `MetricCollection`, `MetricTracker`,
    `BootStrapper`). Moved to another device, a metric uses a copy of the encoder there, if none that it shares is
    there already.

    Args:
        model: a name or folder, as for [`from_pretrained`][robustsim.RobustSim.from_pretrained], loaded on torch's
            default device; or a metric, perhaps the one that is your loss, which stays as it is.
        reduction: `"mean"` or `"sum"` of all pairs, or `"none"` (None is the same): the distance of each, (N,).
        normalize: floating-point images are in [0, 1] if True, else in [-1, 1]. uint8 is 0..255 in any case.
        squared: `1 - similarity` in [0, 2] instead of its root in [0, sqrt(2)].
        kwargs: what any `torchmetrics.Metric` takes, such as `dist_sync_on_step`.

    Raises:
        MissingDependencyError: torchmetrics is not installed.
        InputError: an option that does not fit; and all that
            [`from_pretrained`][robustsim.RobustSim.from_pretrained] raises.
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(
        self,
        model: "RobustSim | str | os.PathLike[str]" = DEFAULT_MODEL,
        *,
        reduction: Reduction = "mean",
        normalize: bool = False,
        squared: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if reduction not in ("mean", "sum", "none", None):
            raise InputError(f'reduction must be "mean", "sum", "none" or None, not {reduction!r}')
        for name, value in (("normalize", normalize), ("squared", squared)):
            if not isinstance(value, bool):
                raise InputError(f"{name} must be True or False, not {value!r}")
        if not isinstance(model, RobustSim):
            device = torch.get_default_device()
            model = RobustSim.from_pretrained(model, device="cpu" if device.type == "meta" else device)
        self.reduction, self.normalize, self.squared = reduction, normalize, squared
        self._place = _Place(model)
        self._device, self._dtype = model.device, torch.float32
        # A MetricCollection updates only one of the metrics whose states have the same names and, after the first
        # batch, the same values: of two models these are the same where that batch is of identical images.
        mark = _mark(model, normalize, squared)
        self._total, self._count, self._pairs = f"total_{mark}", f"count_{mark}", f"pairs_{mark}"
        if reduction in ("mean", "sum"):
            self.add_state(self._total, torch.zeros(2, dtype=torch.float32, device=model.device), add_sums)
            self.add_state(self._count, torch.zeros((), dtype=torch.int64, device=model.device), "sum")
        else:
            self.add_state(self._pairs, [], "cat")

    @property
    def model(self) -> RobustSim:
        """What measures."""
        return self._place.model

    @property
    def plot_upper_bound(self) -> float | None:  # type: ignore[override]
        """Where the axis ends."""
        if self.reduction == "sum":
            return None
        return 2.0 if self.squared else 2**0.5

    def update(self, img1: ImagesOrEmbeddings, img2: ImagesOrEmbeddings) -> None:
        """Add pairs.

        Args:
            img1: N images, (N, 3, H, W), or whatever else [`RobustSim`][robustsim.RobustSim] takes.
            img2: N images, or 1.

        Raises:
            InputError: a shape, type or range that is no image, or counts that differ.
        """
        # In half precision, near images would look further apart than they are.
        with torch.autocast(self.model.device.type, enabled=False):
            input_range = (0, 1) if self.normalize else (-1, 1)
            d = self.model(img1, img2, squared=self.squared, input_range=input_range).to(self.device)
        if self._pairs in self._defaults:
            getattr(self, self._pairs).append(d)
            return
        batch = torch.stack((d.sum(), d.new_zeros(())))
        setattr(self, self._total, add_sums(torch.stack((getattr(self, self._total), batch))))
        setattr(self, self._count, getattr(self, self._count) + d.shape[0])

    def compute(self) -> Tensor:
        """The mean or sum of all pairs, (); or the distance of each, (N,), process after process.

        Without any pair, NaN, 0, or (0,).
        """
        if self._pairs in self._defaults:
            pairs = getattr(self, self._pairs)
            return dim_zero_cat(pairs) if len(pairs) else torch.empty(0, device=self.device)
        total: Tensor = getattr(self, self._total).sum()
        return total / getattr(self, self._count) if self.reduction == "mean" else total

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Add pairs, and give the value of these alone, with a gradient to images that want one."""
        # torchmetrics puts everything aside for it, and would leave it there where an image is refused.
        kept = {name: getattr(self, name) for name in _PUT_ASIDE}
        states = self._copy_state_dict()
        try:
            value: Tensor = super().forward(*args, **kwargs)
        except Exception:
            for name, old in {**states, **kept}.items():
                setattr(self, name, old)
            raise
        # Or the images and the graph of the last batch would live until the next one.
        self._forward_cache = value.detach()  # type: ignore[assignment]
        if self._pairs in self._defaults:
            setattr(self, self._pairs, [d.detach() for d in getattr(self, self._pairs)])
        return value

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw a value, or a list of values as a curve: (figure, axes).

        Args:
            val: what `compute` or a call has given, or a list of that; what `compute` gives now, if None.
            ax: matplotlib's axes to draw in.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return self._plot(val, ax)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "RobustSimilarity":
        # The device is followed, and the type is not: sums of half precision soon cease to grow.
        before = self.device
        super()._apply(lambda state: state.to(fn(state).device), *args, **kwargs)
        if self.device != before:
            self._place.move(self.device)
        return self


class _Place:
    """Where a metric finds its model; its copies find the same, and those moved to another device one there."""

    def __init__(self, model: RobustSim, known: "WeakSet[RobustSim] | None" = None) -> None:
        self.model = model
        self.known: WeakSet[RobustSim] = WeakSet() if known is None else known
        self.known.add(model)

    def move(self, device: torch.device) -> None:
        if self.model.device == device:
            return
        there = next((model for model in self.known if model.device == device), None)
        self.model = deepcopy(self.model).to(device) if there is None else there
        self.known.add(self.model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Place":
        return _Place(self.model, self.known)

    def __reduce__(self) -> Any:
        return _Place, (self.model,)


def add_sums(parts: Tensor) -> Tensor:
    """Add sums that are each a rounded one and what the rounding took off: (N, 2) -> (2,).

    As good as float64, which not every device has (Knuth's two-sum).
    """
    high, low = parts[0]
    for other, rest in parts[1:]:
        high, lost = _two_sum(high, other)
        low = low + (lost + rest)
    return torch.stack(_two_sum(high, low))


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    total = a + b
    added = total - a
    return total, (a - (total - added)) + (b - added)


def _mark(model: RobustSim, *settings: bool) -> str:
    """What tells models and settings apart, by a few values of each parameter."""
    digest = hashlib.blake2b(repr((model.card.name, settings)).encode(), digest_size=6)
    for weights in model.encoder.parameters():
        own = weights.to_local() if hasattr(weights, "to_local") else weights  # of those that are sharded, this part
        digest.update(repr(own.detach().flatten()[:4].tolist()).encode())
    return digest.hexdigest()
