"""Which places of a picture look like a text, to a CLIP model: text-guided attention as a map of the picture.

The formula is that of training (CTGA paper, Eq. 6 to 8), in `robustsim.encoders.attention`.
"""

import torch
from torch import Tensor

from robustsim.distances import finite, joined
from robustsim.encoders.attention import AttentionForm, complementary_attention, text_guided_attention
from robustsim.errors import InputError
from robustsim.explain.resolution import interpolated, of_one_size
from robustsim.images.inputs import ImageInput
from robustsim.metric import Range, RobustSim


def attention_map(
    metric: RobustSim,
    images: ImageInput,
    text: "str | list[str]",
    *,
    against: "str | list[str] | None" = None,
    form: AttentionForm = "paper",
    input_range: Range = (0, 1),
) -> Tensor:
    """Which places of pictures look like a text, at the pictures' resolution: (N, H, W) float32 in [0, 1].

    Without `against`, TGA's text-guided attention (CTGA paper, Eq. 6): the similarity of each place to the text, with
    the least similar place of the picture at 0 and the most similar at 1, whatever is in the picture: a map says where
    a text fits best, and not whether it fits. Where all places are alike it is 0. With `against`, Comp-TGA's
    complementary attention (Eq. 8), `A(text) * (1 - A(against))`, for which the paper takes "This is a photo of a cat"
    and "This is not a photo of a cat".

    Places are interpolated bilinearly, so that pixels stay below the greatest of places; what the encoder does not look
    at is 0.

    Args:
        metric: of a CLIP model loaded with `text=True`.
        images: N pictures of one size.
        text: one for all pictures, or one for each.
        against: what is not looked for, likewise.
        form: the paper's formula, or the `published` code's;
            see [`text_guided_attention`][robustsim.training.text_guided_attention].
        input_range: as for [`RobustSim.preprocess`][robustsim.RobustSim.preprocess].

    Returns:
        (N, H, W) on the metric's device; differentiable to tensors.

    Raises:
        InputError: no text tower, an image tower without access to places in the space of texts, pictures of several
            sizes, or another number of texts than of pictures.
        ImageError: a file that cannot be read.
    """
    texts = [metric.embed_text(one) for one in (text, against) if one is not None]
    whole = attention_of(metric, images, texts, form=form, input_range=input_range)
    return finite(complementary_attention(*whole) if len(whole) == 2 else whole[0])


def attention_of(
    metric: RobustSim, images: ImageInput, texts: list[Tensor], *, form: AttentionForm, input_range: Range = (0, 1)
) -> list[Tensor]:
    """The attention to several texts, (N, H, W) each; every picture is encoded once.

    Args:
        metric: as for `attention_map`.
        images: likewise.
        texts: embeddings, (N, D) or (1, D) each.
        form: likewise.
        input_range: likewise.

    Raises:
        ImageError, InputError: likewise.
    """
    parts, size = of_one_size(images)
    return attention_of_pixels(metric, metric.preprocess(parts, input_range=input_range), size, texts, form=form)


def attention_of_pixels(
    metric: RobustSim, pixels: Tensor, size: tuple[int, int], texts: list[Tensor], *, form: AttentionForm
) -> list[Tensor]:
    """Likewise, of squares as the encoder sees them, (N, 3, S, S), made of pictures of one (height, width).

    Raises:
        InputError: likewise.
    """
    for one in texts:
        if len(one) not in (1, len(pixels)):
            raise InputError(f"{len(one)} texts for {len(pixels)} images: pass one text, or one for each")
    maps: list[list[Tensor]] = [[] for _ in texts]
    for first in range(0, len(pixels), metric.batch_size):
        batch = slice(first, first + metric.batch_size)
        features = metric.encoder.features(pixels[batch], project=True)
        # In a CLIP transformer the embedding is the class token.
        token = None if form == "paper" else features.embedding
        for found, z in zip(maps, texts, strict=True):
            rows = z[batch] if len(z) > 1 else z[0]
            found.append(text_guided_attention(features.tokens, rows, features.grid, form=form, class_token=token))
    return [interpolated(joined(found), size, metric.card.preprocessing).clamp(0, 1) for found in maps]


def soft_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """How well maps fit masks: intersection over union, of values in [0, 1] instead of sets.

    With the map A and the mask M (CTGA paper, appendix A; Wang et al., Jaccard Metric Losses, 2023):

        IoU = sum over pixels of min(A, M) / sum over pixels of max(A, M)

    For masks of 0 and 1 that is the same as `sum A M / sum (A + M - A M)`. An empty map on an empty mask is 1.

    Args:
        maps: (N, H, W) in [0, 1], such as `attention_map` gives.
        masks: (N, H, W), bool or in [0, 1].

    Returns:
        (N,) float32 in [0, 1].

    Raises:
        InputError: shapes that differ, or values outside [0, 1].
    """
    if maps.ndim != 3 or maps.shape != masks.shape or 0 in maps.shape:
        raise InputError(
            f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} must have one shape (N, H, W): bring the masks "
            "to the size of the maps first"
        )
    values = [("maps", maps.to(torch.float32)), ("masks", masks.to(maps.device, torch.float32))]
    for name, one in values:
        low, high = (float(end) for end in torch.aminmax(one))
        if not (low >= 0 and high <= 1):
            hint = "; a mask of 0 and 255 is mask > 0" if name == "masks" and high > 1 else ""
            raise InputError(f"{name} with values from {low:.4g} to {high:.4g}, outside [0, 1]{hint}")
    a, m = (one for _, one in values)
    both, either = torch.minimum(a, m).sum((1, 2)), torch.maximum(a, m).sum((1, 2))
    return torch.where(either > 0, both / torch.where(either > 0, either, 1.0), 1.0)
