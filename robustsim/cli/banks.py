"""What `detect` and `filter` share: banks, the rule and other detectors, as options."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsim.cli import output
from robustsim.errors import InputError

if TYPE_CHECKING:
    from robustsim.search import Detector, ScoreDetector

_UNKNOWN = ("flag", "pass")

_BANK = typer.Option("--bank", metavar="NAME=INDEX", help="Pictures of a class, as safe or unsafe; repeatable.")
BankOption = Annotated[list[str], _BANK]
BanksOption = Annotated[list[str] | None, _BANK]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="The model of the banks, where it is not found by its name.")
]
SafeOption = Annotated[
    list[str] | None,
    typer.Option("--safe", metavar="NAME", help="A class that is not flagged; safe if not given; repeatable."),
]
WithinOption = Annotated[
    float | None,
    typer.Option("--within", min=0, metavar="DISTANCE", help="Only pictures at most so far away count."),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        "--false-positives",
        metavar="RATE",
        help="Only those that match where such a share of pairs of different pictures may, as 1e-5.",
    ),
]
VotesOption = Annotated[
    int,
    typer.Option("--votes", min=1, metavar="K", help="The class of most of the K nearest, in place of the nearest."),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="NAME[=D]", help="What is within D of this bank passes; --within if not given; repeatable."
    ),
]
DenyOption = Annotated[
    list[str] | None,
    typer.Option("--deny", metavar="NAME[=D]", help="What is within D of this bank is flagged, before all else."),
]
UnknownOption = Annotated[
    str | None,
    typer.Option(
        "--unknown",
        metavar="flag|pass",
        help="What has no picture within the distance; if not given, flagged where a bank is safe, else passed.",
    ),
]
DetectorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--detector",
        metavar="MODULE:NAME[=T]",
        help="A function of embeddings or pixels that gives scores, and flags from T on, 0.5; repeatable.",
    ),
]
LaionOption = Annotated[
    str | None,
    typer.Option("--laion-head", metavar="FILE[=T]", help="LAION's NSFW head, .pth, .safetensors or .npz; T is 0.5."),
]
LaionModelOption = Annotated[
    str | None,
    typer.Option("--laion-model", metavar="MODEL", help="What embeds for it; clip-vit-l-14 if not given."),
]


def check_detectors(words: Sequence[str], laion_head: str | None, laion_model: str | None) -> None:
    """Refuse what is no function's name, and a model of a head that is not there.

    Raises:
        BadParameter: it is.
    """
    if laion_model is not None and laion_head is None:
        raise typer.BadParameter("--laion-model goes with --laion-head")
    for word in words:
        if ":" not in word:
            raise typer.BadParameter(f"--detector {word!r}: write MODULE:NAME, or MODULE:NAME=THRESHOLD")


@dataclass
class Wanted:
    """The options, as they were given."""

    banks: Sequence[str]
    safe: Sequence[str] | None = None
    within: float | None = None
    false_positives: float | None = None
    votes: int = 1
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    unknown: str | None = None
    detectors: Sequence[str] = ()
    laion_head: str | None = None
    laion_model: str | None = None
    views: Sequence[str] = ()
    model: str | None = None
    device: str | None = None
    _paths: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse wrong words before anything is loaded.

        Raises:
            BadParameter: they are.
        """
        if self.within is not None and self.false_positives is not None:
            raise typer.BadParameter("--within and --false-positives exclude each other")
        if self.unknown not in (None, *_UNKNOWN):
            raise typer.BadParameter(f"--unknown {self.unknown!r} is none of {', '.join(_UNKNOWN)}")
        check_detectors(self.detectors, self.laion_head, self.laion_model)
        for word in self.banks:
            name, equals, path = word.partition("=")
            if not (name and equals and path):
                raise typer.BadParameter(f"--bank {word!r}: write NAME=INDEX, as unsafe=unsafe.index")
            if name in self._paths:
                raise typer.BadParameter(f"--bank names {name!r} twice")
            self._paths[name] = path
        for option, words in (("--allow", self.allow), ("--deny", self.deny)):
            for name in _distances(option, words):
                if name not in self._paths:
                    raise typer.BadParameter(f"{option} {name!r} is no bank: they are {', '.join(self._paths)}")

    def make(self) -> "Detector":
        """The detector, with models loaded.

        Raises:
            RobustSimError: as `Detector` and `open_banks` raise.
        """
        from robustsim.search import Detector, Rule, open_banks

        others = [_other(word) for word in self.detectors]  # what cannot be imported is told first
        banks = open_banks(self._paths, model=self.model, device=self.device)
        options: dict[str, Any] = {} if self.safe is None else {"safe": tuple(self.safe)}
        rule = Rule(
            votes=self.votes,
            within=self.within,
            allow=_distances("--allow", self.allow),
            deny=_distances("--deny", self.deny),
            flag_unknown=None if self.unknown is None else self.unknown == "flag",
            **options,
        )
        if self.laion_head is not None:
            model = next(iter(banks.values())).card.name
            others.append(_laion(self.laion_head, self.laion_model, model, self.device))
        made = Detector(banks, rule, others, views=self.views, false_positives=self.false_positives)
        output.settle(made.card)
        output.tell_cropping(made.card)
        if self.false_positives is not None and isinstance(made.rule.within, dict):
            output.note("within " + ", ".join(f"{name} {away:.4f}" for name, away in made.rule.within.items()))
        return made


def one_detector(
    word: str | None, laion_head: str | None, laion_model: str | None, bank_model: str, device: "str | None"
) -> "ScoreDetector | None":
    """What `--detector` or `--laion-head` names, if one of them does.

    Raises:
        RobustSimError: it cannot be imported or loaded.
    """
    if word is not None:
        return _other(word)
    return None if laion_head is None else _laion(laion_head, laion_model, bank_model, device)


def _other(word: str) -> "ScoreDetector":
    from robustsim.baselines.callables import find_object
    from robustsim.search import ScoreDetector

    path, threshold = _with_number(word)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where people keep the module they name
    function = find_object(path, what="detector")
    return ScoreDetector(function, 0.5 if threshold is None else threshold, name=path)


def _laion(word: str, model: str | None, bank_model: str, device: "str | None") -> "ScoreDetector":
    from robustsim.search import LaionHead, ScoreDetector

    path, threshold = (word, None) if os.path.exists(word) else _with_number(word)
    head = LaionHead.load(path)
    chosen = model or head.model
    metric = None if chosen == head.model == bank_model else output.load_metric(chosen, device)
    return ScoreDetector(head, 0.5 if threshold is None else threshold, name="laion", metric=metric)


def _distances(option: str, words: Sequence[str]) -> dict[str, float | None]:
    """What `--allow` and `--deny` say: NAME or NAME=D."""
    found: dict[str, float | None] = {}
    for word in words:
        name, equals, number = word.rpartition("=") if "=" in word else (word, "", "")
        if name in found:
            raise typer.BadParameter(f"{option} names {name!r} twice: give it one distance")
        try:
            found[name] = float(number) if equals else None
        except ValueError:
            raise typer.BadParameter(f"{option} {word!r}: {number!r} is no distance") from None
    return found


def _with_number(word: str) -> tuple[str, float | None]:
    """WORD=NUMBER; a word that ends otherwise is whole."""
    name, equals, number = word.rpartition("=")
    try:
        return (name, float(number)) if equals else (word, None)
    except ValueError:
        raise InputError(f"{word!r}: {number!r} is no threshold") from None
