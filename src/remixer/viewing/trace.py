"""The graphs on the way from a model to its rewritten form, one for each pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from remixer.passes.base import Result
from remixer.rewrite.editor import Rewrite
from remixer.rewrite.match import Miss
from remixer.rewrite.program import Program
from remixer.rewrite.sizes import in_letters, letters_of
from remixer.viewing.snapshot import NodeView, module_classes, views_of


@dataclass(frozen=True)
class MissView:
    """Why a pass left something as it was: the sentence, the node that it is known by, the rule and the attention."""

    reason: str
    node: str
    rule: str
    site: str


@dataclass(frozen=True)
class Stage:
    """A graph as one pass left it.

    Attributes:
        title: the pass, or what else gave the graph.
        detail: the pass with its options.
        nodes: in the graph's order.
        seconds: that the pass took.
        changed: whether the pass edited anything.
        rewrites: rules that it applied.
        misses: what it left as it was, and why.
    """

    title: str
    detail: str
    nodes: tuple[NodeView, ...]
    seconds: float = 0.0
    changed: bool = True
    rewrites: tuple[Rewrite, ...] = ()
    misses: tuple[MissView, ...] = ()


class Trace:
    """Graphs in their order, as plain text. Nodes that a pass didn't touch are held once. Copies of a model share it.

    Examples:
        >>> import remixer, torch
        >>> trace = Trace()
        >>> trace.start(remixer.capture(torch.nn.Linear(3, 2), torch.zeros(2, 3)))
        >>> [node.label for node in trace.stages[0].nodes]
        ['weight', 'bias', 'input', 'linear', 'output']
    """

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.classes: dict[str, str] = {}
        self.letters: tuple[str, ...] = ()
        self._known: dict[NodeView, NodeView] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def start(self, program: Program, title: str = "capture", detail: str = "", seconds: float = 0.0) -> None:
        """Add a graph that no pass gave."""
        self.stages.append(Stage(title, detail or title, self._views(program), seconds))

    def add(self, result: Result) -> None:
        """Add what a pass gave, or each pass of a pipeline."""
        for step in result.steps or (result,):
            # What a pass that edits nothing gives is the graph that is known already.
            kept = not step.modified and self.stages
            nodes = self.stages[-1].nodes if kept else self._views(step.program)
            title = step.name.split("(")[0]
            misses = _seen(step.misses, step.program)
            stage = Stage(title, step.name, nodes, step.seconds, step.modified, step.rewrites, misses)
            self.stages.append(stage)

    def _views(self, program: Program) -> tuple[NodeView, ...]:
        self.classes |= module_classes(program)
        self.letters = tuple(dict.fromkeys([*self.letters, *letters_of(program).values()]))
        return tuple(self._known.setdefault(view, view) for view in views_of(program))


def _seen(misses: Iterable[Miss], program: Program) -> tuple[MissView, ...]:
    letters = letters_of(program)
    seen = []
    for miss in misses:
        node = miss.anchor or miss.node
        name = node.name if node is not None else ""
        seen.append(MissView(in_letters(miss.reason, letters), name, miss.rule, miss.place or "attention"))
    return tuple(seen)
