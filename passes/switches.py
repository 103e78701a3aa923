"""The original's graph with a module of one's own in the place of every attention, given all that could be needed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from remixer.passes.lessons import operands_of
from remixer.passes.sites import sites_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.program import Program


def with_switches(program: Program, switches: Mapping[str, nn.Module]) -> fx.GraphModule:
    """A graph module with the program's call signature and outputs that calls a module at every site that has one.

    Args:
        program: whose attentions are sites; its weights are shared.
        switches: modules by the names of sites. Each is called with the site's operands by name, `source` among them
            where there is one, and gives what the attention gives, (B, H, T, E).
    """
    editor = Editor(program.copy(), "with_switches")
    for site in sites_of(editor.program):
        if site.name in switches:
            path = editor.register(f"{site.node.target}_switch", switches[site.name])
            operands = operands_of(site, editor.graph_module)
            editor.replace(site.node, editor.call_module(path, operands, before=site.node, fake=site.node.meta["val"]))
    editor.sweep()
    editor.graph.lint()
    return fx.GraphModule(editor.graph_module, editor.graph)
