"""What stands between Q K^T and the softmax, folded into a scale, a softcap and mask terms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from remixer.mixers.masks import erasing
from remixer.passes.layouts import heads_of, lifted_mask, merges_heads
from remixer.rewrite.constants import is_indicator, number_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Match, Miss, arguments
from remixer.rewrite.program import shape_of

aten = torch.ops.aten
_HIDDEN = -1e4  # beside this, scores are nothing
CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.type_as.default, aten.contiguous.default)
PRODUCTS = (aten.matmul.default, aten.bmm.default)
SOFTMAXES = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
)


@dataclass(frozen=True)
class MaskTerm:
    """Something done to the scores: a tensor added, a number filled in on a condition, or one that is the least."""

    node: fx.Node
    factor: float = 1.0
    fill: Any = None
    where: bool = True  # the condition's value at which `fill` applies
    least: float | None = None  # lower scores are raised to this; `node` is what they are compared with


@dataclass(frozen=True)
class Scores:
    """What happens to Q K^T before the softmax."""

    scale: float = 1.0
    softcap: float | None = None
    capped: bool = False  # tanh was met, its factor not yet
    shifted: bool = False  # a number was added, which softmax doesn't see but tanh would
    zeroed: MaskTerm | None = None  # a mask that was multiplied by, what hides its zeros not met yet
    terms: tuple[MaskTerm, ...] = field(default=())
    sink: fx.Node | None = None  # (H,)


def read_scores(match: Match) -> Scores | Miss:
    """Fold the steps from the product to the softmax into scale, softcap and mask terms."""
    scores = _product(match)
    if isinstance(scores, Miss):
        return scores
    for taken in reversed(match.path("before")):
        node = taken.node
        if node.target in CASTS:
            continue
        if node.target in RESHAPES:
            if not merges_heads(node.all_input_nodes[0], node):
                return Miss("the scores are reshaped beyond splitting or merging batch and heads", node)
            continue
        if scores.sink is not None:
            return Miss("the scores are changed after a sink was put beside them", node)
        step = _with_sink(scores, node) if node.target is aten.cat.default else None
        step = step or _step(scores, node, taken.operand, match.graph_module)
        if isinstance(step, Miss):
            return step
        scores = step
    if scores.capped:
        return Miss("a tanh on the scores is not followed by a factor: no softcap", match["weights"])
    if scores.zeroed is not None:
        return Miss("the scores are multiplied by a mask of 0 and 1, which hides nothing by itself", scores.zeroed.node)
    return scores


def over_pairs(match: Match) -> Miss | None:
    """Why a softmax takes the scores of several queries at once; None where each query has its own."""
    for taken in match.path("before"):
        node = taken.node
        if node.target in RESHAPES:
            (*_, keys), (*_, scores) = shape_of(node.all_input_nodes[0]) or (1,), shape_of(node) or (1,)
            if scores != keys and (scores / keys).is_integer:
                told = f"the softmax runs over all pairs of tokens at once, {scores} scores"
                return Miss(f"{told}, expected the {keys} of one query", node)
    return None


def read_sink(match: Match, scores: Scores) -> Miss | None:
    """None where the weights lose the sink's column behind the softmax, and nothing else; else what is wrong."""
    slices = [taken.node for taken in match.path("after") if taken.node.target is aten.slice.Tensor]
    if scores.sink is None:
        return Miss("only some of the weights are used", slices[0]) if slices else None
    if len(slices) != 1:
        return Miss("the column of the sink is not dropped behind the softmax", match["weights"])
    given, last = arguments(slices[0]), len(shape_of(slices[0]) or ()) - 1
    kept = (given["dim"] in (-1, last), given["start"] in (None, 0), given["end"] == -1, given["step"] == 1)
    return None if all(kept) else Miss("other weights than the sink's are dropped", slices[0])


def _with_sink(scores: Scores, node: fx.Node) -> Scores | Miss:
    """Scores beside which one column is put, the same for all queries: walks back to the (H,) that it is made of."""
    given, shape = arguments(node), shape_of(node) or ()
    tensors, heads = given["tensors"], heads_of(node)
    if len(tensors) != 2 or given["dim"] not in (-1, len(shape) - 1) or (shape_of(tensors[1]) or (0,))[-1] != 1:
        return Miss("something else than one column is put beside the scores", node)
    sink: fx.Node = tensors[1]
    while shape_of(sink) != (heads,):
        if sink.op != "call_function" or sink.target not in (*CASTS, *RESHAPES, aten.expand.default):
            return Miss(f"{sink.name}, beside the scores, is not made of one number per head", node)
        sink = sink.all_input_nodes[0]
    return replace(scores, sink=sink)


def _product(match: Match) -> Scores | Miss:
    """The scores as the product leaves them: baddbmm scales and adds by itself."""
    node: fx.Node = match["scores"]
    if node.target is not aten.baddbmm.default:
        return Scores()
    given = arguments(node)
    beta, alpha = given["beta"], given["alpha"]
    if isinstance(beta, fx.Node) or isinstance(alpha, fx.Node):
        return Miss("the scores are scaled by a tensor", node)
    # What beta = 0 takes no part of may be uninitialised memory.
    terms = () if beta == 0 else (MaskTerm(given["self"], float(beta)),)
    return Scores(scale=float(alpha), terms=terms)


def _step(scores: Scores, node: fx.Node, operand: int, graph_module: fx.GraphModule) -> Scores | Miss:
    given = list(arguments(node).values())
    name = node.target._schema.name.removeprefix("aten::").rstrip("_")  # type: ignore[union-attr]
    if scores.zeroed is not None and name not in ("add", "sub"):
        return Miss(f"expected what hides the zeros of a mask that multiplies the scores, found {name}", node)
    if name in ("mul", "div"):
        return _multiplied(scores, node, given[1 - operand], name, graph_module)
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
        hidden = () if scores.zeroed is None else (scores.zeroed,)
        return replace(scores, zeroed=None, terms=(*scores.terms, MaskTerm(other, alpha), *hidden))
    if name in ("max", "maximum"):
        least = number_of(given[1 - operand], graph_module)
        if least is None or least > _HIDDEN or not isinstance(given[1 - operand], fx.Node):
            return Miss("the scores are clamped", node)
        return replace(scores, terms=(*scores.terms, MaskTerm(given[1 - operand], least=least)))
    chosen = (given[0], given[3 - operand], operand == 2) if name == "where" else (given[1], given[2], True)
    condition, fill, where = chosen
    number = number_of(fill, graph_module)
    term = MaskTerm(condition, fill=fill if number is None else number, where=where)
    return replace(scores, terms=(*scores.terms, term))


def _multiplied(scores: Scores, node: fx.Node, other: Any, name: str, graph_module: fx.GraphModule) -> Scores | Miss:
    """Scores times, or divided by, a number; or times a mask of 0 and 1."""
    factor = number_of(other, graph_module)
    if factor is None and name == "mul" and not scores.capped and is_indicator(other, graph_module):
        return replace(scores, zeroed=MaskTerm(other, fill=_HIDDEN, where=False))
    if factor is None or arguments(node).get("rounding_mode") is not None:
        return Miss("the scores are multiplied by a tensor", node)
    return _scaled(scores, factor if name == "mul" else 1.0 / factor, node)


def _scaled(scores: Scores, factor: float, node: fx.Node) -> Scores | Miss:
    if scores.capped:  # c * tanh(s / c * QK): the scale inside times c is the scale of QK
        return replace(scores, capped=False, softcap=factor, scale=scores.scale * factor)
    if scores.softcap is not None:
        return Miss("the scores are scaled after their softcap", node)
    if any(term.fill is not None or term.least is not None for term in scores.terms):
        return Miss("the scores are scaled after entries were filled in", node)
    terms = tuple(replace(term, factor=term.factor * factor) for term in scores.terms)
    return replace(scores, scale=scores.scale * factor, terms=terms)


def summed(
    terms: tuple[MaskTerm, ...], heads: int, dtype: torch.dtype, editor: Editor, before: fx.Node
) -> fx.Node | None:
    """One tensor to add to the scores of some dtype, in front of a node; None where nothing is added."""
    total: fx.Node | None = None
    for term in terms:
        if term.least is not None:  # far below any score: only what a mask has lowered further is raised
            total = None if total is None else editor.call(aten.clamp_min.default, total, term.least, before=before)
            continue
        node = lifted_mask(term.node, heads, editor, before)
        if term.fill is not None:  # what is filled in replaces what was added before
            if node.meta["val"].dtype != torch.bool:  # numbers, 0 and 1
                node = editor.call(aten.to.dtype, node, torch.bool, before=before)
            if not isinstance(term.fill, fx.Node) and term.fill <= _HIDDEN:  # nothing of the scores is left
                term = replace(term, fill=min(term.fill, erasing(dtype)))
            total = _filled(node, term, 0.0 if total is None else total, editor, before)
            continue
        if node.meta["val"].dtype == torch.bool:  # added, it is 0 and 1, and hides nothing
            node = editor.call(aten.to.dtype, node, dtype, before=before)
        if term.factor != 1.0:
            node = editor.call(aten.mul.Tensor, node, term.factor, before=before)
        total = node if total is None else editor.call(aten.add.Tensor, total, node, before=before)
    return total


def _filled(condition: fx.Node, term: MaskTerm, others: fx.Node | float, editor: Editor, before: fx.Node) -> fx.Node:
    fill = term.fill if isinstance(term.fill, fx.Node) else float(term.fill)
    chosen = (fill, others) if term.where else (others, fill)
    overload = {
        (True, True): aten.where.self,
        (True, False): aten.where.ScalarOther,
        (False, True): aten.where.ScalarSelf,
        (False, False): aten.where.Scalar,
    }[isinstance(chosen[0], fx.Node), isinstance(chosen[1], fx.Node)]
    return editor.call(overload, condition, *chosen, before=before)
