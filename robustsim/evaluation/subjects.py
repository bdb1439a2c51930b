"""What an evaluation needs of a metric: how it sees a file, and how far apart two images are to it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustsim.baselines import Baseline
from robustsim.encoders.weights import state_sha256
from robustsim.errors import InputError, ModelNotFoundError
from robustsim.images import Preprocessing
from robustsim.metric import RobustSim

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Judged:
    """A metric under judgement.

    Attributes:
        name: what reports call it.
        preprocessing: how a file becomes pixels.
        device: where it works.
        embed: pixels (N, 3, S, S) in [0, 1] -> (N, D); None for a metric of pairs.
        distance: of embeddings, or of pixels where there is no ``embed``, (N, ...) and (N, ...) -> (N,).
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
        """``embed=`` and ``distance=`` of the objectives in :mod:`robustsim.attacks`."""
        return {"embed": self.embed, "distance": None if self.cosine else self.distance}


def judged(
    metric: "RobustSim | Baseline | Judged", *, name: str | None = None, device: "str | torch.device | None" = None
) -> Judged:
    """A metric as evaluations see it.

    Args:
        metric: a :class:`RobustSim`, or a baseline (:func:`robustsim.baselines.from_callable` makes one of anything).
        name: what reports call it, if not by its own name.
        device: where its images go; where its parameters are if not given, and to the CPU if it has none.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(metric, Judged):
        return metric
    if isinstance(metric, RobustSim):
        card = metric.card
        about = {
            "kind": "encoder",
            "card": json.loads(card.to_json()),
            "weights_sha256": state_sha256(metric.encoder),
            "dtype": str(next(metric.encoder.parameters()).dtype).removeprefix("torch."),
        }
        # The card names the preprocessing. The metric's own distance takes embeddings; they are given on its device.
        return Judged(
            name or card.name, card.preprocessing, metric.device, metric.embed_pixels, metric.distance, True, about
        )
    if not isinstance(metric, Baseline):
        raise InputError(f"a {type(metric).__name__} is no metric here: pass a RobustSim, or from_callable(...) of it")
    pre = metric.preprocessing
    about = {
        "kind": "baseline",
        "source": metric.source,
        "weights_sha256": metric.weights_sha256(),
        "preprocessing": {"size": pre.size, "mode": pre.mode, "resize": pre.resize, "interpolation": pre.interpolation},
    }
    tensors = [*metric.parameters(), *metric.buffers()]
    place = torch.device(device or (tensors[0].device if tensors else "cpu"))
    embed, distance = (metric.embed, metric.compare) if metric.embeds else (None, metric.distance)
    return Judged(name or metric.name, pre, place, embed, distance, False, about)


def load_judged(name: str, *, device: "str | torch.device | None" = None, weights: str | None = None) -> Judged:
    """A metric by its name.

    Args:
        name: a baseline (:func:`robustsim.baselines.list_baselines`), a name of ``robustsim models``, a Hub id, a
            folder, or ``package.module:name`` of any module or callable of two images.
        device: as for :meth:`RobustSim.from_pretrained`; the CPU for baselines if not given and there is no CUDA.
        weights: a file, or folder, of weights for a baseline.

    Raises:
        ModelNotFoundError: no such name.
        InputError: weights for a metric that takes none.
    """
    from robustsim.baselines import find_object, from_callable, list_baselines, load_baseline

    baselines = list_baselines()
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name in baselines:
        return judged(load_baseline(name, weights=weights, device=place), device=place)
    if weights is not None:
        raise InputError(f"{name!r} takes no weights=: it is not one of the baselines {', '.join(baselines)}")
    if ":" in name:
        found = find_object(name)
        if isinstance(found, RobustSim):
            return judged(found, name=name)
        baseline = found if isinstance(found, Baseline) else from_callable(found, name=name)
        return judged(baseline.to(place), device=place)
    try:
        return judged(RobustSim.from_pretrained(name, device=device))
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}; baselines: {', '.join(baselines)}") from None
