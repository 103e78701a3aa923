"""Cutting a piece out of a graph and running it on inputs of one's choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import networkx as nx
import sympy
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from remixer.rewrite.effects import dependencies
from remixer.rewrite.program import Program, expression

# Operators whose result depends on the shape of these operands only, not on their values.
_SHAPE_ONLY: dict[Any, tuple[int, ...]] = {
    torch.ops.aten.sym_size.int: (0,),
    torch.ops.aten.zeros_like.default: (0,),
    torch.ops.aten.ones_like.default: (0,),
    torch.ops.aten.full_like.default: (0,),
    torch.ops.aten.empty_like.default: (0,),
    torch.ops.aten.new_zeros.default: (0,),
    torch.ops.aten.new_ones.default: (0,),
    torch.ops.aten.new_full.default: (0,),
    torch.ops.aten.new_empty.default: (0,),
    torch.ops.aten.expand_as.default: (1,),
    torch.ops.aten.type_as.default: (1,),
}


class Slicer:
    """Backward slices of one program, and their values.

    Writes into views are followed, so a slice holds all that its end depends on. Sizes are never computed from
    inputs: they are taken from the symbols.

    Args:
        program: whose graph is sliced; it must not change while the slicer is used.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._order = {node: index for index, node in enumerate(program.graph.nodes)}
        needs = dependencies(program.graph)
        for node in program.graph.nodes:
            if isinstance(node.meta.get("val"), (torch.SymInt, int)):
                needs.remove_edges_from(list(needs.in_edges(node)))
            for position in _SHAPE_ONLY.get(node.target, ()):
                operand = node.args[position]
                if sum(argument is operand for argument in node.args) == 1 and needs.has_edge(operand, node):
                    needs.remove_edge(operand, node)
        self._needs = needs

    def order(self, node: fx.Node) -> int:
        """Position of a node in the graph."""
        return self._order[node]

    def between(self, ends: Iterable[fx.Node], cuts: Iterable[fx.Node]) -> list[fx.Node]:
        """All nodes whose values the ends depend on, cuts left out, in the graph's order."""
        cuts = set(cuts)
        found: set[fx.Node] = set()
        visible = nx.restricted_view(self._needs, [cut for cut in cuts if cut in self._needs], [])
        for end in ends:
            if end not in cuts:
                found |= nx.ancestors(visible, end) | {end}
        return sorted(found, key=self._order.__getitem__)

    def run(
        self,
        end: fx.Node,
        feeds: Mapping[fx.Node, Any],
        sizes: Mapping[sympy.Symbol, int],
        overrides: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """The value of a node, given the values of others.

        Args:
            end: the node.
            feeds: values of nodes; the slice stops at them.
            sizes: value of every symbol.
            overrides: tensors to take in place of parameters and buffers, by name.

        Raises:
            KeyError: the slice reaches an input that was not fed.
        """
        overrides = overrides or {}
        values: dict[fx.Node, Any] = {}
        nodes = self.between([end], feeds)
        last = {operand: node for node in nodes for operand in node.all_input_nodes}
        for node in nodes:
            values[node] = self._value(node, values, feeds, sizes, overrides)
            for operand in node.all_input_nodes:
                if last[operand] is node:
                    values.pop(operand, None)
        return values[end] if end in values else feeds[end]

    def _value(
        self,
        node: fx.Node,
        values: dict[fx.Node, Any],
        feeds: Mapping[fx.Node, Any],
        sizes: Mapping[sympy.Symbol, int],
        overrides: Mapping[str, Tensor],
    ) -> Any:
        recorded = node.meta.get("val")
        if isinstance(recorded, (torch.SymInt, int)) and not isinstance(recorded, bool):
            return evaluate(recorded, sizes)
        if node.op == "placeholder":
            raise KeyError(f"the slice depends on the values of input {node.target!r}")
        if node.op == "get_attr":
            found = overrides.get(str(node.target))
            return _attribute(self.program.graph_module, str(node.target)) if found is None else found

        def value_of(operand: fx.Node) -> Any:
            if operand in values:
                return values[operand]
            if operand in feeds:
                return feeds[operand]
            return self._stand_in(operand, sizes)

        args, kwargs = map_arg((node.args, node.kwargs), value_of)
        if node.op == "call_module":
            return self.program.graph_module.get_submodule(str(node.target))(*args, **kwargs)
        target: Any = node.target
        if target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default  # fed values need not have the layout that was recorded
        return target(*args, **kwargs)

    def _stand_in(self, operand: fx.Node, sizes: Mapping[sympy.Symbol, int]) -> Any:
        """For an operand of which only the shape is read."""
        recorded = operand.meta.get("val")
        if isinstance(recorded, Tensor):
            shape = [evaluate(size, sizes) for size in recorded.shape]
            return torch.empty(shape, dtype=recorded.dtype, device=recorded.device)
        if isinstance(recorded, (torch.SymInt, int)):
            return evaluate(recorded, sizes)
        raise KeyError(f"the value of {operand.name} is not known")


def evaluate(size: int | torch.SymInt, sizes: Mapping[sympy.Symbol, int]) -> int:
    """A symbolic size at given values of its symbols.

    Raises:
        KeyError: a symbol has no value.
    """
    value = expression(size).xreplace({symbol: sympy.Integer(number) for symbol, number in sizes.items()})
    if value.free_symbols:
        raise KeyError(f"size {value} depends on symbols without a value")
    return int(value)


def _attribute(root: fx.GraphModule, path: str) -> Any:
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name)
    return found
