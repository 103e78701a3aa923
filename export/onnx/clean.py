"""What onnxruntime would do worse by itself, written so that it does it well."""

from __future__ import annotations

from typing import Any

from remixer.export.onnx.nodes import is_operator, operands, put_in_place_of
from remixer.export.onnx.reshapes import merge_reshapes
from remixer.export.onnx.rotary import rotate_at_once
from remixer.export.onnx.runtime import Provider


def clean(model: Any, provider: Provider) -> None:
    """Edit an onnx_ir.Model that is to run on a provider in place; its numbers stay the same."""
    import onnx_ir.passes.common as common

    _residuals_as_sums(model)
    _quotients(model)
    _without_moves(model)
    if provider == "cpu":
        rotate_at_once(model)
    merge_reshapes(model)
    _without_traces(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def _residuals_as_sums(model: Any) -> None:
    """Add before LayerNormalization becomes Sum.

    onnxruntime fuses the two into SkipLayerNormalization, whose CPU kernel takes several times as long as both; a sum
    it leaves alone.
    """
    for node in model.graph:
        if is_operator(node, "LayerNormalization") and operands(node.inputs[0], "Add"):
            node.inputs[0].producer().op_type = "Sum"


def _quotients(model: Any) -> None:
    """A factor of 1 / sqrt(...) becomes a quotient, as which onnxruntime knows the norm by the root mean square."""
    for node in model.graph:
        for place in (0, 1) if is_operator(node, "Mul") else ():
            factor = node.inputs[place].producer()
            root = factor.inputs[0] if factor is not None and factor.op_type == "Reciprocal" else None
            if root is not None and root.producer() is not None and root.producer().op_type == "Sqrt":
                other = node.inputs[1 - place]
                node.op_type = "Div"
                node.replace_input_with(0, other)
                node.replace_input_with(1, root)
                break


def _without_moves(model: Any) -> None:
    """Transposes that leave all axes where they are copy their input."""
    import onnx_ir as ir

    for node in model.graph:
        order = list(node.attributes.get_ints("perm", ())) if is_operator(node, "Transpose") else []
        if not order or order != sorted(order):
            continue
        (before,), (after,) = node.inputs, node.outputs
        if not after.is_graph_output():
            ir.convenience.replace_all_uses_with(after, before)
        elif before.producer() is not None and not before.is_graph_output():
            put_in_place_of(after, before)


def _without_traces(model: Any) -> None:
    """Stack traces, which torch.onnx notes at every node, hold the paths of a machine."""
    for node in model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
