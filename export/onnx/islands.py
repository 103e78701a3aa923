"""What stays in float32 in files of lower precision: the nodes of mixers that need it are marked."""

from __future__ import annotations

from typing import Any

from torch import nn

from remixer.export.onnx.cached_toeplitz import CachedToeplitz
from remixer.export.onnx.lowered_toeplitz import LoweredToeplitz

# Transforms add up numbers of very different sizes, and coefficients are decays and functions of positions.
ISLANDS = (LoweredToeplitz, CachedToeplitz)
_KEY = "remixer.float32"


def mark_island(model: Any, module: nn.Module) -> None:
    """Mark all nodes of an onnx_ir model that was made of such a mixer, and none of another."""
    if any(isinstance(each, ISLANDS) for each in module.modules()):
        for node in model.graph.all_nodes():
            node.metadata_props[_KEY] = type(module).__name__


def in_island(node: Any) -> bool:
    """Whether a node of an onnx_ir graph belongs to a mixer that stays in float32."""
    return _KEY in node.metadata_props
