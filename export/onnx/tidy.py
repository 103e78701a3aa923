"""What torch.onnx leaves behind: what can be computed once, is computed twice, or is never read."""

from __future__ import annotations

from typing import Any


def tidy(model: Any) -> None:
    """Edit an onnx_ir.Model in place; its numbers stay the same.

    torch.onnx would also try all of onnxscript's rewrite rules at every node, twice, which takes three times as long as
    everything else, for what onnxruntime does again when it loads the file.
    """
    import onnx_ir.passes.common as common
    from onnxscript import optimizer

    common.InlinePass()(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    for each in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        each(model)
