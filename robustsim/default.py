"""`robustsim.distance` and its like: the metric without making one first."""

from functools import lru_cache

from torch import Tensor

from robustsim.encoders.card import DEFAULT_MODEL
from robustsim.metric import ImagesOrEmbeddings, Range, RobustSim


@lru_cache(maxsize=4)
def _default_metric(model: str, device: str | None) -> RobustSim:
    return RobustSim.from_pretrained(model, device=device)


def distance(
    a: ImagesOrEmbeddings,
    b: ImagesOrEmbeddings,
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    squared: bool = False,
    input_range: Range = (0, 1),
) -> Tensor:
    """[`RobustSim.distance`][robustsim.RobustSim.distance] on a metric that is loaded at the first call and kept: (N,)
    float32.
    """
    return _default_metric(model, device).distance(a, b, squared=squared, input_range=input_range)


def similarity(
    a: ImagesOrEmbeddings,
    b: ImagesOrEmbeddings,
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    input_range: Range = (0, 1),
) -> Tensor:
    """[`RobustSim.similarity`][robustsim.RobustSim.similarity] on a metric that is loaded at the first call and kept:
    (N,) float32.
    """
    return _default_metric(model, device).similarity(a, b, input_range=input_range)


def embed(
    images: ImagesOrEmbeddings,
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    input_range: Range = (0, 1),
) -> Tensor:
    """[`RobustSim.embed`][robustsim.RobustSim.embed] on a metric that is loaded at the first call and kept: (N, D)
    float32.
    """
    return _default_metric(model, device).embed(images, input_range=input_range)
