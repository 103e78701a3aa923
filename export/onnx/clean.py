"""What onnxruntime would do worse by itself, written so that it does it well."""

from __future__ import annotations

from typing import Any


def clean(model: Any) -> None:
    """Edit an onnx_ir.Model in place; its numbers stay the same."""
    import onnx_ir.passes.common as common

    _residuals_as_sums(model)
    _without_traces(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def _residuals_as_sums(model: Any) -> None:
    """Add before LayerNormalization becomes Sum.

    onnxruntime fuses the two into SkipLayerNormalization, whose CPU kernel takes several times as long as both; a sum
    it leaves alone.
    """
    for node in model.graph:
        if node.op_type != "LayerNormalization" or node.domain:
            continue
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        if before is not None and before.op_type == "Add" and not before.domain:
            before.op_type = "Sum"


def _without_traces(model: Any) -> None:
    """Stack traces, which torch.onnx notes at every node, hold the paths of a machine."""
    for node in model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
