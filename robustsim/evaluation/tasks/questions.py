"""Tasks from the data sets that `robustsim.data` reads."""

import os
from pathlib import Path
from typing import Any

from robustsim.data import DataSet
from robustsim.evaluation import statistics
from robustsim.evaluation.tasks.choices import ForcedChoice, OddOneOutTask, Question
from robustsim.evaluation.tasks.pictures import Photo, below
from robustsim.evaluation.tasks.ratings import JustNoticeable, Quality
from robustsim.images.files import printable


def two_afc(data: DataSet[Any]) -> ForcedChoice:
    """Two-alternative forced choice on triplets that [`robustsim.data`][robustsim.data] read."""
    return ForcedChoice(
        questions=tuple(
            Question(
                item.id,
                tuple(map(Photo, (item.reference, item.left, item.right))),
                item.right_share,
                item.group,
                _name(data, item.reference),
            )
            for item in data
        ),
        data=_about(data),
        preprocess=data.preprocess,
    )


def odd_one_out(data: DataSet[Any]) -> OddOneOutTask:
    """Odd one out on three images each, of THINGS or with votes."""
    return OddOneOutTask(
        questions=tuple(
            Question(item.id, tuple(map(Photo, item.images)), float(item.odd), item.group, shares=item.shares or ())
            for item in data
        ),
        data=_about(data),
        preprocess=data.preprocess,
    )


def just_noticeable(data: DataSet[Any]) -> JustNoticeable:
    """Just-noticeable differences on pairs."""
    return JustNoticeable(
        questions=tuple(
            Question(item.id, (Photo(item.a), Photo(item.b)), item.same_share, item.group, _name(data, item.a))
            for item in data
        ),
        data=_about(data),
        preprocess=data.preprocess,
    )


def quality(data: DataSet[Any]) -> Quality:
    """Correlation with opinion scores.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    statistics.scipy("stats")  # say now what would be missing at the end
    return Quality(
        questions=tuple(
            Question(
                item.id,
                (Photo(item.reference), Photo(item.image)),
                item.quality,
                item.group,
                _name(data, item.reference),
            )
            for item in data
        ),
        data=_about(data),
        preprocess=data.preprocess,
    )


def _name(data: DataSet[Any], path: Path) -> str:
    """A reference's name: questions of one reference are resampled together."""
    return printable(below(data.root, path))


def _about(data: DataSet[Any]) -> dict[str, Any]:
    return {
        "name": data.name,
        "root": os.path.abspath(data.root),
        "description": data.description,
        "scoring": data.scoring,
        "left_out": data.left_out,
        **({} if data.margin is None else {"margin": data.margin}),
    }
