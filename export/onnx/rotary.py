"""Rotary position embedding (RoFormer, https://arxiv.org/abs/2104.09864, equation 34) as one operator of onnxruntime's.

As torch writes it, `x * cos + cat(-x[half:], x[:half]) * sin`, it is six nodes, each of which writes a tensor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from remixer.export.onnx.equal_halves import has_equal_halves
from remixer.export.onnx.nodes import (
    constant,
    in_front,
    is_last,
    is_operator,
    last_size,
    numbers,
    operands,
    put_in_place_of,
    rank_of,
)

DOMAIN = "com.microsoft"


class Rotation(NamedTuple):
    """A tensor to turn, (B, H, T, D), and by which angles, (1 or B, 1, T, D) with two equal halves of D."""

    tensor: Any
    cos: Any
    sin: Any


def rotate_at_once(model: Any) -> None:
    """Edit an onnx_ir.Model in place; its numbers stay the same."""
    graph = model.graph
    tables: dict[Any, Any] = {}
    for node in graph:
        found = _rotation(node)
        if found is None:
            continue
        places = tables.get((found.cos, "places")) or _places(graph, found.cos, node)
        cos, sin = (tables.get((each, "half")) or _half(graph, each, node) for each in (found.cos, found.sin))
        tables.update({(found.cos, "places"): places, (found.cos, "half"): cos, (found.sin, "half"): sin})
        turned = in_front(graph, node, "RotaryEmbedding", [found.tensor, places, cos, sin], "turned", domain=DOMAIN)
        put_in_place_of(node.outputs[0], turned)
        graph.remove(node, safe=True)
        graph.opset_imports[DOMAIN] = 1


def _rotation(node: Any) -> Rotation | None:
    """What a sum of two products turns, if it is a rotation."""
    products = [operands(value, "Mul") for value in node.inputs] if is_operator(node, "Add") else []
    for straight, crossed in (products, products[::-1]) if products else ():
        for tensor, cos in (straight, straight[::-1]) if straight and crossed else ():
            for turned, sin in (crossed, crossed[::-1]):
                found = Rotation(tensor, cos, sin)
                if _is_turned(turned, tensor) and _fits(found) and all(map(has_equal_halves, (cos, sin))):
                    return found
    return None


def _is_turned(value: Any, tensor: Any) -> bool:
    """Whether a value is `cat(-tensor[half:], tensor[:half])` of the last axis."""
    parts = operands(value, "Concat")
    size = last_size(tensor)
    if len(parts) != 2 or size is None or not is_last(value.producer().attributes.get_int("axis"), 4):
        return False
    (negative,) = operands(parts[0], "Neg") or (None,)
    return _piece(negative) == (tensor, size // 2, size) and _piece(parts[1]) == (tensor, 0, size // 2)


def _piece(value: Any) -> tuple[Any, int, int] | None:
    """Of which tensor (..., D) a value is a piece, and from where to where on the last axis."""
    node: Any = None if value is None else value.producer()
    source = None if node is None or not node.inputs else node.inputs[0]
    size, rank = last_size(source), rank_of(source)
    if size is None:
        return None
    if is_operator(node, "Split") and is_last(node.attributes.get_int("axis", 0), rank):
        sizes = numbers(node.inputs[1]) if len(node.inputs) > 1 else [size // len(node.outputs)] * len(node.outputs)
        place = node.outputs.index(value)
        return None if sizes is None else (source, sum(sizes[:place]), sum(sizes[: place + 1]))
    given = [numbers(each) for each in node.inputs[1:]] if is_operator(node, "Slice") else []
    if len(given) not in (3, 4) or any(each is None or len(each) != 1 for each in given):
        return None
    start, end, axis, *step = (each[0] for each in given if each is not None)
    if not is_last(axis, rank) or step not in ([], [1]):
        return None
    return source, *slice(start, end).indices(size)[:2]


def _fits(found: Rotation) -> bool:
    """Whether the operator takes tensors of these shapes."""
    shapes = [list(value.shape) for value in found if value is not None and value.shape is not None]
    if len(shapes) != 3 or any(len(shape) != 4 for shape in shapes):
        return False
    (rows, heads, *tokens), cos, sin = shapes
    return (
        cos == sin and cos[1:] == [1, *tokens] and cos[0] in (1, rows) and isinstance(heads, int) and tokens[1] % 2 == 0
    )


def _half(graph: Any, table: Any, node: Any) -> Any:
    """(N, D / 2), the first half of a table in front of a node, N = B * T."""
    import numpy as np

    half = table.shape[-1] // 2
    bounds = [constant(graph, np.array([number])) for number in (0, half, 3)]
    first = in_front(graph, node, "Slice", [table, *bounds], "half")
    return in_front(graph, node, "Reshape", [first, constant(graph, np.array([-1, half]))], "rows")


def _places(graph: Any, table: Any, node: Any) -> Any:
    """Where the rows of tokens lie in a table: (1,) where all samples have the same, or (B, T)."""
    import numpy as np

    first = constant(graph, np.array([0]))
    if table.shape[0] == 1:
        return first
    sizes = in_front(graph, node, "Shape", [table], "sizes")
    shape = in_front(graph, node, "Gather", [sizes, constant(graph, np.array([0, 2]))], "shape")
    rows = in_front(graph, node, "ReduceProd", [shape], "count", {"keepdims": 0})
    counted = [constant(graph, np.array(number)) for number in (0, 1)]
    count = in_front(graph, node, "Range", [counted[0], rows, counted[1]], "counted")
    return in_front(graph, node, "Reshape", [count, shape], "places")
