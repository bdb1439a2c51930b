"""Perceptual similarity of images that holds when somebody tampers with the pixels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustsim.encoders import EncoderCard, list_models
    from robustsim.errors import RobustSimError
    from robustsim.metric import RobustSim, distance, embed, similarity

__version__ = "0.1.0"

__all__ = ["EncoderCard", "RobustSim", "RobustSimError", "distance", "embed", "list_models", "similarity"]

# Where each public name lives; the module is imported at first use, so that `import robustsim` stays light.
_HOMES = {
    "EncoderCard": "robustsim.encoders",
    "RobustSim": "robustsim.metric",
    "RobustSimError": "robustsim.errors",
    "distance": "robustsim.metric",
    "embed": "robustsim.metric",
    "list_models": "robustsim.encoders",
    "similarity": "robustsim.metric",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
