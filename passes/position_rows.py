"""Which values of a program follow from how long its inputs are, and which rows of a table are read by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from remixer.passes.prove_growth import length_symbols
from remixer.passes.trial_sizes import padding_pattern
from remixer.rewrite.elsewhere import is_mask
from remixer.rewrite.program import Program, shape_of
from remixer.rewrite.slices import Slicer, evaluate, one_thread

aten = torch.ops.aten
_COMPARISONS = (aten.ne.Scalar, aten.eq.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar)
_CONVERSIONS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.clone.default, aten.contiguous.default)
# Readers of rows by number: where the table, the dimension and the numbers stand among the operands.
_INDEXED = {aten.index_select.default: (0, 1, 2), aten.gather.default: (0, 1, 2), aten.embedding.default: (0, None, 1)}


class NotCountedError(Exception):
    """The rows that are read can't be told from lengths and padding alone."""


@dataclass(frozen=True)
class Reading:
    """A node that reads some rows of another along one dimension.

    Attributes:
        node: that reads.
        source: what it reads from.
        dim: the dimension of the source that rows are counted along.
        numbers: the node with the rows' numbers, or None for a slice.
    """

    node: fx.Node
    source: fx.Node
    dim: int
    numbers: fx.Node | None


class Positions:
    """What follows from the lengths of a program's inputs and from which tokens exist, and from nothing else.

    Masks among the inputs, and comparisons of an input with a constant such as `ids != padding`, are taken for
    which tokens exist. Any other input tells of tokens.

    Args:
        program: whose graph must not change meanwhile.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.slicer = Slicer(program)
        self.lengths = length_symbols(program) - _sides(program)
        self._padding = _padding_nodes(program)
        self._on_tokens: dict[fx.Node, bool] = {}

    def counted(self, node: fx.Node) -> bool:
        """Whether a node's values depend on lengths and padding only."""
        if node not in self._on_tokens:
            behind = self.slicer.between([node], self._padding)
            self._on_tokens[node] = any(one.op in ("placeholder", "call_module") for one in behind)
        return not self._on_tokens[node]

    def padded(self, node: fx.Node) -> bool:
        """Whether a node's values depend on padding."""
        return any(one in self._padding for one in self.slicer.between([node], []))

    def readings(self) -> Iterator[Reading]:
        """All places where rows of something are read that neither tokens nor the length make, by position."""
        for node in self.program.graph.nodes:
            for reading in _readings_of(node):
                size = (shape_of(reading.source) or ())[reading.dim]
                if size.is_Integer and size > 1 and self._fixed(reading.source):
                    yield reading

    def _fixed(self, source: fx.Node) -> bool:
        held = any(one.op == "get_attr" for one in self.slicer.between([source], []))
        return held and self.counted(source) and not self.padded(source)

    def sizes(self, length: int, batch: int = 2) -> dict[sympy.Symbol, int]:
        """All symbols' values where each length is so long."""
        rest = dict.fromkeys(self.program.batch | self.program.length, batch)
        return {**rest, **dict.fromkeys(self.lengths, length)}

    def rows(self, reading: Reading, length: int, pattern: int = 0, *, absent: bool = False) -> Tensor:
        """The numbers of the rows that are read at a length.

        Args:
            reading: by what.
            length: of each of the inputs.
            pattern: which tokens exist; see `padding_pattern`.
            absent: whether True stands for a token that doesn't exist.

        Raises:
            NotCountedError: they depend on something else, or can't be run.
        """
        sizes = self.sizes(length)
        if reading.numbers is None:
            return _sliced(reading, sizes)
        return self.run(reading.numbers, length, pattern, absent=absent)

    def run(self, node: fx.Node, length: int, pattern: int = 0, *, absent: bool = False) -> Tensor:
        """The value of a node at a length; see `rows`."""
        sizes = self.sizes(length)
        feeds: dict[fx.Node, Tensor] = {}
        try:
            for one in self._padding:
                recorded = one.meta["val"]
                rows, keys = (evaluate(size, sizes) for size in recorded.shape)
                exists = padding_pattern(pattern, rows, keys)
                feeds[one] = (exists ^ absent if recorded.dtype is torch.bool else exists).to(recorded.dtype)
            with one_thread(), torch.no_grad():
                value = self.slicer.run(node, feeds, sizes)
        except (KeyError, RuntimeError, IndexError, ValueError, TypeError) as error:
            raise NotCountedError(f"{type(error).__name__}: {error}") from error
        assert isinstance(value, Tensor)
        return value


def _sides(program: Program) -> frozenset[sympy.Symbol]:
    """Symbols of the heights and widths of images, which are no lengths."""
    found: set[sympy.Symbol] = set()
    others: set[sympy.Symbol] = set()
    for node in program.graph.find_nodes(op="placeholder"):
        shape, value = shape_of(node) or (), node.meta.get("val")
        image = len(shape) > 3 and isinstance(value, Tensor) and value.is_floating_point()
        (found if image else others).update(symbol for size in shape for symbol in size.free_symbols)
    return frozenset(found - others)


def _padding_nodes(program: Program) -> frozenset[fx.Node]:
    """Nodes of (B, T) that say which tokens exist."""
    leaves = pytree.tree_leaves((program.args, dict(program.kwargs)))
    inputs = program.graph.find_nodes(op="placeholder")
    named = {str(node.target): node for node in inputs}
    masks = {named[name] for name, value in program.kwargs.items() if name in named and is_mask(value)}
    masks |= {node for node, leaf in zip(inputs, leaves, strict=False) if not program.kwargs and is_mask(leaf)}
    found = {node for node in masks if len(shape_of(node) or ()) == 2}
    for node in program.graph.nodes:
        if node.target in _COMPARISONS and len(shape_of(node) or ()) == 2:
            compared = node.args[0]
            while compared.op == "call_function" and compared.target in _CONVERSIONS:
                compared = compared.args[0]
            if compared.op == "placeholder" and compared not in found:
                found.add(node)
    return frozenset(found)


def _readings_of(node: fx.Node) -> Iterator[Reading]:
    if node.op != "call_function" or not isinstance(source := node.args[0] if node.args else None, fx.Node):
        return
    rank = len(shape_of(source) or ())
    if node.target in _INDEXED:
        _, at, numbers = _INDEXED[node.target]
        dim = 0 if at is None else node.args[at]
        assert isinstance(dim, int)
        index = node.args[numbers]
        if isinstance(index, fx.Node) and rank:
            yield Reading(node, source, dim % rank, index)
    elif node.target is aten.index.Tensor:
        for dim, index in enumerate(node.args[1]):  # type: ignore[arg-type]
            if isinstance(index, fx.Node) and not _boolean(index):
                yield Reading(node, source, dim, index)
    elif node.target is aten.slice.Tensor and rank:
        along = _argument(node, 1) or 0
        assert isinstance(along, int)
        if any(isinstance(_argument(node, bound), fx.Node) for bound in (2, 3)):
            yield Reading(node, source, along % rank, None)


def _boolean(node: fx.Node) -> bool:
    return bool(node.meta["val"].dtype is torch.bool)


def _argument(node: fx.Node, index: int) -> object:
    return node.args[index] if index < len(node.args) else None


def _sliced(reading: Reading, sizes: Mapping[sympy.Symbol, int]) -> Tensor:
    """The rows of a slice, those behind the end of its source included."""
    held = int((shape_of(reading.source) or ())[reading.dim])

    def bound(index: int, default: int) -> int:
        given = _argument(reading.node, index)
        value = given.meta["val"] if isinstance(given, fx.Node) else given
        try:
            number = default if value is None else evaluate(value, sizes)  # type: ignore[arg-type]
        except KeyError as error:
            raise NotCountedError(str(error)) from error
        return number + held if number < 0 else number

    end = bound(3, held)
    start, end = bound(2, 0), held if end >= 2**31 else end
    if _argument(reading.node, 4) not in (None, 1):
        raise NotCountedError("it takes steps")
    return torch.arange(start, max(start, end))
