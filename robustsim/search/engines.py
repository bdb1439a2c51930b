"""What embeds the pictures of a folder: a metric in torch, or one on ONNX Runtime, for which nobody needs torch."""

from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

from robustsim.images.arrays import unit_array
from robustsim.onnx import OnnxMetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robustsim.metric import RobustSim

    Array = NDArray[np.float32]

#: Either of them.
Embeds: TypeAlias = "Union[RobustSim, OnnxMetric]"


def embed_squares(metric: Embeds, squares: "list[NDArray[np.uint8]]") -> "Array":
    """Unit-length embeddings, (N, D), of N squares (S, S, 3). No checks."""
    if isinstance(metric, OnnxMetric):
        return metric.embed_pixels(np.stack([unit_array(square) for square in squares]))
    import torch

    from robustsim.images.inputs import stack_squares

    pixels = stack_squares([torch.from_numpy(square) for square in squares], metric.device)
    rows: Array = metric.embed_pixels(pixels).detach().cpu().numpy()
    return rows


def values_of(metric: Embeds) -> dict[str, str]:
    """What tells the values of two models of one card apart: the same in torch and in a graph that rounds otherwise."""
    if not isinstance(metric, OnnxMetric):
        from robustsim.encoders.load import image_sha256

        kind = str(metric.encoder.mean.dtype).removeprefix("torch.")
        return {"weights": image_sha256(metric.encoder), "computes": kind}
    said = metric.exported
    traced = said.card.architecture.library != "robustsim"  # by torch's exporter, which may have rewritten it
    return {"weights": said.weights, "computes": f"{'onnx ' if traced else ''}{'int8' if said.int8 else 'float32'}"}
