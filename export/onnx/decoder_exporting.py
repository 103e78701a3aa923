"""`to_onnx_decoder`: a rewritten causal model as two ONNX graphs, one for a prompt and one for a token after it."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim

from remixer.export.errors import ExportError
from remixer.export.onnx.clean import clean
from remixer.export.onnx.convert import exported, to_graph
from remixer.export.onnx.device_scalars import scalars_on_device
from remixer.export.onnx.exporting import EXPORT_LENGTH, LARGEST_FILE, checked, program_of, publish, timed, weight_bytes
from remixer.export.onnx.lower_mixers import lower_mixers
from remixer.export.onnx.manifest import described, mixers_of, operators_of, versions
from remixer.export.onnx.names import input_names, output_names
from remixer.export.onnx.precision import Precision, check_precision
from remixer.export.onnx.quantise import quantise
from remixer.export.onnx.runtime import Provider, check_install
from remixer.export.onnx.shared_weights import save_sharing
from remixer.export.onnx.verify import TOLERANCE
from remixer.export.onnx.verify_decoder import decoder_effect, verify_decoder
from remixer.passes.errors import StreamError
from remixer.passes.prove_stream import pieces, prove_stream, sequence
from remixer.passes.stream import Streaming, inputs_of, stream, token_dimension
from remixer.rewrite.agreement import NotRunError, run
from remixer.rewrite.program import shape_of

PREFILL, STEP, MANIFEST, WEIGHTS = "prefill.onnx", "step.onnx", "decoder.json", "weights.data"


@dataclass(frozen=True)
class DecoderManifest:
    """The record of one export; `to_onnx_decoder` returns it and writes it as JSON.

    Attributes:
        length: how many tokens there may be in all.
        inputs: of each input of a prompt its dtype and shape, dynamic dimensions by name.
        outputs: the same of each output that is not the state.
        state: the same of each tensor of the state, as the step takes it: "past." and its name; it gives "present."
            and its name.
        opset: versions of operator sets by domain.
        ir_version: of the file format.
        provider: what it was exported for, "cpu" or "cuda".
        mixers: of each site, the mixer with its options.
        trials: how many sequences were gone through beside torch.
        error: the largest difference found, relative to the largest number (1 at least) of each output.
        tolerance: what was allowed.
        nodes: how many there are of each operator, in the step.
        versions: of the packages that made it.
        seconds: that each part took.
        precision: "float32" or "int8".
        effect: what a lower precision does to the outputs, see Effect.
        cuda: of graphs for CUDA, where their nodes go, see CudaCheck.
    """

    length: int
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    state: dict[str, Any]
    opset: dict[str, int]
    ir_version: int
    provider: str
    mixers: dict[str, Any]
    trials: int
    error: float
    tolerance: float
    nodes: dict[str, int]
    versions: dict[str, str]
    seconds: dict[str, float]
    precision: str = "float32"
    effect: dict[str, Any] | None = None
    cuda: list[dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


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
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with timed(seconds, "stream"):
            try:
                streaming = stream(lower_mixers(program, steps=True), length)
                prove_stream(streaming)
            except StreamError as error:
                raise ExportError(str(error)) from error
        shapes = _Shapes(streaming)
        with timed(seconds, "torch.export"):
            sources = [
                exported(module, (tuple(tensors), {}), tuple(dynamic))
                for module, tensors, dynamic in (shapes.prefill(), shapes.step())
            ]
        with timed(seconds, "torch.onnx"):
            names = input_names((program.args, program.kwargs))
            given = _output_names(streaming)
            past, present = ([f"{when}.{name}" for name in streaming.state] for when in ("past", "present"))
            graphs = [to_graph(sources[0], names, [*given, *present])]
            graphs.append(to_graph(sources[1], [*names, *past], [*given, *present]))
        with timed(seconds, "clean"):
            for graph in graphs:
                clean(graph)
                shapes.name(graph)
                if provider == "cuda":
                    scalars_on_device(graph)
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
                outputs=described(step.graph.outputs[: len(given)]),
                state=described(step.graph.inputs[len(names) :]),
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
    finally:
        for module, flag in training.items():
            module.training = flag
    return manifest


def _quantised(graphs: list[Any], folder: Path) -> list[Any]:
    """The graphs with weights in int8, written over those in float32."""
    import onnx_ir as ir

    made = []
    for graph, name in zip(graphs, (PREFILL, STEP), strict=True):
        alone = folder / f"int8.{name}"
        quantise(graph, alone, external=weight_bytes(graph) > LARGEST_FILE)
        made.append(ir.load(alone))
    (folder / WEIGHTS).unlink()
    save_sharing(made, [folder / PREFILL, folder / STEP], WEIGHTS)
    for file in folder.glob("int8.*"):
        file.unlink()
    return made


def _output_names(streaming: Streaming) -> list[str]:
    call = sequence(streaming, 2, 2)
    with torch.no_grad():
        return output_names(streaming.program.graph_module(*call[0], **call[1]))


def _runs(streaming: Streaming, tokens: int) -> bool:
    """Whether the whole model takes so many tokens."""
    try:
        run(streaming.program.graph_module, sequence(streaming, 1, tokens))
    except NotRunError:
        return False
    return True


class _Shapes:
    """Examples of two sizes, from which it shows which dimensions are dynamic."""

    def __init__(self, streaming: Streaming) -> None:
        self.streaming = streaming
        largest = streaming.program.limits.get(streaming.tokens, (1, None))[1]
        prompt = min(EXPORT_LENGTH, streaming.length - 1, EXPORT_LENGTH if largest is None else largest)
        while not _runs(streaming, prompt) and prompt > 2:
            prompt //= 2  # a table of positions may be shorter
        self.inputs, self.state = self._at(3, prompt)
        _, self.other = self._at(2, max(1, prompt // 2))

    def _at(self, batch: int, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        call = sequence(self.streaming, batch, tokens)
        (piece,) = pieces(self.streaming, call, tokens)
        with torch.no_grad():
            results = self.streaming.prefill(*piece.inputs)
        return piece.inputs, list(results[len(results) - len(self.streaming.state) :])

    def prefill(self) -> tuple[fx.GraphModule, list[Tensor], Any]:
        """The module, example tensors, and which dimensions are dynamic."""
        return self.streaming.prefill, self.inputs, self._of_inputs(step=False)

    def step(self) -> tuple[fx.GraphModule, list[Tensor], Any]:
        """The module, example tensors, and which dimensions are dynamic."""
        one = [
            tensor if dim is None else tensor.narrow(dim, 0, 1)
            for tensor, dim in zip(self.inputs, self._dims(), strict=True)
        ]
        dynamic = [*self._of_inputs(step=True), *map(self._of_entry, self.state, self.other)]
        whole = [tensor.clone(memory_format=torch.contiguous_format) for tensor in (*one, *self.state)]  # no views
        return self.streaming.step, whole, dynamic

    def name(self, graph: Any) -> None:
        """Call the dynamic dimensions of inputs and outputs "batch", "length" and "past"."""
        import onnx_ir as ir

        for value in [*graph.graph.inputs, *graph.graph.outputs]:
            sizes = list(value.shape)
            for dim, size in enumerate(sizes):
                if isinstance(size, ir.SymbolicDim):
                    kept = value.name.startswith(("past.", "present."))
                    sizes[dim] = "batch" if dim == 0 else "past" if kept else "length"
            value.shape = ir.Shape(sizes)

    def _dims(self) -> list[int | None]:
        return [token_dimension(node, self.streaming.tokens) for node in inputs_of(self.streaming.program)]

    def _of_inputs(self, *, step: bool) -> list[Any]:
        """Rows are dynamic, and tokens in a prompt."""
        batch = self.streaming.program.batch
        shapes = [shape_of(node) or () for node in inputs_of(self.streaming.program)]
        found = []
        for shape, tokens in zip(shapes, self._dims(), strict=True):
            moving = [bool(size.free_symbols & batch) or (dim == tokens and not step) for dim, size in enumerate(shape)]
            found.append({dim: Dim.AUTO if each else Dim.STATIC for dim, each in enumerate(moving)})
        return found

    def _of_entry(self, one: Tensor, other: Tensor) -> dict[int, Any]:
        sizes = zip(one.shape, other.shape, strict=True)
        return {dim: Dim.AUTO if a != b else Dim.STATIC for dim, (a, b) in enumerate(sizes)}
