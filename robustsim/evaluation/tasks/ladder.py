"""The distortion ladder: a test that nobody has to label.

Photographs are distorted by known, growing amounts. A metric should find the photograph farther from the stronger
distortion than from the weaker one of the same kind, with and without somebody tampering with it.
"""

import os
import random
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustsim.attacks.objectives.decisions import TwoAFC
from robustsim.errors import InputError
from robustsim.evaluation.statistics import Array
from robustsim.evaluation.subjects import Subject
from robustsim.evaluation.tasks.choices import THREE, Choice, Loss, Question, choice_between
from robustsim.evaluation.tasks.distortions import DISTORTIONS, LEVELS, Distorted, LadderPhoto, seed_of
from robustsim.evaluation.tasks.pictures import Seen, draw_files
from robustsim.images.files import printable

_STEPS = tuple(combinations(range(LEVELS), 2))


class Ladder(Choice):
    """Order the distortions of a photograph by their strength.

    Pictures: the photograph, and its distortions at levels 1 to 5. Score: of the ten pairs of levels, the share that is
    ordered rightly; ties count one half. Under attack, one pair of levels is put to the metric (`duel`), drawn at
    random for each photograph and kind: reference the photograph, left the weaker, right the stronger distortion.
    """

    name = "ladder"
    pairs = tuple((0, level) for level in range(1, LEVELS + 1))
    distance_names = tuple(f"distance_{level}" for level in range(1, LEVELS + 1))
    perturbable = ("reference", "left", "right", "all")

    def scores(self, distances: Array, questions: Sequence[Question]) -> Array:
        """See `robustsim.evaluation.tasks.choices.Task`."""
        weak, strong = (distances[:, list(side)] for side in zip(*_STEPS, strict=True))
        return np.asarray(((strong > weak) + 0.5 * (strong == weak)).mean(1))

    def right(self, distances: Array, question: Question) -> bool:
        """See `robustsim.evaluation.tasks.choices.Task`."""
        weak, strong = question.duel
        return bool(distances[weak - 1] < distances[strong - 1])

    def attacked_places(self, question: Question, perturb: str) -> tuple[int, ...]:
        """See `robustsim.evaluation.tasks.choices.Task`."""
        return tuple((0, *question.duel)[place] for place in THREE[perturb])

    def objective(
        self, metric: Subject, questions: Sequence[Question], seen: Sequence[Sequence[Seen]], perturb: Any, loss: Loss
    ) -> TwoAFC:
        """See `robustsim.evaluation.tasks.choices.Task`."""
        rows = [[row[place] for place in (0, *question.duel)] for question, row in zip(questions, seen, strict=True)]
        labels = torch.zeros(len(rows), dtype=torch.int64, device=metric.device)  # the weaker one is nearer
        return choice_between(metric, rows, labels, perturb, loss)


def distortion_ladder(
    folder: "str | os.PathLike[str]",
    *,
    photographs: int | None = None,
    distortions: Sequence[str] = DISTORTIONS,
    seed: int = 0,
    follow_links: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> Ladder:
    """The ladder over the images below a folder.

    Args:
        folder: photographs; see `robustsim.images.find_images` for what counts.
        photographs: how many of them, drawn at random; all if not given or if there are fewer.
        distortions: which kinds.
        seed: of that draw, of the distortions, and of the pairs of levels that are attacked.
        follow_links: walk linked folders too.
        tell: called with a line for people if files of the folder are passed over.

    Raises:
        ImageError: there is no such folder, or no image in it.
        InputError: an unknown kind of distortion.
    """
    for kind in distortions:
        if kind not in DISTORTIONS:
            raise InputError(f"{kind!r} is none of the distortions {', '.join(DISTORTIONS)}")
    root = Path(folder)
    files, passed_over = draw_files(root, photographs, seed, follow_links=follow_links, tell=tell)
    questions = []
    for file in files:
        name = printable(file)
        own = seed_of(name, seed)
        duels = random.Random(own)
        for kind in distortions:
            steps = (Distorted(root / file, kind, level, own) for level in range(1, LEVELS + 1))
            weak, strong = duels.choice(_STEPS)
            questions.append(
                Question(
                    id=f"{name} {kind}",
                    pictures=(LadderPhoto(root / file), *steps),
                    answer=1.0,
                    group=kind,
                    cluster=name,
                    duel=(weak + 1, strong + 1),
                )
            )
    about = {
        "name": root.resolve().name,
        "root": os.path.abspath(root),
        "description": f"{len(files)} photographs, {len(distortions)} kinds of distortion at {LEVELS} levels",
        "photographs": len(files),
        "distortions": list(distortions),
        "seed": seed,
    }
    return Ladder(questions=tuple(questions), data=about, passed_over=dict(passed_over))
