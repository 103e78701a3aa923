"""Pass: repeat heads last, so that what is repeated is one node in the layout that attention reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from remixer.passes.base import Pass
from remixer.passes.operands import COPIES, RESHAPES, STRETCHES
from remixer.rewrite.editor import Editor
from remixer.rewrite.effects import storages_of, written_storages
from remixer.rewrite.match import arguments
from remixer.rewrite.program import shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Repetition:
    """Each entry of `source` along `dim` comes `count` times.

    Where it is `merged`, the source has a dimension of size 1 behind `dim`, which was stretched and merged into it.
    """

    source: fx.Node
    dim: int
    count: int
    merged: bool

    @classmethod
    def of(cls, node: fx.Node) -> Repetition | None:
        """The repetition that a node is, as one operator or as a reshape of a stretched tensor; or None."""
        if node.target is aten.repeat_interleave.self_int:
            given = arguments(node)
            numbers = isinstance(given["repeats"], int) and isinstance(given["dim"], int)
            return cls(given["self"], given["dim"] % _rank(node), given["repeats"], False) if numbers else None
        if node.target not in RESHAPES or not isinstance(stretched := node.args[0], fx.Node):
            return None
        while stretched.target in COPIES and isinstance(stretched.args[0], fx.Node):
            stretched = stretched.args[0]
        if stretched.target not in STRETCHES or not isinstance(source := stretched.args[0], fx.Node):
            return None
        before, after, merged = shape_of(source), shape_of(stretched), shape_of(node)
        if before is None or after is None or len(before) != len(after):
            return None
        differ = [dim for dim, size in enumerate(after) if size != before[dim]]
        if len(differ) != 1 or (one := differ[0]) == 0 or not after[one].is_Integer:
            return None
        if merged != (*after[: one - 1], after[one - 1] * after[one], *after[one + 1 :]):
            return None
        return cls(source, one - 1, int(after[one]), True)


@dataclass(frozen=True)
class RepeatHeadsLast(Pass):
    """Write a permutation of repeated heads as a repetition of permuted heads.

    (B, S, G, 1, D), stretched and merged to (B, S, H, D) and brought to (B, H, S, D), is then a (B, G, S, D) that is
    repeated. So is what comes from a slice of size 1 in place of a new dimension.
    """

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        changed = written_storages(editor.graph)
        for node in list(editor.graph.nodes):
            order = _order(node)
            merged = node if order is None else node.args[0]
            found = Repetition.of(merged) if isinstance(merged, fx.Node) else None
            if found is None or changed & storages_of(node):
                continue
            usual = not found.merged or found.source.target is aten.unsqueeze.default
            if (order is None and usual) or (order is not None and order[found.dim] == found.dim):
                continue  # rules read them as they are; where the heads stay in place, a key is exchanged
            with editor.rewriting("RepeatHeadsLast", node):
                one, dim = found.source, found.dim
                if found.merged:
                    one = editor.call(aten.squeeze.dim, one, dim + 1, before=node)
                if order is not None:
                    one = editor.call(aten.permute.default, one, order, before=node)
                    dim = order.index(dim)
                repeated = editor.call(aten.repeat_interleave.self_int, one, found.count, dim, before=node)
                editor.replace(node, repeated)


def _order(node: fx.Node) -> list[int] | None:
    """Which dimension of its operand each dimension of a permutation is, or None where it is none."""
    rank = _rank(node)
    if node.target is aten.permute.default:
        return [dim % rank for dim in arguments(node)["dims"]]
    if node.target is not aten.transpose.int:
        return None
    given, order = arguments(node), list(range(rank))
    first, second = given["dim0"] % rank, given["dim1"] % rank
    order[first], order[second] = second, first
    return order


def _rank(node: fx.Node) -> int:
    return len(shape_of(node) or ())
