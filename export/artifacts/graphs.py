"""A graph of torch.fx as a record, and back.

A graph's nodes are turned into source code by torch.fx, which runs it: so names are names, and operands are numbers,
text and nodes, before anything is made of them.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen, _ExportCodeGen, _PyTreeCodeGen, _PyTreeInfo

from remixer.export.artifacts import operands, recorded, structures
from remixer.export.artifacts.operators import called, name_of
from remixer.export.artifacts.records import GraphRecord, NodeRecord, SignatureRecord
from remixer.export.artifacts.symbols import Symbols
from remixer.export.typed import TypedError
from remixer.passes.sites import SiteRecord
from remixer.rewrite.editor import Origin

PATH = re.compile(r"[\w -]+(\.[\w -]+)*")  # of a module or a weight
_FILE = re.compile(r'File "(?:[^"]*[/\\](?:site-packages|dist-packages)[/\\])?([^"]*)"')


class Tables:
    """What many nodes have in common, each written once.

    Args:
        values: whether to write what is known of nodes besides what they compute.
    """

    def __init__(self, *, values: bool = True) -> None:
        self.values = values
        self.symbols = Symbols()
        self.traces: dict[str, int] = {}
        self.stacks: dict[tuple[tuple[str, str, str], ...], int] = {}

    def trace(self, node: fx.Node) -> int | None:
        """The place of a node's source lines; the folders that packages are installed in are nobody's business."""
        text = node.meta.get("stack_trace")
        if not text:
            return None
        clean = "".join(each for each in _FILE.sub(_short, text) if each == "\n" or each.isprintable())
        return self.traces.setdefault(clean, len(self.traces))

    def stack(self, node: fx.Node) -> int | None:
        """The place of the modules that a node came from."""
        stack = node.meta.get("nn_module_stack")
        if not stack:
            return None
        key = tuple((str(key), str(path), _kind(kind)) for key, (path, kind) in stack.items())
        return self.stacks.setdefault(key, len(self.stacks))


def written(graph: fx.Graph, tables: Tables) -> GraphRecord:
    """A graph as a record.

    Raises:
        TypedError: it calls or holds what no file may.
    """
    return GraphRecord(tuple(_written(node, tables) for node in graph.nodes), _signature(graph._codegen))


def graph_of(
    record: GraphRecord,
    recorder: recorded.Recorder,
    traces: tuple[str, ...] = (),
    stacks: tuple[tuple[tuple[str, str, str], ...], ...] = (),
) -> fx.Graph:
    """The graph of a record.

    Raises:
        TypedError: the record is none of a graph.
    """
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    known = [{key: (path, kind) for key, path, kind in stack} for stack in stacks]
    if not all(each == "\n" or each.isprintable() for trace in traces for each in trace):
        raise TypedError("lines of source hold characters that are no text")
    for each in record.nodes:
        args, kwargs = operands.operands(each.args, made), operands.named_operands(each.kwargs, made)
        target = called(each.target) if each.op == "call_function" else _target(each)
        node = graph.create_node(each.op, target, args, kwargs, _identifier(each.name))
        if node.name != each.name or each.name in made:
            raise TypedError(f"expected the name of a node, got {each.name!r:.80}")
        made[each.name] = node
        if each.val is not None:
            node.meta["val"] = recorder.value(each.val)
        if each.stack is not None:
            node.meta["nn_module_stack"] = dict(known[each.stack])
        if each.trace is not None:
            node.meta["stack_trace"] = traces[each.trace]
        for name, said in (("origin", each.origin), ("site", each.site)):
            if said is not None:
                node.meta[name] = said
    if [node.op for node in graph.nodes].count("output") != 1 or list(graph.nodes)[-1].op != "output":
        raise TypedError("a graph ends with its one output")
    if record.signature is not None:
        graph.set_codegen(_codegen(record.signature, graph))
    graph.lint()
    return graph


def _written(node: fx.Node, tables: Tables) -> NodeRecord:
    if node.op == "call_method":
        raise TypedError(f"{node.name} calls the method {node.target}, which no file may")
    target = name_of(node.target) if node.op == "call_function" else str(node.target)
    return NodeRecord(
        node.name,
        node.op,  # type: ignore[arg-type]
        target,
        [operands.written(each) for each in node.args],
        [[name, operands.written(each)] for name, each in node.kwargs.items()],
        *_known(node, tables),
    )


def _known(node: fx.Node, tables: Tables) -> tuple[Any, ...]:
    """What is written of a node besides what it computes."""
    if not tables.values:
        return ()
    origin, site = node.meta.get("origin"), node.meta.get("site")
    return (
        recorded.written(node.meta.get("val"), tables.symbols),
        tables.stack(node),
        tables.trace(node),
        origin if isinstance(origin, Origin) else None,
        site if isinstance(site, SiteRecord) else None,
    )


def _target(record: NodeRecord) -> str:
    if record.op == "placeholder":
        return _identifier(record.target)
    if not PATH.fullmatch(record.target):
        raise TypedError(f"expected the path of a module or a weight, got {record.target!r:.80}")
    return record.target


def _identifier(name: str) -> str:
    if operands.name_of_argument(name) == "self":
        raise TypedError("an argument can't have the name 'self'")
    return name


def _signature(codegen: CodeGen) -> SignatureRecord | None:
    if type(codegen) is CodeGen:
        return None
    if not isinstance(codegen, _PyTreeCodeGen) or isinstance(codegen, _ExportCodeGen):
        raise TypedError(f"a graph that is called by way of {type(codegen).__name__} can't be written")
    info = codegen.pytree_info
    assert info.in_spec is not None
    outputs = None if info.out_spec is None else structures.written(info.out_spec)
    return SignatureRecord(tuple(info.orig_args), structures.written(info.in_spec), outputs)


def _codegen(record: SignatureRecord, graph: fx.Graph) -> CodeGen:
    names = list(map(_identifier, record.names))
    inputs = structures.structure(record.inputs, inputs=True)
    outputs = None if record.outputs is None else structures.structure(record.outputs)
    shape = [child.type for child in inputs.children()]
    if len(set(names)) != len(names) or inputs.type is not tuple or shape != [tuple, dict]:
        raise TypedError("expected the names of arguments, positional and named ones")
    positional, named = inputs.children()
    given = graph.output_node().args[0]
    if (
        len(names) != positional.num_children + named.num_children
        or names[positional.num_children :] != list(named.context)
        or inputs.num_leaves != len(graph.find_nodes(op="placeholder"))
        or (outputs is not None and outputs.num_leaves != (len(given) if isinstance(given, (list, tuple)) else 1))
    ):
        raise TypedError("the graph has other inputs or outputs than its signature says")
    return _PyTreeCodeGen(_PyTreeInfo(names, inputs, outputs))


def _short(found: re.Match[str]) -> str:
    """A file's path in its package, or its name where it has none."""
    file = found[1]
    if re.match(r"[/\\]|\w:", file):
        file = re.split(r"[/\\]", file)[-1]
    return f'File "{file}"'


def _kind(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if inspect.isclass(kind) else str(kind)
