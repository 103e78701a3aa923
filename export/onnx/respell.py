"""Operators that torch.onnx writes wrongly or not at all, in the words of others that it writes right."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

aten = torch.ops.aten


def respell(source: ExportedProgram) -> None:
    """Edit what torch.export gave in place; its numbers, and the names of its values, stay the same."""
    graph = source.graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten.rsub.Scalar:
            _number_minus_integers(graph, node)
        elif node.target in (aten.chunk.default, aten.split.Tensor):
            _pieces(graph, node)
        elif node.target is aten.unsqueeze.default and _value(node).is_complex():
            tensor, dim = node.args
            node.target, node.args = aten.stack.default, ([tensor], dim)
    graph.lint()
    source.graph_module.recompile()


def _number_minus_integers(graph: fx.Graph, node: fx.Node) -> None:
    """`1.0 - mask` of whole numbers becomes `-mask + 1.0`: torch.onnx decomposes it to what no operator takes."""
    tensor, number, *others = node.args
    if isinstance(number, int) or others or node.kwargs or _value(tensor).is_floating_point():
        return
    with graph.inserting_before(node):
        negative = graph.call_function(aten.neg.default, (tensor,))
    negative.meta = {**node.meta, "val": -_value(tensor)}
    node.target, node.args = aten.add.Tensor, (negative, number)


def _pieces(graph: fx.Graph, node: fx.Node) -> None:
    """Pieces of a size that differs from run to run become slices: onnxscript stumbles over how many they are."""
    given: tuple[Any, ...] = (*node.args, 0)
    tensor, size, value = given[0], given[1], _value(given[0])
    dim = given[2] % value.dim()
    differs = not isinstance(value.shape[dim], int) or isinstance(size, fx.Node)
    if node.kwargs or not differs or any(piece.target is not operator.getitem for piece in node.users):
        return

    def computed(function: Any, *args: Any) -> fx.Node:
        """A number of tokens, in front of the pieces."""
        with graph.inserting_before(node):
            made = graph.call_function(function, args)
        made.meta = {**node.meta, "val": function(*(each.meta["val"] if _is_node(each) else each for each in args))}
        return made

    if node.target is aten.chunk.default:
        count, tokens = size, computed(aten.sym_size.int, tensor, dim)
        size = computed(operator.floordiv, computed(operator.add, tokens, count - 1), count)
    for piece in list(node.users):
        place: Any = piece.args[1]
        start, end = (computed(operator.mul, size, index) for index in (place, place + 1))
        piece.target, piece.args = aten.slice.Tensor, (tensor, dim, start, end)
    graph.erase_node(node)


def _is_node(given: Any) -> bool:
    return isinstance(given, fx.Node)


def _value(node: Any) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value
