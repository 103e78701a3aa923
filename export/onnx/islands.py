"""What stays in float32 in files of lower precision: known by the mixer that a node of the graph comes from."""

from __future__ import annotations

from typing import Any

from remixer.export.onnx.cached_toeplitz import CachedToeplitz
from remixer.export.onnx.lowered_toeplitz import LoweredToeplitz
from remixer.rewrite.program import Program

# Transforms add up numbers of very different sizes, and coefficients are decays and functions of positions.
ISLANDS = (LoweredToeplitz, CachedToeplitz)
_STACK, _KEY = "nn_module_stack", "pkg.torch.onnx.class_hierarchy"


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def mark_mixers(program: Program) -> Program:
    """Put each lowered mixer of a program on the stack of modules that torch.export writes behind its nodes."""
    for node in program.graph.find_nodes(op="call_module"):
        path = str(node.target)
        module = program.graph_module.get_submodule(path)
        if isinstance(module, ISLANDS):
            stack = dict(node.meta.get(_STACK) or {})
            node.meta[_STACK] = {**stack, path: (path, _name(type(module)))}
    return program


def in_island(node: Any) -> bool:
    """Whether a node of an onnx_ir graph belongs to a mixer that stays in float32."""
    hierarchy = node.metadata_props.get(_KEY, "")
    return any(_name(kind) in hierarchy for kind in ISLANDS)
