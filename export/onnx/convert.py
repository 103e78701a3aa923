"""From a program to an ONNX graph, through torch.export and torch.onnx."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from remixer.export.errors import ExportError
from remixer.export.onnx.attention import attention
from remixer.export.onnx.integers import floor_division
from remixer.export.onnx.respell import respell
from remixer.export.onnx.tidy import tidy
from remixer.rewrite.agreement import first_line
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import Program, expression
from remixer.rewrite.sizes import letters_of
from remixer.rewrite.tracing import quick_tracing

OPSET = 20  # read by onnxruntime from 1.17 on
AXES = {"B": "batch", "T": "length"}


def exported(module: nn.Module, call: Call, dynamic: Any) -> ExportedProgram:
    """A module through torch.export, in operators that torch.onnx writes right.

    Args:
        module: in eval mode, of lowered mixers.
        call: example inputs.
        dynamic: what torch.export takes as dynamic_shapes.

    Raises:
        ExportError: torch.export refuses it.
    """
    args, kwargs = call
    try:
        with _quiet("torch.fx.experimental.symbolic_shapes"), torch.no_grad(), quick_tracing():
            source = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch.export raises errors of many kinds
        raise ExportError(f"torch.export refuses the rewritten model: {first_line(error)}") from error
    respell(source)
    return source


def to_graph(source: ExportedProgram, inputs: list[str], outputs: list[str], functions: Sequence[Any] = ()) -> Any:
    """The ONNX graph of what `exported` gave, as an onnx_ir.Model, with these names.

    Args:
        source: what `exported` gave.
        inputs: names of its tensors.
        outputs: names of what it gives.
        functions: onnx_ir.Functions that it calls; what they do is put in the place of each call.

    Raises:
        ExportError: an operator has no translation.
    """
    table: Any = {
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        operator.floordiv: floor_division,
    }
    try:
        # With gradients, other kernels with other layouts would be chosen.
        with _quiet("torch.onnx"), quick_tracing(), torch.no_grad():
            made = torch.onnx.export(
                source,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                custom_translation_table=table,
                dynamo=True,
                verbose=False,
                optimize=False,
            )
            assert made is not None
            made.model.functions.update({function.identifier(): function for function in functions})
            tidy(made.model)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch.onnx has no translation for the rewritten model: {_reason(error)}") from error
    except Exception as error:  # what torch.onnx makes its graphs smaller with raises errors of its own
        raise ExportError(f"torch.onnx fails on the rewritten model: {_reason(error)}") from error
    return made.model


def name_axes(model: Any, program: Program) -> None:
    """Call dynamic dimensions of inputs and outputs "batch" and "length", or by their letters."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    placeholders = [node for node in program.graph.find_nodes(op="placeholder") if "val" in node.meta]
    tensors = [node.meta["val"] for node in placeholders if isinstance(node.meta["val"], torch.Tensor)]
    letters = letters_of(program)
    for value, tensor in zip(model.graph.inputs, tensors, strict=True):
        for given, size in zip(value.shape, tensor.shape, strict=True):
            found = expression(size)
            if isinstance(given, ir.SymbolicDim) and found in letters and given.value:
                names[given.value] = AXES.get(letters[found], letters[found].lower())
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.shape = ir.Shape(
            [names.get(d.value, d.value) if isinstance(d, ir.SymbolicDim) and d.value else d for d in value.shape]
        )


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    """Keeps a part of torch from printing its progress, and from warning of what concerns its own code alone."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
