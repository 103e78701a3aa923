"""A program as a record and its tensors, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from remixer.export.artifacts import structures
from remixer.export.artifacts.graphs import Tables, graph_of, written
from remixer.export.artifacts.modules import root_of, written_modules, written_tensors
from remixer.export.artifacts.recorded import Recorder
from remixer.export.artifacts.records import ExampleRecord, ProgramRecord
from remixer.export.artifacts.symbols import environment, symbol_of
from remixer.export.typed import TypedError
from remixer.rewrite.modules import keep_persistence, weights
from remixer.rewrite.program import Program

Tensors = dict[str, Tensor]


def program_record(program: Program) -> tuple[ProgramRecord, Tensors, Tensors]:
    """What is written of a program, its weights, and the tensors of its example inputs, by their keys.

    Raises:
        TypedError: a part of it can't be read again from what is written.
    """
    module, tables = program.graph_module, Tables()
    graph = written(program.graph, tables)
    modules = written_modules(module, tables)
    records, tensors = written_tensors(module)
    example, inputs = _written_example((program.args, dict(program.kwargs)))
    record = ProgramRecord(
        symbols=tables.symbols.records,
        batch=tuple(sorted(map(str, program.batch))),
        length=tuple(sorted(map(str, program.length))),
        limits={str(symbol): span for symbol, span in program.limits.items()},
        static=program.static,
        notes=program.notes,
        extended=program.extended,
        example=example,
        graph=graph,
        modules=modules,
        tensors=records,
        training=module.training,
        others=tuple(path for path, each in module.named_modules() if each.training != module.training),
        traces=tuple(tables.traces),
        stacks=tuple(tables.stacks),
    )
    return record, tensors, inputs


def program_of(
    record: ProgramRecord,
    tensors: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    kind: Callable[[nn.Module, fx.Graph], fx.GraphModule] = fx.GraphModule,
) -> Program:
    """The program of a record.

    Args:
        record: what was written of it.
        tensors: its weights by their keys; they are not copied.
        inputs: tensors of its example.
        kind: makes the graph module.

    Raises:
        TypedError: the record is none of a program, or doesn't fit the tensors.
        UnknownMixerError: a mixer is not installed.
    """
    env, symbols = environment(record.symbols)
    recorder = Recorder.of(env, symbols)
    root = root_of(record.modules, record.tensors, tensors, recorder)
    graph = graph_of(record.graph, recorder, record.traces, record.stacks)
    module = kind(root, graph)
    keep_persistence(root, module)
    if lost := weights(root).keys() - weights(module).keys():
        raise TypedError(f"nothing in the graph reads the weight {min(lost)}")
    module.train(record.training)
    for path in record.others:
        module.get_submodule(path).training = not record.training
    args, kwargs = _example(record.example, inputs)
    program = Program(
        module,
        tuple(args),
        kwargs,
        frozenset(map(symbol_of, record.batch)),
        frozenset(map(symbol_of, record.length)),
        {symbol_of(name): span for name, span in record.limits.items()},
        record.static,
        record.notes,
        record.extended,
    )
    return program.with_graph_module(module)


def with_keys(record: ProgramRecord, keys: Mapping[str, str]) -> ProgramRecord:
    """The same program, whose tensors have other keys."""
    return replace(record, tensors=tuple(replace(each, key=keys[each.key]) for each in record.tensors))


def _written_example(call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[ExampleRecord, Tensors]:
    leaves, spec = pytree.tree_flatten(call)
    tensors: Tensors = {}
    values: list[tuple[Any, Any]] = []
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            tensors[str(index)] = leaf
            values.append(("tensor", str(index)))
        elif leaf is None or type(leaf) in (bool, int, float, str):
            values.append(("value", leaf))
        else:
            raise TypedError(f"an example input is a {type(leaf).__name__}, which can't be written")
    return ExampleRecord(structures.written(spec), tuple(values)), tensors


def _example(record: ExampleRecord, inputs: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    spec = structures.structure(record.structure, inputs=True)
    leaves: list[Any] = []
    for kind, value in record.values:
        if kind == "tensor" and value not in inputs:
            raise TypedError(f"the example input {value!r:.80} is missing")
        if kind == "value" and not (value is None or type(value) in (bool, int, float, str)):
            raise TypedError(f"expected an example input, got {value!r:.80}")
        leaves.append(inputs[value] if kind == "tensor" else value)
    if [child.type for child in spec.children()] != [tuple, dict] or spec.num_leaves != len(leaves):
        raise TypedError("expected positional and named example inputs")
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs
