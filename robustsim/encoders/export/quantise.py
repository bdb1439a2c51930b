"""Products of matrices in 8 bits, and what that costs."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from robustsim.encoders.export.files import INPUT, OUTPUT, Exported
from robustsim.encoders.export.packing import pack
from robustsim.encoders.export.session import open_session
from robustsim.errors import InputError

_KINDS = ("MatMul", "Gemm")


def quantised(model: Any, said: Exported, embed: Callable[[Tensor], Tensor], pixels: Tensor) -> tuple[bytes, Exported]:
    """A graph with its products by constant matrices in 8 bits, and what it says of itself, its errors included.

    The errors are the largest distance of a picture's embedding from that in float32 (`embedding_error`), and the
    largest change of a distance between two pictures (`distance_error`), both by the metric's own distance.

    Args:
        model: an `onnx.ModelProto`.
        said: what the file in float32 says.
        embed: the embeddings in float32, of (N, 3, S, S).
        pixels: what to measure on.

    Raises:
        InputError: there is no such product in it.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    constant = {one.name for one in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in _KINDS and constant & {*node.input}]
    if len(products) < 2:  # a projection at the end alone
        raise InputError(
            f"{said.card.name!r} is made of convolutions, and has no products of matrices to put into 8 bits: leave "
            "int8 out"
        )
    with TemporaryDirectory() as folder:
        source, target = (Path(folder) / name for name in ("float32.onnx", "int8.onnx"))
        onnx.save(model, source)
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it advises a pre-processing that has been done
        try:
            quantize_dynamic(
                source, target, op_types_to_quantize=list(_KINDS), weight_type=QuantType.QInt8, per_channel=True
            )
        finally:
            root.setLevel(level)
        small = onnx.load(target)
    exact = embed(pixels).numpy()
    found = open_session(small.SerializeToString(), repr(said.card.name)).run([OUTPUT], {INPUT: pixels.numpy()})[0]
    between = [np.linalg.norm(z[:, None] - z[None], axis=2) * 0.5**0.5 for z in (exact, found)]
    said = dataclasses.replace(
        said,
        int8={
            "pictures": len(pixels),
            "embedding_error": round(float(np.linalg.norm(found - exact, axis=1).max()) * 0.5**0.5, 6),
            "distance_error": round(float(np.abs(between[1] - between[0]).max()), 6),
        },
    )
    return pack(small, said), said
