"""Whether the two graphs of a decoder give, token by token, what torch gives for whole sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.export.errors import ExportError, OnnxMismatchError
from remixer.export.onnx.compare import largest_difference
from remixer.export.onnx.decoder import Graph, State
from remixer.export.onnx.effect import LOWEST_COSINE, Effect, compared
from remixer.export.onnx.runtime import PROVIDERS, Provider, Session
from remixer.export.onnx.verify import Proof
from remixer.passes.prove_stream import Piece, existing, pieces, sequence
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


class Case(NamedTuple):
    """One sequence.

    Attributes:
        place: what it is, for errors.
        exist: (B, T) bool, which tokens do, or None if there is no mask.
        pieces: of it, the prompt first.
        expected: what torch gives, from the last token of the prompt on.
    """

    place: str
    exist: Tensor | None
    pieces: list[Piece]
    expected: list[Tensor]


def verify_decoder(streaming: Streaming, prefill: Path, step: Path, provider: Provider, tolerance: float) -> Proof:
    """Go through sequences, some of them padded in front, beside the whole model in torch.

    Raises:
        OnnxMismatchError: they differ; it says on which sequence, and at which token.
        ExportError: onnxruntime refuses a graph, or torch runs none of the sequences.
    """
    cases, worst = list(_cases(streaming)), 0.0
    if not cases:
        raise ExportError("torch itself runs on none of the sequences that the graphs were to be tried on")
    for name, got, want, place in comparisons(cases, prefill, step, provider):
        found = largest_difference(got, want)
        if not found <= tolerance:
            raise OnnxMismatchError(
                f"the ONNX graphs differ from torch by {found:.2g} in {name}, allowed {tolerance:.2g}, {place}"
            )
        worst = max(worst, found)
    return Proof(len(cases), worst)


def decoder_effect(streaming: Streaming, prefill: Path, step: Path, provider: Provider) -> Effect:
    """What int8 does to the outputs of the same sequences.

    Raises:
        OnnxMismatchError: it leaves nothing of use.
        ExportError: onnxruntime refuses a graph.
    """
    cases, error, mean, cosine = list(_cases(streaming)), 0.0, 0.0, 1.0
    for name, got, want, place in comparisons(cases, prefill, step, provider):
        found, off, alike = compared(got, want)
        if not alike >= LOWEST_COSINE:
            raise OnnxMismatchError(
                f"the int8 graphs are too far from torch in {name}, {place}: cosine {alike:.3g}, allowed "
                f"{LOWEST_COSINE:.2g} or more. What to do: export with precision='float32'"
            )
        error, mean, cosine = max(error, found), max(mean, off), min(cosine, alike)
    return Effect(PROVIDERS[provider], len(cases), error, mean, cosine, LOWEST_COSINE)


def _cases(streaming: Streaming) -> Iterator[Case]:
    seen = set()
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
            later = [each[:, at_once - 1 :].clone() if each.dim() > 1 else each for each in expected]
            yield Case(place, exist, list(pieces(streaming, call, at_once)), later)


def comparisons(cases: Sequence[Case], prefill: Path, step: Path, provider: Provider) -> Iterator[Comparison]:
    """All outputs of all prompts, and then of the tokens after each.

    Each graph holds a copy of the weights of its own, so that they are there one after the other.
    """
    graph, states = Graph(prefill, provider), []
    for case in cases:
        outputs, state = _run(graph, case.pieces[0], None, case.place)
        states.append([each.numpy().copy() for each in state])
        yield from _beside(graph, case, case.pieces[0], outputs)
    del graph, state
    graph = Graph(step, provider)
    for case, kept in zip(cases, states, strict=True):
        state = [Session.value_of(torch.from_numpy(each)) for each in kept]
        for piece in case.pieces[1:]:
            outputs, state = _run(graph, piece, state, case.place)
            yield from _beside(graph, case, piece, outputs)


def _run(graph: Graph, piece: Piece, state: State | None, place: str) -> tuple[list[Tensor], State]:
    try:
        outputs, state = graph.run([tensor.contiguous() for tensor in piece.inputs], state)
    except Exception as error:  # onnxruntime has an exception class per status
        told = str(error).splitlines()[0]
        raise OnnxMismatchError(f"onnxruntime fails at token {piece.stop - 1} {place}: {told}") from error
    return [each.clone() for each in outputs], state  # what is onnxruntime's own keeps its session


def _beside(graph: Graph, case: Case, piece: Piece, outputs: list[Tensor]) -> Iterator[Comparison]:
    """What a graph gives for the last token of a piece, beside what torch gives for that of the whole sequence."""
    there = slice(None) if case.exist is None else case.exist[:, piece.stop - 1]
    place = piece.stop - case.pieces[0].stop
    for name, got, later in zip(graph.outputs, outputs, case.expected, strict=True):
        if later.dim() < 2 or later.shape[1] <= place or got.shape[1] != 1:
            continue  # of the whole sequence, not of a token
        want = later[there, place : place + 1]
        if want.numel():
            yield Comparison(name, got[there], want, f"at token {piece.stop - 1} {case.place}")
