"""Running a mask's slice of the graph on chosen lengths and paddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from remixer.rewrite.program import Program, shape_of
from remixer.rewrite.slices import Slicer, evaluate

# Longest window that is tried at full size: a mask of 8,192 x 8,192 booleans is 64 MiB.
LONGEST = 8192
_BASE = ((2, 41), (3, 29), (3, 29), (2, 23), (1, 53))
_PADDED = ("none", "right", "left", "random", "none")
# Operators whose numbers are values to fill in, not positions.
_FILLS = ("masked_fill", "where", "full", "scalar_tensor", "mul", "full_like", "new_full")


@dataclass(frozen=True)
class Trial:
    """One run of a mask: its value, and the padding that went in.

    Attributes:
        mask: (B or 1, H or 1, T or 1, S or 1).
        existing: (B, S) bool, which keys existed, or None where the mask reads no padding.
        queries: T.
        keys: S.
    """

    mask: Tensor
    existing: Tensor | None
    queries: int
    keys: int


class NotTriedError(Exception):
    """The mask can't be run on inputs of our choice; the message says why."""


@dataclass(frozen=True)
class Padding:
    """A node that may hold a mask's padding, and the value that means that a key exists."""

    node: fx.Node
    exists: bool


def padding_candidates(slicer: Slicer, mask: fx.Node, keys: sympy.Expr) -> list[fx.Node]:
    """Nodes of a mask's slice that may be its padding: two dimensions, the second as long as the keys.

    Booleans come first, then the others, each in the graph's order.
    """
    nodes = [
        node
        for node in slicer.between([mask], [])
        if node.op != "get_attr"
        and len(shape := shape_of(node) or ()) == 2
        and shape[1] == keys
        and not shape[0].free_symbols & keys.free_symbols
    ]
    return sorted(nodes, key=lambda node: (node.meta["val"].dtype != torch.bool, slicer.order(node)))


def sizes_of(program: Program, batch: int, length: int) -> dict[sympy.Symbol, int]:
    """A value for every symbol: the batch, and lengths of which no two are the same."""
    sizes = dict.fromkeys(program.batch, batch)
    for index, symbol in enumerate(sorted(program.length, key=str)):
        smallest, largest = program.limits.get(symbol, (1, None))
        wanted = max(smallest, length + 7 * index)
        sizes[symbol] = wanted if largest is None else min(wanted, largest)
    return sizes


def trial_sizes(program: Program, slicer: Slicer, mask: fx.Node) -> Iterator[dict[sympy.Symbol, int]]:
    """Sizes for each trial: some short ones, and one longer than any constant of the slice, such as a window.

    Raises:
        NotTriedError: a constant is too large to try, and inputs may be longer than it.
    """
    for batch, length in _BASE:
        yield sizes_of(program, batch, length)
    longest = _largest_constant(slicer, mask)
    limits = [program.limits.get(symbol, (1, None))[1] for symbol in program.length]
    reach = max((longest + 1 if largest is None else largest for largest in limits), default=0)
    if longest > LONGEST and reach > LONGEST:
        raise NotTriedError(f"the mask holds the constant {longest}, too long a window to be tried")
    if longest > 41:
        yield sizes_of(program, 1, min(longest, LONGEST) + 16)


def run_trials(
    program: Program,
    slicer: Slicer,
    mask: fx.Node,
    padding: Padding | None,
    lengths: tuple[int | torch.SymInt, int | torch.SymInt],
) -> Iterator[Trial]:
    """The mask's value on several lengths, with no padding, right, left, random, and again none.

    Parameters are replaced by random numbers: tables that start at zero would look like no bias.

    Args:
        program: that the mask is from.
        slicer: of the program.
        mask: the mask's node.
        padding: what to feed, or None.
        lengths: T and S of the site.

    Raises:
        NotTriedError: the mask depends on the values of another input, or can't be run.
    """
    overrides = _random_parameters(program, slicer, mask)
    for index, sizes in enumerate(trial_sizes(program, slicer, mask)):
        feeds, existing = {}, None
        if padding is not None:
            recorded = padding.node.meta["val"]
            B, S = (evaluate(size, sizes) for size in recorded.shape)
            existing = padding_pattern(index, B, S)
            feeds[padding.node] = (existing if padding.exists else ~existing).to(recorded.dtype)
        try:
            value = slicer.run(mask, feeds, sizes, overrides)
        except KeyError as error:
            raise NotTriedError(str(error.args[0])) from error
        except (RuntimeError, IndexError) as error:
            raise NotTriedError(f"the mask can't be run at sizes {sizes}: {str(error).splitlines()[0]}") from error
        while value.dim() < 4:
            value = value[None]
        yield Trial(value, existing, evaluate(lengths[0], sizes), evaluate(lengths[1], sizes))


def padding_pattern(index: int, B: int, S: int) -> Tensor:
    """Bool (B, S) of which keys exist: none missing, right, left, random, and none in longer trials.

    Every row keeps at least one key.
    """
    existing = torch.ones(B, S, dtype=torch.bool)
    kind = _PADDED[index] if index < len(_PADDED) else "none"
    generator = torch.Generator().manual_seed(index)
    for row in range(B):
        cut = 1 + (3 * row + S // 3) % max(1, S - 1)
        if kind == "right":
            existing[row, cut:] = False
        elif kind == "left":
            existing[row, : S - cut] = False
        elif kind == "random":
            existing[row] = torch.rand(S, generator=generator) > 0.4
            existing[row, row % S] = True
    return existing


def _largest_constant(slicer: Slicer, mask: fx.Node) -> int:
    """The largest whole number in a slice that could be a window, a table's size among them; 0 if none."""
    found = [0]
    for node in slicer.between([mask], []):
        if node.op == "get_attr":
            value = node.meta.get("val")
            found += [int(size) for size in getattr(value, "shape", ()) if isinstance(size, int)]
            if isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point():
                stored = slicer.run(node, {}, {})
                found.append(abs(int(stored)))
        elif not getattr(node.target, "__name__", "").startswith(_FILLS):
            flat: list[object] = []
            map_aggregate((node.args, tuple(node.kwargs.values())), flat.append)
            found += [abs(int(item)) for item in flat if _whole(item)]
    return max(found)


def _whole(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**31 - 1


def _random_parameters(program: Program, slicer: Slicer, mask: fx.Node) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    named = dict(program.graph_module.named_parameters())
    return {
        name: torch.rand(named[name].shape, generator=generator).to(named[name].dtype)
        for node in slicer.between([mask], [])
        if node.op == "get_attr" and (name := str(node.target)) in named
    }
