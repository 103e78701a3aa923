"""A rule: a pattern, a check that says why not, and a rewrite."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from torch import fx

from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Match, Miss
from remixer.rewrite.matcher import Matcher
from remixer.rewrite.pattern import Pattern, Recorder, roots


class Rule(abc.ABC):
    """One way in which a subgraph may be written, and what to write instead.

    Attributes:
        anchor: name of the part of the pattern that has to have matched before a failure is worth reporting;
            "" reports none but those of `check`.
    """

    anchor: str = ""

    @property
    def name(self) -> str:
        """How reports call the rule."""
        return type(self).__name__

    @abc.abstractmethod
    def pattern(self, p: Recorder) -> Pattern:
        """What to look for; written once, as code on a recorder."""

    def check(self, match: Match) -> Any:
        """What `rewrite` needs to know, or a Miss that says why this is no case for it. Changes nothing."""
        return match

    @abc.abstractmethod
    def rewrite(self, found: Any, editor: Editor) -> fx.Node:
        """Add the new nodes and return the one that stands for the match's last."""


def apply(rules: Sequence[Rule], editor: Editor) -> None:
    """Apply rules wherever they match, from the graph's end to its beginning.

    Of several rules the first in the list that matches counts; nodes that nobody reads are passed over.
    """
    prepared = []
    for rule in rules:
        pattern = rule.pattern(Recorder())
        prepared.append((rule, roots(pattern), Matcher(editor.graph_module, pattern)))
    gone: set[fx.Node] = set()
    for node in reversed(list(editor.graph.nodes)):
        if node in gone or not node.users:
            continue
        misses: list[Miss] = []
        for rule, targets, matcher in prepared:
            if not _may_end(editor, node, targets):
                continue
            match = matcher.match(node)
            found = match if isinstance(match, Miss) else rule.check(match)
            if not isinstance(found, Miss):
                assert isinstance(match, Match)
                with editor.rewriting(rule.name, match.root):
                    editor.replace(match.root, rule.rewrite(found, editor))
                gone.update(set(match.inner) - match.shared)
                misses = []
                break
            reached = match if isinstance(match, Match) else matcher.reached()
            anchor = reached.values.get(rule.anchor) if reached else None
            if isinstance(match, Match) or anchor is not None:
                misses.append(Miss(found.reason, found.node or node, rule.name, anchor=anchor or node))
        for miss in misses:
            editor.miss(miss)


def _may_end(editor: Editor, node: fx.Node, targets: frozenset[Any]) -> bool:
    if node.op != "call_module":
        return node.op == "call_function" and node.target in targets
    module = editor.graph_module.get_submodule(str(node.target))
    return isinstance(module, tuple(target for target in targets if isinstance(target, type)))
