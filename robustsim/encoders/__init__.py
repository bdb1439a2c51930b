"""Encoders: what turns pixels into an embedding, the cards that describe them, and where their weights come from."""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.encoders.calibration import Calibration, Change, Share, Yardstick
    from robustsim.encoders.card import Architecture, EncoderCard, Head, Source, list_models, load_card
    from robustsim.encoders.conversion import convert
    from robustsim.encoders.encoder import Encoder, Features
    from robustsim.encoders.export.files import Exported
    from robustsim.encoders.export.write import export_encoder
    from robustsim.encoders.fast.execution import Execution
    from robustsim.encoders.load import load_encoder, save_encoder
    from robustsim.encoders.tail import Tail

__all__ = [
    "Architecture",
    "Calibration",
    "Change",
    "Encoder",
    "EncoderCard",
    "Execution",
    "Exported",
    "Features",
    "Head",
    "Share",
    "Source",
    "Tail",
    "Yardstick",
    "convert",
    "export_encoder",
    "list_models",
    "load_card",
    "load_encoder",
    "save_encoder",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Architecture": "card",
        "Calibration": "calibration",
        "Change": "calibration",
        "Encoder": "encoder",
        "EncoderCard": "card",
        "Execution": "fast.execution",
        "Exported": "export.files",
        "Features": "encoder",
        "Head": "card",
        "Share": "calibration",
        "Source": "card",
        "Tail": "tail",
        "Yardstick": "calibration",
        "convert": "conversion",
        "export_encoder": "export.write",
        "list_models": "card",
        "load_card": "card",
        "load_encoder": "load",
        "save_encoder": "load",
    },
)
