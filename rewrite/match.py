"""What matching gives: where a pattern was found, or a reason; and how nodes are read on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx, nn

from remixer.rewrite.program import shape_of


def module_path(node: fx.Node) -> str:
    """Dotted path of the module that a node was traced from; "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def source_line(node: fx.Node) -> str:
    """The innermost source line that a node was traced from, as "file.py:123", or ""."""
    lines = [line for line in (node.meta.get("stack_trace") or "").splitlines() if 'File "' in line]
    if not lines:
        return ""
    _, file, rest = lines[-1].split('"', 2)
    return f"{file.rsplit('/', 1)[-1]}:{rest.split('line ')[1].split(',')[0]}"


@dataclass(frozen=True)
class Miss:
    """Why something was not rewritten.

    Attributes:
        reason: a sentence.
        node: where it stopped.
        rule: that was tried.
        site: name of what was not rewritten.
        anchor: the node that it is known by, such as the softmax of an attention.
    """

    reason: str
    node: fx.Node | None = None
    rule: str = ""
    site: str = ""
    anchor: fx.Node | None = None

    @property
    def place(self) -> str:
        """The site, or else the module path of where it stopped; "" if neither is known."""
        return self.site or (module_path(self.node) if self.node is not None else "")

    def __str__(self) -> str:
        if self.node is None:
            return self.reason
        place = ", ".join(filter(None, [module_path(self.node), source_line(self.node)]))
        return f"{self.reason} (at {self.node.name}{': ' if place else ''}{place})"


@dataclass(frozen=True)
class Taken:
    """A step that a chain took: the node, and the position of the operand it came in by."""

    node: fx.Node
    operand: int


@dataclass(frozen=True)
class Match:
    """Where a pattern was found.

    `match["query"]` is what the part of that name matched: a node, or a plain value.

    Attributes:
        root: the last node.
        graph_module: whose graph it is.
        values: what named parts matched.
        tags: which option of each `either` matched.
        paths: the steps of each chain.
        inner: all nodes that were met.
        shared: those of them that others may read as well.
    """

    root: fx.Node
    graph_module: fx.GraphModule
    values: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, tuple[Taken, ...]] = field(default_factory=dict)
    inner: tuple[fx.Node, ...] = ()
    shared: frozenset[fx.Node] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.graph_module.get_submodule(str(node.target))

    def tag(self, name: str) -> str:
        """Which option of an `either` matched."""
        return self.tags[name]

    def path(self, name: str) -> tuple[Taken, ...]:
        """The steps that a chain took, from its end back to its beginning."""
        return self.paths[name]

    def shape(self, name: str, letters: str, sizes: dict[str, sympy.Expr]) -> Miss | None:
        """Bind the letters of a shape ("B H T D") to a node's sizes; a Miss where one contradicts `sizes`."""
        node = self.values[name]
        shape = shape_of(node) if isinstance(node, fx.Node) else None
        wanted = letters.split()
        if shape is None or len(shape) != len(wanted):
            return Miss(f"{name} has shape {shape}, expected ({', '.join(wanted)})", node)
        for letter, size in zip(wanted, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return Miss(f"{name} has {letter} = {size}, expected {sizes[letter]}", node)
        return None

    def _with(self, **changes: Any) -> Match:
        return Match(
            self.root,
            self.graph_module,
            {**self.values, **changes.get("values", {})},
            {**self.tags, **changes.get("tags", {})},
            {**self.paths, **changes.get("paths", {})},
            self.inner + changes.get("inner", ()),
            self.shared | changes.get("shared", frozenset()),
        )


def arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name, in the order of the operator's schema, defaults filled in."""
    if isinstance(node.target, torch._ops.OpOverload):
        given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False))
        given.update(node.kwargs)
        return {
            argument.name: given.get(argument.name, argument.default_value if argument.has_default_value() else None)
            for argument in node.target._schema.arguments
        }
    return {**{str(index): value for index, value in enumerate(node.args)}, **node.kwargs}
