"""`to_onnx`: a rewritten model as an ONNX file that was run beside torch before it was there."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx

from remixer.export.errors import ExportError
from remixer.export.examples import EXPORT_LENGTH, example_for_export
from remixer.export.files import publish
from remixer.export.onnx.clean import clean
from remixer.export.onnx.convert import exported, name_axes, to_graph
from remixer.export.onnx.cuda_check import CudaCheck, check_model
from remixer.export.onnx.device_scalars import scalars_on_device
from remixer.export.onnx.effect import Effect, measure
from remixer.export.onnx.half import to_half
from remixer.export.onnx.lower_mixers import lower_mixers
from remixer.export.onnx.manifest import Manifest, described, mixers_of, operators_of, versions
from remixer.export.onnx.mixer_functions import with_functions
from remixer.export.onnx.names import input_names, output_names
from remixer.export.onnx.precision import Precision, check_precision
from remixer.export.onnx.quantise import quantise
from remixer.export.onnx.runtime import Provider, check_install
from remixer.export.onnx.verify import TOLERANCE, Proof, verify
from remixer.export.onnx.write import weight_bytes, write
from remixer.export.reexport import as_module, dynamic_shapes
from remixer.rewrite.agreement import mode
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import Program


def to_onnx(
    model: fx.GraphModule,
    path: str | os.PathLike[str],
    *,
    provider: Provider = "cpu",
    precision: Precision = "float32",
    tolerance: float = TOLERANCE,
) -> Manifest:
    """Write a rewritten model as an ONNX file that stock onnxruntime runs, at any batch and length.

    The file is run in onnxruntime beside torch, at lengths and batches that it was not exported with, padded and not,
    before it gets its name; a manifest, `path` with ".json" behind it, says what was tried. Weights beyond 2 GB go to
    `path` with ".data" behind it.

    Args:
        model: what `remixer.remix` gave, or the graph module of what `remixer.capture` did; in eval mode or not, the
            file is as in eval mode.
        path: of the file, usually ending in ".onnx"; what is there is replaced.
        provider: what it is to run on, "cpu" or "cuda".
        precision: "float32"; "float16" for CUDA, where mixers, softmax and masks stay in float32; or "int8" for the
            CPU, whose weights of products have eight bits. The float32 graph is proven first. What the lower precision
            does to the outputs is measured then, and stands in the manifest.
        tolerance: how far outputs of the float32 graph may be from torch's, relative to the largest number of each (1
            at least), where tokens exist.

    Returns:
        What was written and how it was proven.

    Raises:
        OnnxInstallError: onnx, onnxscript or onnxruntime is missing, or two onnxruntimes are installed.
        ProviderError: onnxruntime can't run on this provider here.
        ExportError: the model can't be exported, or can't be tried; or there is no such precision for this provider,
            or nodes that CUDA has no kernels for.
        OnnxMismatchError: onnxruntime gives something else than torch, or in a lower precision nothing of use; no file
            is left.
        ValueError: the folder of the path doesn't exist.
    """
    program, path = program_of(model), Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to")
    check_precision(precision, provider)
    check_install(provider)
    seconds: dict[str, float] = {}
    with mode(model, training=False):
        call = example_for_export(program, EXPORT_LENGTH)
        with timed(seconds, "torch.export"):
            lowered = as_module(lower_mixers(program))
            functions = with_functions(lowered, call)
            source = exported(lowered, call, dynamic_shapes(program, lowered, call))
        with timed(seconds, "torch.onnx"):
            bodies = [function.body for function in functions]
            graph = to_graph(source, input_names(call), outputs_of(program, call), bodies)
            name_axes(graph, program)
        with timed(seconds, "clean"):
            clean(graph, provider)
            if provider == "cuda":
                scalars_on_device(graph)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            with timed(seconds, "save"):
                write(graph, draft)
            with timed(seconds, "verify"):
                proof = verify(program, draft, provider, source, functions, tolerance)
            effect = None
            if precision != "float32":
                with timed(seconds, precision):
                    graph = _lowered(graph, draft, precision)
                    effect = measure(program, draft, provider, precision, tolerance)
            cuda = checked(graph) if provider == "cuda" else None
            manifest = _manifest(
                program, graph, path.name, provider, proof, tolerance, seconds, precision, effect, cuda
            )
            text = json.dumps(manifest.to_dict(), indent=2) + "\n"
            (Path(folder) / f"{path.name}.json").write_text(text, encoding="utf-8")
            if not (Path(folder) / f"{path.name}.data").exists():
                path.with_name(f"{path.name}.data").unlink(missing_ok=True)
            publish(Path(folder), path.parent, last=path.name)
    return manifest


def program_of(model: Any) -> Program:
    """The program of a model that can be exported.

    Raises:
        ExportError: it is none that remixer made, or has weights that are not in float32.
    """
    if isinstance(model, fx.GraphModule) and "program" in model.meta:
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and weight.dtype != torch.float32:
                raise ExportError(
                    f"cannot export {name}, which is in {weight.dtype}: ONNX files are written in float32 so far. "
                    "What to do: call .float() on the model first"
                )
        return Program.of(model)
    raise ExportError(
        f"to_onnx takes what remixer.remix gave, got {type(model).__name__}. To export a model as it is, "
        'give it remix(model, "softmax", inputs), which changes no numbers'
    )


def outputs_of(program: Program, call: Call) -> list[str]:
    """The names of what a program gives for a call."""
    with torch.no_grad():
        return output_names(program.graph_module(*call[0], **call[1]))


def _lowered(graph: Any, path: Path, precision: Precision) -> Any:
    """The graph in a lower precision, written in place of the file in float32."""
    import onnx_ir as ir

    # What a quantiser writes would come behind what is there.
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    if precision == "int8":
        quantise(graph, path)
        return ir.load(path)
    to_half(graph)
    write(graph, path)
    return graph


def checked(graph: Any) -> CudaCheck:
    """Where the nodes of a graph go under CUDA.

    Raises:
        ExportError: not all of them run there, or values are copied in between.
    """
    found = check_model(graph)
    if found.problems:
        more = f", and {len(found.problems) - 3} more" if len(found.problems) > 3 else ""
        raise ExportError(
            f"the graph would not run on the GPU as a whole: {'; '.join(found.problems[:3])}{more} (kernels of "
            f"{found.source}). What to do: export with provider='cpu', or replace these attentions by another mixer"
        )
    return found


def _manifest(
    program: Program,
    graph: Any,
    file: str,
    provider: Provider,
    proof: Proof,
    tolerance: float,
    seconds: dict[str, float],
    precision: Precision,
    effect: Effect | None,
    cuda: CudaCheck | None,
) -> Manifest:
    return Manifest(
        file=file,
        inputs=described(graph.graph.inputs),
        outputs=described(graph.graph.outputs),
        opset=dict(graph.opset_imports),
        ir_version=graph.ir_version,
        provider=provider,
        mixers=mixers_of(program),
        static=[str(one) for one in program.static],
        trials=proof.trials,
        error=proof.error,
        tolerance=tolerance,
        nodes=operators_of(graph),
        size=weight_bytes(graph),
        versions=versions(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        precision=precision,
        effect=None if effect is None else effect.to_dict(),
        cuda=None if cuda is None else cuda.to_dict(),
    )


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds how long what is done inside takes."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
