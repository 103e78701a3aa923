"""Rule: attention written out, as a softmax between two matrix products.

Between the scores and the softmax may stand, in any order, scales, masks, casts and a softcap; between the
softmax and the values casts and dropout. What is read is softmax(softcap(scale * Q K^T) + mask) V.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from remixer.mixers import AttentionSpec
from remixer.passes.operands import (
    grouped,
    heads_of,
    hidden_state,
    key_cut,
    lifted,
    transposed,
    ungrouped,
    untransposed,
)
from remixer.passes.raise_attention import Reading, attention_dropout, raised
from remixer.passes.sites import same_length
from remixer.rewrite.dropout import Dropout
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Match, Miss, arguments
from remixer.rewrite.pattern import Pattern, Recorder
from remixer.rewrite.program import shape_of
from remixer.rewrite.rule import Rule

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.type_as.default, aten.contiguous.default)


@dataclass(frozen=True)
class MaskTerm:
    """Something added to the scores: a tensor, or a number wherever a condition says so."""

    node: fx.Node
    factor: float = 1.0
    fill: Any = None
    where: bool = True  # the condition's value at which `fill` applies


@dataclass(frozen=True)
class Scores:
    """What happens to Q K^T before the softmax."""

    scale: float = 1.0
    softcap: float | None = None
    capped: bool = False  # tanh was met, its factor not yet
    shifted: bool = False  # a number was added, which softmax doesn't see but tanh would
    terms: tuple[MaskTerm, ...] = field(default=())


@dataclass(frozen=True)
class SoftmaxAttention(Rule):
    """softmax(softcap(scale * Q K^T) + mask) V, each product a matmul or bmm."""

    anchor = "weights"

    def pattern(self, p: Recorder) -> Pattern:
        """See Rule.pattern."""
        scores = p.call(_PRODUCTS, p.tensor("query"), transposed(p, "key"), name="scores")
        logits = p.through(
            scores,
            [
                p.step([aten.mul.Tensor, aten.add.Tensor], 0, 1),
                p.step([aten.div.Tensor, aten.sub.Tensor, aten.tanh.default]),
                p.step([aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf], 1, 2),
                p.step([aten.masked_fill.Scalar, aten.masked_fill.Tensor]),
                p.step(_CASTS),
            ],
            "before",
        )
        weights = p.call(
            [aten.softmax.int, aten._softmax.default, aten._safe_softmax.default],
            logits, p.constant("dim"), rest=True, name="weights",
        )  # fmt: skip
        dropped = p.through(weights, [p.step(Dropout), p.step(_CASTS)], "after")
        return p.call(_PRODUCTS, dropped, grouped(p, "value"))

    def check(self, match: Match) -> Any:
        """See Rule.check."""
        rank = len(shape_of(match["scores"]) or ())
        if match["dim"] % rank != rank - 1:
            return Miss(f"the softmax runs over dim {match['dim']}, expected the last", match["weights"])
        query, value = match["query"], ungrouped(match, "value")
        heads, whole = heads_of(query), shape_of(match["scores"])
        if isinstance(heads, Miss):
            return heads
        assert whole is not None
        kv_heads = heads_of(key_cut(match))
        if isinstance(kv_heads, Miss):
            return kv_heads
        if heads_of(value) != kv_heads or heads % kv_heads:
            return Miss(f"{heads} query heads on {kv_heads} key and {heads_of(value)} value heads", match.root)
        scores = read_scores(match)
        if isinstance(scores, Miss):
            return scores
        D, E = shape_of(query)[-1], shape_of(value)[-1]  # type: ignore[index]
        if not (D.is_Integer and E.is_Integer):
            return Miss(f"the head size of query and value, {D} and {E}, is not fixed", match.root)
        dropouts = [taken.node for taken in match.path("after") if taken.node.op == "call_module"]
        kept = 1.0
        for node in dropouts:
            kept *= 1.0 - attention_dropout(match, node)
        source = hidden_state(key_cut(match), match.graph_module)
        spec = AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(D),
            value_dim=int(E),
            scale=scores.scale,
            softcap=scores.softcap,
            bias="dense" if scores.terms else "none",
            dropout=1.0 - kept,
            cross=not same_length(*match["scores"].meta["val"].shape[-2:]),
            source_dim=int(shape_of(source)[2]) if source is not None else None,  # type: ignore[index]
            dtype=value.meta["val"].dtype,
        )
        return Reading(match, spec, query, None, value, scores.terms)

    def rewrite(self, found: Reading, editor: Editor) -> fx.Node:
        """See Rule.rewrite."""
        match, spec, root = found.match, found.spec, found.match.root
        cuts = {"query": found.query, "key": key_cut(match), "value": found.value}
        operands = {
            "query": lifted(found.query, spec.heads, editor, root),
            "key": lifted(untransposed(match, editor), spec.kv_heads, editor, root),
            "value": lifted(found.value, spec.kv_heads, editor, root),
        }
        if (mask := _mask(found.mask, spec, editor, root)) is not None:
            operands["bias"] = mask

        def flat(node: fx.Node) -> fx.Node:
            return editor.call(aten.flatten.using_ints, node, 0, 1, before=root)

        return raised(
            match,
            spec,
            editor,
            self.name,
            operands,
            cuts=cuts,
            masks=[term.node for term in found.mask],
            layout=flat if len(shape_of(found.query) or ()) == 3 else None,
        )


def read_scores(match: Match) -> Scores | Miss:
    """Fold the steps from the scores to the softmax into scale, softcap and mask terms."""
    scores = Scores()
    for taken in reversed(match.path("before")):
        node = taken.node
        if node.target in _CASTS:
            continue
        step = _step(scores, node, taken.operand)
        if isinstance(step, Miss):
            return step
        scores = step
    if scores.capped:
        return Miss("a tanh on the scores is not followed by a factor: no softcap", match["weights"])
    return scores


def _step(scores: Scores, node: fx.Node, operand: int) -> Scores | Miss:
    given = list(arguments(node).values())
    name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    if name in ("mul", "div"):
        factor = given[1 - operand]
        if isinstance(factor, fx.Node) or (name == "div" and len(given) > 2 and given[2] is not None):
            return Miss("the scores are multiplied by a tensor", node)
        return _scaled(scores, float(factor) if name == "mul" else 1.0 / float(factor), node)
    if scores.capped:
        return Miss(f"expected the softcap's factor after tanh, found {name}", node)
    if name == "tanh":
        if scores.terms or scores.shifted or scores.softcap is not None:
            return Miss("a softcap after the mask", node)
        return replace(scores, capped=True)
    if name in ("add", "sub"):
        other, alpha = given[1 - operand], float(given[2]) * (1.0 if name == "add" else -1.0)
        if not isinstance(other, fx.Node):
            return replace(scores, shifted=True)
        if operand == 1 and alpha != 1.0:
            return Miss("the scores are scaled by alpha of an add", node)
        return replace(scores, terms=(*scores.terms, MaskTerm(other, alpha)))
    if name == "where":
        term = MaskTerm(given[0], fill=given[3 - operand], where=operand == 2)
    else:
        term = MaskTerm(given[1], fill=given[2])
    return replace(scores, terms=(*scores.terms, term))


def _scaled(scores: Scores, factor: float, node: fx.Node) -> Scores | Miss:
    if scores.capped:  # c * tanh(s / c * QK): the scale inside times c is the scale of QK
        return replace(scores, capped=False, softcap=factor, scale=scores.scale * factor)
    if scores.softcap is not None:
        return Miss("the scores are scaled after their softcap", node)
    if any(term.fill is not None for term in scores.terms):
        return Miss("the scores are scaled after entries were filled in", node)
    terms = tuple(replace(term, factor=term.factor * factor) for term in scores.terms)
    return replace(scores, scale=scores.scale * factor, terms=terms)


def _mask(terms: tuple[MaskTerm, ...], spec: AttentionSpec, editor: Editor, before: fx.Node) -> fx.Node | None:
    """One tensor to add to the scores, in front of a node; None where nothing is added."""
    total: fx.Node | None = None
    for term in terms:
        node = _broadcastable(term.node, spec, editor, before)
        if term.fill is not None:
            node = _filled(node, term, editor, before)
        elif term.factor != 1.0:
            node = editor.call(aten.mul.Tensor, node, term.factor, before=before)
        total = node if total is None else editor.call(aten.add.Tensor, total, node, before=before)
    return total


def _filled(condition: fx.Node, term: MaskTerm, editor: Editor, before: fx.Node) -> fx.Node:
    fill = term.fill
    if isinstance(fill, fx.Node):
        if term.where:
            return editor.call(aten.where.ScalarOther, condition, fill, 0.0, before=before)
        return editor.call(aten.where.ScalarSelf, condition, 0.0, fill, before=before)
    args = (float(fill), 0.0) if term.where else (0.0, float(fill))
    return editor.call(aten.where.Scalar, condition, *args, before=before)


def _broadcastable(node: fx.Node, spec: AttentionSpec, editor: Editor, before: fx.Node) -> fx.Node:
    """A mask for (B * H, T, S) scores, made to fit (B, H, T, S) ones."""
    shape = shape_of(node)
    if shape is None or len(shape) != 3:
        return node
    heads = heads_of(node)
    if isinstance(heads, int) and heads == spec.heads:
        return editor.call(aten.unflatten.int, node, 0, [-1, heads], before=before)
    return editor.call(aten.unsqueeze.default, node, 1, before=before) if spec.heads == 1 else node
