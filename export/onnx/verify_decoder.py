"""Whether the two graphs of a decoder give, token by token, what torch gives for whole sequences."""

from __future__ import annotations

from pathlib import Path

import torch

from remixer.export.errors import ExportError, OnnxMismatchError
from remixer.export.onnx.decoder import Graphs
from remixer.export.onnx.runtime import Provider
from remixer.export.onnx.verify import Proof
from remixer.passes.prove_stream import existing, outputs, pieces, sequence
from remixer.passes.stream import Streaming
from remixer.rewrite.agreement import NotRunError
from remixer.rewrite.agreement import run as run_model

# Rows, tokens in all, and how many of them come at once: one; an odd number; past the default window and its segments.
SCHEDULES = ((1, 12, 1), (3, 40, 37), (2, 150, 129), (2, 300, 290))


def verify_decoder(streaming: Streaming, prefill: Path, step: Path, provider: Provider, tolerance: float) -> Proof:
    """Go through sequences, some of them padded in front, beside the whole model in torch.

    Raises:
        OnnxMismatchError: they differ; it says on which sequence, and at which token.
        ExportError: onnxruntime refuses a graph, or torch runs none of the sequences.
    """
    try:
        graphs = Graphs(prefill, step, provider)
    except Exception as error:  # onnxruntime has an exception class per status
        raise ExportError(f"onnxruntime refuses the graph: {str(error).splitlines()[0]}") from error
    tried, worst, seen = 0, 0.0, set()
    for batch, tokens, at_once in SCHEDULES:
        for padded in (False, True):
            tokens = min(tokens, streaming.length)
            at_once = min(at_once, tokens)
            call = sequence(streaming, batch, tokens, padded=padded)
            exist = existing(streaming, call)
            key = (batch, tokens, at_once, padded and batch > 1 and exist is not None)
            if key in seen:
                continue
            seen.add(key)
            try:
                expected = outputs(run_model(streaming.program.graph_module, call))
            except NotRunError:
                continue  # beyond what the model takes, such as a table of positions
            state = None
            for piece in pieces(streaming, call, at_once):
                given, state = graphs.run([tensor.contiguous() for tensor in piece.inputs], state)
                there = torch.ones(batch, dtype=torch.bool) if exist is None else exist[:, piece.stop - 1]
                for name, got, whole in zip(graphs.outputs, given, expected, strict=True):
                    if whole.dim() < 2 or whole.shape[1] != tokens:
                        continue  # of the whole sequence, not of a token
                    want = whole[there, piece.stop - 1 : piece.stop]
                    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
                    found = float((got[there] - want).abs().max()) / scale if want.numel() else 0.0
                    if not found <= tolerance:
                        told = ", padded on the left" if padded else ""
                        raise OnnxMismatchError(
                            f"the ONNX graphs differ from torch by {found:.2g} in {name}, allowed {tolerance:.2g}, at "
                            f"token {piece.stop - 1} of {batch} x {tokens} tokens{told}, the first {at_once} at once"
                        )
                    worst = max(worst, found)
            tried += 1
    if not tried:
        raise ExportError("torch itself runs on none of the sequences that the graphs were to be tried on")
    return Proof(tried, worst)
