"""Attacks on detection: towards pictures of another class (R-CLIP paper, Eq. 5), on another detector, on both."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustsim.attacks import Objective, Targeted
from robustsim.attacks.objectives.inputs import returned
from robustsim.errors import InputError
from robustsim.evaluation.subjects import Subject
from robustsim.search import ScoreDetector


class Second:
    """Another detector beside the neighbours, asked about the squares that the metric looks at.

    Where its own square is of another size, they are resized, bilinear and antialiased: so that one perturbation is one
    for both, and clean pictures are judged as attacked ones are.

    Args:
        detector: of pixels, or of embeddings of a metric of its own, or of those of the metric that is judged.
        metric: the one that is judged.

    Raises:
        InputError: it takes embeddings of another model than the one that is judged, and brings none.
    """

    def __init__(self, detector: ScoreDetector, metric: Subject) -> None:
        self.detector, self._judged = detector, metric
        #: Whether it looks at the embeddings of the metric that is judged.
        self.shares = detector.takes == "embeddings" and detector.metric is None
        if self.shares:
            card = metric.about.get("card")
            if card is None:
                raise InputError(
                    f"the detector {detector.name!r} takes embeddings, and {metric.name} is no encoder: give it a "
                    "metric of its own (metric=...)"
                )
            detector.check_model(metric.name, card["embedding_dim"])
        own = detector.metric
        self._size = (detector if own is None else own.card).preprocessing.size

    @property
    def behind(self) -> tuple[Any, ...]:
        """What it works with."""
        own = self.detector.metric
        return (self.detector.function, None if own is None else own.encoder)

    def embed(self, images: Tensor) -> Tensor:
        """Squares (N, 3, S, S) of the metric that is judged -> embeddings of the detector's own metric, (N, D)."""
        if self.detector.metric is None:
            raise RuntimeError("this detector has no metric of its own")
        return self.detector.metric.embed_pixels(self._sized(images).to(self.detector.metric.device)).to(images.device)

    def toward(self, targets: Tensor) -> Objective:
        """Eq. 5 on the detector's own metric, whose head the attacker does not know; targets (M, D) of `embed`."""
        return Targeted(self.embed, targets)

    def taken(self, images: Tensor, codes: Tensor) -> Tensor:
        """What its function takes, of squares and of their embeddings by the metric that is judged."""
        if self.shares:
            seen = F.normalize(codes.float(), dim=1)
        elif self.detector.metric is not None:
            seen = self.embed(images)
        else:
            seen = self._sized(images)
        return seen.to(self.detector.device)

    def scores(self, images: Tensor, codes: Tensor) -> list[float]:
        """Of squares and of their embeddings by the metric that is judged."""
        with torch.no_grad():
            return self.detector.scores(self.taken(images, codes).detach())

    def _sized(self, images: Tensor) -> Tensor:
        if images.shape[-1] == self._size:
            return images
        size = (self._size, self._size)
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


class Evasion(Objective):
    """What an attack on detection maximises, of one forward pass of each model; success is not defined.

    With targets alone it is Eq. 5, for a metric with a distance of its own the same sum of that. With a detector alone,
    by how much its score is on the wanted side of its threshold. With both, the sum of the two: the mean over the
    targets, and the detector's as far as it is short of `ENOUGH`: more of it gains nothing, and would drown the other.

    Args:
        metric: the one that is judged.
        targets: embeddings (M, D), the same for all images.
        second: another detector.
        flagged: whether the attacker wants that to flag.
    """

    #: In logits, or in scores where there are none.
    ENOUGH = 0.05

    def __init__(
        self,
        metric: Subject,
        targets: Tensor | None = None,
        second: Second | None = None,
        *,
        flagged: bool = False,
    ) -> None:
        self.metric, self.targets, self.second, self.sign = metric, targets, second, 1 if flagged else -1
        # Visible, so that the modules behind them are left as they were.
        self._behind = (metric.embed, metric.distance, None if second is None else second.behind)

    def scores(self, images: Tensor) -> Tensor:
        """(N, 1) or, of both, (N, 2)."""
        codes, parts = images, []
        if self.metric.embed is not None and (self.targets is not None or self.second is None or self.second.shares):
            codes = self.metric.embed(images)
        if self.targets is not None:
            near = -far_from(self.metric, codes, self.targets)
            parts.append(near.sum(1) if self.second is None else near.mean(1))
        if self.second is not None:
            past = self.second.detector.margins(self.second.taken(images, codes))
            parts.append(self.sign * past.to(images.device).float())
        return torch.stack(parts, 1)

    def loss(self, scores: Tensor) -> Tensor:
        """Their sum, (N,)."""
        if scores.shape[1] == 1:
            return scores[:, 0]
        return scores[:, 0] + scores[:, 1].clamp(max=self.ENOUGH)

    def gap(self, scores: Tensor) -> None:
        """None."""


def toward(metric: Subject, targets: Tensor) -> Objective:
    """Eq. 5, or the same sum of a metric's own distance."""
    if metric.embed is not None and metric.cosine:
        return Targeted(metric.embed, targets)
    return Evasion(metric, targets)


def far_from(metric: Subject, codes: Tensor, targets: Tensor) -> Tensor:
    """Squared distances of unit embeddings, or a metric's own, of (N, D) to (M, D): (N, M)."""
    if metric.cosine:
        return 2 - 2 * F.normalize(codes, dim=1) @ F.normalize(targets, dim=1).T
    far = [metric.distance(codes, target.expand_as(codes)) for target in targets]
    return torch.stack([returned("distance", one, len(codes), "(N,)").float() for one in far], 1)
