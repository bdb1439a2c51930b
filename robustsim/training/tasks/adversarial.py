"""Adversarial fine-tuning: what happens to a batch of images, and how the encoder is judged meanwhile."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.attacks import PGD, ThreatModel
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.weights import state_sha256
from robustsim.errors import InputError
from robustsim.training.methods import losses
from robustsim.training.methods.distortions import graded
from robustsim.training.methods.table import Classes, Method, Seen, Views, see
from robustsim.training.recipes.recipe import TrainRecipe
from robustsim.training.sources.stream import Augment, Batch, Images, Stream, mix, readable
from robustsim.training.tasks.modes import evaluating

# Images that a pass of the validation holds at once.
_CHUNK = 32


class AdversarialStep(nn.Module):
    """The trained encoder together with its loss: one call for each pass, as data-parallel wrappers want it.

    Args:
        student: the encoder that is trained.
        original: the frozen encoder that it began as.
        method: how it is trained.
        options: the method's.
        classes: what labels stand for.
    """

    def __init__(
        self, student: Encoder, original: Encoder, method: Method, options: dict[str, Any], classes: Classes | None
    ) -> None:
        super().__init__()
        self.student = student
        # In a list, so that it is no part of this module: not wrapped, not saved, never in training mode.
        self._held = [original.eval().requires_grad_(False)]
        self.method, self.options, self.classes = method, options, classes

    @property
    def original(self) -> Encoder:
        """The frozen encoder."""
        return self._held[0]

    def views(
        self,
        clean: Tensor,
        adversarial: Tensor | None,
        labels: Tensor | None,
        seen: Seen | None,
        graded: tuple[Tensor, Tensor] | None = None,
    ) -> Views:
        """The batch as both encoders see it."""
        return Views(
            self.student,
            self.original,
            clean,
            adversarial,
            labels=labels,
            classes=self.classes,
            options=self.options,
            tokens=self.method.tokens,
            seen=seen,
            graded=graded,
        )

    def look(self, clean: Tensor) -> Seen:
        """What the original makes of clean images; for the attack and the loss alike."""
        with torch.no_grad():
            return see(self.original, clean, self.method.tokens)

    def forward(self, views: Views, pixels: Tensor | None = None, *, embed: bool = False) -> Any:
        """The named terms of the loss.

        With `pixels`, (N,) what the attack maximises there: for a method that trains without one, how little they
        look like their class. With `embed` too, (N, D) what the trained encoder makes of them.
        """
        if pixels is None:
            return self.method.terms(views)
        if embed:
            return views.student_at(pixels).z
        if self.method.attack is None:
            return losses.cross_entropy(views.logits(views.student_at(pixels)), views.labels)
        return self.method.attack(views, pixels)


class Adversarial:
    """The task of the loop: batches of images, the inner attack, the loss, the validation.

    Args:
        recipe: see `TrainRecipe`.
        encoder: what is trained.
        source: the images.
        train: indices of those to train on.
        held_out: source and indices of those to judge on.
        original: what the losses compare with; a frozen copy of the encoder if not given.
        classes: what labels stand for, where the method needs them.
        device: where everything happens.
        report: is told of images that cannot be read.
    """

    unit = "image"

    def __init__(
        self,
        recipe: TrainRecipe,
        encoder: Encoder,
        source: Images,
        train: Sequence[int],
        held_out: tuple[Images, Sequence[int]],
        *,
        original: Encoder | None = None,
        classes: Classes | None,
        device: torch.device,
        report: Callable[[str], None],
    ) -> None:
        self.recipe, self.samples, self.device = recipe, len(train), device
        self.total = recipe.total_steps(self.samples)
        method = recipe.method.method
        self.classes = None if classes is None else classes.to(device)
        encoder.requires_grad_(True)
        if encoder.text is not None:
            raise InputError("the text tower is not trained: load the encoder without it")
        # What an embedding is made of may differ where the weights do not.
        self.began_as = " ".join(
            f"{state_sha256(one)}:{one.card.embedding_dim}" for one in (encoder, original) if one is not None
        )
        # What the result is made of: neither wrapped, sharded nor compiled.
        self._blank = copy.deepcopy(encoder)
        original = self._blank if original is None else original
        if original.card.embedding_dim != encoder.card.embedding_dim:
            raise InputError(
                f"{original.card.name!r} has {original.card.embedding_dim} dimensions and {encoder.card.name!r} has "
                f"{encoder.card.embedding_dim}: the one cannot be the original of the other"
            )
        self.module = AdversarialStep(
            encoder.to(device), original.to(device), method, recipe.method.options, self.classes
        )
        pre = encoder.card.preprocessing
        self._usual = pre.size
        augment = Augment(pre, **recipe.augment.model_dump())

        def size(position: int) -> int:
            return recipe.size_at(position // recipe.batch_size, self.total, pre.size)

        self._stream = Stream(source, train, augment, seed=recipe.seed, size=size, device=device, report=report)
        self.held_out, self._report = held_out, report

    def batches(self, spans: Iterator[range]) -> Iterator[Batch]:
        """Batches for ranges of positions."""
        return self._stream.batches(spans)

    def state(self, step: int) -> dict[str, float]:
        """What changes in the course of the training, for the log."""
        return {
            "eps": self.recipe.eps_at(step, self.total),
            "size": self.recipe.size_at(step, self.total, self._usual),
        }

    def terms(self, module: Any, through: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """The terms of the loss on a batch.

        Args:
            module: the step as the loop has wrapped it.
            through: what the attack goes through: the step itself, or the wrapper where only that works.
            batch: images.
            step: of the training.
        """
        plain = self.module
        seen, pair = plain.look(batch.pixels), self._graded(batch)
        adversarial = batch.pixels
        if plain.method.attack is not None:
            adversarial = self.attack(through, batch, plain.views(batch.pixels, None, batch.labels, seen, pair), step)
        terms: dict[str, Tensor] = module(plain.views(batch.pixels, adversarial, batch.labels, seen, pair))
        return terms

    def _graded(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """A weaker and a stronger distortion of each image, where the method wants them."""
        if not self.recipe.method.options.get("rank"):
            return None
        return graded(batch.pixels, [mix(self.recipe.seed, position, 5) for position in batch.positions])

    def attack(self, through: Any, batch: Batch, views: Views, step: int) -> Tensor:
        """Adversarial images, found with frozen weights in eval mode and as many gradients as the recipe says."""
        recipe = self.recipe.attack
        eps = self.recipe.eps_at(step, self.total)
        grown = eps / recipe.eps if recipe.eps else 1.0
        length = None if recipe.step_size is None else recipe.step_size * grown
        threat = ThreatModel(recipe.norm, eps)
        pgd = PGD(
            norm=recipe.norm,
            eps=eps,
            steps=recipe.steps,
            step_size=length,
            momentum=recipe.momentum,
            start=starts(threat, batch.pixels, self.recipe.seed, batch.positions),
            keep="last",
        )
        return pgd(lambda pixels: through(views, pixels), batch.pixels).images

    def encoder(self, weights: dict[str, Tensor]) -> Encoder:
        """The result: an encoder with these weights, by the names of the step, and all else as it was."""
        result = copy.deepcopy(self._blank).cpu()
        trained = {name.removeprefix("student."): value.cpu() for name, value in weights.items()}
        result.load_state_dict({**result.state_dict(), **trained})
        return result

    # -- judging

    def validate(
        self, through: Any, rank: int, world: int, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], int]:
        """Sums over this process's share of the held-out images, and how many of them could be read.

        Of losses and cosines to the original, clean and under attack; and with labels, of right classes.

        Args:
            through: as for `terms`.
            rank: this process's number.
            world: how many share the images.
            stopped: asked after each batch whether to leave it at that.
        """
        source, indices = self.held_out
        # Each has the same position, where its attack begins, however many processes there are.
        mine = list(enumerate(indices))[rank::world]
        pre = self.module.student.card.preprocessing
        sums: dict[str, float] = {}
        count = 0
        batches: Any = readable(
            source, mine, Augment(pre), size=pre.size, device=self.device, report=self._report, chunk=_CHUNK
        )
        with closing(batches), evaluating(self.module), torch.no_grad():
            for batch in batches:
                for name, value in self._judge(through, batch).items():
                    sums[name] = sums.get(name, 0.0) + float(value.sum())
                count += len(batch.positions)
                if stopped():
                    break
        return sums, count

    def _judge(self, through: Any, batch: Batch) -> dict[str, Tensor]:
        plain, recipe = self.module, self.recipe.attack
        seen = plain.look(batch.pixels)
        views = plain.views(batch.pixels, None, batch.labels, seen, self._graded(batch))
        pgd = PGD(
            norm=recipe.norm,
            eps=recipe.eps,
            steps=self.recipe.validation.steps,
            start=starts(ThreatModel(recipe.norm, recipe.eps), batch.pixels, self.recipe.seed, batch.positions),
            keep="last",
        )
        found = pgd(lambda pixels: through(views, pixels), batch.pixels).images
        out: dict[str, Tensor] = {}
        for name, pixels in (("clean", batch.pixels), ("robust", found)):
            z = through(views, pixels, embed=True).float()
            out[f"{name}_loss"] = through(views, pixels)
            out[f"{name}_cosine"] = F.cosine_similarity(z, seen.z.float())
            if batch.labels is not None and self.classes is not None:
                right = losses.class_logits(z, self.classes.prototypes).argmax(1) == batch.labels
                out[f"{name}_accuracy"] = right.float()
        return out


def starts(threat: ThreatModel, images: Tensor, seed: int, positions: Sequence[int]) -> Tensor:
    """Where attacks begin: a random point of each image's ball, which depends on seed and position alone.

    So a run that is resumed, or shared between processes (in l1 but for rounding), meets the same ones.

    Args:
        threat: norm and radius.
        images: (N, 3, S, S).
        seed: of the training.
        positions: (N,) of the images in the training.
    """
    generators = [torch.Generator(images.device).manual_seed(mix(seed, position, 3)) for position in positions]
    return threat.around(images).random_start(generators)
