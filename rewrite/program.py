"""A captured model: its graph, the inputs that it was captured with, and what their symbols mean."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _LazyGraphModule

from remixer.rewrite.errors import CaptureError
from remixer.rewrite.graphs import copied
from remixer.rewrite.modules import keep_persistence


@dataclass(frozen=True)
class StaticDimension:
    """A dimension of an input that stayed fixed, and why."""

    input: str
    dim: int
    size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.input} dim {self.dim} is fixed at {self.size}: {self.reason}"


@dataclass(frozen=True)
class Program:
    """A torch.fx graph module with its example inputs and the symbols of its batch and length.

    Attributes:
        graph_module: the model; its parameters carry the names of the original checkpoint.
        args: positional example inputs.
        kwargs: example inputs by name.
        batch: symbols of the first dimensions of inputs.
        length: symbols of all other dimensions of inputs.
        limits: (smallest, largest) value of a symbol, largest None if unbounded.
        static: dimensions that stayed fixed.
        notes: sentences about the capture that its user should know.
        extended: what was made longer for longer inputs, and how: sentences.
    """

    graph_module: fx.GraphModule
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch: frozenset[sympy.Symbol] = frozenset()
    length: frozenset[sympy.Symbol] = frozenset()
    limits: Mapping[sympy.Symbol, tuple[int, int | None]] = field(default_factory=dict)
    static: tuple[StaticDimension, ...] = ()
    notes: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The graph."""
        return self.graph_module.graph

    @staticmethod
    def of(graph_module: fx.GraphModule) -> Program:
        """The program that a graph module belongs to, or one made from its nodes' recorded shapes.

        Graph modules that capture and passes return know their program, so that passes also take plain graph
        modules, as torch.fx pass managers hand them on.

        Raises:
            CaptureError: the graph module was unpickled, and its nodes' recorded shapes are lost.
        """
        if graph_module.meta.get("unpickled"):
            raise CaptureError(
                "this model comes from a pickle, which doesn't hold the shapes that passes and exporters go by. "
                "Rewrite the model that it was made from again, and load this one's state_dict() into that"
            )
        if "program" in graph_module.meta:
            return Program(graph_module, **graph_module.meta["program"])
        batch, length = input_symbols(graph_module.graph)
        return Program(graph_module, batch=batch, length=length)

    def with_graph_module(self, graph_module: fx.GraphModule) -> Program:
        """This program with another graph module, which is told its program."""
        known = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "graph_module"}
        graph_module.meta["program"] = known
        return replace(self, graph_module=graph_module)

    def copy(self) -> Program:
        """A program whose graph may be edited; parameters and buffers are shared.

        Its code is generated when it is first run or looked at, not after each pass.
        """
        old = self.graph_module
        new = _LazyGraphModule(old, copied(old.graph))
        new.meta = dict(old.meta)
        new.train(old.training)
        keep_persistence(old, new)
        return self.with_graph_module(new)


# Symbols that stand for one another, by the environment that torch.export made them in.
_UNITED: WeakKeyDictionary[Any, dict[sympy.Symbol, sympy.Symbol]] = WeakKeyDictionary()


def unite(sizes: Sequence[torch.SymInt]) -> None:
    """Read all these sizes, symbols of one export, as the first from now on."""
    common, *others = (size.node.expr for size in sizes)
    _UNITED.setdefault(sizes[0].node.shape_env, {}).update(dict.fromkeys(others, common))


def expression(size: int | torch.SymInt) -> sympy.Expr:
    """A size as a sympy expression of the inputs' symbols."""
    if not isinstance(size, torch.SymInt):
        return sympy.Integer(size)
    found = size.node.expr
    united = _UNITED.get(size.node.shape_env)
    return found.xreplace(united) if united and not found.is_Integer else found


def shape_of(node: fx.Node) -> tuple[sympy.Expr, ...] | None:
    """The symbolic shape of a node's value, or None if it is not one tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(expression(size) for size in value.shape)


def bytes_at(node: fx.Node, sizes: Mapping[sympy.Symbol, int]) -> int | None:
    """How many bytes a node's value takes at these sizes; None if it is not one tensor, or they don't say."""
    shape = shape_of(node)
    if shape is None:
        return None
    numbers = sympy.sympify(sympy.prod(shape, start=sympy.Integer(1)).xreplace(dict(sizes)))  # or it may be an int
    return int(numbers) * node.meta["val"].dtype.itemsize if numbers.is_Integer else None


def input_symbols(graph: fx.Graph) -> tuple[frozenset[sympy.Symbol], frozenset[sympy.Symbol]]:
    """Symbols of the inputs' first dimensions, and of all their other dimensions."""
    first: set[sympy.Symbol] = set()
    other: set[sympy.Symbol] = set()
    for node in graph.find_nodes(op="placeholder"):
        for dim, size in enumerate(shape_of(node) or ()):
            (other if dim else first).update(size.free_symbols)
    return frozenset(first - other), frozenset(other)


def fake_mode(graph: fx.Graph) -> FakeTensorMode | contextlib.nullcontext[None]:
    """The mode that the nodes' fake values live in, with their symbolic shapes."""
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            assert isinstance(mode, FakeTensorMode)
            return mode
    return contextlib.nullcontext()
