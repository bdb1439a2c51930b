"""Cards: all there is to know about an encoder, as data; and the catalogue of the named ones."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import isfinite
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from robustsim.encoders.calibration import Calibration
from robustsim.encoders.tail import Tail
from robustsim.errors import CardError, ModelNotFoundError
from robustsim.images.preprocessing import Preprocessing

#: The encoder that is used where none is named.
DEFAULT_MODEL = "lite"

FORMAT = "robustsim"
FORMAT_VERSION = 1

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Library = Literal["robustsim", "open_clip", "timm"]
HeadKind = Literal["none", "mlp", "lora"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What to build.

    Attributes:
        library: `robustsim` (our own files), `open_clip` or `timm`.
        name: the architecture's name in that library.
        quick_gelu: CLIP's activation of OpenAI's weights; a repository that contradicts it is refused.
        options: the rest: for open_clip a whole `model_cfg` where the name alone does not say it, for timm the
            keyword arguments of `timm.create_model`.
    """

    library: Library
    name: str
    quick_gelu: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.library not in get_args(Library):
            raise CardError(f"architecture library {self.library!r} is none of {', '.join(get_args(Library))}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights are published: a Hub repository, and their SHA-256 where it is known."""

    repo: str
    revision: str = "main"
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Head:
    """What follows the trunk.

    Attributes:
        kind: `none`; `mlp`, a residual block of two linear layers; `lora`, low-rank adapters that lie beside
            the weights in the file and are merged into them at load.
        hidden: width of the MLP.
        scale: what the adapters' product is multiplied with (`lora_alpha / r`).
    """

    kind: HeadKind = "none"
    hidden: int = 512
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(HeadKind):
            raise CardError(f"head {self.kind!r} is none of {', '.join(get_args(HeadKind))}")
        if not isfinite(self.scale):
            raise CardError(f"head: scale must be a finite number, not {self.scale}")


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """An encoder as data: architecture, preprocessing, head, provenance, licence.

    Attributes:
        name: the name in the catalogue, or of the folder or repository it came from.
        architecture: what to build.
        embedding_dim: D of the embeddings.
        preprocessing: how pictures become squares.
        mean: per channel, subtracted from pixels in [0, 1] inside the encoder.
        std: per channel, divided by after that.
        head: what follows the trunk.
        text: whether the weights bring a text tower along.
        source: where the weights are published; None for a folder or the bundled encoder.
        weights_sha256: checksum of `model.safetensors` beside the card.
        parameters: number of values in the image encoder.
        method: how it was trained against tampering, such as `FARE`; None for a clean encoder.
        threat: what it was trained to withstand, such as `linf 4/255`.
        data: what it was trained on.
        license: SPDX identifier, or where to find it.
        origin: who made it, and where it comes from.
        scores: published scores, in per cent, by name.
        training: how robustsim made the weights: `recipe`, `seed`, `steps`, and what they began as.
        calibration: what distances mean, measured with these weights.
    """

    name: str
    architecture: Architecture
    embedding_dim: int
    preprocessing: Preprocessing = Preprocessing()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    head: Head = Head()
    text: bool = False
    source: Source | None = None
    weights_sha256: str | None = None
    parameters: int | None = None
    method: str | None = None
    threat: str | None = None
    data: str | None = None
    license: str | None = None
    origin: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not all(map(isfinite, self.mean)) or not all(isfinite(value) and value > 0 for value in self.std):
            raise CardError(
                f"{self.name!r}: mean must be finite and std finite and positive, not {self.mean} and {self.std}"
            )

    @property
    def weights_files(self) -> tuple[str, ...]:
        """The files that may hold the weights in a repository of this card's layout, the best first."""
        if self.architecture.library == "open_clip":
            return "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
        return "model.safetensors", "pytorch_model.bin"

    def to_readme(self, repo: str) -> str:
        """The text of a model page on the Hub."""
        tampering = f"{self.method}, {self.threat}" if self.method else "nothing that its card names"
        return "\n".join(
            (
                "---",
                "library_name: robustsim",
                "tags: [robustsim, image-feature-extraction]",
                f"license: {(self.license or 'other').lower() if ' ' not in (self.license or '') else 'other'}",
                "---",
                f"# {self.name}",
                "",
                "A perceptual metric in the format of `robustsim`.",
                "",
                "```python",
                "from robustsim import RobustSim",
                "",
                f'metric = RobustSim.from_pretrained("{repo}")',
                "```",
                "",
                f"- architecture: {self.architecture.name} ({self.architecture.library})",
                f"- trained to withstand: {tampering}",
                f"- data: {self.data or 'not stated'}",
                f"- origin: {self.origin or 'not stated'}",
                f"- licence: {self.license or 'not stated'}",
                *(f"- {name}: {value} %" for name, value in self.scores.items()),
                *(f"- training, {name}: {value}" for name, value in self.training.items()),
                "",
            )
        )

    def to_json(self) -> str:
        """The card as JSON, fields at their defaults left out; [`from_json`][robustsim.encoders.EncoderCard.from_json]
        reads it back.
        """
        text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **_dump(self)}, indent=2)
        return _INNERMOST.sub(lambda found: f"[{_BREAKS.sub(' ', found[1])}]", text) + "\n"

    def to_identity(self) -> dict[str, Any]:
        """The card as JSON has it, without what changes no embedding: what tells two encoders' runs apart."""
        identity: dict[str, Any] = json.loads(dataclasses.replace(self, calibration=None).to_json())
        return identity

    @classmethod
    def from_json(cls, text: str, *, where: str = "the card") -> "EncoderCard":
        """Read a card.

        Raises:
            CardError: it is not JSON, of a newer format, or holds keys or values that are not understood.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise CardError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise CardError(f'{where} is no robustsim card: it does not say "format": "{FORMAT}"')
        version = data.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise CardError(
                f"{where} has format version {version!r}, this robustsim reads {FORMAT_VERSION}: upgrade it"
            )
        return _build(cls, data, where)


_NESTED: dict[str, Any] = {
    "architecture": Architecture,
    "preprocessing": Preprocessing,
    "head": Head,
    "source": Source,
    "calibration": Calibration,
    "tail": Tail,
}
_MAY_BE_NULL = ("source", "calibration", "tail")


# Lists of numbers and names, of which JSON gives each a line. No text is taken for one: none has line breaks in it.
_INNERMOST, _BREAKS = re.compile(r"\[\n *([^\[\]{}]*?)\n *\]"), re.compile(r"\n *")

# What the numbers depend on is written out, so that a later default changes no old card.
_ALWAYS = ("preprocessing", "mean", "std")


def _dump(instance: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for spec in dataclasses.fields(instance):
        value = getattr(instance, spec.name)
        default = spec.default_factory() if callable(spec.default_factory) else spec.default
        if value != default or spec.name in _ALWAYS or isinstance(instance, Preprocessing):
            out[spec.name] = _dump(value) if dataclasses.is_dataclass(value) else value
    return out


def _build(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, dict):
        raise CardError(f"{where}: expected an object, found {data!r}")
    specs = {spec.name: spec for spec in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for key in data.keys() - specs.keys():
        raise CardError(f"{where} has the unknown key {key!r}{did_you_mean(key, list(specs))}")
    missing = [
        name
        for name, spec in specs.items()
        if name not in data and spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise CardError(f"{where} lacks {', '.join(missing)}")
    values = dict(data)
    for key, value in data.items():
        if key in _NESTED and value is not None:
            values[key] = _build(_NESTED[key], value, f"{where}, {key}")
        else:
            values[key] = _tuples(value)
        if key in _NESTED and value is None and key not in _MAY_BE_NULL:
            raise CardError(f"{where}: {key} cannot be null")
        if key not in _NESTED and not _fits(values[key], hints[key]):
            raise CardError(f"{where}: {key} cannot be {json.dumps(value)}")
    return kind(**values)


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, in lists too."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a type that a card's field has."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return isinstance(value, str)  # which of them, the class itself checks
    if origin is tuple:
        if isinstance(value, tuple) and arguments[1:] == (...,):
            return all(_fits(one, arguments[0]) for one in value)
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is not None:
        return isinstance(value, Mapping)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def did_you_mean(name: str, known: list[str]) -> str:
    """The end of an error message: the nearest spellings, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def list_models(pattern: str = "*") -> list[str]:
    """Names of the catalogue that match a shell pattern, sorted: `list_models("rclip-*")`."""
    from fnmatch import fnmatchcase

    return [name for name in sorted(_catalogue()) if fnmatchcase(name, pattern)]


def load_card(name: str) -> EncoderCard:
    """The catalogue's card of that name.

    Raises:
        ModelNotFoundError: there is none; the message names the nearest spellings.
    """
    known = _catalogue()
    if name not in known:
        meant = did_you_mean(name, list(known)) or "."
        raise ModelNotFoundError(
            f"no model is called {name!r}{meant} `robustsim models` lists the catalogue; "
            "a Hub id has the form org/repo or org/repo@revision, a folder must exist"
        )
    resource = known[name]
    return EncoderCard.from_json(resource.read_text(encoding="utf-8"), where=f"the catalogue's card {name!r}")


def card_of_repository(repo: str) -> EncoderCard | None:
    """The catalogue's card whose weights a Hub repository holds, if there is one."""
    for name in list_models():
        card = load_card(name)
        if card.source is not None and card.source.repo == repo:
            return card
    return None


@cache
def _catalogue() -> dict[str, Any]:
    root = files("robustsim.encoders")
    cards = {entry.name.removesuffix(".json"): entry for entry in root.joinpath("catalog").iterdir()}
    bundled = {entry.name: entry.joinpath("config.json") for entry in root.joinpath("bundled").iterdir()}
    return {name: card for name, card in {**cards, **bundled}.items() if card.is_file()}
