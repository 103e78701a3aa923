"""Pass: raise every attention, in whatever spelling, to the canonical operator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from remixer.passes.base import Pass
from remixer.passes.fused_attention import FusedAttention
from remixer.passes.scores import CASTS, PRODUCTS, RESHAPES, SOFTMAXES
from remixer.passes.sites import sites_of, unique_name
from remixer.passes.softmax_attention import SoftmaxAttention
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss, module_path
from remixer.rewrite.matcher import word_for
from remixer.rewrite.program import expression, shape_of
from remixer.rewrite.rule import Rule, apply

aten = torch.ops.aten
RULES: tuple[Rule, ...] = (FusedAttention(), SoftmaxAttention())
_PRODUCTS = {*PRODUCTS, aten.baddbmm.default}
_LAYERS = {aten.linear.default, aten.addmm.default, aten.mm.default, aten.layer_norm.default}
_SCALES_AND_MASKS = {
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.add.Tensor,
    aten.masked_fill.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
}
_FAR = 64  # operators, of which no way to make weights of scores needs more


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
        _follow_replaced(editor)
        covered = _covered(editor)
        told = {miss.anchor for miss in editor.misses}
        for node in editor.graph.nodes:
            if node in covered or node in told:
                continue
            pairwise = _pairwise(editor, node)
            if node.target in SOFTMAXES and (pairwise or _pairwise(editor, _product_under(node))):
                over = "pairs of tokens" if pairwise else "all pairs of tokens at once"
                found = word_for(stop) if (stop := _behind(node)) else "nothing"
                reason = f"a softmax over {over} is in no product with values: {found} follows it"
                editor.miss(Miss(reason, stop or node, anchor=node))
            elif pairwise and node.target in _PRODUCTS and (stop := _other_weights(node)):
                reason = f"expected a softmax between two products, found {word_for(stop)}"
                editor.miss(Miss(reason, stop, anchor=node))
        _name_misses(editor)


def _follow_replaced(editor: Editor) -> None:
    """An attention that reads another's result starts from the canonical form of that one."""
    sites = sites_of(editor.program)
    now = {site.record.original: site.record.result for site in sites}
    for site in sites:
        cuts = {name: now.get(cut, cut) for name, cut in site.record.cuts.items()}
        site.node.meta["site"] = replace(site.record, cuts=cuts)


def _name_misses(editor: Editor) -> None:
    """Every missed attention under a name of its own, in the graph's order."""
    order = {node: index for index, node in enumerate(editor.graph.nodes)}
    taken = {site.name for site in sites_of(editor.program)}
    names: dict[fx.Node, str] = {}
    editor.misses.sort(key=lambda miss: order.get(miss.anchor, len(order)) if miss.anchor else len(order))
    for index, miss in enumerate(editor.misses):
        if miss.site or miss.anchor is None:
            continue
        if miss.anchor not in names:
            names[miss.anchor] = unique_name(module_path(miss.anchor) or "attention", taken)
            taken.add(names[miss.anchor])
        editor.misses[index] = replace(miss, site=names[miss.anchor])


def _behind(node: fx.Node) -> fx.Node | None:
    """The first node that reads a value, but for casts, dropout and reshapes; None if only the output does."""
    for user in node.users:
        if user.op == "output":
            continue
        passes_on = user.op == "call_module" or user.target in (*CASTS, *RESHAPES)
        return (_behind(user) or user) if passes_on else user
    return None


def _other_weights(scores: fx.Node) -> fx.Node | None:
    """Where scores are made into weights by something else than a softmax: its first operator, or None.

    That is so where they come to the left side of another product through operators without weights of their own.
    """
    seen: set[fx.Node] = set()
    stack = [scores]
    while stack:
        for user in stack.pop().users:
            if user in seen or user.op != "call_function":
                continue
            seen.add(user)
            if user.target in SOFTMAXES or len(seen) > _FAR:
                return None
            if user.target in _PRODUCTS:
                first = user.args[0]
                if first in seen:
                    return _first_other(scores)
                continue
            if shape_of(user) is not None and user.target not in _LAYERS:
                stack.append(user)
    return None


def _first_other(scores: fx.Node) -> fx.Node | None:
    """The first operator behind scores that neither scales nor masks them."""
    found = _behind(scores)
    while found is not None and found.target in _SCALES_AND_MASKS and (behind := _behind(found)) is not None:
        if behind.target in _PRODUCTS:
            break
        found = behind
    return found


def _covered(editor: Editor) -> set[fx.Node]:
    """Nodes that the recognised sites were read from."""
    found: set[fx.Node] = set()
    names = {site.record.original for site in sites_of(editor.program)}
    for node in reversed(list(editor.graph.nodes)):
        if node.name in names or (node.users and all(user in found for user in node.users)):
            found.add(node)
    return found


def _product_under(softmax: fx.Node) -> fx.Node:
    """What stands under a softmax and the scales, masks and reshapes of its scores."""
    node = softmax.all_input_nodes[0]
    while node.target in (*_SCALES_AND_MASKS, *CASTS, *RESHAPES) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node if node.target in _PRODUCTS else softmax


def _pairwise(editor: Editor, node: fx.Node) -> bool:
    """Whether both of the last two dimensions of a node count tokens."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() < 3:
        return False
    length = editor.program.length
    last = [expression(size) for size in value.shape[-2:]]
    return all(size.free_symbols & length for size in last) or (last[0] == last[1] and last[0] != 1)
