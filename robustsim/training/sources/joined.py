"""Several sources as one."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from PIL import Image

from robustsim.training.sources.base import Source


class JoinedSource(Source):
    """The images of several sources, one source after the other.

    It has labels where all sources name the same classes in the same order; elsewhere the same label would stand for
    different things.

    Args:
        parts: the sources, at least one.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = list(parts)
        self._ends = list(accumulate(len(one) for one in parts))
        named = parts[0].classes
        classes = named if all(one.classes == named for one in parts) else None
        passed_over: Counter[str] = Counter()
        for one in parts:
            passed_over.update(one.passed_over)
        problems = [problem for one in parts for problem in one.problems]
        super().__init__(" and ".join(one.name for one in parts), classes, (), problems, passed_over)

    def __len__(self) -> int:
        return self._ends[-1]

    def _part(self, index: int) -> tuple[Source, int]:
        at = bisect_right(self._ends, index)
        return self._parts[at], index - (self._ends[at - 1] if at else 0)

    def place(self, index: int) -> str:
        """As the source has it that the image is of."""
        source, own = self._part(index)
        return source.place(own)

    def label(self, index: int) -> int | None:
        """As the source has it that the image is of; None where they have different classes."""
        source, own = self._part(index)
        return None if self.classes is None else source.label(own)

    def _image(self, index: int) -> Image.Image:
        source, own = self._part(index)
        return source.read(own).image
