"""Putting the canonical attention operator into the graph, where a rule has read one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from remixer.mixers import AttentionSpec, Softmax
from remixer.passes.sites import SiteRecord
from remixer.rewrite.dropout import Dropout, DropoutProbability
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Match, module_path, source_line


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


def attention_dropout(match: Match, given: Any) -> float:
    """The probability with which weights are dropped in training: a number, or what a module gives."""
    if isinstance(given, (int, float)):
        return float(given)
    module = match.module(given)
    assert isinstance(module, (Dropout, DropoutProbability))
    return module.p


def raised(
    found: Reading,
    editor: Editor,
    rule: str,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    mask: fx.Node | None,
    cuts: Mapping[str, fx.Node],
    *,
    masks: Iterable[fx.Node] = (),
    flat: bool = False,
) -> fx.Node:
    """Add a call of the canonical operator and record the site on it.

    Args:
        found: what was read.
        editor: of the program.
        rule: name of the rule.
        query: (B, H, T, D).
        key: (B, G, S, D).
        value: (B, G, S, E).
        mask: broadcastable to (B, H, T, S), or None; not yet understood, hence a dense bias.
        cuts: existing nodes from which both forms of the attention start, by operand.
        masks: existing nodes that the mask is made from.
        flat: the original's output is (B * H, T, E).

    Returns:
        The node that stands for the original's output.
    """
    root = found.match.root
    path = module_path(root)
    stack = list(root.meta.get("nn_module_stack", {}).values())
    kind = str(stack[-1][1]).rsplit(".", 1)[-1].strip("'>") if stack else ""
    operands = {"query": query, "key": key, "value": value} | ({"bias": mask} if mask is not None else {})
    fake_query, fake_value = query.meta["val"], value.meta["val"]
    B, H, T, _ = fake_query.shape
    result = fake_value.new_empty((B, H, T, fake_value.shape[-1]))
    target = editor.register(f"{path}.attention" if path else "attention", Softmax(found.spec).eval())
    node = editor.call_module(target, operands, before=root, fake=result)
    last = editor.call(torch.ops.aten.flatten.using_ints, node, 0, 1, before=root) if flat else node
    node.meta["site"] = SiteRecord(
        name=_unique(path or "attention", editor.graph),
        rule=rule,
        source=source_line(root),
        kind=kind,
        original=root.name,
        result=last.name,
        cuts={name: cut.name for name, cut in cuts.items()},
        masks=tuple(term.name for term in masks),
    )
    return last


def _unique(name: str, graph: fx.Graph) -> str:
    taken = {node.meta["site"].name for node in graph.nodes if "site" in node.meta}
    if name not in taken:
        return name
    number = 1
    while f"{name}[{number}]" in taken:
        number += 1
    return f"{name}[{number}]"
