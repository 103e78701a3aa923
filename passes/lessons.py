"""The original's graph with a lesson beside every attention: what its operands are, and what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from remixer.passes.operands import hidden_state
from remixer.passes.sites import Site, sites_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.program import Program, fake_mode


def with_lessons(program: Program, lessons: Mapping[str, nn.Module]) -> fx.GraphModule:
    """A graph that calls a module at every site that has one, and ends with the last of them.

    What no lesson needs, such as the head of a language model, is gone. Tensors live as long as one layer needs them.

    Args:
        program: whose attentions are sites; its weights are shared.
        lessons: modules by the names of sites. Each is called with the site's operands by name, `source` among them
            where there is one, and with `target`, what the attention gives, and gives a scalar.

    Returns:
        A graph module with the program's call signature that gives a dict of the scalars by site.
    """
    editor = Editor(program.copy(), "with_lessons")
    said: dict[str, fx.Node] = {}
    for site in sites_of(editor.program):
        if site.name in lessons:
            path = editor.register(f"{site.node.target}_lesson", lessons[site.name])
            with fake_mode(editor.graph):
                scalar = torch.zeros(())
            operands = {**operands_of(site, editor.graph_module), "target": site.node}
            said[site.name] = editor.call_module(path, operands, before=site.node.next, fake=scalar)
    _outputs(editor.graph, said)
    editor.sweep()
    editor.graph.lint()
    return fx.GraphModule(editor.graph_module, editor.graph)


def operands_of(site: Site, graph_module: fx.GraphModule) -> dict[str, fx.Node]:
    """All that a mixer could be given in the place of a site's attention."""
    found = {name: node for name, node in site.node.kwargs.items() if isinstance(node, fx.Node)}
    key = site.operand("key")
    source = hidden_state(key, graph_module) if key is not None else None
    return found if source is None else {**found, "source": source}


def _outputs(graph: fx.Graph, named: Mapping[str, fx.Node]) -> None:
    """Let a graph give these nodes, in a dict."""
    output = graph.output_node()
    _, spec = pytree.tree_flatten(dict(named))
    values: Any = list(named.values())
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(out_spec=spec)))
        output.args = (values,)
    else:
        output.args = (dict(named),)
