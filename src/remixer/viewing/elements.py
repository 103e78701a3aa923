"""How many numbers a value holds: a polynomial of batch and length, to read and to compute with."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from remixer.rewrite.program import expression
from remixer.rewrite.sizes import written

# An expression as plain lists: a number, a letter, or an operator in front of its operands.
Tree = int | str | tuple[Any, ...]
_OPERATORS = {
    "Add": "+",
    "Mul": "*",
    "Pow": "^",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "Mod": "%",
    "PythonMod": "%",
    "Min": "min",
    "Max": "max",
}


@dataclass(frozen=True)
class Elements:
    """A number of elements.

    Attributes:
        text: as people read it, such as "12*B*T**2".
        tree: the same to compute with, or None where it has operators that few know.
    """

    text: str
    tree: Tree | None


def elements_of(values: Sequence[torch.Tensor], letters: Mapping[sympy.Symbol, str]) -> Elements:
    """How many elements some tensors have together.

    Examples:
        >>> elements_of([torch.zeros(2, 8), torch.zeros(3)], {})
        Elements(text='19', tree=19)
    """
    shapes = tuple(tuple(expression(size) for size in value.shape) for value in values)
    return _elements(shapes, tuple(letters.items()))


@functools.lru_cache(maxsize=4096)  # a graph has thousands of values, but of few shapes
def _elements(shapes: tuple[tuple[sympy.Expr, ...], ...], letters: tuple[tuple[sympy.Symbol, str], ...]) -> Elements:
    count = sympy.expand(sympy.Add(*(sympy.Mul(*shape) for shape in shapes)))
    named = {symbol: sympy.Symbol(letter, integer=True, positive=True) for symbol, letter in letters}
    lettered = count.xreplace(named)
    return Elements(written(lettered, {}), tree_of(lettered, {symbol: symbol.name for symbol in named.values()}))


def tree_of(size: sympy.Basic, letters: Mapping[sympy.Symbol, str]) -> Tree | None:
    """An expression as plain lists, or None if it has other operators than integers know.

    Examples:
        >>> T = sympy.Symbol("s5", integer=True, positive=True)
        >>> tree_of(3 * T**2 + 1, {T: "T"})
        ('+', 1, ('*', 3, ('^', 'T', 2)))
    """
    if isinstance(size, sympy.Integer):
        return int(size)
    if isinstance(size, sympy.Symbol):
        return letters.get(size)
    operator = _OPERATORS.get(type(size).__name__)
    operands = [tree_of(part, letters) for part in size.args]
    if operator is None or any(part is None for part in operands):
        return None
    return (operator, *operands)
