"""What torch.export recorded inside of `torch.vmap`, written out as plain operators.

Such a stretch of a graph runs in order only: between calls that open and close a level of batching, which have no
users, its tensors are slices that exist nowhere else. No pass can cut, move or drop a node of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from torch import fx
from torch._functorch import predispatch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from remixer.rewrite.effects import is_check
from remixer.rewrite.errors import CaptureError
from remixer.rewrite.match import module_path
from remixer.rewrite.program import fake_mode

_OPENS, _CLOSES = predispatch._vmap_increment_nesting, predispatch._vmap_decrement_nesting
_ORIGIN = ("nn_module_stack", "stack_trace")


def write_out_vmaps(graph_module: fx.GraphModule) -> None:
    """Replace each outermost vmap by the operators that its batching rules give, in place.

    Raises:
        CaptureError: an operator in it has no batching rule.
    """
    for stretch in list(_vmaps(graph_module.graph)):
        _write_out(graph_module, stretch)


def _vmaps(graph: fx.Graph) -> Iterator[list[fx.Node]]:
    """The nodes of each outermost vmap, in order."""
    stretch: list[fx.Node] = []
    depth = 0
    for node in graph.nodes:
        depth += node.target is _OPENS
        if depth:
            stretch.append(node)
        if node.target is _CLOSES:
            depth -= 1
            if not depth:
                yield stretch
                stretch = []


def _write_out(graph_module: fx.GraphModule, stretch: list[fx.Node]) -> None:
    graph, inside = graph_module.graph, set(stretch)
    read = dict.fromkeys(operand for node in stretch for operand in node.all_input_nodes)
    given = [node for node in read if "val" in node.meta and (node not in inside or node.op == "get_attr")]
    results = [node for node in stretch if node.op != "get_attr" and any(user not in inside for user in node.users)]
    traced = _traced(graph_module, stretch, given, results)
    mapping: dict[fx.Node, Any] = dict(zip(traced.find_nodes(op="placeholder"), given, strict=True))
    with graph.inserting_before(stretch[-1].next):
        written: Any = graph.graph_copy(traced, mapping)
    origin = {key: stretch[0].meta[key] for key in _ORIGIN if key in stretch[0].meta}
    for node in traced.nodes:
        if node.op == "call_function":
            mapping[node].meta.update(origin)
    for old, new in zip(results, written, strict=True):
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)
    for node in reversed(stretch):
        if not node.users:  # a weight that was first read here may be read elsewhere, too
            graph.erase_node(node)


def _traced(
    graph_module: fx.GraphModule, stretch: list[fx.Node], given: list[fx.Node], results: list[fx.Node]
) -> fx.Graph:
    """The graph of a vmap from what it reads to what is read of it."""

    def run(*values: Any) -> list[Any]:
        return _run(graph_module, stretch, dict(zip(given, values, strict=True)), results)

    try:
        with fake_mode(graph_module.graph):
            return make_fx(run)(*(node.meta["val"] for node in given)).graph
    except Exception as error:  # whatever an operator raises that can't be batched
        told = (str(error).splitlines() or [""])[0]
        raise CaptureError(
            f"what torch.export recorded of a torch.vmap in {module_path(stretch[0]) or 'the model'} can't be written "
            f"out as plain operators: {type(error).__name__}: {told[:200]}. What to try: write it without torch.vmap"
        ) from error


def _run(
    graph_module: fx.GraphModule, stretch: list[fx.Node], values: dict[fx.Node, Any], results: list[fx.Node]
) -> list[Any]:
    """Run a stretch of a graph, and leave no level of batching open."""

    def value_of(operand: fx.Node) -> Any:
        if operand.op == "get_attr" and operand not in values:  # a constant that is no tensor
            return attrgetter(str(operand.target))(graph_module)
        return values[operand]

    depth = 0
    try:
        for node in stretch:
            if node.op != "call_function" or is_check(node):
                continue
            args, kwargs = map_arg((node.args, node.kwargs), value_of)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            depth += (node.target is _OPENS) - (node.target is _CLOSES)
    finally:
        for _ in range(depth):
            _CLOSES()
    return [values[node] for node in results]
