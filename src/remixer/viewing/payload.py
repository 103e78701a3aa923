"""All that a page knows, as one JSON text. Whatever occurs often stands in a table and is told by its number."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from remixer.export.versions import versions
from remixer.passes.base import Pass
from remixer.viewing.snapshot import NodeView, Value
from remixer.viewing.trace import Stage
from remixer.viewing.tracing import Story

Row = TypeVar("Row", bound=Hashable)


class Table(Generic[Row]):
    """Distinct rows in the order that they came in."""

    def __init__(self) -> None:
        self.rows: dict[Row, int] = {}

    def number(self, row: Row) -> int:
        """The row's number; a new row is added."""
        return self.rows.setdefault(row, len(self.rows))


def payload_of(story: Story) -> str:
    """The JSON text of a page. It holds no "<", so that it can stand between tags."""
    nodes: Table[NodeView] = Table()
    paths: Table[str] = Table()
    values: Table[Value] = Table()
    sources: Table[tuple[str, str]] = Table()
    stages = [_stage(stage, nodes) for stage in story.trace.stages]
    plain = {
        "model": story.model,
        "versions": versions(),
        "notes": [*(story.report.notes if story.report else ()), *story.notes],
        "letters": story.trace.letters,
        "classes": story.trace.classes,
        "report": story.report.to_dict() if story.report else None,
        "stages": stages,
        "nodes": [_node(node, paths, values, sources) for node in nodes.rows],
        "paths": list(paths.rows),
        "values": [_value(value) for value in values.rows],
        "sources": list(sources.rows),
    }
    return json.dumps(plain, separators=(",", ":")).replace("<", "\\u003c")


def _stage(stage: Stage, nodes: Table[NodeView]) -> dict[str, Any]:
    return {
        "title": stage.title,
        "detail": stage.detail,
        "about": _about().get(stage.title, ""),
        "seconds": stage.seconds,
        "changed": stage.changed,
        "rewrites": [dataclasses.asdict(rewrite) for rewrite in stage.rewrites],
        "misses": [dataclasses.asdict(miss) for miss in stage.misses],
        "nodes": [nodes.number(node) for node in stage.nodes],
    }


def _node(node: NodeView, paths: Table[str], values: Table[Value], sources: Table[tuple[str, str]]) -> list[Any]:
    return [
        node.name,
        node.op,
        node.label,
        node.target,
        node.arguments,
        node.inputs,
        paths.number(node.path),
        values.number(node.value),
        sources.number((node.source, node.code)),
        node.site,
        node.rule,
        node.replaces,
        node.work,
        node.steep,
    ]


def _value(value: Value) -> list[Any]:
    elements = value.elements
    return [
        value.shape,
        value.dtype,
        elements.text if elements else "",
        elements.tree if elements else None,
        value.bytes,
        value.order,
    ]


def _about() -> dict[str, str]:
    """What each pass does, in its own words."""
    found, left = {}, [Pass]
    while left:
        one = left.pop()
        found[one.__name__] = " ".join(inspect.cleandoc(one.__doc__ or "").split("\n\n")[0].split())
        left += one.__subclasses__()
    return found
