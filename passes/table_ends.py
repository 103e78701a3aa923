"""Where what a model holds ends before the inputs do: tables of positions, and buffers of a fixed length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

import sympy
import torch
from torch import Tensor

from remixer.passes.errors import ExtendError
from remixer.passes.position_rows import NotCountedError, Positions, Reading
from remixer.rewrite.match import module_path
from remixer.rewrite.program import shape_of

# Numbers of rows that are made for all pairs of positions are tried up to this length.
_LONGEST_PAIRS = 2048
_PATTERNS = ((0, False), (0, True), (1, False), (1, True), (2, False), (2, True))


@dataclass(frozen=True)
class End:
    """A dimension of a parameter or buffer that is too short.

    Attributes:
        name: of the parameter or buffer.
        dim: its dimension.
        size: how many rows it has.
        first: the first row that stands for a position; special rows may come before.
        needed: how many rows it takes.
        reach: the longest input that it is enough for.
        counted: whether the rows are those of one position after another.
        place: module path of what reads it.
        symbols: the lengths that the rows follow from.
    """

    name: str
    dim: int
    size: int
    first: int
    needed: int
    reach: int
    counted: bool
    place: str
    symbols: frozenset[sympy.Symbol]


def ends_of(positions: Positions, max_length: int) -> list[End]:
    """Everything that ends before inputs of a length do; one entry for each dimension of a parameter or buffer.

    Raises:
        ExtendError: something ends that can't be traced back to the rows of one parameter or buffer.
    """
    found: dict[tuple[str, int], End] = {}
    for reading in positions.readings():
        if reading.numbers is not None and not positions.counted(reading.numbers):
            continue
        end = _end_of(positions, reading, max_length)
        if end is None:
            continue
        other = found.get((end.name, end.dim))
        found[end.name, end.dim] = end if other is None else _both(end, other)
    return list(found.values())


def _both(one: End, other: End) -> End:
    """What two readings of the same rows ask for."""
    if one.counted and other.counted and one.first != other.first:
        # A table that is read from two rows on: what lies before the later of them is no special row.
        first = min(one.first, other.first)
    else:
        first = max(one.first, other.first)
    return End(
        one.name,
        one.dim,
        one.size,
        first,
        max(one.needed, other.needed),
        min(one.reach, other.reach),
        one.counted and other.counted,
        other.place,
        one.symbols | other.symbols,
    )


def _end_of(positions: Positions, reading: Reading, max_length: int) -> End | None:
    held = int((shape_of(reading.source) or ())[reading.dim])
    tried = max_length if not _in_pairs(positions, reading) else min(max_length, _LONGEST_PAIRS)
    try:
        first, needed, counted = _span(positions, reading, tried)
        if needed <= held or needed <= _span(positions, reading, _shortest(positions))[1]:
            return None  # it is long enough, or rows by number that don't follow the length
    except NotCountedError:
        return None  # an input's own values, or what no run can tell: the last run of all will
    weight, dim, before = _held(positions, reading)
    if first < 0 or not _follows(positions, reading, tried):
        raise ExtendError(
            f"{weight} has {held} rows, which {_place(reading)} reads by distance, not by position: no longer table "
            f"follows from it. What to do: keep max_length at {_reach(positions, reading, held, tried)} or less"
        )
    reach = _reach(positions, reading, held, tried)
    first, needed, held = first + before, needed + before, held + before
    return End(weight, dim, held, first, needed, reach, counted, _place(reading), _symbols(positions, reading))


def _symbols(positions: Positions, reading: Reading) -> frozenset[sympy.Symbol]:
    read = reading.node if reading.numbers is None else reading.numbers
    sizes = shape_of(read) or ()
    if reading.numbers is None:
        sizes = sizes[reading.dim : reading.dim + 1]
    return frozenset().union(*(size.free_symbols for size in sizes)) & positions.lengths


def _span(positions: Positions, reading: Reading, length: int) -> tuple[int, int, bool]:
    """The first row that counts positions, how many rows are needed, and whether one follows the other."""
    best: Tensor | None = None
    padded = reading.numbers is not None and positions.padded(reading.numbers)
    for pattern, absent in _PATTERNS if padded else _PATTERNS[:1]:
        rows = positions.rows(reading, length, pattern, absent=absent)
        if rows.numel() and (best is None or rows.max() > best.max()):
            best = rows
    if best is None:
        return 0, 0, True
    different = torch.unique(best)
    first, last = int(different[0]), int(different[-1])
    return first, last + 1, len(different) == last + 1 - first


def _follows(positions: Positions, reading: Reading, length: int) -> bool:
    """Whether longer inputs read the same first row, and then further ones."""
    first = _span(positions, reading, length)[0]
    half = max(length // 2, _shortest(positions))
    return reading.numbers is None or _span(positions, reading, half)[0] == first


def _shortest(positions: Positions) -> int:
    return max([2, *(positions.program.limits.get(symbol, (2, None))[0] for symbol in positions.lengths)])


def _reach(positions: Positions, reading: Reading, held: int, above: int) -> int:
    """The longest input for which the rows are enough; `above` is one for which they aren't."""
    below = _shortest(positions)
    while above - below > 1:
        middle = (above + below) // 2
        if _span(positions, reading, middle)[1] <= held:
            below = middle
        else:
            above = middle
    return below


def _in_pairs(positions: Positions, reading: Reading) -> bool:
    if reading.numbers is None:
        return False
    sizes = shape_of(reading.numbers) or ()
    return sum(bool(size.free_symbols & positions.lengths) for size in sizes) > 1


def _held(positions: Positions, reading: Reading) -> tuple[str, int, int]:
    """The parameter or buffer that a reading's source is, its dimension, and how many of its rows come before.

    Rows are marked with their numbers and followed through the graph.
    """
    behind = [one for one in positions.slicer.between([reading.source], []) if one.op == "get_attr"]
    sizes = positions.sizes(_shortest(positions))
    for node in behind:
        tensor = attrgetter(str(node.target))(positions.program.graph_module)
        for dim, size in enumerate(tensor.shape):
            numbers = torch.arange(size).reshape([-1 if at == dim else 1 for at in range(tensor.dim())])
            marked = {str(node.target): numbers.expand(tensor.shape).to(torch.float64)}
            try:
                value = positions.slicer.run(reading.source, {}, sizes, marked)
            except (KeyError, RuntimeError, IndexError, TypeError):
                continue
            seen = value.movedim(reading.dim, 0).flatten(1)
            before = int(seen[0, 0]) if seen.numel() else 0
            wanted = torch.arange(before, before + len(seen), dtype=seen.dtype)[:, None]
            if seen.numel() and before + len(seen) == size and bool((seen == wanted).all()):
                return str(node.target), dim, before
    names = ", ".join(str(node.target) for node in behind)
    raise ExtendError(
        f"{_place(reading)} reads rows by position of what is computed from {names}, not of these themselves: no "
        "longer table follows from them. What to do: compute it in the model for as many positions as there are"
    )


def _place(reading: Reading) -> str:
    return module_path(reading.node) or reading.node.name


def unexplained_limits(positions: Positions, ends: list[End], max_length: int) -> Mapping[str, int]:
    """Lengths that the graph ends at although no table does: of the symbols, by name."""
    known = {end.reach for end in ends}
    found = {}
    for symbol in positions.lengths:
        largest = positions.program.limits.get(symbol, (2, None))[1]
        if largest is not None and largest < max_length and largest not in known:
            found[symbol.name] = largest
    return found


def inputs_that_count(positions: Positions) -> list[tuple[str, str]]:
    """Tables that are read by the values of an input that counts up in the example: (table, input)."""
    program = positions.program
    counting = {
        name
        for name, value in program.kwargs.items()
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] > 2 and bool((value.diff() == 1).all())
    }
    found = []
    for reading in positions.readings():
        numbers = reading.numbers
        if numbers is not None and str(numbers.target) in counting and reading.source.op == "get_attr":
            found.append((str(reading.source.target), str(numbers.target)))
    return found
