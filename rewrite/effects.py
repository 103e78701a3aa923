"""What nodes do besides giving a value: writes, randomness, checks; and which nodes share storage."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterator
from typing import Any

import networkx as nx
import torch
from torch import fx
from torch.fx.node import map_arg

from remixer.rewrite.program import fake_mode

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
    aten.broadcast_tensors.default,
    aten.meshgrid.default,
    aten.meshgrid.indexing,
    operator.getitem,
}


def writes(node: fx.Node) -> bool:
    """Whether a node changes one of its operands."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def written(node: fx.Node) -> list[fx.Node]:
    """The operands that a node changes."""
    if not writes(node):
        return []
    assert isinstance(node.target, torch._ops.OpOverload)
    found: list[fx.Node] = []
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        found += [item for item in _flat(given) if isinstance(item, fx.Node)]
    return found


def written_storages(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that made a storage which some node changes."""
    return {
        storage
        for node in graph.nodes
        if node.op == "call_function"
        for operand in written(node)
        for storage in storages_of(operand)
    }


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


def storages_of(node: fx.Node) -> set[fx.Node]:
    """The nodes that made the storages which a node's value may lie in, as far as views tell."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        viewed = _viewed(current := stack.pop())
        stack += viewed
        if not viewed:
            found.add(current)
    return found


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _viewed(node: fx.Node) -> list[fx.Node]:
    """The operands whose storage a node's value may share."""
    if not node.args or node.op not in ("call_function", "call_module"):
        return []
    first = [item for item in _flat(node.args[0]) if isinstance(item, fx.Node)]
    if node.op == "call_module" or node.target in _MAYBE_VIEWS:
        return first  # a dropout gives its very input back in eval
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        if any(value.alias_info is not None for value in schema.returns):
            aliased = bool(schema.arguments) and schema.arguments[0].alias_info is not None
            return first if aliased else written(node)  # an `out=` operator returns what it was given
    return []


def write_between(operand: fx.Node, readers: Container[fx.Node], end: fx.Node) -> fx.Node | None:
    """The first write into an operand between where it is read and another node, if there is one.

    Args:
        operand: that is read.
        readers: the nodes that read it, directly or through views of it that are among them.
        end: a later node.
    """
    storages = storages_of(operand)
    read: list[fx.Node] = []
    views = [operand]
    while views:
        for user in (user for user in views.pop().users if user in readers):
            shared = bool(storages & storages_of(user))
            views += [user] if shared else []
            read += [] if shared and user.target not in _MAYBE_VIEWS else [user]
    node = min(read, default=end)
    while node < end:
        node = node.next
        if any(storages & storages_of(one) for one in written(node)):
            return node
    return None


def later_readers(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs (write, reader): a node that changes a storage, and one that reads it later by another way.

    A backward slice over operands alone misses these; index tables of relative positions are built by such writes.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    found = [node for node in graph.nodes if node.op == "call_function" and writes(node)]
    if not found:
        return
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        for storage in storages_of(node):
            members.setdefault(storage, []).append(node)
    for write in found:
        changed = {storage for operand in written(write) for storage in storages_of(operand)}
        for member in {member for storage in changed for member in members[storage]}:
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
            return node in needed or _is_outer(node)
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
        if _is_outer(node) or written(node) != [node.args[0]]:
            continue
        target = _out_of_place(node)
        if target is not None and _gives_the_same(node, target):
            node.target = target
            changed += 1
    return changed


def _is_outer(write: fx.Node) -> bool:
    """Whether a write changes an input, a parameter or a buffer."""
    return any(
        storage.op in ("placeholder", "get_attr") for operand in written(write) for storage in storages_of(operand)
    )


def _out_of_place(node: fx.Node) -> torch._ops.OpOverload | None:
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, name = node.target._schema.name.split("::")
    if not name.endswith("_") or name in ("copy_", "set_", "resize_"):
        return None  # what copy_ gives without writing would lose the dtype and shape of its target
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    overload = getattr(packet, node.target._overloadname, None) if packet is not None else None
    if overload is None or len(overload._schema.arguments) != len(node.target._schema.arguments):
        return None
    return overload


def _gives_the_same(node: fx.Node, target: torch._ops.OpOverload) -> bool:
    """Whether the out-of-place operator's result has the dtype and shape of what it would be written into."""
    recorded = node.meta.get("val")
    if not isinstance(recorded, torch.Tensor):
        return False
    args, kwargs = map_arg((node.args, node.kwargs), lambda operand: operand.meta.get("val"))
    with fake_mode(node.graph):
        try:
            result = target(*args, **kwargs)
        except (RuntimeError, TypeError, NotImplementedError):  # it takes other arguments, or no fake tensors
            return False
    return isinstance(result, torch.Tensor) and (result.dtype, result.shape) == (
        recorded.dtype,
        recorded.shape,
    )
