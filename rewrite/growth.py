"""How the tensors and the work of a graph grow with its length, proven from symbolic shapes.

The degree of a size is its degree as a polynomial of the length symbols: sums take the larger, products add,
quotients subtract, a minimum or a remainder takes the smaller. Symbols of the batch count nothing.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import fx, nn

from remixer.rewrite.inputs import tensors_in
from remixer.rewrite.match import module_path, source_line
from remixer.rewrite.program import Program, expression, shape_of
from remixer.rewrite.sizes import letters_of, written_shape

aten = torch.ops.aten
_SELECTIONS = {aten.index.Tensor, aten.nonzero.default, aten.masked_select.default}


@functools.total_ordering
@dataclass(frozen=True)
class Order:
    """n^degree, times log n if `log`."""

    degree: float = 0.0
    log: bool = False

    def __lt__(self, other: Order) -> bool:
        return (self.degree, self.log) < (other.degree, other.log)

    def __str__(self) -> str:
        """As users write it.

        Examples:
            >>> print(Order(1), Order(1, log=True), Order(2), sep=", ")
            n, n log n, n^2
        """
        power = "1" if self.degree == 0 else "n" if self.degree == 1 else f"n^{self.degree:g}"
        return f"{power} log n" if self.log else power

    @staticmethod
    def parse(text: str) -> Order:
        """The order that a text such as "n log n" names.

        Raises:
            ValueError: it names none.
        """
        power, log = text.removesuffix(" log n"), text.endswith(" log n")
        degrees = {"1": 0.0, "n": 1.0, "n^2": 2.0, "n^3": 3.0}
        if power not in degrees:
            raise ValueError(f"no order of growth {text!r}; expected '1', 'n', 'n log n', 'n^2' or 'n^3'")
        return Order(degrees[power], log)


@dataclass(frozen=True)
class NodeGrowth:
    """One node: how its value grows, how its work grows, and where it came from; the shape as it is written down."""

    node: str
    operator: str
    size: Order
    work: Order
    path: str
    shape: str
    source: str = ""

    def __str__(self) -> str:
        place = " at ".join(filter(None, [self.path, self.source]))
        return f"`{self.operator}` of shape {self.shape}" + (f", in {place}" if place else "")

    @property
    def worst(self) -> Order:
        """The larger of the two."""
        return max(self.size, self.work)


@dataclass(frozen=True)
class Growth:
    """The growth of a graph.

    Attributes:
        order: the largest of all nodes.
        nodes: every node's.
        unknown: names of nodes that have no recorded shape to tell from, or that run a graph of their own.
    """

    order: Order
    nodes: tuple[NodeGrowth, ...]
    unknown: tuple[str, ...] = ()

    def to_blame(self) -> tuple[NodeGrowth, ...]:
        """The nodes that grow fastest."""
        return tuple(node for node in self.nodes if node.worst == self.order)


Inside = Callable[[nn.Module, fx.Node], Order | None]
Degrees = Mapping[sympy.Symbol, float]  # of each symbol that counts


def growth_of(program: Program, length: Iterable[sympy.Symbol] | None = None, inside: Inside | None = None) -> Growth:
    """The growth of a program's graph.

    Args:
        program: captured with symbolic shapes.
        length: symbols that count as the length; the program's by default.
        inside: how the work inside a called module grows, or None where the module does nothing.
    """
    symbols = dict.fromkeys(program.length if length is None else length, 1.0)
    symbols |= _selections(program.graph, symbols)
    letters = letters_of(program)
    nodes, unknown = [], []
    for node in program.graph.nodes:
        if node.op in ("output", "get_attr") or (not node.users and node.op == "placeholder"):
            continue
        leaves = tensors_in(node.meta.get("val"))
        higher = isinstance(node.target, torch._ops.HigherOrderOperator)  # runs a graph of its own
        if higher or (node.op == "call_function" and node.meta.get("val") is None):
            unknown.append(node.name)
        if node.op == "call_function" and node.meta.get("val") is None:
            continue
        size = Order(max((_numel(leaf.shape, symbols) for leaf in leaves), default=0.0))
        work = max(size, _work(node, symbols))
        if node.op == "call_module" and inside is not None:
            work = max(work, inside(program.graph_module.get_submodule(str(node.target)), node) or Order())
        shape = " and ".join(written_shape(leaf.shape, letters) for leaf in leaves)
        nodes.append(NodeGrowth(node.name, _operator(node), size, work, module_path(node), shape, source_line(node)))
    return Growth(max((node.worst for node in nodes), default=Order()), tuple(nodes), tuple(unknown))


def degree(size: sympy.Basic, symbols: Degrees) -> float:
    """The degree of a size in the length symbols; unbacked symbols (data-dependent sizes) count 1."""
    if isinstance(size, sympy.Symbol):
        return symbols.get(size, 1.0 if re.fullmatch(r"u\d+", size.name) else 0.0)
    if not size.args:
        return 0.0
    degrees = [degree(part, symbols) for part in size.args]
    name = type(size).__name__
    if name == "Mul":
        return sum(degrees)
    if name == "Pow":
        return degrees[0] * float(size.args[1]) if size.args[1].is_number else math.inf
    if name in ("FloorDiv", "CleanDiv", "TrueDiv", "IntTrueDiv", "FloatTrueDiv", "CeilToInt"):
        return degrees[0] - (degrees[1] if len(degrees) > 1 else 0.0)
    if name in ("Mod", "PythonMod", "Min"):
        return min(degrees)
    if name == "Piecewise":
        return max(degree(branch.args[0], symbols) for branch in size.args)
    return max(degrees)


def _operator(node: fx.Node) -> str:
    """An operator's name, such as `matmul`; a module's or an input's own name."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.name
    return str(node.target._schema.name).split("::")[-1].strip("_")


def _selections(graph: fx.Graph, symbols: Degrees) -> Degrees:
    """The degree of each data-dependent size that counts chosen entries: at most that of all there are."""
    found: dict[sympy.Symbol, float] = {}
    for node in graph.nodes:
        if node.target not in _SELECTIONS:
            continue
        own = {symbol for size in shape_of(node) or () for symbol in size.free_symbols} - symbols.keys() - found.keys()
        chosen = [value for leaf in node.all_input_nodes if (value := leaf.meta.get("val")) is not None]
        if node.target is not aten.nonzero.default:
            chosen = [value for value in chosen if value.dtype is torch.bool]
        if chosen:
            most = max(_numel(value.shape, {**symbols, **found}) for value in chosen)
            found |= {symbol: most for symbol in own if re.fullmatch(r"u\d+", symbol.name)}
    return found


def _numel(shape: Sequence[int | torch.SymInt], symbols: Degrees) -> float:
    return sum(degree(expression(size), symbols) for size in shape)


def _work(node: fx.Node, symbols: Degrees) -> Order:
    """Operands read, contracted dimensions of products, and log n for transforms."""
    shapes = [
        leaf.meta["val"].shape
        for leaf in node.all_input_nodes
        if isinstance(leaf.meta.get("val"), torch.Tensor) and leaf.op != "get_attr"
    ]
    read = max((_numel(shape, symbols) for shape in shapes), default=0.0)
    value = node.meta.get("val")
    result = _numel(value.shape, symbols) if isinstance(value, torch.Tensor) else 0.0
    if not isinstance(node.target, torch._ops.OpOverload):
        return Order(0.0)
    name = node.target._schema.name.split("::")[-1]
    if _is_view(node.target):
        return Order(0.0)
    if "fft" in name:
        return Order(max(read, result), log=max(read, result) > 0)
    first = [operand for operand in node.args if isinstance(operand, fx.Node)]
    if name in ("matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "einsum") and shapes:
        left = first[1 if name in ("addmm", "baddbmm") else 0] if first else None
        contracted = left.meta["val"].shape[-1:] if left is not None else ()
        if name == "einsum":
            return Order(max(read, result, sum(sorted(_numel(shape, symbols) for shape in shapes)[-2:])))
        return Order(max(read, result + _numel(contracted, symbols)))
    if "conv" in name and len(first) >= 2:
        return Order(max(read, result + _numel(first[1].meta["val"].shape[2:], symbols)))
    if "attention" in name and len(first) >= 2:
        return Order(max(read, result + _numel(first[1].meta["val"].shape[-2:-1], symbols)))
    return Order(max(read, result))


def _is_view(target: torch._ops.OpOverload) -> bool:
    returned = target._schema.returns
    return bool(returned) and all(value.alias_info is not None for value in returned)
