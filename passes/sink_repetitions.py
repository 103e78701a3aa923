"""Pass: what is done alike to all copies of a head is done to the head, which is repeated afterwards."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx
from torch.fx.node import map_arg

from remixer.passes.base import Pass
from remixer.passes.operands import RESHAPES
from remixer.passes.repeat_heads_last import Repetition
from remixer.passes.scores import CASTS
from remixer.rewrite.editor import Editor
from remixer.rewrite.effects import storages_of, writes, written_storages
from remixer.rewrite.match import arguments
from remixer.rewrite.program import shape_of

aten = torch.ops.aten
_ALONG_ONE = {
    aten.slice.Tensor,
    aten.cat.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
}
_OVER_FEATURES = {aten.layer_norm.default, aten.rms_norm.default}


@dataclass(frozen=True)
class SinkRepetitions(Pass):
    """Move repetitions of heads behind operators that treat all copies alike, such as a rotary embedding's.

    Grouped heads that are repeated first and rotated then are so read as what they are. A repetition moves only
    where each other operand is the same repetition or doesn't tell the copies apart.
    """

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        changed = written_storages(editor.graph)
        sunk: dict[fx.Node, Repetition] = {}  # what is a repetition, and of which node with each head once
        for node in list(editor.graph.nodes):
            found = Repetition.of(node)
            if changed & storages_of(node) or writes(node):
                continue
            if found is not None and len(shape_of(node) or ()) == 4:
                sunk[node] = found
            elif (unchanged := _unchanged(node)) in sunk:
                sunk[node] = replace(sunk[unchanged], source=_source(editor, sunk[unchanged]), merged=False)
            elif (common := _common(node, sunk)) is not None:
                sunk[node] = replace(common, source=_once(editor, node, sunk))
            else:
                for operand in node.all_input_nodes:
                    if operand in sunk and Repetition.of(operand) is None and shape_of(operand) is not None:
                        _repeat(editor, operand, sunk[operand], node)


def _once(editor: Editor, node: fx.Node, sunk: dict[fx.Node, Repetition]) -> fx.Node:
    """The same operator on what its operands repeat."""
    assert callable(node.target)
    with editor.rewriting("SinkRepetitions", node):
        args, kwargs = map_arg(
            (node.args, node.kwargs), lambda operand: _source(editor, sunk[operand]) if operand in sunk else operand
        )
        return editor.call(node.target, *args, before=node, **kwargs)


def _source(editor: Editor, repetition: Repetition) -> fx.Node:
    """What is repeated, without the dimension that was put in for it."""
    one = repetition.source
    if not repetition.merged:
        return one
    for user in one.users:
        if user.target is aten.squeeze.dim and user.args[1] == repetition.dim + 1:
            return user
    return editor.call(aten.squeeze.dim, one, repetition.dim + 1, before=one.next)


def _repeat(editor: Editor, operand: fx.Node, repetition: Repetition, reader: fx.Node) -> None:
    """Let a reader read a repetition that comes last."""
    for user in repetition.source.users:
        if user.target is aten.repeat_interleave.self_int and user.args[1:] == (repetition.count, repetition.dim):
            editor.read(reader, operand, user)
            return
    with editor.rewriting("SinkRepetitions", operand):
        one, count, dim = repetition.source, repetition.count, repetition.dim
        editor.read(reader, operand, editor.call(aten.repeat_interleave.self_int, one, count, dim, before=operand))


def _unchanged(node: fx.Node) -> fx.Node:
    """The operand of a reshape that changes no size; the node itself where it is none."""
    one = node.args[0] if node.target in RESHAPES else node
    return one if isinstance(one, fx.Node) and shape_of(one) == shape_of(node) else node


def _common(node: fx.Node, sunk: dict[fx.Node, Repetition]) -> Repetition | None:
    """The repetition that an operator hands on, if it treats all copies alike."""
    found = [sunk[operand] for operand in node.all_input_nodes if operand in sunk]
    if not found or any((one.dim, one.count) != (found[0].dim, found[0].count) for one in found):
        return None
    first = replace(found[0], merged=False)
    return first if _alike(node, first.dim, sunk) else None


def _alike(node: fx.Node, dim: int, sunk: dict[fx.Node, Repetition]) -> bool:
    target = node.target
    if target is operator.getitem:
        return True
    if target in _ALONG_ONE:
        given = arguments(node)
        same = target is not aten.cat.default or all(part in sunk for part in given["tensors"])
        return same and isinstance(given["dim"], int) and given["dim"] % 4 != dim
    if target in _OVER_FEATURES:
        return len(arguments(node)["normalized_shape"]) == 1 and dim < 3 and node.args[0] in sunk
    if target is aten.mean.dim:
        given = arguments(node)
        return bool(given["keepdim"] and given["dim"]) and all(one % 4 != dim for one in given["dim"])
    if target in CASTS:
        return node.args[0] in sunk
    tags = target.tags if isinstance(target, torch._ops.OpOverload) else ()
    pointwise = torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags
    return pointwise and all(_is_same_for_all(operand, dim) for operand in _others(node, sunk))


def _others(node: fx.Node, sunk: dict[fx.Node, Repetition]) -> Iterator[fx.Node]:
    return (operand for operand in node.all_input_nodes if operand not in sunk)


def _is_same_for_all(operand: fx.Node, dim: int) -> bool:
    """Whether an operand has one entry for all that stands along a dimension of 4."""
    shape = shape_of(operand)
    return shape is not None and len(shape) <= 4 and (len(shape) < 4 - dim or shape[len(shape) - 4 + dim] == 1)
