"""What is asked of a metric: questions of a few pictures each, and how answers are scored.

Every task comes down to the distances of certain pairs among a question's pictures.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from robustsim.attacks.objectives.decisions import OddOneOut, TwoAFC
from robustsim.data.items import Preprocess
from robustsim.errors import InputError
from robustsim.evaluation import statistics
from robustsim.evaluation.statistics import Array
from robustsim.evaluation.subjects import Subject
from robustsim.evaluation.tasks.pictures import Picture, Seen
from robustsim.images.inputs import stack_squares

Loss = Literal["ce", "margin"]


@dataclass(frozen=True, slots=True)
class Question:
    """Some pictures, and what people (or the ladder's builder) say of them.

    Attributes:
        id: unique in its task.
        pictures: in the task's order.
        answer: in the task's terms.
        group: what results are told apart by.
        cluster: questions of one cluster are resampled together; "" for a question by itself.
        duel: the two pictures whose order is attacked, by their places; ladder only.
        shares: of people who chose each picture, where that is known; odd one out only.
    """

    id: str
    pictures: tuple[Picture, ...]
    answer: float
    group: str = ""
    cluster: str = ""
    duel: tuple[int, int] = (1, 2)
    shares: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Questions of one kind, and what their answers are worth.

    Attributes:
        questions: at least one.
        data: what they were made of, for reports.
        preprocess: how pictures become the metric's square, where `evaluate` is told nothing else: `card`, or
            `squash` for whole and bilinear.
        passed_over: how many files of each kind a folder of pictures holds besides, which no figure depends on.
    """

    questions: tuple[Question, ...]
    data: dict[str, Any] = field(default_factory=dict)
    preprocess: Preprocess = "card"
    passed_over: dict[str, int] = field(default_factory=dict)

    #: What reports and the terminal call it.
    name: ClassVar[str]
    #: The pairs whose distances are wanted, by places among a question's pictures, and what to call them.
    pairs: ClassVar[tuple[tuple[int, int], ...]]
    distance_names: ClassVar[tuple[str, ...]]
    #: What of a question may be attacked; nothing where that has no meaning.
    perturbable: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not self.questions:
            raise InputError(f"{self.name}: there is nothing to ask")

    def check_attack(self, perturb: str | None) -> None:
        """Refuse an attack that has no meaning here.

        Args:
            perturb: what of a question is to be attacked; None for what is usual.

        Raises:
            InputError: nothing can be attacked, or not that.
        """
        if not self.perturbable:
            raise InputError(f"{self.name} has no decisions that an attack could turn: leave the attack out")
        if perturb not in (None, *self.perturbable):
            raise InputError(f"perturb={perturb!r} is none of {', '.join(self.perturbable)}, as {self.name} has them")

    @abstractmethod
    def scores(self, distances: Array, questions: "Sequence[Question]") -> Array:
        """(n, pairs) distances -> (n,): what each answer is worth."""

    @abstractmethod
    def results(self, columns: "dict[str, Array]", *, seed: int) -> dict[str, Any]:
        """The figures of a run without attack, from its per-item columns."""


class Choice(Task):
    """A task whose answers are right or wrong, so that its score is an accuracy and its decisions can be attacked."""

    def results(self, columns: "dict[str, Array]", *, seed: int) -> dict[str, Any]:
        """Accuracy, and that of each group."""
        return accuracies(columns["score"], columns, seed=seed)

    @abstractmethod
    def right(self, distances: Array, question: Question) -> bool:
        """Whether the decision that an attack would turn is the right one, ties excluded."""

    def attackable(self, question: Question) -> bool:
        """Whether there is a right decision at all."""
        return True

    @abstractmethod
    def attacked_places(self, question: Question, perturb: str) -> tuple[int, ...]:
        """Which pictures are perturbed."""

    @abstractmethod
    def objective(
        self,
        metric: Subject,
        questions: "Sequence[Question]",
        seen: "Sequence[Sequence[Seen]]",
        perturb: Any,
        loss: Loss,
    ) -> "TwoAFC | OddOneOut":
        """What the attacker maximises on these questions."""


def accuracies(scores: Array, columns: "dict[str, Array]", *, seed: int) -> dict[str, Any]:
    """Mean scores overall, by group, and the mean of groups of unlike sizes, each with its interval."""
    clusters, groups = columns["cluster"], columns["group"]
    found: dict[str, Any] = {"accuracy": statistics.mean_interval(scores, clusters=clusters, seed=seed).to_dict()}
    names, counts = list(dict.fromkeys(groups.tolist())), set(Counter(groups.tolist()).values())
    if len(names) > 1:
        if len(counts) > 1:
            found["mean_of_groups"] = statistics.mean_of_groups(scores, groups, clusters=clusters, seed=seed).to_dict()
        rows = {name: groups == name for name in names}
        found["groups"] = {
            name: statistics.mean_interval(scores[part], clusters=clusters[part], seed=seed).to_dict()
            for name, part in rows.items()
        }
    return found


class ForcedChoice(Choice):
    """Two-alternative forced choice: which of two looks more like the reference? Ties count one half.

    Pictures: reference, left, right. Answer: the share of people who found right nearer. With majority scoring it
    counts as 0 or 1; with scoring by share an answer is worth the share of people who gave it (BAPPS).
    """

    name = "2afc"
    pairs = ((0, 1), (0, 2))
    distance_names = ("distance_left", "distance_right")
    perturbable = ("reference", "left", "right", "all")

    def scores(self, distances: Array, questions: "Sequence[Question]") -> Array:
        """See `Task`."""
        right_share = np.array([question.answer for question in questions])
        if self.data.get("scoring", "majority") == "majority":
            right_share = np.where(right_share == 0.5, 0.5, right_share > 0.5)
        left, right = distances.T
        return np.where(left == right, 0.5, np.where(right < left, right_share, 1 - right_share))

    def attackable(self, question: Question) -> bool:
        """Not where people are of two minds."""
        return question.answer != 0.5

    def right(self, distances: Array, question: Question) -> bool:
        """See `Task`."""
        left, right = distances
        return bool(right < left if question.answer > 0.5 else left < right)

    def attacked_places(self, question: Question, perturb: str) -> tuple[int, ...]:
        """See `Task`."""
        return THREE[perturb]

    def objective(
        self,
        metric: Subject,
        questions: "Sequence[Question]",
        seen: "Sequence[Sequence[Seen]]",
        perturb: Any,
        loss: Loss,
    ) -> TwoAFC:
        """See `Task`."""
        labels = torch.tensor([int(question.answer > 0.5) for question in questions], device=metric.device)
        return choice_between(metric, [row[:3] for row in seen], labels, perturb, loss)


class OddOneOutTask(Choice):
    """Which of three is the odd one: the one that is not in the most similar pair. Answer: its place, 0 to 2.

    With majority scoring it counts 1 and the others 0; with scoring by share an answer is worth the share of people
    who gave it. Pairs that tie share what their answers are worth.
    """

    name = "odd-one-out"
    pairs = ((1, 2), (0, 2), (0, 1))  # in the order of the image that each leaves out
    distance_names = ("distance_without_1", "distance_without_2", "distance_without_3")
    perturbable = ("odd", "all")

    def scores(self, distances: Array, questions: "Sequence[Question]") -> Array:
        """See `Task`."""
        nearest = distances == distances.min(1, keepdims=True)
        worth = np.eye(3)[[int(question.answer) for question in questions]]
        if self.data.get("scoring", "majority") == "share":
            worth = np.array([question.shares or one for question, one in zip(questions, worth, strict=True)])
        return np.asarray((nearest * worth).sum(1) / nearest.sum(1))

    def attackable(self, question: Question) -> bool:
        """Not where people are of two minds."""
        return question.shares.count(max(question.shares, default=0)) < 2

    def right(self, distances: Array, question: Question) -> bool:
        """See `Task`."""
        odd = int(question.answer)
        return bool(distances[odd] < min(np.delete(distances, odd)))

    def attacked_places(self, question: Question, perturb: str) -> tuple[int, ...]:
        """See `Task`."""
        return (0, 1, 2) if perturb == "all" else (int(question.answer),)

    def objective(
        self,
        metric: Subject,
        questions: "Sequence[Question]",
        seen: "Sequence[Sequence[Seen]]",
        perturb: Any,
        loss: Loss,
    ) -> OddOneOut:
        """See `Task`."""
        turned = []
        for question, row in zip(questions, seen, strict=True):
            odd = int(question.answer)
            turned.append([row[odd], *(row[place] for place in range(3) if place != odd)])
        odd_one, first, second = (
            _shown(metric, [row[place] for row in turned], perturb == "all" or place == 0) for place in range(3)
        )
        return OddOneOut(odd=odd_one, others=(first, second), perturb=perturb, loss=loss, **metric.objective_options)


#: The places of a triplet that are perturbed.
THREE = {"reference": (0,), "left": (1,), "right": (2,), "all": (0, 1, 2)}


def choice_between(
    metric: Subject, seen: "Sequence[Sequence[Seen]]", labels: Tensor, perturb: Any, loss: Loss
) -> TwoAFC:
    """Reference, left and right of each question as an objective."""
    shown = [_shown(metric, [row[place] for row in seen], place in THREE[perturb]) for place in range(3)]
    reference, left, right = shown
    return TwoAFC(
        reference=reference,
        left=left,
        right=right,
        labels=labels,
        perturb=perturb,
        loss=loss,
        **metric.objective_options,
    )


def _shown(metric: Subject, seen: Sequence[Seen], attacked: bool) -> Tensor:
    """Pixels of what is attacked, (N, 3, S, S), and of what a metric of pairs looks at; embeddings of the rest."""
    if attacked:
        squares = [one.square for one in seen if one.square is not None]
        return stack_squares(squares, metric.device)
    return codes(metric, seen)


def codes(metric: Subject, seen: Sequence[Seen]) -> Tensor:
    """What the metric's distance compares: embeddings (N, D), or pixels (N, 3, S, S)."""
    found = [one.code for one in seen]
    return torch.stack(found) if metric.embed is not None else stack_squares(found, metric.device)
