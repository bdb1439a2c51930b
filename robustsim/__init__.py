"""Perceptual similarity of images that holds when somebody tampers with the pixels."""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.default import distance, embed, similarity
    from robustsim.encoders import EncoderCard, list_models
    from robustsim.errors import RobustSimError
    from robustsim.metric import RobustSim
    from robustsim.onnx import from_onnx

__version__ = "0.1.0"

__all__ = ["EncoderCard", "RobustSim", "RobustSimError", "distance", "embed", "from_onnx", "list_models", "similarity"]

# Where each public name lives; the module is imported at first use, so that `import robustsim` stays light.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EncoderCard": "encoders",
        "RobustSim": "metric",
        "RobustSimError": "errors",
        "distance": "default",
        "embed": "default",
        "from_onnx": "onnx",
        "list_models": "encoders",
        "similarity": "default",
    },
)
