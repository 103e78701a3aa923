"""From one program to pipeline stages: graphs that run one after the other, each on processes of its own.

Every stage is given the whole inputs of the model, token ids and masks, which are small. What is made of them alone,
such as masks, positions, and rotary tables, each stage computes for itself; so only activations cross from one stage to
the next. A value that a later stage needs goes through those in between.

Stages have about the same load, of work and of weights. Where exactly one ends is a minimum cut of the activations
within the window that this balance leaves; whatever the cut, all that a node needs stands in its stage or before it.

A weight that several stages read is in each of them. Its gradient is then the sum of theirs, for the caller to take;
`Stage.weights` says which these are.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import sympy
import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from remixer.mixers.distributed.ranks import ALONE, Ranks, bound
from remixer.passes.errors import StageError
from remixer.passes.shard_sequence import SPREAD, ShardSequence
from remixer.passes.stage_cuts import Cutting, Values
from remixer.passes.stage_loads import flops_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.modules import keep_persistence, weights
from remixer.rewrite.program import Program, expression, shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Crossing:
    """An activation that one stage hands to the next.

    Attributes:
        name: of the node that makes it.
        shape: in symbols of the inputs, of all tokens.
        spread: the dimension along which each process has its own tokens only, or None.
        dtype: of its numbers.
    """

    name: str
    shape: tuple[sympy.Expr, ...]
    spread: int | None
    dtype: torch.dtype

    @property
    def bytes(self) -> sympy.Expr:
        """Of all tokens, a polynomial of batch and length."""
        return sympy.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        graph_module: takes what the stage before sends, a tuple, and then the model's inputs. Gives what it sends, a
            tuple; of the last stage, what the model gives.
        receives: what the stage before sends.
        flops: of one row of so many tokens as the split was made for.
        bytes: of its weights.
        weights: names of its weights as they have them in the program. Those that several stages have are tied.
    """

    graph_module: fx.GraphModule
    receives: tuple[Crossing, ...]
    flops: int
    bytes: int
    weights: dict[str, str]


def split_stages(
    program: Program, stages: int, tokens: int = 8192, *, memory: float = 0.25, slack: float = 0.25
) -> tuple[Stage, ...]:
    """Split a program, whose tokens may be spread, into pipeline stages.

    Args:
        program: the program; it is not changed.
        stages: how many.
        tokens: how long sequences are expected to be.
        memory: how much of the load that is balanced is weights; the rest is work.
        slack: how far from even a cut may be, in parts of a stage, for less to cross it.

    Raises:
        StageError: there is not enough to split, or what would cross is nothing that can be sent.
        ValueError: stages is less than 1.
    """
    if stages < 1:
        raise ValueError(f"stages must be at least 1, got {stages}")
    editor = Editor(program.copy(), "SplitStages")
    with torch.no_grad():
        _sizes_from_inputs(editor)
    editor.sweep()
    program = editor.program
    seeded = [node for node in program.graph.nodes if torch.Tag.nondeterministic_seeded in _tags(node)]
    if seeded:
        raise StageError(f"cannot split into stages: {seeded[0].name} draws random numbers, {seeded[0].target}")
    with bound(ShardSequence.mesh_dim, Ranks(ALONE, 1)):
        flops = flops_of(program, tokens)
    values = Values(program)
    place = Cutting(program, values, flops, tokens, memory, slack).places(stages)
    return tuple(_stage(program, values, place, stages, index, flops) for index in range(stages))


def _tags(node: fx.Node) -> Iterable[torch.Tag]:
    return getattr(node.target, "tags", ()) if node.op == "call_function" else ()


def _sizes_from_inputs(editor: Editor) -> None:
    """Sizes that were read from activations are read from inputs."""
    known = {
        size: (node, dim)
        for node in reversed(list(editor.graph.find_nodes(op="placeholder")))
        for dim, size in enumerate(shape_of(node) or ())
        if isinstance(size, sympy.Symbol)
    }
    for node in editor.graph.find_nodes(op="call_function", target=aten.sym_size.int):
        operand, dim = node.args
        if not isinstance(operand, fx.Node) or operand.op == "placeholder" or operand.meta.get(SPREAD) == dim:
            continue
        made = _size(editor, expression(node.meta["val"]), known, node)
        if made is not None:
            node.replace_all_uses_with(made)


def _size(
    editor: Editor, size: sympy.Expr, known: dict[sympy.Symbol, tuple[fx.Node, int]], before: fx.Node
) -> fx.Node | int | None:
    """A size as nodes of the inputs' sizes, or None where it is no polynomial of them."""
    if size.is_Integer:
        return int(size)
    if size in known:
        node, dim = known[size]
        return editor.call(aten.sym_size.int, node, dim, before=before, fake=node.meta["val"].shape[dim])
    if not isinstance(size, (sympy.Add, sympy.Mul)):
        return None
    parts = [_size(editor, part, known, before) for part in size.args]
    function = operator.add if isinstance(size, sympy.Add) else operator.mul
    total = parts[0]
    for part in parts[1:]:
        if total is None or part is None:
            return None
        total = editor.call(function, total, part, before=before)
    return total


def _stage(
    program: Program, values: Values, place: dict[fx.Node, int], stages: int, index: int, flops: dict[fx.Node, int]
) -> Stage:
    """One stage as a graph of its own."""
    output = program.graph.output_node()
    receives, sends = values.crossing(place, index - 1), values.crossing(place, index)
    own = {node for node in values.wide if place[node] == index}
    needed = {*own, output} if index == stages - 1 else own
    kept = own | values.recomputed_for(needed)
    graph, copies = fx.Graph(), {}
    for number, node in enumerate(receives):
        copies[node] = graph.placeholder(f"received_{number}")
        copies[node].meta = {key: node.meta[key] for key in ("val", SPREAD) if key in node.meta}
    for node in program.graph.nodes:
        if node.op == "placeholder" or node in kept:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    codegen = program.graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    info = codegen.pytree_info
    assert info.in_spec is not None
    args, kwargs = pytree.tree_unflatten([0] * info.in_spec.num_leaves, info.in_spec)
    _, in_spec = pytree.tree_flatten(((tuple(receives), *args), kwargs))
    out_spec = info.out_spec
    if index == stages - 1:
        made = graph.node_copy(output, copies.__getitem__)
    else:
        # Only what lies without gaps can be sent.
        sent = tuple(graph.call_function(aten.contiguous.default, (copies[node],)) for node in sends)
        for copy, node in zip(sent, sends, strict=True):
            copy.meta = {key: node.meta[key] for key in ("val", SPREAD) if key in node.meta}
        made = graph.output(list(sent))
        _, out_spec = pytree.tree_flatten(sent)
    made.meta = dict(output.meta)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(["received", *info.orig_args], in_spec, out_spec)))
    module = fx.GraphModule(program.graph_module, graph)
    keep_persistence(program.graph_module, module)
    module.train(program.graph_module.training)
    names = {id(tensor): name for name, tensor in reversed(weights(program.graph_module).items())}
    held = {name: names[id(tensor)] for name, tensor in module.named_parameters(remove_duplicate=False)}
    distinct = {id(tensor): tensor.nbytes for tensor in weights(module).values()}
    crossings = tuple(
        Crossing(node.name, shape_of(node) or (), node.meta.get(SPREAD), node.meta["val"].dtype) for node in receives
    )
    return Stage(module, crossings, sum(flops.get(node, 0) for node in own), sum(distinct.values()), held)
