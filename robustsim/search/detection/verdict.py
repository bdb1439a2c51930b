"""What detection says of a picture, and by which evidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from robustsim.search.detection.rule import Reason


class Neighbour(NamedTuple):
    """A picture of a bank that is near.

    Attributes:
        path: absolute name of its file; "" if it was added without one.
        id: SHA-256 of the file's content, or of the pixels where there is no file.
        distance: from the picture that was asked for, of the two views that are nearest.
        label: what it was added with.
        query_view: which view of the picture that was asked for; "" for the whole.
        view: which view of the bank's picture.
    """

    path: str
    id: str
    distance: float
    label: str | None
    query_view: str
    view: str


@dataclass(frozen=True)
class Verdict:
    """What is known of a picture.

    Attributes:
        bank: its class, the name of a bank; None if it is unknown.
        flagged: whether it is to be kept out.
        reasons: all that flag it; else what lets it pass.
        evidence: for each bank the nearest pictures, the nearest first: as many as vote.
        scores: of each detector.
    """

    bank: str | None
    flagged: bool
    reasons: tuple[Reason, ...]
    evidence: Mapping[str, tuple[Neighbour, ...]]
    scores: Mapping[str, float]

    def described(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "class": self.bank,
            "flagged": self.flagged,
            "reasons": [{"kind": one.kind, "names": list(one.names)} for one in self.reasons],
            "evidence": {name: [near._asdict() for near in some] for name, some in self.evidence.items()},
            "scores": dict(self.scores),
        }
