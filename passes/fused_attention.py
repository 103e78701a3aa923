"""Rule: attention written as `scaled_dot_product_attention`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from remixer.mixers import AttentionSpec
from remixer.passes.layouts import lifted, lifted_mask, lowered
from remixer.passes.operands import grouped, head_counts, hidden_state, key_and_value
from remixer.passes.raise_attention import Reading, attention_dropout, raised, unsettled
from remixer.passes.sites import same_length
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Match, Miss, arguments
from remixer.rewrite.pattern import Pattern, Recorder
from remixer.rewrite.program import shape_of
from remixer.rewrite.rule import Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class FusedAttention(Rule):
    """`scaled_dot_product_attention(query, key, value, mask, dropout, is_causal, scale, enable_gqa)`."""

    anchor = "attention"

    def pattern(self, p: Recorder) -> Pattern:
        """See Rule.pattern."""
        return p.call(
            aten.scaled_dot_product_attention.default,
            p.tensor("query"),
            grouped(p, "key"),
            grouped(p, "value"),
            rest=True,
            name="attention",
        )

    def check(self, match: Match) -> Any:
        """See Rule.check."""
        node = match.root
        given = arguments(node)
        query, (key, value) = match["query"], key_and_value(match)
        if changed := unsettled(match, [("key", key), ("value", value)]):
            return changed
        for name, operand in (("query", query), ("key", key), ("value", value)):
            shape = shape_of(operand) or ()
            if not shape or not shape[-1].is_Integer:
                return Miss(f"{name} has shape {shape}, expected (B, H, T, D) with a fixed D", operand)
        if not isinstance(given["scale"], (int, float, type(None))):
            return Miss("the scale is computed", node)
        counts = head_counts(query, key, value, node)
        if isinstance(counts, Miss):
            return counts
        heads, kv_heads = counts
        (T, D), S, E = shape_of(query)[-2:], shape_of(key)[-2], shape_of(value)[-1]  # type: ignore[index]
        cross = not same_length(query.meta["val"].shape[-2], key.meta["val"].shape[-2])
        if given["is_causal"] and cross:
            return Miss(f"causal with {T} queries and {S} keys: which keys a query sees depends on the backend", node)
        dropout = attention_dropout(match, given["dropout_p"])
        source = hidden_state(key, match.graph_module)
        spec = AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(D),
            value_dim=int(E),
            scale=float(given["scale"]) if given["scale"] is not None else 1.0 / math.sqrt(int(D)),
            causal=bool(given["is_causal"]),
            bias="none" if given["attn_mask"] is None else "dense",
            dropout=dropout,
            cross=cross,
            source_dim=int(shape_of(source)[2]) if source is not None else None,  # type: ignore[index]
            dtype=query.meta["val"].dtype,
        )
        return Reading(match, spec, query, key, value, given["attn_mask"])

    def rewrite(self, found: Reading, editor: Editor) -> fx.Node:
        """See Rule.rewrite."""
        assert found.key is not None
        root, spec = found.match.root, found.spec
        cuts = {"query": found.query, "key": found.key, "value": found.value}
        heads = {"query": spec.heads, "key": spec.kv_heads, "value": spec.kv_heads}
        operands = {name: lifted(cut, heads[name], editor, root) for name, cut in cuts.items()}
        if found.mask is not None:
            operands["bias"] = lifted_mask(found.mask, spec.heads, editor, root)
        return raised(
            found.match,
            spec,
            editor,
            self.name,
            operands,
            cuts=cuts,
            masks=() if found.mask is None else [found.mask],
            layout=lambda mixed: lowered(mixed, root, editor, root),
        )
