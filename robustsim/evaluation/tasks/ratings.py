"""Tasks without right and wrong: distances are held against how people rated pairs of pictures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from robustsim.evaluation import statistics
from robustsim.evaluation.statistics import Array
from robustsim.evaluation.tasks.choices import Question, Task


class Rated(Task):
    """A task whose single answers are worth nothing: only all of them together have a score."""

    pairs = ((0, 1),)
    distance_names = ("distance",)

    def scores(self, distances: Array, questions: "Sequence[Question]") -> Array:
        """No answer has a score of its own: NaN."""
        return np.full(len(questions), math.nan)

    def _figure(self, statistic: statistics.Statistic, columns: "dict[str, Array]", seed: int) -> dict[str, Any]:
        both = (columns["distance"], columns["answer"])
        return statistics.by_group(statistic, both, columns["group"], columns["cluster"], seed=seed)


class JustNoticeable(Rated):
    """Just-noticeable differences: do small distances find the pairs in which people saw no difference?

    Answer: the share of people who saw none. Score: average precision, over all pairs.
    """

    name = "jnd"

    def results(self, columns: "dict[str, Array]", *, seed: int) -> dict[str, Any]:
        """Average precision overall and by group, and the mean of the groups."""
        return {
            "average_precision": self._figure(statistics.average_precision, columns, seed),
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
            "spearman": self._figure(statistics.spearman, columns, seed),
            "pearson": self._figure(statistics.pearson_after_logistic, columns, seed),
            "kendall": self._figure(statistics.kendall, columns, seed),
        }
