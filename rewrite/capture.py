"""From a model and example inputs to a Program, through torch.export with dynamic batch and length."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from remixer.rewrite.agreement import difference, mode
from remixer.rewrite.dropout import is_random
from remixer.rewrite.errors import CaptureError
from remixer.rewrite.exported import program_of
from remixer.rewrite.inputs import (
    Call,
    Inputs,
    as_call,
    check_fits,
    countable_dimensions,
    two_rows,
    without_cache,
)
from remixer.rewrite.program import Program

__all__ = ["Inputs", "as_call", "capture"]

_IN_EVAL = "exported in eval, attention dropout is lost"


def capture(model: nn.Module | ExportedProgram, inputs: Inputs | None = None) -> Program:
    """The program that a model computes, with batch and length dynamic wherever the model allows.

    Parameters keep the names they have in the model and are shared with it; dropout becomes modules, so that
    the result follows `.train()` and `.eval()`; asserts and other leftovers of tracing are gone. The result
    was run beside the model once and agrees with it.

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
        example = model.example_inputs if inputs is None else as_call(inputs)
        if example is None:
            raise CaptureError("this ExportedProgram holds no example inputs: give some as `inputs`")
        return program_of(model, (tuple(example[0]), dict(example[1])))
    if inputs is None:
        raise CaptureError("capture needs example inputs: a dict by name, a tuple, or one tensor")
    call = as_call(inputs)
    check_fits(model, call)
    captured = _in_training(model, call)
    if isinstance(captured, Program):
        return captured
    program = _captured(model, call, training=False)
    if (told := difference(model, program.graph_module, two_rows(call))) is not None:
        raise CaptureError(f"the captured graph gives other outputs than {type(model).__name__}: {told}")
    return replace(program, notes=(captured,)).with_graph_module(program.graph_module)


def _in_training(model: nn.Module, call: Call) -> Program | str:
    """The program as it is in training, or the reason why only eval can be had.

    In training, attention code keeps its dropout probability, which an eval export loses.
    """
    try:
        program = _captured(model, call, training=True)
    except CaptureError:
        return f"torch.export refuses the model in training: {_IN_EVAL}"
    if any(map(is_random, program.graph.nodes)):
        return f"training draws random numbers other than dropout: {_IN_EVAL}"
    if difference(model, program.graph_module, two_rows(call)) is not None:
        return f"training computes something else than eval: {_IN_EVAL}"
    return program


def _captured(model: nn.Module, call: Call, *, training: bool) -> Program:
    wanted = two_rows(call)
    full = args, kwargs = without_cache(model, wanted)
    try:
        with mode(model, training), torch.no_grad():
            shapes = _all_dynamic(inspect.signature(model.forward), args, kwargs)
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever the model's own code raises comes out here
        raise CaptureError(_refusal(model, full, error)) from error
    added = set(kwargs) - set(wanted[1])
    return program_of(exported, wanted, added=added, asked=call, training=training)


def _all_dynamic(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    def dynamic(leaf: Any) -> Any:
        return dict.fromkeys(countable_dimensions(leaf), Dim.AUTO) if isinstance(leaf, torch.Tensor) else None

    shapes: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            shapes.update({key: pytree.tree_map(dynamic, item) for key, item in value.items()})
        else:
            shapes[name] = pytree.tree_map(dynamic, value)
    return shapes


def _refusal(model: nn.Module, call: Call, error: Exception) -> str:
    """What torch.export said, shortened, and what to try."""
    name, reason = type(model).__name__, _first_line(error)
    args, kwargs = call
    try:
        with torch.no_grad(), mode(model, False):
            model(*args, **kwargs)
    except Exception as own:  # the model's own code may raise anything
        signature = inspect.signature(model.forward)
        return f"the inputs don't fit {name}: it raises {_first_line(own)}. Its forward takes {signature}"
    advice = "try it alone with torch.export.export(model, args, kwargs, strict=False)"
    if "DataDependent" in type(error).__name__:
        advice = "its code branches on a tensor's values: give the argument that avoids the branch"
    elif "Cache" in reason:
        advice = "pass use_cache=False among the inputs"
    return f"torch.export refuses {name}: {reason}. What to try: {advice}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
