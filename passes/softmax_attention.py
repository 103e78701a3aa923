"""Rule: attention written out, as a softmax between two matrix products.

Between the scores and the softmax may stand, in any order, scales, masks, casts and a softcap; between the
softmax and the values casts and dropout. What is read is softmax(softcap(scale * Q K^T) + mask) V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from remixer.mixers import AttentionSpec
from remixer.passes.layouts import lifted, lowered, merges_heads
from remixer.passes.operands import grouped, head_counts, hidden_state, key_and_value, transposed, untransposed
from remixer.passes.raise_attention import Reading, attention_dropout, raised, unsettled
from remixer.passes.scores import CASTS, PRODUCTS, RESHAPES, SOFTMAXES, over_pairs, read_scores, read_sink, summed
from remixer.passes.sites import same_length
from remixer.rewrite.dropout import Dropout
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Match, Miss
from remixer.rewrite.pattern import Pattern, Recorder
from remixer.rewrite.program import shape_of
from remixer.rewrite.rule import Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class SoftmaxAttention(Rule):
    """softmax(softcap(scale * Q K^T) + mask) V, each product a matmul or bmm."""

    anchor = "weights"

    def pattern(self, p: Recorder) -> Pattern:
        """See Rule.pattern."""
        query, key = p.tensor("query"), transposed(p, "key")
        scores = p.either(
            "scores",
            plain=p.call(PRODUCTS, query, key),
            added=p.call(aten.baddbmm.default, p.any(""), query, key, rest=True),
        )
        logits = p.through(
            scores,
            [
                p.step([aten.mul.Tensor, aten.add.Tensor, aten.max.other, aten.maximum.default], 0, 1),
                p.step([aten.div.Tensor, aten.sub.Tensor, aten.tanh.default]),
                p.step([aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf], 1, 2),
                p.step([aten.masked_fill.Scalar, aten.masked_fill.Tensor]),
                p.step(aten.cat.default),
                p.step([*CASTS, *RESHAPES]),
            ],
            "before",
        )
        weights = p.call(SOFTMAXES, logits, p.constant("dim"), rest=True, name="weights")
        dropped = p.through(weights, [p.step(Dropout), p.step([aten.slice.Tensor, *CASTS, *RESHAPES])], "after")
        return p.call(PRODUCTS, dropped, grouped(p, "value"))

    def check(self, match: Match) -> Any:
        """See Rule.check."""
        rank = len(shape_of(match["weights"]) or ())
        if match["dim"] % rank != rank - 1:
            return Miss(f"the softmax runs over dim {match['dim']}, expected the last", match["weights"])
        if several := over_pairs(match):
            return several
        query, (key, value) = match["query"], key_and_value(match)
        counts = head_counts(query, key, value, match.root)
        if isinstance(counts, Miss):
            return counts
        heads, kv_heads = counts
        for taken in match.path("after"):
            if taken.node.target in RESHAPES and not merges_heads(taken.node.all_input_nodes[0], taken.node):
                return Miss("the weights are reshaped beyond splitting or merging batch and heads", taken.node)
        scores = read_scores(match)
        if isinstance(scores, Miss):
            return scores
        if unread := read_sink(match, scores):
            return unread
        masks = [("mask", term.node) for term in scores.terms]
        if changed := unsettled(match, [("query", query), ("key", key), ("value", value), *masks]):
            return changed
        D, E = shape_of(query)[-1], shape_of(value)[-1]  # type: ignore[index]
        if not (D.is_Integer and E.is_Integer):
            return Miss(f"the head size of query and value, {D} and {E}, is not fixed", match.root)
        dropouts = [taken.node for taken in match.path("after") if taken.node.op == "call_module"]
        kept = 1.0
        for node in dropouts:
            kept *= 1.0 - attention_dropout(match, node)
        source = hidden_state(key, match.graph_module)
        spec = AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(D),
            value_dim=int(E),
            scale=scores.scale,
            softcap=scores.softcap,
            sink=scores.sink is not None,
            bias="dense" if any(term.least is None for term in scores.terms) else "none",
            dropout=1.0 - kept,
            cross=not same_length(*match["scores"].meta["val"].shape[-2:]),
            source_dim=int(shape_of(source)[2]) if source is not None else None,  # type: ignore[index]
            dtype=value.meta["val"].dtype,
        )
        return Reading(match, spec, query, None, value, scores.terms, scores.sink)

    def rewrite(self, found: Reading, editor: Editor) -> fx.Node:
        """See Rule.rewrite."""
        match, spec, root = found.match, found.spec, found.match.root
        cuts = {"query": found.query, "key": key_and_value(match)[0], "value": found.value}
        operands = {
            "query": lifted(found.query, spec.heads, editor, root),
            "key": lifted(untransposed(match, editor), spec.kv_heads, editor, root),
            "value": lifted(found.value, spec.kv_heads, editor, root),
        }
        if found.sink is not None:
            cuts["sink"] = operands["sink"] = found.sink
        if (mask := summed(found.mask, spec.heads, spec.dtype, editor, root)) is not None:
            operands["bias"] = mask

        return raised(
            match,
            spec,
            editor,
            self.name,
            operands,
            cuts=cuts,
            masks=[term.node for term in found.mask if term.least is None],
            layout=lambda mixed: lowered(mixed, root, editor, root),
        )
