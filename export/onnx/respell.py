"""Operators that torch.onnx writes wrongly or not at all, in the words of others that it writes right."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

aten = torch.ops.aten
_RESHAPING = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default)


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
        elif node.target in _RESHAPING and _changes_no_shape(node):
            node.replace_all_uses_with(node.args[0])  # so that what it stood between can be put together
            graph.erase_node(node)
        elif torch.Tag.pointwise in getattr(node.target, "tags", ()) and _is_bfloat16(node):
            _through_float32(graph, node)
    graph.lint()
    source.graph_module.recompile()


def _changes_no_shape(node: fx.Node) -> bool:
    """Whether a tensor keeps its sizes, whatever they are."""
    before, after = _value(node.args[0]).shape, _value(node).shape
    return len(before) == len(after) and all(
        statically_known_true(old == new) for old, new in zip(before, after, strict=True)
    )


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


def _through_float32(graph: fx.Graph, node: fx.Node) -> None:
    """Arithmetic in bfloat16, which is float32 and then rounded, and which onnxruntime's CPU provider doesn't have."""

    def cast(given: Any, *dtypes: torch.dtype) -> Any:
        for dtype in dtypes if isinstance(given.meta["val"], Tensor) else ():
            value = given.meta["val"].to(dtype)
            given = graph.call_function(aten.to.dtype, (given, dtype))
            given.meta = {**node.meta, "val": value}
        return given

    with graph.inserting_before(node):
        args = map_arg(node.args, lambda given: cast(given, torch.bfloat16, torch.float32))
        precise = graph.call_function(node.target, args, dict(node.kwargs))  # type: ignore[arg-type]
    precise.meta = {**node.meta, "val": _value(node).float()}
    node.target, node.args, node.kwargs = aten.to.dtype, (precise, torch.bfloat16), {}


def _is_bfloat16(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def _is_node(given: Any) -> bool:
    return isinstance(given, fx.Node)


def _value(node: Any) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value
