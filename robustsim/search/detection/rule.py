"""The rule of detection by neighbours, a pure function of distances: no index, no model, no files."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robustsim.errors import EncodingError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The class that is not flagged, if nothing else is said.
SAFE = "safe"
#: Distances that differ by no more are equal: float16, which an index keeps, moves each of two by up to half of it.
TIE = 5e-4

_FARTHEST = 2**0.5
_BLOCK = 1024  # queries compared at a time


class Reason(NamedTuple):
    """Why a picture is flagged, or is not.

    Attributes:
        kind: "nearest" or "votes": the class; "tie": classes that distances or votes do not tell apart, of which one
            that is flagged was taken; "unknown": no picture that votes is within the distance; "deny", "allow":
            pictures of such banks are; "detector": scores that reached their thresholds.
        names: of the banks or detectors.
    """

    kind: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.kind, ", ".join(self.names))).rstrip()


class Decision(NamedTuple):
    """What the rule says of a picture.

    Attributes:
        bank: its class, the name of a bank; None if it is unknown.
        flagged: whether it is to be kept out.
        reasons: all that flag it; else what lets it pass.
    """

    bank: str | None
    flagged: bool
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Rule:
    """From the distances to the pictures of banks to a class, and to whether that is flagged.

    As it is, it is the rule of the nearest neighbour: the class is the bank of the nearest picture of all, and every
    class but `safe` is flagged. In this order:

    1. a picture of a `deny` bank within its distance flags, whatever else is near;
    2. one of an `allow` bank within its distance lets pass, whatever the classes and detectors say;
    3. a detector whose score reaches its threshold flags;
    4. the class of the nearest pictures flags, if it is not safe.

    What is doubtful is never safe by silence. Of distances that differ by no more than `tie`, those to pictures that
    are not safe count as the nearer ones, and limits of `deny` and of what is not safe are wider by it.
    Of classes with equally many votes, one that is not safe wins, the one with the nearest picture if there are
    several.

    Banks of `allow` and `deny` are lists and do not vote; a safe one that is in `allow` does both. The same index may
    be given under two names.

    Attributes:
        safe: classes that are not flagged.
        votes: how many of the nearest pictures of all classes vote; the class with the most votes wins.
        within: how far away one that votes may be, for all banks or by bank; None for any distance. Nothing within it:
            the class is unknown.
        allow: distance of each bank that lets pass; None for `within`.
        deny: distance of each bank that flags; None for `within`.
        flag_unknown: whether an unknown picture is flagged. None: if a bank of a safe class votes, as what is wanted is
            to be shown then; not if there is none, as what is on no list passes.
        tie: the difference up to which distances are equal.
    """

    safe: Sequence[str] = (SAFE,)
    votes: int = 1
    within: "float | Mapping[str, float] | None" = None
    allow: Mapping[str, float | None] = field(default_factory=dict)
    deny: Mapping[str, float | None] = field(default_factory=dict)
    flag_unknown: bool | None = None
    tie: float = TIE

    def check(self, banks: Collection[str]) -> None:
        """Refuse what cannot be decided, or would always be decided the same way.

        Args:
            banks: the names there are.

        Raises:
            InputError: a name that is no bank's, or in two roles that exclude each other; a number out of its range; no
                distance for a list; or classes that are all safe, or all not, without `within`.
        """
        known = list(banks)
        if not known:
            raise InputError("detection takes one bank of pictures at least")
        if isinstance(self.safe, str):
            raise InputError(f"safe takes a list of names, not {self.safe!r}")
        if isinstance(self.votes, bool) or not isinstance(self.votes, (int, np.integer)) or self.votes < 1:
            raise InputError(f"votes must be a whole number, at least 1, not {self.votes!r}")
        if not 0 <= self.tie < _FARTHEST:
            raise InputError(f"tie must be a difference of distances, from 0 to 1.414, not {self.tie}")
        safe = [] if tuple(self.safe) == (SAFE,) else self.safe
        within = self.within if isinstance(self.within, Mapping) else {}
        for role, names in (("safe", safe), ("allow", self.allow), ("deny", self.deny), ("within", within)):
            for name in names:
                if name not in known:
                    raise InputError(f"{role} names {name!r}, and the banks are {', '.join(map(repr, known))}")
        for name in self.deny:
            if name in self.allow or name in self.safe:
                other = "allow" if name in self.allow else "safe"
                raise InputError(f"the bank {name!r} is in deny and in {other}, which exclude each other")
        for name in known:
            limit = self._limit(name)
            if limit is not None and not 0 <= limit <= _FARTHEST:
                raise InputError(f"distance must be from 0 to 1.414, not {limit} ({name})")
            if limit is None and (name in self.allow or name in self.deny):
                raise InputError(f"the bank {name!r} is a list, and needs a distance: its own, or within")
        voters = self.voters(known)
        unlimited = [name for name in voters if math.isinf(self._votes_within(name))]
        if unlimited and len({name in self.safe for name in voters}) == 1:
            kind = "safe" if voters[0] in self.safe else "flagged"
            raise InputError(
                f"of the banks that vote ({', '.join(map(repr, voters))}) each is {kind}, so that every picture would "
                f"be: give a bank of another kind, say which classes are safe (they are {', '.join(self.safe)}), or up "
                "to which distance pictures count (within)"
            )

    def voters(self, banks: Collection[str]) -> list[str]:
        """Those of the banks that are classes."""
        return [name for name in banks if name not in self.deny and (name not in self.allow or name in self.safe)]

    def decide(self, distances: Mapping[str, Sequence[float]], detectors: Sequence[str] = ()) -> Decision:
        """The decision on one picture.

        Args:
            distances: for each bank those to its nearest pictures, ascending: `votes` of them at least, or all.
            detectors: the names of those that flag it.

        Raises:
            EncodingError: a distance is not finite.
        """
        if not all(math.isfinite(away) for some in distances.values() for away in some):
            raise EncodingError("a distance is not finite, and nothing can be decided by it")
        bank, reason = self._vote(distances)
        denied = self._listed(self.deny, distances, self.tie)  # an exact copy is not at 0 in float16
        allowed = () if denied else self._listed(self.allow, distances, 0)
        if allowed:
            return Decision(bank, False, (Reason("allow", allowed),))
        reasons = [Reason("deny", denied)] if denied else []
        if detectors:
            reasons.append(Reason("detector", tuple(detectors)))
        if self._flags_unknown(distances) if bank is None else bank not in self.safe:
            reasons.append(reason)
        return Decision(bank, bool(reasons), tuple(reasons) or (reason,))

    def _limit(self, name: str) -> float | None:
        """How far away a picture of a bank may be to count."""
        own = self.allow.get(name) if name in self.allow else self.deny.get(name)
        if own is not None:
            return own
        return self.within.get(name) if isinstance(self.within, Mapping) else self.within

    def _votes_within(self, name: str) -> float:
        # A safe bank that is in `allow` too has a distance of its own for that.
        limit = self.within.get(name) if isinstance(self.within, Mapping) else self.within
        return math.inf if limit is None else limit + (0 if name in self.safe else self.tie)

    def _flags_unknown(self, banks: Collection[str]) -> bool:
        if self.flag_unknown is not None:
            return self.flag_unknown
        return any(name in self.safe for name in self.voters(banks))

    def _listed(self, names: Collection[str], distances: Mapping[str, Sequence[float]], more: float) -> tuple[str, ...]:
        found = []
        for name in names:
            limit = self._limit(name)
            if limit is not None and any(away <= limit + more for away in distances.get(name, ())[:1]):
                found.append(name)
        return tuple(found)

    def _vote(self, distances: Mapping[str, Sequence[float]]) -> tuple[str | None, Reason]:
        near = [
            (float(away), name)
            for name in self.voters(distances)
            for away in distances[name][: self.votes]
            if away <= self._votes_within(name)
        ]
        if not near:
            return None, Reason("unknown")
        near.sort(key=lambda one: one[0])
        last = near[min(self.votes, len(near)) - 1][0]
        sure = [one for one in near if one[0] < last - self.tie]
        equal = [one for one in near if last - self.tie <= one[0] <= last + self.tie]
        # Stable: of each kind the nearest come first.
        doubtful = sure + sorted(equal, key=lambda one: one[1] in self.safe)
        hopeful = sure + sorted(equal, key=lambda one: one[1] not in self.safe)
        winners = self._most_votes(doubtful[: self.votes])
        if winners[0] in self.safe:  # several that are not safe share what is doubtful, which each might have alone
            for own in dict.fromkeys(name for _, name in equal if name not in self.safe):
                first = sure + sorted(equal, key=lambda one: (one[1] != own, one[1] in self.safe))
                if (others := self._most_votes(first[: self.votes]))[0] not in self.safe:
                    winners = list(dict.fromkeys([*others, *winners]))
                    break
        names = dict.fromkeys([*winners, *self._most_votes(hopeful[: self.votes])])
        if len(names) > 1:
            return winners[0], Reason("tie", tuple(names))
        return winners[0], Reason("nearest" if self.votes == 1 else "votes", (winners[0],))

    def _most_votes(self, near: Sequence[tuple[float, str]]) -> list[str]:
        """The classes with the most votes, first those that are not safe, of these the nearest first."""
        counts = Counter(name for _, name in near)
        most = max(counts.values())
        leading = [name for name, count in counts.items() if count == most]  # by the nearest of each
        return sorted(leading, key=lambda name: name in self.safe)


def decide_embeddings(
    queries: "NDArray[Any]", banks: "Mapping[str, NDArray[Any]]", rule: Rule | None = None
) -> list[Decision]:
    """The rule on embeddings, without an index: what an evaluation needs. Distances are `sqrt(1 - cos)`, in float64.

    Args:
        queries: (N, D) of any floating type; a tensor on the CPU will do.
        banks: for each bank (M, D), M at least 1.
        rule: that of the nearest neighbour if not given.

    Raises:
        InputError: an embedding is not finite, or nothing but zeros; a shape does not fit; or as `Rule.check` says.
    """
    from robustsim.search.scan.codes import unit

    chosen = rule or Rule()
    chosen.check(banks)
    asked = unit(_matrix(queries, "the queries"))
    rows = {name: unit(_matrix(bank, f"the bank {name!r}")) for name, bank in banks.items()}
    for name, bank in rows.items():
        if not len(bank) or bank.shape[1] != asked.shape[1]:
            raise InputError(
                f"the bank {name!r} is {tuple(bank.shape)}, and the queries are {tuple(asked.shape)}: a bank holds one "
                "row at least, of as many values"
            )
    decisions: list[Decision] = []
    for start in range(0, len(asked), _BLOCK):
        some = asked[start : start + _BLOCK]
        nearest = {name: _nearest(some, bank, chosen.votes) for name, bank in rows.items()}
        decisions += [
            chosen.decide({name: found[at].tolist() for name, found in nearest.items()}) for at in range(len(some))
        ]
    return decisions


def _nearest(queries: "NDArray[np.float64]", rows: "NDArray[np.float64]", count: int) -> "NDArray[np.float64]":
    """The `count` least distances of each query, ascending; (N, at most count)."""
    away: NDArray[np.float64] = np.sqrt(np.clip(1 - queries @ rows.T, 0, 2))
    if count < away.shape[1]:
        away = np.partition(away, count - 1, axis=1)[:, :count]
    return np.sort(away, axis=1)


def _matrix(rows: Any, what: str) -> "NDArray[Any]":
    found = np.asarray(rows)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
        raise InputError(f"{what} must be embeddings, floating point (N, D), not {found.dtype} {found.shape}")
    return found
