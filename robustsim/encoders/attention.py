"""Text-guided attention: which places of a picture look like a text (CTGA paper, Eq. 6 to 8)."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.errors import InputError
from robustsim.images.resize import full_precision

#: Which formula: the paper's, or that of the code behind its tables.
AttentionForm = Literal["paper", "published"]

# Cosines that differ by less than this do so by rounding: the map is flat, 0 everywhere and without a gradient.
_FLAT = 1e-6


def text_guided_attention(
    tokens: Tensor,
    text: Tensor,
    grid: tuple[int, int],
    size: int | None = None,
    *,
    form: AttentionForm = "paper",
    class_token: Tensor | None = None,
) -> Tensor:
    """Similarity of each place to a text, brought to [0, 1] within each picture and to the picture's size (Eq. 6).

    There are two forms of it. In the paper's, a place is a vector of length 1, and the map does not depend on lengths.
    The code that made the published tables divides along the other axis: each channel by its length over all tokens of
    the picture, so that a channel counts the more, the less it varies in size from place to place, and places keep
    their lengths.

    Args:
        tokens: (N, h * w, D), places in the space of the texts (`Encoder.features(pixels, project=True)`).
        text: (N, D), one for each picture, of any length but 0; or (D,), one for all.
        grid: (h, w).
        size: side of the maps that are wanted; as coarse as the tokens if not given.
        form: `paper`, cosines as in Eq. 6; `published`, as the authors' code has it.
        class_token: (N, D), the first of the transformer's tokens, in the same space: it has no place in the map, and
            counts in the lengths of channels. For `published` alone, whose code takes them over all tokens.

    Returns:
        (N, size, size), or (N, h, w), float32 in [0, 1]. A picture whose places are all alike has a map of zeros.

    Raises:
        InputError: an unknown form, or a class token where it would not be used.
    """
    if form not in get_args(AttentionForm):
        raise InputError(f"form={form!r} is none of {', '.join(get_args(AttentionForm))}")
    if class_token is not None and form == "paper":
        raise InputError("class_token= goes with form='published': cosines of places do not depend on it")
    with full_precision(tokens):
        places = F.normalize(tokens.float(), dim=2) if form == "paper" else _by_channel(tokens, class_token)
        similarity = (places @ F.normalize(text.float(), dim=-1).expand(len(tokens), -1)[..., None]).squeeze(2)
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    flat = high - low < _FLAT
    # Divided by 1 where it is flat, as the gradient of what is not taken must be finite too.
    scaled = (similarity - low) / torch.where(flat, 1.0, high - low)
    maps = torch.where(flat, 0.0, scaled).view(-1, *grid)
    if size is not None:
        maps = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=False).squeeze(1)
    return maps


def _by_channel(tokens: Tensor, class_token: Tensor | None) -> Tensor:
    """Places whose channels are divided by their lengths over all tokens of the picture, (N, h * w, D)."""
    everything = tokens if class_token is None else torch.cat([class_token[:, None], tokens], 1)
    return F.normalize(everything.float(), dim=1)[:, -tokens.shape[1] :]


def complementary_attention(of_class: Tensor, of_rest: Tensor) -> Tensor:
    """`A_class * (1 - A_nonclass)`: what looks like the class and not like the rest (Eq. 8).

    Args:
        of_class: (N, H, W), the attention of "This is a photo of a {class}".
        of_rest: (N, H, W), that of "This is not a photo of a {class}".

    Returns:
        (N, H, W) in [0, 1].
    """
    return of_class * (torch.ones_like(of_rest) - of_rest)
