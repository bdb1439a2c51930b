"""Everything about a pair in one go: the distance, what it means, where it comes from, and what lies within reach."""

import os
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import robustsim
from robustsim.attacks import Targeted, Untargeted, parse_eps
from robustsim.attacks.rounding import change_size, to_8_bits, whole_levels
from robustsim.encoders.load import image_sha256
from robustsim.encoders.weights import sha256
from robustsim.errors import InputError
from robustsim.explain.attention import attention_map
from robustsim.explain.drawing import Overlay, overlay
from robustsim.explain.methods import MapMethod
from robustsim.explain.report.explanation import Explanation, Reach, Side
from robustsim.explain.report.importance import importance
from robustsim.explain.report.tampering import downsized, embedder, magnified, tamper, to_pixels
from robustsim.images.decode import read_image
from robustsim.images.preprocessing import Preprocessing
from robustsim.metric import RobustSim

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


def explain_pair(
    metric: RobustSim,
    a: "str | os.PathLike[str] | bytes | Image.Image",
    b: "str | os.PathLike[str] | bytes | Image.Image",
    *,
    names: "tuple[str, str] | None" = None,
    map_method: MapMethod | None = None,
    eps: "float | str" = "4/255",
    steps: int = 50,
    max_side: int = 512,
    seed: int = 0,
    text: str | None = None,
    progress: bool = False,
) -> Explanation:
    """Why two pictures are as far apart as they are, and how far invisible changes of the first could take it.

    Two attacks by [`APGD`][robustsim.attacks.APGD] change the pixels of `a`, by no more than `eps` in each channel: one
    looks for the smallest distance to `b`, the other for the largest. What they find is there, as pictures of 8 bits;
    what they do not find may be there all the same. A picture with a side longer than `max_side` is attacked as a
    smaller copy. `b` stays as it is. With the same `seed`, the same comes out on the same machine.

    Args:
        metric: a model; one with `text=True` if there is a text.
        a: a file, its bytes, or a PIL image.
        b: likewise.
        names: of the two, for a page; those of the files if not given.
        map_method: as for [`draw_difference`][robustsim.explain.draw_difference]; its own choice if not given.
        eps: the largest change of a channel, of values in [0, 1]: a number, or text such as `4/255`.
        steps: of each attack, at least 1; each costs a forward and a backward pass.
        max_side: pixels of the longer side of what is attacked.
        seed: of the random starts.
        text: for maps of which places look like it, by [`attention_map`][robustsim.explain.attention_map].
        progress: show how far each attack is, on standard error.

    Raises:
        ImageError: a file that cannot be read.
        InputError: an `eps` below 1/255, which no file of 8 bits can hold, or what its parts refuse.
    """
    radius = parse_eps(str(eps), "linf")
    if whole_levels(radius) < 1:
        raise InputError(f"eps={eps!r} is less than 1/255, the smallest change that an 8-bit file can hold")
    if steps < 1 or max_side < 1:
        raise InputError(f"steps={steps} and max_side={max_side} must be at least 1")
    sources = (a, b)
    pictures = [read_image(source) for source in sources]
    called = names or tuple(_name(source, letter) for source, letter in zip(sources, "ab", strict=True))
    squares = [metric.preprocess(picture) for picture in pictures]
    distance = _distance(metric, *pictures)
    method = map_method or signature(overlay).parameters["method"].default  # its own choice, whatever that is
    found = overlay(metric, *pictures, method=method)
    slopes = importance(metric, *squares)
    z = None if text is None else metric.embed_text(text)
    sides = [_side(metric, *parts, text, z) for parts in zip(called, sources, pictures, squares, slopes, strict=True)]
    attacked = downsized(pictures[0], max_side)
    start = distance if attacked is pictures[0] else _distance(metric, attacked, pictures[1])
    attack: dict[str, Any] = {"eps": radius, "steps": steps, "seed": seed, "progress": progress}
    nearest, farthest = (
        _reach(metric, attacked, pictures[1], start, nearer=nearer, **attack) for nearer in (True, False)
    )
    return Explanation(
        card=metric.card,
        weights=image_sha256(metric.encoder),
        version=robustsim.__version__,
        a=sides[0],
        b=sides[1],
        distance=distance,
        meaning=_meaning(metric, distance),
        map=found,
        method=method,
        nearest=nearest,
        farthest=farthest,
        attacked=attacked,
        start=start,
        eps=radius,
        steps=steps,
        seed=seed,
        text=text,
    )


def _distance(metric: RobustSim, a: "Image.Image", b: "Image.Image") -> float:
    """As `robustsim compare` has it, to the last bit."""
    return float(metric.distance(a, [b], squared=True).sqrt())


def _meaning(metric: RobustSim, distance: float) -> str | None:
    known = metric.card.calibration
    return None if known is None else known.describe(distance)


def _name(source: Any, letter: str) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"picture {letter}"


def _side(
    metric: RobustSim,
    name: str,
    source: Any,
    picture: "Image.Image",
    square: Tensor,
    slopes: Overlay,
    text: str | None,
    z: Tensor | None,
) -> Side:
    import hashlib

    from PIL import Image

    size, digest = None, None
    if isinstance(source, bytes):
        size, digest = len(source), hashlib.sha256(source).hexdigest()
    elif isinstance(source, (str, os.PathLike)):
        size, digest = Path(source).stat().st_size, sha256(Path(source))
    attention = similarity = None
    if text is not None and z is not None:
        # It is as large as the picture already.
        whole = Preprocessing(size=max(picture.size))
        places = attention_map(metric, picture, text).detach().cpu()
        attention = Overlay(places, 1.0, False, "how well a place fits the text, of all places of this picture", whole)
        similarity = float((metric.embed(picture) @ z.T).squeeze())
    pre = metric.card.preprocessing
    pixels = square[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).cpu().numpy()
    return Side(
        name=name,
        picture=picture,
        bytes=size,
        sha256=digest,
        square=Image.fromarray(pixels),
        seen=pre.seen(*picture.size),
        share_unseen=pre.share_unseen(*picture.size),
        importance=slopes,
        attention=attention,
        text_similarity=similarity,
    )


def _reach(
    metric: RobustSim,
    picture: "Image.Image",
    other: "Image.Image",
    start: float,
    *,
    nearer: bool,
    eps: float,
    steps: int,
    seed: int,
    progress: bool,
) -> Reach:
    """The best that an attack found, in 8 bits; the picture as it is, where that is better."""
    import numpy as np
    from PIL import Image

    original: NDArray[Any] = np.array(picture)
    embed, anchor = embedder(metric), metric.embed([other])
    objective = Targeted(embed, anchor) if nearer else Untargeted(embed, anchor)
    images = to_pixels(metric, original)
    result = tamper(metric, objective, images, norm="linf", eps=eps, steps=steps, seed=seed, progress=progress)
    changed = to_8_bits(original, result.images[0].permute(1, 2, 0).double().cpu().numpy(), "linf", eps)
    distance = _distance(metric, Image.fromarray(changed), other)
    if not (distance < start if nearer else distance > start):
        changed, distance = original, start
    change, factor = magnified(original, changed)
    return Reach(
        picture=Image.fromarray(changed),
        change=Image.fromarray(change),
        factor=factor,
        size=change_size(original, changed, "linf"),
        distance=distance,
        meaning=_meaning(metric, distance),
        changed=bool((changed != original).any()),
    )
