"""What tracing leaves behind and no later stage needs."""

from __future__ import annotations

import operator
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from remixer.rewrite.dropout import raise_dropout
from remixer.rewrite.effects import is_check, make_functional, remove_dead_code
from remixer.rewrite.modules import add_module, keep_tied, weights


def clean(graph_module: fx.GraphModule, training: bool | None = None) -> None:
    """Remove asserts and dead code, make in-place operators functional, raise dropout to modules; in place.

    Asserts come first: they keep whole subgraphs alive, quadratic masks among them.

    Args:
        graph_module: what torch.export gave.
        training: the mode it was exported in; None if nobody knows.
    """
    graph = graph_module.graph
    for node in reversed(list(graph.nodes)):
        if is_check(node) and not node.users:
            graph.erase_node(node)
    make_functional(graph)
    raise_dropout(graph_module, training)
    remove_dead_code(graph)
    before = weights(graph_module)
    graph_module.delete_all_unused_submodules()
    keep_tied(before, graph_module)
    graph_module.recompile()


def inline_wrapped(graph_module: fx.GraphModule) -> None:
    """Inline the subgraphs that torch.export wraps for `torch.no_grad` and disabled autocast, in place."""
    while found := [node for node in graph_module.graph.nodes if _wrapped(node) is not None]:
        for node in found:  # those inside of others come in the next round
            _inline(graph_module, node)


def _wrapped(node: fx.Node) -> tuple[Any, tuple[Any, ...]] | None:
    """The subgraph that a node runs as it stands, and its operands, if the node does nothing else."""
    wrappers = torch.ops.higher_order
    if node.op != "call_function":
        return None
    if node.target is wrappers.wrap_with_set_grad_enabled:
        return node.args[1], node.args[2:]
    if node.target is wrappers.wrap_with_autocast and node.args[2] is False:
        return node.args[4], node.args[5:]
    return None


def _inline(graph_module: fx.GraphModule, node: fx.Node) -> None:
    graph = graph_module.graph
    wrapped = _wrapped(node)
    assert wrapped is not None
    submodule, operands = wrapped
    inner = graph_module.get_submodule(str(submodule.target))
    assert isinstance(inner, fx.GraphModule)
    mapping: dict[fx.Node, Any] = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(inner.graph, mapping)
    for old in inner.graph.find_nodes(op="get_attr"):
        held = attrgetter(str(old.target))(inner)
        assert isinstance(held, nn.Module), "weights come into a wrapped subgraph as operands"
        mapping[old].target = add_module(graph_module, str(old.target), held)
    if not isinstance(results, (tuple, list)):
        results = (results,)
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
