"""At which sizes a mask or a site is tried, and which keys exist in each trial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import sympy
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from remixer.rewrite.program import Program, expression
from remixer.rewrite.slices import Slicer, evaluate

Size = int | torch.SymInt

# Longest window that is tried at full size: a mask of 8,192 x 8,192 booleans is 64 MiB.
LONGEST = 8192
_BASE = ((2, 41), (3, 29), (3, 29), (2, 23), (1, 53), (2, 19))
_PADDED = ("none", "right", "left", "random", "none", "whole")
# Operators whose numbers may be values to fill in: below zero, or very large, they are no lengths.
_FILLS = ("masked_fill", "where", "full", "scalar_tensor", "full_like", "new_full", "add", "sub", "rsub")
# Operators whose numbers make distances smaller, so that a window may be so many times the largest number.
_DIVISIONS = (
    "div",
    "floor_divide",
    "true_divide",
    "rshift",
    "bitwise_right_shift",
    "floordiv",
    "truediv",
)
_LARGEST_FILL = 2**20
_LARGEST_TABLE = 4096  # tensors of constants up to this many numbers are looked into


class NotTriedError(Exception):
    """The mask can't be run on inputs of our choice; the message says why."""


class TooLongError(NotTriedError):
    """The mask fails at a length; at a shorter one it may not."""


def sizes_of(program: Program, batch: int, length: int, lengths: Iterable[Size] = ()) -> dict[sympy.Symbol, int]:
    """A value for every symbol: the batch, and lengths of which no two are the same.

    Args:
        program: whose symbols they are.
        batch: the batch.
        length: the shortest of `lengths` is at least this, where the symbols' limits allow it.
        lengths: T and S of a site. What they are made of is no batch, even if it is an input's first
            dimension.
    """
    wanted = [expression(size) for size in lengths]
    tokens = {symbol for size in wanted for symbol in size.free_symbols}
    first = bool(tokens & program.batch)  # inputs are (T, B, C): the batch is among the other dimensions
    rest = set() if first else set(program.length)
    for factor in itertools.accumulate(itertools.repeat(2, 24), int.__mul__, initial=1):
        sizes: dict[sympy.Symbol, int] = dict.fromkeys([*program.batch, *program.length], batch)
        # The site's own come first: where a table ends, its lengths have to be met exactly.
        for index, symbol in enumerate(sorted(tokens | rest, key=lambda symbol: (symbol not in tokens, str(symbol)))):
            smallest, largest = program.limits.get(symbol, (1, None))
            # By other numbers from trial to trial: a shift by a fixed number is no alignment at the end.
            size = max(smallest, (length + (7 + length % 5) * index) * factor)
            sizes[symbol] = size if largest is None else min(size, largest)
        moving = [size for size in lengths if expression(size).free_symbols]
        if all(_reaches(size, sizes, length) for size in moving):
            return sizes
        if all(sizes[symbol] == program.limits.get(symbol, (1, None))[1] for symbol in tokens):
            return sizes
    raise NotTriedError(f"the lengths {wanted} don't grow with the inputs")


def _reaches(size: Size, sizes: dict[sympy.Symbol, int], length: int) -> bool:
    """Whether a size is at least so long; one that is so small that something else divides by zero isn't."""
    try:
        return evaluate(size, sizes) >= length
    except KeyError as error:
        if isinstance(error.__cause__, ZeroDivisionError):
            return False
        raise


def trial_sizes(program: Program, lengths: tuple[Size, Size]) -> Iterator[dict[sympy.Symbol, int]]:
    """Sizes for each of the usual trials, which are short."""
    for batch, length in _BASE:
        yield sizes_of(program, batch, length, lengths)


def longer_trial(program: Program, slicer: Slicer, mask: fx.Node, lengths: tuple[Size, Size]) -> int | None:
    """A length longer than any window that a mask's constants allow, or None where the usual trials are.

    Raises:
        NotTriedError: a constant is too large to try, and inputs may be longer than it.
    """
    longest = longest_window(slicer, mask)
    moving = [size for size in lengths if expression(size).free_symbols]
    if longest <= 41 or not moving:
        return None
    if longest <= LONGEST:
        return longest + 16
    sizes = sizes_of(program, 1, LONGEST + 1, lengths)
    if all(evaluate(size, sizes) > LONGEST for size in moving):
        raise NotTriedError(f"the mask holds the constant {longest}, too long a window to be tried")
    return LONGEST + 1


def padding_pattern(index: int, rows: int, keys: int) -> Tensor:
    """Which keys exist: none missing, right, left, random, none missing, all of the last row missing.

    Returns:
        (rows, keys) bool; but for that, every row keeps at least one key.
    """
    existing = torch.ones(rows, keys, dtype=torch.bool)
    kind = _PADDED[index] if index < len(_PADDED) else "none"
    generator = torch.Generator().manual_seed(index)
    for row in range(rows):
        cut = 1 + (3 * row + keys // 3) % max(1, keys - 1)
        if kind == "right":
            existing[row, cut:] = False
        elif kind == "left":
            existing[row, : keys - cut] = False
        elif kind == "random":
            existing[row] = torch.rand(keys, generator=generator) > 0.4
            existing[row, row % keys] = True
        elif kind == "whole":
            existing[row] = row < rows - 1
    return existing


def longest_window(slicer: Slicer, mask: fx.Node) -> int:
    """The longest window that a slice's constants can make, tables' sizes among them; 0 if there are none."""
    found, divisors = [0], [1]
    for node in slicer.between([mask], []):
        if node.op == "get_attr":
            found += _of_table(slicer, node)
            continue
        name = getattr(node.target, "__name__", "").split(".")[0].strip("_")
        size = node.meta.get("val")
        if isinstance(size, torch.SymInt):  # such as S - T - 70, where a band ends
            constant = expression(size).as_coeff_Add()[0]
            found += [abs(int(constant))] if constant.is_Integer else []
        if name == "mul" or isinstance(size, torch.SymInt):
            continue
        flat: list[object] = []
        map_aggregate((node.args, tuple(node.kwargs.values())), flat.append)
        numbers = [item for item in flat if isinstance(item, (int, float)) and not isinstance(item, bool)]
        signed = [number for number in numbers if name not in _FILLS or 0 <= number < _LARGEST_FILL]
        lengths = [math.ceil(abs(number)) for number in signed if abs(number) < 2**31 - 1]
        if name.endswith(("rshift", "right_shift")):
            lengths = [2 ** min(length, 31) for length in lengths]
        (divisors if name in _DIVISIONS else found).extend(lengths)
    return max(*found, *divisors, max(found) * max(divisors))


def _of_table(slicer: Slicer, node: fx.Node) -> list[int]:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return []
    found = [int(size) for size in value.shape if isinstance(size, int)]
    if value.numel() <= _LARGEST_TABLE:
        stored = slicer.run(node, {}, {}).detach().double()
        inside = stored[stored.isfinite() & (stored.abs() < 2**31 - 1)].abs()
        found += [math.ceil(float(inside.max()))] if inside.numel() else []
    return found
