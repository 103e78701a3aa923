"""`to_onnx_decoder`: a rewritten causal model as two ONNX graphs, one for a prompt and one for a token after it."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import fx

from remixer.export.errors import ExportError
from remixer.export.files import publish
from remixer.export.onnx.clean import clean
from remixer.export.onnx.convert import exported, to_graph
from remixer.export.onnx.decoder_shapes import DecoderShapes
from remixer.export.onnx.device_scalars import scalars_on_device
from remixer.export.onnx.exporting import checked, outputs_of, program_of, timed
from remixer.export.onnx.lower_mixers import lower_mixers
from remixer.export.onnx.manifest import DecoderManifest, described, mixers_of, operators_of, versions
from remixer.export.onnx.mixer_functions import with_functions
from remixer.export.onnx.names import PAST, PRESENT, input_names
from remixer.export.onnx.precision import Precision, check_precision
from remixer.export.onnx.quantise import quantise
from remixer.export.onnx.runtime import Provider, check_install
from remixer.export.onnx.shared_weights import save_sharing
from remixer.export.onnx.side_by_side import put_side_by_side
from remixer.export.onnx.verify import TOLERANCE
from remixer.export.onnx.verify_decoder import decoder_effect, verify_decoder
from remixer.passes.errors import StreamError
from remixer.passes.prove_stream import prove_stream, sequence
from remixer.passes.stream import Streaming, stream
from remixer.rewrite.agreement import mode

PREFILL, STEP, MANIFEST, WEIGHTS = "prefill.onnx", "step.onnx", "decoder.json", "weights.data"


def to_onnx_decoder(
    model: fx.GraphModule,
    folder: str | os.PathLike[str],
    *,
    length: int,
    provider: Provider = "cpu",
    precision: Precision = "float32",
    tolerance: float = TOLERANCE,
) -> DecoderManifest:
    """Write a rewritten causal model as ONNX graphs that generate: `remixer.export.OnnxDecoder` runs them.

    "prefill.onnx" takes a prompt, at any batch, and gives the outputs of its last token and the state; "step.onnx"
    takes one token and the state, and gives the token's outputs and the new state. Both share "weights.data". They are
    run in onnxruntime beside the whole model in torch before they get their names.

    Args:
        model: what `remixer.remix` gave. Every attention of it has to be a mixer that goes token by token: "softmax"
            keeps one as it was, with a cache of its keys and values.
        folder: to write to; made if it doesn't exist. Files of an earlier export are replaced.
        length: how many tokens there may be in all, prompt included.
        provider: what it is to run on, "cpu" or "cuda".
        precision: "float32", or "int8" for the CPU, whose weights of products have eight bits. The float32 graphs are
            proven first. What the lower precision does to the outputs is measured then, and stands in the manifest.
        tolerance: how far outputs of the float32 graphs may be from torch's, relative to the largest number of each (1
            at least).

    Returns:
        What was written and how it was proven; "decoder.json" in the folder holds it too.

    Raises:
        OnnxInstallError: onnx, onnxscript or onnxruntime is missing, or two onnxruntimes are installed.
        ProviderError: onnxruntime can't run on this provider here.
        ExportError: the model can't go token by token, or can't be exported.
        OnnxMismatchError: onnxruntime gives something else than torch; no file is left.
        ValueError: length is too small, or the folder's parent doesn't exist.
    """
    program, folder = program_of(model), Path(folder)
    if length < 2:
        raise ValueError(f"length counts the tokens of prompt and answer, at least 2, got {length}")
    if not folder.parent.is_dir():
        raise ValueError(f"there is no folder {folder.parent} to make {folder.name} in")
    check_precision(precision, provider)
    if precision == "float16":
        raise ExportError("decoders are written in float32 or int8 so far, not in float16")
    check_install(provider)
    seconds: dict[str, float] = {}
    with mode(model, training=False):
        with timed(seconds, "stream"):
            try:
                streaming = stream(lower_mixers(program, steps=True), length)
                prove_stream(streaming)
            except StreamError as error:
                raise ExportError(str(error)) from error
        if streaming.other:
            raise ExportError(
                f"the model reads {', '.join(streaming.other)} beside its tokens: decoders behind an encoder can't be "
                "written as ONNX yet. In torch remixer.generate(..., source=...) runs them"
            )
        graphs = _exported(streaming, provider, seconds)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as draft:
            with timed(seconds, "save"):
                save_sharing(graphs, [Path(draft) / PREFILL, Path(draft) / STEP], WEIGHTS)
            with timed(seconds, "verify"):
                proof = verify_decoder(streaming, Path(draft) / PREFILL, Path(draft) / STEP, provider, tolerance)
            effect = None
            if precision == "int8":
                with timed(seconds, precision):
                    graphs = _quantised(graphs, Path(draft))
                    effect = decoder_effect(streaming, Path(draft) / PREFILL, Path(draft) / STEP, provider)
            cuda = [checked(graph).to_dict() for graph in graphs] if provider == "cuda" else None
            step = graphs[1]
            manifest = DecoderManifest(
                length=length,
                inputs=described(graphs[0].graph.inputs),
                outputs=described([each for each in step.graph.outputs if not each.name.startswith(PRESENT)]),
                state=described([each for each in step.graph.inputs if each.name.startswith(PAST)]),
                opset=dict(step.opset_imports),
                ir_version=step.ir_version,
                provider=provider,
                mixers=mixers_of(program),
                trials=proof.trials,
                error=proof.error,
                tolerance=tolerance,
                nodes=operators_of(step),
                versions=versions(),
                seconds={name: round(value, 3) for name, value in seconds.items()},
                precision=precision,
                effect=None if effect is None else effect.to_dict(),
                cuda=cuda,
            )
            (Path(draft) / MANIFEST).write_text(json.dumps(manifest.to_dict(), indent=2) + "\n", encoding="utf-8")
            folder.mkdir(exist_ok=True)
            publish(Path(draft), folder, last=MANIFEST)
    return manifest


def _exported(streaming: Streaming, provider: Provider, seconds: dict[str, float]) -> list[Any]:
    """The graphs of a prompt and of a token after it; what they were exported by is gone then."""
    program, shapes = streaming.program, DecoderShapes(streaming)
    with timed(seconds, "torch.export"):
        bodies, sources = [], []
        for module, (call, other, dynamic) in (
            (streaming.prefill, shapes.prefill()),
            (streaming.step, shapes.step()),
        ):
            calling = copy.copy(module)
            bodies.append([function.body for function in with_functions(calling, call, other)])
            sources.append(exported(calling, call, dynamic))
    with timed(seconds, "torch.onnx"):
        names = input_names((program.args, program.kwargs))
        given = outputs_of(program, sequence(streaming, 2, 2))
        past, present = [PAST + name for name in streaming.state], [PRESENT + name for name in streaming.state]
        graphs = [to_graph(sources[0], names, [*given, *present], bodies[0])]
        graphs.append(to_graph(sources[1], [*names, *past], [*given, *present], bodies[1]))
    with timed(seconds, "clean"):
        for graph in graphs:
            put_side_by_side(graph)
            clean(graph, provider)
            shapes.name(graph)
            if provider == "cuda":
                scalars_on_device(graph)
    return graphs


def _quantised(graphs: list[Any], folder: Path) -> list[Any]:
    """The graphs with weights in int8, written over those in float32."""
    import onnx_ir as ir

    made = []
    for graph, name in zip(graphs, (PREFILL, STEP), strict=True):
        alone = folder / f"int8.{name}"
        quantise(graph, alone)
        made.append(ir.load(alone))
    (folder / WEIGHTS).unlink()
    save_sharing(made, [folder / PREFILL, folder / STEP], WEIGHTS)
    for file in folder.glob("int8.*"):
        file.unlink()
    return made
