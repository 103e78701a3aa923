"""The symbols of a program's sizes, out of torch's own environment of them and into a new one."""

from __future__ import annotations

import re
from collections.abc import Mapping

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.numbers import int_oo

from remixer.export.artifacts.records import SymbolRecord
from remixer.export.artifacts.sizes import MOST_DIGITS, written
from remixer.export.typed import TypedError
from remixer.rewrite.program import expression

_NAME = re.compile(r"[su]\d{1,18}")


class Symbols:
    """Collects the symbols of what is written."""

    def __init__(self) -> None:
        self.records: dict[str, SymbolRecord] = {}

    def written(self, size: int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool) -> object:
        """A size as what JSON can hold; see `sizes`."""
        if isinstance(size, (bool, int, float)):
            return size
        found = expression(size) if isinstance(size, torch.SymInt) else size.node.expr
        for symbol in found.free_symbols:
            self._add(symbol, size.node.shape_env)
        return written(found)

    def _add(self, symbol: sympy.Symbol, env: ShapeEnv) -> None:
        if str(symbol) in self.records:
            return
        span, hint = env.var_to_range.get(symbol), env.backed_var_to_val.get(symbol)
        low, high = (span.lower, span.upper) if span is not None else (sympy.Integer(0), int_oo)
        self.records[str(symbol)] = SymbolRecord(
            int(low) if low.is_Integer else 0,
            int(high) if high.is_Integer and abs(int(high)) < MOST_DIGITS - 1 else None,
            None if hint is None else int(hint),
        )


def symbol_of(name: str) -> sympy.Symbol:
    """The symbol of a name, as torch makes it.

    Raises:
        TypedError: torch makes none of this name.
    """
    if not _NAME.fullmatch(name):
        raise TypedError(f"expected the name of a symbol, got {name!r:.80}")
    return sympy.Symbol(name, integer=True, positive=True if name.startswith("s") else None)


def environment(records: Mapping[str, SymbolRecord]) -> tuple[ShapeEnv, dict[str, sympy.Symbol]]:
    """A new environment that knows these symbols, and the symbols by name.

    Raises:
        TypedError: a name, a range or a hint is none.
    """
    env, symbols = ShapeEnv(), {}
    for name, record in records.items():
        high = MOST_DIGITS if record.high is None else record.high
        if not (-MOST_DIGITS < record.low <= (record.low if record.hint is None else record.hint) <= high):
            raise TypedError(f"the symbol {name!r:.80} can't be {record.hint} and in {record.low} to {record.high}")
        symbol = symbols[name] = symbol_of(name)
        env.constrain_symbol_range(symbol, record.low, int_oo if record.high is None else record.high)
        if record.hint is not None:
            env.backed_var_to_val[symbol] = sympy.Integer(record.hint)
    return env, symbols
