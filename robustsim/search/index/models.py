"""The models of an index: what it knows of them, and how they are loaded when they are needed."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from robustsim.encoders.card import EncoderCard, list_models
from robustsim.encoders.load import image_sha256
from robustsim.errors import InputError, ModelNotFoundError, SearchError
from robustsim.metric import RobustSim
from robustsim.search.rates import PHASH

if TYPE_CHECKING:
    import torch

#: A model's name -> what embeds by it.
Loader: TypeAlias = Callable[[str], RobustSim]

# What two cards have in common if the same picture gives the same embedding, beside the weights.
_DECISIVE = ("architecture", "embedding_dim", "preprocessing", "mean", "std", "head")


class Models:
    """One or more models, the first of which is the index's own.

    Attributes:
        cards: theirs.
        lines: the ways in which two pictures of the index can be compared: the names of its models, and `phash`.
        load: what loads them.

    Args:
        path: of the index, for messages.
        header: of the store.
        metrics: those that are loaded already, in the order of the header; None for one that is not.
        load: loads those that are not, when they are needed.

    Raises:
        SearchError: the header names no models, or a metric is another one than it names.
    """

    def __init__(
        self,
        path: str,
        header: Mapping[str, Any],
        metrics: Sequence[RobustSim | None],
        load: Loader,
    ) -> None:
        self._path, self.load = path, load
        try:
            self._names = [str(made["model"]) for made in header["models"]]
            self._weights = [str(made["weights"]) for made in header["models"]]
            where = f"the card in {path!r}"
            self.cards = tuple(
                EncoderCard.from_json(json.dumps(made["card"]), where=where) for made in header["models"]
            )
        except (KeyError, TypeError):
            raise SearchError(f"the index {path!r} does not say which models made it") from None
        self.lines = (*(card.name for card in self.cards), PHASH)
        self._metrics: list[RobustSim | None] = [None] * len(self.cards)
        if len(metrics) > len(self.cards):
            raise SearchError(
                f"the index {path!r} is of {len(self.cards)} models, and {len(metrics)} were given: further ones are "
                "named when an index is made (also, --also)"
            )
        for number, metric in enumerate(metrics):
            if metric is not None:
                self._metrics[number] = self._checked(number, metric)

    def __len__(self) -> int:
        return len(self.cards)

    def __getitem__(self, number: int) -> RobustSim:
        """What embeds.

        Raises:
            SearchError: there is no model of that name, or it is another one by now.
        """
        found = self._metrics[number]
        if found is None:
            name = self._names[number]
            try:
                metric = self.load(name)
            except ModelNotFoundError as error:
                how = "Index.open(path, also=...), --also" if number else "Index.open(path, metric), --model"
                raise SearchError(
                    f"the index {self._path!r} was made by {name!r}, which is not there: open it with the model "
                    f"({how}). {error}"
                ) from None
            found = self._metrics[number] = self._checked(number, metric)
        return found

    def share(self, other: "Models") -> None:
        """Take another index's own model as this one's, so that it is loaded once.

        Raises:
            SearchError: this one's is another; or as for `[0]`.
        """
        differs = [name for name in _DECISIVE if getattr(other.cards[0], name) != getattr(self.cards[0], name)]
        if differs or other._weights[0] != self._weights[0]:
            raise SearchError(
                f"the index {other._path!r} was made by {other.cards[0].name!r}, and {self._path!r} by "
                f"{self.cards[0].name!r}{'' if differs else ' of other weights, or another type'}: distances of two "
                "models do not compare. Make both by one model"
            )
        if self._metrics[0] is None:
            self._metrics[0] = other[0]

    def every(self) -> list[RobustSim]:
        """All of them."""
        return [self[number] for number in range(len(self))]

    def number(self, line: str) -> int | None:
        """The number of the model that a line is named after; None for the perceptual hash.

        Raises:
            InputError: the index has no such line.
        """
        if line not in self.lines:
            raise InputError(
                f"the index {self._path!r} does not compare by {line!r}; it has {', '.join(map(repr, self.lines))}. "
                "Further models are named when an index is made (also, --also)"
            )
        return None if line == PHASH else self.lines.index(line)

    def _checked(self, number: int, metric: RobustSim) -> RobustSim:
        """Refuse another model than the one that made the index."""
        card = self.cards[number]
        differs = [name for name in _DECISIVE if getattr(metric.card, name) != getattr(card, name)]
        if differs or image_sha256(metric.encoder) != self._weights[number]:
            what = f"another {' and '.join(differs).replace('_', ' ')}" if differs else "other weights, or another type"
            raise SearchError(
                f"the index {self._path!r} was made by {card.name!r}, and this {metric.card.name!r} has {what}: "
                "distances of two models do not compare. Open the index with the model that made it, or make another "
                "index"
            )
        return metric


def describe(
    models: "Sequence[RobustSim | str | os.PathLike[str]]", load: Loader
) -> tuple[list[dict[str, Any]], list[RobustSim]]:
    """What the header of a new index says of its models; and these, loaded.

    Raises:
        InputError: two of them have one name, or one that of the perceptual hash.
    """
    told, metrics = [], []
    for model in models:
        if isinstance(model, RobustSim):
            name, metric = model.card.name, model
        else:
            name, metric = _whole_name(model), load(os.fsdecode(model))
        card = metric.card
        told.append({"model": name, "card": json.loads(card.to_json()), "weights": image_sha256(metric.encoder)})
        metrics.append(metric)
    names = [metric.card.name for metric in metrics]
    if len({*names, PHASH}) <= len(names):
        raise InputError(
            f"the models of an index are told apart by the names in their cards, and these are {', '.join(names)}"
            f"{f'; {PHASH!r} is that of the perceptual hash' if PHASH in names else ''}"
        )
    return told, metrics


def _whole_name(model: "str | os.PathLike[str]") -> str:
    """A model's name as it is good from everywhere: a folder's with all of its path, unless the catalogue has it."""
    name = os.fsdecode(model)
    folder = os.path.abspath(os.path.expanduser(name))
    return folder if name not in list_models() and os.path.isdir(folder) else name


def loader(device: "str | torch.device | None") -> Loader:
    """Loads models by torch, on a device."""
    return lambda name: RobustSim.from_pretrained(name, device=device)
