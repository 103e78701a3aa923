"""Products of one tensor with several weights become one product with the weights side by side.

A token by itself is a vector, and its product with a weight takes as long as the weight takes to be read: what is left
to save is to call for it once instead of three times, where queries, keys and values are projected, or twice in a gated
MLP.
"""

from __future__ import annotations

from typing import Any

from remixer.export.onnx.islands import in_island
from remixer.export.onnx.nodes import constant, is_operator, put_in_place_of


def put_side_by_side(model: Any) -> None:
    """Edit an onnx_ir.Model in place; its numbers stay the same but for the order of sums.

    Products of mixers that have to stay in float32 keep to themselves, since others may not.
    """
    together: dict[Any, list[Any]] = {}
    for node in model.graph:
        if is_operator(node, "MatMul") and _is_own_weight(node.inputs[1]) and not in_island(node):
            together.setdefault(node.inputs[0], []).append(node)
    for nodes in together.values():
        if len(nodes) > 1:
            _merge(model.graph, nodes)


def _is_own_weight(value: Any) -> bool:
    """Whether a matrix is part of the model, and of no other product."""
    constant = value.is_initializer() and not value.is_graph_input() and value.const_value is not None
    return constant and len(value.const_value.shape) == 2 and len(value.uses()) == 1


def _merge(graph: Any, nodes: list[Any]) -> None:
    """One product and its pieces, in front of the first of the nodes."""
    import numpy as np
    import onnx_ir as ir

    first = nodes[0]
    weights = [node.inputs[1] for node in nodes]
    widths = [int(weight.const_value.shape[1]) for weight in weights]
    if len({weight.const_value.dtype for weight in weights}) > 1:
        return
    # Put together when it is written: no second copy of the weights is held before.
    merged = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([weight.const_value.numpy() for weight in weights], axis=1)),
        dtype=weights[0].const_value.dtype,
        shape=ir.Shape([int(weights[0].const_value.shape[0]), sum(widths)]),
        name=f"{weights[0].name}_side_by_side",
    )
    weight = ir.Value(name=merged.name, shape=merged.shape, type=ir.TensorType(merged.dtype), const_value=merged)
    graph.register_initializer(weight)
    product = ir.node("MatMul", [first.inputs[0], weight], name=f"{first.name}_side_by_side")
    product.outputs[0].name = f"{first.outputs[0].name}_side_by_side"
    product.outputs[0].type = first.outputs[0].type  # what runs where goes by dtypes
    inputs = [product.outputs[0], constant(graph, np.array(widths))]
    pieces = ir.node("Split", inputs, {"axis": -1}, num_outputs=len(nodes), name=f"{first.name}_pieces")
    graph.insert_before(first, [product, pieces])
    for piece, node in zip(pieces.outputs, nodes, strict=True):
        put_in_place_of(node.outputs[0], piece)
        graph.remove(node, safe=True)
