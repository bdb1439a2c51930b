"""The distance place by place: what the encoder has for each part of one picture, against the same part of another.

With the features u_p and v_p of place p, scaled to length 1 (cosine distance, as between whole pictures):

    map(p) = |u_p - v_p| / sqrt(2)      in [0, sqrt(2)]

With the features scaled together, so that over each picture the mean of their squared lengths is 1, the mean of the
squared map is `1 - cosine` of the two pictures' features as a whole. Integrated gradients are in `gradients`.
"""

import torch
from torch import Tensor

from robustsim.distances import encode_together, finite, joined, pair_distance, same_pictures
from robustsim.explain.gradients import integrated_gradients
from robustsim.explain.methods import STEPS, MapMethod, check_method
from robustsim.explain.resolution import interpolated, of_one_size, shared_out
from robustsim.images.inputs import ImageInput
from robustsim.metric import Range, RobustSim
from robustsim.vectors import check_counts


def difference_map(
    metric: RobustSim,
    a: ImageInput,
    b: ImageInput,
    *,
    method: MapMethod = "places",
    steps: int = STEPS,
    squared: bool = False,
    input_range: Range = (0, 1),
) -> Tensor:
    """Where pairs of pictures differ, at the resolution of the first: (N, H, W) float32.

    `places`, in [0, sqrt(2)]: the encoder's last features are compared place by place (a transformer's patches after
    the last norm, the last map of a convolutional network) and interpolated bilinearly. They are coarse, 7 x 7 for many
    models, and each has seen more of the picture than its own part: read a map as "about here". Its mean is not the
    distance of the pictures, which comes from what the encoder makes of all places together. A place for which the
    encoder has nothing but zeros, as behind a ReLU, is 1 from every other, and 0 from another such. It costs one
    forward pass of both pictures.

    `features`, from 0 upwards: likewise, but places keep their lengths, so that those in which the encoder found little
    count little. Lengths are measured by their root mean square over the picture's places; the mean of the squares over
    the places is `1 - cosine` of the two pictures' features as a whole. Take it for convolutional encoders, whose
    places differ much in length: behind a ReLU, those with next to nothing have directions all the same.

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
        method: `places`, `features` or `gradient`.
        steps: of `gradient`, at least 1.
        squared: give `|u_p - v_p|^2 / 2` instead, for `places` in [0, 2]; with `gradient`, what sums to the squared
            distance.
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
    if method == "features":
        values = place_distances(metric, x, y, squared=squared, together=True)
        return finite(interpolated(values, size, metric.card.preprocessing))
    if method == "places":
        return map_of_pixels(metric, x, y, size, squared=squared)
    amounts = integrated_gradients(metric, x, y, steps=steps, squared=squared)
    return shared_out(amounts, size, metric.card.preprocessing)


def map_of_pixels(
    metric: RobustSim, a: Tensor, b: Tensor, size: tuple[int, int], *, squared: bool, check: bool = True
) -> Tensor:
    """As `difference_map` by places, of what `metric.preprocess` returned: (N, 3, S, S) or (1, 3, S, S).

    Args:
        metric: whose encoder looks.
        a: pixels.
        b: pixels.
        size: (height, width) of the pictures that these pixels were made of.
        squared: as for `difference_map`.
        check: whether what is not finite is an error.
    """
    whole = interpolated(place_distances(metric, a, b, squared=squared), size, metric.card.preprocessing)
    # What is interpolated between values at the bound may lie beyond it by rounding.
    whole = whole.clamp(max=2 if squared else 2**0.5)
    return finite(whole) if check else whole


def place_distances(metric: RobustSim, a: Tensor, b: Tensor, *, squared: bool, together: bool = False) -> Tensor:
    """The distances of the encoder's places, (N, h, w), which fill its square.

    Args:
        metric: whose encoder looks.
        a: pixels.
        b: pixels.
        squared: as for `difference_map`.
        together: whether places are scaled together, or each to length 1.
    """
    sides = (a, b)
    counts = [side.shape[0] for side in sides]
    check_counts(counts)

    def encode(pixels: Tensor) -> Tensor:
        return _places(metric, pixels, together)

    # The one that stands against many is encoded once.
    known = [encode(side) if side.shape[0] < max(counts) else None for side in sides]
    step = max(counts)
    if not torch.compiler.is_compiling() and sum(counts) > metric.batch_size:
        step = max(1, metric.batch_size // known.count(None))
    maps = []
    for first in range(0, max(counts), step):
        rows = [side if side.shape[0] == 1 else side[first : first + step] for side in sides]
        fresh = iter(encode_together(encode, [rows[i] for i in range(2) if known[i] is None]))
        u, v = (next(fresh) if one is None else one for one in known)
        same = same_pictures(*rows)[:, None, None]
        if together:  # without a bound
            d = torch.linalg.vector_norm(u - v, dim=1) * 0.5**0.5
            maps.append((d.square() if squared else d).masked_fill(same, 0))
        else:
            maps.append(pair_distance(u, v, same, squared=squared))
    return joined(maps)


def _places(metric: RobustSim, pixels: Tensor, together: bool) -> Tensor:
    """A vector for each place, (N, C, h, w) float32: of length 1 on average if scaled together; else of length 1.

    In the latter case there is one more channel, that of places with none but zeros.
    """
    features = metric.encoder.features(pixels)
    tokens = features.tokens.to(torch.float32).transpose(1, 2).reshape(len(pixels), -1, *features.grid)
    if together:
        length = torch.linalg.vector_norm(tokens, dim=(1, 2, 3), keepdim=True) / tokens[0, 0].numel() ** 0.5
        return tokens / torch.where(length == 0, torch.ones_like(length), length)
    length = torch.linalg.vector_norm(tokens, dim=1, keepdim=True)
    empty = length == 0
    # Divided by 1 there, as the gradient of what is not taken must be finite too.
    unit = (tokens / torch.where(empty, torch.ones_like(length), length)).masked_fill(empty, 0)
    return torch.cat((unit, empty.to(torch.float32)), 1)
