"""Values in a graph that no input plays a part in."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

aten = torch.ops.aten
_MOST_NODES = 32
# Operators that only choose, arrange or convert what their first operand holds.
_CARRIERS = (
    aten.slice.Tensor,
    aten.select.int,
    aten.index.Tensor,
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.transpose.int,
    aten.permute.default,
    aten.repeat.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.type_as.default,
)


def number_of(value: Any, graph_module: fx.GraphModule) -> float | None:
    """A number, or a tensor of one element that is computed from buffers and constants alone; else None.

    Parameters are no constants: training moves them.
    """
    if not isinstance(value, fx.Node):
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    recorded = value.meta.get("val")
    if not isinstance(recorded, torch.Tensor) or recorded.numel() != 1:
        return None
    try:
        return float(_evaluated(value, graph_module, {}))
    except LookupError:
        return None


def is_indicator(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Whether a tensor holds nothing but 0 and 1, whatever the inputs: booleans, or a buffer of such numbers."""
    while node.op == "call_function" and node.target in _CARRIERS and not _is_boolean(node):
        node = node.all_input_nodes[0]
    if _is_boolean(node):
        return True
    if node.op != "get_attr":
        return False
    held = attrgetter(str(node.target))(graph_module)
    if not isinstance(held, torch.Tensor) or isinstance(held, nn.Parameter):
        return False
    return bool(((held == 0) | (held == 1)).all())


def _is_boolean(node: fx.Node) -> bool:
    recorded = node.meta.get("val")
    return isinstance(recorded, torch.Tensor) and recorded.dtype == torch.bool


def _evaluated(node: fx.Node, graph_module: fx.GraphModule, known: dict[fx.Node, Any]) -> Any:
    if node in known:
        return known[node]
    if len(known) > _MOST_NODES:
        raise LookupError("too far back")
    if node.op == "get_attr":
        found = attrgetter(str(node.target))(graph_module)
        if isinstance(found, nn.Parameter):
            raise LookupError("a parameter")
        result = found
    elif node.op == "call_function":
        for operand in node.all_input_nodes:
            _evaluated(operand, graph_module, known)
        args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    else:
        raise LookupError("an input")
    known[node] = result
    return result
