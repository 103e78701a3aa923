"""Remove what changes nothing, so that rules meet few spellings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from remixer.passes.base import Pass
from remixer.rewrite.editor import Editor
from remixer.rewrite.effects import storages_of, written_storages
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


FOLDS: dict[Any, Callable[[fx.Node, fx.Node], bool]] = {
    aten.to.dtype: _cast,
    aten.to.device: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.other: _cast,
    aten.type_as.default: _cast,
    aten.slice.Tensor: _slice,
    aten.expand.default: _same_shape,
    aten.expand_as.default: _same_shape,
    aten.alias.default: _identity,
    aten.add.Tensor: _neutral(0),
    aten.sub.Tensor: _neutral(0),
    aten.mul.Tensor: _neutral(1),
    aten.div.Tensor: _neutral(1),
}
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
                editor.replace(node, operand)
                editor.erase(node)
