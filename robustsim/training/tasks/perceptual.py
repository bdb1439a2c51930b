"""Perceptual fine-tuning: an encoder learns which of two images people find more like a third (DreamSim, section 4)."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.data import Triplet
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.weights import state_sha256
from robustsim.errors import DataError, ImageError, InputError
from robustsim.images.files import prefetch
from robustsim.images.inputs import load_square, stack_squares
from robustsim.training.methods.losses import hinge
from robustsim.training.recipes.recipe import FinetuneRecipe
from robustsim.training.sources.stream import Shuffle, mix
from robustsim.training.tasks.adapters import add_lora, add_mlp, merge_lora_adapters
from robustsim.training.tasks.modes import evaluating

# Squares that are kept decoded: triplets share images. 150 kB each at 224 pixels.
_KEPT = 2048
# Images that are embedded at once where nothing is trained through them.
_CHUNK = 32
# Triplets whose images are decoded before their turn.
_AHEAD = 128
# So many triplets in a row with an image that cannot be read are no accident.
_MOST_BAD = 100


@dataclass(frozen=True)
class Questions:
    """A batch of triplets over their distinct images.

    Attributes:
        inputs: (U, 3, S, S) pixels of the images, or (U, D) their embeddings where the trunk is frozen.
        places: (N, 3), which of them are reference, left and right.
        right: (N,) bool, where people find right nearer.
    """

    inputs: Tensor
    places: Tensor
    right: Tensor


class PerceptualStep(nn.Module):
    """The adapted encoder together with its loss.

    Args:
        student: the encoder with its adapters or head.
        margin: of the hinge.
        embedded: whether inputs are the trunk's embeddings already, and only the head is left to do.
    """

    def __init__(self, student: Encoder, margin: float, *, embedded: bool) -> None:
        super().__init__()
        self.student, self.margin, self.embedded = student, margin, embedded

    def distances(self, questions: Questions) -> tuple[Tensor, Tensor]:
        """Cosine distances of references to left and right, (N,) each."""
        head: Any = self.student.head
        z = head(questions.inputs) if self.embedded else self.student(questions.inputs)
        unit = F.normalize(z.float(), dim=1)[questions.places]
        reference, left, right = unit.unbind(1)
        return 1 - (reference * left).sum(1), 1 - (reference * right).sum(1)

    def forward(self, questions: Questions) -> dict[str, Tensor]:
        """The hinge loss, averaged over the batch."""
        to_left, to_right = self.distances(questions)
        return {"hinge": hinge(to_left, to_right, questions.right, self.margin).mean()}


class Perceptual:
    """The task of the loop: batches of triplets, the loss, the agreement with people.

    Args:
        recipe: see `FinetuneRecipe`.
        encoder: what is adapted.
        train: triplets to train on; none of them is tied.
        held_out: those to judge on.
        device: where everything happens.
        report: is told of images that cannot be read.
    """

    unit = "triplet"

    def __init__(
        self,
        recipe: FinetuneRecipe,
        encoder: Encoder,
        train: Sequence[Triplet],
        held_out: Sequence[Triplet],
        *,
        device: torch.device,
        report: Callable[[str], None],
    ) -> None:
        if not train:
            raise DataError("no triplet is left to train on: hold out fewer for validation")
        self.recipe, self.samples, self.device = recipe, len(train), device
        self.total = recipe.total_steps(self.samples)
        self._train, self.held_out, self._report = train, held_out, report
        self.began_as = state_sha256(encoder)
        adapter = recipe.adapter
        if adapter.name == "lora":
            student = add_lora(
                encoder,
                r=adapter.r,
                alpha=adapter.alpha,
                dropout=adapter.dropout,
                targets=adapter.targets,
                seed=mix(recipe.seed, 5),
            )
        else:
            student = add_mlp(encoder, hidden=adapter.hidden, seed=mix(recipe.seed, 5))
        self._embedded = adapter.name == "mlp"
        self.module = PerceptualStep(student.to(device), recipe.margin, embedded=self._embedded)
        self._order = Shuffle(range(len(train)), recipe.seed)
        self._known: dict[Path, Tensor] = {}
        pre = encoder.card.preprocessing
        # A batch, and what is read ahead of it, at the least: else its images would be decoded twice.
        kept = max(_KEPT, 3 * (recipe.batch_size + _AHEAD))
        self._square = lru_cache(maxsize=kept)(lambda path: load_square(path, pre))

    def state(self, step: int) -> dict[str, float]:
        """Nothing changes along this training but the learning rate."""
        return {}

    def terms(self, module: Any, through: Any, batch: Questions, step: int) -> dict[str, Tensor]:
        """The terms of the loss on a batch."""
        terms: dict[str, Tensor] = module(batch)
        return terms

    def batches(self, spans: Iterator[range]) -> Iterator[Questions]:
        """A batch for each range of positions; a triplet with an image that cannot be read is replaced by another."""
        ranges: list[range] = []

        def positions() -> Iterator[tuple[int, int]]:
            for span in spans:
                ranges.append(span)
                yield from ((position, self._order(position)) for position in span)

        triplets: Any = prefetch(self._readable, positions(), ahead=_AHEAD)
        with closing(triplets):
            while (first := next(triplets, None)) is not None:
                read = [first, *(next(triplets) for _ in ranges.pop(0)[1:])]
                for _, messages in read:
                    for message in messages:
                        self._report(message)
                yield self._questions([triplet for triplet, _ in read])

    def _readable(self, wanted: tuple[int, int]) -> tuple[Triplet, list[str]]:
        position, index = wanted
        draw = random.Random(mix(self.recipe.seed, position, 6))
        messages: list[str] = []
        for _ in range(_MOST_BAD):
            triplet = self._train[index]
            try:
                self._look(triplet)
                return triplet, messages
            except ImageError as error:
                messages.append(str(error))
                index = draw.randrange(len(self._train))
        raise DataError(f"{_MOST_BAD} triplets in a row have an image that cannot be read, at last {messages[-1]}")

    def _look(self, triplet: Triplet) -> None:
        """Decode the images of a triplet, unless all that is wanted of them is known already."""
        for path in triplet.paths:
            if path not in self._known:
                self._square(path)

    def _questions(self, triplets: Sequence[Triplet]) -> Questions:
        paths = list(dict.fromkeys(path for triplet in triplets for path in triplet.paths))
        place = {path: index for index, path in enumerate(paths)}
        places = torch.tensor([[place[path] for path in triplet.paths] for triplet in triplets])
        right = torch.tensor([triplet.right_share > 0.5 for triplet in triplets])
        inputs = self._embed(paths) if self._embedded else self._pixels(paths)
        return Questions(inputs, places.to(self.device), right.to(self.device))

    def _pixels(self, paths: Sequence[Path]) -> Tensor:
        return stack_squares([self._square(path) for path in paths], self.device)

    def _embed(self, paths: Sequence[Path]) -> Tensor:
        """The frozen trunk's embeddings, each computed once in a run."""
        new = [path for path in paths if path not in self._known]
        trunk: Any = self.module.student.trunk
        normalize = self.module.student.normalize
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), evaluating(trunk):
            for start in range(0, len(new), _CHUNK):
                part = new[start : start + _CHUNK]
                # Always as many at once, as last digits depend on that, and a run that goes on meets other ones first.
                pixels = self._pixels([*part, *part[-1:] * (_CHUNK - len(part))])
                self._known.update(zip(part, trunk(normalize(pixels)), strict=False))
        return torch.stack([self._known[path] for path in paths])

    def validate(
        self, through: Any, rank: int, world: int, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], int]:
        """Sums over this process's share of the held-out triplets: agreement (ties count half) and hinge loss.

        Args:
            through: not used, as adapters are not sharded.
            rank: this process's number.
            world: how many share the triplets.
            stopped: asked after each batch whether to leave it at that.
        """
        mine = list(self.held_out)[rank::world]
        sums = {"agreement": 0.0, "hinge": 0.0}
        count = 0
        with evaluating(self.module), torch.no_grad():
            for start in range(0, len(mine), _CHUNK):
                readable = [triplet for triplet in mine[start : start + _CHUNK] if self._can_read(triplet)]
                if stopped():
                    break
                if not readable:
                    continue
                questions = self._questions(readable)
                to_left, to_right = self.module.distances(questions)
                right = torch.where(questions.right, to_right < to_left, to_left < to_right)
                sums["agreement"] += float((right + 0.5 * (to_left == to_right)).sum())
                sums["hinge"] += float(hinge(to_left, to_right, questions.right, self.recipe.margin).sum())
                count += len(readable)
        return (sums if count else {}), count

    def _can_read(self, triplet: Triplet) -> bool:
        try:
            self._look(triplet)
        except ImageError as error:
            self._report(str(error))
            return False
        return True

    def encoder(self, weights: dict[str, Tensor]) -> Encoder:
        """The result as an ordinary encoder, adapters merged."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        student = self.module.student.cpu()
        return (merge_lora_adapters(student) if self.recipe.adapter.name == "lora" else student).eval()


def split_triplets(triplets: Sequence[Triplet], held_out: int, seed: int) -> tuple[list[Triplet], list[Triplet]]:
    """Triplets to train on and to judge on, drawn at random; ties, which teach nothing, in neither.

    Raises:
        DataError: every triplet is tied.
        InputError: fewer triplets than are to be held out.
    """
    decided = [triplet for triplet in triplets if triplet.right_share != 0.5]
    if not decided:
        raise DataError(f"none of the {len(triplets)} triplets has a side that more people chose")
    if held_out >= len(decided):
        raise InputError(f"{held_out} triplets cannot be held out of {len(decided)}: set validation.images lower")
    order = list(range(len(decided)))
    random.Random(mix(seed, 7)).shuffle(order)
    return [decided[i] for i in sorted(order[held_out:])], [decided[i] for i in sorted(order[:held_out])]
