"""How a rewritten program grows with its length, and a pass that insists on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy
from torch import fx, nn

from remixer.mixers import Mixer
from remixer.passes.base import Pass
from remixer.passes.sites import sites_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.errors import PassError
from remixer.rewrite.growth import Growth, Order, degree, growth_of
from remixer.rewrite.program import Program, expression


def growth(program: Program) -> Growth:
    """The growth of a program with its mixers, measured against the number of tokens that its sites see.

    An image model's length symbol is a side of the image, of which the tokens are the square; the degree is
    taken of the tokens.
    """
    length = length_symbols(program)
    found = growth_of(program, length, _inside)
    unit = _unit(program, length)
    if unit <= 1.0:
        return found
    nodes = tuple(replace(node, size=_per(node.size, unit), work=_per(node.work, unit)) for node in found.nodes)
    return Growth(max((node.worst for node in nodes), default=Order()), nodes, found.unknown)


def length_symbols(program: Program) -> frozenset[sympy.Symbol]:
    """What counts as length: the inputs' lengths and those of the sites, without the sites' batch.

    The sites tell where an input has its tokens in the first dimension and its rows in the second.
    """
    lengths, batch = set(program.length), set()
    for site in sites_of(program):
        for name in ("query", "key", "value"):
            if (operand := site.operand(name)) is not None:
                shape = operand.meta["val"].shape
                lengths |= expression(shape[2]).free_symbols
                batch |= expression(shape[0]).free_symbols
    return frozenset(lengths - batch) or program.length


def _unit(program: Program, length: frozenset[sympy.Symbol]) -> float:
    degrees = [
        degree(expression(operand.meta["val"].shape[2]), dict.fromkeys(length, 1.0))
        for site in sites_of(program)
        if (operand := site.operand("value")) is not None
    ]
    return max(degrees, default=1.0)


def _inside(module: nn.Module, node: fx.Node) -> Order | None:
    return Order.parse(module.order) if isinstance(module, Mixer) else None


def _per(order: Order, unit: float) -> Order:
    return Order(order.degree / unit, order.log)


@dataclass(frozen=True)
class ProveGrowth(Pass):
    """Raise PassError unless the program grows at most as fast as a given order; changes nothing.

    Attributes:
        at_most: "n", "n log n" or "n^2".
    """

    at_most: str = "n log n"

    def run(self, editor: Editor) -> None:
        """See Pass.run."""

    def ensures(self, before: Program, after: Program) -> None:
        """See Pass.ensures."""
        found = growth(after)
        if found.order > Order.parse(self.at_most):
            blamed = "; ".join(map(str, found.to_blame()[:5]))
            raise PassError(f"the graph grows as {found.order}, at most {self.at_most} was asked for: {blamed}")
