"""Encoders: what turns pixels into an embedding, the cards that describe them, and where their weights come from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustsim.encoders.card import Architecture, EncoderCard, Head, Source, list_models, load_card
    from robustsim.encoders.convert import convert
    from robustsim.encoders.encoder import Encoder, Features
    from robustsim.encoders.load import load_encoder, save_encoder

__all__ = [
    "Architecture",
    "Encoder",
    "EncoderCard",
    "Features",
    "Head",
    "Source",
    "convert",
    "list_models",
    "load_card",
    "load_encoder",
    "save_encoder",
]

_HOMES = {
    "Architecture": "card",
    "Encoder": "encoder",
    "EncoderCard": "card",
    "Features": "encoder",
    "Head": "card",
    "Source": "card",
    "convert": "convert",
    "list_models": "card",
    "load_card": "card",
    "load_encoder": "load",
    "save_encoder": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
