"""Long inputs, some tokens at a time: what a graph does to each token by itself needs no more than a cache holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from remixer.rewrite.dropout import Dropout
from remixer.rewrite.effects import writes
from remixer.rewrite.graphs import copied

aten = torch.ops.aten
Empty = Callable[..., Tensor]

# Features of all tokens from which it pays, and those of one part, in bytes.
WORTH, PART = 2**25, 2**21
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
        indices: (..., T), of rows of the first of the weights.
    """

    tokens: tuple[fx.Node, ...]
    whole: tuple[fx.Node, ...]
    indices: tuple[fx.Node, ...] = ()


def by_parts(module: fx.GraphModule, empty: Empty = torch.empty) -> Callable[..., Any] | None:
    """The forward function of a module in evaluation and without gradients; little of what lies between mixers is kept.

    Runs of operators that treat every token by itself, such as a feed-forward layer with its residual and norm, go
    over their tokens in parts where there are many of them, and give memory that `empty` makes. What it gives can
    differ from the module in rounding.

    Args:
        module: is read and not changed.
        empty: makes an uninitialised tensor of a shape and `dtype`.

    Returns:
        A function that takes the module and its inputs; None if there is no such run.
    """
    graph = copied(module.graph)
    for node in graph.find_nodes(op="call_module"):
        if isinstance(module.get_submodule(str(node.target)), Dropout):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    found = runs(graph)
    for run in found:
        _put_together(run, empty)
    if not found:
        return None
    graph.lint()
    forward: Callable[..., Any] = type(fx.GraphModule(module, graph)).forward
    return forward


def runs(graph: fx.Graph) -> list[list[fx.Node]]:
    """Token-wise operators of which the last alone is read by others, two and more or a linear layer, in their order.

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
        torn = any(places[0] < place < places[-1] for place in writing)
        if not torn and (len(run) > 1 or end.target is aten.linear.default):
            taken |= run
            found.append(sorted(run, key=order.__getitem__))
    return found


def reads(node: fx.Node) -> Reads | None:
    """What a node reads if it gives each token by what that token holds, else None."""
    if node.op != "call_function" or node.kwargs.keys() - {"alpha", "approximate", "dtype"}:
        return None
    target, args = node.target, node.args
    if target is aten.embedding.default and not any(isinstance(each, fx.Node) for each in args[2:]):
        table, indices = args[:2]
        assert isinstance(table, fx.Node)
        assert isinstance(indices, fx.Node)
        return None if table is indices else Reads((), (table,), (indices,))
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


def _put_together(run: list[fx.Node], empty: Empty) -> None:
    """Put one node in the place of a run."""
    end, inside = run[-1], set(run)
    read = [each for node in run if (each := reads(node)) is not None]
    tokens = dict.fromkeys(each for one in read for each in one.tokens if each not in inside)
    tables = {one.indices[0]: one.whole[0] for one in read if one.indices}
    weights = dict.fromkeys(each for one in read for each in one.whole)
    given = list(dict.fromkeys((*tokens, *tables, *weights)))
    body = fx.Graph()
    known = {node: body.placeholder(node.name) for node in given}
    for node in run:
        known[node] = body.node_copy(node, known.__getitem__)
    place = body.placeholder("place")
    if end.target in _INTO:
        known[end].target = _INTO[end.target]
        known[end].update_kwarg("place", place)
    body.output(known[end])
    cut = Cut(len(tokens), [given.index(each) for each in tables.values()])
    # What is read in two ways, such as a weight that is added too, is left in one piece, and all is.
    apart = len(given) == len(tokens) + len(tables) + len(weights)
    function = _over_parts(fx.GraphModule({}, body), cut if apart else None, empty)
    with end.graph.inserting_before(end):
        together = end.graph.call_function(function, tuple(given))
    together.meta = dict(end.meta)
    end.replace_all_uses_with(together)
    for node in reversed(run):
        end.graph.erase_node(node)


class Cut(NamedTuple):
    """What of that which a run is given is cut into parts.

    Attributes:
        tokens: how many tensors (..., T, C), which come first.
        tables: which of all that is given are the tables that the following tensors (..., T) are indices of.
    """

    tokens: int
    tables: list[int]

    def along(self, given: tuple[Tensor, ...]) -> list[int]:
        """Along which dimension, from the end, each is cut; 0 if not at all, as weights are."""
        kinds = [2] * self.tokens + [1] * len(self.tables)
        kinds += [0] * (len(given) - len(kinds))
        return [
            -kind if 0 < kind <= each.dim() and each.shape[-kind] > 1 else 0
            for each, kind in zip(given, kinds, strict=True)
        ]

    def size(self, given: tuple[Tensor, ...]) -> int:
        """The bytes of the largest of the tensors that are read, token by token."""
        tables = [given[place] for place in self.tables]
        looked_up = zip(given[self.tokens :], tables, strict=False)
        sizes = [indices.numel() * table[0].nbytes for indices, table in looked_up]
        return max([*sizes, *(each.nbytes for each in given[: self.tokens])])


def _over_parts(body: fx.GraphModule, cut: Cut | None, empty: Empty) -> Callable[..., Tensor]:
    """A function that runs a body over some tokens after others, if there are many."""

    def over_parts(*given: Tensor) -> Tensor:
        if cut is None or not all(isinstance(each, Tensor) for each in given):  # but a length, say
            return body(*given, None)
        along, size = cut.along(given), cut.size(given)
        counts = {each.shape[dim] for each, dim in zip(given, along, strict=True) if dim}
        if len(counts) != 1 or size < WORTH:
            return body(*given, None)
        (count,) = counts
        step = max(1, PART * count // size)
        result: Tensor | None = None
        place: Tensor | None = None
        for start in range(0, count, step):
            length = min(step, count - start)
            some = [  # contiguous: of others, linear layers add the bias by itself, and round once more
                each.narrow(dim, start, length).contiguous() if dim else each
                for each, dim in zip(given, along, strict=True)
            ]
            if result is not None:
                place = result.narrow(-2, start, length)
            made = body(*some, place)
            if result is None:
                result = empty((*made.shape[:-2], count, made.shape[-1]), dtype=made.dtype)
                place = result.narrow(-2, start, length)
            assert place is not None
            if made is not place:
                place.copy_(made)
        assert result is not None
        return result

    return over_parts


def _linear_into(tokens: Tensor, weight: Tensor, bias: Tensor | None = None, *, place: Tensor | None) -> Tensor:
    """A linear layer whose output goes to a place, if it can be written there; else a tensor of its own."""
    dtypes = {tokens.dtype, weight.dtype}
    if place is None or not place.is_contiguous() or dtypes != {place.dtype} or torch.is_autocast_enabled("cpu"):
        return F.linear(tokens, weight, bias)
    rows, out = tokens.reshape(-1, tokens.shape[-1]), place.view(-1, place.shape[-1])
    if bias is None:
        torch.mm(rows, weight.t(), out=out)
    else:
        torch.addmm(bias, rows, weight.t(), out=out)
    return place


def _add_into(one: Tensor, other: Tensor, *, alpha: float = 1, place: Tensor | None) -> Tensor:
    """A sum, likewise."""
    return torch.add(one, other, alpha=alpha, out=place)


_INTO: dict[Any, Callable[..., Tensor]] = {aten.linear.default: _linear_into, aten.add.Tensor: _add_into}
