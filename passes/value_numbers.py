"""Which nodes of a graph compute the same value, from the same operators on the same operands."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.node import map_arg

from remixer.rewrite.effects import storages_of, written_storages


def value_numbers(graph: fx.Graph) -> dict[fx.Node, int]:
    """A number for every node, the same for nodes that are sure to have the same value.

    What is written to, drawn at random or computed by a module shares its number with nobody.
    """
    written = written_storages(graph)
    numbers: dict[fx.Node, int] = {}
    known: dict[str, int] = {}
    for node in graph.nodes:
        shared = _repeatable(node) and not (written and storages_of(node) & written)
        args = map_arg((node.args, node.kwargs), lambda operand: f"%{numbers[operand]}")
        key = repr((node.op, str(node.target), args)) if shared else f"only {node.name}"
        numbers[node] = known.setdefault(key, len(known))
    return numbers


def _repeatable(node: fx.Node) -> bool:
    if node.op in ("placeholder", "get_attr"):
        return True
    if node.op != "call_function":
        return False
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return getattr(target, "__module__", "") == "_operator"
