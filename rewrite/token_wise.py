"""Long inputs, some tokens at a time: what a graph does to each token by itself needs no more than a cache holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from remixer.rewrite.dropout import Dropout
from remixer.rewrite.effects import writes

aten = torch.ops.aten

# Features of all tokens from which it pays, and those of one part, in bytes.
WORTH, PART = 2**25, 2**20
_OF_ONE = {
    aten.relu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.rsqrt.default,
    aten.pow.Tensor_Scalar,
    aten.to.dtype,
}
_OF_TWO = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


class Reads(NamedTuple):
    """What a token-wise operator reads.

    Attributes:
        tokens: tensors (..., T, C) of which it reads the same token as it gives, or that are broadcast to these.
        whole: weights.
    """

    tokens: tuple[fx.Node, ...]
    whole: tuple[fx.Node, ...]


def by_parts(module: fx.GraphModule) -> Callable[..., Any] | None:
    """The forward function of a module in evaluation, which keeps little of what lies between its token mixers.

    Runs of operators that treat every token by itself, such as a feed-forward layer with its residual and norm, go
    over their tokens in parts where there are many of them. What it gives can differ from the module in rounding.

    Args:
        module: is read and not changed.

    Returns:
        A function that takes the module and its inputs; None if there is no such run.
    """
    graph = copy.deepcopy(module.graph)
    for node in graph.find_nodes(op="call_module"):
        if isinstance(module.get_submodule(str(node.target)), Dropout):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    found = runs(graph)
    for run in found:
        _put_together(run)
    if not found:
        return None
    graph.lint()
    forward: Callable[..., Any] = type(fx.GraphModule(module, graph)).forward
    return forward


def runs(graph: fx.Graph) -> list[list[fx.Node]]:
    """Token-wise operators, two and more, of which the last alone is read by others; in the order of the graph.

    All run where the last one stood, so there is none where something is written to in between.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    writing = [place for node, place in order.items() if writes(node)]
    found: list[list[fx.Node]] = []
    taken: set[fx.Node] = set()
    for end in reversed(graph.nodes):
        if end in taken or reads(end) is None:
            continue
        run, waiting = {end}, [end]
        while waiting:
            read = reads(waiting.pop())
            assert read is not None
            for node in read.tokens:
                if node not in run and reads(node) is not None and _read_only_by(node, run):
                    run.add(node)
                    waiting.append(node)
        places = sorted(order[node] for node in run)
        if len(run) > 1 and not any(places[0] < place < places[-1] for place in writing):
            taken |= run
            found.append(sorted(run, key=order.__getitem__))
    return found


def reads(node: fx.Node) -> Reads | None:
    """What a node reads if it gives each token by what that token holds, else None."""
    if node.op != "call_function" or node.kwargs.keys() - {"alpha", "approximate", "dtype"}:
        return None
    target, args = node.target, node.args
    if target in _OF_ONE:
        tokens, whole, options = args[:1], args[:0], args[1:]
    elif target in _OF_TWO:
        tokens, whole, options = args[:2], args[:0], args[2:]
    elif target is aten.linear.default:
        tokens, whole, options = args[:1], args[1:], args[:0]
    elif target in (aten.layer_norm.default, aten.rms_norm.default) and len(args[1]) == 1:  # type: ignore[arg-type]
        weights = 4 if target is aten.layer_norm.default else 3
        tokens, whole, options = args[:1], args[2:weights], args[weights:]
    elif target is aten.mean.dim and args[1:] == ([-1], True):
        tokens, whole, options = args[:1], args[:0], args[:0]
    else:
        return None
    if any(isinstance(each, fx.Node) for each in (*options, *node.kwargs.values())):
        return None
    read = Reads(*(tuple(each for each in part if isinstance(each, fx.Node)) for part in (tokens, whole)))
    return None if not read.tokens or set(read.tokens) & set(read.whole) else read


def _read_only_by(node: fx.Node, run: set[fx.Node]) -> bool:
    for user in node.users:
        read = reads(user) if user in run else None
        if read is None or node in read.whole:
            return False
    return True


def _put_together(run: list[fx.Node]) -> None:
    """Put one node in the place of a run."""
    end, inside = run[-1], set(run)
    read = [each for node in run if (each := reads(node)) is not None]
    tokens = dict.fromkeys(each for one in read for each in one.tokens if each not in inside)
    whole = dict.fromkeys(each for one in read for each in one.whole if each not in tokens)
    body = fx.Graph()
    known = {node: body.placeholder(node.name) for node in (*tokens, *whole)}
    for node in run:
        known[node] = body.node_copy(node, known.__getitem__)
    body.output(known[end])
    weights = {each for one in read for each in one.whole}
    cut = tuple(each not in weights for each in tokens)  # weights that are added too are left in one piece, and all is
    function = _over_parts(fx.GraphModule({}, body), cut)
    with end.graph.inserting_before(end):
        together = end.graph.call_function(function, (*tokens, *whole))
    together.meta = dict(end.meta)
    end.replace_all_uses_with(together)
    for node in reversed(run):
        end.graph.erase_node(node)


def _over_parts(body: fx.GraphModule, cut: tuple[bool, ...]) -> Callable[..., Tensor]:
    """A function that runs a body over some tokens after others, if there are many."""

    def over_parts(*given: Tensor) -> Tensor:
        tokens, whole = given[: len(cut)], given[len(cut) :]
        if not all(isinstance(each, Tensor) for each in tokens):  # a length, say
            return body(*given)
        counts = {each.shape[-2] for each in tokens if each.dim() > 1} - {1}
        size = max(each.nbytes for each in tokens)
        if not all(cut) or len(counts) != 1 or size < WORTH:
            return body(*given)
        (count,) = counts
        step = max(1, PART * count // size)
        result: Tensor | None = None
        for start in range(0, count, step):
            part = slice(start, start + step)
            some = [each[..., part, :] if each.dim() > 1 and each.shape[-2] > 1 else each for each in tokens]
            made = body(*some, *whole)
            if result is None:
                result = made.new_empty((*made.shape[:-2], count, made.shape[-1]))
            result[..., part, :] = made
        assert result is not None
        return result

    return over_parts
