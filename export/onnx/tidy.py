"""What torch.onnx leaves behind: what can be computed once, is computed twice, or is never read."""

from __future__ import annotations

from typing import Any

from remixer.export.onnx.nodes import is_operator


def tidy(model: Any) -> None:
    """Edit an onnx_ir.Model in place; its numbers stay the same.

    torch.onnx would also try all of onnxscript's rewrite rules at every node, twice, which takes three times as long as
    everything else, for what onnxruntime does again when it loads the file.
    """
    import onnx_ir.passes.common as common
    from onnxscript import optimizer

    own = {*model.graph.inputs, *(value for node in model.graph for value in node.outputs)}
    common.InlinePass()(model)
    _without_names_of_functions(model, own)
    _sizes_of_inputs(model)
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


def _without_names_of_functions(model: Any, own: set[Any]) -> None:
    """Shapes with names that meant something in a function: onnxruntime takes sizes of one name for the same.

    Args:
        model: an onnx_ir.Model.
        own: values that were in no function.
    """
    for value in (each for node in model.graph for each in node.outputs):
        if value not in own and value.shape is not None and not value.shape.is_static():
            value.shape = None


def _sizes_of_inputs(model: Any) -> None:
    """Sizes that inputs have too are read from these, so that what follows from a size is computed once."""
    import onnx_ir as ir

    known: dict[str, tuple[Any, int]] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                known.setdefault(size.value, (value, axis))
    for node in model.graph:
        value = node.inputs[0] if is_operator(node, "Shape") else None
        if value is None or value.shape is None:
            continue
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(value.shape))
        size = value.shape[start] if 0 <= start == end - 1 < len(value.shape) else None
        if isinstance(size, ir.SymbolicDim) and size.value in known:
            source, axis = known[size.value]
            node.replace_input_with(0, source)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)
