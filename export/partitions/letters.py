"""Sizes in letters, such as "2*(T//4) - 9", as numbers: sums, products and quotients, read and not evaluated."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

from remixer.export.typed import TypedError

MOST_LETTERS = 500  # of text that is parsed
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CeilDiv": lambda over, under: -(-over // under),
    "Abs": abs,
}
_MOST_POWER = 8


def value_of(size: str, letters: Mapping[str, int]) -> int:
    """A size in letters as a number.

    Raises:
        TypedError: it is none, or has other letters.

    Examples:
        >>> value_of("2*(T//4) - 9 + B**2", {"T": 21, "B": 3})
        10
    """
    try:
        if len(size) > MOST_LETTERS:
            raise TypedError("it is too long")
        return _value(ast.parse(size, mode="eval").body, letters)
    except (TypedError, SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise TypedError(f"{size!r:.80} is no size in {', '.join(letters) or 'no letters'}: {error}") from error


def _value(node: ast.expr, letters: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in letters:
            return letters[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, letters)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)) if 0 <= power <= _MOST_POWER:
            return math.prod([_value(left, letters)] * power)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_value(left, letters), _value(right, letters))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(each, letters) for each in args))
    raise TypedError(f"{type(node).__name__} is no part of a size")
