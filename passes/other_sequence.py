"""What a decoder reads of another sequence, such as the states of an encoder: computed once, with the prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx

from remixer.passes.errors import StreamError
from remixer.rewrite.program import Program, expression, shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class OtherSequence:
    """Nodes of a graph, by name.

    Attributes:
        inputs: that have no dimension of tokens.
        nodes: what depends on these, and on no token.
        kept: those of the nodes that are tensors and are read by what depends on tokens.
    """

    inputs: tuple[str, ...]
    nodes: frozenset[str]
    kept: tuple[str, ...]

    @staticmethod
    def of(program: Program, tokens: sympy.Symbol) -> OtherSequence:
        """What a program has beside its tokens.

        Args:
            program: a decoder, alone or behind an encoder.
            tokens: the symbol of its length.
        """
        own: set[fx.Node] = set()
        other: set[fx.Node] = set()
        for node in program.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, Tensor):
                (own if _mentions(shape_of(node) or (), tokens) else other).add(node)
            elif isinstance(value, (torch.SymInt, int)):
                symbols = expression(value).free_symbols
                if tokens in symbols:
                    own.add(node)
                elif symbols - program.batch:
                    other.add(node)
            elif node.op == "output" or any(each in own for each in node.all_input_nodes):
                own.add(node)
            elif any(each in other for each in node.all_input_nodes):
                other.add(node)
        tensors = [node for node in program.graph.nodes if node in other and isinstance(node.meta.get("val"), Tensor)]
        return OtherSequence(
            tuple(node.name for node in tensors if node.op == "placeholder"),
            frozenset(node.name for node in other),
            tuple(node.name for node in tensors if any(user in own for user in node.users)),
        )


def sizes_from(graph: fx.Graph, other: OtherSequence, present: Iterable[fx.Node]) -> None:
    """Take the sizes that a graph reads of the other sequence's nodes from nodes that it still has.

    Args:
        graph: to change.
        other: whose nodes go.
        present: placeholders with a recorded value.

    Raises:
        StreamError: none of them has such a size.
    """
    holders = list(present)
    for node in graph.find_nodes(op="call_function", target=aten.sym_size.int):
        if node.args[0].name not in other.nodes:
            continue
        wanted = expression(node.meta["val"])
        places = ((each, dim) for each in holders for dim, size in enumerate(shape_of(each) or ()) if size == wanted)
        found = next(places, None)
        if found is None:
            raise StreamError(f"cannot stream: the size {node.name} is one of another sequence, of which none is kept")
        node.args = found


def _mentions(shape: Iterable[sympy.Expr], symbol: sympy.Symbol) -> bool:
    return any(symbol in size.free_symbols for size in shape)
