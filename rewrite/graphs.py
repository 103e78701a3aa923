"""Copies of graphs."""

from __future__ import annotations

from typing import Any

from torch import fx


def copied(graph: fx.Graph) -> fx.Graph:
    """A graph of the same nodes, with the values that they have noted, and the same inputs and outputs.

    copy.deepcopy would copy those inputs' structure too, at which torch 2.13 warns of itself.
    """
    new = fx.Graph(tracer_cls=graph._tracer_cls)
    output: Any = new.graph_copy(graph, {}, return_output_node=True)
    if output is not None:
        value, node = output
        new.output(value).meta = dict(node.meta)
    new.set_codegen(graph._codegen)
    return new
