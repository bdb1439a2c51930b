"""An ONNX file of ours: what stands in it beside the graph, and the checksum of all that; needs neither torch nor onnx.

The file is a serialised `ModelProto`. Its metadata hold the card, the preprocessing, the checksum of the weights, the
library's version and the format's; the last entry, which ends the file, is the SHA-256 of everything before it.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robustsim import __version__
from robustsim.encoders.card import EncoderCard
from robustsim.errors import CardError, CorruptFileError, WeightsError

#: Of the layout of the metadata.
EXPORT_VERSION = 1

ExportFormat = Literal["onnx", "torch-export"]

INPUT, OUTPUT = "pixels", "embeddings"

_FORMAT = "robustsim_format_version"
_CHECKSUM = b"robustsim_checksum"
# Protocol buffers: field 14 of a ModelProto is an entry of its metadata, with a key (1) and a value (2); a message
# that is written in two parts is the same as in one, so that the entry may simply follow.
_DIGITS = 64
_HEAD = b"\n" + bytes((len(_CHECKSUM),)) + _CHECKSUM + b"\x12" + bytes((_DIGITS,))
_TAIL = b"r" + bytes((len(_HEAD) + _DIGITS,)) + _HEAD


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an exported file says of itself.

    Attributes:
        card: of the encoder.
        weights: SHA-256 of the encoder's state and preprocessing, as a card's calibration has it; "" if unknown.
        weights_sha256: of the weights file that the encoder was loaded from, where its card knows it.
        version: of the library that wrote it.
        int8: what quantisation costs, as `robustsim.encoders.export.quantise` measured it; None for float32.
    """

    card: EncoderCard
    weights: str
    weights_sha256: str | None
    version: str = __version__
    int8: Mapping[str, float] | None = None

    def to_metadata(self) -> dict[str, str]:
        """Names and texts for the file."""
        found = {
            _FORMAT: str(EXPORT_VERSION),
            "robustsim_version": self.version,
            "card": self.card.to_json(),
            "preprocessing": json.dumps(dataclasses.asdict(self.card.preprocessing)),
            "weights": self.weights,
            "weights_sha256": self.weights_sha256 or "",
        }
        return found if self.int8 is None else {**found, "int8": json.dumps(dict(self.int8))}


def describe(card: EncoderCard, weights: str) -> Exported:
    """What a file of a card's encoder is to say; `weights` as in `Exported`."""
    known = card.weights_sha256 or (card.source.sha256 if card.source is not None else None)
    return Exported(card=card, weights=weights, weights_sha256=known)


def sealed(model: bytes) -> bytes:
    """A serialised model with the checksum at its end."""
    return model + _TAIL + hashlib.sha256(model).hexdigest().encode()


def read_sealed(path: "str | os.PathLike[str]") -> bytes:
    """The bytes of an exported file, checked against their checksum.

    Raises:
        WeightsError: there is no such file, it cannot be read, or it is none of ours.
        CorruptFileError: it is damaged.
    """
    name = os.fspath(path)
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {name!r}: {error.strerror or error}") from error
    return check_sealed(data, repr(name))


def check_sealed(data: bytes, what: str) -> bytes:
    """The bytes of an exported file themselves; arguments and errors as for `read_sealed`."""
    body, tail = memoryview(data)[: -len(_TAIL) - _DIGITS], data[-len(_TAIL) - _DIGITS :]
    if not tail.startswith(_TAIL):
        if _FORMAT.encode() in data or _CHECKSUM in data:
            raise CorruptFileError(f"{what} is not whole, or was changed after its export: export it anew")
        raise WeightsError(
            f"{what} is no file of `robustsim export`, or its end is missing: export the model anew, by `robustsim "
            "export MODEL --format onnx -o FILE`"
        )
    if hashlib.sha256(body).hexdigest().encode() != tail[len(_TAIL) :]:
        raise CorruptFileError(
            f"{what} is damaged, or was changed after its export: it does not have the checksum at its end; export it "
            "anew"
        )
    return data


def read_metadata(metadata: Mapping[str, str], what: str) -> Exported:
    """What a file says of itself.

    Raises:
        WeightsError: it is of another format, or was made from other weights than its card says.
    """
    version = metadata.get(_FORMAT)
    if version != str(EXPORT_VERSION):
        raise WeightsError(
            f"{what} has export format {version!r}, this robustsim reads {EXPORT_VERSION}: export it anew"
        )
    try:
        card = EncoderCard.from_json(metadata["card"], where=f"the card in {what}")
        found = dataclasses.replace(
            describe(card, metadata["weights"]),
            weights_sha256=metadata["weights_sha256"] or None,
            version=metadata["robustsim_version"],
            int8=json.loads(metadata["int8"]) if "int8" in metadata else None,
        )
        preprocessing: Any = json.loads(metadata["preprocessing"])
    except (KeyError, ValueError) as error:
        if isinstance(error, CardError):
            raise
        raise WeightsError(f"{what} lacks what an export says of itself ({error}): export it anew") from None
    said = describe(card, card.calibration.weights if card.calibration else found.weights)
    if (said.weights, said.weights_sha256) != (found.weights, found.weights_sha256):
        raise WeightsError(f"{what} was made from other weights than its card {card.name!r} says: export it anew")
    if preprocessing != dataclasses.asdict(card.preprocessing):
        raise WeightsError(f"{what} says one preprocessing, and its card {card.name!r} another: export it anew")
    return found
