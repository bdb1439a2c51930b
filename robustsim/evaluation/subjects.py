"""What an evaluation needs of a metric: how it sees a file, and how far apart two images are to it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.attacks.engine.modules import modules_behind, undisturbed
from robustsim.baselines import Baseline
from robustsim.data.items import Preprocess
from robustsim.encoders.weights import state_sha256
from robustsim.errors import InputError, ModelNotFoundError
from robustsim.images import Preprocessing
from robustsim.metric import RobustSim

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """A metric under judgement.

    Attributes:
        name: what reports call it.
        preprocessing: how a file becomes pixels.
        device: where it works.
        embed: pixels (N, 3, S, S) in [0, 1] -> (N, D); None for a metric of pairs.
        distance: of embeddings, or of pixels where there is no `embed`, (N, ...) and (N, ...) -> (N,).
        cosine: the order of distances is that of the inner products of unit embeddings, which attacks then work with.
        about: the card or the source, the hash of the weights, the preprocessing; for the report.
    """

    name: str
    preprocessing: Preprocessing
    device: torch.device
    embed: Callable[[Tensor], Tensor] | None
    distance: Distance
    cosine: bool
    about: dict[str, Any]

    @property
    def objective_options(self) -> dict[str, Any]:
        """`embed=` and `distance=` of the objectives in `robustsim.attacks`."""
        return {"embed": self.embed, "distance": None if self.cosine else self.distance}

    def seeing(self, preprocess: Preprocess) -> "Subject":
        """The same metric, shown pictures in another way.

        Args:
            preprocess: `card` for its own; `squash` for the whole picture, resized to its square by bilinear
                interpolation (antialiased where it gets smaller), whatever the card crops.

        Raises:
            InputError: neither of these.
        """
        if preprocess not in get_args(Preprocess):
            raise InputError(f"preprocess={preprocess!r} is none of {', '.join(get_args(Preprocess))}")
        if preprocess == "card":
            return self
        whole = Preprocessing(size=self.preprocessing.size, mode="squash", interpolation="bilinear")
        return replace(self, preprocessing=whole)

    def in_units_of(self, scale: float) -> "Subject":
        """The same metric with distances divided by `scale`.

        For attacks: cross-entropy has no gradient where distances differ by hundreds, and no digits where by
        millionths. Cosine similarities stay as they are, as published attacks are on those.
        """
        return self if self.cosine else replace(self, distance=_Scaled(self.distance, scale))


class _Scaled:
    """A distance in another unit. A class, so that the modules behind it are found."""

    def __init__(self, distance: Distance, scale: float) -> None:
        self.distance, self.scale = distance, scale

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(a, b) / self.scale


class _Using:
    """A function, and the modules that it uses where nobody would find them."""

    def __init__(self, function: Callable[..., Tensor], modules: "list[torch.nn.Module]") -> None:
        self.function, self.modules = function, modules

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def subject(
    metric: "RobustSim | Baseline | Subject", *, name: str | None = None, device: "str | torch.device | None" = None
) -> Subject:
    """A metric as evaluations see it.

    Args:
        metric: a `RobustSim`, or a baseline (`robustsim.baselines.from_callable` makes one of anything).
        name: what reports call it, if not by its own name.
        device: where the images of a baseline go; where its parameters are if not given, and to the CPU if it has none.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(metric, Subject):
        return metric if name is None else replace(metric, name=name)
    if isinstance(metric, RobustSim):
        card = metric.card
        about: dict[str, Any] = {
            "kind": "encoder",
            "card": card.to_identity(),
            "weights_sha256": state_sha256(metric.encoder),
            "dtype": str(next(metric.encoder.parameters()).dtype).removeprefix("torch."),
        }
        # The card names the preprocessing.
        return Subject(
            name or card.name, card.preprocessing, metric.device, metric.embed_pixels, metric.distance, True, about
        )
    if not isinstance(metric, Baseline):
        raise InputError(
            f"a {type(metric).__name__} is no metric here: pass a RobustSim, or what robustsim.baselines.from_callable "
            "makes of it"
        )
    tensors = [*metric.parameters(), *metric.buffers()]
    place = torch.device(device or (tensors[0].device if tensors else "cpu"))
    behind = _behind(metric)
    embed = _Using(metric.embed, behind) if metric.embeds else None
    distance = _Using(metric.compare if metric.embeds else metric.distance, behind)
    states = sorted(state_sha256(module) for module in behind if module.state_dict())
    about = {
        "kind": "baseline",
        "source": metric.source,
        "weights_sha256": hashlib.sha256("".join(states).encode()).hexdigest() if states else None,
        "preprocessing": asdict(metric.preprocessing),
    }
    found = Subject(name or metric.name, metric.preprocessing, place, embed, distance, False, about)
    first, second = (_behaviour(found) for _ in range(2))
    if not _close(first, second):
        raise InputError(
            f"{found.name} gives other distances at each call for the same pictures, and cannot be judged: put it into "
            "eval mode, or fix its random numbers"
        )
    about["behaviour"] = first if isinstance(first, str) else ", ".join(f"{distance:.4g}" for distance in first)
    return found


def _behind(metric: Baseline) -> list[torch.nn.Module]:
    """The modules that a metric consists of: itself, and what somebody's function uses."""
    held = [module for value in vars(metric).values() for module in modules_behind(value)]
    own = set(metric.modules())
    return [metric, *(module for module in dict.fromkeys(held) if module not in own)]


def _close(a: "list[float] | str", b: "list[float] | str") -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return all(x == y or x != x or abs(x - y) <= 1e-3 * max(abs(x), abs(y)) for x, y in zip(a, b, strict=True))


def _behaviour(metric: Subject) -> "list[float] | str":
    """Distances of fixed pictures: what tells two metrics apart of which one cannot see what they are made of."""
    size = metric.preprocessing.size
    coarse = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True).to(metric.device)
    try:
        with torch.no_grad(), undisturbed(metric.distance):
            codes = pixels if metric.embed is None else metric.embed(pixels)
            distances: list[float] = metric.distance(codes[:2], codes[2:]).flatten().tolist()
            return distances
    except Exception as error:  # whatever is wrong is told when it is asked in earnest
        return type(error).__name__


def load_metric(name: str, *, device: "str | torch.device | None" = None, weights: str | None = None) -> Subject:
    """A metric by its name, to be judged.

    Args:
        name: a baseline ([`list_baselines`][robustsim.baselines.list_baselines]), a name of `robustsim models`, a Hub
            id, a folder, or `package.module:name` of any module or callable of two images.
        device: as for [`RobustSim.from_pretrained`][robustsim.RobustSim.from_pretrained]; the CPU for baselines if not
            given and there is no CUDA.
        weights: a file, or folder, of weights for a baseline.

    Raises:
        ModelNotFoundError: no such name.
        InputError: weights for a metric that takes none.
    """
    from robustsim.baselines import from_callable, list_baselines, load_baseline
    from robustsim.baselines.callables import find_object

    baselines = list_baselines()
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name in baselines:
        return subject(load_baseline(name, weights=weights, device=place), device=place)
    if weights is not None:
        raise InputError(f"{name!r} takes no weights=: it is not one of the baselines {', '.join(baselines)}")
    if ":" in name and not os.path.exists(name):
        found = find_object(name)
        if isinstance(found, RobustSim):
            return subject(found, name=name)
        baseline = found if isinstance(found, Baseline) else from_callable(found, name=name)
        for module in _behind(baseline):
            module.to(place)
        return subject(baseline, device=place)
    try:
        return subject(RobustSim.from_pretrained(name, device=device))
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}; baselines: {', '.join(baselines)}") from None
