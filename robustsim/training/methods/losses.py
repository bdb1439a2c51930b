"""What fine-tuning minimises: pure functions of embeddings, logits and attention maps, (N,) losses of N images.

Symbols: z are embeddings, un-normalised, of the encoder that is trained; an `original` is the frozen encoder that it
began as.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.images.resize import full_precision


def embedding_distance(z: Tensor, original: Tensor) -> Tensor:
    """`|z - z_orig|_2^2`, summed over the dimensions of un-normalised embeddings (FARE; R-CLIP paper, Eq. 2).

    Args:
        z: (N, D).
        original: (N, D).

    Returns:
        (N,) float32.
    """
    return (z.float() - original.float()).square().sum(1)


def relation_distance(z: Tensor, original: Tensor) -> Tensor:
    """`mean_j (cos(z_i, z_j) - cos(o_i, o_j))^2` over the other images j of the batch: how far the similarities of an
    image to others are from those that the original sees, whatever they are of (relational distillation, Park et al.
    2019, with cosines).

    Args:
        z: (N, D) embeddings, of any length.
        original: (N, D) embeddings of the original for the same images.

    Returns:
        (N,) float32; 0 for a batch of one, which has no others.
    """
    if len(z) < 2:
        return z.float().sum(1) * 0
    with full_precision(z):
        a, b = F.normalize(z.float(), dim=1), F.normalize(original.float(), dim=1)
        return (a @ a.T - b @ b.T).square().fill_diagonal_(0).sum(1) / (len(z) - 1)


def class_logits(z: Tensor, prototypes: Tensor, scale: float = 100.0) -> Tensor:
    """`scale * cos(z, prototype_k)` for each class k (R-CLIP paper, Eq. 1).

    Args:
        z: (N, D).
        prototypes: (K, D) of length 1: the classes' embedded prompts, or means of their images' embeddings.
        scale: the inverse temperature; CLIP's own is 100.

    Returns:
        (N, K) float32.
    """
    with full_precision(z):
        return scale * F.normalize(z.float(), dim=1) @ prototypes.float().T


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`-log softmax(logits)[y]` (TeCoA, FT-Clean, FT-Adv), (N,) from (N, K) and (N,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """`KL(softmax(p) || softmax(q))` of logits, (N,) from (N, K) and (N, K)."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def confidence_weighted(adversarial: Tensor, clean_original: Tensor, labels: Tensor) -> Tensor:
    """`KL(P_adv || P_clean,orig) * (1 - P_adv[y])`: images whose class is in doubt count more (CAW paper, L_CA).

    Args:
        adversarial: (N, K) logits of adversarial images.
        clean_original: (N, K) logits that the original has for the clean ones.
        labels: (N,).

    Returns:
        (N,); its mean over the batch is the paper's term.
    """
    doubt = 1 - adversarial.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return divergence(adversarial, clean_original) * doubt


def feature_distance(z: Tensor, original: Tensor) -> Tensor:
    """`|z - z_orig|_2`, not squared (CAW paper, L_Reg), (N,); its gradient at 0 is 0."""
    distance: Tensor = torch.linalg.vector_norm(z.float() - original.float(), dim=1)
    return distance


def attention_distance(a: Tensor, b: Tensor) -> Tensor:
    """`|A - B|_2` of attention maps (CTGA paper, the distance of its two attention modules).

    Args:
        a: (N, H, W).
        b: (N, H, W).

    Returns:
        (N,), the Euclidean norm over all places of each map; its gradient at 0 is 0.
    """
    distance: Tensor = torch.linalg.vector_norm((a - b).flatten(1), dim=1)
    return distance


def hinge(to_left: Tensor, to_right: Tensor, right: Tensor, margin: float = 0.05) -> Tensor:
    """`max(0, margin - y (d_left - d_right))`, y = 1 where people find right nearer, else -1 (DreamSim, Eq. 1).

    Args:
        to_left: (N,) cosine distances `1 - similarity` of the reference to the left image.
        to_right: (N,) likewise to the right one.
        right: (N,) bool, where people find right nearer.
        margin: by how much the farther image should be farther.

    Returns:
        (N,).
    """
    sign = torch.where(right, 1.0, -1.0)
    return F.relu(margin - sign * (to_left - to_right))


def order(anchor: Tensor, nearer: Tensor, farther: Tensor, temperature: float = 0.1) -> Tensor:
    """`softplus(-m / t)`, m how far the anchor is on the side of what should be nearer.

    All three on the unit sphere, the points that are as near to the one as to the other are a plane through its centre;
    m is the distance from it. An attack moves the anchor towards that plane however near the two are to each other, so
    the loss has the same scale for small and for large distortions.

    Args:
        anchor: (N, D) embeddings of the references, of any length; likewise the others.
        nearer: (N, D).
        farther: (N, D).
        temperature: t, in units of the sphere's radius.

    Returns:
        (N,) float32.
    """
    a, n, f = (F.normalize(z.float(), dim=1) for z in (anchor, nearer, farther))
    between = n - f
    # Where the two all but coincide the direction between them is noise.
    length = torch.linalg.vector_norm(between, dim=1).clamp_min(0.03)
    return F.softplus(-(a * between).sum(1) / length / temperature)
