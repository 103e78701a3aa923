"""Cutting a piece out of a graph and running it on inputs of one's choice."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import networkx as nx
import sympy
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from remixer.rewrite.devices import CPU, moved
from remixer.rewrite.effects import dependencies, writes
from remixer.rewrite.modules import weights
from remixer.rewrite.program import Program, expression

_HALVES = (torch.float16, torch.bfloat16)
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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run small tensors on one thread for a while: waking the others costs more than they bring."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


class Slicer:
    """Backward slices of one program, and their values.

    Writes into views are followed, so a slice holds all that its end depends on. Sizes are never computed
    from inputs: they are taken from the symbols. Slices are run on the CPU, wherever the program's weights are.

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
        self._modules: dict[str, nn.Module] = {}

    def order(self, node: fx.Node) -> int:
        """Position of a node in the graph."""
        return self._order[node]

    def between(self, ends: Iterable[fx.Node], cuts: Iterable[fx.Node]) -> list[fx.Node]:
        """All nodes whose values the ends depend on, cuts left out, in the graph's order."""
        cuts = set(cuts)
        found: set[fx.Node] = set()

        def needed(node: fx.Node) -> Iterator[fx.Node]:
            return (other for other in self._needs.pred[node] if other not in cuts)

        for end in ends:
            if end not in cuts:
                found.add(end)
                found.update(node for _, node in nx.generic_bfs_edges(self._needs, end, needed))
        return sorted(found, key=self._order.__getitem__)

    def run(
        self,
        end: fx.Node,
        feeds: Mapping[fx.Node, Any],
        sizes: Mapping[sympy.Symbol, int],
        overrides: Mapping[str, Tensor] | None = None,
        *,
        widen: bool = False,
    ) -> Any:
        """The value of a node, given the values of others.

        Args:
            end: the node.
            feeds: values of nodes; the slice stops at them.
            sizes: value of every symbol.
            overrides: tensors to take in place of parameters and buffers, by name.
            widen: compute in float32 what the graph computes in half precision, casts included.

        Raises:
            KeyError: the slice reaches an input that was not fed.
        """
        overrides = overrides or {}
        feeds = {node: _here(value) for node, value in feeds.items()}
        values: dict[fx.Node, Any] = {}
        nodes = self.between([end], feeds)
        if end in feeds:
            return feeds[end]
        writing = any(node.op == "call_function" and writes(node) for node in nodes)
        if writing:  # neither what the caller feeds nor the program's own weights may be written into
            feeds = {node: _own(value) for node, value in feeds.items()}
        last = {operand: node for node in nodes for operand in node.all_input_nodes}
        for node in nodes:
            value = self._value(node, values, feeds, sizes, overrides, widen)
            values[node] = _own(value) if writing and node.op == "get_attr" else value
            for operand in node.all_input_nodes:
                if last[operand] is node:
                    values.pop(operand, None)
        return values[end]

    def _value(
        self,
        node: fx.Node,
        values: dict[fx.Node, Any],
        feeds: Mapping[fx.Node, Any],
        sizes: Mapping[sympy.Symbol, int],
        overrides: Mapping[str, Tensor],
        widen: bool,
    ) -> Any:
        recorded = node.meta.get("val")
        if isinstance(recorded, (torch.SymInt, int)) and not isinstance(recorded, bool):
            return evaluate(recorded, sizes)
        if node.op == "placeholder":
            raise KeyError(f"the slice depends on the values of input {node.target!r}")
        if node.op == "get_attr":
            found = overrides.get(str(node.target))
            if found is None:
                found = attrgetter(str(node.target))(self.program.graph_module)
            found = map_aggregate(found, _here)
            return map_aggregate(found, widened) if widen else found

        def value_of(operand: fx.Node) -> Any:
            if operand in values:
                return values[operand]
            if operand in feeds:
                return feeds[operand]
            if self._needs.has_edge(operand, node):
                raise KeyError(f"the value of {operand.name} is not known: the graph changed under the slicer")
            return self._stand_in(operand, sizes)

        args, kwargs = map_aggregate(map_arg((node.args, dict(node.kwargs)), value_of), _here)
        if widen:
            args, kwargs = map_aggregate((args, kwargs), widened)
        if node.op == "call_module":
            return self._module(str(node.target))(*args, **kwargs)
        target: Any = node.target
        if target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default  # fed values need not have the layout that was recorded
        return target(*args, **kwargs)

    def _module(self, path: str) -> nn.Module:
        """A module of the program, or a copy of it if it is somewhere else than on the CPU."""
        module = self.program.graph_module.get_submodule(path)
        if all(tensor.device == CPU for tensor in weights(module).values()):
            return module
        if path not in self._modules:
            self._modules[path] = copy.deepcopy(module).to(CPU)
        return self._modules[path]

    def _stand_in(self, operand: fx.Node, sizes: Mapping[sympy.Symbol, int]) -> Any:
        """For an operand of which only the shape is read."""
        recorded = operand.meta.get("val")
        if isinstance(recorded, Tensor):
            shape = [evaluate(size, sizes) for size in recorded.shape]
            return torch.empty(shape, dtype=recorded.dtype)
        if isinstance(recorded, (torch.SymInt, int)):
            return evaluate(recorded, sizes)
        raise KeyError(f"the value of {operand.name} is not known")


def evaluate(size: int | torch.SymInt, sizes: Mapping[sympy.Symbol, int]) -> int:
    """A symbolic size at given values of its symbols.

    Raises:
        KeyError: a symbol has no value, or the size divides by what is zero there.
    """
    try:
        value = expression(size).xreplace({symbol: sympy.Integer(number) for symbol, number in sizes.items()})
    except ZeroDivisionError as error:
        raise KeyError(f"size {size} divides by zero at the sizes that are tried") from error
    if value.free_symbols:
        raise KeyError(f"size {value} depends on symbols without a value")
    return int(value)


def widened(value: Any) -> Any:
    """A half-precision tensor or dtype in float32; anything else as it is."""
    if isinstance(value, torch.dtype):
        return torch.float32 if value in _HALVES else value
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALVES else value


def _here(value: Any) -> Any:
    return moved(value, CPU)


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
