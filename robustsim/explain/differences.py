"""Where pictures differ: what layers of the encoder have for each part of one, against the same part of another.

With the features u_p and v_p of place p in a layer l, scaled so that the mean of their squared lengths is 1:

    r_l(p) = |u_p - v_p| / sqrt(2)

That mean is taken over each picture by itself in the last layer, from which the embedding is made (the mean of r^2 is
`1 - cosine` of the two pictures' features as a whole), and over both together in K finer ones, so that features which
are the same give exactly 0 there. Brought to the finest grid bilinearly:

    s(p) = r_last(p) * K / sum over the finer l of 1 / r_l(p)
    map(p) = d * s(p) / mean of s

The harmonic mean lies between the least r_l(p) and K times it: a place has a share of the distance d where the last
layer finds a difference, and each of the finer ones does. Integrated gradients are in `gradients`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.distances import encode_together, finite, joined, pair_distance, same_pictures
from robustsim.explain.gradients import integrated_gradients
from robustsim.explain.methods import METHOD, STEPS, MapMethod, check_method
from robustsim.explain.resolution import enlarged, interpolated, mean_of_pixels, of_one_size, shared_out
from robustsim.images.inputs import ImageInput
from robustsim.images.preprocessing import Preprocessing
from robustsim.metric import Range, RobustSim
from robustsim.vectors import check_counts

# What is smaller is nothing: its inverse, and the square of that, must be numbers.
_NOTHING = 1e-18


def difference_map(
    metric: RobustSim,
    a: ImageInput,
    b: ImageInput,
    *,
    method: MapMethod = METHOD,
    steps: int = STEPS,
    squared: bool = False,
    input_range: Range = (0, 1),
) -> Tensor:
    """Where pairs of pictures differ, at the resolution of the first: (N, H, W) float32.

    `layers`, from 0 upwards, whose mean over the pixels that the encoder looks at is the distance of the pair, but for
    rounding: the distance is shared out to the places by what several layers of the encoder find there, one of each
    resolution of a convolutional network, or five blocks of a transformer. The share of a place is the difference of
    the last layer's features times the harmonic mean of those of the finer layers, which is small where any of them
    finds little. So it is as fine as the finest layer, and weighs what the metric sees. The shares add up: a change
    elsewhere in the picture alters them. Symmetric in `a` and `b` where these are of one size. It costs one forward
    pass of both pictures.

    `features`, from 0 upwards: the last layer alone (a transformer's patches after the last norm, the last map of a
    convolutional network), place by place, and interpolated bilinearly. Places keep their lengths, so that those in
    which the encoder found little count little; lengths are measured by their root mean square over the picture's
    places, and the mean of the squares over the places is `1 - cosine` of the two pictures' features as a whole. It is
    coarse, 7 x 7 for many models, and each place has seen more of the picture than its own part: read it as "about
    here". It costs one forward pass of both pictures.

    `gradient`, whose sum over a map is the distance of the pair, but for rounding: integrated gradients of the distance
    (Sundararajan et al. 2017) from the pixels of `b` to those of `a`, summed over the channels. Positive pixels drive
    the pictures apart in the eyes of the metric, negative ones bring them together, and pixels that are the same in
    both are exactly 0, whatever the encoder makes of them. It is made on the encoder's square, and shared out to the
    pixels of `a` by area, so that the sum stays. It works for every encoder, with or without access to places; each
    step costs a forward and a backward pass of one picture, and one forward pass of both comes on top. What the steps
    leave of the distance is shared out in proportion to the sizes of the values: 12 leave about 1 % of it for a small
    change, and up to a tenth for two unrelated photographs, of which more steps leave less.

    With each of them, identical pictures give exactly 0 everywhere. What the encoder does not look at, where its card
    has a picture cropped, is 0 too ([`seen`][robustsim.images.Preprocessing.seen] says where that is).

    Args:
        metric: whose encoder looks.
        a: N pictures of one size, or 1.
        b: N pictures of any sizes, or 1; embeddings have no places, and will not do.
        method: `layers`, `features` or `gradient`.
        steps: of `gradient`, at least 1.
        squared: with `layers`, give what has the squared distance for its mean; with `gradient`, what sums to it; of
            `features`, the squares.
        input_range: as for [`RobustSim.preprocess`][robustsim.RobustSim.preprocess].

    Returns:
        (N, H, W) on the metric's device; differentiable to tensors, with gradients that are finite everywhere, but for
        `gradient`, which is detached.

    Raises:
        InputError: an unknown method, pictures of several sizes in `a`, counts that differ, steps below 1, or,
            but for `gradient`, an architecture without access to places.
        ImageError: a file that cannot be read.
    """
    check_method(method)
    parts, size = of_one_size(a)
    x, y = (metric.preprocess(images, input_range=input_range) for images in (parts, b))
    if method != "gradient":
        return map_of_pixels(metric, x, y, size, method=method, squared=squared)
    amounts = integrated_gradients(metric, x, y, steps=steps, squared=squared)
    return shared_out(amounts, size, metric.card.preprocessing)


def map_of_pixels(
    metric: RobustSim,
    a: Tensor,
    b: Tensor,
    size: tuple[int, int],
    *,
    method: MapMethod = METHOD,
    squared: bool,
    check: bool = True,
) -> Tensor:
    """As `difference_map`, of what `metric.preprocess` returned: (N, 3, S, S) or (1, 3, S, S).

    Args:
        metric: whose encoder looks.
        a: pixels.
        b: pixels.
        size: (height, width) of the pictures that these pixels were made of.
        method: `layers` or `features`.
        squared: as for `difference_map`.
        check: whether what is not finite is an error.
    """
    found, preprocessing = compared(metric, a, b, method=method, check=check), metric.card.preprocessing
    whole = interpolated(found.on_square(size, preprocessing, squared=squared), size, preprocessing)
    return finite(whole) if check else whole


@dataclass(frozen=True)
class Compared:
    """What one pass over pairs of pictures says.

    Attributes:
        method: `layers` or `features`.
        places: (N, h, w), which fill the encoder's square: the shares s, or the r of the last layer.
        distances: (N,), of the metric.
        squares: (N,), the same squared, to the bits that `metric.distance` gives.
    """

    method: MapMethod
    places: Tensor
    distances: Tensor
    squares: Tensor

    def on_square(self, size: tuple[int, int], preprocessing: Preprocessing, *, squared: bool) -> Tensor:
        """The values of a map on the encoder's square, (N, h, w).

        Args:
            size: (height, width) of the pictures over whose pixels means are taken.
            preprocessing: how they become the square.
            squared: as for `difference_map`.
        """
        if self.method == "features":
            return self.places.square() if squared else self.places
        mean = mean_of_pixels(self.places, size, preprocessing)[:, None, None]
        some = ~(mean <= _NOTHING**2)  # NaN stays that
        # Where the layers agree on no place, all have the same share.
        shares = torch.where(some, self.places / torch.where(some, mean, 1.0), 1.0)
        return shares * (self.squares if squared else self.distances)[:, None, None]


def compared(metric: RobustSim, a: Tensor, b: Tensor, *, method: MapMethod = METHOD, check: bool = True) -> Compared:
    """Pairs of pictures, place by place and as a whole, in one pass.

    Args:
        metric: whose encoder looks.
        a: pixels as `metric.preprocess` returns them, (N, 3, S, S) or (1, 3, S, S).
        b: likewise.
        method: `layers` or `features`.
        check: whether a distance that is no number is an error, as for `metric.distance`.

    Raises:
        EncodingError: there is one.
        InputError: counts that differ, or an architecture without access to places.
    """
    sides = (a, b)
    counts = [side.shape[0] for side in sides]
    check_counts(counts)

    def encode(pixels: Tensor) -> list[Tensor]:
        return _encoded(metric, pixels, method)

    # The one that stands against many is encoded once.
    known = [encode(side) if side.shape[0] < max(counts) else None for side in sides]
    step = max(counts)
    if not torch.compiler.is_compiling() and sum(counts) > metric.batch_size:
        step = max(1, metric.batch_size // known.count(None))
    places, distances, squares = [], [], []
    for first in range(0, max(counts), step):
        rows = [side if side.shape[0] == 1 else side[first : first + step] for side in sides]
        fresh = iter(encode_together(encode, [rows[i] for i in range(2) if known[i] is None]))
        (*u, x), (*v, y) = (next(fresh) if one is None else one for one in known)
        same = same_pictures(*rows)
        pairs = list(zip(u, v, strict=True))
        found = [_root(*pair, together=number < len(pairs) - 1) for number, pair in enumerate(pairs)]
        places.append(_shares(found).masked_fill(same[:, None, None], 0))
        distances.append(pair_distance(x, y, same, squared=False))
        square = pair_distance(x, y, same, squared=True)
        squares.append(finite(square, x, y) if check else square)
    return Compared(method, joined(places), joined(distances), joined(squares))


def _shares(roots: list[Tensor]) -> Tensor:
    """The s of each place of the finest grid, (N, h, w), by the r of all layers; of one layer, these themselves."""
    *finer, last = roots
    if not finer:
        return last
    rows, columns = (max(one.shape[side] for one in roots) for side in (1, 2))
    r = torch.stack([enlarged(one, (rows, columns)) for one in finer])
    # Measured by the least of them, which changes nothing, and keeps what is tiny from vanishing.
    least = r.detach().amin(0)
    some = least > _NOTHING
    least = torch.where(some, least, 1.0)
    inverse = (least / torch.where(some, r, 1.0)).mean(0)
    return enlarged(last, (rows, columns)) * (least / inverse).masked_fill(~some, 0)


def _root(u: Tensor, v: Tensor, *, together: bool) -> Tensor:
    """The r of each place, (N, h, w), of features (N, C, h, w).

    Args:
        u: of some pictures.
        v: of others.
        together: whether both are scaled by one length, or each by its own.
    """
    sizes = [torch.linalg.vector_norm(one, dim=(1, 2, 3), keepdim=True).square() / one[0, 0].numel() for one in (u, v)]
    if together:
        sizes = [(sizes[0] + sizes[1]) / 2] * 2
    # Without features, divided by 1, as the gradient of what is not taken must be finite too.
    u, v = (one / torch.where(size > 0, size, 1.0).sqrt() for one, size in zip((u, v), sizes, strict=True))
    root: Tensor = torch.linalg.vector_norm(u - v, dim=1) * 0.5**0.5
    return root


def _encoded(metric: RobustSim, pixels: Tensor, method: MapMethod) -> list[Tensor]:
    """The features of the layers, (N, C, h, w) float32 each, and the unit embeddings, (N, D) float32."""
    features = metric.encoder.features(pixels, layers=method == "layers")
    layers = features.layers
    if not layers:
        layers = (features.tokens.transpose(1, 2).reshape(len(pixels), -1, *features.grid),)
    embeddings = F.normalize(features.embedding.to(torch.float32), dim=1)
    return [*(one.to(torch.float32) for one in layers), embeddings]
