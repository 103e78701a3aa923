"""Pass: raise every attention, in whatever spelling, to the canonical operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from remixer.passes.base import Pass
from remixer.passes.fused_attention import FusedAttention
from remixer.passes.sites import sites_of
from remixer.passes.softmax_attention import SoftmaxAttention
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss, module_path
from remixer.rewrite.program import expression
from remixer.rewrite.rule import Rule, apply

aten = torch.ops.aten
RULES: tuple[Rule, ...] = (FusedAttention(), SoftmaxAttention())
_SOFTMAXES = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}


@dataclass(frozen=True)
class RecogniseAttention(Pass):
    """Find attention by rules and put the canonical operator beside each; see SiteRecord.

    Attributes:
        rules: tried in order; third parties' rules go in front or behind.
    """

    rules: tuple[Rule, ...] = RULES

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        apply(self.rules, editor)
        raised = _covered(editor)
        told = {miss.site or (module_path(miss.node) if miss.node else "") for miss in editor.misses}
        for node in editor.graph.nodes:
            if node.target not in _SOFTMAXES or node in raised or module_path(node) in told:
                continue
            if _pairwise(editor, node):
                editor.miss(Miss("a softmax over pairs of tokens is in no product with values", node))


def _covered(editor: Editor) -> set[fx.Node]:
    """Nodes that the recognised sites were read from."""
    found: set[fx.Node] = set()
    names = {site.record.original for site in sites_of(editor.program)}
    for node in reversed(list(editor.graph.nodes)):
        if node.name in names or (node.users and all(user in found for user in node.users)):
            found.add(node)
    return found


def _pairwise(editor: Editor, node: fx.Node) -> bool:
    """Whether both of the last two dimensions of a softmax count tokens."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() < 3:
        return False
    length = editor.program.length
    last = [expression(size) for size in value.shape[-2:]]
    return all(size.free_symbols & length for size in last) or (last[0] == last[1] and last[0] != 1)
