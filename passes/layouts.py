"""Layouts of an attention's operands: (B, H, T, D), and what stands for it in other ranks.

Of three dimensions the first is (B * H), the batch leading, or the batch alone. Of five, the second and third are
(G, H / G), the key/value heads and the query heads that read each.
"""

from __future__ import annotations

import sympy
import torch
from torch import fx

from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss
from remixer.rewrite.program import shape_of

aten = torch.ops.aten


def heads_of(node: fx.Node) -> int | Miss:
    """How many heads an operand has; what is symbolic in a first dimension of three is the batch."""
    shape = shape_of(node)
    if shape is None or len(shape) not in (3, 4, 5):
        return Miss(f"{node.name} has shape {shape}, expected (B, H, T, D), (B * H, T, D) or (B, G, H / G, T, D)", node)
    if len(shape) > 3:
        heads = sympy.prod(shape[1:-2])
        return int(heads) if heads.is_Integer else Miss(f"the number of heads, {heads}, is not fixed", node)
    factor, symbols = sympy.sympify(shape[0]).as_coeff_Mul()
    if not factor.is_Integer or not symbols.free_symbols:
        return Miss(f"can't tell batch from heads in the first dimension, {shape[0]}", node)
    return int(factor)


def lifted(node: fx.Node, heads: int, editor: Editor, before: fx.Node) -> fx.Node:
    """An operand as (B, H, T, D), from any of the layouts."""
    rank = len(shape_of(node) or ())
    if rank == 3:
        return editor.call(aten.unflatten.int, node, 0, [-1, heads], before=before)
    return editor.call(aten.flatten.using_ints, node, 1, 2, before=before) if rank == 5 else node


def lowered(mixed: fx.Node, like: fx.Node, editor: Editor, before: fx.Node) -> fx.Node:
    """(B, H, T, E) in the layout of another node."""
    shape = shape_of(like) or ()
    if len(shape) == 3:
        return editor.call(aten.flatten.using_ints, mixed, 0, 1, before=before)
    if len(shape) == 5:
        return editor.call(aten.unflatten.int, mixed, 1, [int(shape[1]), int(shape[2])], before=before)
    return mixed


def lifted_mask(mask: fx.Node, heads: int, editor: Editor, before: fx.Node) -> fx.Node:
    """A mask for scores in any of the layouts, made to fit (B, H, T, S) ones."""
    shape = shape_of(mask) or ()
    if len(shape) == 3:
        if shape[0] == 1:
            return editor.call(aten.unsqueeze.default, mask, 1, before=before)
        found = heads_of(mask)
        if found == heads:
            return editor.call(aten.unflatten.int, mask, 0, [-1, heads], before=before)
        return editor.call(aten.unsqueeze.default, mask, 1, before=before) if heads == 1 else mask
    if len(shape) == 5:
        if shape[1] * shape[2] not in (1, heads):
            expanded = [-1, heads // int(shape[2]) if shape[1] == 1 else int(shape[1])]
            expanded.append(heads // expanded[1])
            mask = editor.call(aten.expand.default, mask, [*expanded, -1, -1], before=before)
        return editor.call(aten.flatten.using_ints, mask, 1, 2, before=before)
    return mask


def merges_heads(before: fx.Node, after: fx.Node) -> bool:
    """Whether a reshape of scores only goes from one layout to another: (T, S) stay the last two dimensions."""
    old, new = shape_of(before), shape_of(after)
    if old is None or new is None or not {len(old), len(new)} <= {3, 4, 5}:
        return False
    heads = heads_of(before)
    return old[-2:] == new[-2:] and not isinstance(heads, Miss) and heads == heads_of(after)
