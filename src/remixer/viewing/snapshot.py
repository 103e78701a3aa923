"""A graph as plain text, node by node: light enough to keep one of every pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import sympy
import torch
from torch import fx

from remixer.mixers import Mixer
from remixer.passes.prove_growth import growth, length_symbols
from remixer.rewrite.growth import NodeGrowth, Order
from remixer.rewrite.inputs import tensors_in
from remixer.rewrite.match import module_path, source_line
from remixer.rewrite.program import Program, expression
from remixer.rewrite.sizes import letters_of, written, written_shape
from remixer.viewing.elements import Elements, elements_of

_LONGEST = 160  # characters of one written argument
_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"  # torch's name for code outside of any module


@dataclass(frozen=True)
class Value:
    """What a node gives.

    Attributes:
        shape: of its tensors, or the size that it computes.
        dtype: of its tensors; "size" of a size; "" if it is not known.
        elements: how many numbers that is.
        bytes: of one element.
        order: how many they are, by the length n.
    """

    shape: str
    dtype: str
    elements: Elements | None = None
    bytes: int = 0
    order: str = ""


@dataclass(frozen=True)
class NodeView:
    """One node.

    Attributes:
        name: unique in its graph, and kept by passes that don't touch the node.
        op: torch.fx's kind of node.
        label: its operator in a word.
        target: its operator in full.
        arguments: names and texts of what it is called with.
        inputs: nodes that it reads.
        path: of the module that it came from.
        value: what it gives.
        source: "file.py:line".
        code: what stands in that line.
        site: name of the attention that stands here.
        rule: that added it.
        replaces: the node that gave the attention's output before, of a site.
        work: how the work grows with the length.
        steep: how much faster than n log n the node grows, its value or its work: an exponent, else 0.
    """

    name: str
    op: str
    label: str
    target: str
    arguments: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    path: str
    value: Value
    source: str
    code: str
    site: str = ""
    rule: str = ""
    replaces: str = ""
    work: str = ""
    steep: float = 0.0


def views_of(program: Program) -> list[NodeView]:
    """Every node of a program."""
    letters = letters_of(program)
    # Without a length nothing grows, whatever a mixer's work would.
    grown = {node.node: node for node in growth(program).nodes} if length_symbols(program) else {}
    return [_view(node, program.graph_module, letters, grown.get(node.name)) for node in program.graph.nodes]


def module_classes(program: Program) -> dict[str, str]:
    """The class names of the modules that a program's nodes came from, by path."""
    found = {}
    for node in program.graph.nodes:
        for path, kind in node.meta.get("nn_module_stack", {}).values():
            name = kind if isinstance(kind, str) else kind.__name__
            found[str(path)] = name.rsplit(".", 1)[-1]
    found.pop(_NOWHERE, None)
    return found


def code_line(node: fx.Node) -> str:
    """What stands in the innermost source line that a node was traced from, or ""."""
    lines = (node.meta.get("stack_trace") or "").splitlines()
    places = [index for index, line in enumerate(lines) if 'File "' in line]
    return lines[places[-1] + 1].strip() if places and places[-1] + 1 < len(lines) else ""


def _view(
    node: fx.Node, owner: fx.GraphModule, letters: Mapping[sympy.Symbol, str], grown: NodeGrowth | None
) -> NodeView:
    record, origin = node.meta.get("site"), node.meta.get("origin")
    path = module_path(node)
    return NodeView(
        node.name,
        node.op,
        _label(node, owner),
        str(node.target),
        _arguments(node),
        tuple(dict.fromkeys(operand.name for operand in node.all_input_nodes)),
        "" if path == _NOWHERE else path,
        _value(node, owner, letters, str(grown.size) if grown else ""),
        source_line(node),
        code_line(node),
        record.name if record is not None else "",
        origin.rule if origin is not None else "",
        record.original if record is not None else "",
        str(grown.work) if grown else "",
        grown.worst.degree if grown and grown.worst > Order(1.0, log=True) else 0.0,
    )


def _label(node: fx.Node, owner: fx.GraphModule) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name).split("::")[-1]
    if node.op == "call_module":
        module = owner.get_submodule(str(node.target))
        return module.config.name if isinstance(module, Mixer) else type(module).__name__
    if callable(node.target):
        return getattr(node.target, "__name__", type(node.target).__name__)
    return str(node.target)


def _arguments(node: fx.Node) -> tuple[tuple[str, str], ...]:
    """What the call was given, under the names of the operator's schema."""
    names = [str(index) for index in range(len(node.args))]
    if isinstance(node.target, torch._ops.OpOverload):
        schema = [argument.name for argument in node.target._schema.arguments]
        names = [*schema[: len(names)], *names[len(schema) :]]
    return tuple((name, _text(given)) for name, given in [*zip(names, node.args, strict=True), *node.kwargs.items()])


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _value(node: fx.Node, owner: fx.GraphModule, letters: Mapping[sympy.Symbol, str], order: str) -> Value:
    value = node.meta.get("val")
    if node.op == "get_attr" and value is None:
        value = attrgetter(str(node.target))(owner)
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        return Value(written(expression(value), letters), "size")
    tensors = tensors_in(value)
    if not tensors:
        return Value("", "")
    dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return Value(
        " and ".join(written_shape(tensor.shape, letters) for tensor in tensors),
        " and ".join(dtypes),
        elements_of(tensors, letters),
        max(tensor.element_size() for tensor in tensors),
        order,
    )
