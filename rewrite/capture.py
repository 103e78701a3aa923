"""From a model and example inputs to a Program, through torch.export with dynamic batch and length."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from remixer.rewrite.cleanup import clean, inline_wrapped
from remixer.rewrite.dropout import is_random
from remixer.rewrite.errors import CaptureError
from remixer.rewrite.modules import keep_persistence
from remixer.rewrite.program import Program, StaticDimension, input_symbols
from remixer.rewrite.tolerance import error_and_limit

Inputs = Mapping[str, Any] | Sequence[Any] | torch.Tensor
_Call = tuple[tuple[Any, ...], dict[str, Any]]


def capture(model: nn.Module | ExportedProgram, inputs: Inputs | None = None) -> Program:
    """The program that a model computes, with batch and length dynamic wherever the model allows.

    Parameters keep the names they have in the model and are shared with it; dropout becomes modules, so that
    the result follows `.train()` and `.eval()`; asserts and other leftovers of tracing are gone. The result was
    run beside the model once and agrees with it.

    Args:
        model: anything that `torch.export.export` takes, or what it gave.
        inputs: example inputs, a dict by name, a tuple, or one tensor. Optional for an ExportedProgram.

    Raises:
        CaptureError: the inputs don't fit the model, or torch.export refuses it.

    Example:
        >>> program = capture(nn.Linear(4, 2), torch.zeros(3, 4))
        >>> sorted(program.graph_module.state_dict())
        ['bias', 'weight']
    """
    if isinstance(model, ExportedProgram):
        if inputs is None and model.example_inputs is None:
            raise CaptureError("this ExportedProgram holds no example inputs: give some as `inputs`")
        return _from_exported(model, as_call(inputs) if inputs is not None else model.example_inputs)
    if inputs is None:
        raise CaptureError("capture needs example inputs: a dict by name, a tuple, or one tensor")
    call = as_call(inputs)
    _check_fits(model, call)
    notes: list[str] = []
    wanted = _two_rows(call)
    # In training, attention code keeps its dropout probability, which an eval export loses; the result is then
    # compared with the model in eval. Models that draw other random numbers in training are exported in eval.
    for training in (True, False):
        try:
            exported = _export(model, wanted, training)
        except CaptureError:
            if not training:
                raise
            continue
        program = _from_exported(exported, wanted, asked=call)
        if training and any(map(is_random, program.graph.nodes)):
            notes.append("training draws random numbers other than dropout: exported in eval, without them")
            continue
        difference = _difference(model, program.graph_module, wanted)
        if difference is None:
            return replace(program, notes=(*program.notes, *notes)).with_graph_module(program.graph_module)
        if not training:
            raise CaptureError(f"the captured graph gives other outputs than {_name(model)}: {difference}")
        notes.append("training computes something else than eval: exported in eval, attention dropout is lost")
    raise CaptureError(f"torch.export refuses {_name(model)}")  # pragma: no cover (the loop returned or raised)


def as_call(inputs: Inputs) -> _Call:
    """Example inputs as positional and named arguments."""
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        if len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
            return inputs[0], dict(inputs[1])
        return tuple(inputs), {}
    raise CaptureError(f"inputs must be a dict by name, a tuple or one tensor, got {type(inputs).__name__}")


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _check_fits(model: nn.Module, call: _Call) -> None:
    args, kwargs = call
    try:
        signature = inspect.signature(model.forward)
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"the inputs don't fit {_name(model)}.forward: {error}. It takes {signature}"
        ) from error
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(call)):
        raise CaptureError(f"the inputs for {_name(model)} hold no tensor")


def _two_rows(call: _Call) -> _Call:
    """The same inputs with a batch of 1 doubled: torch.export takes a 1 for a constant."""
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors or any(len(tensor) != 1 for tensor in tensors):
        return call

    def double(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf

    return pytree.tree_map(double, call)


@contextlib.contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or eval mode for a while; normalisation by batch statistics stays in eval."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        for module, _ in before:
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        yield
    finally:
        for module, flag in before:
            module.training = flag


def _export(model: nn.Module, call: _Call, training: bool) -> ExportedProgram:
    args, kwargs = call
    signature = inspect.signature(model.forward)
    if "use_cache" in signature.parameters and "use_cache" not in signature.bind(*args, **kwargs).arguments:
        kwargs = {**kwargs, "use_cache": False}  # a cache object is no output that a graph can have
    try:
        with _mode(model, training), torch.no_grad():
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=_all_dynamic(signature, args, kwargs), strict=False
            )
    except Exception as error:  # whatever the model's own code raises comes out here
        raise CaptureError(_refusal(model, error)) from error


def _all_dynamic(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    def dynamic(leaf: Any) -> Any:
        return dict.fromkeys(range(leaf.dim()), Dim.AUTO) if isinstance(leaf, torch.Tensor) else None

    shapes: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            shapes.update({key: pytree.tree_map(dynamic, item) for key, item in value.items()})
        else:
            shapes[name] = pytree.tree_map(dynamic, value)
    return shapes


def _refusal(model: nn.Module, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0][:300] if lines else type(error).__name__
    advice = "try it alone with torch.export.export(model, args, kwargs, strict=False)"
    if isinstance(error, (RuntimeError, IndexError, ValueError, TypeError, AssertionError)) and not lines:
        advice = "check that the example inputs run through the model"
    if "DataDependent" in type(error).__name__:
        advice = "its code branches on a tensor's values: give the argument that avoids the branch"
    elif "Cache" in reason:
        advice = "pass use_cache=False among the inputs"
    return f"torch.export refuses {_name(model)}: {type(error).__name__}: {reason}. What to try: {advice}"


def _from_exported(exported: ExportedProgram, call: _Call | None, asked: _Call | None = None) -> Program:
    args, kwargs = call or ((), {})
    root = exported.module(check_guards=False)
    assert isinstance(root, fx.GraphModule)
    graph_module = fx.GraphModule(root, root.graph)
    keep_persistence(root, graph_module)
    _mark_transient(exported, graph_module)
    _drop_unasked_inputs(graph_module, args, kwargs)
    inline_wrapped(graph_module)
    clean(graph_module)
    graph_module.eval()
    batch, length = input_symbols(graph_module.graph)
    limits = {
        symbol: (int(span.lower), int(span.upper) if span.upper.is_Integer else None)
        for symbol, span in exported.range_constraints.items()
    }
    program = Program(
        graph_module, args, kwargs, batch, length, limits, _static_dimensions(graph_module.graph, asked or call)
    )
    return program.with_graph_module(graph_module)


def _mark_transient(exported: ExportedProgram, graph_module: fx.GraphModule) -> None:
    """Buffers that the model would not save, and constants, are not saved either."""
    saved = set(exported.state_dict) - set(exported.graph_signature.non_persistent_buffers)
    for path, module in graph_module.named_modules():
        for name in module._buffers:
            if (f"{path}.{name}" if path else name) not in saved:
                module._non_persistent_buffers_set.add(name)


def _drop_unasked_inputs(graph_module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give the graph the signature of the call: inputs that capture added (use_cache) go."""
    graph = graph_module.graph
    old = graph._codegen
    assert isinstance(old, _PyTreeCodeGen)
    info = old.pytree_info
    assert info.in_spec is not None
    named = list(info.in_spec.child(1).context)
    added = set(named) - set(kwargs)
    if not added:
        return
    _, spec = pytree.tree_flatten((args, {name: kwargs[name] for name in named if name in kwargs}))
    names = [name for name in info.orig_args if name not in added]
    for node in graph.find_nodes(op="placeholder"):
        if node.target in added:
            graph.erase_node(node)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, spec, info.out_spec)))
    graph_module.recompile()


def _static_dimensions(graph: fx.Graph, call: _Call | None) -> tuple[StaticDimension, ...]:
    """Batch and length dimensions that did not become symbols."""
    sizes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor)]
    nodes = [node for node in graph.find_nodes(op="placeholder") if isinstance(node.meta.get("val"), torch.Tensor)]
    found = []
    for node, shape in zip(nodes, sizes, strict=False):
        value = node.meta["val"]
        features = {2: {2}, 3: {1}}.get(value.dim() - 1, set()) if value.is_floating_point() else set()
        for dim, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt) or dim in features:
                continue
            if shape[dim] <= 1:
                reason = f"the example's size {shape[dim]} can't be told from a constant; give a larger example"
            else:
                reason = "the model's own code allows this size only"
            found.append(StaticDimension(str(node.target), dim, int(size), reason))
    return tuple(found)


@dataclass(frozen=True)
class _Difference:
    output: int
    error: float
    limit: float

    def __str__(self) -> str:
        return f"output {self.output} differs by {self.error:.3g}, allowed {self.limit:.3g}"


def _difference(model: nn.Module, graph_module: fx.GraphModule, call: _Call) -> _Difference | None:
    """Where the graph's outputs on the example differ from the model's in eval, or None."""
    args, kwargs = call
    options = {} if "use_cache" not in inspect.signature(model.forward).parameters else {"use_cache": False}
    with torch.no_grad(), _mode(model, False):
        expected = pytree.tree_leaves(model(*args, **{**options, **kwargs}))
        actual = pytree.tree_leaves(graph_module(*args, **kwargs))
    for index, (got, want) in enumerate(zip(actual, expected, strict=True)):
        if isinstance(want, torch.Tensor) and want.is_floating_point():
            error, limit = error_and_limit(got.nan_to_num(), want.nan_to_num())
            if not error <= 10 * limit:  # through the whole depth of a model, rounding adds up
                return _Difference(index, error, 10 * limit)
    return None
