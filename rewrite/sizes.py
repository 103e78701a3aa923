"""Sizes as people write them: B for the batch and T for the length, in place of the symbols of an export."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter
from torch.utils._sympy.functions import FloorDiv

from remixer.rewrite.program import Program, expression, shape_of

_LENGTHS = "TSUVW"


_quotient = sympy.Function("quotient")  # torch's own FloorDiv puts brackets around itself


class _Printer(StrPrinter):
    def parenthesize(self, item: Any, level: int, strict: bool = False) -> str:
        text = str(super().parenthesize(item, level, strict))
        return f"({text})" if item.func == _quotient and level >= PRECEDENCE["Mul"] else text

    def _print_Function(self, function: Any) -> str:  # noqa: N802 - sympy's name
        if function.func != _quotient:
            return str(super()._print_Function(function))
        over, under = (self.parenthesize(part, PRECEDENCE["Mul"]) for part in function.args)
        return f"{over}//{under}"


def letters_of(program: Program) -> dict[sympy.Symbol, str]:
    """A letter for each symbol of a program's inputs: B for rows; T, S and further ones for lengths, in their order."""
    letters = dict.fromkeys(program.batch, "B")
    lengths: list[sympy.Symbol] = []
    for node in program.graph.find_nodes(op="placeholder"):
        for size in shape_of(node) or ():
            lengths += sorted(size.free_symbols - program.batch - set(lengths), key=str)
    for index, symbol in enumerate(lengths):
        letters[symbol] = _LENGTHS[index] if index < len(_LENGTHS) else f"T{index}"
    return letters


def written_shape(shape: Sequence[int | torch.SymInt], letters: Mapping[sympy.Symbol, str]) -> str:
    """A shape in these letters.

    Examples:
        >>> written_shape((2, 8), {})
        '(2, 8)'
    """
    return f"({', '.join(written(expression(size), letters) for size in shape)})"


def written(size: sympy.Expr, letters: Mapping[sympy.Symbol, str]) -> str:
    """A size in these letters.

    Examples:
        >>> T = sympy.Symbol("s5", integer=True, positive=True)
        >>> written((FloorDiv(T, 4) - 5) * 2 + 1, {T: "T"})
        '2*(T//4) - 9'
    """
    return _written(size, tuple(letters.items()))


@functools.lru_cache(maxsize=1024)  # a graph has thousands of shapes, but of few sizes
def _written(size: sympy.Expr, letters: tuple[tuple[sympy.Symbol, str], ...]) -> str:
    named = {symbol: sympy.Symbol(letter, integer=True, positive=True) for symbol, letter in letters}
    size = size.replace(lambda part: isinstance(part, FloorDiv), lambda part: _quotient(*part.args))
    return str(_Printer().doprint(size.xreplace(named)))


def in_letters(sentence: str, letters: Mapping[sympy.Symbol, str]) -> str:
    """A sentence with these letters in place of the symbols' names."""
    names = {symbol.name: letter for symbol, letter in letters.items()}
    return re.sub(r"\b[su]\d+\b", lambda found: names.get(found[0], found[0]), sentence)
