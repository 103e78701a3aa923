"""From what torch.export gave to a Program: a plain graph module, clean, with the signature of the call."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from remixer.rewrite.cleanup import clean, inline_wrapped
from remixer.rewrite.errors import CaptureError
from remixer.rewrite.inputs import Aspect, Call, aspect_of, countable_dimensions, lengths_of, tensors_in
from remixer.rewrite.modules import keep_persistence
from remixer.rewrite.program import Program, StaticDimension, expression, input_symbols, unite
from remixer.rewrite.vmapped import write_out_vmaps


def program_of(
    exported: ExportedProgram,
    call: Call,
    *,
    added: Iterable[str] = (),
    asked: Call | None = None,
    fixed: Collection[Aspect] = (),
    training: bool | None = None,
) -> Program:
    """The program that an ExportedProgram holds.

    Args:
        exported: what torch.export gave.
        call: example inputs, without those in `added`.
        added: names of inputs that its caller never asked for; they go from the signature.
        asked: the example inputs as the user gave them, for the reasons of what stayed static.
        fixed: what stays static since a graph of other sizes gives other outputs than the model.
        training: the mode it was exported in, None if nobody knows.

    Raises:
        CaptureError: it takes other inputs than these.
    """
    args, kwargs = call
    root = exported.module(check_guards=False)
    assert isinstance(root, fx.GraphModule)
    graph_module = fx.GraphModule(root, root.graph)
    keep_persistence(root, graph_module)
    _mark_transient(exported, graph_module)
    _fit_signature(graph_module, args, kwargs, set(added))
    inline_wrapped(graph_module)
    write_out_vmaps(graph_module)
    clean(graph_module, training)
    graph_module.eval()
    if asked is not None:  # an export of our own; somebody else's keeps its symbols
        _unite_batch(graph_module.graph)
    batch, length = input_symbols(graph_module.graph)
    limits = {
        symbol: (int(span.lower) if span.lower.is_Integer else 0, int(span.upper) if span.upper.is_Integer else None)
        for symbol, span in exported.range_constraints.items()
    }
    static = _static_dimensions(graph_module.graph, asked or call, fixed)
    return Program(graph_module, args, kwargs, batch, length, limits, static).with_graph_module(graph_module)


def _mark_transient(exported: ExportedProgram, graph_module: fx.GraphModule) -> None:
    """Buffers that the model would not save, and constants, are not saved either."""
    saved = set(exported.state_dict) - set(exported.graph_signature.non_persistent_buffers)
    for path, module in graph_module.named_modules():
        for name in module._buffers:
            if (f"{path}.{name}" if path else name) not in saved:
                module._non_persistent_buffers_set.add(name)


def _fit_signature(
    graph_module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], added: set[str]
) -> None:
    """Give the graph the signature of the call, or raise CaptureError where it takes another."""
    graph = graph_module.graph
    old = graph._codegen
    assert isinstance(old, _PyTreeCodeGen)
    info = old.pytree_info
    assert info.in_spec is not None
    named: list[str] = list(info.in_spec.child(1).context or [])
    kept = {name: kwargs[name] for name in named if name in kwargs}
    leaves, spec = pytree.tree_flatten((args, kept))
    names = [name for name in info.orig_args if name not in added]
    if (
        set(named) - added != set(kwargs)
        or len(args) != info.in_spec.child(0).num_children
        or len(leaves) != info.in_spec.num_leaves - len(added)
    ):
        raise CaptureError(
            f"the inputs don't fit the exported program: it takes {', '.join(names)}"
            f"{' by name' if named else ''}, got {len(args)} positional and {sorted(kwargs)} by name"
        )
    if not added:
        return
    for node in graph.find_nodes(op="placeholder"):
        if node.target in added:
            graph.erase_node(node)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, spec, info.out_spec)))
    graph_module.recompile()


def _unite_batch(graph: fx.Graph) -> None:
    """Let the first dimensions of all inputs count as one symbol where the example had them equal.

    torch.export gives ids and mask, or queries and memory, a batch each unless some operator compares them;
    a view of one by the other's batch then has a shape that nobody can read.
    """
    first = [value.shape[0] for node in graph.find_nodes(op="placeholder") if _has_rows(value := node.meta.get("val"))]
    symbolic = [size for size in first if isinstance(expression(size), sympy.Symbol)]
    if len({size.node.hint for size in symbolic}) == 1:
        unite(symbolic)


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _static_dimensions(graph: fx.Graph, call: Call, fixed: Collection[Aspect]) -> tuple[StaticDimension, ...]:
    """Batch and length dimensions that did not become symbols."""
    nodes = [node for node in graph.find_nodes(op="placeholder") if isinstance(node.meta.get("val"), torch.Tensor)]
    tensors = tensors_in(call)
    lengths = lengths_of(call)
    found = []
    for node, tensor in zip(nodes, tensors, strict=False):
        value, shape = node.meta["val"], tensor.shape
        for dim in countable_dimensions(tensor, lengths):
            size = expression(value.shape[dim])
            if not size.is_Integer:  # a SymInt may well stand for a constant
                continue
            if aspect_of(dim) in fixed:
                reason = "the graph that torch.export gives holds at no other"
            elif shape[dim] <= 1:
                reason = f"the example's size {shape[dim]} can't be told from a constant; give a larger example"
            else:
                reason = "the model's own code allows this size only"
            found.append(StaticDimension(str(node.target), dim, int(size), reason))
    return tuple(found)
