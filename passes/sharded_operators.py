"""Along which dimension of what an operator gives the tokens lie, if they are spread in what it reads.

An operator that is not listed, or that mixes tokens, has no such dimension: its operands have to be whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from remixer.rewrite.program import shape_of

aten = torch.ops.aten
Dims = Mapping[fx.Node, int]

_SAME = {
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.lift_fresh_copy.default,
    aten.nan_to_num.default,
}
_SHAPES = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
}
_STRETCHES = {aten.expand.default, aten.expand_as.default, aten.broadcast_to.default}
_PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.mm.default}
_NORMS = {aten.layer_norm.default, aten.native_layer_norm.default}
_OVER_ONE_DIM = {  # operators whose second argument is the only dimension that they look along
    aten.softmax.int,
    aten.log_softmax.int,
    aten._softmax.default,
    aten.cumsum.default,
    aten.flip.default,
}
_REDUCTIONS = {
    aten.sum.dim_IntList,
    aten.mean.dim,
    aten.amax.default,
    aten.amin.default,
    aten.argmax.default,
    aten.var.correction,
    aten.linalg_vector_norm.default,
    aten.logsumexp.default,
}


def spread_dim(node: fx.Node, dims: Dims, tokens: sympy.Expr) -> int | None:
    """The dimension along which the tokens of a node's value lie, or None if the operator needs all of them.

    Args:
        node: at least one of whose operands is spread.
        dims: the dimensions of those that are.
        tokens: how many there are.
    """
    target: Any = node.target
    found: int | None = None
    if node.op == "call_function":
        rule = _RULES.get(target)
        if rule is not None:
            found = rule(node, dims, tokens)
        elif target is operator.getitem:
            found = dims[node.args[0]] if isinstance(node.args[0], fx.Node) else None
        elif torch.Tag.pointwise in getattr(target, "tags", ()) and not target._schema.is_mutable:
            found = _aligned(node, dims, tokens)
    elif node.op == "call_module":
        found = _aligned(node, dims, tokens)
    return found if found is None or _holds(node, found, tokens) else None


def _holds(node: fx.Node, dim: int, tokens: sympy.Expr) -> bool:
    """Whether a node's value has tokens along a dimension: a size for each of them, or for each of some rows."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return True  # several values, told apart by those who read them
    shape = shape_of(node) or ()
    return dim < len(shape) and rows_in(shape[dim], tokens) is not None


def rows_in(size: sympy.Expr, tokens: sympy.Expr) -> sympy.Expr | None:
    """How often all tokens come in a dimension, or None if it is not made of them."""
    if size == tokens:
        return sympy.Integer(1)
    rows = sympy.cancel(size / tokens) if tokens.free_symbols & size.free_symbols else None
    return rows if rows is not None and rows.is_polynomial() and not rows.free_symbols & tokens.free_symbols else None


def _operand(node: fx.Node, place: int = 0) -> fx.Node:
    operand = node.args[place]
    assert isinstance(operand, fx.Node)
    return operand


def _ndim(node: Any) -> int:
    return len(shape_of(node) or ())


def _same(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    return dims.get(_operand(node))


def _aligned(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    """By broadcasting, which lines dimensions up at the last one."""
    found = {_ndim(node) - _ndim(each) + dims[each] for each in node.all_input_nodes if each in dims}
    return found.pop() if len(found) == 1 else None


def _linear(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    dim = dims.get(_operand(node))
    others = [each for each in node.all_input_nodes[1:] if each in dims]
    return None if others or dim == _ndim(_operand(node)) - 1 else dim


def _addmm(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    spread = [each for each in node.all_input_nodes if each in dims]
    return 0 if spread == [node.args[1]] and dims[spread[0]] == 0 else None


def _product(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    """Rows of the first, columns of the second, or dimensions that both go through together."""
    out = _ndim(node)
    found = set()
    for place, kept in ((0, -2), (1, -1)):
        operand = _operand(node, place)
        if operand in dims:
            from_end = dims[operand] - _ndim(operand)
            if from_end == (-1 if place == 0 else -2) or _ndim(operand) < 2:
                return None
            found.add((from_end + out, from_end == kept))
    if len(found) != 1:
        return None
    ((dim, alone),) = found
    both = _operand(node, 0) in dims and _operand(node, 1) in dims
    return dim if alone != both else None


def _norm(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    dim, over = dims.get(_operand(node)), node.args[1]
    assert isinstance(over, (list, tuple))
    return dim if dim is not None and dim < _ndim(_operand(node)) - len(over) else None


def _shape(node: fx.Node, dims: Dims, tokens: sympy.Expr) -> int | None:
    """Where the same tokens lie in another shape: with as many numbers before them and behind them."""
    operand = _operand(node)
    if operand not in dims:
        return None
    before, after = shape_of(operand) or (), shape_of(node) or ()
    dim = dims[operand]
    rows = rows_in(before[dim], tokens)
    assert rows is not None
    wanted = sympy.prod(before[:dim]) * rows
    for place, size in enumerate(after):
        inside = rows_in(size, tokens)
        if inside is not None and sympy.expand(sympy.prod(after[:place]) * inside - wanted) == 0:
            return place
    return None


def _stretched(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    operand = _operand(node)
    return None if operand not in dims else _ndim(node) - _ndim(operand) + dims[operand]


def _repeated(node: fx.Node, dims: Dims, tokens: sympy.Expr) -> int | None:
    """Along other dimensions."""
    times: Any = node.args[1]
    dim = _stretched(node, dims, tokens)
    return dim if dim is not None and times[dim] == 1 else None


def _permuted(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    operand = _operand(node)
    order: Any = node.args[1]
    return [each % len(order) for each in order].index(dims[operand])


def _transposed(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    operand = _operand(node)
    given: Any = node.args[1:3] if len(node.args) == 3 else (0, 1)
    pair, dim = [each % _ndim(operand) for each in given], dims[operand]
    return pair[1 - pair.index(dim)] if dim in pair else dim


def _unsqueezed(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    place: Any = node.args[1]
    dim = dims[_operand(node)]
    return dim + 1 if place % _ndim(node) <= dim else dim


def _squeezed(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    operand = _operand(node)
    given: Any = node.args[1] if len(node.args) > 1 else []
    gone = {each % _ndim(operand) for each in (given if isinstance(given, (list, tuple)) else [given])}
    dim = dims[operand]
    return None if not gone or dim in gone else dim - sum(each < dim for each in gone)


def _other_dim(place: int, default: int = 0) -> Callable[[fx.Node, Dims, sympy.Expr], int | None]:
    """Of an operator that looks along one dimension, an argument of it: the tokens have to lie along another."""

    def rule(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
        operand = _operand(node)
        if operand not in dims or any(each in dims for each in node.all_input_nodes if each is not operand):
            return None
        given: Any = node.args[place] if len(node.args) > place else node.kwargs.get("dim", default)
        along = [each % _ndim(operand) for each in (given if isinstance(given, (list, tuple)) else [given])]
        return None if dims[operand] in along else dims[operand]

    return rule


def _selected(node: fx.Node, dims: Dims, tokens: sympy.Expr) -> int | None:
    """One index, or each, of another dimension, which goes."""
    kept = _other_dim(1)(node, dims, tokens)
    if kept is None:
        return None
    along: Any = node.args[1] if len(node.args) > 1 else 0
    return kept - (along % _ndim(_operand(node)) < kept)


def _sliced(node: fx.Node, dims: Dims, tokens: sympy.Expr) -> int | None:
    """Along another dimension, or the whole of this one."""
    operand = _operand(node)
    if operand not in dims:
        return None
    return dims[operand] if _other_dim(1)(node, dims, tokens) is not None or takes_all(node) else None


def takes_all(node: fx.Node) -> bool:
    """Whether a slice leaves out nothing."""
    return shape_of(node) == shape_of(_operand(node)) and len(node.args) < 5


def _reduced(node: fx.Node, dims: Dims, tokens: sympy.Expr) -> int | None:
    place = 2 if node.target is aten.linalg_vector_norm.default else 1
    kept = _other_dim(place)(node, dims, tokens)
    operand = _operand(node)
    if kept is None or len(node.args) <= place:
        return None
    given: Any = node.args[place]
    along = [each % _ndim(operand) for each in (given if isinstance(given, (list, tuple)) else [given])]
    return kept if _ndim(node) == _ndim(operand) else kept - sum(each < kept for each in along)


def _joined(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    pieces: Any = node.args[0]
    along: Any = node.args[1] if len(node.args) > 1 else 0
    found = {dims[each] for each in pieces if each in dims}
    if len(found) != 1:
        return None
    (dim,) = found
    if node.target is aten.stack.default:
        place = along % _ndim(node)
        return dim + 1 if place <= dim else dim
    return None if along % _ndim(node) == dim else dim


def _embedded(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    return dims.get(_operand(node, 1)) if _operand(node) not in dims else None


def _padded(node: fx.Node, dims: Dims, _: sympy.Expr) -> int | None:
    operand, pads = _operand(node), node.args[1]
    assert isinstance(pads, (list, tuple))
    touched = {_ndim(operand) - 1 - place // 2 for place, count in enumerate(pads) if count != 0}
    return None if dims[operand] in touched else dims[operand]


_RULES: dict[Any, Callable[[fx.Node, Dims, sympy.Expr], int | None]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_SHAPES, _shape),
    **dict.fromkeys(_STRETCHES, _stretched),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_NORMS, _norm),
    **dict.fromkeys(_OVER_ONE_DIM, _other_dim(1)),
    **dict.fromkeys(_REDUCTIONS, _reduced),
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.rms_norm.default: _norm,
    aten.repeat.default: _repeated,
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    aten.t.default: _transposed,
    aten.unsqueeze.default: _unsqueezed,
    aten.squeeze.dim: _squeezed,
    aten.squeeze.dims: _squeezed,
    aten.select.int: _selected,
    aten.unbind.int: _selected,
    aten.slice.Tensor: _sliced,
    aten.split.Tensor: _other_dim(2),
    aten.split_with_sizes.default: _other_dim(2),
    aten.index_select.default: _other_dim(1),
    aten.chunk.default: _other_dim(2),
    aten.topk.default: _other_dim(2, -1),
    aten.glu.default: _other_dim(1, -1),
    aten.sort.default: _other_dim(1, -1),
    aten.cat.default: _joined,
    aten.stack.default: _joined,
    aten.embedding.default: _embedded,
    aten.pad.default: _padded,
    aten.constant_pad_nd.default: _padded,
}
