"""Devices that tracing wrote into a graph, and values moved to one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

CPU = torch.device("cpu")


def moved(value: Any, device: torch.device) -> Any:
    """A tensor on a device, and that device in place of any other; anything else as it is."""
    if isinstance(value, torch.device):
        return device
    return value.to(device) if isinstance(value, Tensor) else value


def move_constants(module: fx.GraphModule, device: torch.device) -> None:
    """Let `arange` and the like make their tensors where the weights are: their device stands in the graph."""

    def there(value: Any) -> Any:
        return moved(value, device)

    changed = False
    for node in module.graph.nodes:
        args, kwargs = map_aggregate(node.args, there), map_aggregate(node.kwargs, there)
        if (args, kwargs) != (node.args, node.kwargs):
            node.args, node.kwargs = args, kwargs
            changed = True
    if changed:
        module.recompile()
