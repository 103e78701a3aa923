"""Symbolic sizes as JSON, node by node: text of formulas would have to be evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanFunction
from torch.utils._sympy import functions

from remixer.export.typed import TypedError

MOST_DIGITS = 2**63
MOST_POWER = 16
_OWN = tuple(
    each
    for each in vars(functions).values()
    if isinstance(each, type) and issubclass(each, sympy.Basic) and each.__module__ == functions.__name__
)
_BASICS = (
    sympy.Add,
    sympy.Mul,
    sympy.Pow,
    sympy.Eq,
    sympy.Ne,
    sympy.Lt,
    sympy.Le,
    sympy.Gt,
    sympy.Ge,
    sympy.And,
    sympy.Or,
    sympy.Not,
)
FUNCTIONS: dict[str, Any] = {each.__name__: each for each in (*_OWN, *_BASICS)}


def written(size: Any) -> Any:
    """A size, or a condition on sizes, as a number, the name of a symbol, or a list of a function and its operands.

    Raises:
        TypedError: it has a part that could not be read again.

    Examples:
        >>> written(2 * sympy.Symbol("s5", integer=True, positive=True) + 1)
        ['Add', 1, ['Mul', 2, 's5']]
    """
    size = sympy.sympify(size) if isinstance(size, (bool, int, float)) else size
    if size in (sympy.true, sympy.false):
        return bool(size)
    if isinstance(size, sympy.Integer):
        return int(size)
    if isinstance(size, sympy.Float):
        return float(size)
    if isinstance(size, sympy.Rational):
        return ["Rational", int(size.p), int(size.q)]
    if isinstance(size, sympy.Symbol):
        return str(size)
    name = type(size).__name__
    if FUNCTIONS.get(name) is not type(size):
        raise TypedError(f"a size that is made of {name} can't be written: {size}")
    return [name, *map(written, size.args)]


def size_of(found: Any, symbols: Mapping[str, sympy.Symbol]) -> Any:
    """What `written` wrote, with these symbols.

    Raises:
        TypedError: it is something else.
    """
    if isinstance(found, bool):
        return sympy.true if found else sympy.false
    if isinstance(found, int) and abs(found) < MOST_DIGITS:
        return sympy.Integer(found)
    if isinstance(found, float):
        return sympy.Float(found)
    if isinstance(found, str) and found in symbols:
        return symbols[found]
    if not isinstance(found, list) or not 2 <= len(found) <= 64:
        raise TypedError(f"expected a size, got {found!r:.80}")
    name, *operands = found
    if name == "Rational" and len(operands) == 2 and all(type(each) is int for each in operands) and operands[1]:
        return sympy.Rational(*operands)
    if not isinstance(name, str) or name not in FUNCTIONS:
        raise TypedError(f"sizes are not made of {name!r:.80}")
    made = [size_of(each, symbols) for each in operands]
    if name in ("Pow", "PowByNatural", "FloatPow", "LShift") and not _small(made[-1]):
        raise TypedError(f"a size to the power of {made[-1]!s:.80} is none")
    return FUNCTIONS[name](*made)


def _small(power: Any) -> bool:
    return isinstance(power, sympy.Integer) and -MOST_POWER <= int(power) <= MOST_POWER


def symbolic(value: Any, env: Any) -> Any:
    """A size or condition as torch's own number, that traces with it; plain where it has no symbol."""
    if isinstance(value, (Relational, BooleanFunction)):
        return env.create_symboolnode(value)
    if value in (sympy.true, sympy.false):
        return bool(value)
    if isinstance(value, sympy.Integer):
        return int(value)
    if isinstance(value, sympy.Float):
        return float(value)
    hint = value.xreplace(env.backed_var_to_val)
    if value.is_integer:
        return env.create_symintnode(value, hint=int(hint) if hint.is_Integer else None)
    return env.create_symfloatnode(value, hint=float(hint) if hint.is_number else None)


def number_of(value: torch.SymInt | torch.SymFloat | torch.SymBool) -> Any:
    """The expression of one of torch's symbolic numbers."""
    return value.node.expr
