"""Remove what changes nothing, so that rules meet few spellings."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from remixer.passes.base import Pass
from remixer.rewrite.editor import Editor
from remixer.rewrite.effects import is_impure, storages_of, written_storages
from remixer.rewrite.match import arguments
from remixer.rewrite.program import shape_of

aten = torch.ops.aten


def _same_shape(node: fx.Node, operand: fx.Node) -> bool:
    return shape_of(node) is not None and shape_of(node) == shape_of(operand)


def _cast(node: fx.Node, operand: fx.Node) -> bool:
    """A cast to the dtype and device that the operand has."""
    given, result = operand.meta["val"], node.meta["val"]
    options = arguments(node)
    same = given.dtype == result.dtype and given.device == result.device
    as_it_lies = options.get("memory_format") in (None, torch.preserve_format)
    return same and as_it_lies and not options.get("copy", False)


def _slice(node: fx.Node, operand: fx.Node) -> bool:
    """A slice of everything; one that only happens to keep the size at the traced length is not."""
    given = arguments(node)
    return given["start"] in (None, 0) and given["end"] in (None, sys.maxsize) and given["step"] == 1


def _identity(node: fx.Node, operand: fx.Node) -> bool:
    return True


def _neutral(neutral: float) -> Callable[[fx.Node, fx.Node], bool]:
    """Arithmetic with a constant that changes neither value, shape nor dtype."""

    def fold(node: fx.Node, operand: fx.Node) -> bool:
        given = arguments(node)
        constant = given["other"]
        plain = isinstance(constant, (int, float)) and constant == neutral
        return (
            plain
            and given.get("alpha", 1) == 1
            and given.get("rounding_mode") is None
            and operand.meta["val"].dtype == node.meta["val"].dtype
        )

    return fold


def _expand_as(node: fx.Node, operand: fx.Node) -> bool:
    """An expansion that its readers would make by themselves: the other operand has the expanded shape already."""
    return _same_shape(node, operand) or all(
        user.target in _BROADCASTING
        and any(other is not node and shape_of(other) == shape_of(node) for other in user.all_input_nodes)
        for user in node.users
    )


def _minus(node: fx.Node, operand: fx.Node) -> bool:
    """Minus nothing, or minus the largest score of every row, of which a softmax takes no notice."""
    return _neutral(0)(node, operand) or (_is_own_maximum(node, operand) and _only_in_softmax(node))


def _is_own_maximum(node: fx.Node, operand: fx.Node) -> bool:
    other = arguments(node)["other"]
    if not isinstance(other, fx.Node) or arguments(node)["alpha"] != 1:
        return False
    if other.target is operator.getitem and other.args[1] == 0 and isinstance(other.args[0], fx.Node):
        other = other.args[0]
    if other.target not in (aten.amax.default, aten.max.dim):
        return False
    given = arguments(other)
    last = len(shape_of(operand) or ()) - 1
    return given["self"] is operand and given["dim"] in (-1, last, [-1], [last]) and given["keepdim"] is True


def _only_in_softmax(node: fx.Node) -> bool:
    last = len(shape_of(node) or ()) - 1
    return all(
        (user.target in _SOFTMAXES and user.args[0] is node and arguments(user)["dim"] in (-1, last))
        or (user.target is aten.to.dtype and _only_in_softmax(user))
        for user in node.users
    )


FOLDS: dict[Any, Callable[[fx.Node, fx.Node], bool]] = {
    aten.to.dtype: _cast,
    aten.to.device: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.other: _cast,
    aten.type_as.default: _cast,
    aten.slice.Tensor: _slice,
    aten.expand.default: _same_shape,
    aten.expand_as.default: _expand_as,
    aten.alias.default: _identity,
    aten.add.Tensor: _neutral(0),
    aten.sub.Tensor: _minus,
    aten.mul.Tensor: _neutral(1),
    aten.div.Tensor: _neutral(1),
}
# Operators that broadcast their operands, and take the place of none of them.
_BROADCASTING = (aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.ScalarSelf, aten.where.ScalarOther)
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)
_COPIES = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)


@dataclass(frozen=True)
class Canonicalise(Pass):
    """Fold casts, slices, expansions and arithmetic that change nothing.

    `contiguous` stays, since a later `view` may need it; rules see through it. Arithmetic stays where a
    storage is written to: its result is a copy, and the operand is not.
    """

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        changed = written_storages(editor.graph)
        for node in list(editor.graph.nodes):
            fold = FOLDS.get(node.target) if node.op == "call_function" else None
            if fold is None or not node.args or not isinstance(operand := node.args[0], fx.Node):
                continue
            if not isinstance(operand.meta.get("val"), torch.Tensor) or node.meta.get("val") is None:
                continue
            if changed and node.target in _COPIES and changed & (storages_of(node) | storages_of(operand)):
                continue
            if fold(node, operand):
                _fold(editor, node, operand)


def _fold(editor: Editor, node: fx.Node, operand: fx.Node) -> None:
    """Have its readers read the operand; what only the node needed goes with it."""
    if _same_shape(node, operand):
        editor.replace(node, operand)
    else:  # an expansion that its readers make by themselves
        for user in list(node.users):
            editor.read(user, node, operand)
    unread = [node]
    while unread:
        gone = unread.pop()
        operands = gone.all_input_nodes
        editor.erase(gone)
        unread += [one for one in operands if not one.users and one.op == "call_function" and not is_impure(one)]
