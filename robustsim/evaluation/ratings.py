"""Tasks without right and wrong: distances are held against how people rated pairs of pictures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from robustsim.evaluation import statistics
from robustsim.evaluation.statistics import Array
from robustsim.evaluation.tasks import Question, Task


class Rated(Task):
    """A task whose single answers are worth nothing: only all of them together have a score."""

    pairs = ((0, 1),)
    distance_names = ("distance",)

    def scores(self, distances: Array, questions: "Sequence[Question]") -> Array:
        """No answer has a score of its own: NaN."""
        return np.full(len(questions), math.nan)


class JustNoticeable(Rated):
    """Just-noticeable differences: do small distances find the pairs in which people saw no difference?

    Answer: the share of people who saw none. Score: average precision, over all pairs.
    """

    name = "jnd"

    def results(self, columns: "dict[str, Array]", *, seed: int) -> dict[str, Any]:
        """Average precision overall and by group, and the mean of the groups."""
        return {
            "average_precision": by_group(statistics.average_precision, columns, seed),
        }


class Quality(Rated):
    """Opinion scores: do distances from the reference order pictures as people's ratings of them do?

    Answer: the rating, larger is better. Scores: rank correlations of Spearman and Kendall, and Pearson's after a
    logistic fit; 1 is perfect.
    """

    name = "quality"

    def results(self, columns: "dict[str, Array]", *, seed: int) -> dict[str, Any]:
        """The three correlations, overall and by group."""
        return {
            "spearman": by_group(statistics.spearman, columns, seed),
            "pearson": by_group(statistics.pearson_after_logistic, columns, seed),
            "kendall": by_group(statistics.kendall, columns, seed),
        }


def by_group(statistic: statistics.Statistic, columns: "dict[str, Array]", seed: int) -> dict[str, Any]:
    """A statistic of distances and answers overall, by group, and the mean of the groups, each with its interval."""
    distances, answers, groups = columns["distance"], columns["answer"], columns["group"]
    found: dict[str, Any] = statistics.statistic_interval(statistic, [(distances, answers)], seed=seed).to_dict()
    names = list(dict.fromkeys(groups.tolist()))
    if len(names) > 1:
        parts = [(distances[groups == name], answers[groups == name]) for name in names]
        found["mean_of_groups"] = statistics.statistic_interval(statistic, parts, seed=seed).to_dict()
        found["groups"] = {
            name: statistics.statistic_interval(statistic, [part], seed=seed).to_dict()
            for name, part in zip(names, parts, strict=True)
        }
    return found
