"""Pictures, decoded once and embedded by each model of an index, view by view."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, Union

import torch
from torch import Tensor

from robustsim.errors import ImageError
from robustsim.images.files import prefetch
from robustsim.images.inputs import stack_squares
from robustsim.images.preprocessing import Preprocessing
from robustsim.images.views.load import LoadedView, load_views
from robustsim.metric import RobustSim
from robustsim.search.embedding import no_embedding

S = TypeVar("S")
T = TypeVar("T")

#: The views of a picture, the whole of it first, or what is wrong with it.
Loading: TypeAlias = Union[list[LoadedView], ImageError]


class Seen(NamedTuple):
    """One view of a picture, embedded.

    Attributes:
        view: which; "" for the whole.
        hash: perceptual hash; None where there is no contrast, or none was asked for.
        embeddings: (D,) by each model.
    """

    view: str
    hash: bytes | None
    embeddings: tuple[Tensor, ...]


class Embedded(NamedTuple):
    """A picture, embedded.

    Attributes:
        width: upright, in pixels.
        height: likewise.
        views: the whole of it first.
    """

    width: int
    height: int
    views: list[Seen]


def pixels_sha256(picture: Sequence[LoadedView]) -> str:
    """SHA-256 of the pixels that the first model sees of a picture, of all its views: what tells one without a file.

    Two that show the same may hide different ones.
    """
    seen = stack_squares([view.squares[0] for view in picture], torch.device("cpu")).add(0.0)  # -0.0 is 0.0
    return hashlib.sha256(seen.contiguous().numpy().tobytes()).hexdigest()


def embed_loaded(
    metrics: Callable[[], Sequence[RobustSim]], loaded: Iterator[tuple[T, Loading]], name: Callable[[T], str]
) -> "Iterator[tuple[T, Embedded | ImageError]]":
    """Each picture embedded, in their order.

    Args:
        metrics: -> the models, asked for when the first picture is there to embed.
        loaded: pictures, or what is wrong with them, each with whatever tells it.
        name: what tells a picture -> what messages call it.

    Raises:
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    while batch := _some(loaded, metrics):
        views = [view for _, found in batch if not isinstance(found, ImageError) for view in found]
        owners = [key for key, found in batch if not isinstance(found, ImageError) for _ in found]
        columns = []
        for number, metric in enumerate(metrics() if views else ()):
            pixels = stack_squares([view.squares[number] for view in views], metric.device)
            rows = metric.embed_pixels(pixels).detach().cpu()
            for bad in (~(rows.isfinite().all(1) & rows.any(1))).nonzero()[:1]:
                raise no_embedding(metric.card.name, f"the embedding of {name(owners[bad])}")
            columns.append(rows)
        embedded = iter(zip(*columns, strict=True) if columns else [()] * len(views))
        for key, found in batch:
            if isinstance(found, ImageError):
                yield key, found
            else:
                seen = [Seen(view.name, view.hash, next(embedded)) for view in found]
                yield key, Embedded(found[0].width, found[0].height, seen)


def embed_pictures(
    metrics: Sequence[RobustSim],
    preprocessings: Sequence[Preprocessing],
    sources: Sequence[Any],
    views: Sequence[str],
    *,
    hashed: bool,
) -> list[list[Seen]]:
    """What was passed as images.

    Args:
        metrics: the models; there may be none, where hashes alone are wanted.
        preprocessings: theirs; one at least.
        sources: as `one_by_one` gives them.
        views: which, beside the whole.
        hashed: whether hashes are wanted.

    Raises:
        ImageError: one cannot be read.
    """

    def load(source: Any) -> tuple[None, Loading]:
        return None, load_views(source, preprocessings, views, hashed=hashed)

    stream = load_ahead(load, sources, views) if len(sources) > 1 else map(load, sources)
    found = embed_loaded(lambda: metrics, stream, lambda key: "a query")
    return [seen.views for _, seen in found if not isinstance(seen, ImageError)]


def load_ahead(load: Callable[[S], T], sources: Iterable[S], views: Sequence[str]) -> Iterator[T]:
    """`prefetch`, of fewer pictures where each may have a hundred views, and take 15 MB for each model."""
    return prefetch(load, sources, ahead=16 if views else 64)


def one_by_one(parts: Iterable[Any]) -> list[Any]:
    """The parts of `split_images`, with each picture of a tensor (N, 3, H, W) as one (3, H, W)."""
    return [one for part in parts for one in (part if isinstance(part, Tensor) else (part,))]


def _some(loaded: Iterator[tuple[T, Loading]], metrics: Callable[[], Sequence[RobustSim]]) -> list[tuple[T, Loading]]:
    """Enough pictures for a batch; one that cannot be read alone, as long as there is nothing to embed."""
    batch, views = [], 0
    for one in loaded:
        batch.append(one)
        views += 0 if isinstance(one[1], ImageError) else len(one[1])
        if not views or views >= min((metric.batch_size for metric in metrics()), default=1):
            break
    return batch
