"""Pictures, decoded once and embedded by each model of an index, view by view."""

import hashlib
from collections import deque
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
    metrics: Callable[[], Sequence[RobustSim]],
    loaded: Iterator[tuple[T, Loading]],
    name: Callable[[T], str],
    *,
    fill: bool | None = False,
) -> "Iterator[tuple[T, Embedded | ImageError]]":
    """Each picture embedded, in their order, in batches of one size.

    An encoder rounds by the size of its batch, and not by what else is in it: so a picture's embedding is the same, bit
    for bit, whatever it is embedded with, as long as the last batch is filled up.

    Args:
        metrics: -> the models, asked for when the first picture is there to embed.
        loaded: pictures, or what is wrong with them, each with whatever tells it.
        name: what tells a picture -> what messages call it.
        fill: whether the last batch is filled up to the size of the others; None: if it is not the only one.

    Raises:
        EncodingError: an embedding is not finite, or nothing but zeros.
    """
    pictures: deque[tuple[T, Loading, list[Seen]]] = deque()  # not all views of which are embedded, in their order
    views: deque[tuple[T, LoadedView, list[Seen]]] = deque()  # that are to be embedded
    whole = 0  # batches
    for key, found in loaded:
        seen: list[Seen] = []
        pictures.append((key, found, seen))
        if not isinstance(found, ImageError):
            views.extend((key, view, seen) for view in found)
        while views and len(views) >= (size := _size(metrics())):
            _embed(metrics(), [views.popleft() for _ in range(size)], size, name)
            whole += 1
        yield from _embedded(pictures)
    if views:
        fills = whole > 0 if fill is None else fill
        _embed(metrics(), list(views), _size(metrics()) if fills else len(views), name)
    yield from _embedded(pictures)


def _size(metrics: Sequence[RobustSim]) -> int:
    return min((metric.batch_size for metric in metrics), default=1)


def _embed(
    metrics: Sequence[RobustSim],
    views: "Sequence[tuple[T, LoadedView, list[Seen]]]",
    size: int,
    name: Callable[[T], str],
) -> None:
    """Embed views in one batch, and put each where its picture's are."""
    columns = []
    for number, metric in enumerate(metrics):
        squares = [view.squares[number] for _, view, _ in views]
        squares += squares[-1:] * (size - len(squares))
        rows = metric.embed_pixels(stack_squares(squares, metric.device)).detach().cpu()[: len(views)]
        for bad in (~(rows.isfinite().all(1) & rows.any(1))).nonzero()[:1]:
            raise no_embedding(metric.card.name, f"the embedding of {name(views[bad][0])}")
        columns.append(rows)
    embedded = zip(*columns, strict=True) if columns else iter([()] * len(views))
    for (_, view, seen), rows_of_one in zip(views, embedded, strict=True):
        seen.append(Seen(view.name, view.hash, rows_of_one))


def _embedded(
    pictures: "deque[tuple[T, Loading, list[Seen]]]",
) -> "Iterator[tuple[T, Embedded | ImageError]]":
    """Those at the head that are done."""
    while pictures:
        key, found, seen = pictures[0]
        if isinstance(found, ImageError):
            done: Embedded | ImageError = found
        elif len(seen) == len(found):
            done = Embedded(found[0].width, found[0].height, seen)
        else:
            return
        pictures.popleft()
        yield key, done


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
