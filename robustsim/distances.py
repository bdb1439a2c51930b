"""Distances of unit-length embeddings, and which pictures are the same: the functions that the metric is made of.

Equal pictures have distance 0 exactly. Their pixels decide that: embeddings of equal pixels differ by rounding where
batches have other sizes, and to a mere checksum another picture could be made.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustsim.errors import EncodingError, InputError
from robustsim.images.checks import Checks
from robustsim.images.tracing import concrete, is_traced
from robustsim.vectors import NO_EMBEDDING, NOT_FINITE

_SQRT_HALF = 0.5**0.5
_UNIT = 1e-5  # within this of 1, a length is left as it is
_DIGEST = 32  # bytes


def unit_embeddings(z: Tensor, size: int, model: str, checks: Checks | None = None) -> Tensor:
    """Somebody's embeddings, (N, D) or (D,), as unit ones (N, D) float32; those that have length 1 stay as they are.

    Args:
        z: what was passed.
        size: D.
        model: whose embeddings they should be, for the message.
        checks: to which the lengths are left, if there is any; whoever gave it settles it.

    Raises:
        InputError: another shape or type, or, where nothing is compiled, another length than 1.
    """
    if z.shape[-1] != size or not z.is_floating_point() or 0 in z.shape:
        raise InputError(
            f"a {z.dtype} tensor of shape {tuple(z.shape)} is neither an image, (3, H, W) or (N, 3, H, W), nor an "
            f"embedding of {model!r}, floating point (N, {size})"
        )
    z = z.to(torch.float32).reshape(-1, size)
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    if not torch.compiler.is_compiling():  # the check would break the graph
        asked = checks or Checks()
        asked.ask(torch.stack(torch.aminmax(concrete(length))), partial(_check_lengths, tuple(z.shape), model))
        if checks is None:
            asked.settle()
    return z / torch.where((length - 1).abs() < _UNIT, torch.ones_like(length), length.clamp_min(1e-12))


def _check_lengths(shape: tuple[int, ...], model: str, found: Sequence[float]) -> None:
    low, high = found
    if not (low >= 1 - NO_EMBEDDING and high <= 1 + NO_EMBEDDING):
        raise InputError(
            f"a tensor of shape {shape} could be embeddings of {model!r}, but these have length 1, and its rows "
            f"{low:.4g} to {high:.4g}. If they are embeddings, divide them by their lengths "
            "(torch.nn.functional.normalize); if it is a grey image, give it three channels (tensor.expand(3, -1, -1))"
        )


def encode_together(encode: Callable[[Tensor], Any], batches: Sequence[Tensor]) -> Sequence[Any]:
    """What an encoder makes of several batches, in one pass where that computes no gradient that nobody wants.

    Args:
        encode: a batch to a tensor, or to a list of them, with a row for each picture.
        batches: (N, 3, S, S) each.
    """
    if len(batches) == 1 or len({pixels.requires_grad for pixels in batches}) > 1:
        # Those with a gradient last: FSDP1 keeps the weights that the last pass needs.
        order = sorted(range(len(batches)), key=lambda i: batches[i].requires_grad)
        found = {i: encode(batches[i]) for i in order}
        return [found[i] for i in range(len(batches))]
    whole, counts = encode(torch.cat(tuple(batches))), [pixels.shape[0] for pixels in batches]
    if isinstance(whole, Tensor):
        return torch.split(whole, counts)
    return list(zip(*(torch.split(one, counts) for one in whole), strict=True))


def pair_distance(u: Tensor, v: Tensor, same: "Tensor | None", *, squared: bool) -> Tensor:
    """Distances of pairs of unit embeddings, (N,); 0 where their pixels are the same."""
    difference = u - v
    if squared:
        d = (0.5 * difference.square().sum(1)).clamp(max=2)
    else:
        # The norm's gradient at 0 is defined as 0; sqrt(1 - cos) would have none there.
        d = (torch.linalg.vector_norm(difference, dim=1) * _SQRT_HALF).clamp(max=2**0.5)
    return d if same is None else d.masked_fill(same, 0)


def matrix_distance(u: Tensor, v: Tensor, same: "Tensor | None", *, squared: bool) -> Tensor:
    """Distances of every u to every v, (N, M); 0 where `same`, (N, M) bool, says that their pixels are the same."""
    # Not by a matrix product: its rounding would show as 3e-4 where the distance is 0.
    d = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist").mul(_SQRT_HALF).clamp(max=2**0.5)
    if same is not None:
        d = d.masked_fill(same.to(d.device), 0)
    return d.square().clamp(max=2) if squared else d


def same_pictures(x: Tensor, y: Tensor) -> Tensor:
    """Where two batches of pixels, (N, 3, S, S) or (1, 3, S, S), hold the same pictures, (N,) bool."""
    return (x == y).flatten(1).all(1)


def identities(pixels: Tensor) -> Tensor:
    """What tells pictures apart that are not kept: a digest of each, (N, 32) uint8; traced, the pixels (N, P)."""
    if is_traced(pixels):
        return pixels.detach().flatten(1)
    rows = pixels.detach().add(0.0).flatten(1).cpu().numpy()  # -0.0 and 0.0 are one value
    digests = b"".join(hashlib.blake2b(row, digest_size=_DIGEST).digest() for row in rows)
    return torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, _DIGEST)


def same_of_all(x: Tensor, y: Tensor) -> Tensor:
    """Where each of N pictures is the same as each of M, by their `identities`, (N, M) bool."""
    if x.dtype == torch.uint8:  # numbers stand in for digests, N * M of which would be many bytes
        numbers = torch.unique(torch.cat((x, y)), dim=0, return_inverse=True)[1]
        x, y = numbers[: len(x), None], numbers[len(x) :, None]
    return (x[:, None] == y[None]).all(2)


def joined(batches: Sequence[Tensor]) -> Tensor:
    """Batches as one tensor; a single one is not copied."""
    return batches[0] if len(batches) == 1 else torch.cat(tuple(batches))


def finite(values: Tensor, *embeddings: Tensor) -> Tensor:
    """The values themselves, if they are numbers, and those of embeddings with a direction; traced, unchecked.

    Args:
        values: what is going to be returned.
        embeddings: what they are made of, (N, D): of length 1, or 0 where an encoder gave nothing but zeros.

    Raises:
        EncodingError: values are not finite, or the length is 0.
    """
    if torch.compiler.is_compiling():
        return values
    # One answer from the device for all.
    fine = [torch.isfinite(concrete(values)).all(), *(concrete(z).square().sum(-1).gt(0).all() for z in embeddings)]
    if not bool(torch.stack(fine).all()):
        raise EncodingError(NOT_FINITE)
    return values
