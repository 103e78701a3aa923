"""What tracing leaves behind and no later stage needs."""

from __future__ import annotations

import operator

import torch
from torch import fx

from remixer.rewrite.dropout import raise_dropout
from remixer.rewrite.effects import is_check, make_functional, remove_dead_code


def clean(graph_module: fx.GraphModule) -> None:
    """Remove asserts and dead code, make in-place operators functional, raise dropout to modules; in place.

    Asserts come first: they keep whole subgraphs alive, quadratic masks among them.
    """
    graph = graph_module.graph
    for node in reversed(list(graph.nodes)):
        if is_check(node) and not node.users:
            graph.erase_node(node)
    make_functional(graph)
    raise_dropout(graph_module)
    remove_dead_code(graph)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def inline_wrapped(graph_module: fx.GraphModule) -> None:
    """Inline the subgraphs that torch.export wraps for `torch.no_grad` and disabled autocast, in place."""
    wrappers = torch.ops.higher_order
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is wrappers.wrap_with_set_grad_enabled:
            submodule, operands = node.args[1], node.args[2:]
        elif node.target is wrappers.wrap_with_autocast and node.args[2] is False:
            submodule, operands = node.args[4], node.args[5:]
        else:
            continue
        assert isinstance(submodule, fx.Node)
        inner = graph_module.get_submodule(str(submodule.target))
        assert isinstance(inner, fx.GraphModule)
        mapping = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
        with graph.inserting_before(node):
            results = graph.graph_copy(inner.graph, mapping)  # type: ignore[arg-type]
        if isinstance(results, fx.Node):
            results = (results,)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
        graph.erase_node(node)
