"""Running a mask's slice of the graph on chosen lengths and paddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx

from remixer.passes.trial_sizes import NotTriedError, Size, padding_pattern, trial_sizes
from remixer.rewrite.program import Program, shape_of
from remixer.rewrite.slices import Slicer, evaluate


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


def run_trials(
    program: Program, slicer: Slicer, mask: fx.Node, padding: Padding | None, lengths: tuple[Size, Size]
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
    for index, sizes in enumerate(trial_sizes(program, slicer, mask, lengths)):
        queries, keys = (evaluate(size, sizes) for size in lengths)
        feeds, existing = {}, None
        try:
            if padding is not None:
                recorded = padding.node.meta["val"]
                existing = padding_pattern(index, *(evaluate(size, sizes) for size in recorded.shape))
                feeds[padding.node] = (existing if padding.exists else ~existing).to(recorded.dtype)
            value = slicer.run(mask, feeds, sizes, overrides)
        except KeyError as error:
            raise NotTriedError(str(error.args[0])) from error
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise NotTriedError(f"the mask can't be run at {queries} x {keys}: {told}") from error
        if not isinstance(value, Tensor) or value.dim() > 4:
            raise NotTriedError("the mask is no tensor of up to four dimensions")
        while value.dim() < 4:
            value = value[None]
        yield Trial(value, existing, queries, keys)


def _random_parameters(program: Program, slicer: Slicer, mask: fx.Node) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    named = dict(program.graph_module.named_parameters(remove_duplicate=False))
    return {
        name: torch.rand(named[name].shape, generator=generator).to(named[name].dtype)
        for node in slicer.between([mask], [])
        if node.op == "get_attr" and (name := str(node.target)) in named
    }
