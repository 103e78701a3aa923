"""Graphs of partitioned models through torch.export, as many processes run them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from remixer.export.errors import PartitionError
from remixer.export.examples import EXPORT_LENGTH, example_for_export
from remixer.export.partitions.letters import value_of
from remixer.export.partitions.plan import MESH_DIM, ActivationPlan, PartitionPlan
from remixer.export.partitions.shapes import letters_in, shape_on_a_process
from remixer.export.reexport import as_module, dynamic_shapes
from remixer.export.typed import dtype_of
from remixer.mixers.distributed.ranks import Ranks, bound
from remixer.rewrite.agreement import NotRunError, first_line, mode, run
from remixer.rewrite.elsewhere import Sizes, example_at
from remixer.rewrite.graphs import copied
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import Program, expression, shape_of
from remixer.rewrite.tracing import quick_tracing


def exported_whole(program: Program, plan: PartitionPlan) -> ExportedProgram:
    """The graph that every process runs.

    Raises:
        PartitionError: torch.export refuses it.
    """
    program = program.copy()
    _plain_outputs(program.graph)
    module = as_module(program)
    with mode(module, training=False):
        call = example_for_export(program, EXPORT_LENGTH)
        return _exported(module, call, dynamic_shapes(program, module, call), plan)


def exported_stage(program: Program, stage: int, module: fx.GraphModule, plan: PartitionPlan) -> ExportedProgram:
    """The graph that every process of a stage runs. It takes what the stage before sends, and the inputs.

    Args:
        program: that was split.
        stage: its number.
        module: its graph.
        plan: of the partition.

    Raises:
        PartitionError: torch.export refuses it, or takes sizes for tied to each other that are not.
    """
    graph = copied(module.graph)
    if stage == len(plan.stages) - 1:
        _plain_outputs(graph)
    receives = plan.stages[stage].receives
    module = fx.GraphModule(module, graph).eval()
    with mode(module, training=False):
        args, kwargs = call = _uneven_example(program, plan)
        letters = letters_in(plan, pytree.tree_leaves(call))
        received = tuple(
            torch.zeros(shape_on_a_process(plan, each, letters), dtype=dtype_of(each.dtype)) for each in receives
        )
        free = tuple(
            {dim: Dim.STATIC if size.isdecimal() else Dim.AUTO for dim, size in enumerate(each.shape)}
            for each in receives
        )
        shapes = {"received": free, **dynamic_shapes(program, as_module(program), call)}
        source = _exported(module, ((received, *args), kwargs), shapes, plan)
    _check_free(source, receives, plan)
    return source


def _uneven_example(program: Program, plan: PartitionPlan) -> Call:
    """A call in which a process's tokens, times the number of processes, are more than all: so nothing seems equal."""
    call = example_for_export(program, EXPORT_LENGTH)
    size = plan.mesh.get(MESH_DIM, 1)
    names = [str(node.target) for node in program.graph.find_nodes(op="placeholder")]

    def tokens(call: Call) -> int:
        return value_of(plan.tokens, letters_in(plan, pytree.tree_leaves(call)))

    if not plan.tokens or size == 1 or tokens(call) % size:
        return call
    shapes = dict(zip(names, pytree.tree_leaves(call), strict=True))
    own: Sizes = {}
    for node in program.graph.find_nodes(op="placeholder"):
        for dim, symbol in enumerate(shape_of(node) or ()):
            if isinstance(symbol, sympy.Symbol):
                own[symbol] = shapes[str(node.target)].shape[dim]
    for fewer in range(1, 2 * size):
        sizes = {
            symbol: number if symbol in program.batch else max(2, number - fewer) for symbol, number in own.items()
        }
        other = example_at(program, sizes)
        with contextlib.suppress(NotRunError):
            run(program.graph_module, other)
            if tokens(other) % size:
                return other
    return call


def _check_free(source: ExportedProgram, receives: Sequence[ActivationPlan], plan: PartitionPlan) -> None:
    """A process's own number of tokens must not have been taken for a fixed part of the sequence's."""
    values = {node.name: node.meta["val"] for node in source.graph.find_nodes(op="placeholder")}
    lengths = {
        symbol
        for name in plan.inputs
        if isinstance(value := values.get(name), Tensor)
        for size in value.shape
        for symbol in expression(size).free_symbols
    }
    for index, each in enumerate(receives):
        if each.spread is not None and plan.mesh.get(MESH_DIM, 1) > 1:
            own = expression(values[f"received_{index}"].shape[each.spread])
            if not own.free_symbols or own.free_symbols & lengths:
                raise PartitionError(
                    f"torch.export ties the tokens of one process to those of all, {own}, at {each.name}: partition "
                    "with one stage, or another number of processes in each"
                )


def _exported(module: fx.GraphModule, call: Call, shapes: dict[str, Any], plan: PartitionPlan) -> ExportedProgram:
    try:
        with torch.no_grad(), quick_tracing(), bound(MESH_DIM, Ranks(MESH_DIM, plan.mesh.get(MESH_DIM, 1))):
            return torch.export.export(module, *call, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises errors of many kinds
        raise PartitionError(f"torch.export refuses the partitioned model: {first_line(error)}") from error


def _plain_outputs(graph: fx.Graph) -> None:
    """Dicts in the place of a library's own classes of outputs, which no process needs to know then."""
    codegen = graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen) or codegen.pytree_info.out_spec is None:
        return

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(each) for name, each in value.items()}
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value

    spec = codegen.pytree_info.out_spec
    outputs = plain(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    leaves, dicts = pytree.tree_flatten(outputs)
    if leaves == sorted(leaves):
        graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(out_spec=dicts)))
