"""Whether the graphs that go token by token give what the program gives for whole sequences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from remixer.passes.errors import StreamError
from remixer.passes.stream import Streaming
from remixer.passes.stream_graphs import inputs_of, token_dimension
from remixer.rewrite.elsewhere import example_at, is_mask, sizes_of_example
from remixer.rewrite.inputs import tensors_in
from remixer.rewrite.match import module_path
from remixer.rewrite.slices import one_thread
from remixer.rewrite.tolerance import error_and_limit

# Of the table's tolerance: products of other sizes are summed in another order, and a whole model adds that up.
MARGIN = 10.0
SCHEDULES = ((12, 1), (24, 17), (41, 40))  # tokens in all, and how many of them come at once


class Piece(NamedTuple):
    """What is run of a sequence: the tokens start..stop-1.

    Attributes:
        start: the first token.
        stop: behind the last.
        inputs: the tensors of these tokens.
    """

    start: int
    stop: int
    inputs: list[Tensor]


def prove_stream(streaming: Streaming, schedules: Sequence[tuple[int, int]] = SCHEDULES, *, then: int = 1) -> None:
    """Run both forms on the program's example, also with padding in front.

    Args:
        streaming: both graphs.
        schedules: how many tokens there are in all, and how many of them come first.
        then: how many come at a time after these.

    Raises:
        StreamError: they differ; it says in which node first.
    """
    for tokens, at_once in schedules:
        for padded in (False, True):
            whole = sequence(streaming, 2, min(tokens, streaming.length), padded=padded)
            with torch.no_grad():
                expected = tensors_in(streaming.program.graph_module(*whole[0], **whole[1]))
            exist = existing(streaming, whole)
            for piece, got in run(streaming, whole, min(at_once, streaming.length), then):
                for token, one, wanted in _beside(streaming, piece, got, expected):
                    there = torch.ones(len(wanted), dtype=torch.bool) if exist is None else exist[:, token]
                    error, limit = error_and_limit(one[there], wanted[there])
                    if not error <= MARGIN * limit:
                        raise StreamError(_told(streaming, whole, token, error))


def sequence(streaming: Streaming, batch: int, tokens: int, *, padded: bool = False) -> tuple[Any, Any]:
    """The program's example at these sizes, its first tokens hidden in every row but the last if it is to be padded."""
    program = streaming.program
    sizes = {symbol: batch if symbol in program.batch else tokens for symbol in sizes_of_example(program)}

    def mask(own: Tensor) -> Tensor:
        made = torch.ones_like(own)
        for row in range(len(made) - 1 if padded else 0):
            made[row, ..., : tokens // (3 + row)] = 0
        return made

    return example_at(program, sizes, mask)


def existing(streaming: Streaming, call: tuple[Any, Any]) -> Tensor | None:
    """(B, T) bool, which tokens of a call exist, or None if it has no mask."""
    own = [leaf for node, leaf in _inputs(streaming, call) if node.name not in streaming.other]
    masks = [leaf for leaf in own if is_mask(leaf) and leaf.dim() == 2]
    return masks[0].bool() if masks else None


def _inputs(streaming: Streaming, call: tuple[Any, Any]) -> list[tuple[fx.Node, Tensor]]:
    """The placeholders that are tensors, each with its tensor of a call."""
    return list(zip(inputs_of(streaming.program), tensors_in(call), strict=True))


def pieces(streaming: Streaming, call: tuple[Any, Any], at_once: int, then: int = 1) -> Iterator[Piece]:
    """A call's first tokens, then so many after the other. What is of another sequence comes with the first."""
    given = [(node, tensor, token_dimension(node, streaming.tokens)) for node, tensor in _inputs(streaming, call)]
    total = next(tensor.shape[dim] for _, tensor, dim in given if dim is not None)
    for start, stop in [(0, at_once), *((t, min(t + then, total)) for t in range(at_once, total, then))]:
        cut = [
            tensor if dim is None else tensor.narrow(dim, start, stop - start)
            for node, tensor, dim in given
            if start == 0 or node.name not in streaming.other
        ]
        yield Piece(start, stop, cut)


def run(
    streaming: Streaming, call: tuple[Any, Any], at_once: int, then: int = 1
) -> Iterator[tuple[Piece, list[Tensor]]]:
    """The outputs of each piece."""
    state: list[Tensor] = []
    with torch.no_grad():
        for piece in pieces(streaming, call, at_once, then):
            graph_module = streaming.step if piece.start else streaming.prefill
            with one_thread() if piece.start else contextlib.nullcontext():  # one token is too little work for more
                results = graph_module(*piece.inputs, *state)
            split = len(results) - len(streaming.state)
            state = list(results[split:])
            yield piece, list(results[:split])


def _beside(
    streaming: Streaming, piece: Piece, got: list[Tensor], expected: list[Tensor]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Tokens of a piece, what it gives for each, and what the whole sequence gives; of a first piece its last token."""
    leaves = [leaf for leaf in pytree.tree_leaves(streaming.program.graph.output_node().args) if _is_tensor(leaf)]
    for leaf, one, other in zip(leaves, got, expected, strict=True):
        dim = token_dimension(leaf, streaming.tokens)
        if dim is None:  # it tells nothing
            continue
        for t in range(one.shape[dim]):
            token = piece.stop - one.shape[dim] + t
            yield token, one.narrow(dim, t, 1), other.narrow(dim, token, 1)


def _told(streaming: Streaming, whole: tuple[Any, Any], token: int, error: float) -> str:
    """The error's sentence, with the first node of a step that differs from the whole."""
    told = f"token by token the model gives something else than at once, by {error:.2g} at token {token}"
    wide = _Values(streaming.program.graph_module)
    wide.run(*pytree.tree_leaves(whole))
    state: list[Tensor] = []
    for each in pieces(streaming, whole, SCHEDULES[0][1]):
        narrow = _Values(streaming.step if each.start else streaming.prefill)
        results = narrow.run(*each.inputs, *state)
        state = list(results[len(results) - len(streaming.state) :])
        for node in streaming.program.graph.nodes:
            dim, name = token_dimension(node, streaming.tokens), node.name
            if dim is None or name not in narrow.found or not narrow.found[name].is_floating_point():
                continue
            wanted = wide.found[name].narrow(dim, each.stop - 1, 1)
            got = narrow.found[name].narrow(dim, narrow.found[name].shape[dim] - 1, 1)
            off, limit = error_and_limit(got, wanted)
            if not off <= MARGIN * limit:
                place = f" at {module_path(node)}" if module_path(node) else ""
                return f"{told}. The first node that differs is {name}, {node.target}{place}"
    return told


class _Values(fx.Interpreter):
    """Runs a graph and keeps what its nodes give."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.meta.get("stands for", n.name)] = value.clone()  # another node may write into it
        return value


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor)
