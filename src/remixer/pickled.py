"""A graph in a pickle, node by node. torch.fx would trace the code again, and lose the call's signature."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

KEPT = ("nn_module_stack", "stack_trace")


@dataclass(frozen=True)
class Reference:
    """Stands for a node in another's arguments."""

    name: str


@dataclass(frozen=True)
class Operator:
    """Stands for an operator of torch.ops, which can't be pickled."""

    path: str

    def find(self) -> Any:
        """The operator."""
        return functools.reduce(getattr, self.path.split("."), torch.ops)


@dataclass(frozen=True)
class PickledGraph:
    """All of a graph but the values that were recorded of its nodes."""

    nodes: tuple[tuple[Any, ...], ...]
    codegen: Any

    @staticmethod
    def of(graph: fx.Graph) -> PickledGraph:
        """A graph as what can be pickled."""
        return PickledGraph(tuple(_written(node) for node in graph.nodes), graph._codegen)

    def graph(self) -> fx.Graph:
        """The graph again."""
        graph = fx.Graph()
        made: dict[str, fx.Node] = {}

        def read(value: Any) -> Any:
            if isinstance(value, Reference):
                return made[value.name]
            return value.find() if isinstance(value, Operator) else value

        for name, op, target, args, kwargs, meta in self.nodes:
            args, kwargs = map_aggregate(args, read), map_aggregate(kwargs, read)
            made[name] = graph.create_node(op, read(target), args, kwargs, name)
            made[name].meta.update(meta)
        graph.set_codegen(self.codegen)
        return graph


def _written(node: fx.Node) -> tuple[Any, ...]:
    args, kwargs = map_aggregate(node.args, _stand_in), map_aggregate(node.kwargs, _stand_in)
    meta = {key: node.meta[key] for key in KEPT if key in node.meta}
    return node.name, node.op, _stand_in(node.target), args, kwargs, meta


def _stand_in(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return Reference(value.name)
    if isinstance(value, torch._ops.OpOverload):
        return Operator(str(value))
    if isinstance(value, torch._ops.HigherOrderOperator):
        return Operator(f"higher_order.{value.name()}")
    return value
