"""Distances of unit-length embeddings, and which pictures are the same: the functions that the metric is made of.

Equal pictures have distance 0 exactly. Their pixels decide that: embeddings of equal pixels differ by rounding where
batches have other sizes, and to a mere checksum another picture could be made.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from robustsim.errors import EncodingError, InputError
from robustsim.images.tracing import concrete, is_traced

_SQRT_HALF = 0.5**0.5
_DIGEST = 32  # bytes


def check_counts(counts: Sequence[int]) -> None:
    """N images against N or 1.

    Raises:
        InputError: other counts.
    """
    most = max(counts)
    if any(count not in (1, most) for count in counts):
        seen = " against ".join(f"{count} images" if place == 0 else str(count) for place, count in enumerate(counts))
        raise InputError(f"{seen}: the counts must be equal, or one of them 1")


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


def finite(values: Tensor) -> Tensor:
    """The values themselves, if they are numbers; traced, unchecked.

    Raises:
        EncodingError: they are not all finite.
    """
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(concrete(values)).all()):
        raise EncodingError(
            "the encoder gave values that are not finite: its weights are damaged, or they do not fit into its type "
            "(float16 ends at 65,504; use dtype=torch.float32 or torch.bfloat16)"
        )
    return values
