"""What an embedding holds: a picture made from nothing but the embedding of another, or of a text.

Of the R-CLIP paper (section VI, appendices A-B and B-C), with the embedding u(x) of length 1, the target t and the
grey picture z with a little noise:

    min over |d|_2 <= r of |u(z + d) - t|^2,    z + d in [0, 1]        (Eq. 9 for images, Eq. 10 for texts)

which is the same as maximising the cosine similarity `<u(z + d), t>` (Eq. 7 and 8). The multi-view variant maximises
the mean similarity of random views instead, by Adam and without a radius.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustsim.attacks import APGD, AttackStep, Targeted, attack_in_batches
from robustsim.attacks.engine.base import alone
from robustsim.attacks.engine.options import length, number, whole
from robustsim.attacks.engine.region import uniform
from robustsim.errors import InputError, ObjectiveError
from robustsim.explain.augmentations import draw_views, view
from robustsim.metric import ImagesOrEmbeddings, Range, RobustSim

Method = Literal["apgd", "multiview"]

#: The steps of each method, where none are given: the paper's.
STEPS: dict[Method, int] = {"apgd": 500, "multiview": 1000}
RADIUS = 100.0
VIEWS, RATE = 32, 0.1
# The noise that the grey start has, on both sides.
_NOISE = 8 / 255


@dataclass(frozen=True, eq=False)
class InversionStep:
    """What a callback of `invert` is told after each step.

    Attributes:
        step: how many are done of the pictures that are made at present.
        steps: how many there will be.
        targets: (M,) int64, which targets these pictures are made from, by their places.
        seeds: (M,) int64, and with which seeds.
        images: (M, 3, S, S) in [0, 1], the best pictures so far; a copy.
        similarity: (M,) float32, theirs to the targets.
    """

    step: int
    steps: int
    targets: Tensor
    seeds: Tensor
    images: Tensor
    similarity: Tensor


Callback = Callable[[InversionStep], object]


@dataclass(frozen=True, eq=False)
class Inversion:
    """Pictures made from embeddings.

    Attributes:
        images: (N, K, 3, S, S) float32 in [0, 1], for N targets and K seeds, the best that were tried: squares as
            the metric's encoder sees them, of side S. They go into `embed_pixels`; `embed` would have those of a model
            that crops cropped once more.
        similarity: (N, K) float32 in [-1, 1], the cosine similarity of their embeddings to the targets.
        targets: (N, D), the embeddings that were to be reached.
        seeds: the K seeds.
    """

    images: Tensor
    similarity: Tensor
    targets: Tensor
    seeds: tuple[int, ...]


def invert(
    metric: RobustSim,
    target: ImagesOrEmbeddings | None = None,
    *,
    text: "str | Sequence[str] | None" = None,
    method: Method = "apgd",
    steps: int | None = None,
    seeds: "int | Sequence[int]" = 1,
    radius: float = RADIUS,
    step_size: float | None = None,
    views: int = VIEWS,
    input_range: Range = (0, 1),
    callback: Callback | None = None,
    progress: bool = False,
) -> Inversion:
    """Pictures that a metric sees as near as can be to a target, begun at grey: what its embedding of it holds.

    Of a metric that was trained to hold against tampering they tend to look like the target; of another one they look
    like noise, and are as near or nearer by its numbers.

    `metric.batch_size` pictures are made at a time. What is drawn at random depends on the seed alone: the same call
    makes the same pictures on the same machine, and all targets begin at the same picture.

    Args:
        metric: whose embeddings are inverted.
        target: N images of any sizes, or their embeddings (N, D).
        text: N texts instead, of a CLIP model that was loaded with `text=True`.
        method: `apgd`, the paper's; `multiview`, its variant for texts: more like pictures, of models that are not
            robust too, as the views rule out much of the noise; but what comes out is no longer what the metric by
            itself sees, and a step costs as much as 32.
        steps: 500 for `apgd`, 1,000 for `multiview`, if not given.
        seeds: how many pictures for each target, from the seeds 0, 1, ...; or the seeds themselves.
        radius: of `apgd`: how far a picture may be from the grey one, in l2. A square of 224 pixels has 100 of about
            194, so that not all pixels may be black or white; on a smaller one, it says less.
        step_size: the first step in l2, `2 * radius` if not given; of `multiview` Adam's rate, 0.1.
        views: of `multiview`: random views of each picture and step.
        input_range: of images, as for [`RobustSim.preprocess`][robustsim.RobustSim.preprocess].
        callback: called with an `InversionStep` after each step; a true value ends the search for the pictures at hand
            and those still to come, which are returned as they are.
        progress: show a progress bar on standard error.

    Raises:
        InputError: neither images nor texts or both, a text for a model without a text tower, options that do not fit.
        ImageError: a file that cannot be read.
        ObjectiveError: a similarity that is NaN, or a gradient that is not finite.
    """
    if method not in get_args(Method):
        raise InputError(f"method={method!r} is none of {', '.join(get_args(Method))}")
    if (target is None) == (text is None):
        raise InputError("invert takes either images (or embeddings), or text=")
    steps = whole("steps", STEPS[method] if steps is None else steps)
    radius = number("radius", radius, "a number above 0", lambda value: 0 < value < float("inf"))
    step_size, views, drawn = length("step_size", step_size), whole("views", views), _seeds(seeds)
    with alone(metric):
        goals = _targets(metric, target, text, input_range)
        count = len(drawn)
        places = torch.arange(len(goals), device=goals.device).repeat_interleave(count)
        start = _starts(metric, drawn).repeat(len(goals), 1, 1, 1)
        told = None if callback is None else _Told(callback, places, torch.tensor(drawn).repeat(len(goals)))
        if method == "apgd":
            images, similarity = _by_apgd(metric, start, goals[places], steps, radius, step_size, told, progress)
        else:
            rows = _by_views(metric, start, goals[places], drawn, steps, step_size or RATE, views, told, progress)
            images, similarity = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return Inversion(images.view(-1, count, *images.shape[1:]), similarity.view(-1, count), goals, drawn)


def _seeds(seeds: "int | Sequence[int]") -> tuple[int, ...]:
    if isinstance(seeds, (list, tuple, range)):
        drawn = tuple(whole("seeds", seed, 0) for seed in seeds)
        if not drawn or len(set(drawn)) < len(drawn):
            raise InputError(f"seeds must be at least one, and none twice, not {list(seeds)!r}")
        return drawn
    return tuple(range(whole("seeds", seeds)))


def _targets(
    metric: RobustSim, target: ImagesOrEmbeddings | None, text: "str | Sequence[str] | None", input_range: Range
) -> Tensor:
    """Unit embeddings, (N, D)."""
    if target is not None:
        return metric.embed(target, input_range=input_range).detach().clone()
    return metric.embed_text(text if isinstance(text, str) else list(text or ())).clone()


def _starts(metric: RobustSim, seeds: tuple[int, ...]) -> Tensor:
    """Grey with uniform noise in +-8/255, (K, 3, S, S), the same for all targets of a seed."""
    side = metric.card.preprocessing.size
    like = torch.empty(0)
    noise = torch.stack([uniform((3, side, side), like, torch.Generator().manual_seed(seed)) for seed in seeds])
    return (0.5 + _NOISE * (2 * noise - 1)).to(metric.device)


class _Told:
    """The caller's callback, told in the terms of an inversion; whether he wants no more."""

    def __init__(self, callback: Callback, targets: Tensor, seeds: Tensor) -> None:
        self._callback, self._targets, self._seeds = callback, targets.cpu(), seeds
        self.over = False

    def __call__(self, step: AttackStep) -> bool:
        rows = step.indices.cpu()
        similarity = _similarity(step.loss)
        told = InversionStep(step.step, step.steps, self._targets[rows], self._seeds[rows], step.images, similarity)
        self.over = bool(self._callback(told))
        return self.over


def _similarity(loss: Tensor) -> Tensor:
    """The cosine similarity, of minus the squared distance of unit vectors: `1 - |u - t|^2 / 2`."""
    return (1 + loss / 2).clamp(-1, 1)


def _by_apgd(
    metric: RobustSim,
    start: Tensor,
    goals: Tensor,
    steps: int,
    radius: float,
    step_size: float | None,
    told: _Told | None,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Pictures (R, 3, S, S) and their similarities (R,), one for each start (R, 3, S, S) and goal (R, D)."""
    attack = APGD(
        norm="l2", eps=radius, steps=steps, step_size=step_size, start=start, callback=told, progress=progress
    )
    objective = Targeted(metric.embed_pixels, goals[:, None])
    found = attack_in_batches(attack, objective, start, batch_size=metric.batch_size)
    return found.images, _similarity(found.loss)


def _by_views(
    metric: RobustSim,
    start: Tensor,
    goals: Tensor,
    seeds: tuple[int, ...],
    steps: int,
    rate: float,
    views: int,
    told: _Told | None,
    progress: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Likewise, in parts; Adam on the mean similarity of views, the best by that of the picture itself."""
    from tqdm import tqdm

    together = max(1, metric.batch_size // views)
    every = torch.arange(len(start))
    groups = torch.split(every, together)
    with tqdm(total=len(groups) * (steps + 1), desc="multiview", leave=False, disable=not progress) as bar:
        for rows in groups:
            generators = [torch.Generator().manual_seed(seeds[int(row) % len(seeds)]) for row in rows]
            x, goal = start[rows].clone(), goals[rows]
            best, reached = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
            optimiser = torch.optim.Adam([x], lr=rate)
            for step in range(steps + 1):
                now = (metric.embed_pixels(x) * goal).sum(1)
                _refuse(torch.isnan(now), "similarity is NaN", step)
                better = now > reached
                best[better], reached = x[better], torch.maximum(now, reached)
                bar.update()
                loss = 2 * reached - 2
                if told is not None and told(
                    AttackStep("multiview", step + 1, steps + 1, rows, loss, None, best.clone())
                ):
                    break
                if step < steps:
                    drawn = torch.stack([draw_views(views, one) for one in generators])
                    x.grad = _uphill(metric, x, goal, drawn).neg_()
                    _refuse(~torch.isfinite(x.grad.flatten(1).sum(1)), "gradient is not finite", step)
                    optimiser.step()
                    x.clamp_(0, 1)
            yield best, reached.clamp(-1, 1)
            if told is not None and told.over:
                rest = torch.arange(int(rows[-1]) + 1, len(start))
                if len(rest):
                    yield start[rest], (metric.embed_pixels(start[rest]) * goals[rest]).sum(1)
                return


def _refuse(bad: Tensor, what: str, step: int) -> None:
    if bool(bad.any()):
        raise ObjectiveError(f"multiview: the {what} at step {step}: the encoder gives it, as damaged weights do")


def _uphill(metric: RobustSim, x: Tensor, goals: Tensor, drawn: Tensor) -> Tensor:
    """The gradient of the mean similarity of views, like x (R, 3, S, S), for drawn (R, V, 7)."""
    gradient = torch.zeros_like(x)
    # As many views at a time as the metric encodes at a time: their graph is all that is kept.
    for numbers in torch.split(drawn, max(1, metric.batch_size // len(x)), dim=1):
        count = numbers.shape[1]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            many = leaf[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
            z = metric.embed_pixels(view(many, numbers.flatten(0, 1)))
            similarity = (z.view(len(x), count, -1) * goals[:, None]).sum()
            gradient += torch.autograd.grad(similarity, leaf)[0]
    return gradient / drawn.shape[1]
