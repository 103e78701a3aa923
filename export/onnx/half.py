"""A float32 graph with its large products in float16, and islands that stay in float32.

Products, embeddings, layer norms (which reckon their statistics in float32 themselves) and what is done element by
element between them go to float16. Softmax and the scores that lead to it, masks, everything with numbers that float16
hasn't, norms that are written out, exponentials, angles and sums, and all of a Toeplitz mixer stay. Where the two meet
a value is cast once. Inputs and outputs keep their dtypes.
"""

from __future__ import annotations

from typing import Any

from remixer.export.errors import ExportError
from remixer.export.onnx.islands import in_island

LARGEST = 65504.0
SMALLEST = 6e-8  # what float16 rounds to zero is below half of it
STARTS = ("MatMul", "Gemm", "Conv")
NORMS = ("LayerNormalization",)
MOVES = (
    *("Reshape", "Transpose", "Concat", "Slice", "Split", "Unsqueeze", "Squeeze", "Expand", "Pad", "Identity"),
    *("Gather", "GatherElements", "Tile", "Flatten"),
)
EACH = (
    *("Add", "Sub", "Mul", "Div", "Sum", "Neg", "Abs", "Where", "Max", "Min", "Clip"),
    *("Relu", "Gelu", "Tanh", "Sigmoid", "Erf", "Softplus", "HardSigmoid"),
)


def to_half(model: Any) -> None:
    """Edit an onnx_ir.Model in float32 in place.

    Raises:
        ExportError: the dtype of a value isn't known.
    """
    import onnx_ir.passes.common as common

    model.graph.sort()
    half = _widened(model, _chosen(model))
    _Writer(model, half).write()
    common.RemoveUnusedNodesPass()(model)


def _chosen(model: Any) -> set[Any]:
    """The nodes that go to float16, from the first to the last."""
    half: set[Any] = set()
    for node in model.graph:
        if not any(_is_float(value) for value in node.outputs) or in_island(node) or _has_graphs(node):
            continue
        floats = [value for value in node.inputs if value is not None and _is_float(value)]
        constants = [value for value in floats if _tensor(value) is not None]
        if any(_too_wide(_tensor(value)) for value in constants):
            continue
        variables = [value for value in floats if value not in constants]
        follows = node.op_type in (*NORMS, *MOVES, *EACH) and any(value.producer() in half for value in variables)
        embeds = node.op_type == "Gather" and bool(constants) and not variables
        if not node.domain and (node.op_type in STARTS or follows or embeds):
            half.add(node)
    return half


def _widened(model: Any, half: set[Any]) -> set[Any]:
    """Without the nodes whose results are read in float32 alone, such as scores on their way to a softmax."""
    half = set(half)
    for node in reversed(model.graph):
        if node in half and node.op_type in (*MOVES, *EACH) and not _embeds(node):
            readers = [reader for value in node.outputs for reader, _ in value.uses()]
            if readers and not any(reader in half for reader in readers):
                half.discard(node)
    return half


def _embeds(node: Any) -> bool:
    return node.op_type == "Gather" and _tensor(node.inputs[0]) is not None


def _is_float(value: Any) -> bool:
    import onnx_ir as ir

    if value.dtype is None:
        raise ExportError(f"cannot write {value.name} in float16: its dtype is not in the graph")
    return bool(value.dtype == ir.DataType.FLOAT)


def _has_graphs(node: Any) -> bool:
    return any("GRAPH" in str(each.type) for each in node.attributes.values())


def _tensor(value: Any) -> Any:
    """The tensor of a constant, or None."""
    import onnx_ir as ir

    return ir.convenience.get_const_tensor(value)


def _too_wide(tensor: Any) -> bool:
    """Whether a constant has numbers that float16 hasn't; tiny ones among others may go."""
    numbers = abs(tensor.numpy())
    if not numbers.size:
        return False
    largest = float(numbers.max())
    return largest > LARGEST or 0 < largest < SMALLEST


class _Writer:
    """Gives the nodes of a graph the dtypes that were chosen, and puts casts in between."""

    def __init__(self, model: Any, half: set[Any]) -> None:
        self.graph, self.half = model.graph, half
        self.produced = {value for node in half for value in node.outputs if _is_float(value)}
        self.made: dict[tuple[Any, bool], Any] = {}

    def write(self) -> None:
        """Do it."""
        import onnx_ir as ir

        for node in list(self.graph):
            to_half = node in self.half
            for index, value in enumerate(node.inputs):
                if value is None or not _is_float(value) or node.op_type in ("Shape", "Size"):
                    continue
                if to_half != (value in self.produced):
                    node.replace_input_with(index, self._other(value, to_half))
        for index, value in enumerate(self.graph.outputs):
            if value in self.produced:
                name = value.name
                value.name = f"{name}_half"
                self.graph.outputs[index] = self._cast(value, False, name)
        for value in self.produced:
            value.dtype = ir.DataType.FLOAT16

    def _other(self, value: Any, half: bool) -> Any:
        """A value in the other dtype."""
        if (value, half) not in self.made:
            tensor = _tensor(value)
            name = f"{value.name}_{'half' if half else 'single'}"
            constant = tensor is not None
            self.made[value, half] = self._constant(tensor, name) if constant else self._cast(value, half, name)
        return self.made[value, half]

    def _constant(self, tensor: Any, name: str) -> Any:
        import numpy as np
        import onnx_ir as ir

        rounded = ir.tensor(tensor.numpy().astype(np.float16), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(rounded.shape.numpy()), type=ir.TensorType(rounded.dtype), const_value=rounded
        )
        self.graph.register_initializer(value)
        return value

    def _cast(self, value: Any, half: bool, name: str) -> Any:
        import onnx_ir as ir

        dtype = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
        out = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[out], name=f"node_{name}")
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)  # of an input
        else:
            self.graph.insert_after(producer, node)
        return out
