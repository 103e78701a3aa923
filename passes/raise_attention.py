"""Putting the canonical attention operator into the graph, where a rule has read one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from remixer.mixers import AttentionSpec, Softmax
from remixer.passes.sites import SiteRecord, sites_of, unique_name
from remixer.rewrite.dropout import Dropout, DropoutProbability
from remixer.rewrite.editor import Editor
from remixer.rewrite.effects import write_between
from remixer.rewrite.match import Match, Miss, module_path, source_line
from remixer.rewrite.matcher import word_for


@dataclass(frozen=True)
class Reading:
    """What a rule's check has read: the spec and the operands as nodes of the graph.

    `key` is None where the rule still has to bring it into (B, G, S, D).
    """

    match: Match
    spec: AttentionSpec
    query: fx.Node
    key: fx.Node | None
    value: fx.Node
    mask: Any
    sink: fx.Node | None = None


def unsettled(match: Match, operands: Iterable[tuple[str, fx.Node]]) -> Miss | None:
    """Which operand is changed before the match's last node, where the canonical operator would read it."""
    for name, operand in operands:
        if write := write_between(operand, match.inner, match.root):
            told = f"{name}, {operand.name}, is changed in place by {word_for(write)} after the attention read it"
            return Miss(f"the {told} and before its result is there", write)
    return None


def attention_dropout(match: Match, given: Any) -> float:
    """The probability with which weights are dropped in training: a number, or what a module gives."""
    if isinstance(given, (int, float)):
        return float(given)
    module = match.module(given)
    assert isinstance(module, (Dropout, DropoutProbability))
    return module.p


def raised(
    match: Match,
    spec: AttentionSpec,
    editor: Editor,
    rule: str,
    operands: Mapping[str, fx.Node],
    *,
    cuts: Mapping[str, fx.Node] | None = None,
    masks: Iterable[fx.Node] | None = None,
    layout: Callable[[fx.Node], fx.Node] | None = None,
) -> fx.Node:
    """Add a call of the canonical operator and record the site on it.

    Args:
        match: where the attention was found.
        spec: what it computes; a mask that is not yet understood is a dense bias.
        editor: of the program.
        rule: name of the rule.
        operands: "query" (B, H, T, D), "key" (B, G, S, D), "value" (B, G, S, E), with a mask "bias",
            broadcastable to (B, H, T, S), and with a sink "sink" (H,).
        cuts: existing nodes from which both forms of the attention start, by operand; by default the operands.
        masks: existing nodes that the mask is made from; by default the bias.
        layout: brings the (B, H, T, E) result into the layout that the original has, by further calls.

    Returns:
        The node that stands for the original's output.
    """
    root = match.root
    path = module_path(root)
    stack = list(root.meta.get("nn_module_stack", {}).values())
    kind = str(stack[-1][1]).rsplit(".", 1)[-1].strip("'>") if stack else ""
    fake_query, fake_value = operands["query"].meta["val"], operands["value"].meta["val"]
    B, H, T, _ = fake_query.shape
    result = fake_value.new_empty((B, H, T, fake_value.shape[-1]))
    target = editor.register(f"{path}.attention" if path else "attention", Softmax(spec).eval())
    node = editor.call_module(target, operands, before=root, fake=result)
    last = node if layout is None else layout(node)
    cuts = cuts or {name: operands[name] for name in ("query", "key", "value")}
    made_from = masks if masks is not None else [operands[name] for name in ("bias",) if name in operands]
    node.meta["site"] = SiteRecord(
        name=unique_name(path or "attention", {site.name for site in sites_of(editor.program)}),
        rule=rule,
        source=source_line(root),
        kind=kind,
        original=root.name,
        result=last.name,
        cuts={name: cut.name for name, cut in cuts.items()},
        masks=tuple(term.name for term in made_from),
    )
    return last
