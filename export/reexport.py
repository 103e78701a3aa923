"""A program through torch.export once more, after it was rewritten."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx
from torch.export import Dim
from torch.utils import _pytree as pytree

from remixer.rewrite.inputs import Call
from remixer.rewrite.program import Program, expression


def as_module(program: Program) -> fx.GraphModule:
    """A program as a module that torch.export takes; copies that have run have no signature."""
    return fx.GraphModule(program.graph_module, program.graph).eval()


def dynamic_shapes(program: Program, module: fx.GraphModule, call: Call) -> dict[str, Any]:
    """AUTO for each dimension that is a symbol in the program, in the structure of its call."""
    nodes = iter(program.graph.find_nodes(op="placeholder"))

    def of_leaf(leaf: Any) -> Any:
        value = next(nodes).meta.get("val")
        if not isinstance(leaf, torch.Tensor) or not isinstance(value, torch.Tensor):
            return None
        return {dim: Dim.AUTO if expression(size).free_symbols else Dim.STATIC for dim, size in enumerate(value.shape)}

    args, kwargs = call
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return {name: pytree.tree_map(of_leaf, each) for name, each in bound.items()}
