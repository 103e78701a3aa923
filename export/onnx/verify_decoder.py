"""Whether the two graphs of a decoder give, token by token, what torch gives for whole sequences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from remixer.export.errors import ExportError, OnnxMismatchError
from remixer.export.onnx.compare import largest_difference
from remixer.export.onnx.decoder import Graphs
from remixer.export.onnx.effect import LOWEST_COSINE, Effect, compared
from remixer.export.onnx.runtime import PROVIDERS, Provider
from remixer.export.onnx.verify import Proof
from remixer.passes.prove_stream import existing, pieces, sequence
from remixer.passes.stream import Streaming
from remixer.rewrite.agreement import NotRunError
from remixer.rewrite.agreement import run as run_model
from remixer.rewrite.inputs import tensors_in

# Rows, tokens in all, and how many of them come at once: one; an odd number; past the default window and its segments.
SCHEDULES = ((1, 12, 1), (3, 40, 37), (2, 150, 129), (2, 300, 290))


class Comparison(NamedTuple):
    """One output of one token, or of a prompt.

    Attributes:
        name: of the output.
        got: what onnxruntime gives, of rows whose token exists.
        want: what torch gives.
        place: where it is, for errors.
    """

    name: str
    got: Tensor
    want: Tensor
    place: str


def verify_decoder(streaming: Streaming, prefill: Path, step: Path, provider: Provider, tolerance: float) -> Proof:
    """Go through sequences, some of them padded in front, beside the whole model in torch.

    Raises:
        OnnxMismatchError: they differ; it says on which sequence, and at which token.
        ExportError: onnxruntime refuses a graph, or torch runs none of the sequences.
    """
    tried, worst = 0, 0.0
    for sequence_of in comparisons(streaming, prefill, step, provider):
        for name, got, want, place in sequence_of:
            found = largest_difference(got, want)
            if not found <= tolerance:
                raise OnnxMismatchError(
                    f"the ONNX graphs differ from torch by {found:.2g} in {name}, allowed {tolerance:.2g}, {place}"
                )
            worst = max(worst, found)
        tried += 1
    if not tried:
        raise ExportError("torch itself runs on none of the sequences that the graphs were to be tried on")
    return Proof(tried, worst)


def decoder_effect(streaming: Streaming, prefill: Path, step: Path, provider: Provider) -> Effect:
    """What int8 does to the outputs of the same sequences.

    Raises:
        OnnxMismatchError: it leaves nothing of use.
        ExportError: onnxruntime refuses a graph.
    """
    tried, error, mean, cosine = 0, 0.0, 0.0, 1.0
    for sequence_of in comparisons(streaming, prefill, step, provider):
        for name, got, want, place in sequence_of:
            found, off, alike = compared(got, want)
            if not alike >= LOWEST_COSINE:
                raise OnnxMismatchError(
                    f"the int8 graphs are too far from torch in {name}, {place}: cosine {alike:.3g}, allowed "
                    f"{LOWEST_COSINE:.2g} or more. What to do: export with precision='float32'"
                )
            error, mean, cosine = max(error, found), max(mean, off), min(cosine, alike)
        tried += 1
    return Effect(PROVIDERS[provider], tried, error, mean, cosine, LOWEST_COSINE)


def comparisons(streaming: Streaming, prefill: Path, step: Path, provider: Provider) -> Iterator[Iterator[Comparison]]:
    """Of each sequence that torch runs, all outputs."""
    graphs, seen = Graphs(prefill, step, provider), set()
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
                expected = tensors_in(run_model(streaming.program.graph_module, call))
            except NotRunError:
                continue  # beyond what the model takes, such as a table of positions
            told = ", padded on the left" if padded else ""
            place = f"of {batch} x {tokens} tokens{told}, the first {at_once} at once"
            yield _of_sequence(streaming, graphs, call, at_once, expected, place)


def _of_sequence(
    streaming: Streaming, graphs: Graphs, call: Any, at_once: int, expected: list[Tensor], place: str
) -> Iterator[Comparison]:
    exist, state = existing(streaming, call), None
    for piece in pieces(streaming, call, at_once):
        try:
            given, state = graphs.run([tensor.contiguous() for tensor in piece.inputs], state)
        except Exception as error:  # onnxruntime has an exception class per status
            told = str(error).splitlines()[0]
            raise OnnxMismatchError(f"onnxruntime fails at token {piece.stop - 1} {place}: {told}") from error
        for name, got, whole in zip(graphs.outputs, given, expected, strict=True):
            there = slice(None) if exist is None else exist[:, piece.stop - 1]
            if whole.dim() < 2 or whole.shape[1] < piece.stop or got.shape[1] != 1:
                continue  # of the whole sequence, not of a token
            want = whole[there, piece.stop - 1 : piece.stop]
            if want.numel():
                yield Comparison(name, got[there], want, f"at token {piece.stop - 1} {place}")
