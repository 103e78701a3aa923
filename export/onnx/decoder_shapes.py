"""Examples that the graphs of a decoder are exported by, and which dimensions of theirs are dynamic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from remixer.export.examples import EXPORT_LENGTH, uneven
from remixer.export.onnx.names import PAST, PRESENT
from remixer.passes.prove_stream import pieces, sequence
from remixer.passes.stream import Streaming
from remixer.passes.stream_graphs import inputs_of, token_dimension
from remixer.rewrite.agreement import NotRunError, run
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import shape_of


def _runs(streaming: Streaming, tokens: int) -> bool:
    """Whether the whole model takes so many tokens."""
    try:
        run(streaming.program.graph_module, sequence(streaming, 1, tokens))
    except NotRunError:
        return False
    return True


class DecoderShapes:
    """Examples of two sizes, from which it shows which dimensions are dynamic."""

    def __init__(self, streaming: Streaming) -> None:
        self.streaming = streaming
        largest = streaming.program.limits.get(streaming.tokens, (1, None))[1]
        room = max(1, streaming.length - 2)  # with one token more it isn't full yet, which would look like a rule
        prompt = uneven(min(EXPORT_LENGTH, room, EXPORT_LENGTH if largest is None else largest))
        while not _runs(streaming, prompt) and prompt > 2:
            prompt = uneven(prompt // 2)  # a table of positions may be shorter
        self.inputs, self.state = self._at(3, prompt)
        self.others, self.other_state = self._at(2, max(1, prompt // 2))

    def _at(self, batch: int, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        call = sequence(self.streaming, batch, tokens)
        (piece,) = pieces(self.streaming, call, tokens)
        with torch.no_grad():
            results = self.streaming.prefill(*piece.inputs)
        return piece.inputs, list(results[len(results) - len(self.streaming.state) :])

    def prefill(self) -> tuple[Call, Call, Any]:
        """A call of the graph of a prompt, one of other sizes, and which dimensions are dynamic."""
        return (tuple(self.inputs), {}), (tuple(self.others), {}), tuple(self._of_inputs(step=False))

    def step(self) -> tuple[Call, Call, Any]:
        """A call of the graph of a token, one of other sizes, and which dimensions are dynamic."""
        dynamic = [*self._of_inputs(step=True), *map(self._of_entry, self.state, self.other_state)]
        return self._one(self.inputs, self.state), self._one(self.others, self.other_state), tuple(dynamic)

    def _one(self, inputs: list[Tensor], state: list[Tensor]) -> Call:
        """The first token after a state."""
        token = [
            tensor if dim is None else tensor.narrow(dim, 0, 1)
            for tensor, dim in zip(inputs, self._dims(), strict=True)
        ]
        # No views, and none that a step has written into.
        return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in (*token, *state)), {}

    def name(self, graph: Any) -> None:
        """Call the dynamic dimensions of inputs and outputs "batch", "length" and "past"."""
        import onnx_ir as ir

        for value in [*graph.graph.inputs, *graph.graph.outputs]:
            sizes = list(value.shape)
            for dim, size in enumerate(sizes):
                if isinstance(size, ir.SymbolicDim):
                    kept = value.name.startswith((PAST, PRESENT))
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
