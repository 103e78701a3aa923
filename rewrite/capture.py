"""From a model and example inputs to a Program, through torch.export with dynamic batch and length."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from remixer.rewrite.agreement import NotRunError, difference, first_line, mode, run
from remixer.rewrite.dropout import is_random
from remixer.rewrite.elsewhere import differ, disagreements, kept_by, runs_longer
from remixer.rewrite.errors import CaptureError
from remixer.rewrite.exported import program_of
from remixer.rewrite.inputs import (
    Aspect,
    Call,
    Inputs,
    as_call,
    aspect_of,
    check_fits,
    countable_dimensions,
    lengths_of,
    two_rows,
    without_cache,
)
from remixer.rewrite.program import Program
from remixer.rewrite.tracing import quick_tracing

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

    Examples:
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
    return _agreeing(model, call)


def _agreeing(model: nn.Module, call: Call) -> Program:
    """The program, dynamic in all but what has to be fixed: a graph may hold at its example's sizes only.

    Models that keep what they made for the length they ran last are traced with it at that length. So where
    lengths disagree, such a model is traced again first, after the runs at other lengths that found it out.
    """
    fixed: frozenset[Aspect] = frozenset()
    again, note = False, ""
    while True:
        program = _traced(model, call, fixed, note)
        note = program.notes[0] if program.notes else ""
        if "batch" not in fixed and _fixes_some_rows(program):
            fixed |= {"batch"}
            continue
        before = kept_by(model)
        found = disagreements(model, program, further=again)
        longer = "length" in found or ("length" not in fixed and runs_longer(model, program))
        if longer and not again and differ(before, kept_by(model)):
            again = True
            continue
        if not found:
            return program
        name = type(model).__name__
        if None in found:
            raise CaptureError(
                f"the captured graph gives other outputs than {name} where no token is masked: {found[None]}. What to "
                "try: a model that doesn't leave out masks which hide nothing, in transformers one made with "
                'attn_implementation="eager"'
            )
        if found.keys() & fixed:
            told = next(iter(found.values()))
            raise CaptureError(f"the captured graph gives other outputs than {name} at other sizes: {told}")
        fixed = fixed.union(aspect for aspect in found if aspect)


def _traced(model: nn.Module, call: Call, fixed: frozenset[Aspect], note: str) -> Program:
    """The program as it is in training; in eval if a note says why it can't be had in training, or it then can't."""
    wanted = call if "batch" in fixed else two_rows(call)
    program = note or _in_training(model, call, wanted, fixed)
    if isinstance(program, str):
        note, program = program, _captured(model, call, wanted, fixed, training=False)
        if (told := difference(model, program.graph_module, wanted)) is not None:
            raise CaptureError(f"the captured graph gives other outputs than {type(model).__name__}: {told}")
        program = replace(program, notes=(note,)).with_graph_module(program.graph_module)
    return program


def _fixes_some_rows(program: Program) -> bool:
    """Whether the batch of one input is fixed and that of another, as large in the example, is a symbol.

    Code that goes through the rows of one input one by one fixes its batch; the others' has to be the same.
    """
    fixed = {one.size for one in program.static if aspect_of(one.dim) == "batch" and one.size > 1}
    values = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    first = [value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.dim()]
    return any(isinstance(size, torch.SymInt) and size.node.hint in fixed for size in first)


def _in_training(model: nn.Module, call: Call, wanted: Call, fixed: frozenset[Aspect]) -> Program | str:
    """The program as it is in training, or the reason why only eval can be had.

    In training, attention code keeps its dropout probability, which an eval export loses.
    """
    try:
        program = _exported(model, call, wanted, fixed, training=True)
    except Exception:  # as in _captured; eval comes next, or says why not
        return f"torch.export refuses the model in training: {_IN_EVAL}"
    if any(map(is_random, program.graph.nodes)):
        return f"training draws random numbers other than dropout: {_IN_EVAL}"
    if difference(model, program.graph_module, wanted) is not None:
        return f"training computes something else than eval: {_IN_EVAL}"
    return program


def _captured(model: nn.Module, call: Call, wanted: Call, fixed: frozenset[Aspect], *, training: bool) -> Program:
    try:
        return _exported(model, call, wanted, fixed, training=training)
    except Exception as error:  # whatever the model's own code raises comes out here
        raise CaptureError(_refusal(model, wanted, error)) from error


def _exported(model: nn.Module, call: Call, wanted: Call, fixed: frozenset[Aspect], *, training: bool) -> Program:
    """What torch.export makes of a model; it raises whatever torch or the model's own code does."""
    args, kwargs = without_cache(model, wanted)
    with mode(model, training), torch.no_grad(), _quiet(), quick_tracing():
        shapes = _all_dynamic(inspect.signature(model.forward), args, kwargs, fixed)
        exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    added = set(kwargs) - set(wanted[1])
    return program_of(exported, wanted, added=added, asked=call, fixed=fixed, training=training)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from printing the half-made graph of a model that it refuses, which may be 100 pages.

    And from warning of tensors that the model keeps for its next run: torch.export puts back what was there.
    """
    with contextlib.redirect_stderr(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The tensor attributes? self\S* .* assigned during export", UserWarning)
        yield
    sys.stderr.write(printed.getvalue())


def _all_dynamic(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], fixed: frozenset[Aspect]
) -> dict[str, Any]:
    lengths = lengths_of((args, kwargs))

    def dynamic(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return None
        countable = countable_dimensions(leaf, lengths)
        return {dim: Dim.STATIC if aspect_of(dim) in fixed else Dim.AUTO for dim in countable}

    shapes: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            shapes.update({key: pytree.tree_map(dynamic, item) for key, item in value.items()})
        else:
            shapes[name] = pytree.tree_map(dynamic, value)
    return shapes


def _refusal(model: nn.Module, call: Call, error: Exception) -> str:
    """What torch.export said, shortened, and what to try."""
    name, reason = type(model).__name__, first_line(error)
    try:
        run(model, call)
    except NotRunError as own:
        signature = inspect.signature(model.forward)
        return f"the inputs don't fit {name}: it raises {own}. Its forward takes {signature}"
    advice = "try it alone with torch.export.export(model, args, kwargs, strict=False)"
    if "DataDependent" in type(error).__name__:
        advice = "its code branches on a tensor's values: give the argument that avoids the branch"
    elif "Cache" in reason:
        advice = "pass use_cache=False among the inputs"
    return f"torch.export refuses {name}: {reason}. What to try: {advice}"
