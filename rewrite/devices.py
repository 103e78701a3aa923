"""Devices that tracing wrote into a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate


def move_constants(module: fx.GraphModule, device: torch.device) -> None:
    """Let `arange` and the like make their tensors where the weights are: their device stands in the graph."""

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    changed = False
    for node in module.graph.nodes:
        args, kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)
        if (args, kwargs) != (node.args, node.kwargs):
            node.args, node.kwargs = args, kwargs
            changed = True
    if changed:
        module.recompile()
