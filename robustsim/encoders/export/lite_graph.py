"""The bundled architecture as an ONNX graph, made of its weights: torch is not asked."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.card import EncoderCard
from robustsim.encoders.export.files import INPUT, OUTPUT
from robustsim.encoders.lite_plan import STAGES, cells, same_padding
from robustsim.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What `torch.onnx` writes too; onnxruntime of the last three years reads them.
_OPSET, _IR = 18, 8
_TINY = 1e-12  # below it, torch.nn.functional.normalize divides by it


class _Graph:
    """Nodes and initialisers in the order of their making."""

    def __init__(self, weights: "Mapping[str, NDArray[Any]]") -> None:
        self.weights = dict(weights)
        self.nodes: list[Any] = []
        self.initialisers: list[Any] = []

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def conv(
        self, x: str, length: int, name: str, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> tuple[str, int]:
        """A convolution of that name on squares of that length: its output, and the length of it."""
        missing = [key for key in (f"{name}.weight", f"{name}.bias") if key not in self.weights]
        if missing:
            raise WeightsError(f"the weights lack {' and '.join(missing)}: they belong to another architecture")
        inputs = (self.constant(f"{name}.{part}", self.weights.pop(f"{name}.{part}")) for part in ("weight", "bias"))
        before, after = same_padding(length, kernel, stride) if stride > 1 else (kernel // 2, kernel // 2)
        out = self.add(
            "Conv",
            x,
            *inputs,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=groups,
        )
        return out, (length + before + after - kernel) // stride + 1


def lite_graph(card: EncoderCard, weights: "Mapping[str, NDArray[Any]]") -> Any:
    """An `onnx.ModelProto`: pixels (N, 3, S, S) in [0, 1] -> unit embeddings (N, D).

    Args:
        card: of an encoder in the bundled architecture, without a head.
        weights: by the names of its state dict, of any floating type.

    Raises:
        WeightsError: names that are missing or left over.
    """
    from onnx import TensorProto, helper

    graph = _Graph(weights)
    size, grid = card.preprocessing.size, card.architecture.options.get("grid", 1)
    bounds = [graph.constant("zero", 0), graph.constant("six", 6)]
    mean, std = (
        graph.constant(name, np.reshape(value, (1, 3, 1, 1)))
        for name, value in (("mean", card.mean), ("std", card.std))
    )
    x = graph.add("Div", graph.add("Sub", INPUT, mean), std)
    x, length = graph.conv(x, size, "trunk.stem", 3, 2)
    x = graph.add("Clip", x, *bounds)
    channels = weights["trunk.stem.weight"].shape[0] if "trunk.stem.weight" in weights else 0
    block = 0
    for count, kernel, first_stride, expansion, outputs in STAGES:
        for index in range(count):
            stride, before, name = first_stride if index == 0 else 1, x, f"trunk.blocks.{block}"
            if expansion > 1:
                x = graph.add("Clip", graph.conv(x, length, f"{name}.expand")[0], *bounds)
            x, length = graph.conv(x, length, f"{name}.depthwise", kernel, stride, channels * expansion)
            x, _ = graph.conv(graph.add("Clip", x, *bounds), length, f"{name}.project")
            if stride == 1 and channels == outputs:
                x = graph.add("Add", before, x)
            channels, block = outputs, block + 1
    if card.architecture.options.get("head", True):
        x = graph.add("Clip", graph.conv(x, length, "trunk.head")[0], *bounds)
    if graph.weights:
        raise WeightsError(f"weights are left over ({', '.join(sorted(graph.weights)[:3])}): of another architecture")
    places = cells(length, grid)
    axes = graph.constant("axes", [2, 3], np.int64)
    means = []
    for number, (row, column) in enumerate((row, column) for row in places for column in places):
        ends = [
            graph.constant(f"cell_{number}_{end}", [getattr(row, end), getattr(column, end)], np.int64)
            for end in ("start", "stop")
        ]
        part = x if grid == 1 else graph.add("Slice", x, *ends, axes)
        means.append(graph.add("ReduceMean", part, axes, keepdims=0))
    z = means[0] if grid == 1 else graph.add("Concat", *means, axis=1)
    one = graph.constant("one", [1], np.int64)
    length_of = graph.add("ReduceL2", z, one, keepdims=1)
    graph.add("Div", z, graph.add("Max", length_of, graph.constant("tiny", _TINY)), name=OUTPUT)
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
        for name, shape in ((INPUT, (3, size, size)), (OUTPUT, (card.embedding_dim,)))
    ]
    whole = helper.make_graph(graph.nodes, "robustsim", infos[:1], infos[1:], initializer=graph.initialisers)
    return helper.make_model(
        whole, ir_version=_IR, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="robustsim"
    )
