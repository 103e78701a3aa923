"""Pass: write contractions of two tensors as matrix products, which is what rules look for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from remixer.passes.base import Pass
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import arguments
from remixer.rewrite.program import shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Contraction:
    """An einsum of two tensors as a matrix product (batch, rows, sum) @ (batch, sum, columns).

    Attributes:
        batch: labels that the result keeps, and that both tensors have, or only one of them.
        rows: the label of the first tensor's rows.
        summed: the label that is summed over.
        columns: the label of the second tensor's columns.
        result: the labels of the result.
    """

    batch: str
    rows: str
    summed: str
    columns: str
    result: str

    @classmethod
    def of(cls, first: str, second: str, result: str) -> Contraction | None:
        """The matrix product that an equation is, or None where it is none.

        Examples:
            >>> Contraction.of("bhid", "bjd", "bhij")
            Contraction(batch='bh', rows='i', summed='d', columns='j', result='bhij')
        """
        if any(len(set(labels)) != len(labels) for labels in (first, second, result)) or len(result) < 3:
            return None
        summed = [label for label in first if label in second and label not in result]
        rows = [label for label in first if label not in second]
        columns = [label for label in second if label not in first]
        if len(rows) > 1 or len(columns) > 1:  # heads that only one of them has: the result ends in rows, columns
            rows, columns = ([label for label in own if label in result[-2:]] for own in (rows, columns))
        if [len(rows), len(summed), len(columns)] != [1, 1, 1]:
            return None
        apart = (rows[0], columns[0])
        batch = "".join(label for label in result if label not in apart)
        if set(first) | set(second) != {*batch, *apart, *summed} or not set(apart) <= set(result):
            return None
        return cls(batch, rows[0], summed[0], columns[0], result)


@dataclass(frozen=True)
class EinsumToMatmul(Pass):
    """Write every einsum that is a batched product of two matrices as permutes and one matmul."""

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        for node in list(editor.graph.nodes):
            if node.op == "call_function" and node.target is aten.einsum.default:
                _rewrite(editor, node)


def _rewrite(editor: Editor, node: fx.Node) -> None:
    given = arguments(node)
    equation, operands = str(given["equation"]).replace(" ", ""), given["tensors"]
    if len(operands) != 2 or "->" not in equation or "." in equation or given["path"] is not None:
        return
    inputs, result = equation.split("->")
    first, second = inputs.split(",")
    left, right = operands
    found = Contraction.of(first, second, result)
    if found is not None and result.index(found.rows) > result.index(found.columns):
        first, second, left, right = second, first, right, left  # rather than exchange rows and columns of the result
        found = Contraction.of(first, second, result)
    if found is None or shape_of(left) is None or shape_of(right) is None:
        return
    with editor.rewriting("EinsumToMatmul", node):
        rows = _ordered(editor, node, left, first, found.batch + found.rows + found.summed)
        # Keys are laid out as (..., columns, sum) and exchanged, as people write it: then rules read through it.
        exchanged = second.index(found.columns) < second.index(found.summed)
        order = found.columns + found.summed if exchanged else found.summed + found.columns
        columns = _ordered(editor, node, right, second, found.batch + order)
        if exchanged:
            columns = editor.call(aten.transpose.int, columns, -1, -2, before=node)
        product = editor.call(aten.matmul.default, rows, columns, before=node)
        editor.replace(node, _ordered(editor, node, product, found.batch + found.rows + found.columns, result))
    editor.erase(node)


def _ordered(editor: Editor, node: fx.Node, operand: fx.Node, labels: str, wanted: str) -> fx.Node:
    """An operand with its labels in the wanted order, those that it hasn't as dimensions of size 1."""
    there = [label for label in wanted if label in labels]
    order = [labels.index(label) for label in there]
    if order != sorted(order):
        operand = editor.call(aten.permute.default, operand, order, before=node)
    for dim, label in enumerate(wanted):
        if label not in labels:
            operand = editor.call(aten.unsqueeze.default, operand, dim, before=node)
    return operand
