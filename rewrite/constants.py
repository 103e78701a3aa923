"""Values in a graph that no input plays a part in."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

_MOST_NODES = 32


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
