"""Losses of a classifier that attacks maximise, each `(N, K) logits -> (N,)`, as pure functions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.errors import InputError


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`-log softmax(z)_y`, (N,), as `log(1 + sum_{j != y} exp(z_j - z_y))`.

    So it is not 0, and has a gradient, where a softmax in float32 would be 1 already: beyond a gap of 17 an attack
    would see nothing, and the model look robust. Beyond about 100 that is so all the same: use the margin there.

    Raises:
        InputError: fewer than two classes, or not a label for each row; the latter from all losses here.
    """
    _need(logits, 2, "cross-entropy", "", labels)
    gaps = logits - logits.gather(1, labels[:, None])
    return F.softplus(gaps.scatter(1, labels[:, None], -torch.inf).logsumexp(1))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """`max_{j != y} z_j - z_y`, (N,): above 0 where the decision is not y (Carlini and Wagner 2017).

    Raises:
        InputError: fewer than two classes.
    """
    _need(logits, 2, "the margin", "", labels)
    at_label = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - at_label


def margin_to(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """`z_t - z_y`, (N,)."""
    _need(logits, 2, "the margin", "", labels, targets)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.gather(1, labels[:, None]).squeeze(1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (N,): `(max_{j != y} z_j - z_y) / (z_(1) - z_(3))` (Croce and Hein 2020, Eq. 6).

    Raises:
        InputError: fewer than three classes.
    """
    _need(logits, 3, "DLR", "; with two, use the margin", labels)
    ordered = logits.topk(3, dim=1).values
    return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """`(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`, (N,) (Croce and Hein 2020, Eq. 7).

    Raises:
        InputError: fewer than four classes.
    """
    _need(logits, 4, "targeted DLR", "; with fewer, use the margin to the target", labels, targets)
    ordered = logits.topk(4, dim=1).values
    return margin_to(logits, labels, targets) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)


def targeted_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """`log softmax(z)_t`, (N,); the label plays no part."""
    return -cross_entropy(logits, targets)


def _need(logits: Tensor, least: int, name: str, fix: str, *classes: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < least:
        raise InputError(f"{name} needs logits (N, K) of at least {least} classes, not {tuple(logits.shape)}{fix}")
    for each in classes:
        if len(each) != len(logits):  # gather would take the first rows and spread them
            raise InputError(f"{len(each)} labels or targets for logits of {len(logits)} images: they must be as many")
