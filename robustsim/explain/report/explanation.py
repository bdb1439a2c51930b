"""What there is to say about a pair: numbers, maps and pictures, without how they are shown."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustsim.encoders.card import EncoderCard

if TYPE_CHECKING:
    from PIL import Image

    from robustsim.explain.drawing import Overlay


@dataclass(frozen=True, eq=False)
class Side:
    """One picture of a pair, and what the encoder saw of it.

    Attributes:
        name: what it is called.
        picture: RGB, upright, as large as it is.
        bytes: of the file; None if there was none.
        sha256: of the file's bytes; None if there was none.
        square: RGB, exactly what the encoder got.
        seen: which part of the picture that is: (left, top, right, bottom), in its pixels.
        share_unseen: the share of the picture outside of it.
        importance: how far a small change at a place can move the distance, over the encoder's square.
        attention: which places look like the text; None without one.
        text_similarity: the cosine to the text, in [-1, 1]; None without one.
    """

    name: str
    picture: "Image.Image"
    bytes: int | None
    sha256: str | None
    square: "Image.Image"
    seen: tuple[float, float, float, float]
    share_unseen: float
    importance: "Overlay"
    attention: "Overlay | None" = None
    text_similarity: float | None = None


@dataclass(frozen=True, eq=False)
class Reach:
    """What an attack on the first picture came to.

    Attributes:
        picture: RGB of 8 bits, which has this distance.
        change: grey where nothing was changed, RGB.
        factor: by which the change is magnified there.
        size: the largest change of a channel, of values in [0, 1].
        distance: of this picture to the second one.
        meaning: what such a distance means in pictures that nobody tampered with; None if that was not measured.
        changed: whether anything is; not where no change that was tried did better than none.
    """

    picture: "Image.Image"
    change: "Image.Image"
    factor: float
    size: float
    distance: float
    meaning: str | None
    changed: bool


@dataclass(frozen=True, eq=False)
class Explanation:
    """What there is to say about a pair, by [`explain_pair`][robustsim.explain.explain_pair].

    Attributes:
        card: of the model.
        weights: SHA-256 of the encoder's state and preprocessing.
        version: of this package.
        a: the first picture.
        b: the second.
        distance: of the two, in [0, sqrt(2)].
        meaning: what the distance means, in the words of the card's calibration; None if that was not measured.
        map: where they differ.
        method: by which.
        nearest: the changed `attacked` with the smallest distance to `b` that was found, at most `start`.
        farthest: likewise with the largest.
        attacked: `a` as it was attacked, RGB: a smaller copy of a large picture.
        start: the distance of that copy to `b`; of a copy it is not `distance`.
        eps: the largest change of a channel, of values in [0, 1].
        steps: of each of the two attacks.
        seed: of their random starts.
        text: of the maps of attention; None without one.
    """

    card: EncoderCard
    weights: str
    version: str
    a: Side
    b: Side
    distance: float
    meaning: str | None
    map: "Overlay"
    method: str
    nearest: Reach
    farthest: Reach
    attacked: "Image.Image"
    start: float
    eps: float
    steps: int
    seed: int
    text: str | None = None

    @property
    def similarity(self) -> float:
        """`1 - distance^2`, the cosine of the embeddings, in [-1, 1]."""
        return 1 - self.distance**2

    @property
    def is_copy(self) -> bool:
        """Whether a smaller copy of `a` was attacked."""
        return self.attacked.size != self.a.picture.size
