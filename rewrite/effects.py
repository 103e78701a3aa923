"""What nodes do besides giving a value: writes, randomness, checks; and which nodes share storage."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import networkx as nx
import torch
from torch import fx

aten = torch.ops.aten

CHECKS = ("_assert", "sym_constrain_range", "_check")
# Operators that may give back their input's storage although their schema doesn't say so.
_MAYBE_VIEWS = {
    aten.reshape.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.flatten.using_ints,
    aten.type_as.default,
    aten.dropout.default,
    operator.getitem,
}


def writes(node: fx.Node) -> bool:
    """Whether a node changes one of its operands."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def is_check(node: fx.Node) -> bool:
    """Whether a node only asserts something, about shapes, dtypes or values."""
    name = getattr(node.target, "__name__", str(node.target))
    return node.op == "call_function" and name.startswith(CHECKS)


def is_impure(node: fx.Node) -> bool:
    """Whether a node must stay although nobody reads it.

    Unlike `fx.Node.is_impure`, operators that only draw random numbers (dropout, attention) may go.
    """
    if node.op in ("placeholder", "output"):
        return True
    return node.op == "call_function" and (writes(node) or is_check(node))


def storage_of(node: fx.Node) -> fx.Node:
    """The node that made the storage which a node's value lies in, as far as views tell."""
    while (base := _viewed(node)) is not None:
        node = base
    return node


def _viewed(node: fx.Node) -> fx.Node | None:
    if node.op == "call_module" and node.args and isinstance(node.args[0], fx.Node):
        return node.args[0]  # a dropout gives its very input back in eval
    if node.op != "call_function" or not node.args:
        return None
    first = node.args[0]
    if isinstance(first, (list, tuple)) or not isinstance(first, fx.Node):
        return None
    if node.target in _MAYBE_VIEWS:
        return first
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        aliased = schema.arguments and schema.arguments[0].alias_info is not None
        returned = any(value.alias_info is not None for value in schema.returns)
        if aliased and returned:
            return first
    return None


def later_readers(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs (write, reader): a node that changes a storage, and one that reads it later by another way.

    A backward slice over operands alone misses these; BEiT-like index tables are built by such writes.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    found = [node for node in graph.nodes if node.op == "call_function" and writes(node)]
    if not found:
        return
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        members.setdefault(storage_of(node), []).append(node)
    for write in found:
        for member in members[storage_of(write)]:
            if order[member] < order[write]:
                for user in member.users:
                    if user is not write and order[user] > order[write]:
                        yield write, user


def dependencies(graph: fx.Graph) -> nx.DiGraph:
    """The graph as networkx sees it: an edge from each node to those that need it, writes included."""
    result = nx.DiGraph()
    for node in graph.nodes:
        result.add_node(node)
        result.add_edges_from((operand, node) for operand in node.all_input_nodes)
    result.add_edges_from(later_readers(graph))
    return result


def remove_dead_code(graph: fx.Graph) -> int:
    """Erase what nobody reads; returns how many nodes went."""
    before = len(graph.nodes)
    while graph.eliminate_dead_code(is_impure_node=_must_stay(graph)):
        pass  # a write may have stayed only for a reader that went
    return before - len(graph.nodes)


def _must_stay(graph: fx.Graph) -> Callable[[fx.Node], bool]:
    """A write stays only where somebody else reads the storage later, or an input or parameter is written."""
    needed = {write for write, _ in later_readers(graph)}

    def stays(node: fx.Node) -> bool:
        if node.op == "call_function" and writes(node):
            return node in needed or storage_of(node).op in ("placeholder", "get_attr")
        return is_impure(node)

    return stays


def make_functional(graph: fx.Graph) -> int:
    """Give in-place operators their out-of-place form where nobody can tell; returns how many changed.

    Safe is: the storage was made by an operator of the graph, nobody reads it later but through the
    operator's own result, and the result's dtype would be the same.
    """
    seen_later = {write for write, _ in later_readers(graph)}
    changed = 0
    for node in graph.nodes:
        if node.op != "call_function" or not writes(node) or node in seen_later:
            continue
        base = node.args[0] if node.args else None
        if not isinstance(base, fx.Node) or storage_of(base).op in ("placeholder", "get_attr"):
            continue
        target = _out_of_place(node)
        if target is not None and _keeps_dtype(node):
            node.target = target
            changed += 1
    return changed


def _out_of_place(node: fx.Node) -> torch._ops.OpOverload | None:
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, name = node.target._schema.name.split("::")
    if not name.endswith("_") or name in ("copy_", "set_", "resize_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    overload = getattr(packet, node.target._overloadname, None) if packet is not None else None
    if overload is None or len(overload._schema.arguments) != len(node.target._schema.arguments):
        return None
    return overload


def _keeps_dtype(node: fx.Node) -> bool:
    values = [operand.meta.get("val") for operand in node.all_input_nodes]
    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor):
        return False
    wide = [value.dtype for value in values if isinstance(value, torch.Tensor) and value.dim() > 0]
    return all(dtype == result.dtype or not dtype.is_floating_point for dtype in wide)
